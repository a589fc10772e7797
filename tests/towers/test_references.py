"""Prompted towers against forwards written out in plain tensor operations, one for each kind of tower.

Attention, masks, rotary turns and biases are written here by hand, block by block with prompts replaced; only what
works on one token at a time (norms, MLPs, projections) is the model's own.
"""

import copy
import importlib.metadata
import math
import sys
import warnings
from contextlib import nullcontext
from functools import partial
from unittest import mock

import open_clip
import pytest
import torch

from promptreid import PromptConfig, PromptedCLIP, load_clip
from promptreid.model.text import PromptedTextEncoder
from promptreid.model.vision import PromptedVisionEncoder
from promptreid.prompts.attention_prefix import AttentionPrefix


def attend(queries, keys, values, heads, *, bias=None, scale=True, rounded=False):
    """Softmax attention; (B, L, D) in and out, `bias` (B, heads, L, L) or what spreads to it."""
    batch, length, width = queries.shape
    size = width // heads
    split = [part.reshape(batch, -1, heads, size).transpose(1, 2) for part in (queries, keys, values)]
    return attend_heads(*split, bias=bias, scale=scale, rounded=rounded).transpose(1, 2).reshape(batch, length, width)


def attend_heads(queries, keys, values, *, bias=None, scale=True, rounded=False):
    scores = queries @ keys.transpose(-1, -2)
    if scale:
        scores = scores / math.sqrt(queries.shape[-1])
    if bias is not None:
        scores = scores + bias
    if rounded:
        return scores.float().softmax(dim=-1).to(values.dtype) @ values
    weights = (scores - scores.amax(dim=-1, keepdim=True)).exp()
    return weights / weights.sum(dim=-1, keepdim=True) @ values


def open_clip_block(block, sequence, bias, _):
    normed = block.ln_1(sequence)
    projected = normed @ block.attn.in_proj_weight.T + block.attn.in_proj_bias
    attended = attend(*projected.chunk(3, dim=-1), block.attn.num_heads, bias=bias)
    sequence = sequence + block.ls_1(block.attn.out_proj(attended))
    return sequence + block.ls_2(block.mlp(block.ln_2(sequence)))


def timm_block(block, sequence, bias, _):
    heads = block.attn.num_heads
    parts = block.attn.qkv(block.norm1(sequence)).chunk(3, dim=-1)
    sequence = sequence + block.ls1(block.attn.proj(attend(*parts, heads, bias=bias)))
    return sequence + block.ls2(block.mlp(block.norm2(sequence)))


def turn(tokens, angles):
    """Rotary embedding: pairs of numbers turned by (sine, cosine); tokens without an angle stay as they are."""
    turned = tokens.clone()
    for position, angle in enumerate(angles):
        if angle is None:
            continue
        sine, cosine = angle.chunk(2)
        one, two = tokens[:, :, position, 0::2], tokens[:, :, position, 1::2]
        turned[:, :, position, 0::2] = one * cosine[0::2] - two * sine[0::2]
        turned[:, :, position, 1::2] = two * cosine[1::2] + one * sine[1::2]
    return turned


def eva_attention(attention, sequence, angles):
    if attention.qkv is not None:
        projected = sequence @ attention.qkv.weight.T
        if getattr(attention, "q_bias", None) is not None:
            none = torch.zeros_like(attention.q_bias)
            projected = projected + torch.cat([attention.q_bias, none, attention.v_bias])
        elif attention.qkv.bias is not None:
            projected = projected + attention.qkv.bias
        parts = projected.chunk(3, dim=-1)
    else:
        parts = attention.q_proj(sequence), attention.k_proj(sequence), attention.v_proj(sequence)
    heads = attention.num_heads
    queries, keys, values = (part.reshape(*part.shape[:2], heads, -1).transpose(1, 2) for part in parts)
    queries, keys = attention.q_norm(queries), attention.k_norm(keys)
    if angles is not None:
        queries, keys = turn(queries, angles), turn(keys, angles)
    attended = attend_heads(queries, keys, values).transpose(1, 2).flatten(2)
    return attention.proj(attention.norm(attended))


def eva_block(block, sequence, _, angles):
    if type(block).__name__ == "EvaBlockPostNorm":
        sequence = sequence + block.norm1(eva_attention(block.attn, sequence, angles))
        return sequence + block.norm2(block.mlp(sequence))
    one = 1.0 if block.gamma_1 is None else block.gamma_1
    two = 1.0 if block.gamma_2 is None else block.gamma_2
    sequence = sequence + one * eva_attention(block.attn, block.norm1(sequence), angles)
    return sequence + two * block.mlp(block.norm2(sequence))


