"""Galleries that grow: segments, images and features without files, retention, the log, and writers that take turns."""

import datetime
import json
import math
import os
import threading
from types import MappingProxyType

import numpy as np
import pytest
import torch
from PIL import Image

from promptreid import Gallery
from promptreid.errors import DatasetError
from promptreid.retrieval import segment_files
from promptreid.retrieval.audit import queries_in_words
from promptreid.retrieval.index import ExactIndex
from promptreid.retrieval.table import ImageTable


def unit(count, seed=0, dim=16):
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, dim, generator=generator), dim=-1)


def grown(folder, parts=5, rows=6, **options):
    """A gallery of several segments, bound to a folder."""
    gallery = Gallery(None, [], torch.empty(0, 16), **options)
    gallery.save(folder)
    for part in range(parts):
        keys = [f"cam_{part}/{row}.jpg" for row in range(rows)]
        metadata = [{"camera": f"cam_{part}", "hour": row} for row in range(rows)]
        gallery.add_features(unit(rows, seed=part), keys, metadata=metadata)
    return gallery


def files_of(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.name != "gallery.lock"}


def test_add_and_header_leave_other_segments_alone(tmp_path):
    gallery = grown(tmp_path / "index")
    before = files_of(gallery.directory)
    gallery.add_features(unit(3, seed=9), ["x", "y", "z"])
    gallery.notes["place"] = "yard"
    gallery.save()
    after = files_of(gallery.directory)
    assert {name for name, when in before.items() if after.get(name) != when} == {"gallery.json"}
    assert len(after) == len(before) + 2


def test_key_comes_back_as_it_was_given_and_names_its_image(tmp_path):
    keys = ["gate/000017", "s3://bucket/a.jpg"]
    gallery = Gallery(None, [], torch.empty(0, 16))
    gallery.add_features(unit(2), keys)
    gallery.save(tmp_path / "index")
    hits = Gallery.load(tmp_path / "index").search(unit(2)[0], 2)
    assert [sorted(names) for names in zip(*((hit.key, hit.as_dict()["path"]) for hit in hits), strict=True)] == [
        keys
    ] * 2
    assert gallery.remove([hit.key for hit in hits]) == 2


def test_segments_are_searched_and_loaded_as_one(tmp_path):
    gallery = grown(tmp_path / "index")
    whole = Gallery(None, gallery.paths, gallery.features, metadata=gallery.metadata)
    queries = unit(7, seed=99)
    for one in (gallery, Gallery.load(gallery.directory), Gallery.load(gallery.directory).to("cpu")):
        for where in (None, {"camera": ["cam_1", "cam_3"]}, {"hour": (2, 4)}, lambda known: known["hour"] == 5):
            for found, expected in zip(
                one.search(queries, 9, where=where), whole.search(queries, 9, where=where), strict=True
            ):
                assert [(hit.path, hit.index, hit.id, hit.metadata) for hit in found] == [
                    (hit.path, hit.index, hit.id, hit.metadata) for hit in expected
                ]
                assert [hit.score for hit in found] == pytest.approx([hit.score for hit in expected], abs=1e-6)


def test_equal_scores_in_several_segments_give_the_earlier_first(tmp_path):
    gallery = grown(tmp_path / "index", parts=3)
    gallery.add_features(unit(6, seed=0), [f"again/{row}" for row in range(6)])
    for k in (1, 2, 3):
        assert [hit.index for hit in gallery.search(unit(6, seed=0)[4], k)][:2] == [4, 22][:k]


def test_removal_leaves_no_bytes_of_features_names_or_metadata_at_once(tmp_path):
    gallery = grown(tmp_path / "index")
    gallery.add_features(
        unit(2, seed=50), ["person/ada.png", "person/bob.png"], metadata=[{"who": "Ada"}, {"who": "Bob"}]
    )
    needles = [unit(2, seed=50)[0].numpy().tobytes(), b"Ada"]
    assert all(any(needle in path.read_bytes() for path in gallery.directory.iterdir()) for needle in needles)
    before = files_of(gallery.directory)
    assert gallery.remove("person/ada.png") == 1
    after = files_of(gallery.directory)
    assert not any(needle in path.read_bytes() for path in gallery.directory.iterdir() for needle in needles)
    assert len(before.keys() - after.keys()) == 2  # the other segments are not written again
    assert gallery.search(unit(2, seed=50)[1], 1)[0].metadata == {"who": "Bob"}


