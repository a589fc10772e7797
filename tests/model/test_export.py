"""Prompted encoders leave PyTorch: torch.export, and ONNX run by onnxruntime."""

import warnings

import numpy as np
import pytest
import torch

from promptreid import PromptConfig, PromptedCLIP, load_clip

NAMES = ("ViT-B-16", "ViT-B-16-SigLIP")
BATCHES = (1, 2, 5)


PREFIX = PromptConfig(text_length=3, vision_length=2, kind="prefix")
GROUPED = PromptConfig(text_length=3, vision_length=2, kind="grouped", groups=("cam_a", "cam_b"))


def make(zoo, name, config=None):
    with zoo.shrunk():
        clip = load_clip(name, image_size=(64, 32))
    model = PromptedCLIP(clip, config or PromptConfig(text_length=3, vision_length=2)).eval()
    with torch.no_grad():
        for prompts in model.prompt_parameters():
            prompts.normal_()
    return model


def inputs(zoo, name, batch):
    images = torch.randn(batch, 3, 64, 32, generator=torch.Generator().manual_seed(batch))
    return {"vision": images, "text": zoo.tokens_for(name, batch=batch, seed=batch)}


# The ONNX exporter stands on torch.export, so the next test covers most of this one.
@pytest.mark.slow
@pytest.mark.parametrize("tower", ["vision", "text"])
@pytest.mark.parametrize(
    ("name", "config"), [*((name, None) for name in NAMES), (NAMES[0], PREFIX), (NAMES[0], GROUPED)]
)
def test_exported_program_gives_equal_features_for_any_batch(zoo, name, config, tower):
    model = make(zoo, name, config)
    encoder = getattr(model, tower)
    batch = torch.export.Dim("batch", min=1, max=256)
    program = torch.export.export(encoder, (inputs(zoo, name, 3)[tower],), dynamic_shapes=({0: batch},))
    module = program.module()
    for size in BATCHES:
        given = inputs(zoo, name, size)[tower]
        torch.testing.assert_close(module(given), encoder(given), rtol=1e-4, atol=1e-4)


@pytest.mark.slow  # test_onnx_files.py has the files of the command
@pytest.mark.parametrize("tower", ["vision", "text"])
@pytest.mark.parametrize("name", NAMES)
def test_onnx_file_in_onnxruntime_gives_equal_features_for_any_batch(zoo, name, tower, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    model = make(zoo, name)
    encoder = getattr(model, tower)
    path = tmp_path / "encoder.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own parts
        torch.onnx.export(
            encoder,
            (inputs(zoo, name, 3)[tower],),
            str(path),
            input_names=["given"],
            output_names=["features"],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=256)},),
            dynamo=True,
            verbose=False,
        )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for size in BATCHES:
        given = inputs(zoo, name, size)[tower]
        (features,) = session.run(None, {session.get_inputs()[0].name: given.numpy()})
        np.testing.assert_allclose(features, encoder(given).detach().numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("tower", ["vision", "text"])
@pytest.mark.parametrize(("name", "config"), [*((name, None) for name in NAMES), (NAMES[0], PREFIX)])
def test_traced_encoder_gives_equal_features_for_longer_captions_and_other_batches(zoo, name, config, tower, gradients):
    """A trace looks at one batch: the length of its captions must not become part of the graph."""
    model = make(zoo, name, config)
    encoder = getattr(model, tower)
    with torch.set_grad_enabled(gradients):
        traced = torch.jit.trace(encoder, (inputs(zoo, name, 2)[tower],))
        for size in BATCHES:
            batch = inputs(zoo, name, size)[tower]
            torch.testing.assert_close(traced(batch), encoder(batch), rtol=1e-4, atol=1e-5)
    assert all(parameter.requires_grad for parameter in model.parameters())
