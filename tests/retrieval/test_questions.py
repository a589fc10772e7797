"""What can be asked: numbers, names, filters, metadata, and how features leave the gallery."""

import datetime
import json
from enum import IntEnum
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from promptreid import Gallery
from promptreid.errors import DatasetError
from promptreid.model import encoding
from promptreid.retrieval import encode
from promptreid.retrieval.filters import plain

HALF = 0.5**0.5


@pytest.fixture
def gallery():
    """Four images from two cameras, each of a direction of its own."""
    metadata = [{"camera": name, "hour": hour} for name in ("yard", "gate") for hour in (8, 9)]
    return Gallery(None, [f"{number}.jpg" for number in range(4)], torch.eye(4), metadata=metadata)


def test_search_for_more_than_there_are_gives_what_there_is(gallery):
    assert len(gallery.search(torch.ones(4), 1000)) == 4
    assert len(gallery.search(torch.ones(4), np.int64(3))) == 3


@pytest.mark.parametrize(("k", "error"), [(3.0, TypeError), ("5", TypeError), (0, ValueError), (-1, ValueError)])
def test_search_for_a_bad_number_is_refused(gallery, k, error):
    with pytest.raises(error, match=f"k is {k!r}, expected"):
        gallery.search(torch.ones(4), k)


def test_search_and_gallery_take_numpy_features(gallery):
    made = Gallery(None, gallery.paths, np.eye(4, dtype=np.float32))
    assert [hit.index for hit in made.search(np.array([0.0, 0.0, 1.0, 0.0]), 1)] == [2]
    assert [hits[0].index for hits in made.search(np.eye(4)[[1, 3]], 1)] == [1, 3]


def test_search_by_the_name_of_an_image_is_refused(gallery):
    gallery.model = object()
    with pytest.raises(
        ValueError, match=r"'c/p0\.JPG' is the name of an image.* give pathlib\.Path.* or --image c/p0\.JPG"
    ):
        gallery.search("c/p0.JPG")
    for copied in ("c/p0.jpg ", "'c/p0.jpg'", '"c/p0.jpg"\n'):
        with pytest.raises(ValueError, match="is the name of an image"):
            gallery.search(copied)
    with pytest.raises(DatasetError, match=r"there is no image nothere\.jpg; check the path"):
        gallery.search(Path("nothere.jpg"))


def test_search_by_an_image_that_cannot_be_used_advises_another(shipped, gallery, tmp_path):
    Image.new("L", (20_000, 8)).save(tmp_path / "wide.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    for name in ("wide.png", "broken.png"):
        with pytest.raises(DatasetError, match=rf"{name} [^;]*; give another image$"):
            encode.encode_queries(shipped[0], tmp_path / name, dimensions=128)


def test_search_by_an_open_image_turns_it_as_the_same_file_is_turned(shipped, folder, tmp_path):
    model = shipped[0]
    with Image.open(next(folder.rglob("*.jpg"))) as image:
        exif = image.getexif()
        exif[0x0112] = 6
        image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as image:
        features = encode.encode_queries(model, [tmp_path / "turned.png", image], dimensions=128)
    assert torch.equal(features[0], features[1])


def test_filter_asks_a_function_about_a_value(gallery):
    hits = gallery.search(torch.ones(4), where={"camera": lambda name: name.startswith("g"), "hour": 9})
    assert [hit.index for hit in hits] == [3]


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ({"camera": "roof"}, "has camera roof; known are: yard, gate"),
        ({"camera": ["roof", "hall"]}, "has camera roof or hall; known are"),
        ({"place": 1}, "has place; known are: camera, hour"),
        (
            {"camera": lambda name: name == "roof"},
            "the function for camera is true for no image; known are: yard, gate",
        ),
        ({"camera": ""}, "has camera ''; known are: yard, gate"),
        ({"camera": []}, "has camera one of no values, as the list is empty; known are: yard, gate"),
        (lambda known: known["hour"] > 20, "true for no image; the metadata have the keys camera, hour"),
    ],
)
def test_filter_that_nothing_passes_is_not_a_search_without_a_match(gallery, where, words):
    with pytest.raises(ValueError, match=words):
        gallery.search(torch.ones(4), where=where)
    assert gallery.search(torch.ones(4), where={"camera": "yard"}, threshold=0.99) == []


@pytest.mark.parametrize("where", ["hour=8", 8, ["hour"]])
def test_filter_of_another_kind_says_what_it_takes(gallery, where):
    words = r"where is .*, expected conditions by key, such as \{'folder': 'cam_a'\}, or a function"
    for ask in (
        lambda: gallery.search(torch.ones(4), where=where),
        lambda: gallery.check_filter(where),
        lambda: gallery.remove(where=where),
    ):
        with pytest.raises(TypeError, match=words):
            ask()


def test_filter_whose_conditions_match_no_image_together_names_them():
    metadata = [{"camera": "yard", "hour": 8}, {"camera": "gate", "hour": 9}]
    gallery = Gallery(None, ["0.jpg", "1.jpg"], torch.eye(2), metadata=metadata)
    with pytest.raises(ValueError, match=r"no image matches all of them \(camera, hour\); drop one"):
        gallery.search(torch.ones(2), where={"camera": "gate", "hour": 8})