def test_many_small_additions_are_joined_and_compact_joins_all(tmp_path):
    gallery = grown(tmp_path / "index", parts=60, rows=2)
    assert len(gallery._store.exact.segments) < 24
    features, paths = gallery.features.clone(), gallery.paths
    gallery.compact()
    assert len(list(gallery.directory.glob("features-*"))) == 1
    again = Gallery.load(gallery.directory)
    assert torch.equal(again.features, features)
    assert again.paths == paths
    assert again.metadata[37] == gallery.metadata[37]


def test_rows_are_written_again_a_few_times_only():
    index = ExactIndex(ImageTable.of([]), torch.empty(0, 4))
    copied = 0
    for number in range(3000):
        known = {id(segment) for segment in index.segments}
        index.add(ImageTable.of([str(number)], first_id=number), torch.ones(1, 4))
        copied += sum(len(segment) for segment in index.segments if id(segment) not in known)
    assert copied < 3000 * 12
    assert len(index.segments) < 60
    assert index.images.ids.tolist() == list(range(3000))


def test_segment_is_never_larger_than_it_may_be(tmp_path, monkeypatch):
    monkeypatch.setattr(segment_files, "_SEGMENT_BYTES", 16 * 4 * 10)  # ten rows
    gallery = grown(tmp_path / "index", parts=20, rows=3)
    gallery.compact()
    sizes = [len(segment) for segment in gallery._store.exact.segments]
    assert max(sizes) <= 10
    assert len(sizes) == 7
    whole = Gallery(None, gallery.paths, gallery.features)
    whole.save(tmp_path / "whole")
    assert [len(segment) for segment in whole._store.exact.segments] == [10] * 6
    assert Gallery.load(tmp_path / "whole").paths == gallery.paths
    more = Gallery(None, gallery.paths[:15], gallery.features[:15])
    more.save(tmp_path / "more")
    assert [len(segment) for segment in more._store.exact.segments] == [10, 5]


def test_images_in_memory_are_added_by_key(model, tmp_path):
    gallery = Gallery(model, [], torch.empty(0, model.embed_dim))
    gallery.save(tmp_path / "index")
    crops = [Image.new("RGB", (20, 50), color) for color in ("red", "blue", "green")]
    changes = gallery.add(
        crops, keys=["cam/1", "cam/2", 'it\'s a\n"name"'], metadata=[{"n": 1}, {"n": 2}, {"n": 3}], progress=False
    )
    assert changes.added == 3
    hits = gallery.search(crops[2], 1)
    assert (str(hits[0].path), hits[0].metadata) == ('it\'s a\n"name"', {"n": 3})
    assert gallery.add([np.zeros((50, 20, 3), np.uint8)], keys=["cam/4"], progress=False).added == 1
    with pytest.raises(ValueError, match="1 of 1 images are in the gallery already, such as cam/1"):
        gallery.add(crops[:1], keys=["cam/1"], progress=False)
    assert gallery.remove("cam/1") == 1
    assert gallery.add(crops[:1], keys=["cam/1"], progress=False).added == 1
    assert len(Gallery.load(gallery.directory, model)) == 4


def test_update_of_a_folder_leaves_images_without_files_alone(model, folder, tmp_path):
    gallery = Gallery.build(model, folder, progress=False)
    gallery.add([Image.new("RGB", (20, 50))], keys=["live/1"], progress=False)
    changes = gallery.update(folder, prune=True, progress=False)
    assert (changes.unchanged, changes.removed, changes.gone) == (24, 0, ())
    assert len(gallery) == 25


@pytest.mark.parametrize(
    ("keys", "error", "words"),
    [
        (["a"], ValueError, "2 images but 1 keys; give one key per image"),
        (["a", ""], ValueError, "a key is empty"),
        (["a", 3], TypeError, "keys holds int, expected texts"),
        (["a", "./a"], ValueError, "is given twice"),
    ],
)
def test_bad_keys_are_refused(model, keys, error, words):
    gallery = Gallery(model, [], torch.empty(0, model.embed_dim))
    with pytest.raises(error, match=words):
        gallery.add([Image.new("RGB", (20, 50))] * 2, keys=keys, progress=False)
    assert len(gallery) == 0


def test_keys_with_files_or_without_images_are_refused(model):
    gallery = Gallery(model, [], torch.empty(0, model.embed_dim))
    with pytest.raises(TypeError, match="keys goes with images in memory"):
        gallery.add(["a.jpg"], keys=["a"], progress=False)
    for odd in ({"a": 1}, b"1"):
        with pytest.raises(TypeError, match=f"images holds {type(odd).__name__}, expected PIL images"):
            gallery.add([odd], keys=["a"], progress=False)
    with pytest.raises(DatasetError, match="the list of images is empty"):
        gallery.add([], keys=[], progress=False)
    with pytest.raises(TypeError, match="metadata of a is 3, expected a dictionary"):
        gallery.add([Image.new("RGB", (20, 50))], keys=["a"], metadata=[3], progress=False)


