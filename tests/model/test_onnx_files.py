"""export_onnx: both encoders as files that give the model's unit features."""

import json

import numpy as np
import pytest
import torch

from promptreid import PromptConfig, PromptedCLIP, load_clip, load_prompts, save_prompts
from promptreid.cli.main import main
from promptreid.errors import MissingExtraError, WeightsError
from promptreid.model import onnx_files
from promptreid.model.onnx_files import export_onnx


@pytest.fixture(scope="module")
def model():
    clip = load_clip("promptreid-tiny", pretrained="generated", image_size=(32, 16))
    return PromptedCLIP(clip, PromptConfig(text_length=2, vision_length=2))


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    target = tmp_path_factory.mktemp("onnx")
    files = export_onnx(model, target)
    assert {file.name for file in files} >= {"image_encoder.onnx", "text_encoder.onnx", "preprocessing.json"}
    assert sorted(target.iterdir()) == sorted(files)
    return target


def run(path, given):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (name,) = [each.name for each in session.get_inputs()]
    return session.run(None, {name: given})[0], name, session.get_outputs()[0].name


def test_exported_encoders_give_the_features_of_encode(model, folder):
    image = np.random.default_rng(0).integers(0, 256, (32, 16, 3), dtype=np.uint8)
    about = json.loads((folder / "preprocessing.json").read_text())
    pixels = (image / 255 - about["mean"]) / about["std"]
    images, *names = run(folder / "image_encoder.onnx", pixels.astype(np.float32).transpose(2, 0, 1)[None])
    assert names == ["images", "image_features"]
    np.testing.assert_allclose(images[0], model.encode(image).numpy(), atol=1e-4)
    sentences = ["a woman in a red coat", "a man", "a tall man with a long blue jacket and a bag"]
    texts, *names = run(folder / "text_encoder.onnx", model.tokenizer(sentences).numpy())
    assert names == ["tokens", "text_features"]
    np.testing.assert_allclose(texts, model.encode(sentences, progress=False).numpy(), atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"kind": "prefix"}, id="prefix", marks=pytest.mark.slow),
        pytest.param({"kind": "grouped", "groups": ("cam_a", "cam_b")}, id="grouped"),
        pytest.param({"kind": "coupled"}, id="coupled", marks=pytest.mark.slow),
    ],
)
def test_export_command_gives_the_features_of_other_kinds(tmp_path, options):
    """Grouped prompts give every image the mean of the groups, as a graph takes no groups."""
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    clip = load_clip("promptreid-tiny", pretrained="generated", image_size=(32, 16))
    model = PromptedCLIP(clip, PromptConfig(text_length=2, vision_length=2, **options))
    with torch.no_grad():
        for prompts in model.prompt_parameters():
            prompts.normal_()
    save_prompts(model, tmp_path / "model")
    assert main(["export", str(tmp_path / "onnx"), "--model", str(tmp_path / "model")]) == 0
    model = load_prompts(tmp_path / "model").eval()
    images = torch.randn(3, 3, 32, 16, generator=torch.Generator().manual_seed(0))
    tokens = model.tokenizer(["a man", "a tall man with a long blue jacket and a bag", "a woman"])
    with torch.no_grad():
        expected = model.encode_image(images, normalize=True), model.encode_text(tokens, normalize=True)
        with model.disabled():
            bare = model.encode_image(images, normalize=True), model.encode_text(tokens, normalize=True)
    for name, given, features, other in zip(("image", "text"), (images, tokens), expected, bare, strict=True):
        found = run(tmp_path / "onnx" / f"{name}_encoder.onnx", given.numpy())[0]
        np.testing.assert_allclose(found, features.numpy(), atol=1e-4)
        assert np.abs(found - other.numpy()).max() > 1e-2


def test_description_says_what_images_and_captions_need(folder):
    about = json.loads((folder / "preprocessing.json").read_text())
    assert (about["image_size"], about["context_length"], about["dimensions"]) == ([32, 16], 77, 128)
    assert about["interpolation"] == "bicubic"


def test_features_that_differ_are_refused_and_nothing_is_written(model, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    monkeypatch.setattr(onnx_files, "_DIFFERENCE", -1.0)
    with pytest.raises(WeightsError, match=r"gives features that differ by .* nothing was written"):
        export_onnx(model, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_half_precision_is_refused(model, tmp_path):
    import copy

    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    half = copy.deepcopy(model)
    half.clip.to(torch.bfloat16)
    with pytest.raises(ValueError, match=r"the model is torch\.bfloat16 on cpu, expected torch\.float32"):
        export_onnx(half, tmp_path)


@pytest.mark.parametrize("package", ["onnxruntime", "onnxscript"])
def test_missing_extra_is_named(model, tmp_path, monkeypatch, package):
    import sys
    from types import ModuleType

    for name in ("onnxruntime", "onnxscript"):
        monkeypatch.setitem(sys.modules, name, None if name == package else ModuleType(name))
    with pytest.raises(MissingExtraError, match=rf'needs {package}: pip install "promptreid\[onnx\]"'):
        export_onnx(model, tmp_path)