def test_metadata_are_made_plain_before_anything_is_encoded():
    when = datetime.datetime(2026, 11, 26, 8, 30)
    given = {"when": when, "n": np.int64(3), "x": torch.tensor(0.5), "p": Path("a"), "s": (1, {"b": np.float32(2)})}
    expected = {"when": "2026-11-26T08:30:00", "n": 3, "x": 0.5, "p": "a", "s": [1, {"b": 2.0}]}
    assert plain(given, "metadata") == expected
    assert json.loads(json.dumps(plain(given, "metadata"))) == expected
    gallery = Gallery(None, ["a.jpg"], torch.eye(1), metadata=[given])
    assert len(gallery.search(torch.ones(1), where={"when": when, "n": np.int64(3)})) == 1


class Camera(IntEnum):
    GATE = 3
    YARD = 5


def test_integers_of_any_kind_are_kept_as_plain_ones_and_found():
    known = [{"camera": Camera.GATE}, {"camera": np.uint8(5)}, {"camera": 8, "seen": [Camera.YARD, True]}]
    gallery = Gallery(None, ["a", "b", "c"], torch.eye(3), metadata=known)
    assert gallery.metadata[2] == {"camera": 8, "seen": [5, True]}
    values = [*gallery.values_of("camera"), *gallery.metadata[2]["seen"]]
    assert [type(value) for value in values] == [int, int, int, int, bool]
    assert type(plain(Camera.GATE, "camera")) is int
    for where in (Camera.GATE, np.int64(3), [Camera.GATE], (Camera.GATE, np.int64(4))):
        (hit,) = gallery.search(torch.ones(3), where={"camera": where})
        assert hit.key == "a"
    assert gallery.search(torch.eye(3)[1], 1, where={"camera": (Camera.GATE, Camera.YARD)})[0].key == "b"


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (b"x", TypeError, r"metadata of a\.jpg\['v'\] is bytes, expected text, numbers"),
        (float("nan"), ValueError, r"metadata of a\.jpg\['v'\] is nan, which JSON does not have"),
        ({1: 2}, TypeError, r"\['v'\] has the key 1, expected text"),
    ],
)
def test_build_with_metadata_that_json_does_not_take_encodes_and_writes_nothing(
    shipped, tmp_path, monkeypatch, value, error, words
):
    monkeypatch.setattr(encoding, "open_image", lambda _: pytest.fail("an image was encoded"))
    with pytest.raises(error, match=words):
        Gallery.build(shipped[0], ["a.jpg"], metadata=[{"v": value}], directory=tmp_path / "index", progress=False)
    with pytest.raises(TypeError, match=r"notes\['v'\] is object"):
        Gallery.build(shipped[0], ["a.jpg"], notes={"v": object()}, directory=tmp_path / "index", progress=False)
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize("metadata", [["camera"], [None], [3], {"camera": 3}])
def test_metadata_that_are_no_dictionary_are_refused_before_anything_is_encoded(shipped, monkeypatch, metadata):
    monkeypatch.setattr(encoding, "open_image", lambda _: pytest.fail("an image was encoded"))
    with pytest.raises(TypeError, match=r"metadata of a\.jpg is .*, expected a dictionary, such as \{'camera': 3\}"):
        Gallery.build(shipped[0], ["a.jpg"], metadata=metadata, progress=False)
    with pytest.raises(TypeError, match=r"expected a dictionary, such as \{'camera': 3\}"):
        Gallery(None, ["a.jpg"], torch.eye(1), metadata=metadata)


def test_save_of_notes_that_json_does_not_take_is_refused(gallery, tmp_path):
    gallery.notes["when"] = datetime.date(2026, 11, 26)
    with pytest.raises(TypeError, match="notes hold what JSON does not take"):
        gallery.save(tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_export_of_one_long_text_takes_little_room(tmp_path):
    metadata = [{"caption": "short"}] * 1999 + [{"caption": "long " * 1500}]
    names = [f"{number}.jpg" for number in range(2000)]
    gallery = Gallery(None, names, torch.ones(2000, 1), metadata=metadata)
    path = gallery.export(tmp_path / "features.npz")
    assert path.stat().st_size < 2**20  # 60 MB as numpy pads it
    with np.load(path, allow_pickle=False) as arrays:
        assert list(arrays["paths"]) == names
        assert [json.loads(entry) for entry in arrays["metadata"]] == metadata


def test_export_of_names_that_are_not_utf8(tmp_path):
    name = b"bad\xffname.jpg".decode("utf-8", "surrogateescape")
    gallery = Gallery(None, [name, "é.jpg"], torch.eye(2))
    with np.load(gallery.export(tmp_path / "features.npz"), allow_pickle=False) as arrays:
        assert list(arrays["paths"]) == [name, "é.jpg"]
    parquet = pytest.importorskip("pyarrow.parquet")
    with pytest.warns(UserWarning, match="1 file names are not UTF-8"):
        path = gallery.export(tmp_path / "features.parquet")
    assert parquet.read_table(path).to_pydict()["path"] == [r"bad\xffname.jpg", "é.jpg"]
