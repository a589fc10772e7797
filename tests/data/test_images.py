"""Images: where they lie, broken in every way, and unusual ones that are not broken."""

import os
import socket
import subprocess
import sys
import warnings
from io import BytesIO
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from promptreid.data import image_files, images
from promptreid.data.image_files import ImageLookup, leaves_folder, list_images
from promptreid.data.images import inspect_image, inspect_images, keep_readable, open_image
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
    "32 bits that hold 8": ("unreadable", encoded(Image.fromarray(np.full((16, 8), 207, dtype=np.int32)), "TIFF")),
    "16 bits with a sign": ("unreadable", encoded(Image.fromarray(np.full((16, 8), 207, dtype=np.int16)), "TIFF")),
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
    monkeypatch.setattr(images, "_decode", lambda _: pytest.fail("its pixels were asked for"))
    with pytest.raises(DatasetError, match=r"has 9000 x 9000 pixels, more than 16384 on a side or 16,777,216 in all"):
        open_image(tmp_path / "small.png")
    with pytest.raises(DatasetError, match=r"is absurdly large \(.*256000000 pixels"):
        open_image(tmp_path / "bomb.png")


SOUND: dict[str, tuple[bytes, tuple[int, int, int]]] = {
    "rgb": (encoded(Image.new("RGB", (8, 16), (250, 250, 250))), (250, 250, 250)),
    "grey": (encoded(Image.new("L", (8, 16), 250)), (250, 250, 250)),
    "cmyk": (encoded(Image.new("CMYK", (8, 16), (0, 0, 0, 0))), (255, 255, 255)),
    "16 bits": (sixteen_bit(), (128, 128, 128)),
    "16 bits in TIFF": (encoded(Image.fromarray(np.full((16, 8), 32_896, dtype=np.uint16)), "TIFF"), (128, 128, 128)),
    "16 bits in PGM": (b"P5 8 16 65535\n" + b"\x80\x80" * 128, (128, 128, 128)),
    "12 bits in PGM": (b"P5 8 16 4095\n" + b"\x0f\xff" * 128, (255, 255, 255)),
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


@pytest.mark.posix
@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "folder"])
def test_open_image_what_is_no_plain_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.jpg"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(os.path.relpath(path))  # the whole path may be too long for a socket's name
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises(DatasetError, match=rf"x\.jpg \(it is a {kind}, expected a plain file\)"):
        open_image(path)
    (problem,) = inspect_image(path).problems
    assert (problem.kind, problem.message) == (
        "unreadable",
        f"cannot be read (it is a {kind}, expected a plain file)",
    )


@pytest.mark.posix
@pytest.mark.timeout(20)
def test_open_image_file_that_becomes_a_pipe_meanwhile_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plain.jpg").write_bytes(encoded(NOISE))
    os.mkfifo(tmp_path / "x.jpg")
    plain, look = os.stat(tmp_path / "plain.jpg"), os.stat
    monkeypatch.setattr(os, "stat", lambda path, **more: plain if str(path).endswith("x.jpg") else look(path, **more))
    with pytest.raises(DatasetError, match="it is a pipe, expected a plain file"):
        open_image(tmp_path / "x.jpg")


