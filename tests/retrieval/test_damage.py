"""Failing disks, damaged files, and what killed writers leave behind."""

import errno
import json
import os
import shutil
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, load_file, save_file

from promptreid import Gallery
from promptreid.errors import CheckpointError
from promptreid.files import file_digest
from promptreid.retrieval import gallery_folder
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


def images_file(gallery):
    (path,) = gallery.directory.glob("images-*")
    return path


def rewrite(path, change):
    tensors = {name: value.clone() for name, value in load_file(path).items()}
    change(tensors)
    save_file(tensors, path)


def reseal(folder, change):
    """Change the description as somebody would who makes its digests right."""
    path = folder / "gallery.json"
    entries = json.loads(path.read_bytes())
    change(entries)
    path.write_text(json.dumps({name: value for name, value in entries.items() if name != "sha256"}))


@pytest.mark.posix
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
        with pytest.warns(UserWarning, match=rf"is written, but .* cannot be removed: {old}, .*delete them"):
            gallery.remove(0)
    assert old.exists()
    assert len(Gallery.load(gallery.directory)) == len(gallery) == 11
    assert not old.exists()


def test_load_removes_what_killed_writers_left_but_not_while_somebody_writes(gallery):
    number = "0123456789abcdef"
    names = (
        f"features-{number}.safetensors",
        f".images-{number}.safetensors-{number}",
        f".gallery.json-{number}",
        ".tmpaB3xY9",
    )
    left = [gallery.directory / name for name in names]
    for path in left:
        path.touch()
    from promptreid.files import locked

    with locked(gallery.directory / "gallery.lock", action="writing"):
        Gallery.load(gallery.directory)
    assert all(path.exists() for path in left)
    Gallery.load(gallery.directory)
    assert not any(path.exists() for path in left)
    assert features_file(gallery).exists()


def test_files_of_the_user_in_a_galleries_folder_stay(gallery):
    names = (
        "features-vitb16.safetensors",
        "images-train.safetensors",
        "removed-people.json",
        ".tmp_notes",
        ".features-1",
    )
    own = [gallery.directory / name for name in names]
    for path in own:
        path.write_text("mine")
    gallery.remove(0)
    Gallery.load(gallery.directory)
    assert [path.read_text() for path in own] == ["mine"] * len(own)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_gallery_that_cannot_be_written_is_named(gallery, monkeypatch, number):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number), str(gallery.directory / "gallery.lock"))

    monkeypatch.setattr(gallery_folder, "locked", refuse)
    with pytest.raises(OSError, match=rf"the gallery {gallery.directory} cannot be written \({os.strerror(number)}\)"):
        gallery.remove(0)


def test_gallery_whose_description_cannot_be_read_is_not_called_damaged(gallery, monkeypatch):
    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(CheckpointError, match=r"gallery\.json cannot be read \(Permission denied\); ask its owner"):
        Gallery.load(gallery.directory)


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
def test_search_among_features_that_are_not_finite_is_refused(tmp_path, value, dtype):
    features = torch.nn.functional.normalize(torch.randn(12, 16), dim=-1).to(dtype)
    gallery = Gallery(None, [f"{number}.jpg" for number in range(12)], features)
    gallery.save(tmp_path / "index")

    def spoil(tensors):
        tensors["features"][7, 3] = value

    rewrite(features_file(gallery), spoil)
    loaded = Gallery.load(gallery.directory)
    query = torch.nn.functional.normalize(torch.ones(16), dim=0)
    for queries in (query, torch.stack([query, -query])):
        with pytest.raises(CheckpointError, match="feature number 7 holds NaN or infinity"):
            loaded.search(queries, 3)


def swap(tensors):
    tensors["features"][[2, 5]] = tensors["features"][[5, 2]]


def spoil(tensors):
    tensors["features"][4, 1] = torch.nan


def zero(tensors):
    tensors["features"][4] = 0


@pytest.mark.parametrize(
    ("damage", "found"),
    [(swap, 1), (zero, 2), (spoil, 2)],
    ids=["swapped", "zeroed", "NaN"],
)
def test_check_finds_damaged_features(gallery, damage, found):
    assert check_gallery(gallery.directory) == ([], [])
    rewrite(features_file(gallery), damage)
    problems, _ = check_gallery(gallery.directory)
    assert len(problems) == found
    assert "its SHA-256 is not the one that gallery.json holds" in problems[0]
    assert found == 1 or "1 features are not of unit length, such as that of 4.jpg" in problems[1]


def test_load_of_a_changed_description_is_refused(gallery):
    path = gallery.directory / "gallery.json"
    path.write_bytes(path.read_bytes().replace(b'"rows": 12', b'"rows": 13'))
    with pytest.raises(CheckpointError, match=r"gallery\.json is damaged \(its SHA-256"):
        Gallery.load(gallery.directory)


def test_load_of_changed_names_or_sizes_is_refused(gallery):
    path = images_file(gallery)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"3.jpg4.jpg", b"4.jpg3.jpg"))
    with pytest.raises(CheckpointError, match=r"images-.* is damaged \(its SHA-256"):
        Gallery.load(gallery.directory)
    path.write_bytes(content)
    rewrite(path, lambda tensors: tensors["sizes"].add_(1))
    with pytest.raises(CheckpointError, match=r"images-.* is damaged \(its SHA-256"):
        check_gallery(gallery.directory)


