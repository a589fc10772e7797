"""Keeping a store in order: files joined, an index that finds the same, erasing that leaves no byte behind."""

import argparse
import os
import shutil
from datetime import timedelta

import pytest
import torch
from torch.nn.functional import normalize

from promptreid.retrieval import lance_removal, lance_store, lance_upkeep
from promptreid.retrieval.lance_connection import require_lance
from promptreid.retrieval.lance_removal import erase, forget_removed, remember_removed, removed_digests, rewrite
from promptreid.retrieval.lance_store import LanceStore, renumbered
from promptreid.retrieval.lance_upkeep import describe, optimize
from promptreid.retrieval.table import ImageTable

pytest.importorskip("lancedb")
pytest.importorskip("lance")

DIMENSIONS, ROWS = 16, 2400
QUIET = timedelta(0)


def add(store, keys, metadata=None, made=None):
    table = renumbered(ImageTable.of_keys(list(keys), metadata=metadata))
    made = normalize(torch.randn(len(table), store.dimensions), dim=-1) if made is None else made
    store.add(table, made)
    return made


def files_with(store, needle):
    folder = store.place.folder / "images.lance"
    return [path.name for path in folder.rglob("*") if path.is_file() and needle in path.read_bytes()]


@pytest.fixture
def store(tmp_path):
    return LanceStore.create(tmp_path / "store", dimensions=DIMENSIONS)


@pytest.fixture
def few(monkeypatch):
    """Stores of a thousand images have an index."""
    for module in (lance_store, lance_removal, lance_upkeep):
        monkeypatch.setattr(module, "FEW", 1000)


def fill(store, begin=0, end=ROWS, step=300):
    for first in range(begin, end, step):
        rows = range(first, min(first + step, end))
        metadata = [{"camera": f"cam_{row % 4}", "hour": row % 24} for row in rows]
        add(store, [f"{row:05}.jpg" for row in rows], metadata)


def recall(store, where=None, queries=None):
    queries = normalize(torch.randn(20, DIMENSIONS), dim=-1) if queries is None else queries
    right = [{hit.id for hit in hits} for hits in store.nearest(queries, 10, where=where, exact=True)]
    found = [{hit.id for hit in hits} for hits in store.nearest(queries, 10, where=where)]
    assert all(len(hits) == 10 for hits in found)
    return sum(len(one & other) for one, other in zip(found, right, strict=True)) / 200


def test_optimize_joins_files_and_deletes_old_versions(store):
    fill(store, end=900, step=100)
    assert (describe(store).fragments, describe(store).images) == (9, 900)
    info = optimize(store, keep=QUIET)
    assert (info.fragments, info.images, info.versions, info.indexed) == (1, 900, 1, 0)
    assert info.keys == ("camera", "hour")
    assert info.num_bytes == sum(path.stat().st_size for path in (store.place.folder / "images.lance").rglob("*.*"))
    modes = {path.stat().st_mode & 0o077 for path in store.place.folder.rglob("*")}
    assert modes == {0}


