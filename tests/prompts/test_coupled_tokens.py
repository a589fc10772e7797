"""Coupled prompts: image prompts made of the text prompts, trained, saved, switched and counted as one."""

import copy
import json

import open_clip
import pytest
import torch
from open_clip.model import CLIP

from promptreid import ContrastiveLoss, PromptConfig, PromptedCLIP, Stage, load_clip, load_prompts, save_prompts
from promptreid.errors import CheckpointError
from promptreid.hub.card import _prompts_line
from promptreid.hub.manifest import parse_manifest
from promptreid.prompts.block_tokens import BlockTokens
from promptreid.prompts.border_pixels import BorderPixels
from promptreid.prompts.coupled_tokens import CoupledTokens
from promptreid.towers.families import find_text_tower, find_vision_tower
from promptreid.training.run_identity import run_identity

COUPLED = PromptConfig(text_length=2, vision_length=2, kind="coupled")


def make_base():
    return load_clip("promptreid-tiny", pretrained="generated", image_size=(32, 16))


@torch.no_grad()
def features(model):
    return model.encode_image(torch.randn(2, 3, 32, 16, generator=torch.Generator().manual_seed(7)))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"kind": "woven"}, "kind is 'woven', expected one of independent, coupled"),
        ({"kind": "coupled", "text_length": 3}, "text_length is 3 and vision_length is 4.*give both the same length"),
        ({"kind": "coupled", "vision_depth": 3}, "text_depth is None and vision_depth is 3.*give both the same depth"),
        ({"kind": "coupled", "vision_initialization": "mean_state"}, "projections.*Leave vision_initialization out"),
        ({"kind": "coupled", "vision_place": "attention_pool"}, "Leave vision_place out"),
    ],
)
def test_config_that_cannot_be_coupled_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        PromptConfig(**arguments)


def test_each_block_has_a_projection_and_no_image_prompts_of_its_own(clip):
    model = PromptedCLIP(clip, COUPLED)
    shapes = {name: tuple(value.shape) for name, value in model.prompt_state_dict().items()}
    # Three blocks a tower, image width 32, text width 24.
    assert shapes == {
        "vision.prompts.weight": (3, 32, 24),
        "vision.prompts.bias": (3, 32),
        "vision.prompts.scale": (3,),
        "text.prompts.tokens": (3, 2, 24),
    }
    assert sum(parameter.numel() for parameter in model.prompt_parameters()) == 3 * (32 * 24 + 32 + 2 * 24)


def test_parameters_of_vit_b16_at_depth_nine_are_those_of_the_paper():
    """MaPLe states 3.55 M: 9 blocks of 2 prompts of width 512, and linear layers of 512 to 768."""
    with torch.device("meta"):
        clip = CLIP(**open_clip.get_model_config("ViT-B-16"))
    text = BlockTokens(find_text_tower(clip), 2, depth=9)
    image = CoupledTokens(find_vision_tower(clip), text)
    count = sum(parameter.numel() for prompts in (text, image) for parameter in prompts.parameters())
    assert count == 9 * (2 * 512 + 512 * 768 + 768) == 3_555_072


@pytest.mark.parametrize("initialization", ["start_state", "mean_state", "normal"])
def test_image_prompts_start_small_however_large_the_text_prompts_are(clip, initialization):
    model = PromptedCLIP(clip, PromptConfig(8, 8, kind="coupled", text_initialization=initialization))
    for block in range(3):
        assert model.vision.prompts.layer(block).detach().square().mean().sqrt() == pytest.approx(0.02, rel=0.4)


def test_depth_is_the_number_of_blocks_that_both_towers_have(model_cfg, images, tokens):
    model_cfg["vision_cfg"]["layers"] = 2
    model = PromptedCLIP(CLIP(**model_cfg).eval(), COUPLED)
    assert model.vision.prompts.depth == model.text.prompts.depth == 2
    model(images, tokens)
    with pytest.raises(ValueError, match=r"depth is 3, but this .* has 2 blocks"):
        model.attach(PromptConfig(2, 2, 3, 3, kind="coupled"))
    model.clip.encode_image(images)
    model.attach(COUPLED)


