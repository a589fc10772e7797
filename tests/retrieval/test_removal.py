"""What must not come back, and what must not be taken for deleted."""

import os
import shutil

import numpy as np
import pytest
import torch

from promptreid import Gallery
from promptreid.data.image_files import list_images
from promptreid.errors import CheckpointError, DatasetError
from promptreid.retrieval import editing


@pytest.fixture
def crops(folder):
    """Eight of the folder's images, in two sub-folders."""
    for number, path in enumerate(sorted(folder.rglob("*.jpg"))[:8]):
        target = folder.parent / "few" / f"cam_{'ab'[number % 2]}" / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return folder.parent / "few"


@pytest.fixture
def index(model, crops, tmp_path):
    return Gallery.build(model, crops, directory=tmp_path / "index", progress=False)


def test_update_removes_the_features_of_a_changed_file_that_cannot_be_read(model, index, crops):
    path = index.paths[3]
    path.write_bytes(path.read_bytes()[:500])
    with pytest.warns(UserWarning, match=rf"1 of 8 images cannot be read and are left out: {path}"):
        changes = index.update(crops, progress=False)
    assert (changes.changed, changes.removed, changes.unreadable) == (0, 1, (str(path),))
    assert path not in index.paths
    assert path not in Gallery.load(index.directory, model).paths
    with pytest.warns(UserWarning, match="1 of 8 images cannot be read"):
        assert index.update(crops, progress=False).unchanged == 7


def test_update_names_images_that_are_gone_and_keeps_them(index, crops):
    gone = index.paths[2]
    gone.unlink()
    changes = index.update(crops, progress=False)
    assert (changes.removed, changes.gone) == (0, (str(gone),))
    assert gone in index.paths
    assert index.update(crops, prune=True, progress=False).gone == ()
    assert gone not in index.paths


def test_list_images_names_folders_that_cannot_be_read(crops, locked_folder):
    locked_folder(crops / "cam_b")
    closed = []
    with pytest.warns(UserWarning, match=r"1 folders or files cannot be looked into and are left out: .*cam_b"):
        found = list_images(crops, unreadable=closed)
    assert (len(found), closed) == (4, [str(crops / "cam_b")])
    locked_folder(crops)
    with pytest.raises(DatasetError, match="cannot be read; is it mounted"):
        list_images(crops)


@pytest.mark.filterwarnings("ignore:1 folders or files cannot be looked into")
def test_prune_with_a_folder_that_cannot_be_read_changes_nothing(index, crops, locked_folder):
    (crops / "cam_a").rename(crops / "cam_c")
    new = sorted((crops / "cam_c").iterdir())[0]
    locked_folder(crops / "cam_b")
    with pytest.raises(
        DatasetError, match=r"of 8 images, of which 4 .*cam_b cannot be read.*Nothing was removed.*anyway"
    ):
        index.update(crops, prune=True, progress=False)
    assert len(index) == 8
    assert new not in index.paths
    assert index.update(crops, prune="anyway", progress=False).removed == 8
    assert {path.parent.name for path in index.paths} == {"cam_c"}


def test_prune_of_a_large_share_asks(index, crops):
    with pytest.raises(
        DatasetError, match=r"would remove 4 of 8 images, of which 4 are still on the disk: is it the right"
    ):
        index.update(crops / "cam_a", prune=True, progress=False)
    assert len(index) == 8
    assert index.update(crops / "cam_a", prune="anyway", progress=False).removed == 4


def test_removed_images_and_their_copies_do_not_come_back(model, index, crops):
    gone = index.paths[1]
    assert index.remove(gone) == 1
    copy = crops / "cam_b" / "copy.jpg"
    shutil.copyfile(gone, copy)
    again = Gallery.load(index.directory, model)
    changes = again.update(crops, progress=False)
    assert (changes.added, set(changes.excluded)) == (0, {str(gone), str(copy)})
    assert gone not in again.paths
    assert copy not in again.paths
    assert again.restore(str(crops / "*" / gone.name)) == 1
    assert again.update(crops, progress=False).added == 2
    with pytest.raises(KeyError, match=r"was not removed from the gallery; removed were: none"):
        again.restore(gone)


