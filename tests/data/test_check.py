"""check_dataset: a generated copy with twenty planted faults, and every kind of problem on its own."""

import json
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from promptreid.cli.main import main
from promptreid.data.check import check_dataset
from promptreid.data.problems import KINDS, CheckReport, Problem, in_order
from promptreid.data.reader import load_cuhk_pedes, load_dataset
from promptreid.errors import DatasetError
from promptreid.synthetic import write_generated

Write = Callable[[Any], Path]


def check(root: Path, **settings: Any) -> CheckReport:
    return check_dataset(root, progress=False, **settings)


def kinds(report: CheckReport) -> list[str]:
    return [problem.kind for problem in report.problems]


def jpeg_bytes(image: Image.Image) -> bytes:
    stream = BytesIO()
    image.save(stream, "JPEG")
    return stream.getvalue()


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    return write_generated(tmp_path / "drawn", num_identities=(12, 4, 6), images_per_identity=3, seed=3, progress=False)


def plant_twenty_faults(root: Path) -> list[tuple[str, int | None, str]]:
    """Break records 0, 2, 4, … of a drawn copy; returns (kind, record, words of the message) of each fault."""
    annotation = root / "reid_raw.json"
    entries = json.loads(annotation.read_text(encoding="utf-8"))
    images = root / "imgs"
    secret = root / "secret.jpg"
    secret.write_bytes(jpeg_bytes(Image.new("RGB", (20, 40))))

    def picture(place: int) -> Path:
        return images / entries[place]["file_path"]

    entries[0] = ["not", "an", "object"]
    del entries[2]["captions"]
    entries[4]["split"] = "training"
    entries[6]["id"] = "seven"
    entries[8]["file_path"] = 17
    entries[10]["file_path"] = "cam_a/../../secret.png"
    entries[12]["file_path"] = "/etc/hostname"
    picture(14).unlink()
    picture(14).symlink_to(secret)
    picture(16).unlink()
    entries[18]["file_path"] = "lost_folder/00001.jpg"
    picture(20).write_bytes(b"")
    picture(22).write_bytes(picture(22).read_bytes()[:-200])
    picture(24).write_bytes(b"<html>404 not found</html>")
    picture(26).write_bytes(jpeg_bytes(Image.new("RGB", (50_000, 2))))
    picture(28).write_bytes(jpeg_bytes(Image.new("RGB", (1, 1))))
    entries[30]["captions"] = ["a man in a coat", "   "]
    entries[32]["captions"] = ["a man in a coat", 5]
    entries[34]["captions"] = ["a man " + "in a very long coat " * 30]
    entries[39] = dict(entries[36])
    entries[50]["id"] = entries[38]["id"]
    annotation.write_text(json.dumps(entries), encoding="utf-8")
    return [
        ("record", 0, "is list, expected an object"),
        ("record", 2, "has no captions"),
        ("record", 4, "split is 'training'"),
        ("record", 6, "id is 'seven', expected an integer"),
        ("record", 8, "file_path is 17, expected a path"),
        ("path", 10, "'cam_a/../../secret.png' leaves the folder imgs/"),
        ("path", 12, "'/etc/hostname' leaves the folder imgs/"),
        ("path", 14, "leaves the folder imgs/ over a link"),
        ("missing", 16, "there is no image"),
        ("missing", 18, "lost_folder/00001.jpg"),
        ("empty file", 20, "has zero bytes"),
        ("truncated", 22, "truncated"),
        ("unreadable", 24, "cannot identify image file"),
        ("oversized", 26, "has 50000 x 2 pixels"),
        ("tiny", 28, "has 1 x 1 pixels"),
        ("caption", 30, "caption 1 is '   ', expected a sentence"),
        ("caption", 32, "caption 1 is 5, expected a sentence"),
        ("long caption", 34, "caption 0 has"),
        ("duplicate", 39, "is in record 36 already"),
        ("split", 50, "is in the val and the test split"),
    ]


