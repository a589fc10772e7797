"""Which run may be in a folder; how a trainer uses one is in test_run_identity.py and test_resume.py."""

import json
from pathlib import Path

import pytest

from promptreid.errors import CheckpointError
from promptreid.files import read_sealed_json
from promptreid.training.run_folder import claim_folder

FACTS = {"seed": 0, "image_size": (96, 48)}
NOTE = "settings.json"


def test_claim_folder_takes_a_new_folder_and_the_same_run_again(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    for _ in range(2):
        claim_folder(folder, FACTS, note=NOTE, sole=True)
        assert read_sealed_json(folder / NOTE) == {"seed": 0, "image_size": [96, 48]}
        (folder / "results.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"run holds another run: seed was 0, is 1\. Use the earlier"):
        claim_folder(folder, {**FACTS, "seed": 1}, note=NOTE)


def test_claim_folder_accepts_the_note_of_a_version_that_kept_less(tmp_path: Path) -> None:
    (tmp_path / NOTE).write_text('{"seed": 0}')
    claim_folder(tmp_path, FACTS, note=NOTE)
    assert "image_size" in json.loads((tmp_path / NOTE).read_text())


@pytest.mark.parametrize(
    "content",
    ['{"seed": ', "3", "[" * 100_000, '{"seed": 1, "digest": "0"}', '{"seed": 0, "digest": 0}'],
    ids=["cut", "number", "deep", "value", "digest"],
)
def test_claim_folder_with_a_damaged_note_is_refused_and_left(content: str, tmp_path: Path) -> None:
    (tmp_path / NOTE).write_text(content)
    with pytest.raises(CheckpointError, match=r"settings\.json is damaged \(.*give another output folder"):
        claim_folder(tmp_path, FACTS, note=NOTE)
    assert (tmp_path / NOTE).read_text() == content


def test_claim_folder_notices_a_value_that_was_changed(tmp_path: Path) -> None:
    claim_folder(tmp_path, FACTS, note=NOTE)
    content = (tmp_path / NOTE).read_text()
    (tmp_path / NOTE).write_text(content.replace('"seed": 0', '"seed": 1'))
    with pytest.raises(CheckpointError, match=r"settings\.json is damaged \(its digest is not that of its content"):
        claim_folder(tmp_path, {**FACTS, "seed": 1}, note=NOTE)


def test_claim_folder_with_other_files_is_refused_only_where_it_must_be_the_run_s_own(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="holds other files; give an empty or new output folder"):
        claim_folder(tmp_path, FACTS, note=NOTE, sole=True)
    claim_folder(tmp_path, FACTS, note=NOTE)


def test_claim_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(NotADirectoryError, match="notes is a file; give another output folder"):
        claim_folder(tmp_path / "notes" / "run", FACTS, note=NOTE)
