"""A small prompted model and a batch for it."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from promptreid.model.prompted_clip import PromptedCLIP
from promptreid.prompts.config import PromptConfig
from promptreid.training.recipe import TwoStageSchedule
from promptreid.training.trainer import Trainer

collect_ignore = [
    "failing_processes.py",
    "interrupted_run.py",
    "killed_run.py",
    "two_processes.py",
]  # programs, which tests start


@pytest.fixture(scope="session")
def start(fork: Callable[..., Any]) -> Callable[..., str]:
    """Runs a program of this folder in a process of its own and returns what it printed."""

    def run(program: str, *arguments: object) -> str:
        process = fork(Path(__file__).with_name(program), *arguments)
        printed, errors = process.communicate()
        assert process.returncode == 0, printed + errors
        return printed

    return run


@pytest.fixture
def model(clip: torch.nn.Module) -> PromptedCLIP:
    return PromptedCLIP(clip, PromptConfig(text_length=2, vision_length=2))


@pytest.fixture
def person_ids() -> torch.Tensor:
    return torch.tensor([0, 1, 2, 0, 1])


class Pairs(torch.utils.data.Dataset):
    """Persons' random images and captions, augmented from all three generators and, if asked, broken."""

    def __init__(self, length: int = 10, *, persons: int = 5, broken: int | None = None) -> None:
        generator = torch.Generator().manual_seed(5)
        self.images = torch.randn(length, 3, 32, 16, generator=generator)
        self.tokens = torch.zeros(length, 24, dtype=torch.int64)
        self.tokens[:, 0], self.tokens[:, 7] = 510, 511
        self.tokens[:, 1:7] = torch.randint(1, 500, (length, 6), generator=generator)
        self.person_ids = torch.arange(length) % persons
        self.broken = broken

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        noise = torch.randn(3, 32, 16) + random.random() + np.random.rand()
        image = self.images[index] + 0.1 * noise
        if index == self.broken:
            image = image * torch.nan
        return {"images": image, "tokens": self.tokens[index], "person_ids": self.person_ids[index]}


@pytest.fixture
def pairs() -> Pairs:
    return Pairs()


@pytest.fixture
def broken_pairs() -> Pairs:
    return Pairs(broken=3)


@pytest.fixture
def schedule(model: PromptedCLIP) -> TwoStageSchedule:
    """Two epochs of each stage, at rates that change much."""
    return TwoStageSchedule(
        model,
        num_identities=5,
        stage_one_epochs=2,
        stage_two_epochs=2,
        stage_one_learning_rate=1e-2,
        stage_two_learning_rate=1e-3,
    )


@pytest.fixture
def make(model: PromptedCLIP, schedule: TwoStageSchedule, pairs: Any, tmp_path: Path) -> Any:
    """Makes a trainer of the schedule on the CPU."""

    def build(**settings: Any) -> Trainer:
        defaults = {
            "model": model,
            "stages": schedule,
            "train_data": pairs,
            "batch_size": 4,
            "output_dir": tmp_path / "run",
            "device": "cpu",
            "progress": False,
            "trackers": (),
        }
        return Trainer(**(defaults | settings))

    return build
