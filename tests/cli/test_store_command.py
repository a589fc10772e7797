"""`promptreid index --store`, `search` of a store and `promptreid store`, in a folder; tests/store has the cluster."""

import argparse
import shutil

import pytest

from promptreid.cli.fill_store import shard_of_text
from promptreid.demo import app
from promptreid.demo.sources import open_indexed


def test_shard_is_a_number_of_a_count():
    assert shard_of_text("3/4") == (3, 4)
    for text in ("4/4", "1", "-1/4", "a/b", "1/", "/2"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected I/N with I from 0 to N - 1"):
            shard_of_text(text)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["index", "crops", "--shard", "0/2"], "--shard would do nothing here: it goes with --store"),
        (["index", "crops", "--store", "s3://b/x", "--compact"], "--compact would do nothing here"),
        (["index", "--store", "s3://b/x"], "give the folder of images to index"),
        (["search", "gallery", "a man", "--exact"], "there is no gallery in gallery"),
    ],
)
def test_options_that_go_with_something_else_are_refused(call, tmp_path, monkeypatch, words, said):
    monkeypatch.setattr("promptreid.cli.main.find_spec", lambda name: name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "crops").mkdir()
    code, _, errors = call(*words)
    assert code == 2
    assert said in errors


def test_store_among_images_is_refused_and_their_permissions_stay(call, drawn, tmp_path):
    pytest.importorskip("lancedb")
    pytest.importorskip("lance")
    crops = tmp_path / "crops"
    shutil.copytree(drawn / "imgs", crops)
    images = [path for path in crops.rglob("*.*") if path.is_file()]
    before = [path.stat().st_mode for path in images]
    for store in (crops, tmp_path, images[0].parent):
        code, _, errors = call("index", crops, "--store", store)
        assert code == 2
        assert f"error: --store is {store}, which is " in errors
        assert "a store needs a folder of its own: promptreid index" in errors
    assert [path.stat().st_mode for path in images] == before


def test_store_is_filled_by_parts_searched_and_erased_from(call, drawn, tmp_path, monkeypatch):
    pytest.importorskip("lancedb")
    pytest.importorskip("lance")
    store, crops = tmp_path / "store", drawn / "imgs"
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    first = answer(call("index", crops, "--store", store, "--json"))
    second = answer(call("index", crops, "--store", store, "--shard", "1/2", "--json"))
    total = first["added"] + second["added"]
    assert min(first["added"], second["added"]) > 0
    assert second["images"] == total == len([path for path in crops.rglob("*.*") if path.is_file()])
    shown = []
    monkeypatch.setattr("promptreid.demo.app.launch", lambda gallery, **options: shown.append(gallery))
    monkeypatch.setattr("promptreid.cli.main.find_spec", lambda name: name)
    assert call("demo", store)[0] == 0
    assert open_indexed(shown[0]).gallery.search("a man", 2) == shown[0].search("a man", 2)
    found = answer(call("search", store, "a man", "-k", "3", "--exact", "--json"))
    assert len(found["hits"]) == 3
    assert [hit["metadata"].keys() for hit in found["hits"]] == [{"folder"}] * 3
    folder = found["hits"][0]["metadata"]["folder"]
    lines = call("search", store, "a man", "-k", "1", "--csv", "--where", f"folder={folder[:3]}*")[1].splitlines()
    assert lines[0] == "query,rank,score,id,path,missing,folder"
    assert call("search", store, "a man", "--where", "folder=nowhere")[0] == 2
    assert "encoded by promptreid-tiny-adapted\n" in call("store", "info", store)[1]
    assert answer(call("store", "optimize", store, "--json"))["images"] == total
    erased = answer(call("store", "erase", store, found["hits"][0]["path"], "--json"))
    assert (erased["images"], erased["proven"]) == (1, True)
    assert answer(call("store", "info", store, "--json"))["images"] == total - 1
    code, out, _ = call("store", "erase", store, "--where", f"folder={folder}")
    assert code == 0
    assert "nothing is left of them" in out
    assert call("store", "erase", store)[0] == call("store", "info", store, "--alone")[0] == 2
    assert call("store", "info", tmp_path / "nothing")[0] == 2


