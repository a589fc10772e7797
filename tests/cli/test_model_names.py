"""What a `--model` that is not a model is answered."""

import pytest
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from PIL import Image

DONE = "was trained already. evaluate, index, search, export and push use it: promptreid evaluate DATA --model run"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The current folder: a file, a whole run, and a folder of something else."""
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / "prompt_config.json").write_text("{}")
    (tmp_path / "other").mkdir()
    Image.new("RGB", (48, 96)).save(tmp_path / "other" / "crop.png")
    (tmp_path / "model.txt").write_text("no model")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (["model.txt"], "--model model.txt is a file; give a folder that"),
        (["./model.txt"], "--pretrained ./model.txt"),
        (["vit-b-16"], "Did you mean ViT-B-16"),
        (["ViT_B_16"], "Did you mean ViT-B-16"),
        (["vit_b_16", "--pretrained", "openai"], "Did you mean ViT-B-16"),
        (["qqqq"], "--model qqqq is not a folder here, and open_clip has no model named 'qqqq'. python -c"),
        (["ViT-B-16"], "--model ViT-B-16 needs --pretrained TAG, such as openai; without weights it finds nothing"),
    ],
)
def test_model_that_is_none_is_told_apart(call, model, words):
    code, _, notes = call("index", "other", "--output", "gallery", "--model", *model)
    assert (code, words in notes) == (2, True), notes
    assert "is meant to be a folder" not in notes


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("run/model", f"train starts from an open_clip model, and run/model {DONE}/model"),
        ("run", f"train starts from an open_clip model, and run/model {DONE}/model"),
        ("other", "train starts from an open_clip model, and other is a folder; if open_clip wrote it, give --model"),
        ("model.txt", "--model model.txt is a file"),
        ("vit-b-16", "Did you mean ViT-B-16"),
        ("ViT-B-16", 'such as openai; "none" for random weights'),
    ],
)
def test_training_says_what_it_starts_from(call, drawn, model, words):
    code, _, notes = call("train", drawn, "--output", "new", "--model", model)
    assert (code, words in notes) == (2, True), notes


def test_training_from_a_saved_model_with_random_weights_is_explained_too(call, drawn):
    code, _, notes = call("train", drawn, "--output", "new", "--model", "run/model", "--pretrained", "none")
    assert (code, DONE in notes) == (2, True), notes


def test_weights_without_a_network_are_announced_and_the_networks_fault(call, drawn, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise LocalEntryNotFoundError("not in the cache") from HfHubHTTPError.__bases__[0]("no route")

    monkeypatch.setattr("promptreid.towers.downloading.try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.setattr("promptreid.towers.downloading.hf_hub_download", fail)
    model = ["--model", "ViT-B-16", "--pretrained", "openai"]
    code, _, notes = call("index", drawn / "imgs", "--output", tmp_path / "gallery", *model)
    assert code == 5, notes
    assert "downloading timm/vit_base_patch16_clip_224.openai from the Hub\n" in notes
    assert "cannot be downloaded" in notes.splitlines()[-1]
