"""Features do not depend on what is left out: captions cut to the longest, last blocks cut to the pooled token."""

import contextvars
import copy
import itertools
import warnings
from contextlib import nullcontext
from functools import partial
from types import MethodType
from unittest.mock import patch

import open_clip
import pytest
import torch
from open_clip.model import CLIP
from open_clip.transformer import LayerScale, VisionTransformer
from torch.utils.checkpoint import checkpoint

from promptreid import PromptConfig, PromptedCLIP, PromptedTextEncoder, PromptedVisionEncoder, load_clip
from promptreid.prompts.block_tokens import BlockTokens
from promptreid.towers.trimming import ThreadValue

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


KINDS = {
    "tokens": {},
    "kept": {"text_depth": 2, "vision_depth": 1},
    "before end": {"text_slot": "before_end"},
    "positions": {"position_embedding": True},
    "coupled": {"kind": "coupled"},
    "grouped": {"kind": "grouped", "groups": ["a", "b"]},
    "prefix": {"kind": "prefix"},
    "none": {"text_length": 0, "vision_length": 0},
}


def outcomes(model, images, tokens):
    """Features with and without gradients, and the gradients of every parameter."""
    model.zero_grad()
    found = model(images, tokens)
    features = [found["image_features"], found["text_features"]]
    sum((each * torch.linspace(-1, 1, each.numel()).view_as(each)).sum() for each in features).backward()
    with torch.no_grad():
        features += [model.encode_image(images), model.encode_text(tokens)]
    return features, {name: each.grad for name, each in model.named_parameters() if each.grad is not None}


def check_one_token_is_exact(model, images, tokens, *, tolerance=1e-6):
    """What a model gives with the last blocks cut to the pooled token equals what it gives with every token."""
    features, gradients = outcomes(model, images, tokens)
    model.vision.trim = model.text.trim = False
    whole, expected = outcomes(model, images, tokens)
    model.vision.trim = model.text.trim = True
    torch.testing.assert_close(features, whole, rtol=tolerance, atol=1e-10)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        size = float(expected[name].abs().max())
        torch.testing.assert_close(gradient, expected[name], rtol=tolerance, atol=tolerance * size + 1e-10, msg=name)


