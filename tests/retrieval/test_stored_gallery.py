"""A gallery in a store: filled by parts, resumed, searched as a folder's gallery is."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from datetime import date, datetime, timedelta, timezone
from pathlib import Path

import pytest
import torch

from promptreid import Gallery, PromptConfig, PromptedCLIP, load_clip
from promptreid.data.image_files import walk_images
from promptreid.errors import CheckpointError, DatasetError, StoreError
from promptreid.retrieval import filling
from promptreid.retrieval.filling import shard_of_environment
from promptreid.retrieval.filters import Prefix
from promptreid.retrieval.lance_store import LanceStore
from promptreid.retrieval.stored_gallery import StoredGallery

pytest.importorskip("lancedb")
pytest.importorskip("lance")


@pytest.fixture
def gallery(model, tmp_path):
    return StoredGallery.create(tmp_path / "store", model)


def names(hits):
    return [str(hit.path) for hit in hits]


def test_store_is_searched_as_a_gallery_is(gallery, model, folder):
    changes = gallery.update(folder, progress=False)
    assert (changes.added, len(gallery), gallery.keys) == (24, 24, ["folder"])
    exact = Gallery.build(model, folder, progress=False)
    camera = sorted({known["folder"] for known in exact.metadata})[0]
    for where in (None, {"folder": camera}):
        hits = gallery.search("a man in a red coat", 5, where=where)
        right = exact.search("a man in a red coat", 5, where=where)
        assert names(hits) == names(right)
        assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in right], abs=1e-5)
        assert [hit.metadata for hit in hits] == [dict(hit.metadata) for hit in right]
    several = gallery.search(["a man", "a woman with a bag"], 2, exact=True)
    assert [len(hits) for hits in several] == [2, 2]
    assert len(gallery.search("a man", 24, threshold=several[0][0].score - 1e-6)) == 1
    with pytest.raises(ValueError, match="this gallery was never calibrated"):
        gallery.search("a man", threshold="calibrated")


def test_parts_of_the_work_are_disjoint_and_complete(gallery, folder):
    counts = [gallery.update(folder, shard=(number, 3), progress=False).added for number in range(3)]
    assert sum(counts) == len(gallery) == 24
    assert min(counts) > 0
    assert gallery.update(folder, progress=False).unchanged == 24
    for shard in ((3, 3), (-1, 3), (0, 0)):
        with pytest.raises(ValueError, match="expected a number from 0 to"):
            gallery.update(folder, shard=shard)


@pytest.mark.parametrize(
    ("variables", "shard"),
    [
        ({}, None),
        ({"RANK": "2", "WORLD_SIZE": "4"}, (2, 4)),
        ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}, (1, 2)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, None),  # a batch script outside of srun does all
        ({"RANK": "0", "WORLD_SIZE": "1", "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}, (0, 1)),
    ],
)
def test_part_is_read_from_what_torchrun_and_srun_set(variables, shard):
    assert shard_of_environment(variables) == shard


def test_variables_that_contradict_each_other_are_named():
    with pytest.raises(ValueError, match="RANK is '4' and WORLD_SIZE '4'"):
        shard_of_environment({"RANK": "4", "WORLD_SIZE": "4"})


def test_changed_new_and_unreadable_files(gallery, folder):
    gallery.update(folder, progress=False)
    first, second, third = sorted(folder.rglob("*.jpg"))[:3]
    first.write_bytes(second.read_bytes())
    third.write_bytes(b"no image")
    (folder / "new.jpg").write_bytes(second.read_bytes())
    why = rf"1 of 25 images cannot be read and are left out: {third} cannot be read \(cannot identify image file\)"
    with pytest.warns(UserWarning, match=why):
        changes = gallery.update(folder, progress=False)
    assert (changes.added, changes.changed, changes.unchanged, changes.removed) == (1, 1, 22, 1)
    assert changes.unreadable == (str(third),)
    assert len(gallery) == 24
    assert str(third) not in names(gallery.search("a man", 24))


def test_lists_and_generators_are_taken_a_part_at_a_time(gallery, folder, monkeypatch):
    monkeypatch.setattr(filling, "_FILES_AT_ONCE", 7)
    paths = sorted(folder.rglob("*.jpg"))
    drawn = []

    def paths_one_by_one():
        for path in paths:
            drawn.append(path)
            yield path

    gallery.update(paths[:3], progress=False)
    asked = []
    monkeypatch.setattr(gallery.store, "stamps", lambda keys: asked.append(len(drawn)) or {})
    assert gallery.update(paths_one_by_one(), progress=False).added == 24
    assert asked == [7, 14, 21, 24]
    assert len(gallery) == 24
    with pytest.raises(DatasetError):
        gallery.update([], progress=False)


class Recorded:
    """A store that only counts."""

    def __init__(self):
        self.commits = []

    def add(self, images, features):
        self.commits.append(len(images))

    replace = add


def test_rows_are_committed_once_they_are_many_or_have_waited(monkeypatch):
    from promptreid.retrieval.table import ImageTable

    store, now = Recorded(), [0.0]
    monkeypatch.setattr(filling.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(filling, "removed_digests", lambda store: frozenset())
    commits = filling._Commits(store)
    for number in range(200):
        commits.put(ImageTable.of_keys([f"{number}_{row}" for row in range(64)]), torch.zeros(64, 2), old=[False] * 64)
    assert store.commits == [5056, 5056]
    now[0] += 6.0
    commits.put(ImageTable.of_keys(["late"]), torch.zeros(1, 2), old=[False])
    assert store.commits == [5056, 5056, 200 * 64 - 2 * 5056 + 1]
    commits.flush()
    assert len(store.commits) == 3


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_what_waits_to_be_committed_when_it_is_interrupted_is_kept(gallery, folder, interrupted, kind):
    with interrupted(filling, kind):
        gallery.update(folder, batch_size=3, progress=False)
    assert len(gallery) == 6
    assert gallery.update(folder, progress=False).added == 18


def test_grouped_prompts_are_told_the_camera_as_in_a_gallery(folder, tmp_path):
    cameras = tuple(sorted(path.name for path in folder.iterdir()))
    clip = load_clip("promptreid-tiny", pretrained="generated", image_size=(32, 16))
    model = PromptedCLIP(clip, PromptConfig(1, 1, kind="grouped", groups=cameras)).eval()
    with torch.no_grad():
        for prompts in model.prompt_parameters():
            prompts.normal_()
    gallery = StoredGallery.create(tmp_path / "grouped", model)
    gallery.update(folder, progress=False)
    right = Gallery.build(model, folder, progress=False).search("a man", 24)
    found = {hit.path: hit.score for hit in gallery.search("a man", 24)}
    assert found == pytest.approx({hit.path: hit.score for hit in right}, abs=1e-5)


def test_erased_images_stay_out_until_they_are_restored(gallery, folder):
    gallery.update(folder, progress=False)
    path = sorted(folder.rglob("*.jpg"))[0]
    done = gallery.erase(os.path.relpath(path))
    assert (done.images, done.proven) == (1, True)
    changes = gallery.update(folder, progress=False)
    assert (changes.added, changes.excluded) == (0, (str(path),))
    with pytest.raises(KeyError, match=r"'other\.jpg' was not removed from the store"):
        gallery.restore([path, "other.jpg"])
    with pytest.raises(TypeError, match="expected an image's key or path"):
        gallery.restore(3)
    assert gallery.restore(os.path.relpath(path)) == 1
    assert gallery.update(folder, progress=False).added == 1


@pytest.mark.parametrize("owner", [filling, LanceStore])
def test_images_that_another_erases_meanwhile_stay_out(gallery, folder, monkeypatch, owner):
    paths = sorted(map(str, folder.rglob("*.jpg")))
    gallery.update(paths[:4], progress=False)
    for path in paths[:4]:
        os.utime(path, (1, 1))
    other = StoredGallery.load(gallery.url, gallery.model)
    # While they are encoded, or after this process has asked what is erased and before it commits.
    name = "encode_images" if owner is filling else "replace"
    real = getattr(owner, name)

    def erased_before(*given, **options):
        other.erase(paths[:3])
        return real(*given, **options)

    monkeypatch.setattr(owner, name, erased_before)
    changes = gallery.update(folder, progress=False)
    assert (changes.added, changes.changed, sorted(changes.excluded)) == (20, 1, paths[:3])
    assert keys_of(gallery) == paths[3:]


def test_image_whose_late_removal_was_interrupted_goes_with_the_next_update(gallery, folder, monkeypatch):
    paths = sorted(map(str, folder.rglob("*.jpg")))
    gallery.update(paths[:4], progress=False)
    os.utime(paths[1], (1, 1))
    other, real = StoredGallery.load(gallery.url, gallery.model), LanceStore.replace

    def erased_before(*given):
        other.erase(paths[1])
        return real(*given)

    def killed(*given):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LanceStore, "replace", erased_before)
        patch.setattr(filling, "remove", killed)
        with pytest.raises(KeyboardInterrupt):
            gallery.update(paths[:4], progress=False)
    assert keys_of(gallery) == paths[:4]
    changes = gallery.update(paths[:4], progress=False)
    assert (changes.unchanged, changes.excluded) == (3, (paths[1],))
    assert keys_of(gallery) == [paths[0], *paths[2:4]]
    assert gallery.info().deleted == 0  # no byte of it is left


def test_image_with_an_address_for_a_key_is_found_and_erased_by_it(gallery, model):
    key = "s3://bucket/a.jpg"
    gallery.add_features(model.encode(["a man", "a woman"], progress=False), [key, "b"])
    hit = gallery.search("a man", 1)[0]
    assert (hit.key, hit.as_dict()["path"]) == (key, key)
    assert gallery.erase([hit.key]).images == 1
    assert keys_of(gallery) == ["b"]
    features = model.encode(["a man", "a boy"], progress=False)
    with pytest.warns(UserWarning, match=r"1 erased image left out: s3://bucket/a\.jpg; restore"):
        gallery.add_features(features, [key, "c"])
    assert keys_of(gallery) == ["b", "c"]
    gallery.restore([key])
    gallery.add_features(features, [key, "c"])
    assert sorted(keys_of(gallery)) == ["b", "c", key]


def test_erased_file_does_not_come_back_under_its_relative_name(gallery, folder, monkeypatch):
    gallery.update(folder, progress=False)
    path = sorted(folder.rglob("*.jpg"))[0]
    gallery.erase(path)
    monkeypatch.chdir(folder)
    name = os.path.relpath(path)
    features = unit(2, gallery.store.dimensions)
    with pytest.warns(UserWarning, match=rf"1 erased image left out: {re.escape(name)}; restore"):
        gallery.add_features(features, [name, "other"])
    assert len(gallery) == 24
    gallery.restore(name)
    gallery.add_features(features, [name, "other"])
    assert name in keys_of(gallery)


@pytest.mark.posix
def test_keys_are_taken_in_a_working_folder_that_was_deleted(gallery, tmp_path, monkeypatch):
    gallery.add_features(unit(2, gallery.store.dimensions), ["a", "b"])
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert gallery.erase("a").images == 1
    with pytest.warns(UserWarning, match="1 erased image left out: a; restore"):
        gallery.add_features(unit(2, gallery.store.dimensions), ["a", "c"])
    assert keys_of(gallery) == ["b", "c"]
    assert gallery.restore("a") == 1


def test_filter_that_nothing_passes_is_told_from_no_match(gallery, folder):
    with pytest.raises(ValueError, match="the store is empty"):
        gallery.search("a man")
    gallery.update(folder, progress=False)
    with pytest.raises(ValueError, match=r"no image of the store has folder x; known are, among others: \w"):
        gallery.search("a man", where={"folder": "x"})
    with pytest.raises(ValueError, match=r"has folder \['i\?gs'\]; .*; of patterns a store takes only a beginning"):
        gallery.search("a man", where={"folder": ["i?gs"]})
    with pytest.raises(ValueError, match="no image of the store has camera; known are: folder"):
        gallery.search("a man", where={"camera": "x"})
    with pytest.raises(ValueError, match="cannot call a function"):
        gallery.search("a man", where={"folder": str.isupper})
    for refused in (
        lambda: gallery.search("a man", where="h=1"),
        lambda: gallery.check_filter(["h"]),
        lambda: gallery.remove(where="h=1"),
        lambda: gallery.erase(where="h=1"),
    ):
        with pytest.raises(TypeError, match=r"where is .*h.*, expected conditions by key, such as {'folder'"):
            refused()
    with pytest.raises(ValueError, match=r"'folder': 'i\?gs'.*nothing was erased.*; of patterns a store takes only a"):
        gallery.erase(where={"folder": "i?gs"})
    assert gallery.search("a man", threshold=1.0) == []


def test_another_model_and_dimension_are_refused(gallery, model, tmp_path):
    with torch.no_grad():
        next(model.vision.parameters()).add_(1.0)
    with pytest.raises(CheckpointError, match=r"encoded by another model.*image prompts"):
        StoredGallery.load(tmp_path / "store", model)
    wrong = LanceStore.create(tmp_path / "wrong", dimensions=8, header={"model": None})
    with pytest.raises(CheckpointError, match="does not say which model"):
        StoredGallery(wrong, model)
    with pytest.raises(ValueError, match=r"features have shape .*expected floating point"):
        gallery.add_features(torch.ones(1, 8), ["a"])


def test_calibration_is_kept_with_the_store(gallery, folder, split, tmp_path):
    gallery.update(folder, progress=False)
    chosen = gallery.calibrate(split, progress=False)
    again = StoredGallery.load(tmp_path / "store")
    assert again.calibration == chosen
    unlabelled = gallery.calibrate(progress=False)
    assert (unlabelled.hit_rate, unlabelled.gallery_size) == (None, len(gallery))
    assert StoredGallery.load(tmp_path / "store").calibration == unlabelled
    again.store.change_header(calibration={"nonsense": 1})
    with pytest.raises(StoreError, match="damaged calibration"):
        StoredGallery.load(tmp_path / "store")


def test_gallery_is_copied_into_a_store_and_an_interrupted_copy_completed(model, folder, split, tmp_path, monkeypatch):
    source = Gallery.build(model, folder, notes={"place": "roof"}, progress=False)
    source.calibrate(split, progress=False)
    source.remove(sorted(folder.rglob("*.jpg"))[0])
    monkeypatch.setattr(filling, "COMMIT_ROWS", 10)
    monkeypatch.setattr(LanceStore, "add", interrupted(LanceStore.add))
    with pytest.raises(KeyboardInterrupt):
        source.to_store(tmp_path / "copy")
    copied = source.to_store(tmp_path / "copy")
    assert len(copied) == 23
    assert copied.notes == {"place": "roof"}
    assert copied.calibration == source.calibration
    assert names(copied.search("a man", 23)) == names(source.search("a man", 23))
    assert copied.update(folder, progress=False).unchanged == 23  # the removed one stays out
    erased = copied.erase([source.paths[0]])
    with pytest.warns(UserWarning, match=r"1 erased image left out: .*; restore"):
        assert (erased.images, len(source.to_store(tmp_path / "copy"))) == (1, 22)
    other = Gallery(None, ["a"], torch.eye(1, model.embed_dim))
    with pytest.raises(FileExistsError, match="holds a store already"):
        other.to_store(tmp_path / "copy")


def test_gallery_and_store_are_not_made_in_each_others_folder(gallery, model, folder, tmp_path):
    store, own = tmp_path / "store", Gallery.build(model, folder, directory=tmp_path / "own", progress=False)
    for make in (
        lambda: StoredGallery.create(tmp_path / "own", model),
        lambda: own.to_store(tmp_path / "own"),
        lambda: own.to_store(f"{tmp_path}/own/"),
    ):
        with pytest.raises(FileExistsError, match=r"own holds a gallery, .*; choose another place, or open"):
            make()
    for make in (lambda: own.save(store), lambda: Gallery.build(model, folder, directory=store, progress=False)):
        with pytest.raises(FileExistsError, match=r"store holds a store, .*; choose another folder, or open"):
            make()
    with pytest.raises(StoreError, match=r"no store in .*own; it holds a gallery: Gallery\.load opens it"):
        StoredGallery.load(tmp_path / "own")
    with pytest.raises(CheckpointError, match=r"no gallery in .*store .*; it holds a store: StoredGallery\.load opens"):
        Gallery.load(store)
    assert not list(own.directory.glob("*.lance"))
    assert not (store / "gallery.json").exists()


def test_gallery_and_store_in_one_folder_as_earlier_versions_allowed_can_still_be_written(model, folder, tmp_path):
    own = Gallery.build(model, folder, progress=False)
    own.to_store(tmp_path / "both")
    own.save(tmp_path / "own")
    shutil.copytree(tmp_path / "own", tmp_path / "both", dirs_exist_ok=True)
    both = Gallery.load(tmp_path / "both", model)
    assert both.remove(0) == 1
    assert len(both.to_store(tmp_path / "both")) == len(both) == 23


def test_copy_again_takes_out_what_was_removed_from_the_gallery_since(model, folder, tmp_path):
    source = Gallery.build(model, folder, progress=False)
    keys = ["gate/17", "s3://bucket/a.jpg", "kept"]
    source.add_features(unit(3, model.embed_dim), keys)
    copied = source.to_store(tmp_path / "copy")
    gone = [str(source.paths[4]), *keys[:2]]
    source.remove(gone)
    source.to_store(tmp_path / "copy")
    assert keys_of(copied) == sorted(map(str, source.paths))
    assert copied.info().deleted == 0  # no byte of them is left
    with pytest.warns(UserWarning, match="3 erased images left out"):
        copied.add_features(unit(3, model.embed_dim), gone)


def test_copy_again_keeps_what_the_gallery_holds_under_the_name_of_another_folders_mark(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    source = Gallery(None, ["gate/17", "gate/18"], unit(2, 8))
    source.remove("gate/17")
    monkeypatch.chdir(tmp_path)
    source.add_features(unit(1, 8), ["gate/17"])
    assert keys_of(source.to_store(tmp_path / "copy")) == ["gate/17", "gate/18"]
    monkeypatch.chdir(tmp_path / "work")  # where the mark and the key are one path
    with pytest.warns(UserWarning, match="1 erased image left out: gate/17"):
        again = source.to_store(tmp_path / "copy")
    assert keys_of(again) == ["gate/17", "gate/18"]


@pytest.mark.parametrize("copied_between", [True, False])
def test_copy_again_leaves_what_was_restored_in_the_store_until_it_is_removed_again(
    tmp_path, monkeypatch, copied_between
):
    monkeypatch.chdir(tmp_path)
    source = Gallery(None, ["gate/17", "gate/18"], unit(2, 8))
    source.remove("gate/17")
    copied = source.to_store(tmp_path / "copy")
    copied.restore("gate/17")
    copied.add_features(unit(1, 8), ["gate/17"])
    for _ in range(2):
        assert keys_of(source.to_store(tmp_path / "copy")) == ["gate/17", "gate/18"]
    source.add_features(unit(1, 8), ["gate/17"])
    if copied_between:
        source.to_store(tmp_path / "copy")
    source.remove("gate/17")
    assert keys_of(source.to_store(tmp_path / "copy")) == ["gate/18"]


def test_copy_again_takes_out_what_an_earlier_version_removed(tmp_path):
    source = Gallery(None, ["gate/17", "gate/18"], unit(2, 8))
    copied = source.to_store(tmp_path / "copy")
    source.remove("gate/17")
    del source._store.header["removed"][0]["id"]
    source.save(tmp_path / "source")
    assert keys_of(Gallery.load(tmp_path / "source").to_store(tmp_path / "copy")) == ["gate/18"]
    copied.restore("gate/17")
    copied.add_features(unit(1, 8), ["gate/17"])
    assert keys_of(source.to_store(tmp_path / "copy")) == ["gate/17", "gate/18"]


def interrupted(add):
    calls = []

    def once(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        add(*arguments)

    return once


def unit(count, dimensions, seed=0):
    made = torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(made, dim=-1)


def keys_of(gallery):
    return sorted(key for batch in gallery.store.scan(["key"]) for key in batch["key"].to_pylist())


def both_kinds(gallery, metadata):
    """The same images in a store and in a gallery of a folder."""
    keys = [f"cam_{row % 2}/{row}.jpg" for row in range(len(metadata))]
    other = Gallery(None, [], torch.empty(0, gallery.store.dimensions))
    for one in (gallery, other):
        one.add_features(unit(len(keys), gallery.store.dimensions), keys, metadata=metadata)
    return gallery, other


NOW = datetime.now(timezone.utc)
TIMES = [
    {"time": (NOW - timedelta(days=40)).isoformat()},
    {"time": (NOW - timedelta(days=20)).isoformat().replace("+00:00", "Z")},
    {"time": (NOW - timedelta(days=50)).timestamp()},
    {"time": int((NOW - timedelta(days=10)).timestamp())},
    {"time": (NOW - timedelta(days=35)).date().isoformat()},
    {},
    {"time": None},
]


@pytest.mark.parametrize(
    "asked",
    [
        {"older_than": timedelta(days=30)},
        {"older_than": (NOW - timedelta(days=15)).date()},
        {"older_than": NOW + timedelta(days=1)},
        {"older_than": timedelta(days=90)},
        {"older_than": timedelta(days=15), "where": {"time": (1, 1e10)}},
        {"images": "cam_1/*"},
        {"images": ["cam_0/0.jpg", "cam_1/?.jpg"]},
        {"images": "**.jpg"},
        {"where": {"time": Prefix("20")}},
    ],
)
def test_removal_takes_the_arguments_of_a_gallery_and_removes_the_same(gallery, asked):
    store, other = both_kinds(gallery, TIMES)
    assert store.remove(**asked) == other.remove(**asked)
    assert keys_of(store) == sorted(map(str, other.paths))


def test_folder_that_reads_as_a_pattern_is_meant_by_its_name(gallery):
    keys = ["cam[1]/1.jpg", "cam1/2.jpg"]
    gallery.add_features(unit(2, gallery.store.dimensions), keys)
    assert gallery.remove("cam[1]/*") == 1
    assert keys_of(gallery) == ["cam1/2.jpg"]


def test_each_part_of_a_pattern_that_something_is_called_by_means_that(gallery, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    gallery.add_features(unit(3, gallery.store.dimensions), ["cam[1]/sub/s.jpg", "cam1/sub/s.jpg", "cam1/t.png"])
    with pytest.raises(KeyError, match="the store has no image"):
        gallery.erase("cam[1]/*.png")
    assert gallery.erase("cam[1]/**/s.jpg").images == 1
    assert keys_of(gallery) == ["cam1/sub/s.jpg", "cam1/t.png"]


@pytest.mark.parametrize("name", ["set [1]", "a*b"])
def test_patterns_do_not_take_the_working_folder_for_one(gallery, tmp_path, monkeypatch, name):
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    keys = ["cam_1/1.jpg", str(tmp_path / name / "cam_2" / "2.jpg"), str(tmp_path / "a-b" / "cam_3" / "3.jpg")]
    gallery.add_features(unit(3, gallery.store.dimensions), keys)
    assert gallery.remove("cam_*/[!x].jpg") == 2
    assert keys_of(gallery) == keys[2:]
    assert gallery.remove(f"{tmp_path}/a[-]b/*/3.jpg") == 1


@pytest.mark.parametrize(
    ("asked", "error", "words"),
    [
        ({}, TypeError, "nothing is named to be removed"),
        ({"images": "a", "where": {"time": 1}}, TypeError, "are both given"),
        ({"images": "nowhere/*"}, KeyError, r"nowhere/\*"),
        ({"images": 5}, KeyError, "5"),
        ({"images": 2**63}, KeyError, r"has no image '9223372036854775808'; nothing was (removed|erased)"),
        ({"images": 1.5}, TypeError, "expected an image's path or number"),
        ({"older_than": 30}, TypeError, "older_than is 30, expected a date, or an age"),
        ({"older_than": timedelta(1)}, ValueError, "'yesterday' among the metadata is not in ISO form"),
        ({"where": {"camera": 1}}, ValueError, "no image"),
    ],
)
def test_removal_refuses_what_a_gallery_refuses(gallery, asked, error, words):
    for one in both_kinds(gallery, [{"time": "yesterday"}, {"time": "2026-11-27"}]):
        with pytest.raises(error, match=words):
            one.remove(**asked)
        assert len(one) == 2


def test_image_is_removed_by_its_number_and_an_erasure_completed_later(gallery):
    store, _ = both_kinds(gallery, TIMES)
    (hit,) = store.search(unit(1, store.store.dimensions)[0], 1)
    assert store.remove(hit.id) == 1
    assert str(hit.path) not in keys_of(store)
    again = store.erase(hit.path)
    assert (again.images, again.proven) == (0, True)
    with pytest.raises(KeyError, match="the store has no image"):
        store.erase("never/there.jpg")


def test_what_is_older_goes_by_the_files_time_and_stays_out_while_its_file_is_there(gallery, folder):
    old, gone = sorted(folder.rglob("*.jpg"))[:2]
    for path in (old, gone):
        os.utime(path, (1e9, 1e9))
    gallery.update(folder, progress=False)
    content = gone.read_bytes()
    gone.unlink()
    assert gallery.remove(older_than=date(2010, 1, 1)) == 2
    gone.write_bytes(content)
    changes = gallery.update(folder, progress=False)
    assert (changes.added, changes.excluded) == (1, (str(old),))


def test_prune_removes_what_is_no_longer_in_the_folder_and_nothing_else(gallery, folder, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(folder, elsewhere)
    for place in (folder, elsewhere):
        gallery.update(place, progress=False)
    gallery.add_features(unit(1, gallery.store.dimensions), ["a key"])
    first, *others = sorted(folder.rglob("*.jpg"))
    first.unlink()
    assert gallery.update(folder, shard=(1, 2), prune=True, progress=False).removed == 0
    changes = gallery.update(folder, shard=(0, 2), prune=True, progress=False)
    assert changes.removed == 1
    assert len(gallery) == 23 + 24 + 1
    assert str(first) not in keys_of(gallery)
    assert gallery.info().deleted == 0  # no byte of it is left
    first.write_bytes(others[0].read_bytes())
    assert gallery.update(folder, progress=False).added == 1  # it was not removed by name


def test_prune_of_much_or_in_a_folder_that_cannot_be_read_asks(gallery, folder, locked_folder):
    shut = folder / "shut"
    shut.mkdir()
    for path in sorted(folder.rglob("*.jpg"))[:3]:
        path.rename(shut / path.name)
    gallery.update(folder, progress=False)
    with pytest.raises(DatasetError, match=r"would remove 22 of 24 images.*is it the right folder.*--prune-anyway"):
        gallery.update(sorted(folder.rglob("*.jpg"))[:2], prune=True, progress=False)
    locked_folder(shut)
    with (
        pytest.warns(UserWarning, match="1 folders or files cannot be looked into"),
        pytest.raises(DatasetError, match=r"cannot be read, and they may be in it\. Nothing was removed"),
    ):
        gallery.update(folder, prune=True, progress=False)
    assert len(gallery) == 24
    with pytest.warns(UserWarning, match="1 folders or files cannot be looked into"):
        assert gallery.update(folder, prune="anyway", progress=False).removed == 3


def test_prune_leaves_what_others_add_meanwhile(gallery, folder, monkeypatch):
    gallery.update(folder, progress=False)
    late = folder / "late.jpg"

    def walk(root, **options):
        found = list(walk_images(root, **options))
        late.write_bytes(found[0].read_bytes())
        StoredGallery.load(gallery.url, gallery.model).update([late], progress=False)
        return found

    monkeypatch.setattr(filling, "walk_images", walk)
    assert gallery.update(folder, prune=True, progress=False).removed == 0
    assert str(late) in keys_of(gallery)


def test_audit_log_names_who_asked_what_and_holds_no_image(gallery, folder):
    gallery.update(folder, progress=False)
    gallery.search("a man", 3)
    assert gallery.audit_log() == []
    gallery.keep_audit_log()
    other = StoredGallery.load(gallery.url, gallery.model)
    other.search(["a man", "a woman"], 3)
    gone, broken, *_ = sorted(folder.rglob("*.jpg"))
    other.remove(gone)
    broken.write_bytes(b"no image")
    with pytest.warns(UserWarning, match="cannot be read"):
        other.update(folder, progress=False)
    lines = gallery.audit_log()
    assert [(line["action"], line.get("queries"), line.get("found"), line.get("images")) for line in lines] == [
        ("search", ["a man", "a woman"], [3, 3], None),
        ("remove", None, None, 1),
        ("remove", None, None, 1),
    ]
    assert all(line["user"] and datetime.fromisoformat(line["time"]).tzinfo for line in lines)
    files = [path for path in (Path(gallery.url) / "audit.lance").rglob("*") if path.is_file()]
    assert files
    assert os.name == "nt" or all(path.stat().st_mode & 0o077 == 0 for path in files)
    gallery.optimize(keep=timedelta(0))
    assert gallery.audit_log() == lines
    other.keep_audit_log(False)
    other.search("a man", 3)
    assert gallery.audit_log() == lines


def test_search_and_removal_that_cannot_be_logged_are_refused(gallery, folder):
    gallery.update(folder, progress=False)
    gallery.keep_audit_log()
    shutil.rmtree(Path(gallery.url) / "audit.lance")
    with pytest.raises(StoreError, match=r"cannot write the audit log .*so this one was not done"):
        gallery.search("a man", 3)
    with pytest.raises(StoreError, match="cannot write the audit log"):
        gallery.remove(where={"folder": Prefix("")})
    assert len(gallery) == 24
    assert gallery.update(folder, progress=False).unchanged == 24  # nothing was remembered as removed


@pytest.mark.posix
def test_killed_worker_is_redone_without_duplicates(gallery, folder, monkeypatch):
    script = (
        "import sys; from promptreid.retrieval import filling, stored_gallery as s;"
        "from promptreid import load_prompts;"
        "from promptreid.towers.tiny import tiny_prompts; filling.COMMIT_ROWS = 4; "
        "g = s.StoredGallery.load(sys.argv[1], load_prompts(tiny_prompts())); print('ready', flush=True);"
        "g.update(sys.argv[2], progress=False, batch_size=1)"
    )
    (folder / "many").mkdir()
    images = sorted(folder.rglob("*.jpg"))
    for number in range(400):
        (folder / "many" / f"{number}.jpg").hardlink_to(images[number % len(images)])
    store = make_for_shipped(gallery.url)
    command = [sys.executable, "-c", script, store.url, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout.readline() == "ready\n"
        while len(store) < 12:
            time.sleep(0.02)
        worker.send_signal(signal.SIGKILL)
    kept = len(store)
    assert 12 <= kept < 424
    changes = store.update(folder, progress=False)
    assert (changes.unchanged, changes.added) == (kept, 424 - kept)
    keys = [key for batch in store.store.scan(["key"]) for key in batch["key"].to_pylist()]
    assert len(keys) == len(set(keys)) == 424


def make_for_shipped(url):
    from promptreid import load_prompts
    from promptreid.towers.tiny import tiny_prompts

    return StoredGallery.create(url + "_shipped", load_prompts(tiny_prompts()))