def test_a_gradient_of_the_images_alone_reaches_the_text_prompts(clip, images):
    model = PromptedCLIP(clip, COUPLED)
    model.encode_image(images).square().sum().backward()
    for parameter in model.prompt_parameters():
        assert parameter.grad.abs().flatten(1).sum(dim=1).gt(0).all()


def test_projection_is_float32_under_autocast(clip, images):
    model = PromptedCLIP(clip, COUPLED)
    exact = model.vision.prompts.layer(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model.vision.prompts.layer(0), exact)


def test_deep_copy_projects_its_own_text_prompts(clip, images):
    model = PromptedCLIP(clip, COUPLED)
    before = model.encode_image(images)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.text.prompts.tokens.normal_()
    assert torch.equal(model.encode_image(images), before)
    assert not torch.allclose(twin.encode_image(images), before)


def test_bare_images_are_bare_with_coupled_prompts_disabled(clip, images):
    bare = copy.deepcopy(clip).encode_image(images)
    model = PromptedCLIP(clip, COUPLED)
    with model.disabled():
        torch.testing.assert_close(model.encode_image(images), bare, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_compiled_image_encoder_projects_the_prompts(clip, images):
    model = PromptedCLIP(clip, COUPLED)
    compiled = torch.compile(model.vision, backend="aot_eager")
    torch.testing.assert_close(compiled(images), model.encode_image(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("part", "names"), [
    ("image_prompts", {"vision.prompts.weight", "vision.prompts.bias"}),
    ("text_prompts", {"text.prompts.tokens"}),
    ("prompts", {"vision.prompts.weight", "vision.prompts.bias", "text.prompts.tokens"}),
])  # fmt: skip
def test_stage_trains_the_part_it_names(clip, part, names):
    model = PromptedCLIP(clip, COUPLED)
    stage = Stage("one", model, trains=[part], losses={"contrastive": ContrastiveLoss()})
    stage.prepare()
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == names


def test_saved_prompts_load_by_themselves_and_save_alike(tmp_path):
    model = PromptedCLIP(make_base(), COUPLED).eval()
    with torch.no_grad():
        model.vision.prompts.bias.normal_()
    folder = save_prompts(model, tmp_path / "m")
    manifest = json.loads((folder / "prompt_config.json").read_text())
    assert manifest["prompts"]["kind"] == "coupled"
    assert "kinds" not in manifest
    loaded = load_prompts(folder)
    assert torch.equal(features(loaded), features(model))
    again = save_prompts(loaded, tmp_path / "again")
    for name in ("prompt_config.json", "prompts.safetensors"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()
    line = _prompts_line(parse_manifest((folder / "prompt_config.json").read_bytes(), source="f"))
    assert line == "2 a block in the text encoder, 2 in the image encoder, projected from those of the text encoder"
    with pytest.raises(CheckpointError, match=r'vision_prompts is .*, but kind is "coupled"'):
        load_prompts(folder, vision_prompts=lambda tower: BorderPixels(tower, 1))


def test_files_and_runs_of_independent_prompts_name_no_kind(tmp_path):
    model = PromptedCLIP(make_base())
    folder = save_prompts(model, tmp_path / "m")
    assert "kind" not in json.loads((folder / "prompt_config.json").read_text())["prompts"]
    assert "kind" not in run_identity(model, [])["prompts"]
    assert run_identity(PromptedCLIP(make_base(), COUPLED), [])["prompts"]["kind"] == "coupled"


def test_sets_of_both_kinds_are_switched_by_name():
    model = PromptedCLIP(make_base()).eval()
    independent = features(model)
    model.add_prompts("coupled", COUPLED)
    model.use("coupled")
    coupled = features(model)
    assert not torch.equal(coupled, independent)
    model.use("default")
    assert torch.equal(features(model), independent)
    model.use("coupled")
    assert torch.equal(features(model), coupled)
    assert model.vision.prompts._source[0] is model.text.prompts


def test_own_kinds_beside_coupled_prompts_are_refused(clip):
    with pytest.raises(ValueError, match=r'text_prompts is .*, but kind is "coupled".*Leave these options out'):
        PromptedCLIP(clip, COUPLED, text_prompts=lambda tower: None)