def tokens_computed(encoder, values, run=None):
    """How many tokens of each sequence the MLP of the last block computes."""
    block, axis, seen = encoder.tower.blocks[-1], encoder.tower.sequence_axis, []

    kind = type(block.mlp)
    plain = kind.forward

    def forward(module, sequence):
        if module is block.mlp:
            seen.append(sequence.shape[axis])
        return plain(module, sequence)

    with patch.object(kind, "forward", forward):
        (run or encoder)(values)
    (count,) = seen
    return count


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("sequence_first", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_last_block_of_the_pooled_token_alone_is_exact_for_every_kind_of_prompt(
    clip, images, tokens, kind, sequence_first, train
):
    config = PromptConfig(**({"text_length": 3, "vision_length": 3} | KINDS[kind]))
    model = PromptedCLIP(clip.double(), config, sequence_first=sequence_first).train(train)
    assert tokens_computed(model.vision, images.double()) == tokens_computed(model.text, tokens) == 1
    check_one_token_is_exact(model, images.double(), tokens)


@pytest.mark.parametrize(
    ("name", "image_tokens", "text_tokens"),
    [
        ("ViT-B-16-quickgelu", 1, 1),
        ("ViT-L-14-CLIPA", None, 1),  # pools the mean of all patches; the last position of the caption
        ("ViT-H-14-worldwide", 1, 1),  # a stated end token
        ("coca_ViT-B-32", None, None),  # its decoder writes captions from the tokens
        ("ViT-B-16-SigLIP", None, 1),
        ("MobileCLIP2-S0", None, 1),
        ("EVA02-B-16", None, 1),
        ("roberta-ViT-B-32", 1, None),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_last_block_computes_one_token_in_the_families_that_pool_one(zoo, name, image_tokens, text_tokens):
    if name not in open_clip.list_models():
        pytest.skip("this open_clip does not know it")
    with zoo.shrunk():
        clip = load_clip(name, image_size=(56, 28) if "14" in name else (64, 32)).double()
    model = PromptedCLIP(clip, PromptConfig(2, 2)).eval()
    size, tokens = model.image_size, zoo.tokens_for(name, batch=3)
    images = torch.randn(3, 3, *size, dtype=torch.float64)
    for encoder, values, expected in ((model.vision, images, image_tokens), (model.text, tokens, text_tokens)):
        if expected is None:
            assert encoder.last_block.alone(getattr(encoder.tower, "pooled_at", None)) is None
        else:
            assert tokens_computed(encoder, values) == expected
    check_one_token_is_exact(model, images, tokens, tolerance=1e-4 if zoo.rounds_attention(name) else 1e-6)


def test_last_block_computes_every_token_for_whoever_sees_them(clip, images, tokens):
    model = PromptedCLIP(clip, PromptConfig(2, 2))
    every = model.vision.tower.length + 2
    assert tokens_computed(model.vision, images) == 1
    assert tokens_computed(model.vision, images, clip.encode_image) == every
    assert tokens_computed(model.vision, images, clip.visual.forward_intermediates) == every
    for module in (clip.visual.transformer.resblocks[-1], clip.visual.transformer, clip.visual.ln_post):
        handle = module.register_forward_hook(lambda module, args, output: None)
        assert tokens_computed(model.vision, images) == every
        handle.remove()
    clip.visual.output_tokens = True
    assert model.vision.last_block.alone(0) is None
    clip.visual.output_tokens = False
    model.vision.trim = False
    assert tokens_computed(model.vision, images) == every
    assert tokens_computed(model.text, tokens) == 1


@pytest.mark.parametrize("change", ["pooling", "block", "convolution", "attention", "method", "global hook"])
def test_last_block_computes_every_token_where_a_change_could_depend_on_them(clip, images, change):
    model = PromptedCLIP(clip.double(), PromptConfig(2, 2)).eval()
    visual, block, count = clip.visual, clip.visual.transformer.resblocks[-1], model.vision.tower.length + 2
    handle = None
    if change == "pooling":
        visual.pool_type = "avg"
    elif change == "block":
        visual.transformer.resblocks.append(copy.deepcopy(visual.transformer.resblocks[0]))
    elif change == "convolution":
        block.mlp.add_module("across", Across(count))
    elif change == "attention":
        block.attn = OwnAttention(block.attn)
    elif change == "method":
        block.attn.forward = partial(type(block.attn).forward, block.attn)
    else:
        handle = torch.nn.modules.module.register_module_forward_hook(lambda module, args, output: None)
    try:
        assert tokens_computed(model.vision, images.double()) == count
        features = model.encode_image(images.double())
    finally:
        if handle is not None:
            handle.remove()
    model.vision.trim = False
    torch.testing.assert_close(model.encode_image(images.double()), features, rtol=0, atol=0)


def mean_of_patches(visual, images):
    sequence = visual.ln_post(visual.transformer(visual._embeds(images)))
    return sequence[:, 1:].mean(dim=1) @ visual.proj


class MeanPooled(VisionTransformer):
    def _global_pool(self, x):
        return x.mean(dim=1), x


class OwnCLIP(CLIP):
    def encode_image(self, image, normalize=False):
        return mean_of_patches(self.visual, image)

    def encode_text(self, text, normalize=False):
        sequence = self.transformer(self.token_embedding(text) + self.positional_embedding, attn_mask=self.attn_mask)
        return sequence.mean(dim=1) @ self.text_projection


REPLACEMENTS = {
    "pooling": lambda clip: setattr(clip.visual, "_global_pool", lambda tokens: (tokens.mean(dim=1), tokens)),
    "forward": lambda clip: setattr(clip.visual, "forward", MethodType(mean_of_patches, clip.visual)),
    "encode_image": lambda clip: setattr(clip, "encode_image", lambda x, **_: mean_of_patches(clip.visual, x)),
    "encode_text": lambda clip: setattr(clip, "encode_text", MethodType(OwnCLIP.encode_text, clip)),
    "container": lambda clip: setattr(clip.visual.transformer, "forward", partial(reversed_blocks, clip.visual)),
    "norm": lambda clip: setattr(clip.visual, "ln_post", Across(9)),
    "class of the tower": lambda clip: setattr(clip.visual, "__class__", MeanPooled),
    "class of the model": lambda clip: setattr(clip, "__class__", OwnCLIP),
}


def reversed_blocks(visual, sequence):
    return type(visual.transformer).forward(visual.transformer, sequence).flip(1)


def test_value_of_a_generator_that_ends_in_another_thread_leaves_that_threads_own():
    value = ThreadValue()
    elsewhere = contextvars.Context().run(lambda: (held := value.held("theirs"), held.__enter__())[0])
    with value.held("ours"):
        elsewhere.__exit__(None, None, None)
        assert value.get() == "ours"
    assert value.get() is None


class Named(VisionTransformer):
    """A class of one's own without a method of its own, as FSDP makes them."""


def test_last_block_computes_one_token_in_a_subclass_without_methods(clip, images):
    clip.visual.__class__ = Named
    assert PromptedCLIP(clip, PromptConfig(2, 2)).vision.last_block.alone(0) == 0


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("replacement", REPLACEMENTS)
def test_nothing_is_left_out_of_towers_with_something_of_ones_own(clip, images, tokens, replacement, late):
    if late:
        model = PromptedCLIP(clip.double(), PromptConfig(2, 2)).eval()
    REPLACEMENTS[replacement](clip)
    if not late:
        model = PromptedCLIP(clip.double(), PromptConfig(2, 2)).eval()
    with torch.no_grad():
        torch.testing.assert_close(model.encode_image(images.double()), clip.encode_image(images.double()))
        torch.testing.assert_close(model.encode_text(tokens), clip.encode_text(tokens))


class Across(torch.nn.Module):
    """Mixes tokens, as adapters with convolutions do."""

    def __init__(self, count):
        super().__init__()
        self.mix = torch.randn(count, count, dtype=torch.float64)

    def forward(self, sequence):
        axis = [size == len(self.mix) for size in sequence.shape].index(True)
        return sequence + torch.tensordot(self.mix, sequence, dims=([1], [axis])).movedim(0, axis)


class OwnAttention(torch.nn.Module):
    """Attention that takes no other keys than its queries."""

    def __init__(self, attention):
        super().__init__()
        self.attention, self.num_heads = attention, attention.num_heads

    def forward(self, states, *others, **options):
        return self.attention(states, states, states, need_weights=False)


@pytest.mark.parametrize("reentrant", [True, False])
def test_whole_encoder_may_be_computed_again(clip, images, reentrant):
    model = PromptedCLIP(clip.double(), PromptConfig(2, 2)).train()
    pixels = images.double().requires_grad_()
    gradients = []
    for encode in (model.encode_image, partial(checkpoint, model.encode_image, use_reentrant=reentrant)):
        model.zero_grad()
        encode(pixels).sum().backward()
        gradients.append({name: each.grad for name, each in model.named_parameters() if each.grad is not None})
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


def test_activations_may_be_kept_elsewhere_and_computed_again(clip, images):
    model = PromptedCLIP(clip.double(), PromptConfig(2, 2)).train()
    clip.set_grad_checkpointing(True)
    with torch.autograd.graph.save_on_cpu():
        model.encode_image(images.double()).sum().backward()


def test_last_block_computes_every_token_for_prompts_of_ones_own(clip, images):
    class Mine(BlockTokens):
        def position(self, bare):
            return None

    encoder = PromptedVisionEncoder(clip, prompts=lambda tower: Mine(tower, 2))
    assert tokens_computed(encoder, images) == encoder.tower.length + 2


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
@pytest.mark.parametrize("kind", ["tokens", "before end", "grouped", "prefix"])
def test_last_block_of_one_token_is_exact_when_computed_again(clip, images, tokens, kind):
    model = PromptedCLIP(clip.double(), PromptConfig(**({"text_length": 3, "vision_length": 3} | KINDS[kind]))).train()
    plain, expected = outcomes(model, images.double(), tokens)
    clip.set_grad_checkpointing(True)
    features, gradients = outcomes(model, images.double(), tokens)
    torch.testing.assert_close(features, plain, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradients, expected, rtol=1e-9, atol=1e-12)


def test_last_block_of_one_token_is_exact_under_adapters(clip, images, tokens):
    peft = pytest.importorskip("peft")
    model = PromptedCLIP(clip, PromptConfig(2, 2))
    lora = peft.LoraConfig(r=2, target_modules=["attn", "c_fc", "c_proj"], init_lora_weights=False)
    peft.get_peft_model(clip, lora)
    model.double()
    assert tokens_computed(model.vision, images.double()) == tokens_computed(model.text, tokens) == 1
    check_one_token_is_exact(model, images.double(), tokens)


def test_last_block_of_one_token_is_exact_with_scaled_layers(clip, images, tokens):
    for tower in (clip.visual, clip):
        block = tower.transformer.resblocks[-1]
        block.ls_1, block.ls_2 = (LayerScale(block.attn.embed_dim, scale) for scale in (0.3, 3.0))
    model = PromptedCLIP(clip.double(), PromptConfig(2, 2))
    assert tokens_computed(model.vision, images.double()) == tokens_computed(model.text, tokens) == 1
    check_one_token_is_exact(model, images.double(), tokens)


def test_last_block_in_one_copy_leaves_the_other(clip, images):
    model = PromptedCLIP(clip, PromptConfig(2, 2))
    other = copy.deepcopy(model)
    model.detach()
    assert "forward" not in vars(clip.visual.transformer.resblocks[-1])
    assert tokens_computed(other.vision, images) == 1
    before = other.encode_image(images)
    with torch.no_grad():
        other.clip.visual.transformer.resblocks[-1].mlp.c_proj.weight.zero_()
    assert not torch.equal(other.encode_image(images), before)