def test_add_brings_removed_images_back_that_are_named_but_not_those_of_a_folder(index, crops):
    gone = index.paths[1]
    index.remove(gone)
    (crops / "new").mkdir()
    copy = crops / "new" / "copy.jpg"
    shutil.copyfile(gone, copy)
    assert index.add(crops / "new", progress=False).excluded == (str(copy),)
    assert index.add([copy], progress=False).added == 1
    assert index.update(crops, progress=False).added == 1
    assert {gone, copy} <= set(index.paths)


def test_image_that_another_removes_while_it_is_encoded_stays_out(model, index, crops, monkeypatch):
    changed, kept = index.paths[1], index.paths[2]
    for path in (changed, kept):
        os.utime(path, (1, 1))
    real = editing.encode_images

    def encode(*given, **options):
        batches = list(real(*given, **options))
        assert Gallery.load(index.directory, model).remove(changed) == 1
        return batches

    monkeypatch.setattr(editing, "encode_images", encode)
    monkeypatch.chdir(crops.parent)
    changes = index.update(crops.name, progress=False)
    assert (changes.changed, changes.added, changes.removed, changes.excluded) == (1, 0, 0, (os.path.relpath(changed),))
    assert changed not in index.paths
    assert len(Gallery.load(index.directory)) == 7
    monkeypatch.undo()
    assert index.update(crops, progress=False).excluded == (str(changed),)


def test_image_that_two_prune_at_once_is_counted_by_one(model, index, crops, monkeypatch):
    index.paths[1].unlink()
    other, real = Gallery.load(index.directory, model), editing.encode_images

    def encode(*given, **options):
        assert other.update(crops, prune=True, progress=False).removed == 1
        return real(*given, **options)

    with monkeypatch.context() as patch:
        patch.setattr(editing, "encode_images", lambda *given, **options: patch.undo() or encode(*given, **options))
        assert index.update(crops, prune=True, progress=False).removed == 0
    assert len(index) == len(other) == 7


def gallery_of(*names):
    return Gallery(None, names, torch.eye(len(names), 8))


def test_remove_takes_patterns_whose_star_stays_in_its_folder():
    names = ["a/1.jpg", "a/2.jpg", "a/deep/3.jpg", "b/4.jpg", "b/[5].jpg"]
    gallery = gallery_of(*names)
    assert gallery.remove(["a/*", "b/[5].jpg"]) == 3
    assert [str(path) for path in gallery.paths] == ["a/deep/3.jpg", "b/4.jpg"]
    assert gallery.remove("**/*.jpg") == 2
    with pytest.raises(KeyError, match=r"the gallery has no image 'b/\*'; nothing was removed\. Check the path"):
        gallery.remove("b/*")


def test_folder_that_reads_as_a_pattern_is_meant_by_its_name():
    names = ["cam[1]/1.jpg", "cam[1]/2.png", "cam1/3.jpg", "cam[2]/[4].jpg", "cam2/4.jpg"]
    gallery = gallery_of(*names)
    assert gallery.remove("cam[1]/*.jpg") == 1
    assert gallery.remove("cam[2]/[4].jpg") == 1
    assert [str(path) for path in gallery.paths] == ["cam[1]/2.png", "cam1/3.jpg", "cam2/4.jpg"]
    assert gallery.restore("cam[1]/*") == 1
    assert gallery.remove("cam[12]/*.jpg") == 2


