"""A family of towers from outside the package, and what describing a tower costs."""

import pytest
import torch
from torch import nn

from promptreid import PromptConfig, PromptedCLIP, PromptedTextEncoder, PromptedVisionEncoder
from promptreid.errors import UnsupportedTowerError
from promptreid.towers import families
from promptreid.towers.families import TEXT_FAMILIES, VISION_FAMILIES, patch_grid_of, resize_images
from promptreid.towers.tower import PatchGrid, TextTower, TokenTower


class Mixer(nn.Module):
    """A tower that the package does not know: patches, attention blocks, mean."""

    def __init__(self, image_size):
        super().__init__()
        self.image_size = image_size
        self.patches = nn.Conv2d(3, 32, 8, 8)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True) for _ in range(2))

    def forward(self, images):
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        for layer in self.layers:
            tokens = layer(tokens)
        return tokens.mean(dim=1)


class MixerFamily:
    resized_keys = ()

    def matches(self, visual):
        return isinstance(visual, Mixer)

    def describe(self, visual):
        grid = self.grid(visual).shape
        return TokenTower(
            kind="own.Mixer",
            module=visual,
            container=visual,
            blocks=tuple(visual.layers),
            width=32,
            length=grid[0] * grid[1],
            slot=0,
            pooling="avg",
            grid=grid,
            mask_arguments=("src_mask",),
        )

    def grid(self, visual):
        return PatchGrid((8, 8), (visual.image_size[0] // 8, visual.image_size[1] // 8))

    def resize(self, visual, image_size):
        visual.image_size = image_size


class Words(nn.Module):
    """A text tower that the package does not know."""

    def __init__(self):
        super().__init__()
        self.context_length = 24
        self.table = nn.Embedding(512, 32)
        self.layers = nn.ModuleList([nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)])

    def forward(self, tokens):
        sequence = self.table(tokens)
        for layer in self.layers:
            sequence = layer(sequence)
        return sequence[:, 0]


class WordsFamily:
    def matches(self, text):
        return isinstance(text, Words)

    def describe(self, text):
        return TextTower(
            kind="own.Words",
            module=text,
            container=text,
            blocks=tuple(text.layers),
            width=32,
            length=24,
            slot=1,
            pooling="first",
            trim="never",
            context_length=24,
            vocabulary=512,
        )


class OwnCLIP(nn.Module):
    def __init__(self):
        super().__init__()
        self.visual, self.text = Mixer((32, 16)), Words()
        self.logit_scale = nn.Parameter(torch.zeros(()))

    def encode_image(self, images, normalize=False):
        return self.visual(images)

    def encode_text(self, tokens, normalize=False):
        return self.text(tokens)


@pytest.fixture
def own_families():
    yield MixerFamily(), WordsFamily()
    VISION_FAMILIES[:] = [family for family in VISION_FAMILIES if not isinstance(family, MixerFamily)]
    TEXT_FAMILIES[:] = [family for family in TEXT_FAMILIES if not isinstance(family, WordsFamily)]


def test_foreign_families_are_described_prompted_and_resized(own_families, tokens):
    clip = OwnCLIP().eval()
    with pytest.raises(UnsupportedTowerError, match=r"image tower of class .*Mixer: known are open_clip's Vision"):
        PromptedVisionEncoder(clip)
    with pytest.raises(UnsupportedTowerError, match=r"text tower of class .*Words: known are open_clip's built-in"):
        PromptedTextEncoder(clip)
    VISION_FAMILIES.insert(0, own_families[0])
    TEXT_FAMILIES.insert(0, own_families[1])
    assert patch_grid_of(clip) == PatchGrid((8, 8), (4, 2))
    images = torch.randn(2, 3, 32, 16)
    bare = clip.encode_image(images)
    model = PromptedCLIP(clip, PromptConfig(text_length=2, vision_length=2))
    assert (model.vision.kind, model.text.kind) == ("own.Mixer", "own.Words")
    assert model.encode_image(images).shape == bare.shape
    assert not torch.allclose(model.encode_image(images), bare)
    assert model.encode_text(tokens).shape == (5, 32)
    with model.disabled():
        assert torch.equal(model.encode_image(images), bare)
    model.detach()
    resize_images(clip, (48, 24))
    assert PromptedVisionEncoder(clip).tower.grid == (6, 3)


def test_each_tower_is_described_and_checked_once(clip, monkeypatch):
    calls = []
    check = families.refuse_compiled
    monkeypatch.setattr(families, "refuse_compiled", lambda *modules: calls.append(modules) or check(*modules))
    PromptedVisionEncoder(clip)
    assert len(calls) == 1
    PromptedTextEncoder(clip)
    assert len(calls) == 2
