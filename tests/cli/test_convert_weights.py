"""`promptreid convert`, and public re-ID checkpoints scored from the command line."""

import argparse
import json

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from promptreid import PromptConfig, PromptedCLIP, evaluate, load_clip, save_prompts
from promptreid.data.reader import load_dataset
from promptreid.hub.manifest import PROMPTS
from promptreid.hub.prompt_files import MANIFEST
from promptreid.towers import converting

NAME, SIZE = "ViT-B-16", (384, 128)


@pytest.fixture
def small(monkeypatch):
    """open_clip's ViT-B-16 and RN50 with few narrow layers; other names stay as they are."""
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    vision = {"image_size": 224, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16}
    config = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": text}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, NAME, config)
    return load_clip(NAME, image_size=SIZE, quick_gelu=True)


def irra(clip, path):
    """A checkpoint as IRRA's training saves it."""
    weights = {f"base_model.{k}": v.half() for k, v in clip.state_dict().items() if k != "logit_scale"}
    weights |= {"classifier.weight": torch.zeros(3), "cross_attn.in_proj_bias": torch.zeros(3)}
    torch.save({"model": weights, "optimizer": {}, "epoch": 60, "args": argparse.Namespace(lr=1e-5)}, path)


def test_convert_says_what_the_file_is_and_writes_a_folder_for_every_command(small, call, tmp_path, drawn):
    irra(small, tmp_path / "best.pth")
    code, found, errors = call("convert", tmp_path / "best.pth", tmp_path / "out", "--json")
    assert (code, errors) == (0, "")
    assert (found["title"], found["model"], found["image_size"]) == ("IRRA", NAME, [384, 128])
    assert (found["quick_gelu"], found["loads_in_open_clip"]) == (True, True)
    assert found["left_out"] == ["classifier.weight", "cross_attn.in_proj_bias"]
    code, printed, _ = call("convert", tmp_path / "best.pth", tmp_path / "again", "--image-size", 256, 128)
    assert code == 0
    assert "IRRA, ViT-B-16, images of 256 x 128, QuickGELU" in printed
    assert "left out: classifier, cross_attn" in printed
    assert f"use it with --model local-dir:{tmp_path / 'again'} --image-size 256 128\n" in printed
    code, scores, _ = call("evaluate", drawn, "--model", f"local-dir:{tmp_path / 'out'}", "--json")
    assert code == 0
    assert scores["scores"]["rank1"] >= 0


def test_prompts_of_a_saved_model_are_said_to_be_left_out(call, tmp_path):
    model = PromptedCLIP(load_clip("promptreid-tiny", pretrained="generated", image_size=(96, 48)))
    save_prompts(model, tmp_path / "model", encoders="always")
    assert {MANIFEST, PROMPTS} == {converting.PROMPTS_CONFIG, converting.PROMPTS}
    code, printed, _ = call("convert", tmp_path / "model", tmp_path / "out")
    assert (code, "left out: prompts\n" in printed) == (0, True)
    assert f"the prompts of {tmp_path / 'model'} are not in it: --model {tmp_path / 'model'} uses encoders" in printed
    assert converting.convert_weights(str(tmp_path / "model"), tmp_path / "again").left_out == ("prompts.safetensors",)
    printed = call("convert", f"local-dir:{tmp_path / 'model'}", tmp_path / "other")[1]
    assert f"--model {tmp_path / 'model'} uses encoders" in printed
    weights = tmp_path / "model" / "open_clip_model.safetensors"
    assert "left out" not in call("convert", weights, tmp_path / "weights")[1]
    (tmp_path / "model" / MANIFEST).unlink()
    code, printed, _ = call("convert", tmp_path / "model", tmp_path / "plain")
    assert (code, "left out" in printed) == (0, False)
    for words in ((tmp_path / "model", ""), ("", tmp_path / "new")):
        with pytest.raises(ValueError, match="is empty; give a path"):
            converting.convert_weights(*map(str, words))


def test_public_checkpoint_is_scored_as_its_own_model_is(small, call, tmp_path, drawn):
    irra(small, tmp_path / "best.pth")
    half = {name: value.half().float() for name, value in small.state_dict().items()}
    small.load_state_dict(half)
    small.visual.preprocess_cfg["interpolation"] = "bilinear"  # as IRRA resizes
    model = PromptedCLIP(small, PromptConfig(text_length=0, vision_length=0)).eval()
    expected = evaluate(model, load_dataset(drawn).test, progress=False).as_dict()
    arguments = ("--model", NAME, "--pretrained", tmp_path / "best.pth", "--json")
    code, found, errors = call("evaluate", drawn, *arguments)
    assert (code, errors) == (0, "")
    assert found["scores"] == json.loads(json.dumps(expected))