@pytest.fixture
def gallery_and_store(call, drawn, tmp_path):
    """A gallery and a store of six crops, which may be in one folder, as earlier versions allowed."""
    pytest.importorskip("lancedb")
    pytest.importorskip("lance")
    crops = tmp_path / "crops"
    crops.mkdir()
    for path in sorted((drawn / "imgs").rglob("*.jpg"))[:6]:
        shutil.copyfile(path, crops / path.name)
    assert call("index", crops, "--output", tmp_path / "own")[0] == 0
    assert call("index", crops, "--store", tmp_path / "store")[0] == 0
    return crops, tmp_path / "own", tmp_path / "store"


def test_gallery_and_store_need_folders_of_their_own(call, gallery_and_store):
    crops, gallery, store = gallery_and_store
    for option, place, found in (("--store", gallery, "a gallery"), ("--output", store, "a store")):
        code, _, errors = call("index", crops, option, place)
        assert (code, f"error: {option} is {place}, which is {found}; a " in errors) == (2, True)
    for words, advice in (
        (["index", "--output", store, "--remove", "a.jpg"], f"promptreid store erase {store} IMAGE removes"),
        (["store", "info", gallery], f"is a gallery, not a store; promptreid check {gallery} looks at it"),
        (["store", "erase", gallery, "a.jpg"], f"promptreid index --output {gallery} --remove IMAGE removes"),
        (["store", "optimize", gallery], f"promptreid index --output {gallery} --compact joins"),
        (["store", "restore", gallery, "a.jpg"], f"promptreid index --output {gallery} --restore IMAGE lets"),
        (["store", "log", gallery], "is the file audit.jsonl in it"),
    ):
        code, _, errors = call(*words)
        assert (code, advice in errors) == (2, True), errors
    assert not list(gallery.glob("*.lance"))
    assert not (store / "gallery.json").exists()


def test_folder_that_holds_a_gallery_and_a_store_is_not_guessed_at(call, gallery_and_store, monkeypatch):
    crops, gallery, store = gallery_and_store
    monkeypatch.setattr("promptreid.cli.main.find_spec", lambda name: name)
    shutil.copytree(gallery, store, dirs_exist_ok=True)
    with pytest.raises(ValueError, match="holds a gallery and a store"):
        app._open(store, None, crops, progress=False)
    for words in (
        ["search", store, "a man"],
        ["calibrate", store],
        ["demo", store],
        ["index", crops, "--output", store],
        ["index", crops, "--store", store],
    ):
        code, _, errors = call(*words)
        assert (code, "holds a gallery and a store" in errors) == (2, True), errors
    assert call("index", "--output", store, "--remove", 0)[0] == 0  # from the gallery
    assert call("store", "erase", store, crops / sorted(crops.iterdir())[0])[0] == 0  # from the store
    for table in store.glob("*.lance"):
        (store / "moved").mkdir(exist_ok=True)
        table.rename(store / "moved" / table.name)
    assert answer(call("search", store / "moved", "a man", "--json"))["hits"]
    assert answer(call("search", store, "a man", "--json"))["hits"]


def test_store_whose_making_was_killed_or_that_another_makes_just_now_is_filled(call, drawn, tmp_path, monkeypatch):
    pytest.importorskip("lancedb")
    pytest.importorskip("lance")
    from promptreid.retrieval import lance_store

    (tmp_path / "store" / "images.lance").mkdir(parents=True)
    assert call("search", tmp_path / "store", "a man")[0] == 2
    crops = next(path for path in sorted((drawn / "imgs").rglob("*")) if path.is_dir() and list(path.glob("*.jpg")))
    first = answer(call("index", crops, "--store", tmp_path / "store", "--shard", "0/2", "--json"))
    answers = iter([False])  # it is not there yet when the second looks for it, and is a moment later
    real = lance_store.has_store
    monkeypatch.setattr(lance_store, "has_store", lambda place: next(answers, None) is None and real(place))
    second = answer(call("index", crops, "--store", tmp_path / "store", "--shard", "1/2", "--json"))
    assert second["images"] == first["added"] + second["added"]


