"""Prefixes: keys and values of the attention of each block, which no MLP computes with."""

import copy
import json

import open_clip
import pytest
import torch
from open_clip.model import CLIP
from torch import nn

from promptreid import ContrastiveLoss, PromptConfig, PromptedCLIP, Stage, load_clip, load_prompts, save_prompts
from promptreid.hub.card import _prompts_line
from promptreid.hub.manifest import parse_manifest
from promptreid.model.vision import PromptedVisionEncoder
from promptreid.prompts.attention_prefix import AttentionPrefix
from promptreid.prompts.kind import PromptKind
from promptreid.towers.attention import attend
from promptreid.towers.families import find_text_tower, find_vision_tower

PREFIX = PromptConfig(text_length=2, vision_length=3, kind="prefix")


def make_base():
    return load_clip("promptreid-tiny", pretrained="generated", image_size=(32, 16))


@torch.no_grad()
def features(model):
    return model.encode_image(torch.randn(2, 3, 32, 16, generator=torch.Generator().manual_seed(7)))


def test_attention_with_one_further_key_by_hand():
    """One query of width 1 with score 0 for its own key and ln 3 for the further one: weights 1/4 and 3/4."""
    query, key, value = (torch.tensor([[[[x]]]]) for x in (1.0, 0.0, 8.0))
    further = torch.tensor([[[[3.0]]]]).log(), torch.tensor([[[[4.0]]]])
    found = attend(
        query, key, value, lambda k, v: (torch.cat([further[0], k], dim=2), torch.cat([further[1], v], dim=2))
    )
    assert found.item() == pytest.approx(8 / 4 + 3 * 4 / 4)


@pytest.mark.parametrize("hidden", [torch.tensor([[float("-inf")]]), torch.tensor([[False]])])
def test_what_a_mask_hides_leaves_the_further_keys_to_be_seen(hidden):
    query, key, value = torch.ones(3, 1, 1, 1, 1)
    found = attend(
        query, key, value, lambda k, v: (torch.cat([k, k], dim=2), torch.cat([5 * v, v], dim=2)), mask=hidden
    )
    assert found.item() == 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"position_embedding": True}, "position_embedding is True.*no place in the sequence"),
        ({"text_slot": "before_end"}, "Leave text_slot out"),
        ({"vision_place": "attention_pool"}, "Leave vision_place out"),
    ],
)
def test_options_of_places_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        PromptConfig(kind="prefix", **arguments)


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_mean_states_of_more_prompts_than_positions_are_refused(clip, tower):
    positions = {"vision": 8, "text": 23}[tower]
    options = {f"{tower}_initialization": "mean_state", "kind": "prefix"}
    model = PromptedCLIP(clip, PromptConfig(**{f"{tower}_length": positions}, **options))
    assert all(parameter.isfinite().all() for parameter in model.prompt_parameters())
    model.detach()
    words = rf'length is {positions + 1}, but "mean_state" .* has {positions} positions'
    with pytest.raises(ValueError, match=words):
        PromptedCLIP(clip, PromptConfig(**{f"{tower}_length": positions + 1}, **options))


def test_each_block_has_keys_and_values(clip):
    model = PromptedCLIP(clip, PREFIX)
    shapes = {name: tuple(value.shape) for name, value in model.prompt_state_dict().items()}
    assert shapes == {
        "vision.prompts.keys": (3, 3, 32),
        "vision.prompts.values": (3, 3, 32),
        "text.prompts.keys": (3, 2, 24),
        "text.prompts.values": (3, 2, 24),
    }


def test_parameters_of_vit_b16_are_twice_those_of_tokens():
    with torch.device("meta"):
        clip = CLIP(**open_clip.get_model_config("ViT-B-16"))
    prefixes = AttentionPrefix(find_vision_tower(clip), 4), AttentionPrefix(find_text_tower(clip), 4)
    count = sum(parameter.numel() for prompts in prefixes for parameter in prompts.parameters())
    assert count == 2 * 12 * 4 * (768 + 512) == 122_880


def test_mlp_computes_with_no_prompts(clip, images, tokens):
    model = PromptedCLIP(clip, PREFIX, trim=False)
    lengths = set()
    for block in (*clip.visual.transformer.resblocks, *clip.transformer.resblocks):
        block.mlp.register_forward_pre_hook(lambda _, args: lengths.add(args[0].shape[0]))
    model(images, tokens)
    assert lengths == {9, 24}, "the class token with 4 x 2 patches; the context"