def test_each_part_of_a_pattern_that_something_is_called_by_means_that(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [
        "cam[1]/sub/s.jpg",
        "cam1/sub/s.jpg",
        "cam1/t.png",
        "a/cam[1]/x[1].jpg",
        "a/cam1/x1.jpg",
        "b/cam1/x[1].jpg",
    ]
    gallery = gallery_of(*names)
    for nothing in ("cam[1]/*.png", "cam[1]/**/t.png", "cam[1]", "*/cam[1]/x1.jpg"):
        with pytest.raises(KeyError, match="the gallery has no image"):
            gallery.remove(nothing)
    assert gallery.remove("cam[1]/**/s.jpg") == 1
    assert gallery.remove("*/cam[1]/*.jpg") == 1
    assert gallery.remove("**/x[1].jpg") == 1
    assert [str(path) for path in gallery.paths] == ["cam1/sub/s.jpg", "cam1/t.png", "a/cam1/x1.jpg"]
    (tmp_path / "cam[1]").mkdir()  # of which the gallery has nothing any more
    with pytest.raises(KeyError, match="the gallery has no image"):
        gallery.remove("cam[1]/*.png")
    (tmp_path / "cam[1]").rmdir()
    assert gallery.remove("cam[1]/*.png") == 1


WILD = [("set [1]", "set 1"), ("what?", "what1"), ("a*b", "a-b"), ("a**b", "a-b"), ("[!x]", "y")]


@pytest.mark.parametrize(("name", "matched"), WILD)
def test_patterns_do_not_take_the_working_folder_for_one(tmp_path, monkeypatch, name, matched):
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    other, own = (str(tmp_path / folder / "crops" / "3.jpg") for folder in (matched, name))
    gallery = gallery_of("crops/1.jpg", "crops/deep/2.jpg", own, "b/[4].jpg", other)
    assert gallery.remove(["crops/*", "./b/../b/[[]?].jpg"]) == 3
    assert [str(path) for path in gallery.paths] == ["crops/deep/2.jpg", other]
    assert gallery.restore("../*/crops/*") == 2
    assert gallery.restore("b/*") == 1
    with pytest.raises(KeyError, match=r"was not removed from the gallery; removed were: none"):
        gallery.restore("**")


@pytest.mark.posix
def test_full_paths_and_patterns_work_in_a_working_folder_that_was_deleted(index, crops, tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    one, *_ = index.paths
    assert index.remove(f"{crops}/cam_a/*") == 4
    assert index.remove(one if one in index.paths else index.paths[0]) == 1
    assert index.restore(f"{crops}/cam_?/*.jpg") == 5
    with pytest.raises(KeyError, match="was not removed"):
        index.restore(one)


def test_remove_takes_one_image_and_numbers_of_any_kind():
    gallery = gallery_of("a.jpg", "b.jpg", "c.jpg", "d.jpg")
    assert gallery.remove("a.jpg") == 1
    assert gallery.remove(2) == 1
    assert gallery.remove(gallery.ids[:1]) == 1
    assert gallery.ids.tolist() == [3]
    assert gallery_of("a.jpg", "b.jpg").remove(np.int64(1)) == 1
    assert gallery_of("a.jpg", "b.jpg").remove(torch.tensor(1)) == 1
    assert gallery_of("a.jpg", "b.jpg").remove(b"b.jpg") == 1


@pytest.mark.parametrize("number", [2, -1, 2**63, -(2**63) - 1, 10**30])
def test_remove_of_a_number_that_no_image_has_is_refused(number):
    gallery = gallery_of("a.jpg", "b.jpg")
    with pytest.raises(KeyError, match=rf"the gallery has no image '{number}'; nothing was removed"):
        gallery.remove([0, number])
    assert len(gallery) == 2


@pytest.mark.parametrize("images", [3.5, [3.0], None, [None], [b"a.jpg", None]])
def test_remove_and_restore_of_what_names_no_image_are_refused(images):
    gallery = gallery_of("a.jpg", "b.jpg")
    odd = r"(3\.5 is float|3\.0 is float|None is NoneType), expected an image's path or number"
    nothing = "nothing is named to be removed; give an image's path or number"
    with pytest.raises(TypeError, match=nothing if images is None else odd):
        gallery.remove(images)
    gallery.remove("a.jpg")
    with pytest.raises(TypeError, match=r"is (float|NoneType), expected an image's path, or a pattern of paths"):
        gallery.restore(images)
    assert len(gallery) == 1


def test_load_of_damaged_marks_of_removal_is_refused(tmp_path):
    gallery = gallery_of("a.jpg", "b.jpg")
    gallery.remove("a.jpg")
    gallery._store.header["removed"][0]["size"] = "large"
    with pytest.raises(CheckpointError, match="is damaged"):
        Gallery.load(gallery.save(tmp_path / "index"))
