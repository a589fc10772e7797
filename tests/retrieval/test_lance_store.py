"""A store in a folder: what it refuses, what it finds, and many writers at once."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from promptreid import Gallery
from promptreid.defaults import is_store
from promptreid.errors import MissingExtraError, StoreError, StoreUnreachableError
from promptreid.retrieval import lance_connection, lance_store
from promptreid.retrieval.filters import Between, Prefix, matcher
from promptreid.retrieval.lance_store import LanceStore, renumbered
from promptreid.retrieval.table import ImageTable

pytest.importorskip("lancedb")
pytest.importorskip("lance")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

DIMENSIONS = 16
WRITER = Path(__file__).with_name("merging_writer.py")


def images(keys, metadata=None):
    return renumbered(ImageTable.of_keys(list(keys), metadata=metadata))


def features(count, dimensions=DIMENSIONS):
    return normalize(torch.randn(count, dimensions), dim=-1)


@pytest.fixture
def store(tmp_path):
    return LanceStore.create(tmp_path / "store", dimensions=DIMENSIONS)


def keys_of(store, where=None):
    if not len(store):
        return []
    return sorted(str(hit.path) for hit in store.nearest(features(1), len(store), where=where, exact=True)[0])


def test_store_finds_what_the_exact_gallery_finds(store):
    known = [{"camera": f"cam_{row % 3}", "hour": row % 24} for row in range(60)]
    keys, made = [f"{row}.jpg" for row in range(60)], features(60)
    store.add(images(keys, known), made)
    gallery = Gallery(None, keys, made, metadata=known)
    for where in (None, {"camera": ["cam_0", "cam_2"], "hour": (0, 11)}):
        for query in features(3):
            right = gallery.search(query, 7, where=where)
            found = store.nearest(query[None], 7, where=where)[0]
            assert [hit.path for hit in found] == [hit.path for hit in right]
            assert [hit.score for hit in found] == pytest.approx([hit.score for hit in right], abs=1e-5)
            assert [hit.metadata for hit in found] == [dict(hit.metadata) for hit in right]


@pytest.mark.parametrize("k", [5, 2**40, 10**30])
def test_store_gives_all_images_where_more_are_asked_for(store, k):
    assert store.nearest(features(1), k) == [[]]
    store.add(images(["a", "b", "c"]), features(3))
    for exact in (False, True):
        assert len(store.nearest(features(1), k, exact=exact)[0]) == 3


def test_store_is_an_index_of_a_gallery(store):
    keys, made = [f"{row}.jpg" for row in range(20)], features(20)
    gallery = Gallery(None, keys, made, index=store)
    assert len(store) == 20
    gallery.remove([3, 4])
    gallery.add_features(features(2), ["new_a", "new_b"], metadata=[{"hour": 3}, {"hour": 4}])
    assert len(store) == len(gallery) == 20
    assert [hit.id for hit in gallery.search(made[7], 1)] == [7]
    assert [str(hit.path) for hit in gallery.search(made[7], 5, where={"hour": 4})] == ["new_b"]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (torch.full((2, DIMENSIONS), torch.nan), "NaN or infinity"),
        (torch.full((2, DIMENSIONS), torch.inf), "NaN or infinity"),
        (torch.zeros(2, DIMENSIONS), "not of unit length"),
        (torch.ones(2, DIMENSIONS), "not of unit length"),
    ],
)
def test_features_and_queries_that_are_no_directions_are_refused(store, wrong, words):
    with pytest.raises(ValueError, match=words):
        store.add(images(["a", "b"]), wrong)
    assert len(store) == 0
    store.add(images(["a", "b"]), features(2))
    with pytest.raises(ValueError, match=words):
        store.nearest(wrong, 3)
    with pytest.raises(ValueError, match=words):
        store.search(wrong, 3, where={"camera": "a"})


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_features_of_another_precision_are_taken(store, dtype):
    given = features(3).to(dtype)
    store.add(images(["a", "b", "c"]), given)
    hits = store.nearest(given, 1)
    assert [hit.key for (hit,) in hits] == ["a", "b", "c"]
    assert [hit.score for (hit,) in hits] == pytest.approx([1.0] * 3, abs=1e-5)


@pytest.mark.parametrize("shape", [(2, 8), (3, DIMENSIONS), (DIMENSIONS,)])
def test_features_of_another_shape_are_refused(store, shape):
    with pytest.raises(ValueError, match=r"features have shape .*expected floating point \(2, 16\)"):
        store.add(images(["a", "b"]), torch.ones(shape))
    with pytest.raises(ValueError, match=r"queries have shape .*expected \(queries, 16\)"):
        store.nearest(torch.ones(2, 8), 3)
    with pytest.raises(ValueError, match="given twice"):
        store.add(images(["a", "a"]), features(2))


ODD = ["it's.jpg", 'say "hi".jpg', "two\nlines.jpg", "back\\slash.jpg", "bar\udce9.jpg", "100%_.jpg", "-- ; drop", "é𝄞"]


def test_names_with_quotes_line_breaks_and_bytes_that_are_no_letters_come_back(store):
    made = features(len(ODD))
    store.add(images(ODD, [{"folder": name, name: 1} for name in ODD]), made)
    store.add(images(ODD, [{"folder": name} for name in ODD]), made)
    assert keys_of(store) == sorted(ODD)
    assert sorted(store.stamps(ODD)) == sorted(ODD)
    for row, name in enumerate(ODD):
        assert keys_of(store, {"folder": name}) == keys_of(store, {name: 1}) == [name]
        assert str(store.nearest(made[row : row + 1], 1)[0][0].path) == name
    store.delete_keys(ODD[:3])
    assert keys_of(store) == sorted(ODD[3:])


VALUES = st.one_of(
    st.sampled_from(["a", "a'b", "b", "a\\", "a\n", "\udc80", "", "a\0", "%", "' OR true --"]),
    st.text(st.characters(exclude_categories=[]), max_size=3),
    st.integers(-3, 3),
    st.sampled_from([2**63 - 1, -(2**63), 2**63, 2**53 + 1]),
    st.sampled_from([0.0, 0.5, 1.0, -2.5, 1e-300, float(2**63)]),
    st.booleans(),
    st.none(),
    st.lists(st.integers(0, 1), max_size=2),
)
NUMBERS = st.one_of(st.integers(-3, 3), st.sampled_from([0.5, -0.5, 2**63, -(2**64), 2**64 + 1, 1.0]))
RANGES = st.one_of(
    st.tuples(st.none() | NUMBERS, NUMBERS), st.tuples(st.sampled_from(["", "a", "a'"]), st.none() | st.just("b"))
)


def as_condition(asked):
    kind, value = asked
    if kind == "range":
        try:
            return Between(*value)
        except ValueError:
            return Between(*reversed(value))
    return Prefix(value) if kind == "prefix" else value


CONDITIONS = st.one_of(
    st.tuples(st.just("value"), VALUES.filter(lambda value: not isinstance(value, list))),
    st.tuples(st.just("value"), st.lists(VALUES, max_size=3)),
    st.tuples(st.just("range"), RANGES),
    st.tuples(st.just("prefix"), st.text(st.sampled_from("a'\\\udc80\n"), max_size=2)),
).map(as_condition)
METADATA = st.dictionaries(st.sampled_from(["camera", "Time of day"]), VALUES, max_size=2)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(["camera", "Time of day"]), CONDITIONS, min_size=1))
@example({"camera": Between(None, 2**63)})
@example({"camera": Between(-(2**64), -5)})
def test_filter_passes_what_the_gallery_lets_pass(mixed, where):
    store, known = mixed
    passes = matcher(where)
    expected = sorted(key for key, entry in known.items() if passes(entry))
    assert keys_of(store, where) == expected, where
    assert store.count(where) == len(expected)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A store of all kinds of values."""
    store = LanceStore.create(tmp_path_factory.mktemp("mixed") / "store", dimensions=DIMENSIONS)
    values = ["a", "a'b", "b", "a\\", "a\n", "\udc80", "", "a\0", "%", "' OR true --", "ab", "é"]
    values += [0, 1, -3, 2, 2**63 - 1, -(2**63), 2**63, 2**53 + 1, 0.0, 0.5, 1.0, -2.5, 1e-300, float(2**63)]
    values += [2**64, -(2**64), -(2**64) - 1, True, False, None, [], [0, 1], [1]]
    entries = [{"camera": value} for value in values] + [{"Time of day": value, "camera": "a"} for value in values]
    known = {f"k{row}": entry for row, entry in enumerate([*entries, {}])}
    store.add(images(known, list(known.values())), features(len(known)))
    return store, known


