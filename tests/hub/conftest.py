"""Small manifests and prompts, small models, and a Hub of the tests' own."""

import copy
import importlib.util
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants, utils
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

from promptreid import PromptConfig, PromptedCLIP, load_clip
from promptreid.hub import repository
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


@pytest.fixture(scope="session")
def hub_server(hub_socket: socket.socket) -> Iterator[Any]:
    """The module of the server with the one that runs."""
    spec = importlib.util.spec_from_file_location("hub_server", Path(__file__).with_name("hub_server.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules["hub_server"] = module
    spec.loader.exec_module(module)
    with module.serve(hub_socket) as hub:
        yield module, hub


@pytest.fixture
def hub(hub_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty Hub; nobody is logged in, and the cache is empty."""
    module, hub = hub_server
    fresh = module.Hub()
    for name in ("tokens", "repos", "large", "log", "faults"):
        setattr(hub, name, getattr(fresh, name))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(repository, "_FIRST_WAIT_SECONDS", 0.001)
    # Before 1.0 huggingface_hub's sessions remember whether they began offline, as a test before this may have wanted.
    getattr(utils, "reset_sessions", lambda: None)()
    disable_progress_bars()
    yield hub
    enable_progress_bars()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def tiny() -> Callable[[], torch.nn.Module]:
    """Makes copies of the base that ships with promptreid, at a small image size."""
    clip = load_clip("promptreid-tiny", pretrained="generated", image_size=(32, 16))
    return lambda: copy.deepcopy(clip)


@pytest.fixture
def model(tiny: Callable[[], torch.nn.Module]) -> PromptedCLIP:
    return PromptedCLIP(tiny(), PromptConfig(text_length=2, vision_length=3)).eval()


@pytest.fixture
def tuned(tiny: Callable[[], torch.nn.Module]) -> PromptedCLIP:
    model = PromptedCLIP(tiny(), PromptConfig(text_length=2, vision_length=1)).eval()
    with torch.no_grad():
        for parameter in model.clip.parameters():
            parameter.add_(1e-3 * torch.randn_like(parameter))
    return model


@pytest.fixture
def score() -> Callable[[PromptedCLIP], torch.Tensor]:
    """Similarities of fixed captions and images."""
    images = torch.randn(3, 3, 32, 16, generator=torch.Generator().manual_seed(4))

    @torch.no_grad()
    def compute(model: PromptedCLIP) -> torch.Tensor:
        tokens = model.tokenizer(["a woman in a red coat", "a man with a bag"])
        return model.encode_text(tokens, normalize=True) @ model.encode_image(images, normalize=True).T

    return compute
