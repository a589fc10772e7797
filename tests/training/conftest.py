"""A small prompted model and a batch for it."""

import pytest
import torch

from promptreid.encoders.clip import PromptedCLIP
from promptreid.prompts import PromptConfig


@pytest.fixture
def model(clip: torch.nn.Module) -> PromptedCLIP:
    return PromptedCLIP(clip, PromptConfig(text_length=2, vision_length=2))


@pytest.fixture
def person_ids() -> torch.Tensor:
    return torch.tensor([0, 1, 2, 0, 1])