@pytest.mark.posix
def test_files_are_for_their_owner_alone_under_any_umask(tmp_path):
    before = os.umask(0)
    try:
        store = LanceStore.create(tmp_path / "deep" / "store", dimensions=DIMENSIONS)
        store.add(images(["a", "b"], [{"hour": 1}, {}]), features(2))
        store.replace(images(["a"], [{"camera": "x"}]), features(1))
        store.delete_keys(["b"])
        store.change_header(notes={"a": 1})
    finally:
        os.umask(before)
    found = [path for path in (tmp_path / "deep" / "store").rglob("*")]
    assert len(found) > 10
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in found}
    expected = {path.name: "0o700" if path.is_dir() else "0o600" for path in found}
    assert modes == expected


@pytest.mark.posix
def test_other_files_in_the_stores_folder_keep_their_permissions(tmp_path):
    (tmp_path / "notes").mkdir(mode=0o755)
    script = tmp_path / "notes" / "run.sh"
    script.touch()
    script.chmod(0o755)
    store = LanceStore.create(tmp_path, dimensions=DIMENSIONS)
    store.add(images(["a"]), features(1))
    store.change_header(notes={"a": 1})
    assert [oct(path.stat().st_mode & 0o777) for path in (script, script.parent)] == ["0o755", "0o755"]


