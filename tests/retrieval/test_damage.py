"""Failing disks, damaged files, and what killed writers leave behind."""

import errno
import json
import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from promptreid import Gallery
from promptreid.errors import CheckpointError
from promptreid.retrieval.gallery_files import check_gallery


@pytest.fixture
def gallery(tmp_path):
    """Twelve images without files, saved."""
    torch.manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(12, 16), dim=-1)
    made = Gallery(None, [f"{number}.jpg" for number in range(12)], features)
    made.save(tmp_path / "index")
    return made


def features_file(gallery):
    (path,) = gallery.directory.glob("features-*")
    return path


def rewrite(gallery, change):
    tensors = {name: value.clone() for name, value in load_file(features_file(gallery)).items()}
    change(tensors)
    save_file(tensors, features_file(gallery))


def test_change_on_a_disk_that_fails_at_the_last_flush_is_in_place_and_can_be_repeated(gallery, monkeypatch):
    real = os.fsync

    def fail(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, "Input/output error")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.warns(UserWarning, match="what was just written is there, but a power cut may lose it"):
        assert gallery.remove(0) == 1
    assert gallery.remove(1) == 1
    assert Gallery.load(gallery.directory).ids.tolist() == gallery.ids.tolist() == list(range(2, 12))


def test_change_whose_old_file_cannot_be_deleted_is_in_place_and_the_next_load_deletes_it(gallery, monkeypatch):
    old = features_file(gallery)

    def fail(self, missing_ok=False):
        raise PermissionError(13, "Permission denied", str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", fail)
        with pytest.warns(UserWarning, match=rf"is written, but .* cannot be removed: {old}; .*delete them"):
            gallery.remove(0)
    assert old.exists()
    assert len(Gallery.load(gallery.directory)) == len(gallery) == 11
    assert not old.exists()


def test_load_removes_what_killed_writers_left_but_not_while_somebody_writes(gallery):
    left = [gallery.directory / name for name in ("features-0.safetensors", ".features-1-0123456789abcdef", ".tmpx")]
    for path in left:
        path.touch()
    from promptreid.files import locked

    with locked(gallery.directory / "gallery.lock", action="writing"):
        Gallery.load(gallery.directory)
    assert all(path.exists() for path in left)
    Gallery.load(gallery.directory)
    assert not any(path.exists() for path in left)
    assert features_file(gallery).exists()


def test_export_removes_what_a_killed_export_left(gallery, tmp_path):
    scratch = tmp_path / ".out.npz-0123456789abcdef"
    scratch.touch()
    gallery.export(tmp_path / "out.npz")
    assert not scratch.exists()


@pytest.mark.posix
def test_parents_of_a_gallery_are_not_for_others_to_write(gallery, tmp_path):
    before = os.umask(0)
    try:
        gallery.save(tmp_path / "a" / "b")
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("a", "a/b")] == [0o755, 0o700]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_search_among_features_that_are_not_finite_is_refused(gallery, value, dtype):
    def spoil(tensors):
        tensors["features"] = tensors["features"].to(dtype)
        tensors["features"][7, 3] = value

    rewrite(gallery, spoil)
    loaded = Gallery.load(gallery.directory)
    query = torch.nn.functional.normalize(torch.ones(16), dim=0)
    for queries in (query, torch.stack([query, -query])):
        with pytest.raises(CheckpointError, match="1 of 12 features hold NaN or infinity, such as number 7"):
            loaded.search(queries, 3)


def swap(tensors):
    tensors["features"][[2, 5]] = tensors["features"][[5, 2]]


def spoil(tensors):
    tensors["features"][4, 1] = torch.nan


def zero(tensors):
    tensors["features"][4] = 0


@pytest.mark.parametrize(
    ("damage", "found"),
    [(swap, 1), (zero, 2), (spoil, 2), (lambda tensors: tensors["sizes"].add_(1), 1)],
    ids=["swapped", "zeroed", "NaN", "sizes"],
)
def test_check_finds_damaged_features(gallery, damage, found):
    assert check_gallery(gallery.directory) == ([], [])
    rewrite(gallery, damage)
    problems, _ = check_gallery(gallery.directory)
    assert len(problems) == found
    assert "its SHA-256 is not the one that gallery.json holds" in problems[0]
    assert found == 1 or "1 features are not of unit length, such as that of 4.jpg" in problems[1]


def test_load_of_a_changed_description_is_refused(gallery):
    path = gallery.directory / "gallery.json"
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"3.jpg", "4.jpg"', b'"4.jpg", "3.jpg"'))
    with pytest.raises(CheckpointError, match=r"gallery\.json is damaged \(its SHA-256"):
        Gallery.load(gallery.directory)


def test_gallery_of_an_earlier_version_has_no_digests_and_is_loaded(gallery):
    path = gallery.directory / "gallery.json"
    entries = json.loads(path.read_bytes())
    for name in ("sha256", "features_sha256"):
        del entries[name]
    path.write_text(json.dumps(entries))
    assert len(Gallery.load(gallery.directory)) == 12
    problems, notes = check_gallery(gallery.directory)
    assert (problems, len(notes)) == ([], 1)
    Gallery.load(gallery.directory).save()
    assert check_gallery(gallery.directory) == ([], [])


def test_load_of_features_that_are_a_pipe_is_refused_at_once(gallery):
    (features,) = gallery.directory.glob("features-*")
    features.unlink()
    os.mkfifo(features)
    with pytest.raises(CheckpointError, match="it is a pipe, expected a plain file"):
        Gallery.load(gallery.directory)


def test_load_of_numbers_given_twice_is_refused(gallery):
    rewrite(gallery, lambda tensors: tensors["ids"].fill_(3))
    with pytest.raises(CheckpointError, match=r"does not fit gallery\.json"):
        Gallery.load(gallery.directory)


def test_gallery_written_on_windows_holds_slashes_and_no_mapped_file(tmp_path, monkeypatch):
    monkeypatch.setattr("promptreid.files._IS_WINDOWS", True)
    monkeypatch.setattr("promptreid.files.load_file", lambda *_: pytest.fail("a mapped file cannot be removed there"))
    Gallery(None, [r"C:\crops\a.jpg", "b.jpg"], torch.eye(2)).save(tmp_path / "index")
    description = json.loads((tmp_path / "index" / "gallery.json").read_text(encoding="utf-8"))
    assert description["paths"] == ["C:/crops/a.jpg", "b.jpg"]
    again = Gallery.load(tmp_path / "index")
    assert again.remove(0) == 1
    assert [path.as_posix() for path in Gallery.load(tmp_path / "index").paths] == ["b.jpg"]