def roberta_block(block, sequence, bias, _):
    own = block.attention.self
    attended = attend(own.query(sequence), own.key(sequence), own.value(sequence), own.num_attention_heads, bias=bias)
    sequence = block.attention.output(attended, sequence)
    return block.output(block.intermediate(sequence), sequence)


def m2m_block(block, sequence, bias, _):
    own, normed = block.self_attn, block.self_attn_layer_norm(sequence)
    attended = attend(own.q_proj(normed), own.k_proj(normed), own.v_proj(normed), own.num_heads, bias=bias)
    sequence = sequence + own.out_proj(attended)
    normed = block.final_layer_norm(sequence)
    return sequence + block.fc2(block.activation_fn(block.fc1(normed)))


def t5_block(block, sequence, bias, first, rounded):
    own, normed = block.layer[0].SelfAttention, block.layer[0].layer_norm(sequence)
    relative = first.layer[0].SelfAttention.compute_bias(sequence.shape[1], sequence.shape[1]).detach()
    heads = own.n_heads
    projected = [own.q(normed), own.k(normed), own.v(normed)]
    attended = attend(*projected, heads, bias=bias + relative, scale=False, rounded=rounded)
    sequence = sequence + own.o(attended)
    return block.layer[1](sequence)


def run_reference(block_forward, blocks, sequence, prompts, *, slot, bias=None, extra=None):
    """Deep prompting written out: prompts go in at the slot, block i+1 gets its own for those of block i."""
    depth, count, _ = prompts.shape
    for index, block in enumerate(blocks):
        if index < depth:
            own = prompts[index].expand(len(sequence), -1, -1)
            kept = sequence[:, slot:] if index == 0 else sequence[:, slot + count :]
            sequence = torch.cat([sequence[:, :slot], own, kept], dim=1)
        sequence = block_forward(block, sequence, bias if not callable(bias) else bias(block), extra)
    return torch.cat([sequence[:, :slot], sequence[:, slot + count :]], dim=1)


def mask_of(tokens, length, *, slot, count, causal, shown):
    """-inf where one position may not look at another, one by one; `shown(row, position)` tells padding."""
    positions = [*range(slot), *[None] * count, *range(slot, length)]
    bias = torch.zeros(len(tokens), 1, len(positions), len(positions), dtype=torch.float64)
    for row in range(len(tokens)):
        for here in range(len(positions)):
            for there, position in enumerate(positions):
                if (causal and there > here) or (position is not None and not shown(row, position)):
                    bias[row, 0, here, there] = -math.inf
    return bias