@contextmanager
def writers(folder, commits):
    """Four processes that merge the same images, from one moment on."""
    command = [sys.executable, str(WRITER), str(folder), str(commits)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    try:
        for one in running:
            assert one.stdout.readline() == "ready\n"
        (folder / "GO").touch()
        yield running
        assert [one.wait(timeout=120) for one in running] == [0] * 4
    finally:
        for one in running:
            one.kill()
            one.stdout.close()
            one.wait()


@pytest.mark.parametrize("with_index", [False, True])
def test_four_processes_that_merge_the_same_images_leave_no_duplicates(store, with_index):
    folder = store.place.folder
    if with_index:  # a merge through an index of keys would not see what others merge
        store.add(images([f"old{row}" for row in range(100)]), features(100))
        store.place.dataset("images").create_scalar_index("key", "BTREE")
    with writers(folder, 6):
        pass
    found = [key for batch in store.scan(["key"]) for key in batch["key"].to_pylist()]
    assert len(found) == len(set(found)) == 6 * 50 + 100 * with_index


def test_key_is_what_the_engine_takes_for_the_primary_key(store):
    field = store.place.dataset("images").schema.field("key")
    assert field.metadata == {b"lance-schema:unenforced-primary-key": b"true"}
    assert not field.nullable


def test_new_keys_of_metadata_are_added_by_writers_at_once(store):
    other = LanceStore.open(store.place.folder)
    store.add(images(["a"], [{"hour": 1}]), features(1))
    other.add(images(["b"], [{"camera": "x", "hour": "late"}]), features(1))
    store.add(images(["c"], [{"camera": 3}]), features(1))
    assert store.keys == other.keys == ["camera", "hour"]
    assert keys_of(store, {"camera": ["x", 3]}) == ["b", "c"]


def test_replaced_image_has_its_new_feature_and_metadata(store):
    old, new = features(2), features(1)
    store.add(images(["a", "b"], [{"hour": 1}, {"hour": 2}]), old)
    store.add(images(["a"], [{"hour": 5}]), new)
    assert store.nearest(old[:1], 1)[0][0].metadata == {"hour": 1}
    store.replace(images(["a"], [{"camera": "x"}]), new)
    (hit,) = store.nearest(new, 1)[0]
    assert (str(hit.path), hit.metadata, len(store)) == ("a", {"camera": "x"}, 2)


def test_float16_takes_half_and_scores_change_little(tmp_path):
    store = LanceStore.create(tmp_path / "half", dimensions=DIMENSIONS, storage="float16")
    made = features(50)
    store.add(images(map(str, range(50))), made)
    for row in (0, 20):
        hits = store.nearest(made[row : row + 1], 50)[0]
        right = (made @ made[row]).sort(descending=True).values
        assert torch.tensor([hit.score for hit in hits]) == pytest.approx(right, abs=1e-3)


def test_header_is_kept_and_changed_without_a_copy_of_the_images(store):
    store.add(images(["a"]), features(1))
    store.change_header(calibration={"threshold": 0.5}, notes={"spread": float("nan")})
    again = LanceStore.open(store.place.folder)
    assert (again.header["calibration"], again.header["notes"]) == ({"threshold": 0.5}, {"spread": None})
    assert (again.header["format"], again.dimensions, len(again)) == (1, DIMENSIONS, 1)


def test_another_format_and_a_foreign_table_are_refused(store, tmp_path):
    data = store.place.dataset("images")
    header = json.loads(data.schema.metadata[b"promptreid"])
    data.update_schema_metadata({"promptreid": json.dumps({**header, "format": 7})})
    with pytest.raises(StoreError, match="of format 7, and this version of promptreid reads 1"):
        LanceStore.open(tmp_path / "store")
    data.update_schema_metadata({"promptreid": json.dumps({**header, "dimensions": 8})})
    with pytest.raises(StoreError, match="vectors do not fit its header"):
        LanceStore.open(tmp_path / "store")
    data.update_schema_metadata({"promptreid": "{"})
    with pytest.raises(StoreError, match="promptreid did not write"):
        LanceStore.open(tmp_path / "store")


def test_places_that_cannot_be_opened_or_made(store, tmp_path):
    with pytest.raises(StoreError, match=r"no store in .*promptreid index CROPS --store"):
        LanceStore.open(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
    with pytest.raises(FileExistsError, match="holds a store already"):
        LanceStore.create(tmp_path / "store", dimensions=DIMENSIONS)
    for url in ("ftp://host/crops", "s3://", "s3:///"):
        with pytest.raises(ValueError, match=r"expected a folder, or s3://bucket/name or gs://bucket/name"):
            LanceStore.open(url)
    with pytest.raises(ValueError, match="expected float32 or float16"):
        LanceStore.create(tmp_path / "other", dimensions=3, storage="int8")


def test_extra_that_is_missing_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "lancedb", None)
    with pytest.raises(MissingExtraError, match=r'pip install "promptreid\[store\]"'):
        LanceStore.open(tmp_path)


def test_commit_is_tried_again_after_a_conflict_and_given_up_in_the_end(store, monkeypatch):
    monkeypatch.setattr(lance_connection, "_FIRST_WAIT", 0.0)
    calls = []

    def busy(times):
        def work():
            calls.append(1)
            if len(calls) <= times:
                raise OSError("Retryable commit conflict for version 4")
            return "done"

        return work

    assert lance_connection.committed("s", busy(3)) == "done"
    assert len(calls) == 4
    with pytest.raises(StoreError, match="being changed by others all the time"):
        lance_connection.committed("s", busy(100))


@pytest.mark.parametrize(
    ("words", "kind", "said"),
    [
        (
            "Generic GCS error: Unable to decode service account file: missing field",
            StoreError,
            "is not a service account key",
        ),
        ("performing token request: 400 Bad Request: invalid_grant", StoreError, "refuses these credentials"),
        ("Generic S3 error: NoSuchBucket, The specified bucket does not exist", StoreError, "there is no bucket"),
        ("client error 403 Forbidden: InvalidAccessKeyId", StoreError, "refuses these credentials"),
        ("Generic S3 error: error sending request for url http://169.254.169.254/", StoreError, "there are none"),
        ("Generic S3 error: Failed to resolve region for bucket 'b'", StoreError, "set AWS_REGION"),
        ("error sending request: tcp connect error: Connection refused", StoreUnreachableError, "cannot be reached"),
        (
            'kind: Connect, source: Error(ConnectError("tcp connect error", Os { code: 111, kind: ConnectionRefused, '
            'message: "Connection refused" }))',
            StoreUnreachableError,
            "cannot be reached (Connection refused)",
        ),
        (
            "max_retries: 4, retry_timeout: 30s - 500 Internal Server Error",
            StoreUnreachableError,
            "is failing (500 Internal",
        ),
        (
            "PUT s3://b/_versions/18446744073709551403.manifest in 1s: error sending request",
            StoreUnreachableError,
            "cannot be reached",
        ),
        ("Server returned non-2xx status code: 501 Not Implemented", StoreError, "conditional writes"),
        ("column has 500 rows, expected 10", StoreError, "engine of the store failed"),
        ("status 429 Too Many Requests", StoreUnreachableError, "is failing (429"),
        ("status 408 Request Timeout", StoreUnreachableError, "cannot be reached"),
        ("source: TimedOut", StoreUnreachableError, "cannot be reached"),
        ("source: hyper::Error(IncompleteMessage)", StoreUnreachableError, "cannot be reached"),
        ("Generic S3 error: max_retries: 4, retry_timeout: 30s, 412 Precondition", StoreError, "failed: Generic S3"),
        ("write: No space left on device (os error 28)", OSError, "no space left"),
        ("something new, /root/.cargo/registry/x.rs:1:2", StoreError, "failed: something new"),
    ],
)
def test_failures_of_the_engine_are_told_apart(words, kind, said):
    error = lance_connection.explained("s3://b/x", RuntimeError(words))
    assert isinstance(error, kind)
    assert said in str(error)
    assert ".cargo" not in str(error)
    assert isinstance(error, ConnectionError) == (kind is StoreUnreachableError)


def test_search_goes_on_where_files_were_cleaned_up_meanwhile(store):
    store.add(images(["a"]), features(1))
    reader = LanceStore.open(store.place.folder)
    assert keys_of(reader) == ["a"]
    store.replace(images(["a"]), features(1))
    lance_store_rewrite(store)
    assert keys_of(reader) == ["a"]


def test_store_whose_making_was_killed_is_none_yet(tmp_path):
    (tmp_path / "images.lance").mkdir()
    assert not is_store(tmp_path)
    LanceStore.create(tmp_path, dimensions=DIMENSIONS)
    assert is_store(tmp_path)


def lance_store_rewrite(store):
    from promptreid.retrieval.lance_removal import rewrite

    rewrite(store, alone=True)
    assert len(lance_store.LanceStore.open(store.place.folder).place.dataset("images").versions()) == 1


def test_store_that_another_process_makes_and_fills_meanwhile_is_taken(tmp_path, monkeypatch):
    made = LanceStore.create(tmp_path / "store", dimensions=DIMENSIONS)
    made.add(images(["a"], [{"camera": "b"}]), features(1))
    answers = iter([False, True])  # it is not there when it is to be made, and is when it is opened
    monkeypatch.setattr("promptreid.retrieval.lance_store.has_store", lambda place: next(answers))
    assert keys_of(LanceStore.create(tmp_path / "store", dimensions=DIMENSIONS)) == ["a"]