def test_checkpoint_of_another_size_is_said_to_be_once(small, call, tmp_path, drawn):
    irra(load_clip(NAME, image_size=(256, 128), quick_gelu=True), tmp_path / "best.pth")
    arguments = ("--model", NAME, "--pretrained", tmp_path / "best.pth")
    code, _, errors = call("index", drawn, "--output", tmp_path / "own", *arguments)
    assert code == 0
    assert "trained on images of 256 x 128, and is resized to 384 x 128" in errors
    assert "give 256 x 128 as --image-size to keep them" in errors
    code, _, errors = call("search", tmp_path / "own", "a man")
    assert (code, "resized" in errors) == (0, False)
    short = ("--epochs", 0, 1, "--prompt-length", 0, "--batch-size", 16)
    code, _, errors = call("train", drawn, "--output", tmp_path / "run", *arguments, *short, "--seeds", 0, 1)
    assert (code, errors.count("resized to 384 x 128")) == (0, 1), errors
    for source, folder in (("best.pth", "out"), ("out", "again")):
        code, printed, _ = call("convert", tmp_path / source, tmp_path / folder)
        assert f"use it with --model local-dir:{tmp_path / folder} --image-size 256 128\n" in printed
    save_file(load_clip(NAME, image_size=(224, 224)).state_dict(), tmp_path / "a.safetensors")
    code, printed, _ = call("convert", tmp_path / "a.safetensors", tmp_path / "square", "--no-quick-gelu")
    resized = "which resizes it to 384 x 128 unless you add --image-size 224 224"
    assert f"use it with --model local-dir:{tmp_path / 'square'}, {resized}\n" in printed


def test_index_finds_weights_of_a_relative_path_from_anywhere(small, call, tmp_path, drawn, monkeypatch):
    irra(small, tmp_path / "best.pth")
    monkeypatch.chdir(tmp_path)
    assert call("convert", "best.pth", "out")[0] == 0
    for number, words in enumerate([(NAME, "--pretrained", "best.pth"), ("local-dir:out",)]):
        assert call("index", drawn, "--output", f"own{number}", "--model", *words)[0] == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for number in range(2):
        code, _, errors = call("search", f"../own{number}", "a man")
        assert code == 0, errors


def test_convert_to_transformers_and_back(small, call, tmp_path):
    pytest.importorskip("transformers")
    save_file(load_clip(NAME, image_size=(64, 64)).state_dict(), tmp_path / "a.safetensors")
    there = ("convert", tmp_path / "a.safetensors", tmp_path / "there", "--to", "transformers", "--no-quick-gelu")
    assert call(*there)[0] == 0
    assert json.loads((tmp_path / "there" / "config.json").read_text())["model_type"] == "clip"
    assert call("convert", tmp_path / "there", tmp_path / "back")[0] == 0
    assert (tmp_path / "back" / "open_clip_config.json").exists()


def test_what_a_file_does_not_say_is_asked_for_by_its_option(small, call, tmp_path):
    save_file(load_clip(NAME, image_size=(64, 32)).state_dict(), tmp_path / "a.safetensors")
    arguments = ("convert", tmp_path / "a.safetensors", tmp_path / "out")
    code, _, errors = call(*arguments)
    assert code == 2
    assert "state their size (promptreid convert --weights-size HEIGHT WIDTH)" in errors
    code, _, errors = call(*arguments, "--weights-size", 64, 32)
    assert code == 0
    assert "GELU is taken. Write a folder with promptreid convert --quick-gelu if they descend" in errors
    assert call(*arguments, "--weights-size", 64, 32)[2].endswith("choose another folder, or pass --overwrite\n")
    assert call(*arguments, "--weights-size", 64, 32, "--overwrite", "--quick-gelu")[::2] == (0, "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("gone.pt", "out"), "there is no gone.pt"),
        (("{folder}", "out"), "holds no open_clip_model.safetensors"),
        (("{folder}/notes.pt", "out"), "notes.pt is not a weight file, or is damaged"),
        (("{folder}/odd.pt", "out"), "name it: --model NAME, one of open_clip.list_models()"),
        (("{folder}/odd.pt", "out", "--model", "ViT-B-61"), "Did you mean ViT-B-16"),
        (("{folder}/odd.pt", "out", "--model", "ViT-B-16"), "does not hold the weights of this architecture"),
        (("{folder}/odd.pt", "out", "--to", "onnx"), "invalid choice: 'onnx'"),
        (("{folder}/odd.pt", "out", "--image-size", "0", "4"), "argument --image-size is 0, expected 1 to 2048"),
        (("{folder}/odd.pt", "{folder}/notes.pt"), "notes.pt is a file; give a folder"),
    ],
)
def test_bad_input_is_one_line_with_what_to_type(small, call, tmp_path, monkeypatch, clip, arguments, words):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "notes.pt").write_text("notes")
    torch.save(clip.state_dict(), folder / "odd.pt")
    monkeypatch.chdir(tmp_path)
    code, _, errors = call("convert", *(part.format(folder=folder) for part in arguments))
    assert code == 2
    (line,) = [line for line in errors.splitlines() if not line.startswith("warning: ")]
    assert line.startswith("error: ")
    assert words in line
    assert not (tmp_path / "out").exists()
