"""Paths that stay below their folder, and lists of pictures in a plain one."""

from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptreid.data.images import ImageFolder, leaves_folder, list_images, shown
from promptreid.errors import DatasetError


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
