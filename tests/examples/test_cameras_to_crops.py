"""examples/cameras_to_crops.py, on frames that are drawn here and boxes in both forms."""

import json
import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "examples" / "cameras_to_crops.py"
RED, BLUE = (200, 0, 0), (0, 0, 200)
# Left, top, width, height from (0, 0): two persons who stand still.
PEOPLE = {"1": ((10, 20, 40, 100), RED), "2": ((100, 5, 30, 90), BLUE)}
FRAME = {"id": 1, "file_name": "img1/000003.png"}


@pytest.fixture
def frames(tmp_path, monkeypatch):
    """Twelve frames of 160 × 128 pixels, numbered from 1 as MOTChallenge does."""
    folder = tmp_path / "img1"
    folder.mkdir()
    for number in range(1, 13):
        image = Image.new("RGB", (160, 128), "white")
        for (left, top, width, height), colour in PEOPLE.values():
            image.paste(colour, (left, top, left + width, top + height))
        image.save(folder / f"{number:06}.png")
    monkeypatch.chdir(tmp_path)
    return folder


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    return capsys.readouterr().out


def mot(*rows):
    Path("boxes.txt").write_text("".join(",".join(map(str, row)) + "\n" for row in rows), encoding="utf-8")


def ground_truth():
    """MOTChallenge counts pixels from 1."""
    for frame in range(1, 13):
        for track, ((left, top, width, height), _) in PEOPLE.items():
            yield frame, track, left + 1, top + 1, width, height, 1, 1, 1.0


def test_mot_boxes_cut_exactly_the_people_of_every_tenth_frame(frames, monkeypatch, capsys):
    mot(*ground_truth())
    assert run(monkeypatch, capsys, frames, "boxes.txt", "crops/gate") == "4 crops in crops/gate\n"
    assert sorted(path.name for path in Path("crops/gate").iterdir()) == [
        f"{frame:06}_{track}.jpg" for frame in (1, 11) for track in PEOPLE
    ]
    for track, ((_, _, width, height), colour) in PEOPLE.items():
        with Image.open(f"crops/gate/000001_{track}.jpg") as crop:
            assert crop.size == (width, height)
            for corner in ((0, 0), (width - 1, height - 1)):  # one pixel off would be white there
                assert crop.getpixel(corner) == pytest.approx(colour, abs=12)


def test_what_mot_marks_as_ignored_or_no_pedestrian_is_left_out(frames, monkeypatch, capsys):
    box = (11, 21, 40, 100)
    mot((1, 1, *box, 0, 1, 1.0), (1, 2, *box, 1, 3, 1.0), (1, 3, *box, -1, -1, -1, -1), (1, 4, *box))
    assert run(monkeypatch, capsys, frames, "boxes.txt", "crops").startswith("2 crops")
    assert sorted(path.name for path in Path("crops").iterdir()) == ["000001_3.jpg", "000001_4.jpg"]


def test_box_beyond_the_frame_is_clipped_and_a_small_one_left_out(frames, monkeypatch, capsys):
    mot((1, 1, -20, -10, 60, 90, 1, -1, -1, -1), (1, 2, 150, 20, 40, 100, 1, -1, -1, -1))
    assert run(monkeypatch, capsys, frames, "boxes.txt", "crops").startswith("1 crops")
    with Image.open("crops/000001_1.jpg") as crop:
        assert crop.size == (39, 79)  # it begins 21 and 11 pixels before the frame


def coco(*annotations, image=FRAME):
    content = {
        "images": [image],
        "categories": [{"id": 1, "name": "person"}, {"id": 2, "name": "bicycle"}],
        "annotations": annotations,
    }
    Path("boxes.json").write_text(json.dumps(content), encoding="utf-8")


