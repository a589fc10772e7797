"""The shipped small model and a drawn split; nothing is downloaded."""

import copy

import pytest

from promptreid import PromptConfig, PromptedCLIP, load_clip
from promptreid.data.cuhk_pedes import load_cuhk_pedes
from promptreid.data.generated import write_generated


@pytest.fixture(scope="session")
def shipped():
    clip = load_clip("promptreid-tiny", pretrained="generated", image_size=(96, 48))
    model = PromptedCLIP(clip, PromptConfig(text_length=2, vision_length=2))
    return model, model.tokenizer


@pytest.fixture
def model(shipped):
    """A fresh copy of the shipped model with two prompts a block."""
    return copy.deepcopy(shipped[0])


@pytest.fixture(scope="session")
def split(tmp_path_factory):
    """24 pictures of 6 persons, two captions each."""
    root = tmp_path_factory.mktemp("drawn") / "data"
    return load_cuhk_pedes(write_generated(root, num_identities=(1, 1, 6), seed=0, progress=False)).test
