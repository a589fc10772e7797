"""PEFT's layers inside a model: found, trained alone, merged when saved, and refused where they would learn nothing."""

import copy
import re
import warnings
from pathlib import Path

import pytest
import torch

from promptreid import ContrastiveLoss, PromptConfig, PromptedCLIP, Stage, load_clip, load_prompts, save_prompts
from promptreid.towers.adapters import adapter_layers, adapter_settings, merge_adapters
from promptreid.towers.initial_states import probe_images, probe_tokens

peft = pytest.importorskip("peft", reason="peft is not installed")

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "lora.md"
ROWS = re.findall(r"^\| [^|]+ \| `([\w-]+)` \| `(.+)` \|$", GUIDE.read_text(encoding="utf-8"), flags=re.MULTILINE)
FAMILIES = {name: targets.replace(r"\|", "|") for name, targets in ROWS}
OWN = FAMILIES["ViT-B-16"]


def add_lora(model, targets=OWN, *, method=peft.LoraConfig, **settings):
    """Adapters in both encoders, of random values, so that they change what is computed."""
    settings = {"r": 2, **settings} if method is peft.LoraConfig else settings
    wrapper = peft.get_peft_model(model.clip, method(target_modules=targets, **settings))
    return wrapper


def is_adapter(name, parameter):
    return any(part in name for part in ("lora_", "ia3_", "hada_", "lokr_", "oft_", "modules_to_save"))


def is_adapter_or_prompt(name, parameter):
    return is_adapter(name, parameter) or not name.startswith("clip.")


def train(model, *, steps=2, rate=1e-2, trains=is_adapter):
    stage = Stage("lora", model, trains=trains, losses={"contrastive": ContrastiveLoss()}, learning_rate=rate)
    stage.prepare()
    optimizer = stage.optimizer()
    images, tokens = probe_images(model.clip), probe_tokens(model.text.tower)
    for _ in range(steps):
        optimizer.zero_grad()
        out = model(images, tokens, *([[model.groups[0]] * len(images)] if model.groups else []))
        stage.losses(out["image_features"], out["text_features"], torch.arange(len(images)))["total"].backward()
        optimizer.step()
    return stage


def features(model):
    model.eval()
    with torch.no_grad():
        return torch.stack(
            [
                model.encode_image(probe_images(model.clip), normalize=True),
                model.encode_text(probe_tokens(model.text.tower), normalize=True),
            ]
        )


def close(found, expected):
    return torch.allclose(found, expected, rtol=0, atol=1e-5)


@pytest.fixture
def tiny():
    clip = load_clip("promptreid-tiny", pretrained="generated", image_size=(96, 48))
    return PromptedCLIP(clip, PromptConfig(text_length=2, vision_length=2))


def test_the_guide_has_a_row_for_each_family():
    assert len(FAMILIES) == 15


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in ("ViT-B-16", "EVA02-B-16") else [pytest.mark.slow]) for n in FAMILIES]
)
def test_lora_in_a_family_trains_alone_merges_and_loads(name, zoo, tmp_path):
    with warnings.catch_warnings(), zoo.shrunk():
        warnings.simplefilter("ignore")
        clip = load_clip(name, image_size=(224, 224))
        for norm in (module for module in clip.modules() if isinstance(module, torch.nn.BatchNorm2d)):
            torch.nn.init.ones_(norm.weight)  # 0 in a new ResNet's blocks, which then add nothing
        model = PromptedCLIP(clip, PromptConfig(text_length=2, vision_length=2))
        add_lora(model, FAMILIES[name])
        untouched, before = features(model), copy.deepcopy(model.state_dict())
        stage = train(model)
        assert all(parameter.grad is not None for parameter in stage.parameters())
        assert {name.split(".")[1] for name in stage.trains} >= {"visual"}
        after = model.state_dict()
        changed = {key for key, value in before.items() if not torch.equal(value, after[key])}
        assert set(stage.trains) <= changed
        # Attention's own weights drift by rounding, as PEFT adds to them and subtracts again; nothing else moves.
        rounded = [key for key in changed - set(stage.trains)]
        assert all("attn" in key and ".base_layer." in key for key in rounded)
        assert all((before[key] - after[key]).abs().max() < 1e-6 for key in rounded)
        trained = features(model)
        assert not close(trained, untouched)
        loaded = load_prompts(save_prompts(model, tmp_path / "saved"), trust_base=True)
        assert not adapter_layers(loaded.clip)
        assert close(features(loaded), trained)
        assert close(features(model), trained)