def build(zoo, name, size):
    torch.manual_seed(0)
    with zoo.shrunk(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        clip = load_clip(name, image_size=size).double()
    with torch.no_grad():
        for parameter in clip.parameters():  # layers that start at zero or nearly would hide a mistake
            parameter.add_(0.1 * torch.randn_like(parameter))
    return clip


def around_blocks(blocks, run):
    """What the first block is given and the last one returns, (B, L, D)."""
    seen = {}

    def enter(_, args, kwargs):
        seen["first"] = args[0] if args else next(iter(kwargs.values()))

    def leave(_, args, output):
        seen["last"] = output[0] if isinstance(output, tuple) else output

    handles = [
        blocks[0].register_forward_pre_hook(enter, with_kwargs=True, prepend=True),
        blocks[-1].register_forward_hook(leave),
    ]
    with torch.no_grad():
        run()
    for handle in handles:
        handle.remove()
    return seen["first"], seen["last"]


VISION = {
    "ViT-B-16": (open_clip_block, (64, 32)),
    "ViT-B-16-SigLIP": (timm_block, (64, 32)),
    "ViTamin-S": (timm_block, (64, 32)),
    "EVA02-B-16": (eva_block, (64, 32)),
    "EVA02-E-14": (eva_block, (56, 28)),
    "EVA01-g-14": (eva_block, (56, 28)),
    "PE-Core-B-16": (eva_block, (64, 32)),
    "PE-Core-bigG-14-448": (eva_block, (56, 28)),
    "vit_relpos_medium_patch16_cls_224": (timm_block, (64, 32)),
}


@pytest.mark.parametrize(("length", "depth"), [(1, None), (3, None), (2, 1), (4, 2)])
@pytest.mark.parametrize("name", [name for name in VISION if name in open_clip.list_models()])
def test_image_tower_equals_the_written_out_forward(zoo, name, length, depth):
    block_forward, size = VISION[name]
    clip = build(zoo, name, size)
    images = torch.randn(2, 3, *size).double()
    encoder = PromptedVisionEncoder(clip, length, depth=depth, sequence_first=False)
    last, expected = image_sequences(clip, encoder, images, encoder.prompts.tokens.detach().double(), block_forward)
    torch.testing.assert_close(last, expected, rtol=1e-5, atol=1e-6)


def image_sequences(clip, encoder, images, prompts, block_forward):
    """What the last block returns, and the same written out."""
    tower, length = encoder.tower, prompts.shape[1]
    first, last = around_blocks(tower.blocks, lambda: encoder(images))
    bias, angles = None, None
    trunk = getattr(clip.visual, "trunk", None)
    if getattr(trunk, "rope", None) is not None:
        table = trunk.rope.get_embed()
        angles = [None] * tower.slot + [None] * length + list(table)
    if tower.relative_biases:

        def bias(block):
            own = type(block.attn.rel_pos).get_bias(block.attn.rel_pos).detach()
            positions = [*range(tower.slot), *[None] * length, *range(tower.slot, own.shape[-1])]
            grown = torch.zeros(1, own.shape[1], len(positions), len(positions)).double()
            for here, one in enumerate(positions):
                for there, other in enumerate(positions):
                    if one is not None and other is not None:
                        grown[..., here, there] = own[..., one, other]
            return grown

    with torch.no_grad():
        return last, run_reference(
            block_forward, tower.blocks, first, prompts, slot=tower.slot, bias=bias, extra=angles
        )


@pytest.mark.parametrize(("length", "depth"), [(1, None), (3, None), (2, 1)])
@pytest.mark.parametrize("name", ["ViT-B-16", "ViT-B-16-SigLIP", "EVA02-B-16"])
def test_coupled_image_prompts_equal_projections_written_out(zoo, name, length, depth):
    """MaPLe, section 3.2: the image prompts of block k are a linear layer of k's own, of the text prompts of k."""
    block_forward, size = VISION[name]
    clip = build(zoo, name, size)
    config = PromptConfig(length, length, depth, depth, kind="coupled")
    model = PromptedCLIP(clip, config, sequence_first=False)
    for prompts in (model.vision.prompts.double(), model.text.prompts.double()):
        for parameter in prompts.parameters():
            torch.nn.init.normal_(parameter)
    state = model.prompt_state_dict()
    text, weight, bias, scale = (
        state[key]
        for key in ("text.prompts.tokens", *(f"vision.prompts.{part}" for part in ("weight", "bias", "scale")))
    )
    projected = torch.zeros(len(text), length, weight.shape[1]).double()
    for block in range(len(text)):
        for position in range(length):
            for unit in range(weight.shape[1]):
                terms = weight[block, unit] * text[block, position] / scale[block]
                projected[block, position, unit] = terms.sum() + bias[block, unit]
    images = torch.randn(2, 3, *size).double()
    last, expected = image_sequences(clip, model.vision, images, projected, block_forward)
    torch.testing.assert_close(last, expected, rtol=1e-5, atol=1e-6)


def beside(keys, values):
    """`attend_heads` with learned keys and values in front, (P, D) each: softmax(Q [P_K; K]^T / sqrt(d)) [P_V; V]."""
    plain = attend_heads

    def attend_prefixed(queries, own_keys, own_values, *, bias=None, **options):
        batch, heads, _, size = own_keys.shape
        further = [torch.zeros(batch, heads, len(keys), size).double() for _ in range(2)]
        for part, learned in zip(further, (keys, values), strict=True):
            for head in range(heads):
                part[:, head] = learned[:, head * size : (head + 1) * size]
        if bias is not None:
            nothing = torch.zeros(*bias.shape[:-1], len(keys)).double()
            bias = torch.cat([nothing, bias], dim=-1)
        more = [torch.cat(pair, dim=2) for pair in zip(further, (own_keys, own_values), strict=True)]
        return plain(queries, *more, bias=bias, **options)

    return mock.patch.object(sys.modules[__name__], "attend_heads", attend_prefixed)


def run_prefixed(block_forward, blocks, sequence, prompts, *, bias=None, extra=None):
    """Prefix tuning written out: the first blocks attend to their learned keys and values, the others do not."""
    for index, block in enumerate(blocks):
        own = prompts.keys, prompts.values
        learned = index < len(own[0]) and own[0].shape[1] > 0
        with beside(*(part[index].detach().double() for part in own)) if learned else nullcontext():
            sequence = block_forward(block, sequence, bias if not callable(bias) else bias(block), extra)
    return sequence


def prefix_of(length, depth):
    def make(tower):
        prompts = AttentionPrefix(tower, length, depth=depth, sequence_first=False)
        for parameter in prompts.double().parameters():
            torch.nn.init.normal_(parameter)
        return prompts

    return make


@pytest.mark.parametrize(("length", "depth"), [(1, None), (3, 2)])
@pytest.mark.parametrize("name", [name for name in VISION if name in open_clip.list_models()])
def test_image_prefix_equals_further_keys_and_values_written_out(zoo, name, length, depth):
    """Li and Liang 2021, in the form of He et al. 2022, equation 5."""
    block_forward, size = VISION[name]
    clip = build(zoo, name, size)
    images = torch.randn(2, 3, *size).double()
    encoder = PromptedVisionEncoder(clip, initialization=None, prompts=prefix_of(length, depth))
    tower = encoder.tower
    first, last = around_blocks(tower.blocks, lambda: encoder(images))
    trunk = getattr(clip.visual, "trunk", None)
    angles = None
    if getattr(trunk, "rope", None) is not None:
        angles = [None] * tower.slot + list(trunk.rope.get_embed())
    bias = (lambda block: block.attn.rel_pos.get_bias().detach()) if tower.relative_biases else None
    with torch.no_grad():
        expected = run_prefixed(block_forward, tower.blocks, first, encoder.prompts, bias=bias, extra=angles)
        encoder.detach()
    torch.testing.assert_close(last, expected, rtol=1e-9, atol=1e-9)


TEXT = {
    "ViT-B-16": open_clip_block,
    "ViT-L-14-CLIPA": open_clip_block,
    "ViT-H-14-worldwide": open_clip_block,
    "ViT-B-16-SigLIP": open_clip_block,
    "coca_ViT-B-32": open_clip_block,
    "roberta-ViT-B-32": roberta_block,
    "mt5-base-ViT-B-32": t5_block,
    "nllb-clip-base": m2m_block,
}


@pytest.mark.parametrize(("length", "depth"), [(1, None), (3, 1), (2, 2)])
@pytest.mark.parametrize("name", [name for name in TEXT if name in open_clip.list_models()])
def test_text_tower_equals_the_written_out_forward(zoo, name, length, depth):
    clip = build(zoo, name, (56, 28) if "14" in name else (64, 32))
    tokens = zoo.tokens_for(name)[:, : 24 if "hf_model_name" in _text_config(name) else None]
    if "nllb" in name:
        clip.text.transformer.layerdrop = 0.0
    encoder = PromptedTextEncoder(clip, length, depth=depth, sequence_first=False, trim=False)
    tower, prompts = encoder.tower, encoder.prompts.tokens.detach().double()
    first, last = around_blocks(tower.blocks, lambda: encoder(tokens))

    def shown(row, position):
        if "coca" in name:  # open_clip's mask of the padding is shifted by one position
            return position == 0 or tokens[row, position - 1] != 0
        return "hf_model_name" not in _text_config(name) or tokens[row, position] != tower.pad_id

    bias = mask_of(tokens, first.shape[1], slot=1, count=length, causal=tower.causal, shown=shown)
    block_forward = TEXT[name]
    if block_forward is t5_block:
        block_forward = partial(t5_block, rounded=zoo.rounds_attention(name))
    with torch.no_grad():
        expected = run_reference(block_forward, tower.blocks, first, prompts, slot=1, bias=bias, extra=tower.blocks[0])
    # Positions that nothing may look at, and that look at nothing, have no value of their own.
    rows, positions = (
        (~(bias == -math.inf).all(dim=-1))[:, 0, [*range(1), *range(1 + length, bias.shape[2])]].nonzero().T
    )
    if "hf_model_name" in _text_config(name):
        keep = tokens[rows, positions] != tower.pad_id
        rows, positions = rows[keep], positions[keep]
    torch.testing.assert_close(last[rows, positions], expected[rows, positions], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("length", "depth"), [(1, None), (3, 2)])
@pytest.mark.parametrize("name", [name for name in TEXT if name in open_clip.list_models()])
def test_text_prefix_equals_further_keys_and_values_written_out(zoo, name, length, depth):
    hugging_face = "hf_model_name" in _text_config(name)
    if hugging_face and int(importlib.metadata.version("transformers").split(".")[0]) < 5:
        pytest.skip("transformers' attention takes and returns other things before version 5")
    clip = build(zoo, name, (56, 28) if "14" in name else (64, 32))
    tokens = zoo.tokens_for(name)[:, : 24 if hugging_face else None]
    if "nllb" in name:
        clip.text.transformer.layerdrop = 0.0
    encoder = PromptedTextEncoder(clip, initialization=None, trim=False, prompts=prefix_of(length, depth))
    tower = encoder.tower
    first, last = around_blocks(tower.blocks, lambda: encoder(tokens))

    def shown(row, position):
        if "coca" in name:
            return position == 0 or tokens[row, position - 1] != 0
        return not hugging_face or tokens[row, position] != tower.pad_id

    bias = mask_of(tokens, first.shape[1], slot=1, count=0, causal=tower.causal, shown=shown)
    block_forward = TEXT[name]
    if block_forward is t5_block:
        block_forward = partial(t5_block, rounded=zoo.rounds_attention(name))
    with torch.no_grad():
        expected = run_prefixed(block_forward, tower.blocks, first, encoder.prompts, bias=bias, extra=tower.blocks[0])
    seen = tokens != tower.pad_id if hugging_face else torch.ones_like(tokens).bool()
    seen = seen[:, : last.shape[1]]
    torch.testing.assert_close(last[:, : seen.shape[1]][seen], expected[:, : seen.shape[1]][seen], rtol=1e-9, atol=1e-9)


def _text_config(name):
    return open_clip.get_model_config(name)["text_cfg"]


@pytest.mark.parametrize("length", [1, 3])
def test_prompts_before_the_end_equal_a_sequence_written_in_that_order(zoo, length):
    """Here the prompts really stand between the last word and the end; each caption by itself."""
    clip = build(zoo, "ViT-B-16", (64, 32))
    tokens = zoo.tokens_for("ViT-B-16")
    bare = copy.deepcopy(clip)
    encoder = PromptedTextEncoder(clip, length, slot="before_end")
    prompts = encoder.prompts.tokens.detach().double()
    with torch.no_grad():
        features = encoder(tokens)
        for row, caption in enumerate(tokens):
            end = int(caption.argmax())
            sequence = (bare.token_embedding(caption) + bare.positional_embedding)[None, : end + 1]
            bias = torch.full((end + 1 + length,) * 2, -math.inf).triu(1)
            final = run_reference(open_clip_block, bare.transformer.resblocks, sequence, prompts, slot=end, bias=bias)
            expected = bare.ln_final(final[:, -1]) @ bare.text_projection
            torch.testing.assert_close(features[row], expected[0], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("length", [1, 4])
def test_border_pixels_equal_an_image_padded_by_hand(zoo, length):
    clip = build(zoo, "convnext_base", (64, 32))
    images = torch.randn(2, 3, 64, 32).double()
    bare = copy.deepcopy(clip)
    encoder = PromptedVisionEncoder(clip, length)
    with torch.no_grad():
        assert torch.equal(encoder(images), bare.encode_image(images)), "a border starts at zero"
        encoder.prompts.tokens.normal_()
        painted, pixels = images.clone(), iter(encoder.prompts.tokens[0].double())
        for row in range(64):
            for column in range(32):
                if min(row, column, 63 - row, 31 - column) < length:
                    painted[:, :, row, column] += next(pixels)
        assert next(pixels, None) is None
        torch.testing.assert_close(encoder(images), bare.encode_image(painted), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("length", [0, 1, 5])
def test_attention_pool_prompts_equal_further_keys_written_out(zoo, length):
    clip = build(zoo, "RN50", (64, 32))
    images = torch.randn(2, 3, 64, 32).double()
    bare = copy.deepcopy(clip)
    maps = []
    bare.visual.attnpool.register_forward_pre_hook(lambda _, args: maps.append(args[0]))
    encoder = PromptedVisionEncoder(clip, length, place="attention_pool")
    with torch.no_grad():
        plain = bare.encode_image(images)
        features = encoder(images)
        if length == 0:
            assert torch.equal(features, plain)
            return
        pool, positions = bare.visual.attnpool, maps[0].flatten(2).transpose(1, 2)
        positions = torch.cat([positions.mean(dim=1, keepdim=True), positions], dim=1) + pool.positional_embedding
        given = torch.cat([positions, encoder.prompts.tokens.double().expand(2, -1, -1)], dim=1)
        attended = attend(pool.q_proj(positions[:, :1]), pool.k_proj(given), pool.v_proj(given), pool.num_heads)
        torch.testing.assert_close(features, pool.c_proj(attended[:, 0]), rtol=1e-5, atol=1e-8)
        with encoder.disabled():
            assert torch.equal(encoder(images), plain)
        encoder.detach()
        assert torch.equal(clip.encode_image(images), plain)