def test_check_of_a_store_says_what_it_is(call, gallery_and_store):
    _, gallery, store = gallery_and_store
    code, _, errors = call("check", store)
    assert (code, errors) == (2, f"error: {store} is a store; promptreid store info {store} looks at it\n")
    (store / "people.csv").write_text("image,caption,person_id,split\na.jpg,a man,1,train\n")
    assert "images missing" in call("check", store)[1]  # a dataset, then
    assert "images missing" in call("check", store, "--table", "people.csv")[1]
    (store / "people.csv").write_text("path,score\na.jpg,1\n")
    assert f"{store} is a store; " in call("check", store)[2]
    (store / "people.csv").unlink()
    shutil.copytree(store, gallery, dirs_exist_ok=True)
    code, text, errors = call("check", gallery)
    assert (code, "is whole" in text) == (0, True)
    assert f"note: {gallery} holds a store too, which is not checked; promptreid store info" in errors


def test_filter_that_a_store_does_not_take_says_so(call, gallery_and_store):
    *_, store = gallery_and_store
    code, _, errors = call("store", "erase", store, "--where", "folder=cam?")
    assert (code, "of patterns a store takes only a beginning" in errors) == (2, True)


def answer(called):
    code, read, errors = called
    assert code == 0, errors
    return read


def test_what_a_search_of_a_store_prints_is_erased_by_it(call, tmp_path):
    pytest.importorskip("lancedb")
    pytest.importorskip("lance")
    from promptreid import load_prompts
    from promptreid.retrieval.stored_gallery import StoredGallery
    from promptreid.towers.tiny import TINY_ADAPTED, tiny_prompts

    model = load_prompts(tiny_prompts())
    gallery = StoredGallery.create(tmp_path / "store", model, notes={"model": {"model": TINY_ADAPTED}})
    gallery.add_features(model.encode(["a man", "a woman"], progress=False), ["s3://bucket/a.jpg", "b"])
    printed = call("search", gallery.url, "a man", "-k", "1")[1].split()[2]
    assert answer(call("store", "erase", gallery.url, printed, "--json"))["images"] == 1


def test_store_is_pruned_and_its_log_written_out(call, drawn, tmp_path):
    pytest.importorskip("lancedb")
    pytest.importorskip("lance")
    from promptreid.retrieval.stored_gallery import StoredGallery

    store, crops = tmp_path / "store", tmp_path / "crops"
    crops.mkdir()
    for path in sorted((drawn / "imgs").rglob("*.jpg"))[:6]:
        shutil.copyfile(path, crops / path.name)
    assert answer(call("index", crops, "--store", store, "--json"))["added"] == 6
    assert call("store", "log", store)[:2] == (0, "")
    StoredGallery.load(store).keep_audit_log()
    sorted(crops.iterdir())[0].unlink()
    assert "0 changed, 5 unchanged, 1 removed; 5 images" in call("index", crops, "--store", store, "--prune")[1]
    assert call("search", store, "a woman", "-k", "1")[0] == 0
    logged = answer(call("store", "log", store, "--json"))["log"]
    assert [(line["action"], line.get("queries")) for line in logged] == [("remove", None), ("search", ["a woman"])]
    assert '"queries": ["a woman"]' in call("store", "log", store)[1]
    for path in sorted(crops.iterdir())[:3]:
        path.unlink()
    code, _, errors = call("index", crops, "--store", store, "--prune")
    assert (code, "would remove 3 of 5 images" in errors) == (2, True)
    assert answer(call("index", crops, "--store", store, "--prune-anyway", "--json"))["removed"] == 3