@pytest.mark.posix
def test_check_dataset_names_all_of_twenty_planted_faults_and_no_other(drawn: Path) -> None:
    import open_clip

    assert check(drawn).problems == ()
    planted = plant_twenty_faults(drawn)
    assert len(planted) == 20
    report = check(drawn, tokenizer=open_clip.get_tokenizer("ViT-B-16"))
    found = {(problem.kind, problem.position): problem.message for problem in report.problems}
    assert sorted(found) == sorted((kind, record) for kind, record, _ in planted)
    assert len(report.problems) == 20
    text = "\n".join(report.lines())
    for kind, record, words in planted:
        assert words in found[kind, record]
        assert f"reid_raw.json, record {record}: " in found[kind, record]
        assert found[kind, record] in text
    assert not report.ok
    assert len(report.errors) == 17  # all but the tiny picture, the long caption and the duplicate
    assert report.lines()[-1].startswith("not ready for training: 17 errors, 3 warnings")


@pytest.mark.posix
def test_promptreid_check_names_all_of_twenty_planted_faults(drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    planted = plant_twenty_faults(drawn)
    assert main(["check", str(drawn)]) == 1
    lines = capsys.readouterr().out.splitlines()
    for _, record, words in planted:
        assert len([line for line in lines if f"reid_raw.json, record {record}: " in line and words in line]) == 1
    assert lines[-1].startswith("not ready for training: 17 errors, 3 warnings")


@pytest.mark.posix
def test_promptreid_check_counts_against_the_context_of_the_model_named(
    drawn: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plant_twenty_faults(drawn)
    longest = []
    for settings, context in (([], 77), (["--tokenizer", "coca_ViT-B-32"], 76)):
        main(["check", str(drawn), "--no-images", "--json", *settings])
        report = json.loads(capsys.readouterr().out)
        assert report["context_length"] == context
        longest.append(report["longest_caption"])
    assert longest[0] == longest[1] == 154  # "a man", 30 times "in a very long coat", start and end
    assert main(["check", str(drawn), "--tokenizer", "ViT-B-61"]) == 2
    assert "open_clip has no model named 'ViT-B-61'" in capsys.readouterr().err


@pytest.mark.posix
def test_check_dataset_report_is_frozen_and_json_able(drawn: Path) -> None:
    plant_twenty_faults(drawn)
    report = check(drawn)
    with pytest.raises(FrozenInstanceError):
        report.name = "other"  # type: ignore[misc]
    values = json.loads(json.dumps(report.as_dict()))
    assert values["ok"] is False
    assert len(values["problems"]) == len(report.problems)
    assert values["problems"][0]["severity"] == "error"
    assert values["annotation"].endswith("reid_raw.json")


def test_check_dataset_sound_copy_is_ready(write_cuhk: Write, entries: list[dict]) -> None:
    report = check(write_cuhk(entries))
    assert report.ok
    assert report.problems == ()
    assert (report.num_records, report.num_captions, report.num_images_opened) == (10, 20, 10)
    assert report.lines() == [
        "synthetic people (CUHK-PEDES layout): train 3 persons, 6 images, 12 captions; "
        "val 1 persons, 2 images, 4 captions; "
        "test 2 persons, 2 images, 4 captions",
        "ready for training: 0 errors, 0 warnings (10 images opened)",
    ]


def test_check_dataset_missing_images_are_counted_by_folder_and_ten_are_named(
    write_cuhk: Write, entries: list[dict]
) -> None:
    root = write_cuhk(entries * 2)
    for path in (root / "imgs").rglob("*.png"):
        path.unlink()
    report = check(root)
    missing = [problem for problem in report.problems if problem.kind == "missing"]
    assert len(missing) == 10  # each image once, though two records name it
    lines = report.lines(limit=4)
    heading = lines.index("error: 10 images missing (cam_a: 5, cam_b: 5)")
    assert all("there is no image" in line for line in lines[heading + 1 : heading + 5])
    assert lines[heading + 5] == "  and 6 more"


def test_check_dataset_without_images_opens_none(write_cuhk: Write, entries: list[dict]) -> None:
    root = write_cuhk(entries)
    (root / "imgs" / entries[0]["file_path"]).write_bytes(b"")
    report = check(root, images=False)
    assert report.ok
    assert report.num_images_opened == 0
    assert "images not opened" in report.lines()[-1]
    assert kinds(check(root)) == ["empty file"]


def test_check_dataset_conflicting_records_of_an_image(write_cuhk: Write, entries: list[dict]) -> None:
    entries[1] |= {"file_path": entries[0]["file_path"]}
    report = check(write_cuhk(entries))
    assert kinds(report) == ["conflict"]
    assert "record 1: image 'cam_a/0000.png' is in record 0 already, as person 7 and here as 3" in (
        report.problems[0].message
    )


def test_check_dataset_copy_of_a_picture_in_another_split_is_found(write_cuhk: Write, entries: list[dict]) -> None:
    root = write_cuhk(entries)
    content = (root / "imgs" / entries[0]["file_path"]).read_bytes()
    (root / "imgs" / entries[8]["file_path"]).write_bytes(content)
    report = check(root)
    assert kinds(report) == ["same picture"]
    assert "(person 30, test) is the same image as that of record 0 (person 7, train)" in report.problems[0].message
    assert report.ok


def test_check_dataset_copy_of_a_picture_of_the_same_person_is_no_problem(
    write_cuhk: Write, entries: list[dict]
) -> None:
    root = write_cuhk(entries)
    content = (root / "imgs" / entries[0]["file_path"]).read_bytes()
    (root / "imgs" / entries[4]["file_path"]).write_bytes(content)
    assert check(root).problems == ()


def test_check_dataset_wrong_ending_and_animation_are_remarked(write_cuhk: Write, entries: list[dict]) -> None:
    root = write_cuhk(entries)
    images = root / "imgs"
    (images / entries[0]["file_path"]).write_bytes(jpeg_bytes(Image.new("RGB", (16, 32))))
    frames = [Image.new("RGB", (16, 32), (shade, 0, 0)) for shade in (0, 120, 240)]
    frames[0].save(images / entries[1]["file_path"], save_all=True, append_images=frames[1:])
    report = check(root)
    assert kinds(report) == ["extension", "animated"]
    assert "is JPEG, which its name does not say" in report.problems[0].message
    assert "has 3 frames" in report.problems[1].message


@pytest.mark.posix
def test_check_dataset_folder_linked_out_of_the_images_is_refused(
    write_cuhk: Write, entries: list[dict], tmp_path: Path
) -> None:
    root = write_cuhk(entries)
    (root / "imgs" / "cam_b").rename(tmp_path / "elsewhere")
    (root / "imgs" / "cam_b").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    report = check(root)
    assert kinds(report) == ["path"] * 5
    assert report.num_images_opened == 5
    with pytest.raises(DatasetError, match=r"leaves the folder imgs/ over a link; copy .*\(and 4 more errors; prompt"):
        load_cuhk_pedes(root)


@pytest.mark.posix
def test_check_dataset_image_folder_that_is_a_link_itself_is_fine(
    write_cuhk: Write, entries: list[dict], tmp_path: Path
) -> None:
    root = write_cuhk(entries)
    (root / "imgs").rename(tmp_path / "elsewhere")
    (root / "imgs").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (root / "imgs" / "cam_a" / "0000.png").rename(root / "imgs" / "cam_a" / "real.png")
    (root / "imgs" / "cam_a" / "0000.png").symlink_to("real.png")  # a link that stays inside
    assert check(root).problems == ()


def test_check_dataset_no_split_left_is_an_error(write_cuhk: Write, entries: list[dict]) -> None:
    report = check(write_cuhk([entry for entry in entries if entry["split"] == "val"]))
    assert kinds(report) == ["split", "split"]
    assert 'no record has split "train"' in report.problems[0].message


def test_check_dataset_counts_other_than_published_are_a_warning(write_cuhk: Write, entries: list[dict]) -> None:
    root = write_cuhk(entries)
    (root / "generated.json").unlink()
    report = check(root)
    assert kinds(report) == ["counts"] * 3
    assert report.ok
    assert "train has 3 persons, 6 images, 12 captions, published are 11,003 persons, 34,054 images, 68,126" in (
        report.problems[0].message
    )
    assert "train 3 of 11,003 persons, 6 of 34,054 images, 12 of 68,126 captions" in report.summary
    assert report.summary.endswith("(not as published)")


def test_check_dataset_long_captions_are_counted_and_the_longest_is_named(
    write_cuhk: Write, entries: list[dict]
) -> None:
    import open_clip

    tokenizer = open_clip.get_tokenizer("ViT-B-16")
    entries[1]["captions"][1] = "coat " * 75  # with start and end exactly the context
    entries[2]["captions"][0] = "coat " * 76
    entries[8]["captions"][1] = "coat " * 400
    report = check(write_cuhk(entries), tokenizer=tokenizer)
    assert [(problem.position, problem.kind) for problem in report.problems] == [
        (2, "long caption"),
        (8, "long caption"),
    ]
    assert "record 2: caption 0 has 78 tokens, the context 77" in report.problems[0].message
    assert "record 8: caption 1 has 402 tokens" in report.problems[1].message
    assert (report.longest_caption, report.context_length) == (402, 77)
    assert "longest caption: 402 tokens; the context has 77" in report.lines()


def test_check_dataset_tokenizer_of_fixed_context_counts_full_captions(
    write_cuhk: Write, entries: list[dict], tokenizer: Callable[[list[str]], torch.Tensor]
) -> None:
    entries[0]["captions"] = ["one two three", "word " * 30]
    report = check(write_cuhk(entries), tokenizer=tokenizer)
    assert "caption 1 has 13 tokens, the context 12" in report.problems[0].message


def test_check_dataset_no_folder_raises(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="there is no folder"):
        check(tmp_path / "nowhere")


def test_check_dataset_broken_json_raises(tmp_path: Path) -> None:
    (tmp_path / "imgs").mkdir()
    (tmp_path / "data_captions.json").write_text("[{", encoding="utf-8")
    with pytest.raises(DatasetError, match=r"data_captions\.json is not valid JSON"):
        check(tmp_path)


def test_check_dataset_unknown_layout_raises(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="layout is 'MARKET', expected one of CUHK-PEDES, ICFG-PEDES, RSTPReid, fold"):
        check(tmp_path, layout="MARKET")


def test_in_order_puts_errors_first_and_keeps_kinds_together() -> None:
    problems = [Problem("counts", "a"), Problem("missing", "b"), Problem("record", "c"), Problem("missing", "d")]
    assert [problem.message for problem in in_order(problems)] == ["c", "b", "d", "a"]
    severities = [severity for severity, _ in KINDS.values()]
    assert severities == sorted(severities)  # "error" before "warning"


def test_check_dataset_skip_leaves_out_images_that_cannot_be_read(write_cuhk: Write, entries: list[dict]) -> None:
    root = write_cuhk(entries)
    first = root / "imgs/cam_a/0000.png"
    first.write_bytes(first.read_bytes()[:60])
    (root / "imgs/cam_b/0001.png").write_bytes(b"")
    assert not check(root).ok
    report = check(root, on_bad="skip")
    assert report.ok
    assert sorted(problem.path for problem in report.left_out) == ["cam_a/0000.png", "cam_b/0001.png"]
    assert report.summary.startswith("synthetic people (CUHK-PEDES layout): train 3 persons, 4 images")


@pytest.fixture
def own(tmp_path: Path) -> Callable[..., Path]:
    """Writes `t.csv` beside six images, `0.png` to `5.png`; returns the folder."""

    def write(*rows: str, splits: bool = False) -> Path:
        for number in range(6):
            Image.new("RGB", (16, 32), (40 * number, 0, 0)).save(tmp_path / f"{number}.png")
        header = f"image,caption,person_id{',split' * splits}"
        (tmp_path / "t.csv").write_text("\n".join([header, *rows, ""]), encoding="utf-8")
        return tmp_path

    return write


PEOPLE = [f"{number}.png,a man,{number}" for number in range(6)]
FAULTS = ["lost.png,a man,6", "0.png,a man in red,7", "1.png,a man,1", "2.png,,2"]


def located(root: Path, line: int, words: str) -> str:
    return f"{root / 't.csv'}, line {line}: {words}"


def planted_in_own(root: Path) -> list[tuple[str, str]]:
    """Kind and message of each of `FAULTS` below `PEOPLE`."""
    return [
        ("caption", located(root, 11, "caption is '', expected a sentence")),
        ("conflict", located(root, 9, "image '0.png' is in line 2 already, as person 0 and here as 7")),
        ("missing", located(root, 8, f"there is no image {root / 'lost.png'}")),
        ("duplicate", located(root, 10, "image '1.png' has this very caption in an earlier line, 3 or below")),
    ]


def found_in(report: CheckReport) -> list[tuple[str, str]]:
    return [(problem.kind, problem.message) for problem in report.problems]


def test_check_dataset_table_without_splits_hides_no_other_problem(own: Callable[..., Path]) -> None:
    root = own(*PEOPLE, *FAULTS)
    report = check(root)
    (caption, *others) = planted_in_own(root)
    assert found_in(report) == [caption, ("split", report.errors[1].message), *others]
    assert "t.csv: 8 of 8 images have no split. Add a column split of train, val, test, or" in report.errors[1].message
    assert "(of promptreid check and train: --split 80/10/10)" in report.errors[1].message
    assert report.summary == f"{root.name}: without split 8 persons, 8 images, 8 captions"


def test_check_dataset_divides_persons_as_load_dataset_does(own: Callable[..., Path]) -> None:
    root = own(*PEOPLE, *FAULTS)
    assert found_in(check(root, split="50/0/50")) == planted_in_own(root)
    root = own(*PEOPLE)
    for seed in (0, 1):
        loaded = load_dataset(root, split="50/0/50", split_seed=seed)
        report = check(root, split="50/0/50", split_seed=seed)
        assert (report.problems, report.summary) == ((), loaded.summary())
    with pytest.raises(ValueError, match="split is '80/10', expected percent of the persons"):
        check(root, split="80/10")


def test_check_dataset_too_few_persons_to_divide_is_one_problem_of_several(own: Callable[..., Path]) -> None:
    root = own(*PEOPLE[:2], "lost.png,a man,1")
    report = check(root, split="98/1/1")
    assert found_in(report) == [
        ("split", f"{root / 't.csv'} has 2 persons, too few to divide them 98/1/1: each split needs one at least"),
        ("missing", located(root, 4, f"there is no image {root / 'lost.png'}")),
    ]


def test_load_dataset_malformed_records_are_named_before_too_few_persons(own: Callable[..., Path]) -> None:
    root = own("0.png,,1", "1.png,,2")
    with pytest.raises(DatasetError, match=r"t\.csv, line 2: caption is '', expected a sentence \(and 2 more errors"):
        load_dataset(root, split="50/0/50")
    assert kinds(check(root, split="50/0/50")) == ["caption", "caption", "split"]
    with (
        pytest.warns(UserWarning, match="2 of 2 lines cannot"),
        pytest.raises(DatasetError, match="has 0 persons, too f"),
    ):
        load_dataset(root, split="50/0/50", on_bad="skip")


def test_check_dataset_some_rows_without_split_do_not_hide_the_splits_of_others(own: Callable[..., Path]) -> None:
    rows = ["0.png,a man,0,train", "1.png,a man,0,test", "2.png,a man,0,", "0.png,he walks,0,"]
    report = check(own(*rows, splits=True))
    assert kinds(report) == ["split", "split", "duplicate"]
    assert "t.csv: 2 of 4 images have no split" in report.problems[0].message
    assert "line 3: person 0 is in the train and the test split" in report.problems[1].message
    assert report.summary.endswith(
        "train 1 persons, 1 images, 1 captions; test 1 persons, 1 images, 1 captions; "
        "without split 1 persons, 2 images, 2 captions"
    )


def test_check_dataset_copies_of_a_picture_without_splits_are_told_by_person(own: Callable[..., Path]) -> None:
    root = own(*PEOPLE[:3], "4.png,a man,1")
    for copied in (1, 4):  # of another person, and of the same one
        (root / f"{copied}.png").write_bytes((root / "0.png").read_bytes())
    (root / "4.png").write_bytes((root / "1.png").read_bytes())
    report = check(root)
    assert [problem.message for problem in report.warnings] == [
        located(root, 3, "image '1.png' (person 1) is the same image as that of line 2 (person 0)"),
        located(root, 5, "image '4.png' (person 1) is the same image as that of line 2 (person 0)"),
    ]