def test_lora_is_saved_merged_and_plain_open_clip_loads_it(tiny, tmp_path):
    import open_clip

    add_lora(tiny)
    train(tiny)
    layers = adapter_layers(tiny.clip)
    folder = save_prompts(tiny, tmp_path / "saved")
    assert adapter_layers(tiny.clip).keys() == layers.keys()
    loaded = load_prompts(folder)
    assert close(features(loaded), features(tiny))
    bare = open_clip.create_model(f"local-dir:{folder}")
    with tiny.disabled(), torch.no_grad():
        images = probe_images(tiny.clip)
        torch.testing.assert_close(bare.eval().encode_image(images), tiny.encode_image(images), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        (peft.LoraConfig, {"use_dora": True}),
        (peft.LoraConfig, {"use_rslora": True, "lora_dropout": 0.3}),
        (peft.LoraConfig, {"modules_to_save": ["ln_post"]}),
        (peft.IA3Config, {"feedforward_modules": ["c_fc"]}),
        (peft.LoHaConfig, {"r": 2}),
        (peft.LoKrConfig, {"r": 2}),
        (peft.OFTConfig, {"oft_block_size": 8, "use_cayley_neumann": False}),
    ],
    ids=["dora", "rslora", "modules_to_save", "ia3", "loha", "lokr", "oft"],
)
def test_other_methods_in_linear_layers_train_and_merge(tiny, tmp_path, method, settings):
    add_lora(tiny, ["c_fc", "c_proj"], method=method, **settings)
    untouched = features(tiny)
    train(tiny, rate=1e-1)
    assert not close(features(tiny), untouched)
    assert close(features(load_prompts(save_prompts(tiny, tmp_path / "saved"))), features(tiny))


def test_adapters_that_are_turned_off_are_not_merged(tiny, tmp_path):
    wrapper = add_lora(tiny)
    train(tiny)
    with wrapper.disable_adapter():
        expected = features(tiny)
        folder = save_prompts(tiny, tmp_path / "saved", encoders="always")
    assert close(features(load_prompts(folder)), expected)
    assert not close(features(tiny), expected)


def test_adapters_merged_already_are_saved_once(tiny, tmp_path):
    wrapper = add_lora(tiny)
    train(tiny)
    expected = features(tiny)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PEFT, that out_proj was merged with its attention
        wrapper.merge_adapter()
    assert close(features(load_prompts(save_prompts(tiny, tmp_path / "saved"))), expected)


