import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from promptreid.errors import CheckpointError
from promptreid.files import file_digest
from promptreid.hub.manifest import parse_manifest
from promptreid.hub.prompt_files import is_finite, read_bytes, read_prompt_files, read_weights, write_prompt_files

CONFIG = {"model_cfg": {"embed_dim": 4}, "preprocess_cfg": {}}
NAMES = {"prompt_config.json", "prompts.safetensors"}
WITH_ENCODERS = NAMES | {"open_clip_model.safetensors", "open_clip_config.json"}


def visible(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.name != ".prompts.lock"}


def reseal(folder: Path, **changes) -> None:
    """Make `prompt_config.json` fit the other files again, as whoever wants to do harm would."""
    manifest = parse_manifest((folder / "prompt_config.json").read_bytes(), source="")
    digests = {name: file_digest(folder / name) for name in manifest.sha256}
    (folder / "prompt_config.json").write_text(replace(manifest, **{"sha256": digests, **changes}).to_json())


@pytest.fixture
def folder(tmp_path, make_manifest, tensors) -> Path:
    write_prompt_files(tmp_path / "p", make_manifest(), tensors)
    return tmp_path / "p"


@pytest.fixture
def tuned(tmp_path, make_manifest, tensors, encoders) -> Path:
    write_prompt_files(tmp_path / "t", make_manifest(), tensors, encoders=encoders, open_clip_config=CONFIG)
    return tmp_path / "t"


def test_prompts_round_trip(folder, tensors):
    files = read_prompt_files(folder)
    assert visible(folder) == NAMES
    assert files.encoders is None
    assert files.tensors.keys() == tensors.keys()
    assert all(torch.equal(files.tensors[name], value) for name, value in tensors.items())


def test_encoders_round_trip(tuned, encoders):
    files = read_prompt_files(tuned)
    assert visible(tuned) == WITH_ENCODERS
    assert files.encoders.shapes == {"visual.proj": (8, 4), "logit_scale": ()}
    assert files.encoders.open_clip_config == CONFIG
    read = read_weights(files.encoders.path)
    assert all(torch.equal(read[name], value) for name, value in encoders.items())
    assert read_prompt_files(tuned, with_encoders=False).encoders is None


def test_saving_over_encoders_takes_them_away_and_leaves_other_files(tuned, make_manifest, tensors):
    (tuned / "README.md").write_text("mine")
    write_prompt_files(tuned, make_manifest(), tensors)
    assert visible(tuned) == NAMES | {"README.md"}
    assert (tuned / "README.md").read_text() == "mine"


@pytest.mark.parametrize("name", sorted(WITH_ENCODERS - {"prompt_config.json"}))
def test_file_of_another_model_is_neither_overwritten_nor_deleted(tmp_path, make_manifest, tensors, encoders, name):
    (tmp_path / name).write_text("another model")
    for more in ({}, {"encoders": encoders, "open_clip_config": CONFIG}):
        with pytest.raises(
            FileExistsError, match=rf"holds {name}, which no prompt_config.json there lists.*choose another folder"
        ):
            write_prompt_files(tmp_path, make_manifest(), tensors, **more)
    assert visible(tmp_path) == {name}
    assert (tmp_path / name).read_text() == "another model"


def test_weights_put_beside_saved_prompts_are_neither_overwritten_nor_deleted(folder, make_manifest, tensors):
    (folder / "open_clip_model.safetensors").write_text("another model")
    with pytest.raises(
        FileExistsError, match=r"holds open_clip_model\.safetensors, which no prompt_config\.json there"
    ):
        write_prompt_files(folder, make_manifest(), tensors)
    assert (folder / "open_clip_model.safetensors").read_text() == "another model"


def test_damaged_prompts_with_their_encoders_can_be_saved_over(tuned, make_manifest, tensors):
    (tuned / "prompt_config.json").write_text("{")
    write_prompt_files(tuned, make_manifest(), tensors)
    assert visible(tuned) == NAMES


