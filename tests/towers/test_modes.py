"""A caption's feature is its own: alone, in a batch and untrimmed, for every kind of text tower and of prompts."""

import itertools
import warnings
from contextlib import nullcontext

import open_clip
import pytest
import torch

from promptreid import PromptedTextEncoder, load_clip

TEXT_TOWERS = [
    "ViT-B-16",  # causal, pooled at the end
    "ViT-L-14-CLIPA",  # looks ahead, last position
    "ViT-H-14-worldwide",  # a stated end token
    "coca_ViT-B-32",  # a class token behind the caption
    "ViT-B-16-SigLIP",
    "MobileCLIP2-S0",
    "roberta-ViT-B-32",
    "mt5-base-ViT-B-32",
    "nllb-clip-base",
]
CHOICES = list(itertools.product(["after_start", "before_end"], [False, True], [None, 1, 2], [True, False]))


@pytest.mark.parametrize("name", [name for name in TEXT_TOWERS if name in open_clip.list_models()])
def test_feature_alone_equals_in_a_batch_equals_untrimmed(zoo, name):
    torch.manual_seed(0)
    with zoo.shrunk(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        clip = load_clip(name, image_size=(56, 28) if "14" in name else (64, 32)).double()
    tokens = zoo.tokens_for(name, batch=4)
    exact = {"rtol": 1e-4, "atol": 1e-6} if zoo.rounds_attention(name) else {"rtol": 1e-7, "atol": 1e-10}
    taken = 0
    for slot, positions, depth, gradients in CHOICES:
        try:
            encoder = PromptedTextEncoder(clip, 3, slot=slot, position_embedding=positions, depth=depth)
        except ValueError:
            continue  # refused for this tower, which other tests look at
        taken += 1
        with nullcontext() if gradients else torch.no_grad():
            encoder.prompts.tokens.data.normal_()
            batch = encoder(tokens)
            alone = torch.cat([encoder(row[None]) for row in tokens])
            encoder.trim = False
            whole = encoder(tokens)
            own = clip.encode_text(tokens, normalize=False)
        encoder.detach()
        for other in (alone, whole, own):
            torch.testing.assert_close(other, batch, **exact)
    assert taken
