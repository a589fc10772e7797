from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from promptreid.demo import shown_images
from promptreid.demo.shown_images import ShownImages
from promptreid.errors import DatasetError
from promptreid.retrieval.table import Hit

Paint = Callable[..., Path]
RED = (190, 36, 40)


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def test_copies_are_made_once_small_and_large(tmp_path: Path, paint: Paint) -> None:
    hit = Hit(paint(tmp_path / "crops" / "1.png", RED), 0.5, 0, id=7)
    shown = ShownImages(tmp_path / "shown", tmp_path / "crops")
    small, large = shown.small(hit), shown.large(hit)
    assert size_of(small) == (24, 48)
    assert size_of(large) == (256, 512)  # enlarged
    before = small.stat().st_mtime_ns
    assert shown.small(hit) == small
    assert small.stat().st_mtime_ns == before
    assert sorted(file.name for file in shown.folder.iterdir()) == ["7-large.jpg", "7-small.jpg"]


def test_a_large_image_is_shrunk(tmp_path: Path) -> None:
    Image.new("RGB", (2000, 3000)).save(tmp_path / "1.png")
    shown, hit = ShownImages(tmp_path / "shown", tmp_path), Hit(tmp_path / "1.png", 0.5, 0, id=1)
    assert size_of(shown.small(hit)) == (256, 384)
    assert size_of(shown.large(hit)) == (683, 1024)  # 2000 / 3000 * 1024


def test_an_image_that_was_deleted_is_a_grey_one_until_it_is_back(tmp_path: Path, paint: Paint) -> None:
    hit = Hit(tmp_path / "crops" / "1.png", 0.5, 0, id=7)
    shown = ShownImages(tmp_path / "shown", tmp_path / "crops")
    assert shown.small(hit).name == "unreadable.jpg"
    paint(hit.path, RED)
    assert shown.small(hit).name == "7-small.jpg"


def test_an_image_that_became_a_link_out_is_refused(tmp_path: Path, paint: Paint) -> None:
    outside, inside = paint(tmp_path / "private" / "me.png", RED), paint(tmp_path / "crops" / "1.png", RED)
    shown = ShownImages(tmp_path / "shown", tmp_path / "crops")
    assert shown.open(inside).size == (24, 48)
    inside.unlink()
    inside.symlink_to(outside)
    with pytest.raises(DatasetError, match="leads out of the gallery"):
        shown.open(inside)
    assert shown.small(Hit(inside, 0.5, 0, id=1)).name == "unreadable.jpg"


def test_discard_deletes_the_copies_of_some_images(tmp_path: Path, paint: Paint) -> None:
    hits = [Hit(paint(tmp_path / f"{number}.png", RED), 0.5, 0, id=number) for number in range(2)]
    shown = ShownImages(tmp_path / "shown", tmp_path)
    for hit in hits:
        shown.small(hit)
        shown.large(hit)
    shown.discard([hits[0], Hit(tmp_path / "never.png", 0.5, 0, id=9)])
    assert sorted(file.name for file in shown.folder.iterdir()) == ["1-large.jpg", "1-small.jpg"]


def test_copies_are_bounded_in_number_and_the_oldest_go(
    tmp_path: Path, paint: Paint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shown_images, "_MOST_COPIES", 2)
    shown = ShownImages(tmp_path / "shown", tmp_path)
    for number in range(3):
        shown.small(Hit(paint(tmp_path / f"{number}.png", RED), 0.5, 0, id=number))
    assert sorted(file.name for file in shown.folder.iterdir()) == ["1-small.jpg", "2-small.jpg"]
