from collections.abc import Callable
from pathlib import Path

import pytest

from promptreid.demo import sources
from promptreid.demo.sources import DRAWN_NAME, NO_CAMERA, Crops, draw_crops, list_crops
from promptreid.errors import DatasetError

Paint = Callable[..., Path]
RED = (190, 36, 40)


def test_list_crops_lists_images_below_and_nothing_else(tmp_path: Path, paint: Paint) -> None:
    first, second = paint(tmp_path / "a" / "1.PNG", RED), paint(tmp_path / "b" / "c" / "2.webp", RED)
    (tmp_path / "notes.txt").write_text("no image", encoding="utf-8")
    (tmp_path / "folder.png").mkdir()
    paint(tmp_path / ".trash" / "3.png", RED)  # hidden, as for `Gallery.build`
    paint(tmp_path / ".4.png", RED)
    crops = list_crops(tmp_path)
    assert crops.paths == (first, second)
    assert crops.name == tmp_path.name
    assert crops.captions == {}


@pytest.mark.parametrize(
    ("file", "camera"),
    [
        ("0002_c1s1_000451_03.jpg", "camera 1"),  # Market-1501
        ("0000_c14_0031.jpg", "camera 14"),  # RSTPReid
        ("0001_c2_f0046182.jpg", "camera 2"),  # DukeMTMC
        ("cam_a/001_45.bmp", "cam_a"),  # CUHK-PEDES
        ("yard/c3_001.jpg", "camera 3"),
        ("floor 1/door/7.jpg", "floor 1/door"),
        ("7.jpg", NO_CAMERA),
        ("0001_coat1.jpg", NO_CAMERA),
        ("clic12.jpg", NO_CAMERA),
    ],
)
def test_list_crops_camera_is_read_from_file_or_folder(tmp_path: Path, paint: Paint, file: str, camera: str) -> None:
    paint(tmp_path / file, RED)
    assert list_crops(tmp_path).cameras == (camera,)


def test_camera_names_of_one_camera_is_empty(tmp_path: Path, paint: Paint) -> None:
    paint(tmp_path / "hall" / "1.png", RED)
    assert list_crops(tmp_path).camera_names == []
    paint(tmp_path / "attic" / "1.png", RED)
    assert list_crops(tmp_path).camera_names == ["attic", "hall"]


def test_list_crops_with_links_out_leaves_them_out_and_says_so(tmp_path: Path, paint: Paint) -> None:
    outside, folder = paint(tmp_path / "private" / "me.png", RED), tmp_path / "gallery"
    inside = paint(folder / "1.png", RED)
    (folder / "link.png").symlink_to(outside)
    (folder / "again.png").symlink_to(inside)
    with pytest.warns(UserWarning, match="1 links in .*gallery lead out of it"):
        crops = list_crops(folder)
    assert [path.name for path in crops.paths] == ["1.png", "again.png"]


def test_open_of_an_image_that_became_a_link_out_is_refused(tmp_path: Path, paint: Paint) -> None:
    outside, folder = paint(tmp_path / "private" / "me.png", RED), tmp_path / "gallery"
    inside = paint(folder / "1.png", RED)
    crops = list_crops(folder)
    assert crops.open(0).size == (24, 48)
    inside.unlink()
    inside.symlink_to(outside)
    with pytest.raises(DatasetError, match="leads out of the gallery"):
        crops.open(0)


def test_open_of_a_large_image_is_shrunk(tmp_path: Path, paint: Paint, monkeypatch: pytest.MonkeyPatch) -> None:
    paint(tmp_path / "1.png", RED)
    monkeypatch.setattr(sources, "SHOWN_SIZE", (12, 40))
    assert list_crops(tmp_path).open(0).size == (12, 24)


def test_list_crops_without_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"there is no folder .*nowhere; give a folder of images"):
        list_crops(tmp_path / "nowhere")


def test_list_crops_without_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image", encoding="utf-8")
    with pytest.raises(DatasetError, match=r"has no images \(\.jpg, .*\) in it or below"):
        list_crops(tmp_path)


def test_draw_crops_know_who_is_on_them(tmp_path: Path) -> None:
    crops = draw_crops(tmp_path / "drawn")
    assert (crops.name, len(crops.paths), len(set(crops.person_ids))) == (DRAWN_NAME, 120, 30)
    assert set(crops.captions.values()) == set(crops.person_ids)
    assert crops.camera_names == [f"camera {number}" for number in range(1, 6)]


def test_shows_where_nobody_is_known_is_false(crops: Crops, tmp_path: Path) -> None:
    assert crops.shows(0, 1)
    assert not crops.shows(0, 2)
    assert not crops.shows(0, None)
    assert not Crops("plain", tmp_path, (tmp_path / "1.png",), (NO_CAMERA,)).shows(0, 1)