def test_blocks_beyond_the_depth_are_bare(clip, images):
    model = PromptedCLIP(clip, PromptConfig(2, 2, 1, 1, kind="prefix"))
    assert model.vision.prompts.keys.shape[0] == 1
    touched = ["forward" in vars(block.attn) for block in clip.visual.transformer.resblocks]
    assert touched == [True, False, False]
    model.encode_image(images).sum().backward()
    with pytest.raises(ValueError, match=r"depth is 4, but this .* has 3 blocks; give 1 to 3"):
        model.attach(PromptConfig(2, 2, 4, 4, kind="prefix"))


@pytest.mark.parametrize("initialization", ["start_state", "mean_state", "normal"])
def test_start_is_as_named(clip, initialization):
    model = PromptedCLIP(clip, PromptConfig(2, 2, kind="prefix", vision_initialization=initialization))
    keys = model.vision.prompts.keys.detach()
    assert not torch.equal(keys[0, 0], keys[0, 1])
    size = keys.square().mean().sqrt()
    if initialization == "normal":
        assert size == pytest.approx(0.02, rel=0.2)
        return
    # The class token's key, or the mean over a stretch of patches, of the first block.
    from promptreid.towers.initial_states import probe_images

    block = clip.visual.transformer.resblocks[0]
    seen = []
    handle = block.ln_1.register_forward_hook(lambda _, args, output: seen.append(output.detach()))
    with model.disabled(), torch.no_grad():
        model.encode_image(probe_images(clip))
    handle.remove()
    weight, bias = (part.chunk(3)[1].detach() for part in (block.attn.in_proj_weight, block.attn.in_proj_bias))
    own = seen[0] @ weight.T + bias  # (L, B, D)
    expected = own[0].mean(dim=0) if initialization == "start_state" else own[1:5].mean(dim=(0, 1))
    tolerance = 1.0 * expected.std() if initialization == "start_state" else 1e-5
    assert (keys[0, 0] - expected).abs().max() < tolerance


