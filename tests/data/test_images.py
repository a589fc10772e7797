"""Images: where they lie, broken in every way, and unusual ones that are not broken."""

import warnings
from io import BytesIO
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from promptreid.data import images
from promptreid.data.images import (
    ImageFolder,
    inspect_image,
    inspect_images,
    keep_readable,
    leaves_folder,
    list_images,
    open_image,
    shown,
)
from promptreid.data.records import ImageRecord, ReIDSplit
from promptreid.errors import DatasetError

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 32, 3), dtype=np.uint8))


def encoded(image: Image.Image, kind: str = "JPEG", **settings: Any) -> bytes:
    stream = BytesIO()
    image.save(stream, kind, **settings)
    return stream.getvalue()


def sixteen_bit() -> bytes:
    return encoded(Image.fromarray(np.full((16, 8), 32_896, dtype=np.uint16)), "PNG")


def kinds(path: Path) -> list[str]:
    return [problem.kind for problem in inspect_image(path).problems]


BROKEN: dict[str, tuple[str, bytes]] = {
    "zero bytes": ("empty file", b""),
    "text": ("unreadable", b"<html>not found</html>"),
    "header only": ("unreadable", encoded(NOISE)[:20]),
    "truncated jpeg": ("truncated", encoded(NOISE)[:-300]),
    "truncated png": ("truncated", encoded(NOISE, "PNG")[:-300]),
    "half a gif": ("truncated", encoded(NOISE, "GIF")[:-300]),
    "zeros": ("unreadable", bytes(5000)),
    "50,000 wide": ("oversized", encoded(Image.new("RGB", (50_000, 4)))),
    "a small bomb": ("oversized", encoded(Image.new("1", (9_000, 9_000)), "PNG")),
    "a bomb": ("oversized", encoded(Image.new("1", (16_000, 16_000)), "PNG")),
    "floats": ("unreadable", encoded(Image.fromarray(np.ones((16, 8), dtype=np.float32)), "TIFF")),
    "32 bits": ("unreadable", encoded(Image.fromarray(np.full((16, 8), 2**30, dtype=np.int32)), "TIFF")),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_picture_is_named_and_refused(tmp_path: Path, name: str) -> None:
    kind, content = BROKEN[name]
    path = tmp_path / "bad.jpg"
    path.write_bytes(content)
    found = [fault for fault in kinds(path) if fault != "extension"]
    assert found == [kind]
    with pytest.raises(DatasetError, match=r"the image .*bad\.jpg"):
        open_image(path)


def test_zlib_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "small.png").write_bytes(BROKEN["a small bomb"][1])
    (tmp_path / "bomb.png").write_bytes(BROKEN["a bomb"][1])
    monkeypatch.setattr(images, "to_rgb", lambda _: pytest.fail("its pixels were asked for"))
    with pytest.raises(DatasetError, match=r"has 9000 x 9000 pixels, more than 16384 a side or 67,108,864 in all"):
        open_image(tmp_path / "small.png")
    with pytest.raises(DatasetError, match=r"is absurdly large \(.*256000000 pixels"):
        open_image(tmp_path / "bomb.png")


SOUND: dict[str, tuple[bytes, tuple[int, int, int]]] = {
    "rgb": (encoded(Image.new("RGB", (8, 16), (250, 250, 250))), (250, 250, 250)),
    "grey": (encoded(Image.new("L", (8, 16), 250)), (250, 250, 250)),
    "cmyk": (encoded(Image.new("CMYK", (8, 16), (0, 0, 0, 0))), (255, 255, 255)),
    "16 bits": (sixteen_bit(), (128, 128, 128)),
    "palette": (encoded(Image.new("RGB", (8, 16), (255, 0, 0)).convert("P"), "PNG"), (255, 0, 0)),
    "palette with transparency": (
        encoded(Image.new("RGB", (8, 16), (255, 0, 0)).convert("P"), "PNG", transparency=b"\x00\x80"),
        (255, 0, 0),
    ),
    "alpha": (encoded(Image.new("RGBA", (8, 16), (9, 8, 7, 200)), "PNG"), (9, 8, 7)),
    "grey alpha": (encoded(Image.new("LA", (8, 16), (9, 200)), "PNG"), (9, 9, 9)),
    "one bit": (encoded(Image.new("1", (8, 16), 1), "PNG"), (255, 255, 255)),
    "progressive": (encoded(Image.new("RGB", (8, 16), (250, 250, 250)), progressive=True), (250, 250, 250)),
    "webp": (encoded(Image.new("RGB", (8, 16), (255, 255, 255)), "WEBP", lossless=True), (255, 255, 255)),
}