def test_files_take_at_most_2_kb_more_than_their_tensors(tmp_path, make_manifest):
    vit_b_16 = {"vision.prompts.tokens": torch.zeros(12, 4, 768), "text.prompts.tokens": torch.zeros(12, 4, 512)}
    samples = tuple(torch.randn(256).tolist())
    manifest = make_manifest(
        shapes={name: tuple(value.shape) for name, value in vit_b_16.items()},
        base_fingerprint=samples,
        encoders_fingerprint=samples,
    )
    write_prompt_files(tmp_path / "p", manifest, vit_b_16)
    total = sum((tmp_path / "p" / name).stat().st_size for name in NAMES)
    assert total - 4 * 12 * 4 * (768 + 512) <= 2048


@pytest.mark.parametrize("name", sorted(WITH_ENCODERS))
def test_missing_file_is_named(tuned, name):
    (tuned / name).unlink()
    with pytest.raises(CheckpointError, match=f"has no {name}|{name} is missing"):
        read_prompt_files(tuned)


@pytest.mark.parametrize("name", sorted(WITH_ENCODERS))
def test_folder_in_place_of_a_file_is_refused(tuned, name):
    (tuned / name).unlink()
    (tuned / name).mkdir()
    with pytest.raises(CheckpointError, match=f"has no {name}|{name} is missing"):
        read_prompt_files(tuned)


@pytest.mark.parametrize("name", sorted(WITH_ENCODERS - {"prompt_config.json"}))
@pytest.mark.parametrize("harm", ["flip", "cut", "longer", "empty"])
def test_damaged_file_is_named(tuned, name, harm):
    content = bytearray((tuned / name).read_bytes())
    if harm == "flip":
        content[len(content) // 2] ^= 4
    content = {"flip": content, "cut": content[:-1], "longer": content + b" ", "empty": b""}[harm]
    (tuned / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name} is corrupt: its SHA-256"):
        read_prompt_files(tuned)


@pytest.mark.parametrize("name", sorted(WITH_ENCODERS))
def test_file_far_too_long_is_refused_unread(tuned, name):
    with (tuned / name).open("r+b") as stream:
        stream.truncate(2**40)
    with pytest.raises(CheckpointError, match=r"has 1099511627776 bytes, expected at most"):
        read_prompt_files(tuned)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        ({"text.prompts.tokens": None}, "holds"),
        ({"text.prompts.tokens": torch.zeros(3, 4, 25)}, r"\(3, 4, 25\).*expected"),
        ({"text.prompts.tokens": torch.zeros(3, 4, 24, dtype=torch.float16)}, "float16"),
        ({"text.prompts.tokens": torch.full((3, 4, 24), float("nan"))}, "NaN or infinity"),
        ({"identity_head.weight": torch.zeros(3)}, "identity_head"),
    ],
)
def test_other_tensors_are_refused_even_if_sealed(folder, tensors, harm, words):
    changed = {name: value for name, value in {**tensors, **harm}.items() if value is not None}
    save_file(changed, folder / "prompts.safetensors")
    reseal(folder)
    with pytest.raises(CheckpointError, match=words):
        read_prompt_files(folder)


@pytest.mark.parametrize("length", [2**63, 2**40, 2**24, 5000, 0])
def test_header_that_lies_about_its_length_is_refused(tuned, length):
    for name in ("prompts.safetensors", "open_clip_model.safetensors"):
        content = (tuned / name).read_bytes()
        (tuned / name).write_bytes(length.to_bytes(8, "little") + content[8:])
        reseal(tuned)
        with pytest.raises(CheckpointError, match="not a sound safetensors file"):
            read_prompt_files(tuned)
        (tuned / name).write_bytes(content)


def test_encoders_of_strange_types_are_refused(tuned):
    save_file({"a": torch.zeros(3, dtype=torch.int8)}, tuned / "open_clip_model.safetensors")
    reseal(tuned)
    with pytest.raises(CheckpointError, match=r"'a': 'I8'.*which no open_clip model has"):
        read_prompt_files(tuned)


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b'{"model_cfg": 1, "preprocess_cfg": {}}', b"[" * 10**6])
def test_open_clip_config_that_is_none_is_refused(tuned, content):
    (tuned / "open_clip_config.json").write_bytes(content)
    reseal(tuned)
    with pytest.raises(
        CheckpointError, match=r"open_clip_config\.json (is not valid JSON|holds list|has no model_cfg)"
    ):
        read_prompt_files(tuned)


