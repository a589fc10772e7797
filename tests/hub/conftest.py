"""Small manifests and prompts, without a model."""

from collections.abc import Callable

import pytest
import torch

from promptreid import PromptConfig
from promptreid.hub.manifest import PromptManifest


def manifest_with(**changes: object) -> PromptManifest:
    values: dict = {
        "model_name": "ViT-B-16",
        "pretrained": "openai",
        "image_size": (384, 128),
        "quick_gelu": True,
        "prompts": PromptConfig(),
        "shapes": {"vision.prompts.tokens": (3, 4, 32), "text.prompts.tokens": (3, 4, 24)},
        "base_fingerprint": (0.5, -0.25, 1.0),
        "encoders_fingerprint": (0.5, -0.25, 1.0),
        "sha256": {"prompts.safetensors": "0" * 64},
        "library_version": "0.1.0",
    }
    return PromptManifest(**{**values, **changes})


@pytest.fixture
def make_manifest() -> Callable[..., PromptManifest]:
    return manifest_with


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    return {"vision.prompts.tokens": torch.randn(3, 4, 32), "text.prompts.tokens": torch.randn(3, 4, 24)}


@pytest.fixture
def encoders() -> dict[str, torch.Tensor]:
    return {"visual.proj": torch.randn(8, 4), "logit_scale": torch.tensor(2.0)}