def test_index_finds_nearly_all_that_exact_search_finds_also_in_a_camera(store, few):
    fill(store)
    info = optimize(store)
    assert (info.indexed, info.partitions) == (ROWS, ROWS // 400)
    assert store._probes(None) == ROWS // 400
    assert recall(store) >= 0.95
    assert recall(store, {"camera": ["cam_1", "cam_2"]}) >= 0.95
    assert recall(store, {"camera": "cam_1"}) == 1.0  # so few are compared one by one
    scores = store.nearest(normalize(torch.randn(1, DIMENSIONS), dim=-1), 10)[0]
    assert [hit.score for hit in scores] == sorted((hit.score for hit in scores), reverse=True)


def test_a_filter_looks_through_more_lists(store, few, monkeypatch):
    monkeypatch.setattr(lance_upkeep, "_LIST_IMAGES", 40)
    monkeypatch.setattr(lance_store, "_LISTS", 5)
    fill(store)
    assert optimize(store).partitions == 60
    assert store._probes(None) == 5
    assert store._probes("integer_hour < 12") == 10
    assert store._probes("integer_hour < 6") is None


@pytest.mark.parametrize(("images", "lists"), [(1_000_000, 2_500), (10_000_000, 25_000), (100_000_000, 25_000)])
def test_every_list_is_searched_up_to_ten_million_images(store, monkeypatch, images, lists):
    monkeypatch.setattr(store, "_now", lambda: argparse.Namespace(images=images, partitions=images // 400))
    assert store._probes(None) == lists


@pytest.mark.parametrize(("set_before", "after"), [(None, "warn,lance_index::vector::hnsw=error"), ("debug", "debug")])
def test_lances_log_is_quieter_unless_the_user_has_set_it(monkeypatch, set_before, after):
    monkeypatch.delenv("LANCE_LOG", raising=False)
    if set_before is not None:
        monkeypatch.setenv("LANCE_LOG", set_before)
    require_lance()
    assert os.environ["LANCE_LOG"] == after


def test_sentences_across_a_modality_gap_find_images_in_any_of_many_lists(store, few, monkeypatch):
    monkeypatch.setattr(lance_upkeep, "_LIST_IMAGES", 4)
    gap = normalize(torch.randn(DIMENSIONS), dim=0)
    made = normalize(normalize(torch.randn(ROWS, DIMENSIONS), dim=-1) + gap, dim=-1)
    add(store, [f"{row:05}.jpg" for row in range(ROWS)], made=made)
    assert optimize(store).partitions == ROWS // 4
    assert store._probes(None) == ROWS // 4
    sentences = normalize(normalize(torch.randn(20, DIMENSIONS), dim=-1) - gap, dim=-1)
    assert recall(store, queries=sentences) >= 0.95
    with monkeypatch.context() as fewer:
        fewer.setattr(lance_store, "_LISTS", 15)
        assert recall(store, queries=sentences) < 0.8


def test_images_that_the_index_does_not_have_yet_are_found(store, few):
    fill(store)
    optimize(store)
    made = add(store, ["new.jpg"], [{"camera": "cam_9"}])
    assert describe(store).indexed == ROWS
    assert str(store.nearest(made, 1)[0][0].path) == "new.jpg"
    assert optimize(store).indexed == ROWS + 1
    assert str(store.nearest(made, 1)[0][0].path) == "new.jpg"


def test_index_that_was_outgrown_is_built_again_and_many_parts_are_joined(store, few, monkeypatch):
    monkeypatch.setattr(lance_upkeep, "_MOST_PARTS", 2)
    fill(store)
    assert optimize(store).partitions == 6
    for part in range(3):
        fill(store, ROWS + 100 * part, ROWS + 100 * (part + 1))
        assert optimize(store).indexed == ROWS + 100 * (part + 1)
        (index,) = [one for one in store.place.dataset("images").describe_indices() if one.field_names == ["vector"]]
        assert len(index.segments) <= 2
    fill(store, 10_000, 13_000)
    assert optimize(store).partitions == 15
    assert recall(store) >= 0.95


def test_erased_images_leave_no_byte_in_any_file(store):
    # One file, in which one image is too few to be worth being written again, were it not to be erased.
    keys = [f"{row:05}.jpg" for row in range(300)] + ["secret person.jpg"]
    made = add(store, keys, [{"camera": "open"}] * 300 + [{"camera": "hidden cam"}])
    needles = (b"secret person", b"hidden cam", made[-1].numpy().tobytes()[:32])
    assert [bool(files_with(store, needle)) for needle in needles] == [True] * 3
    store.delete_keys(["00001.jpg"])
    assert describe(store).deleted == 1
    done = erase(store, ["secret person.jpg"])
    assert (done.images, done.proven, done.left) == (1, True, ())
    assert done.searched_bytes > 299 * DIMENSIONS * 4
    assert [files_with(store, needle) for needle in needles] == [[]] * 3
    info = describe(store)
    assert (info.images, info.deleted, info.versions) == (299, 0, 1)
    assert {path.stat().st_mode & 0o077 for path in store.place.folder.rglob("*")} == {0}


def test_erasing_cleans_indexes_of_files_of_which_nothing_is_left(store, few):
    fill(store, step=ROWS)
    fill(store, 5000, 5300)  # a file of its own, and in the same part of each index
    for column in ("key", "text_camera", "integer_hour"):
        lance_upkeep.index_column(store.place.dataset("images"), column)
    lance_upkeep.index_features(store.place.dataset("images"))
    assert describe(store).fragments == 2
    assert describe(store).indexed == ROWS + 300
    done = erase(store, [f"{row:05}.jpg" for row in range(5000, 5300)])
    assert (done.images, done.proven, done.left) == (300, True, ())
    for index in store.place.dataset("images").describe_indices():
        entries = [lance_removal._entries(store, str(segment.uuid)) for segment in index.segments]
        assert sum(entries) == index.num_rows_indexed == ROWS, index.name
    assert recall(store) >= 0.95


def test_index_entries_of_erased_images_are_noticed(store, few, monkeypatch):
    fill(store)
    optimize(store, keep=QUIET)
    monkeypatch.setattr(lance_removal, "_rebuild", lambda data, column: None)
    monkeypatch.setattr(lance_removal, "_entries", lambda store, uuid: ROWS + 1)
    done = erase(store, ["00007.jpg"])
    assert not done.proven
    assert any("index of vector has entries" in words for words in done.left)


def test_files_of_killed_writers_are_not_taken_for_proof(store):
    fill(store, end=300)
    data = store.place.folder / "images.lance" / "data"
    shutil.copyfile(next(data.iterdir()), data / "0101_left_by_a_killed_writer.lance")
    done = erase(store, ["00002.jpg"])
    assert not done.proven
    assert "1 files of writers that are at work or were killed" in done.left[0]
    assert "bytes of an erased image are in data/0101_left_by_a_killed_writer.lance" in done.left[1]
    assert erase(store, ["00003.jpg"], alone=True).proven
    assert not (data / "0101_left_by_a_killed_writer.lance").exists()


def test_a_copy_that_stays_is_no_trace_of_what_was_erased(store):
    fill(store, end=300)
    made = add(store, ["person_1"])
    add(store, ["person_10"], made=made)
    done = erase(store, ["person_1"])
    assert (done.proven, done.left) == (True, ())
    assert str(store.nearest(made, 1)[0][0].path) == "person_10"


def test_erasing_by_filter_and_what_is_not_there(store):
    fill(store, end=240)
    assert erase(store, where={"camera": "cam_1", "hour": (0, 11)}).images == 30
    assert len(store) == 210
    with pytest.raises(ValueError, match="no image of the store passes"):
        erase(store, where={"camera": "cam_1", "hour": (0, 11)})
    with pytest.raises(KeyError, match=r"no image 'nobody.jpg'; nothing was erased"):
        erase(store, ["00000.jpg", "nobody.jpg"])
    assert len(store) == 210


def test_what_was_erased_is_remembered_by_a_digest_alone(store):
    fill(store, end=30)
    erase(store, ["00003.jpg"])
    remember_removed(store, ["00003.jpg", "00004.jpg"])
    assert len(removed_digests(store)) == 2
    folder = store.place.folder / "removed.lance"
    assert not [path for path in folder.rglob("*") if path.is_file() and b"00003.jpg" in path.read_bytes()]
    forget_removed(store, ["00003.jpg"])
    assert len(removed_digests(store)) == 1


def test_optimize_and_erase_beside_a_writer_lose_nothing(store, few):
    other = LanceStore.open(store.place.folder)
    for number in range(4):
        fill(other, 300 * number, 300 * (number + 1), step=100)
        optimize(store)
        add(other, [f"late_{number}.jpg"])
    rewrite(store, alone=False)
    assert len(store) == len(other) == 1204
    assert erase(store, ["late_2.jpg"]).proven
    assert len(other) == 1203