@pytest.mark.parametrize(
    ("features", "words"),
    [
        (torch.ones(2, 3), r"features have shape \(2, 3\) .*expected floating point \(2, 16\)"),
        (torch.ones(2, 16, dtype=torch.int64), "dtype torch.int64, expected floating point"),
        (torch.ones(2, 16), "2 of 2 features are not of unit length"),
        (torch.zeros(2, 16), "2 of 2 features are not of unit length"),
        (torch.ones(2, 16, dtype=torch.float64), "2 of 2 features are not of unit length"),
        (torch.full((2, 16), torch.nan), "2 features hold NaN or infinity"),
    ],
)
def test_add_features_refuses_what_cannot_be_compared(features, words):
    gallery = Gallery(None, [], torch.empty(0, 16))
    with pytest.raises(ValueError, match=words):
        gallery.add_features(features, ["a", "b"])
    assert len(gallery) == 0


def test_add_features_keeps_a_copy_in_the_gallerys_storage():
    gallery = Gallery(None, [], torch.empty(0, 16, dtype=torch.float16))
    given = unit(2)
    gallery.add_features(given, ["a", "b"])
    expected = given.half()
    given.zero_()
    assert torch.equal(gallery.features, expected)
    assert gallery.add_features(unit(1, seed=3).numpy(), "c").added == 1


@pytest.mark.parametrize(
    "given", [unit(4).double(), unit(4).double().numpy(), unit(4).bfloat16()], ids=["float64", "numpy", "bfloat16"]
)
def test_features_of_another_precision_are_kept_as_float32(tmp_path, given):
    gallery = Gallery(None, ["a", "b"], given[:2])
    gallery.add_features(given[2:], ["c", "d"])
    gallery.save(tmp_path / "index")
    again = Gallery.load(gallery.directory)
    assert again.features.dtype == torch.float32
    assert torch.equal(again.features, torch.as_tensor(given).float())
    assert again.search(torch.as_tensor(given)[3], 1)[0].key == "d"


def test_remove_by_filter(tmp_path):
    gallery = grown(tmp_path / "index")
    assert gallery.remove(where={"camera": "cam_2", "hour": (0, 3)}) == 4
    assert sum(known["camera"] == "cam_2" for known in gallery.metadata) == 2
    with pytest.raises(ValueError, match="has camera cam_9; known are"):
        gallery.remove(where={"camera": "cam_9"})
    with pytest.raises(TypeError, match="images and where= or older_than= are both given; give one or the other"):
        gallery.remove(3, where={"camera": "cam_1"})
    with pytest.raises(TypeError, match="nothing is named to be removed; give an image's path or number, or where="):
        gallery.remove()
    assert len(Gallery.load(gallery.directory)) == 26


def test_remove_what_is_older(tmp_path):
    now = datetime.datetime.now(datetime.timezone.utc)
    ages = [40, 20, 0]
    times = [(now - datetime.timedelta(days=days)).isoformat() for days in ages]
    gallery = Gallery(None, [], torch.empty(0, 16))
    gallery.add_features(unit(3), ["a", "b", "c"], metadata=[{"time": when} for when in times])
    gallery.add_features(unit(1, seed=4), ["d"], metadata=[{"time": (now - datetime.timedelta(days=50)).timestamp()}])
    gallery.add_features(unit(1, seed=5), ["e"])  # without a time it is from now
    assert (
        gallery.remove(older_than=datetime.timedelta(days=30), where=lambda known: isinstance(known.get("time"), str))
        == 1
    )
    assert gallery.remove(older_than=datetime.timedelta(days=30)) == 1
    assert [str(path) for path in gallery.paths] == ["b", "c", "e"]
    assert gallery.remove(older_than=datetime.timedelta(days=30)) == 0
    assert gallery.remove(older_than=(now - datetime.timedelta(days=5)).date()) == 1
    assert gallery.remove(older_than=now + datetime.timedelta(days=1)) == 2