def test_a_copy_of_its_own_keys_and_values_changes_nothing(model_cfg):
    """A prefix that repeats all that a block attends to doubles every weight of the softmax before it is normalised."""
    model_cfg["vision_cfg"].update(image_size=[8, 8], layers=1, pool_type="avg")
    clip = CLIP(**model_cfg).double().eval()
    images = torch.randn(1, 3, 8, 8).double()
    bare = clip.encode_image(images)
    model = PromptedCLIP(clip, PromptConfig(0, 1, kind="prefix"))
    seen = []
    clip.visual.transformer.resblocks[0].ln_1.register_forward_hook(lambda _, args, output: seen.append(output))
    model.encode_image(images)
    attention = clip.visual.transformer.resblocks[0].attn
    with torch.no_grad():
        _, keys, values = (seen[0][:, 0] @ attention.in_proj_weight.T + attention.in_proj_bias).chunk(3, dim=-1)
        model.vision.prompts.keys = nn.Parameter(keys.unsqueeze(0))
        model.vision.prompts.values = nn.Parameter(values.unsqueeze(0))
    torch.testing.assert_close(model.encode_image(images), bare, rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_gradient_checkpointing_gives_the_same_gradients(clip, images, tokens):
    model, images = PromptedCLIP(clip.double(), PREFIX).train(), images.double()
    gradients = []
    for checkpointing in (False, True):
        model.zero_grad()
        clip.set_grad_checkpointing(checkpointing)
        output = model(images, tokens)
        (output["image_features"] * output["text_features"]).sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.prompt_parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_prefix_is_cast_where_it_goes_in(clip, images, tokens, dtype):
    model = PromptedCLIP(clip, PREFIX)
    exact = model.encode_image(images), model.encode_text(tokens)
    model.clip.to(dtype)
    rough = model.encode_image(images.to(dtype)), model.encode_text(tokens)
    for one, other in zip(exact, rough, strict=True):
        assert torch.nn.functional.cosine_similarity(one.double(), other.double()).min() > 0.99
    assert all(parameter.dtype == torch.float32 for parameter in model.prompt_parameters())


@pytest.mark.slow
def test_compiled_encoder_attends_to_the_prefix(clip, images):
    model = PromptedCLIP(clip, PREFIX).eval()
    compiled = torch.compile(model.vision, backend="aot_eager")
    torch.testing.assert_close(compiled(images), model.encode_image(images), rtol=1e-5, atol=1e-5)


def test_autocast_and_copies_and_intermediates(clip, images):
    model = PromptedCLIP(clip, PREFIX).eval()
    exact = model.encode_image(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.nn.functional.cosine_similarity(model.encode_image(images).float(), exact).min() > 0.99
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.vision.prompts.values.normal_()
    assert torch.equal(model.encode_image(images), exact)
    assert not torch.allclose(twin.encode_image(images), exact)
    shallow = PromptedCLIP(twin.detach(), PromptConfig(2, 2, 1, 1, kind="prefix"))
    shapes = [tuple(part.shape) for part in shallow.clip.visual.forward_intermediates(images)["image_intermediates"]]
    assert shapes == [(5, 32, 4, 2)] * 3, "whatever the depth, no sequence holds prompts"


def test_dropout_of_attention_is_the_blocks_own(clip, images):
    for block in clip.visual.transformer.resblocks:
        block.attn.dropout = 0.5
    model = PromptedCLIP(clip, PREFIX).train()
    assert not torch.equal(model.encode_image(images), model.encode_image(images))
    model.eval()
    assert torch.equal(model.encode_image(images), model.encode_image(images))


def test_stage_trains_keys_and_values(clip):
    model = PromptedCLIP(clip, PREFIX)
    stage = Stage("one", model, trains=["image_prompts"], losses={"contrastive": ContrastiveLoss()})
    stage.prepare()
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert names == {"vision.prompts.keys", "vision.prompts.values"}


def test_saved_prefix_loads_by_itself_and_saves_alike(tmp_path):
    model = PromptedCLIP(make_base(), PREFIX).eval()
    folder = save_prompts(model, tmp_path / "m")
    manifest = json.loads((folder / "prompt_config.json").read_text())
    assert manifest["prompts"]["kind"] == "prefix"
    assert "kinds" not in manifest
    loaded = load_prompts(folder)
    assert torch.equal(features(loaded), features(model))
    again = save_prompts(loaded, tmp_path / "again")
    for name in ("prompt_config.json", "prompts.safetensors"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()
    line = _prompts_line(parse_manifest((folder / "prompt_config.json").read_bytes(), source="f"))
    assert line == "2 a block in the text encoder, 3 in the image encoder; they are keys and values of attention"


def test_sets_are_switched_by_name():
    model = PromptedCLIP(make_base(), PREFIX).eval()
    prefix = features(model)
    model.add_prompts("tokens", PromptConfig(2, 2))
    model.use("tokens")
    assert not torch.equal(features(model), prefix)
    model.use("default")
    assert torch.equal(features(model), prefix)


def test_own_kind_in_one_tower_beside_a_prefix_in_the_other(clip, images, tokens):
    class Nothing(PromptKind):
        def __init__(self, tower):
            super().__init__(tower, 0, width=1)

        def register_hooks(self):
            return iter(())

    model = PromptedCLIP(clip, PREFIX, vision_prompts=Nothing)
    assert set(model.prompt_state_dict()) == {"text.prompts.keys", "text.prompts.values"}


def test_attention_of_an_unknown_class_is_refused_and_the_model_left_bare(clip, images):
    class Unknown(nn.MultiheadAttention):
        pass

    bare = clip.encode_image(images)
    clip.visual.transformer.resblocks[1].attn.__class__ = Unknown
    with pytest.raises(ValueError, match=r"of the class ResidualAttentionBlock, and no attention is found"):
        PromptedVisionEncoder(clip, prompts=lambda tower: AttentionPrefix(tower, 2))
    assert torch.equal(clip.encode_image(images), bare)


def test_text_prefix_goes_with_an_image_tower_without_blocks(zoo):
    with zoo.shrunk():
        clip = load_clip("RN50", image_size=(64, 32))
    model = PromptedCLIP(clip, PromptConfig(text_length=2, vision_length=0, kind="prefix"))
    assert {name for name, value in model.prompt_state_dict().items() if value.numel()} == {
        "text.prompts.keys", "text.prompts.values"
    }  # fmt: skip
