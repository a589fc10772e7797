"""Adding, updating and removing; filters, thresholds, storage, export."""

import json
import os
import shutil
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from promptreid import Gallery
from promptreid.errors import CheckpointError, DatasetError
from promptreid.retrieval import editing, gallery_files, segment_files
from promptreid.retrieval.gallery_folder import writing
from promptreid.synthetic.sentences import describe_people


@pytest.fixture
def index(model, folder, tmp_path):
    """A gallery of the folder, bound to a folder of its own."""
    return Gallery.build(model, folder, directory=tmp_path / "index", batch_size=10, progress=False)


def another_image(folder, name, *, like=0):
    source = sorted(folder.rglob("*.jpg"))[like]
    target = folder / name
    target.parent.mkdir(exist_ok=True)
    shutil.copyfile(source, target)
    return target


def test_build_into_a_folder_saves_it(model, index):
    assert Gallery.load(index.directory, model).paths == index.paths
    with pytest.raises(FileExistsError, match=r"holds a gallery already; update it"):
        Gallery.build(model, list(index.paths[:2]), directory=index.directory, progress=False)
    with pytest.raises(FileExistsError, match=r"holds a gallery already; update it"):
        Gallery.build(model, list(index.paths[:2]), progress=False).save(index.directory, exist_ok=False)