def test_remove_what_is_older_goes_by_the_files_time_and_remembers_files_that_are_still_there(tmp_path):
    old, gone = tmp_path / "old.jpg", tmp_path / "gone.jpg"
    for path in (old, gone):
        path.write_bytes(b"x")
        os.utime(path, (1e9, 1e9))
    gallery = Gallery(None, [old, gone], unit(2))
    gone.unlink()
    assert gallery.remove(older_than=datetime.date(2010, 1, 1)) == 2
    assert [mark["path"] for mark in gallery._store.header["removed"]] == [str(old)]


@pytest.mark.parametrize(
    ("metadata", "older_than", "error", "words"),
    [
        ({}, 30, TypeError, r"older_than is 30, expected a date, or an age such as timedelta\(days=30\)"),
        ({}, datetime.timedelta(1), ValueError, "the time of 1 images is unknown"),
        ({"time": "yesterday"}, datetime.timedelta(1), ValueError, "'yesterday' among the metadata is not in ISO form"),
    ],
)
def test_remove_by_an_age_that_is_not_known_is_refused(metadata, older_than, error, words):
    gallery = Gallery(None, ["nowhere.jpg"], unit(1), metadata=[metadata])
    with pytest.raises(error, match=words):
        gallery.remove(older_than=older_than)
    assert len(gallery) == 1


def test_audit_log_names_who_asked_what_and_holds_no_image(tmp_path):
    gallery = grown(tmp_path / "index")
    gallery.search(unit(1)[0], 3)
    gallery.keep_audit_log()
    other = Gallery.load(gallery.directory)
    other.search(unit(2), 3, where={"camera": "cam_1"})
    other.remove([0, 1])
    lines = [json.loads(line) for line in (gallery.directory / "audit.jsonl").read_text().splitlines()]
    assert [(line["action"], line.get("queries"), line.get("found"), line.get("images")) for line in lines] == [
        ("search", ["(2 features)"], [3, 3], None),
        ("remove", None, None, 2),
    ]
    assert lines[0]["where"] == "{'camera': 'cam_1'}"
    assert all(line["user"] and datetime.datetime.fromisoformat(line["time"]).tzinfo for line in lines)
    if os.name == "posix":
        assert (gallery.directory / "audit.jsonl").stat().st_mode & 0o777 == 0o600
    other.keep_audit_log(False)
    other.search(unit(2), 3)
    assert len((gallery.directory / "audit.jsonl").read_text().splitlines()) == 2
    with pytest.raises(ValueError, match="was never saved; save it"):
        Gallery(None, ["a"], unit(1)).keep_audit_log()


def test_audit_log_has_sentences_as_they_were_asked():
    assert queries_in_words("a man") == ["a man"]
    assert queries_in_words(["a man", "a woman"]) == queries_in_words(("a man", "a woman")) == ["a man", "a woman"]


def test_search_that_cannot_be_logged_is_refused(tmp_path):
    gallery = grown(tmp_path / "index")
    gallery.keep_audit_log()
    (gallery.directory / "audit.jsonl").mkdir()
    with pytest.raises(OSError, match=r"cannot write the audit log .*so this one was not done"):
        gallery.search(unit(1)[0], 3)
    with pytest.raises(OSError, match="cannot write the audit log"):
        gallery.remove(3)
    assert len(Gallery.load(gallery.directory)) == 30


WRITER = """
import sys, torch
from promptreid import Gallery
gallery = Gallery.load(sys.argv[1])
for number in range(6):
    features = torch.nn.functional.normalize(torch.randn(4, 16), dim=-1)
    gallery.add_features(features, [f"{sys.argv[2]}/{number}/{row}" for row in range(4)])
"""


def test_writers_in_several_processes_lose_nothing(fork, tmp_path):
    gallery = grown(tmp_path / "index", parts=1)
    writers = [fork(WRITER, gallery.directory, name) for name in ("a", "b")]
    assert [writer.communicate() for writer in writers] == [("", ""), ("", "")]
    again = Gallery.load(gallery.directory)
    assert len(again) == len(set(again.paths)) == len(set(again.ids.tolist())) == 6 + 48