def test_coco_boxes_of_persons_alone_are_cut(frames, monkeypatch, capsys):
    coco(
        {"id": 7, "image_id": 1, "category_id": 1, "bbox": PEOPLE["1"][0]},
        {"id": 8, "image_id": 1, "category_id": 2, "bbox": PEOPLE["2"][0]},
        {"id": 9, "image_id": 1, "category_id": 1, "bbox": [0, 0, 160, 128], "iscrowd": 1},
    )
    assert run(monkeypatch, capsys, frames, "boxes.json", "crops").startswith("1 crops")
    with Image.open("crops/000003_7.jpg") as crop:
        assert crop.size == (40, 100)
        assert crop.getpixel((0, 0)) == pytest.approx(RED, abs=12)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([(31, 1, 1, 1, 50, 100)], "no image for frame 31"),
        ([(1, 1, "x", 1, 50, 100)], "boxes.txt, line 1"),
        ([(1, 1, 1, 1, 50, 100, "high")], "boxes.txt, line 1"),
        ([(1, 1, 1, "inf", 50, 100)], "boxes.txt, line 1: a number of the box is not finite"),
        ([(1, 1, 5)], "expected frame,track,left,top,width,height"),
        ([(1, 1, 1, 1, 50, 100)] * 2, "000001.png has two boxes of person 1"),
    ],
)
def test_bad_boxes_are_named(frames, monkeypatch, capsys, rows, said):
    mot(*rows)
    with pytest.raises(SystemExit, match=rf"^error: .*{said}"):
        run(monkeypatch, capsys, frames, "boxes.txt", "crops")


@pytest.mark.parametrize(
    "harmed",
    [{"bbox": [0, 0, 40]}, {"bbox": [0, 0, float("inf"), 100]}, {"bbox": None}, {"image_id": 2}, {"category_id": []}],
)
def test_bad_annotation_of_coco_is_named(frames, monkeypatch, capsys, harmed):
    good = {"image_id": 1, "category_id": 1, "bbox": PEOPLE["1"][0]}
    coco(good, good | harmed)
    with pytest.raises(SystemExit, match=r"^error: boxes.json, annotation 2 from the top: expected a category_id"):
        run(monkeypatch, capsys, frames, "boxes.json", "crops")


def test_images_of_coco_without_an_id_are_refused(frames, monkeypatch, capsys):
    coco(image={"file_name": "000003.png"})
    with pytest.raises(SystemExit, match=r"^error: boxes.json: every image needs an id"):
        run(monkeypatch, capsys, frames, "boxes.json", "crops")


@pytest.mark.parametrize("unknown", ["-1", "-1.0", ""])
def test_boxes_of_a_detector_without_tracks_are_all_cut(frames, monkeypatch, capsys, unknown):
    mot((1, unknown, 11, 21, 40, 100, 0.9), (), (1, unknown, 101, 6, 30, 90, 0.8), (1, " anna", 11, 21, 40, 100))
    assert run(monkeypatch, capsys, frames, "boxes.txt", "crops").startswith("3 crops")
    assert {path.stem for path in Path("crops").iterdir()} == {"000001_line1", "000001_line3", "000001_anna"}


def test_results_of_a_detector_in_coco_form_are_all_cut(frames, monkeypatch, capsys):
    boxes = [{"image_id": 1, "category_id": 1, "bbox": box, "score": 0.9} for box, _ in PEOPLE.values()]
    coco(*boxes, boxes[0] | {"id": 5}, boxes[0] | {"id": 6, "track_id": -1}, boxes[0] | {"id": 7, "track_id": 70})
    assert run(monkeypatch, capsys, frames, "boxes.json", "crops").startswith("5 crops")
    assert {path.stem.removeprefix("000003_") for path in Path("crops").iterdir()} == {
        "annotation1", "annotation2", "5", "6", "70"
    }  # fmt: skip


@pytest.mark.parametrize("name", ["absent.txt", "results.json"])
def test_file_that_cannot_be_read_is_an_error_of_one_line(frames, monkeypatch, capsys, name):
    Path("results.json").write_text('[{"image_id": 1, "bbox": [0, 0, 40, 100]}]', encoding="utf-8")
    with pytest.raises(SystemExit, match=rf"^error: .*{name}"):
        run(monkeypatch, capsys, frames, name, "crops")


def test_another_form_is_refused(frames, monkeypatch, capsys):
    with pytest.raises(SystemExit, match=r"expected .txt \(MOT\) or .json \(COCO\)"):
        run(monkeypatch, capsys, frames, "boxes.xml", "crops")


def test_crops_can_be_searched_by_camera(frames, monkeypatch, capsys):
    from promptreid import Gallery, load_prompts
    from promptreid.towers.tiny import tiny_prompts

    mot(*ground_truth())
    run(monkeypatch, capsys, frames, "boxes.txt", "crops/gate")
    gallery = Gallery.build(load_prompts(tiny_prompts()), "crops", progress=False)
    (hit,) = gallery.search("a man in a red coat", k=1, where={"folder": "gate"})
    assert hit.path.name.endswith("_1.jpg")
