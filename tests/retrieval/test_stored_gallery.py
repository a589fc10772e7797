"""A gallery in a store: filled by parts, resumed, searched as a folder's gallery is."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from promptreid import Gallery
from promptreid.errors import CheckpointError, DatasetError, StoreError
from promptreid.retrieval import stored_gallery
from promptreid.retrieval.lance_store import LanceStore
from promptreid.retrieval.stored_gallery import StoredGallery, shard_of_environment

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
    with pytest.warns(UserWarning, match="1 of 25 images cannot be read"):
        changes = gallery.update(folder, progress=False)
    assert (changes.added, changes.changed, changes.unchanged) == (1, 1, 22)
    assert changes.unreadable == (str(third),)
    assert len(gallery) == 24
    assert str(third) not in names(gallery.search("a man", 24))


def test_lists_and_generators_are_taken_a_part_at_a_time(gallery, folder, monkeypatch):
    monkeypatch.setattr(stored_gallery, "_FILES_AT_ONCE", 7)
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
    monkeypatch.setattr(stored_gallery.time, "monotonic", lambda: now[0])
    commits = stored_gallery._Commits(store)
    for number in range(200):
        commits.put(ImageTable.of_keys([f"{number}_{row}" for row in range(64)]), torch.zeros(64, 2), replaces=False)
    assert store.commits == [5056, 5056]
    now[0] += 6.0
    commits.put(ImageTable.of_keys(["late"]), torch.zeros(1, 2), replaces=False)
    assert store.commits == [5056, 5056, 200 * 64 - 2 * 5056 + 1]
    commits.flush()
    assert len(store.commits) == 3


def test_erased_images_stay_out_until_they_are_restored(gallery, folder):
    gallery.update(folder, progress=False)
    path = sorted(folder.rglob("*.jpg"))[0]
    done = gallery.erase(os.path.relpath(path))
    assert (done.images, done.proven) == (1, True)
    changes = gallery.update(folder, progress=False)
    assert (changes.added, changes.excluded) == (0, (str(path),))
    gallery.restore(path)
    assert gallery.update(folder, progress=False).added == 1


def test_filter_that_nothing_passes_is_told_from_no_match(gallery, folder):
    with pytest.raises(ValueError, match="the store is empty"):
        gallery.search("a man")
    gallery.update(folder, progress=False)
    with pytest.raises(ValueError, match=r"no image of the store has folder x; known are, among others: \w"):
        gallery.search("a man", where={"folder": "x"})
    with pytest.raises(ValueError, match="no image of the store has camera; known are: folder"):
        gallery.search("a man", where={"camera": "x"})
    with pytest.raises(ValueError, match="cannot call a function"):
        gallery.search("a man", where={"folder": str.isupper})
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


def test_calibration_is_kept_with_the_store(gallery, split, tmp_path):
    chosen = gallery.calibrate(split, progress=False)
    again = StoredGallery.load(tmp_path / "store")
    assert again.calibration == chosen
    again.store.change_header(calibration={"nonsense": 1})
    with pytest.raises(StoreError, match="damaged calibration"):
        StoredGallery.load(tmp_path / "store")


def test_gallery_is_copied_into_a_store_and_an_interrupted_copy_completed(model, folder, split, tmp_path, monkeypatch):
    source = Gallery.build(model, folder, notes={"place": "roof"}, progress=False)
    source.calibrate(split, progress=False)
    source.remove(sorted(folder.rglob("*.jpg"))[0])
    monkeypatch.setattr(stored_gallery, "COMMIT_ROWS", 10)
    monkeypatch.setattr(LanceStore, "add", interrupted(LanceStore.add))
    with pytest.raises(KeyboardInterrupt):
        source.to_store(tmp_path / "copy")
    copied = source.to_store(tmp_path / "copy")
    assert len(copied) == 23
    assert copied.notes == {"place": "roof"}
    assert copied.calibration == source.calibration
    assert names(copied.search("a man", 23)) == names(source.search("a man", 23))
    assert copied.update(folder, progress=False).unchanged == 23  # the removed one stays out
    other = Gallery(None, ["a"], torch.eye(1, model.embed_dim))
    with pytest.raises(FileExistsError, match="holds a store already"):
        other.to_store(tmp_path / "copy")


def interrupted(add):
    calls = []

    def once(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        add(*arguments)

    return once


@pytest.mark.posix
def test_killed_worker_is_redone_without_duplicates(gallery, folder, monkeypatch):
    script = (
        "import sys; from promptreid.retrieval import stored_gallery as s; from promptreid import load_prompts;"
        "from promptreid.towers.tiny import tiny_prompts; s.COMMIT_ROWS = 4; "
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