def test_load_of_changed_marks_of_removal_is_refused(gallery):
    gallery.remove(3)
    (path,) = gallery.directory.glob("removed-*.json")
    path.write_bytes(path.read_bytes().replace(b"3.jpg", b"4.jpg"))
    with pytest.raises(CheckpointError, match=r"removed-.* is damaged \(its SHA-256"):
        Gallery.load(gallery.directory)


KEPT = Path(__file__).parents[1] / "hub" / "kept" / "0.1.0"


@pytest.mark.parametrize(("name", "noted"), [("gallery", 1), ("gallery_sealed", 0)])
def test_gallery_of_an_earlier_version_is_converted_by_its_first_write(tmp_path, name, noted):
    shutil.copytree(KEPT / name, tmp_path / "index")
    gallery = Gallery.load(tmp_path / "index")
    before = gallery.features.clone(), gallery.paths, list(gallery.metadata), gallery.ids.tolist()
    problems, notes = check_gallery(gallery.directory)
    assert (problems, len(notes)) == ([], noted)
    old = features_file(gallery)
    gallery.save()
    assert not old.exists()
    assert check_gallery(gallery.directory) == ([], [])
    again = Gallery.load(gallery.directory)
    assert torch.equal(again.features, before[0])
    assert (again.paths, list(again.metadata), again.ids.tolist()) == before[1:]
    assert (again.notes, again._store.header) == (gallery.notes, gallery._store.header)
    with pytest.raises(KeyError, match=r"was not removed from the gallery; removed were: (none|.*1\.jpg)"):
        again.restore("nothing.jpg")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_gallery_of_an_earlier_version_in_another_precision_is_float32(tmp_path, dtype):
    shutil.copytree(KEPT / "gallery", tmp_path / "index")
    (path,) = (tmp_path / "index").glob("*.safetensors")
    tensors = load(path.read_bytes())  # load_file may map the file, which is written anew
    save_file({**tensors, "features": tensors["features"].to(dtype)}, path)
    gallery = Gallery.load(tmp_path / "index")
    assert (gallery.features.dtype, check_gallery(gallery.directory)[0]) == (torch.float32, [])
    gallery.save()
    torch.testing.assert_close(Gallery.load(gallery.directory).features, tensors["features"], rtol=0, atol=4e-3)


@pytest.mark.posix
def test_load_of_features_that_are_a_pipe_is_refused_at_once(gallery):
    (features,) = gallery.directory.glob("features-*")
    features.unlink()
    os.mkfifo(features)
    with pytest.raises(CheckpointError, match="it is a pipe, expected a plain file"):
        Gallery.load(gallery.directory)


def test_load_of_numbers_given_twice_is_refused(gallery):
    rewrite(images_file(gallery), lambda tensors: tensors["ids"].fill_(3))
    digest = file_digest(images_file(gallery))
    reseal(gallery.directory, lambda entries: entries["segments"][0].update(images_sha256=digest))
    with pytest.raises(CheckpointError, match=r"is damaged \(two images have one number\)"):
        Gallery.load(gallery.directory)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors: tensors.pop("path_order"), "path_order"),
        (lambda tensors: tensors["path_order"].add_(5), "its order of paths is damaged"),
        (lambda tensors: tensors["paths.ends"].add_(1), "texts do not end where they should"),
        (lambda tensors: tensors["column0.codes"].add_(9), "codes among the metadata are damaged"),
        (lambda tensors: tensors.update(ids=tensors["ids"].float()), "its columns are not one number per image"),
        (lambda tensors: tensors.update({"column1.values": tensors["column1.values"][:3]}), "metadata are not one per"),
    ],
)
def test_load_of_images_that_do_not_fit_is_refused(tmp_path, change, words):
    metadata = [{"camera": "a", "hour": hour} for hour in range(4)]
    gallery = Gallery(None, [f"{number}.jpg" for number in range(4)], torch.eye(4), metadata=metadata)
    gallery.save(tmp_path / "index")
    rewrite(images_file(gallery), change)
    digest = file_digest(images_file(gallery))
    reseal(gallery.directory, lambda entries: entries["segments"][0].update(images_sha256=digest))
    with pytest.raises(CheckpointError, match=words):
        Gallery.load(gallery.directory)


def test_gallery_written_on_windows_holds_slashes_and_no_mapped_file(tmp_path, monkeypatch):
    monkeypatch.setattr("promptreid.files._IS_WINDOWS", True)
    monkeypatch.setattr("promptreid.files.load_file", lambda *_: pytest.fail("a mapped file cannot be removed there"))
    Gallery(None, [r"C:\crops\a.jpg", "b.jpg"], torch.eye(2)).save(tmp_path / "index")
    again = Gallery.load(tmp_path / "index")
    assert list(again._store.images.paths) == ["C:/crops/a.jpg", "b.jpg"]
    assert again.remove(0) == 1
    assert [path.as_posix() for path in Gallery.load(tmp_path / "index").paths] == ["b.jpg"]