def test_writers_in_several_threads_lose_nothing(tmp_path):
    gallery = grown(tmp_path / "index", parts=1)

    def write(name):
        for number in range(5):
            gallery.add_features(unit(2, seed=number), [f"{name}/{number}/a", f"{name}/{number}/b"])

    threads = [threading.Thread(target=write, args=(name,)) for name in "xyz"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(gallery) == len(set(Gallery.load(gallery.directory).ids.tolist())) == 6 + 30


def test_notes_that_json_does_not_take_are_refused_before_anything_is_written(tmp_path):
    gallery = grown(tmp_path / "index")
    gallery.keep_audit_log()
    gallery.notes["when"] = object()
    before = {path.name: path.read_bytes() for path in gallery.directory.iterdir()}
    with pytest.raises(TypeError, match="notes hold what JSON does not take"):
        gallery.add_features(unit(2, seed=9), ["new/a", "new/b"])
    with pytest.raises(TypeError, match="notes hold what JSON does not take"):
        gallery.remove(0)
    assert {path.name: path.read_bytes() for path in gallery.directory.iterdir()} == before
    with pytest.raises(TypeError, match="notes hold what JSON does not take"):
        gallery.save(tmp_path / "other")
    gallery.notes["when"] = gallery.notes
    with pytest.raises(TypeError, match="notes hold what JSON does not take"):
        gallery.save(tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_notes_that_json_has_no_number_for_are_null(tmp_path):
    gallery = grown(tmp_path / "index")
    gallery.notes.update(spread=math.nan, limits=(0.5, math.inf))
    gallery.save()
    json.loads((gallery.directory / "gallery.json").read_bytes(), parse_constant=pytest.fail)
    assert Gallery.load(gallery.directory).notes == {"spread": None, "limits": [0.5, None]}


def test_notes_with_a_mapping_are_kept_and_so_are_the_images(tmp_path):
    gallery = grown(tmp_path / "index", parts=1)
    gallery.notes["run"] = MappingProxyType({"epochs": 3})
    gallery.add_features(unit(3, seed=1), ["a", "b", "c"])
    assert Gallery.load(gallery.directory).notes == {"run": {"epochs": 3}}
    gallery.save(tmp_path / "other")
    assert gallery.directory == tmp_path / "other"
    del gallery.notes["run"]
    gallery.add_features(unit(1, seed=2), ["d"])
    again = Gallery.load(gallery.directory)
    assert (len(again), again.notes) == (10, {})


@pytest.mark.parametrize("value", [math.nan, (0.5, 1), {1: 2}, MappingProxyType({"x": 1})], ids=repr)
def test_note_that_json_writes_in_another_way_does_not_replace_what_another_wrote(tmp_path, value):
    gallery = grown(tmp_path / "index", parts=1)
    gallery.notes["loss"] = value
    gallery.save()
    other = Gallery.load(gallery.directory)
    other.notes["loss"] = "of another"
    other.save()
    gallery.add_features(unit(1, seed=9), ["new"])
    assert gallery.notes == Gallery.load(gallery.directory).notes == {"loss": "of another"}


@pytest.mark.parametrize("value", [None, math.nan])
def test_note_of_nothing_is_kept_beside_what_another_wrote(tmp_path, value):
    gallery = grown(tmp_path / "index", parts=1)
    other = Gallery.load(gallery.directory)
    other.notes["place"] = "yard"
    other.save()
    gallery.notes["spread"] = value
    gallery.save()
    assert Gallery.load(gallery.directory).notes == {"place": "yard", "spread": None}
    assert gallery.notes == {"place": "yard", "spread": value}


def test_notes_keep_their_form_in_memory_when_another_wrote(tmp_path):
    gallery = grown(tmp_path / "index", parts=1)
    gallery.notes.update({3: "three", "size": (1, 2)})
    gallery.save()
    gallery.notes["late"] = {1: (2,)}
    other = Gallery.load(gallery.directory)
    other.notes["place"] = "yard"
    other.save()
    gallery.add_features(unit(1, seed=9), ["new"])
    assert gallery.notes == {3: "three", "size": (1, 2), "late": {1: (2,)}, "place": "yard"}
    written = {"3": "three", "size": [1, 2], "late": {"1": [2]}, "place": "yard"}
    assert Gallery.load(gallery.directory).notes == written


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_features_of_a_written_gallery_begin_at_a_cache_line(tmp_path, dtype):
    for count in (1, 9, 1000):
        Gallery(None, [f"{row}" for row in range(count)], unit(count).to(dtype)).save(tmp_path / "index")
        (segment,) = Gallery.load(tmp_path / "index")._store.exact.segments
        assert segment.features.data_ptr() % 64 == 0


def test_values_of_a_key_are_named_once_in_their_order(tmp_path):
    gallery = grown(tmp_path / "index")
    gallery.add_features(unit(1, seed=9), ["new/a"], metadata=[{"camera": "cam_9"}])
    assert gallery.values_of("camera") == list(dict.fromkeys(entry["camera"] for entry in gallery.metadata))
    assert gallery.values_of("nothing") == []