def test_build_where_one_was_killed_before_its_first_image(model, folder, tmp_path, monkeypatch):
    def killed(*given, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(editing, "encode_images", killed)
        with pytest.raises(KeyboardInterrupt):
            Gallery.build(model, folder, directory=tmp_path / "index", progress=False)
    assert len(Gallery.load(tmp_path / "index")) == 0
    assert len(Gallery.build(model, folder, directory=tmp_path / "index", progress=False)) == 24
    index = Gallery.load(tmp_path / "index", model)
    index.remove(index.paths)
    with pytest.raises(FileExistsError):  # it remembers what was removed
        Gallery.build(model, folder, directory=tmp_path / "index", progress=False)


def test_build_where_another_is_being_built_is_refused(model, folder, tmp_path, monkeypatch):
    target, real = tmp_path / "index", editing.encode_images
    other = Gallery.build(model, sorted(folder.rglob("*.jpg"))[:1], progress=False)

    def encode(*given, **options):
        monkeypatch.setattr(editing, "encode_images", real)
        with pytest.raises(FileExistsError, match=r"holds a gallery already, which is being built; update it"):
            Gallery.build(model, list(other.paths), directory=target, progress=False)
        with pytest.raises(FileExistsError, match="which is being built"):
            other.save(target, exist_ok=False)
        return real(*given, **options)

    monkeypatch.setattr(editing, "encode_images", encode)
    assert len(Gallery.build(model, folder, directory=target, progress=False)) == len(Gallery.load(target)) == 24
    assert sorted(path.suffix for path in target.iterdir()) == [".json", ".lock", ".safetensors", ".safetensors"]


@pytest.mark.parametrize("resumed", ["update", "add"])
def test_killed_build_that_is_resumed_is_not_replaced(model, folder, tmp_path, monkeypatch, resumed):
    target, real = tmp_path / "index", editing.encode_images
    Gallery(model, [], torch.empty(0, model.embed_dim)).save(target)
    gallery = Gallery.load(target, model)

    def encode(*given, **options):
        monkeypatch.setattr(editing, "encode_images", real)
        with pytest.raises(FileExistsError, match="which is being built"):
            Gallery.build(model, folder, directory=target, progress=False)
        return real(*given, **options)

    monkeypatch.setattr(editing, "encode_images", encode)
    assert getattr(gallery, resumed)(folder, progress=False).added == 24


BUILDS = """
import sys, time, torch
from promptreid import Gallery, load_prompts
from promptreid.retrieval import editing
from promptreid.towers.tiny import tiny_prompts

def encode(*given, **options):
    print("building", flush=True)
    time.sleep(600)

editing.encode_images = encode
Gallery.build(load_prompts(tiny_prompts()), sys.argv[1], directory=sys.argv[2], progress=False)
"""


@pytest.mark.posix
def test_build_where_a_process_was_killed_that_built_replaces_what_it_left(model, folder, tmp_path, fork):
    target = tmp_path / "index"
    with fork(BUILDS, folder, target) as other:
        try:
            assert other.stdout.readline() == "building\n"
            with pytest.raises(FileExistsError, match="which is being built"):
                Gallery.build(model, folder, directory=target, progress=False)
            assert len(Gallery.load(target)) == 0  # a reader disturbs nobody
        finally:
            other.kill()
    assert len(Gallery.build(model, folder, directory=target, progress=False)) == 24
    assert sorted(path.name for path in target.glob("*.lock")) == ["gallery.lock"]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_what_was_encoded_when_it_is_interrupted_is_kept(model, index, folder, interrupted, kind):
    names = ("new/a.jpg", "new/b.jpg", "new/c.jpg")
    new = [another_image(folder, name) for name in names]
    with interrupted(editing, kind):
        index.update(folder, batch_size=1, progress=False)
    assert [path in Gallery.load(index.directory).paths for path in new] == [True, True, False]
    assert index.update(folder, progress=False).added == 1


def test_interrupted_update_does_not_wait_for_another_writer(index, folder, monkeypatch):
    another_image(folder, "new/a.jpg")
    real = editing.encode_images
    with ExitStack() as other:

        def encode(*given, **options):
            yield from real(*given, **options)
            other.enter_context(writing(index.directory))
            raise KeyboardInterrupt

        monkeypatch.setattr(editing, "encode_images", encode)
        monkeypatch.setattr(editing, "_LAST_WAIT_SECONDS", 0.1)
        with pytest.raises(KeyboardInterrupt):
            index.update(folder, progress=False)
    assert len(Gallery.load(index.directory)) == 24


def test_write_that_is_interrupted_is_not_begun_again(model, index, folder, monkeypatch):
    another_image(folder, "new/a.jpg")
    writes = []

    def interrupted(*given, **options):
        writes.append(given)
        raise KeyboardInterrupt

    monkeypatch.setattr(editing, "_WRITE_EVERY_SECONDS", -1)
    monkeypatch.setattr(editing, "_put", lambda store, table, batches, **_: batches and interrupted(batches))
    with pytest.raises(KeyboardInterrupt):
        index.update(folder, progress=False)
    assert len(writes) == 1


def test_build_that_finds_nothing_readable_is_refused(model, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(DatasetError, match=r"none of the 1 images can be read: .*broken.png cannot be read "):
        Gallery.build(model, tmp_path, progress=False)


def test_add_appends_and_numbers_on(model, index, folder):
    before = index.features.clone()
    changes = index.add([another_image(folder, "new/a.jpg"), another_image(folder, "new/b.jpg")], progress=False)
    assert (changes.added, changes.unreadable) == (2, ())
    assert index.ids.tolist() == list(range(26))
    assert torch.equal(index.features[:24], before)
    torch.testing.assert_close(index.features[24], index.features[0], rtol=1e-4, atol=1e-5)
    assert Gallery.load(index.directory, model).paths == index.paths


def test_add_of_a_image_that_is_there_is_refused(index, folder):
    with pytest.raises(ValueError, match=r"1 of 1 images are in the gallery already, such as .*; update\(\)"):
        index.add([index.paths[3]], progress=False)
    new = another_image(folder, "new.jpg")
    with pytest.raises(ValueError, match=r"new\.jpg is given twice"):
        index.add([new, new], progress=False)
    assert len(index) == 24


def test_saved_gallery_of_a_relative_folder_is_the_same_from_every_working_folder(model, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder.parent)
    index = Gallery.build(model, folder.name, directory="index", progress=False)
    late = Gallery.build(model, folder.name, progress=False)
    late.save("late")
    another_image(folder, "new.jpg", like=4)
    assert index.update(folder.name, progress=False).added == 1
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for name, added in (("index", 0), ("late", 1)):
        again = Gallery.load(folder.parent / name, model)
        assert all(path.is_file() for path in again.paths)
        assert again.update(folder, progress=False).added == added
        gone = again.search(again.features[0], 1)[0]
        assert again.remove(gone.path) == 1
        assert again.update(folder, progress=False).excluded == (str(gone.path),)


def test_update_encodes_only_what_is_new_or_changed(model, index, folder, monkeypatch):
    encoded = []
    real = editing.encode_images

    def watched(model, paths, **settings):
        encoded.extend(paths)
        return real(model, paths, **settings)

    monkeypatch.setattr(editing, "encode_images", watched)
    assert index.update(folder, progress=False).unchanged == 24
    assert encoded == []
    new = another_image(folder, "new.jpg", like=4)
    changed = index.paths[7]
    shutil.copyfile(index.paths[11], changed)
    os.utime(changed, ns=(1, 1))
    gone = index.paths[2]
    gone.unlink()
    changes = index.update(folder, progress=False)
    assert (changes.added, changes.changed, changes.unchanged, changes.removed) == (1, 1, 22, 0)
    assert sorted(encoded) == sorted([str(new), str(changed)])
    hits = {hit.path: hit for hit in index.search(index.features[0], len(index))}
    assert hits[changed].id == 7
    assert hits[new].id not in range(24)
    rows = {path: row for row, path in enumerate(index.paths)}
    assert gone in rows
    assert index.update(folder, prune=True, progress=False).removed == 1
    assert gone not in index.paths
    assert Gallery.load(index.directory, model).paths == index.paths


def test_update_with_an_invalid_or_unknown_option_is_refused(index, folder):
    with pytest.raises(ValueError, match="batch_size is 0, expected at least 1"):
        index.update(folder, batch_size=0, progress=False)
    with pytest.raises(TypeError, match="batchsize"):
        index.update(folder, batchsize=3)


def test_update_gives_a_changed_image_its_new_features(model, index, folder):
    row, other = 7, 20
    shutil.copyfile(index.paths[other], index.paths[row])
    os.utime(index.paths[row], ns=(1, 1))
    index.update(folder, progress=False)
    rows = {number: row for row, number in enumerate(index.ids.tolist())}
    torch.testing.assert_close(index.features[rows[row]], index.features[rows[other]], rtol=1e-4, atol=1e-5)


def test_remove_takes_the_features_out_of_the_files(model, index):
    kept, gone = index.features[3].clone(), index.features[5].clone()
    needle = gone.numpy().tobytes()
    assert any(needle in path.read_bytes() for path in index.directory.iterdir())
    assert index.remove([5, index.paths[0]]) == 2
    assert not any(needle in path.read_bytes() for path in index.directory.iterdir())
    assert len(list(index.directory.glob("features-*"))) == 1
    assert index.ids.tolist() == [1, 2, 3, 4, *range(6, 24)]
    assert torch.equal(index.features[2], kept)
    assert Gallery.load(index.directory, model).ids.tolist() == index.ids.tolist()


def test_remove_of_everything_leaves_an_empty_gallery_whose_numbers_go_on(model, index, folder):
    index.remove(index.ids.tolist())
    again = Gallery.load(index.directory, model)
    assert len(again) == 0
    again.add([another_image(folder, "new.jpg")], progress=False)
    assert again.ids.tolist() == [24]


@pytest.mark.parametrize("image", [99, "nowhere.jpg"])
def test_remove_of_an_unknown_image_removes_nothing(index, image):
    with pytest.raises(KeyError, match=r"has no image .*; nothing was removed"):
        index.remove([0, image])
    assert len(index) == 24


def test_search_filters_by_metadata(model, folder, index):
    folders = sorted({known["folder"] for known in index.metadata})
    assert folders == sorted(path.name for path in folder.iterdir())
    for where in ({"folder": folders[0]}, {"folder": [folders[0]]}, lambda known: known["folder"] == folders[0]):
        hits = index.search("a man", 24, where=where)
        assert {hit.metadata["folder"] for hit in hits} == {folders[0]}
        assert len(hits) == sum(known["folder"] == folders[0] for known in index.metadata)
    everything = [hit for hit in index.search("a man", 24) if hit.metadata["folder"] == folders[0]]
    assert [hit.path for hit in hits] == [hit.path for hit in everything]
    with pytest.raises(ValueError, match=f"has folder nowhere; known are: {folders[0]}"):
        index.search("a man", 5, where={"folder": "nowhere"})
    with pytest.raises(ValueError, match="no image of the gallery has camera; known are: folder"):
        index.search("a man", 5, where={"camera": 1})


def test_build_of_a_split_knows_persons(model, split):
    gallery = Gallery.build(model, split, progress=False)
    assert [known["person_id"] for known in gallery.metadata] == [record.person_id for record in split.records]
    person = split.records[0].person_id
    assert len(gallery.search("a man", 24, where={"person_id": person})) == 4


def test_build_with_metadata_of_its_own(model, folder):
    paths = sorted(folder.rglob("*.jpg"))[:3]
    gallery = Gallery.build(model, paths, metadata=[{"hour": n} for n in range(3)], progress=False)
    assert [hit.metadata["hour"] for hit in gallery.search("a man", 3, where={"hour": (1,)})] == [1]
    with pytest.raises(ValueError, match="3 images but metadata for 1"):
        Gallery.build(model, paths, metadata=[{}], progress=False)
    with pytest.raises(ValueError, match="metadata goes with a list of images"):
        Gallery.build(model, folder, metadata=[{}], progress=False)
    with pytest.raises(TypeError, match="images holds int, expected paths or ImageRecord"):
        Gallery.build(model, [7], progress=False)


def test_search_below_the_threshold_finds_nothing(index):
    best = index.search("a man", 1)[0].score
    assert len(index.search("a man", 24, threshold=best)) == 1
    assert index.search("a man", 24, threshold=0.999) == []
    for threshold in (1.5, "high"):
        with pytest.raises(ValueError, match=f"threshold is {threshold!r}, expected a cosine similarity"):
            index.search("a man", 1, threshold=threshold)


def test_search_with_the_calibrated_threshold(model, index, split):
    with pytest.raises(ValueError, match="never calibrated"):
        index.search("a man", 1, threshold="calibrated")
    calibration = index.calibrate(split, false_alarm_rate=0.1, progress=False)
    assert calibration.false_alarm_rate <= 0.1
    loaded = Gallery.load(index.directory, model)
    assert loaded.calibration == calibration
    assert all(hit.score >= calibration.threshold for hit in loaded.search("a man", 24, threshold="calibrated"))
    path = loaded.paths[0]
    for query in (Path(path), [Path(path)], Image.new("RGB", (48, 96))):
        with pytest.raises(ValueError, match="is measured with sentences, and images score higher"):
            loaded.search(query, 1, threshold="calibrated")


def test_calibrate_without_labels_is_reached_by_few_made_up_sentences(model, index):
    chosen = index.calibrate(false_alarm_rate=0.1, progress=False)
    assert (chosen.hit_rate, chosen.num_queries, chosen.gallery_size) == (None, 400, len(index))
    found = index.search(describe_people(400), 1, threshold="calibrated")
    assert sum(map(len, found)) == round(400 * chosen.false_alarm_rate)
    assert 0.05 < chosen.false_alarm_rate <= 0.1
    assert Gallery.load(index.directory, model).calibration == chosen
    mine = ["a man in a red coat", "a woman with a bag"]
    own = index.calibrate(sentences=mine, false_alarm_rate=0.5, progress=False)
    assert own.threshold == pytest.approx(min(hits[0].score for hits in index.search(mine, 1)), abs=1e-5)


def test_calibrate_with_too_much_or_too_little_is_refused(model, index, split):
    with pytest.raises(ValueError, match="a labelled split or sentences, not both"):
        index.calibrate(split, sentences=["a man"], progress=False)
    with pytest.raises(ValueError, match="1 sentences are too few"):
        index.calibrate(sentences=["a man"], progress=False)
    with pytest.raises(ValueError, match="the gallery is empty"):
        Gallery(model, [], torch.empty(0, model.embed_dim)).calibrate(progress=False)
    assert index.calibration is None


def test_search_for_several_queries_gives_a_list_of_lists(index):
    sentences = ["a man in a red coat", "a woman with a bag"]
    several = index.search([*sentences, index.paths[4]], 5)
    assert [[hit.index for hit in hits] for hits in several[:2]] == [
        [hit.index for hit in index.search(sentence, 5)] for sentence in sentences
    ]
    assert several[2][0].path == index.paths[4]
    by_features = index.search(index.features[[4, 9]], 1)
    assert [hits[0].index for hits in by_features] == [4, 9]
    with pytest.raises(ValueError, match="the list of queries is empty"):
        index.search([], 5)
    with pytest.raises(ValueError, match="1 features hold NaN"):
        index.search(torch.full((128,), torch.nan), 5)


def test_float16_storage_changes_scores_by_less_than_a_thousandth(model, folder, index, tmp_path):
    half = Gallery.build(model, folder, storage="float16", directory=tmp_path / "half", progress=False)
    loaded = Gallery.load(tmp_path / "half", model)
    assert loaded.features.dtype == torch.float16
    full = {hit.path: hit.score for hit in index.search("a man", 24)}
    assert all(abs(full[hit.path] - hit.score) < 1e-3 for hit in loaded.search("a man", 24))
    assert half.features.nbytes * 2 == index.features.nbytes
    with pytest.raises(ValueError, match="storage is 'int8', expected one of float32, float16"):
        Gallery.build(model, folder, storage="int8", progress=False)


def test_gallery_without_a_model_searches_by_features_only(index, folder):
    loaded = Gallery.load(index.directory)
    assert loaded.search(index.features[6], 1)[0].index == 6
    with pytest.raises(ValueError, match="loaded without a model, so it can only be searched by features"):
        loaded.search("a man", 1)
    with pytest.raises(ValueError, match="loaded without a model"):
        loaded.add([another_image(folder, "new.jpg")], progress=False)
    assert loaded.remove([0]) == 1


def test_notes_are_saved(model, index):
    index.notes["model"] = "promptreid-tiny"
    index.save()
    assert Gallery.load(index.directory, model).notes == {"model": "promptreid-tiny"}


def test_save_of_a_gallery_that_was_never_saved_needs_a_folder(model, folder):
    gallery = Gallery.build(model, list(folder.rglob("*.jpg"))[:1], progress=False)
    with pytest.raises(ValueError, match="the gallery was never saved; give a folder"):
        gallery.save()


@pytest.mark.parametrize("ending", [".npz", ".parquet"])
def test_export_holds_everything(index, tmp_path, ending):
    path = index.export(tmp_path / f"features{ending}")
    if os.name == "posix":
        assert path.stat().st_mode & 0o777 == 0o600
    if ending == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            ids, paths, metadata, features = (arrays[key] for key in ("ids", "paths", "metadata", "features"))
    else:
        parquet = pytest.importorskip("pyarrow.parquet")
        columns = parquet.read_table(path).to_pydict()
        ids, paths, metadata = columns["id"], columns["path"], columns["metadata"]
        features = np.array(columns["features"], dtype=np.float32)
    assert list(ids) == index.ids.tolist()
    assert list(paths) == [str(path) for path in index.paths]
    assert [json.loads(entry) for entry in metadata] == list(index.metadata)
    assert np.array_equal(features, index.features.numpy())


def test_export_to_another_ending_is_refused(index, tmp_path):
    with pytest.raises(ValueError, match=r"ends in \.csv, expected \.parquet or \.npz"):
        index.export(tmp_path / "features.csv")


def test_change_after_somebody_elses_joins_it(model, index, folder):
    first, second = Gallery.load(index.directory, model), Gallery.load(index.directory, model)
    first.remove([0])
    first.notes["first"] = 1
    first.add([another_image(folder, "new/a.jpg")], progress=False)
    second.notes["second"] = 2
    second.add([another_image(folder, "new/b.jpg", like=3)], progress=False)
    assert second.remove([1]) == 1
    again = Gallery.load(index.directory, model)
    assert again.ids.tolist() == second.ids.tolist() == list(range(2, 26))
    assert [path.name for path in again.paths[-2:]] == ["a.jpg", "b.jpg"]
    assert again.notes == second.notes == {"first": 1, "second": 2}
    with pytest.raises(KeyError, match="has no image '0'"):
        second.remove(0)
    with pytest.raises(ValueError, match="1 of 1 images are in the gallery already"):
        first.add([folder / "new" / "b.jpg"], progress=False)


def test_removals_of_two_processes_are_both_remembered(model, index, folder):
    first, second = Gallery.load(index.directory, model), Gallery.load(index.directory, model)
    one, two, three = first.paths[:3]
    second.remove(two)
    first.remove(one)  # takes in what the second removed
    second.restore(two)  # knows of the first's removal only once it has its turn
    first.remove(three)
    assert second.restore(one) == 1
    again = Gallery.load(index.directory, model)
    assert again.update(folder, progress=False).excluded == (str(three),)
    assert len(again) == len(index) - 1


def test_change_of_a_gallery_that_was_deleted_or_replaced_is_refused(index, tmp_path):
    first, second = Gallery.load(index.directory), Gallery.load(index.directory)
    Gallery(None, ["a.jpg"], torch.eye(1)).save(index.directory)
    with pytest.raises(CheckpointError, match="was replaced by a gallery of another model or storage"):
        first.remove(3)
    shutil.rmtree(index.directory)
    with pytest.raises(CheckpointError, match="was deleted since it was loaded"):
        second.remove(3)
    assert len(second) == 24


def test_save_on_a_full_disk_leaves_the_old_gallery(model, index, folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    before = sorted(path.name for path in index.directory.iterdir())
    for module, step in ((segment_files, "write_tensors_atomically"), (gallery_files, "write_bytes_atomically")):
        with monkeypatch.context() as patch:
            patch.setattr(module, step, lambda *_, **__: full())
            with pytest.raises(OSError, match=r"cannot write the gallery to .*No space left.* MB .*untouched"):
                index.add([another_image(folder, "new.jpg")], progress=False)
        assert len(index) == 24
        assert sorted(path.name for path in index.directory.iterdir()) == before
        assert len(Gallery.load(index.directory, model)) == 24


@pytest.mark.parametrize("kind", ["features", "images"])
def test_load_of_an_index_that_leads_out_of_its_folder_is_refused(model, index, kind):
    path = index.directory / "gallery.json"
    entries = json.loads(path.read_text())
    entries["segments"][0][kind] = "../secret.safetensors"
    del entries["sha256"]
    path.write_text(json.dumps(entries))
    with pytest.raises(CheckpointError, match="is damaged"):
        Gallery.load(index.directory, model)


@pytest.mark.parametrize("key", ["segments", "dimensions", "storage", "generation", "next_id", "header"])
def test_load_of_an_index_without_an_entry_is_refused(model, index, key):
    path = index.directory / "gallery.json"
    entries = json.loads(path.read_text())
    del entries["sha256"]
    for damaged in ({name: value for name, value in entries.items() if name != key}, {**entries, key: 7.5}):
        path.write_text(json.dumps(damaged))
        with pytest.raises(CheckpointError, match="index"):
            Gallery.load(index.directory, model)