def test_large_images_are_reduced_as_they_are_read(tmp_path: Path) -> None:
    left = Image.new("RGB", (5_000, 2_500), (250, 10, 10))
    left.paste((10, 10, 250), (2_500, 0, 5_000, 2_500))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    for kind in ("JPEG", "PNG", "WEBP"):
        path = tmp_path / "large"
        path.write_bytes(encoded(left, kind, exif=exif))
        image = open_image(path)
        # 12.5 million pixels, 2.98 times the 4 x 2**20 that are kept: halved.
        assert (image.mode, image.size) == ("RGB", (2_500, 1_250))
        assert [value > 200 for value in image.getpixel((10, 10))] == [False, False, True]
        assert [value > 200 for value in image.getpixel((2_490, 10))] == [True, False, False]


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_64_megapixels_are_opened_in_little_memory_or_refused(tmp_path: Path) -> None:
    large = Image.new("L", (8_000, 8_000), 90)
    large.save(tmp_path / "plain.jpg")
    large.save(tmp_path / "progressive.jpg", progressive=True)
    large.save(tmp_path / "large.png")
    for name in ("progressive.jpg", "large.png"):
        with pytest.raises(DatasetError, match="8000 x 8000 pixels, more than 16384 on a side or 16,777,216 in all"):
            open_image(tmp_path / name)
        assert "oversized" in kinds(tmp_path / name)
    code = (
        "import sys; from promptreid.data.images import open_image; "
        "peak = lambda: int(next(row for row in open('/proc/self/status') if 'VmHWM' in row).split()[1]); "
        "before = peak(); "
        "size = open_image(sys.argv[1]).size; print(*size, peak() - before)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "plain.jpg")]
    width, height, kilobytes = map(int, subprocess.check_output(command, text=True).split())
    assert (width, height) == (2_000, 2_000)
    assert kilobytes < 60_000  # 192,000 for the pixels alone if it is decoded whole


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


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


@pytest.mark.posix
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
    folder = ImageLookup(tmp_path / "imgs")
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


@pytest.mark.posix
def test_image_folder_pipe_is_missing_and_is_not_read(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe.jpg")  # reading it would wait for ever
    assert ImageLookup(tmp_path).locate(PurePosixPath("pipe.jpg")) == "missing"


def test_list_images_sorted_with_sub_folders_and_without_hidden(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "sub/c.webp", "notes.txt", ".hidden.jpg", ".cache/d.jpg", "sub/._a.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.jpg").mkdir()
    assert [str(path.relative_to(tmp_path)) for path in list_images(str(tmp_path))] == ["a.png", "b.JPG", "sub/c.webp"]


def test_list_images_goes_by_content_where_the_ending_says_nothing(tmp_path: Path) -> None:
    content = {"a.jfif": "JPEG", "b.jpe": "JPEG", "c.upload": "PNG", "d": "GIF", "e.x": "WEBP", "f.x": "BMP"}
    for name, kind in content.items():
        (tmp_path / name).write_bytes(encoded(NOISE, kind))
    if image_files.features.check("avif"):
        content["g.avif"] = "AVIF"
        (tmp_path / "g.avif").write_bytes(encoded(NOISE, "AVIF"))
    (tmp_path / "notes.txt").write_text("BMW, GIF8, not an image", encoding="utf-8")
    found = list_images(tmp_path)
    assert [path.name for path in found] == list(content)
    assert all(open_image(path).size == (32, 64) for path in found)


@pytest.mark.posix
def test_list_images_says_what_it_leaves_out_and_why(tmp_path: Path) -> None:
    folder = tmp_path / "crops"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.jpg").write_bytes(encoded(NOISE))
    (folder / "sub" / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0")
    (folder / "raw.dng").write_bytes(encoded(NOISE, "TIFF"))
    os.mkfifo(folder / "pipe.jpg")
    (folder / "gone.jpg").symlink_to("nothing")
    (folder / "elsewhere").symlink_to(tmp_path, target_is_directory=True)
    with pytest.warns(
        UserWarning, match=r"^5 files and folders are left out of .*crops: .*phone\.heic is HEIC"
    ) as caught:
        assert list_images(folder) == [folder / "a.jpg"]
    assert len(caught) == 1
    assert caught[0].filename == __file__
    for reason in (
        "phone.heic is HEIC, which Pillow cannot read; convert it to JPEG",
        "raw.dng is TIFF or a camera's raw file under another ending; convert it to JPEG, or name it .tif",
        "pipe.jpg cannot be read (it is a pipe, expected a plain file)",
        "gone.jpg is a link that leads nowhere",
        "elsewhere is a link to a folder; give that folder itself, or copy it there",
    ):
        assert f"{os.sep}{reason}" in str(caught[0].message)


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"\xff\x4f\xff\x51\0\x29", "JPEG 2000"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"\xff\x0a\xfa\x7f", "JPEG XL"),
        (b"P6\n20 40\n255\n", "Netpbm"),
        (b"P3\n# GIMP\n20 40\n", "Netpbm"),
        (b"8BPS\0\x01\0\0", "Photoshop's format"),
        (b"v/1\x01\2\0\0\0", "OpenEXR"),
    ],
)
def test_list_images_names_formats_that_are_not_read(tmp_path: Path, head: bytes, kind: str) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(NOISE))
    (tmp_path / "other").write_bytes(head + bytes(64))
    (tmp_path / "notes.txt").write_bytes(b"P1 and P2 were seen")
    with pytest.warns(UserWarning, match=f"1 files and folders are left out .*other is {kind}, which is not read here"):
        assert list_images(tmp_path) == [tmp_path / "a.jpg"]


def test_heic_under_another_name_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0")
    with pytest.raises(
        DatasetError, match=r"a\.jpg \(cannot identify image file: it is HEIC, which Pillow cannot read"
    ):
        open_image(tmp_path / "a.jpg")


def test_list_images_empty_folder_has_none(tmp_path: Path) -> None:
    assert list_images(tmp_path) == []


def test_list_images_no_folder_raises(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"there is no folder .*nowhere; give a folder of images"):
        list_images(tmp_path / "nowhere")