def test_empty_and_foreign_folders_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"has no prompt_config\.json; give a folder that save_prompts wrote"):
        read_prompt_files(tmp_path)


@pytest.fixture
def check_killed_saves(fork, tmp_path):
    """Starts the program that kills saves, and checks what it found."""

    def check(*, kills, seed):
        process = fork(Path(__file__).with_name("killed_save.py"), tmp_path, kills, seed)
        printed, errors = process.communicate()
        assert process.returncode == 0, errors
        check_report(json.loads(printed), kills)

    return check


def check_report(report: dict, kills: int) -> None:
    at_random = report.pop("random")
    assert at_random["neither"] == 0
    assert at_random["killed"] >= kills // 2
    for name, counts in report.items():
        assert counts["steps"] > 15, name
        assert counts["neither"] == 0, name
        assert min(counts["old"], counts["new"]) >= 3, name
        assert counts["last"] == "new", name
        assert counts["left"] == [], name


def test_save_killed_at_any_step_leaves_the_old_or_the_new(check_killed_saves):
    check_killed_saves(kills=20, seed=0)


@pytest.mark.slow
def test_save_killed_at_many_random_moments_leaves_the_old_or_the_new(check_killed_saves):
    check_killed_saves(kills=200, seed=1)


def test_reading_while_somebody_saves_over_it_finds_one_of_the_two(tmp_path, make_manifest, tensors, encoders):
    folder = tmp_path / "p"
    other = {name: value + 1 for name, value in tensors.items()}
    write_prompt_files(folder, make_manifest(), tensors)
    stop, errors = threading.Event(), []

    def save() -> None:
        try:
            while not stop.is_set():
                write_prompt_files(folder, make_manifest(), other, encoders=encoders, open_clip_config=CONFIG)
                write_prompt_files(folder, make_manifest(), tensors)
        except BaseException as error:
            errors.append(error)

    writer = threading.Thread(target=save)
    writer.start()
    try:
        for _ in range(100):
            read = read_prompt_files(folder)
            expected = tensors if read.encoders is None else other
            assert all(torch.equal(read.tensors[name], value) for name, value in expected.items())
    finally:
        stop.set()
        writer.join()
    assert errors == []


def test_file_replaced_by_a_shorter_one_while_it_is_read_is_read_whole(tmp_path, monkeypatch):
    path, shorter = tmp_path / "config.json", tmp_path / "shorter"
    path.write_bytes(b"a long content")
    shorter.write_bytes(b"short")
    opened = Path.open

    def open_and_lose(self, *args, **settings):
        stream = opened(self, *args, **settings)
        shorter.replace(path)
        return stream

    monkeypatch.setattr(Path, "open", open_and_lose)
    assert read_bytes(path, limit=100) == b"a long content"


def test_two_writers_at_once_leave_one_of_the_two(tmp_path, make_manifest, tensors, encoders):
    folder = tmp_path / "p"
    other = {name: value + 1 for name, value in tensors.items()}

    def save(values, weights):
        for _ in range(20):
            write_prompt_files(folder, make_manifest(), values, encoders=weights, open_clip_config=CONFIG)

    threads = [threading.Thread(target=save, args=pair) for pair in ((tensors, None), (other, encoders))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    read = read_prompt_files(folder)
    expected = tensors if read.encoders is None else other
    assert all(torch.equal(read.tensors[name], value) for name, value in expected.items())
    assert visible(folder) in (NAMES, WITH_ENCODERS)


def test_folder_can_be_copied_by_its_visible_files(folder, tmp_path, tensors):
    for name in NAMES:
        (tmp_path / "copy").mkdir(exist_ok=True)
        shutil.copy(folder / name, tmp_path / "copy" / name)
    assert torch.equal(
        read_prompt_files(tmp_path / "copy").tensors["text.prompts.tokens"], tensors["text.prompts.tokens"]
    )


def test_is_finite_finds_nan_and_infinity_and_ignores_integers():
    fine = {"a": torch.ones(2), "b": torch.tensor([3])}
    assert is_finite(fine)
    assert not is_finite({**fine, "c": torch.tensor([1.0, float("nan")])})
    assert not is_finite({**fine, "c": torch.tensor([float("inf")], dtype=torch.float16)})
