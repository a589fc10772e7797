from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch

from promptreid import Gallery
from promptreid.demo.facets import NO_CAMERA, NO_DAY, Facet, find_cameras, find_days

ROOT = Path("/crops")


def gallery_of(paths: list[str], metadata: list[dict[str, Any]] | None = None) -> Gallery:
    """Images that need not exist, each with a feature of its own."""
    return Gallery(None, [ROOT / path for path in paths], torch.eye(len(paths)), metadata=metadata)


def cameras(gallery: Gallery) -> Facet:
    return find_cameras(gallery.paths, gallery.metadata, ROOT)


def days(gallery: Gallery) -> Facet:
    return find_days(gallery.paths, gallery.metadata)


def found(gallery: Gallery, facet: Facet, *labels: str) -> list[int]:
    """Which images a filter for these labels lets through."""
    where = facet.where(labels)
    hits = gallery.search(torch.ones(len(gallery)), k=len(gallery), where=where)
    if where is None:
        hits = [hit for hit in hits if facet.label(hit.path, hit.metadata) in labels]
    return sorted(hit.id for hit in hits)


@pytest.mark.parametrize(
    ("file", "camera"),
    [
        ("0002_c1s1_000451_03.jpg", "camera 1"),  # Market-1501
        ("0000_c14_0031.jpg", "camera 14"),  # RSTPReid
        ("0001_c2_f0046182.jpg", "camera 2"),  # DukeMTMC
        ("yard/c3_001.jpg", "camera 3"),
        ("floor 1/door/7.jpg", "floor 1/door"),
        ("7.jpg", NO_CAMERA),
        ("0001_coat1.jpg", NO_CAMERA),
        ("clic12.jpg", NO_CAMERA),
    ],
)
def test_find_cameras_reads_names_of_files_then_folders(file: str, camera: str) -> None:
    gallery = gallery_of(["c99_0.jpg", file])
    facet = cameras(gallery)
    assert facet.label(ROOT / file, {}) == camera
    assert set(facet.values) == {"camera 99", camera}
    assert found(gallery, facet, camera) == [1]


def test_find_cameras_by_folder_and_by_metadata_lets_the_gallery_filter() -> None:
    by_folder = gallery_of(["a/1.jpg", "b/2.jpg", "3.jpg"], [{"folder": "a"}, {"folder": "b"}, {"folder": "."}])
    facet = cameras(by_folder)
    assert facet.values == ("a", "b", NO_CAMERA)
    assert facet.where(["a", NO_CAMERA]) == {"folder": ["a", "."]}
    assert found(by_folder, facet, "a", NO_CAMERA) == [0, 2]
    by_camera = gallery_of(["c1_1.jpg", "c1_2.jpg", "3.jpg"], [{"camera": 10}, {"camera": 2}, {"camera": "roof"}])
    facet = cameras(by_camera)
    assert facet.values == ("camera 2", "camera 10", "roof")
    assert found(by_camera, facet, "camera 10", "roof") == [0, 2]


def test_find_cameras_of_one_camera_is_no_choice() -> None:
    assert cameras(gallery_of(["c1_1.jpg", "c1_2.jpg"])).values == ()


def test_find_days_reads_times_of_every_form() -> None:
    noon = datetime(2026, 11, 24, 12).timestamp()
    times: list[dict[str, Any]] = [{"time": "2026-11-23T23:59:59"}, {"time": "2026-11-24T00:00:00+01:00"}]
    gallery = gallery_of(["1.jpg", "2.jpg"], times)
    facet = days(gallery)
    assert facet.values == ("2026-11-23", "2026-11-24")
    assert found(gallery, facet, "2026-11-24") == [1]
    gallery = gallery_of(["1.jpg", "2.jpg", "3.jpg"], [{"time": noon}, {"time": noon + 11 * 3600}, {"time": noon * 2}])
    facet = days(gallery)
    assert facet.values[0] == "2026-11-24"
    assert found(gallery, facet, "2026-11-24") == [0, 1]
    assert facet.label(Path("x.jpg"), {}) == NO_DAY


@pytest.mark.parametrize(
    ("file", "day"),
    [
        ("2026-11-27/cam_a/1.jpg", "2026-11-27"),
        ("cam3_20261127_083000.jpg", "2026-11-27"),
        ("2026_11_27.jpg", "2026-11-27"),
        ("20261327_0.jpg", NO_DAY),  # there is no month 13
        ("120261127.jpg", NO_DAY),
        ("0002_c1s1_000451_03.jpg", NO_DAY),
    ],
)
def test_find_days_reads_paths(file: str, day: str) -> None:
    gallery = gallery_of(["2020-01-01/0.jpg", file])
    facet = days(gallery)
    assert facet.label(ROOT / file, {}) == day
    assert found(gallery, facet, day) == [1]


def test_find_days_where_nothing_tells_them_is_no_choice() -> None:
    facet = days(gallery_of(["1.jpg", "2.jpg"], [{"time": "noon"}, {"time": True}]))
    assert (facet.values, facet.label(Path("1.jpg"), {})) == ((), "")