@pytest.mark.parametrize("name", SOUND)
def test_unusual_picture_opens_with_its_colour(tmp_path: Path, name: str) -> None:
    content, colour = SOUND[name]
    path = tmp_path / "odd.jpg"  # whatever the ending says
    path.write_bytes(content)
    image = open_image(path)
    assert (image.mode, image.size, image.getpixel((4, 8))) == ("RGB", (8, 16), colour)
    assert set(kinds(path)) <= {"extension"}


def test_animated_picture_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 16), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    assert open_image(tmp_path / "two.gif").getpixel((0, 0)) == (255, 0, 0)
    assert kinds(tmp_path / "two.gif") == ["animated"]


def test_one_pixel_opens_and_is_remarked(tmp_path: Path) -> None:
    (tmp_path / "one.png").write_bytes(encoded(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG"))
    assert open_image(tmp_path / "one.png").getpixel((0, 0)) == (1, 2, 3)
    assert kinds(tmp_path / "one.png") == ["tiny"]


def test_open_image_reads_streams_too() -> None:
    assert open_image(BytesIO(encoded(NOISE))).size == (32, 64)


def test_inspect_image_folder_for_file_is_unreadable(tmp_path: Path) -> None:
    assert kinds(tmp_path) == ["unreadable"]


def test_inspect_images_keeps_the_order_of_paths(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(20)]
    for number, path in enumerate(paths):
        path.write_bytes(encoded(NOISE, "PNG") if number % 3 else b"")
    found = inspect_images(paths, progress=False, num_threads=4)
    assert [bool(inspection.problems) for inspection in found] == [number % 3 == 0 for number in range(20)]
    assert found[1].digest == found[2].digest != found[0].digest


KINDS_TO_BREAK = [encoded(NOISE), encoded(NOISE, "PNG"), encoded(NOISE, "GIF"), encoded(NOISE, "TIFF"), sixteen_bit()]
KINDS_TO_BREAK.append(encoded(NOISE, exif=Image.Exif()))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.sampled_from(KINDS_TO_BREAK),
    places=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8),
    cut=st.floats(0.1, 1),
)
def test_damaged_bytes_open_or_are_refused_with_our_error(
    tmp_path: Path, content: bytes, places: list[tuple[float, int]], cut: float
) -> None:
    broken = bytearray(content)
    for place, value in places:
        broken[int(place**3 * (len(broken) - 1))] = value  # mostly near the header
    path = tmp_path / "damaged.bin"
    path.write_bytes(broken[: int(cut * len(broken))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow remarks on damaged metadata
        inspection = inspect_image(path)
        try:
            image = open_image(path)
        except DatasetError:
            assert {problem.kind for problem in inspection.problems} & {
                "unreadable",
                "truncated",
                "oversized",
                "empty file",
            }
        else:
            assert image.mode == "RGB"
            assert min(image.size) > 0


@pytest.fixture
def split(tmp_path: Path) -> ReIDSplit:
    """Six records over five files; 1 has zero bytes, 3 is cut off."""
    for number in range(5):
        (tmp_path / f"{number}.jpg").write_bytes(encoded(NOISE))
    (tmp_path / "1.jpg").write_bytes(b"")
    (tmp_path / "3.jpg").write_bytes(encoded(NOISE)[:-300])
    names = (0, 1, 2, 3, 4, 1)
    return ReIDSplit("train", [ImageRecord(tmp_path / f"{name}.jpg", name, ("a man",), "train") for name in names])


def test_keep_readable_strict_raises_with_the_list(split: ReIDSplit) -> None:
    message = r"2 of 5 images of the train split cannot be used; copy them .*1\.jpg has zero bytes; .*3\.jpg .*trunc"
    with pytest.raises(DatasetError, match=message):
        keep_readable(split, progress=False)


def test_keep_readable_skip_leaves_them_out_and_warns_once(split: ReIDSplit) -> None:
    with pytest.warns(UserWarning, match=r"2 of 5 images of the train split cannot be used and are left out") as caught:
        kept = keep_readable(split, on_bad="skip", progress=False)
    assert [record.person_id for record in kept.records] == [0, 2, 4]
    assert len(caught) == 1
    assert caught[0].filename == __file__


def test_keep_readable_sound_split_is_itself(split: ReIDSplit) -> None:
    sound = ReIDSplit("train", split.records[:1])
    assert keep_readable(sound, progress=False) is sound


def test_keep_readable_nothing_left_raises_also_when_skipping(split: ReIDSplit) -> None:
    with pytest.raises(DatasetError, match=r"1 of 1 images"):
        keep_readable(ReIDSplit("train", split.records[1:2]), on_bad="skip", progress=False)


def test_keep_readable_unknown_mode_raises(split: ReIDSplit) -> None:
    with pytest.raises(ValueError, match="on_bad is 'ignore', expected 'strict' or 'skip'"):
        keep_readable(split, on_bad="ignore")  # type: ignore[arg-type]


def test_keep_readable_tiny_and_wrongly_named_stay(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(Image.new("RGB", (1, 1)), "PNG"))
    split = ReIDSplit("train", [ImageRecord(tmp_path / "a.jpg", 1, ("a man",), "train")])
    assert len(keep_readable(split, progress=False)) == 1


@pytest.mark.parametrize(
    "path", ["../a", "a/../b", "/a", "..", "\\a", "C:a", "C:\\a", "a\\..\\..\\b", "//host/share/a", "a\0b"]
)
def test_leaves_folder_true_for_what_could_lead_out(path: str) -> None:
    assert leaves_folder(path)


@pytest.mark.parametrize("path", ["a.jpg", "a/b.jpg", "./a.jpg", "a..b/c...jpg", ".hidden", "a b/ü.jpg"])
def test_leaves_folder_false_for_paths_below(path: str) -> None:
    assert not leaves_folder(path)


@given(st.text(alphabet="./\\:\0C a\n", max_size=8))
def test_leaves_folder_says_what_pathlib_says(path: str) -> None:
    posix, windows = PurePosixPath(path), PureWindowsPath(path)
    rooted = posix.is_absolute() or bool(windows.drive) or bool(windows.root)
    assert leaves_folder(path) == (rooted or ".." in {*posix.parts, *windows.parts} or "\0" in path)


def test_shown_escapes_what_a_terminal_cannot_print() -> None:
    assert shown("a\n\x1b[31m\ud800.jpg") == r"a\n\x1b[31m\ud800.jpg"


def test_image_folder_tells_present_missing_and_outside(tmp_path: Path) -> None:
    (tmp_path / "imgs" / "sub").mkdir(parents=True)
    (tmp_path / "imgs" / "sub" / "a.jpg").touch()
    (tmp_path / "secret.jpg").touch()
    (tmp_path / "imgs" / "out.jpg").symlink_to(tmp_path / "secret.jpg")
    (tmp_path / "imgs" / "in.jpg").symlink_to(tmp_path / "imgs" / "sub" / "a.jpg")
    (tmp_path / "imgs" / "dead.jpg").symlink_to(tmp_path / "gone.jpg")
    (tmp_path / "imgs" / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "imgs" / "up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "imgs2").mkdir()  # whose name begins as the folder's does
    (tmp_path / "imgs2" / "a.jpg").touch()
    (tmp_path / "imgs" / "twin.jpg").symlink_to(tmp_path / "imgs2" / "a.jpg")
    folder = ImageFolder(tmp_path / "imgs")
    places = {
        "sub/a.jpg": "present",
        "in.jpg": "present",
        "sub": "missing",
        "sub/b.jpg": "missing",
        "none/b.jpg": "missing",
        "sub/a.jpg/b.jpg": "missing",
        "dead.jpg": "missing",
        "loop.jpg": "missing",
        "out.jpg": "outside",
        "up/secret.jpg": "outside",
        "twin.jpg": "outside",
        "x" * 5000: "missing",
    }
    assert {path: folder.locate(PurePosixPath(path)) for path in places} == places


def test_image_folder_pipe_is_missing_and_is_not_read(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe.jpg")  # reading it would wait for ever
    assert ImageFolder(tmp_path).locate(PurePosixPath("pipe.jpg")) == "missing"


def test_list_images_sorted_with_sub_folders_and_without_hidden(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "sub/c.webp", "notes.txt", ".hidden.jpg", ".cache/d.jpg", "sub/._a.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.jpg").mkdir()
    assert [str(path.relative_to(tmp_path)) for path in list_images(str(tmp_path))] == ["a.png", "b.JPG", "sub/c.webp"]


def test_list_images_empty_folder_has_none(tmp_path: Path) -> None:
    assert list_images(tmp_path) == []


def test_list_images_no_folder_raises(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"there is no folder .*nowhere; give a folder of images"):
        list_images(tmp_path / "nowhere")