def test_adapters_that_cannot_be_merged_are_refused_before_anything_is_written(tiny, tmp_path, monkeypatch):
    add_lora(tiny, ["c_fc"])

    def refuse(*args, **kwargs):
        raise ValueError("no merging here")

    monkeypatch.setattr(peft.tuners.lora.Linear, "merge", refuse)
    with pytest.raises(
        ValueError, match=r"resblocks\.0\.mlp\.c_fc, a Linear, cannot be merged .*no merging here\. Take"
    ):
        save_prompts(tiny, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize(
    ("name", "targets", "unreached"),
    [
        ("ViT-B-16", ["out_proj"], r"attn\.out_proj\.lora_A"),
        ("EVA01-g-14", r"visual\..*\.qkv", r"attn\.qkv\.lora_A"),
        ("RN50", r"visual\.attnpool\.k_proj", r"attnpool\.k_proj\.lora_A"),
    ],
)
def test_adapters_in_layers_that_are_never_called_are_refused(name, targets, unreached, zoo):
    import open_clip

    with warnings.catch_warnings(), zoo.shrunk():
        warnings.simplefilter("ignore")
        model = PromptedCLIP(open_clip.create_model(name), PromptConfig(text_length=2, vision_length=2))
        add_lora(model, targets)
        with pytest.raises(ValueError, match=rf"stage 'lora': trains .*{unreached}.*no feature is computed from there"):
            train(model)


def test_encoders_with_adapters_inside_are_refused(tiny):
    add_lora(tiny)
    with pytest.raises(ValueError, match=r'PEFT.s layers are in them.*trains=lambda name, _: "lora_" in name'):
        train(tiny, trains=["encoders"])


def test_dropout_of_adapters_drops_in_training_while_frozen_layers_stay_in_eval_mode(tiny):
    add_lora(tiny, lora_dropout=0.5)
    train(tiny, steps=1)
    modes = {name: module.training for name, module in tiny.clip.named_modules()}
    block = "visual.transformer.resblocks.0"
    assert modes[f"{block}.mlp.c_fc.lora_dropout.default"]
    assert modes[f"{block}.attn.lora_dropout.default"]
    assert not modes[f"{block}.mlp.c_fc.base_layer"]
    assert not modes[f"{block}.attn.base_layer"]
    assert not modes[f"{block}.ln_1"]


def test_detaching_prompts_leaves_adapters_and_the_layout_of_the_blocks(tiny):
    wrapper = add_lora(tiny)
    train(tiny)
    with tiny.disabled():
        expected = features(tiny)[0]
    clip = tiny.detach()
    assert clip.transformer.batch_first
    assert clip.visual.transformer.resblocks[0].attn.batch_first
    with torch.no_grad():
        found = torch.nn.functional.normalize(clip.encode_image(probe_images(clip)), dim=-1)
    assert close(found, expected)
    assert wrapper.merge_and_unload() is clip
    with torch.no_grad():
        found = torch.nn.functional.normalize(clip.encode_image(probe_images(clip)), dim=-1)
    assert close(found, expected)


def test_adapters_put_in_before_the_prompts_work_too(tmp_path):
    clip = load_clip("promptreid-tiny", pretrained="generated", image_size=(96, 48))
    peft.get_peft_model(clip, peft.LoraConfig(r=2, target_modules=OWN))
    model = PromptedCLIP(clip, PromptConfig(text_length=2, vision_length=2))
    train(model)
    assert close(features(load_prompts(save_prompts(model, tmp_path / "saved"))), features(model))


@pytest.mark.parametrize("first", ["prompts", "adapters"])
@pytest.mark.parametrize("kind", ["prefix", "grouped", "coupled"])
def test_adapters_and_every_kind_of_prompts_train_together_and_load(tiny, tmp_path, kind, first):
    clip, config = tiny.detach(), PromptConfig(2, 2, kind=kind, groups=("a", "b") if kind == "grouped" else ())
    if first == "adapters":
        peft.get_peft_model(clip, peft.LoraConfig(r=2, target_modules=OWN))
    model = PromptedCLIP(clip, config)
    if first == "prompts":
        add_lora(model)
    untouched, before = features(model), {name: value.clone() for name, value in model.named_parameters()}
    stage = train(model, trains=is_adapter_or_prompt)
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert changed >= set(stage.trains)
    assert {"lora", "text", "vision"} <= {"lora" if "lora_" in name else name.split(".")[0] for name in changed}
    assert not close(features(model), untouched)
    loaded = load_prompts(save_prompts(model, tmp_path / "saved"))
    assert (loaded.config, adapter_layers(loaded.clip)) == (config, {})
    assert close(features(loaded), features(model))
    if kind == "grouped":
        images = probe_images(clip)
        found = [each.encode_image(images, normalize=True, groups=["a"] * len(images)) for each in (loaded, model)]
        assert close(*found)
        assert not close(found[0], features(model)[0])


def test_adapter_settings_tell_rank_scaling_and_which_are_active(tiny):
    assert adapter_settings(tiny.clip) == []
    add_lora(tiny, ["c_fc"], r=2, lora_alpha=6)
    (found,) = adapter_settings(tiny.clip)
    assert (found["class"], found["active"], found["layers"]) == ("Linear", ["default"], 8)
    assert (found["r"], found["scaling"]) == ({"default": 2}, {"default": 3.0})


def test_model_without_adapters_is_not_copied(tiny):
    assert merge_adapters(tiny.clip) is tiny.clip
