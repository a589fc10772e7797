"""Weights as people hold them: every kind of file is told by its keys, and loaded as it was trained."""

import argparse
import json
import os
import pickle
import re
import warnings
import zipfile

import open_clip
import pytest
import torch
from open_clip.transformer import QuickGELU
from safetensors.torch import save_file

from promptreid import PromptedCLIP, load_clip
from promptreid.errors import CheckpointError, WeightsError
from promptreid.towers.loading import model_config, preprocess_config
from promptreid.towers.weights import read_checkpoint

NAME = "ViT-B-16"


@pytest.fixture(autouse=True)
def _shrunk(zoo):
    with zoo.shrunk():
        yield


def make(size=(64, 64), *, quick_gelu=True, name=NAME):
    """A shrunken model whose weights half precision holds exactly."""
    clip = load_clip(name, image_size=size, quick_gelu=quick_gelu)
    clip.load_state_dict({key: value.half().float() for key, value in clip.state_dict().items()})
    return clip


def halves(clip):
    return {key: value.half() for key, value in clip.state_dict().items()}


class Nested(torch.nn.Module):
    """A module whose state dict has these names, as TorchScript can save it."""

    def __init__(self, weights):
        super().__init__()
        inside: dict[str, dict] = {}
        for name, value in weights.items():
            head, _, rest = name.partition(".")
            if rest:
                inside.setdefault(head, {})[rest] = value
            else:
                self.register_buffer(head, value)
        for head, part in inside.items():
            self.add_module(head, Nested(part))

    def forward(self, images):
        return images


def save_scripted(clip, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's, of TorchScript's end
        _save_scripted(clip, path)


def _save_scripted(clip, path):
    numbers = {name: torch.tensor(64) for name in ("input_resolution", "context_length", "vocab_size")}
    torch.jit.script(Nested(halves(clip) | numbers)).save(path)


# As each project's public code names them.
HEADS = {
    "IRRA": [
        *("classifier.weight", "cross_attn.in_proj_weight", "cross_modal_transformer.resblocks.0.ln_1.weight"),
        *("ln_post.weight", "ln_pre_i.bias", "ln_pre_t.weight", "mlm_head.fc.weight"),
    ],
    "RDE": [
        *("visul_emb_layer.linear.weight", "visul_emb_layer.fc.weight", "visul_emb_layer.mlp.bns.0.running_mean"),
        *("texual_emb_layer.linear.bias", "texual_emb_layer.mlp.layers.1.weight"),
    ],
    "TBPS-CLIP": [
        *("simclr_mlp.0.weight", "classifier.weight", "cross_attn.out_proj.weight", "ln_pre_t.weight", "ln_post.bias"),
        *("cross_modal_transformer.resblocks.0.attn.in_proj_weight", "mlm_head.dense.weight"),
    ],
}
SIZES = {"IRRA": (384, 128), "RDE": (384, 128), "TBPS-CLIP": (224, 224)}  # TBPS-CLIP's tower is built for 224


def save_field(clip, kind, path):
    """As the projects save: IRRA and RDE without `logit_scale` and in half precision, TBPS-CLIP in single."""
    weights = {name: value for name, value in halves(clip).items() if name != "logit_scale"}
    if kind == "TBPS-CLIP":
        text = {f"encode_text.{k}": v.float() for k, v in weights.items() if not k.startswith("visual.")}
        weights = {k: v.float() for k, v in weights.items() if k.startswith("visual.")} | text
        weights["logit_scale"] = torch.tensor(2.6)
    else:
        weights = {f"base_model.{name}": value for name, value in weights.items()}
    weights |= {name: torch.zeros(3) for name in HEADS[kind]}
    settings = argparse.Namespace(lr=1e-5)  # their own classes, which must not be needed to read the weights
    torch.save({"model": weights, "optimizer": {"state": {0: torch.zeros(3)}}, "config": settings}, path)


def same_features(one, other):
    images, tokens = torch.randn(2, 3, *one.visual.image_size), torch.randint(1, 90, (2, 77))
    with torch.no_grad():
        torch.testing.assert_close(one.encode_image(images), other.encode_image(images), rtol=0, atol=0)
        torch.testing.assert_close(one.encode_text(tokens), other.encode_text(tokens), rtol=0, atol=0)


def test_openai_torchscript_is_read_without_its_code_and_gets_quick_gelu(tmp_path):
    clip = make()
    save_scripted(clip, tmp_path / "ViT-B-16.pt")
    found = read_checkpoint(tmp_path / "ViT-B-16.pt")
    assert (found.title, found.quick_gelu) == ("OpenAI's CLIP", True)
    same_features(load_clip(NAME, pretrained=str(tmp_path / "ViT-B-16.pt"), image_size=(64, 64)), clip)


def test_openai_tensors_as_a_dictionary_are_told_by_their_keys(tmp_path):
    clip = make()
    torch.save(halves(clip) | {"input_resolution": torch.tensor(64), "vocab_size": torch.tensor(9)}, tmp_path / "a.bin")
    same_features(load_clip(NAME, pretrained=str(tmp_path / "a.bin"), image_size=(64, 64)), clip)


@pytest.mark.parametrize("layout", ["epoch", "bare", "module", "compiled", "legacy"])
def test_training_checkpoints_and_state_dicts_are_loaded(tmp_path, layout):
    clip = make(quick_gelu=False)
    state = clip.state_dict()
    content = {
        "epoch": {
            "epoch": 3,
            "state_dict": {f"module.{name}": value for name, value in state.items()},
            "optimizer": {},
        },
        "bare": state,
        "module": {f"module.{name}": value for name, value in state.items()},
        "compiled": {"model": {f"_orig_mod.{name}": value for name, value in state.items()}},
        "legacy": dict(state),
    }[layout]
    torch.save(content, tmp_path / "epoch_3.pt", _use_new_zipfile_serialization=layout != "legacy")
    path = str(tmp_path / "epoch_3.pt")
    same_features(load_clip(NAME, pretrained=path, image_size=(64, 64), quick_gelu=False), clip)


@pytest.mark.parametrize("kind", HEADS)
def test_field_checkpoint_gives_its_encoders_activation_size_and_statistics(tmp_path, kind):
    clip = make(SIZES[kind])
    save_field(clip, kind, tmp_path / "best.pth")
    found = read_checkpoint(tmp_path / "best.pth")
    assert (found.title, found.quick_gelu, found.saved_size) == (kind, True, SIZES[kind])
    assert found.left_out == tuple(sorted(HEADS[kind]))
    again = load_clip(NAME, pretrained=str(tmp_path / "best.pth"), image_size=None)
    assert again.visual.image_size == SIZES[kind]
    same_features(again, clip)
    model = PromptedCLIP(again)
    imagenet = kind == "TBPS-CLIP"
    assert model.eval_transform.mean[0] == pytest.approx(0.485 if imagenet else 0.48145466)
    assert model.eval_transform.interpolation == ("bicubic" if imagenet else "bilinear")
    assert preprocess_config(again)["mean"][0] == model.eval_transform.mean[0]


def test_field_checkpoint_of_another_size_than_the_default_is_resized_with_a_warning(tmp_path):
    path = str(tmp_path / "best.pth")
    save_field(make(SIZES["TBPS-CLIP"]), "TBPS-CLIP", path)
    message = r"best\.pth is TBPS-CLIP's, trained on images of 224 x 224, and is resized to 384 x 128, .* give 224 x"
    with pytest.warns(UserWarning, match=message) as caught:
        assert load_clip(NAME, pretrained=path).visual.image_size == (384, 128)
    assert [warning.filename for warning in caught] == [__file__]
    for asked in ((224, 224), (64, 32), (256, 128), None):  # a warning is an error here
        load_clip(NAME, pretrained=path, image_size=asked)
    save_field(make(SIZES["IRRA"]), "IRRA", path)
    load_clip(NAME, pretrained=path)


def irra_features(weights, images, tokens):
    """IRRA's forward written plainly on its own names: OpenAI's towers, positions as they are in the file."""

    def blocks(sequence, prefix, heads, mask):
        for index in range(3):
            at = f"{prefix}transformer.resblocks.{index}."
            attention = torch.nn.MultiheadAttention(sequence.shape[-1], heads, batch_first=True)
            attention.load_state_dict({k[len(at) + 5 :]: v for k, v in weights.items() if k.startswith(f"{at}attn.")})
            normal = norm(sequence, f"{at}ln_1")
            sequence = sequence + attention(normal, normal, normal, attn_mask=mask, need_weights=False)[0]
            inner = linear(norm(sequence, f"{at}ln_2"), f"{at}mlp.c_fc")
            sequence = sequence + linear(inner * torch.sigmoid(1.702 * inner), f"{at}mlp.c_proj")
        return sequence

    def norm(x, name):
        return torch.nn.functional.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])

    def linear(x, name):
        return x @ weights[f"{name}.weight"].t() + weights[f"{name}.bias"]

    x = torch.nn.functional.conv2d(images, weights["visual.conv1.weight"], stride=16).flatten(2).transpose(1, 2)
    x = (
        torch.cat([weights["visual.class_embedding"].expand(len(x), 1, -1), x], 1)
        + weights["visual.positional_embedding"]
    )
    x = blocks(norm(x, "visual.ln_pre"), "visual.", 2, None)
    image = norm(x[:, 0], "visual.ln_post") @ weights["visual.proj"]
    t = weights["token_embedding.weight"][tokens] + weights["positional_embedding"]
    t = blocks(t, "", 2, torch.full((77, 77), float("-inf")).triu(1))
    t = norm(t, "ln_final")[torch.arange(len(t)), tokens.argmax(-1)] @ weights["text_projection"]
    return image, t


def test_irra_features_equal_a_plain_forward_on_its_own_names(tmp_path):
    clip = make((384, 128))
    save_field(clip, "IRRA", tmp_path / "best.pth")
    saved = torch.load(tmp_path / "best.pth", weights_only=False)["model"]
    weights = {name.removeprefix("base_model."): value.float() for name, value in saved.items()}
    images, tokens = torch.randn(2, 3, 384, 128), torch.randint(1, 90, (2, 77))
    again = load_clip(NAME, pretrained=str(tmp_path / "best.pth"))
    with torch.no_grad():
        image, text = irra_features(weights, images, tokens)
        torch.testing.assert_close(again.encode_image(images), image, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(again.encode_text(tokens), text, rtol=1e-5, atol=1e-6)


def clip_reid(clip):
    """CLIP-ReID's names: the image encoder, the frozen text encoder without its token embedding, prompts and heads."""
    state = {name: value for name, value in clip.state_dict().items() if name != "logit_scale"}
    weights = {f"image_encoder.{k.removeprefix('visual.')}": v for k, v in state.items() if k.startswith("visual.")}
    weights |= {f"text_encoder.{k}": v for k, v in state.items() if not k.startswith(("visual.", "token_embedding"))}
    heads = ("classifier.weight", "classifier_proj.weight", "bottleneck.running_mean", "bottleneck_proj.weight")
    prompts = ("prompt_learner.cls_ctx", "prompt_learner.token_prefix", "prompt_learner.token_suffix")
    return weights | {name: torch.zeros(3) for name in heads + prompts}


@pytest.fixture
def openai_tag(tmp_path, monkeypatch):
    """A model whose weights open_clip finds under the tag `openai`; what was trained from it is to be read."""
    base = make((64, 64))
    save_file(base.state_dict(), tmp_path / "base.safetensors")
    monkeypatch.setattr("open_clip.factory.download_pretrained", lambda *_, **__: str(tmp_path / "base.safetensors"))
    monkeypatch.setattr("promptreid.towers.loading.with_tagged_weights", lambda name, tag, cache, load: load())
    return base


def test_clip_reid_gives_its_image_encoder_and_the_text_encoder_it_left_frozen(tmp_path, openai_tag):
    trained = make((256, 128))
    state = openai_tag.state_dict() | {k: v for k, v in trained.state_dict().items() if k.startswith("visual.")}
    trained.load_state_dict(state)
    torch.save(clip_reid(trained), tmp_path / "ViT-B-16_60.pth")
    found = read_checkpoint(tmp_path / "ViT-B-16_60.pth")
    assert (found.title, found.quick_gelu, found.saved_size) == ("CLIP-ReID", True, (256, 128))
    assert {name.split(".")[0] for name in found.left_out} == {
        *("classifier", "classifier_proj", "bottleneck", "bottleneck_proj", "prompt_learner")
    }
    again = load_clip(NAME, pretrained=str(tmp_path / "ViT-B-16_60.pth"), image_size=(256, 128))
    same_features(again, trained)
    model = PromptedCLIP(again)
    assert (model.eval_transform.mean[0], model.eval_transform.interpolation) == (0.5, "bilinear")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cv_embed": torch.zeros(6, 32)}, r"embedding of the camera \(SIE_CAMERA\).*pretrained=\"openai\""),
        ({"image_encoder.layer4.0.conv1.weight": torch.zeros(3)}, "ResNet's last stage has a stride of 1"),
        ({"text_encoder.ln_final.bias": torch.ones(32)}, r"text tower is not that of the 'openai'.*ln_final\.bias"),
        (
            {"image_encoder.positional_embedding": torch.zeros(211, 32)},
            r"210 patches, as images of \(256, 128\) give at a stride of 12",
        ),
    ],
)
def test_clip_reid_that_no_tower_here_equals_is_refused_with_the_reason(tmp_path, openai_tag, change, words):
    torch.save(clip_reid(openai_tag) | change, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=words):
        load_clip(NAME, pretrained=str(tmp_path / "a.pth"))


def test_clip_reids_baseline_without_text_is_refused(tmp_path, openai_tag):
    held = {name: value for name, value in clip_reid(openai_tag).items() if name.startswith(("image_enc", "class"))}
    torch.save(held, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"CLIP-ReID's, and cannot search by words: it holds only an image encoder"):
        load_clip(NAME, pretrained=str(tmp_path / "a.pth"))


@pytest.mark.parametrize(("size", "stride"), [((384, 128), 12), ((384, 128), 8), ((256, 128), 12)])
def test_overlapping_patches_of_the_field_are_refused_by_their_stride(tmp_path, size, stride):
    clip = make((384, 128))
    rows, columns = ((side - 16) // stride + 1 for side in size)
    save_field(clip, "IRRA", tmp_path / "best.pth")
    content = torch.load(tmp_path / "best.pth", weights_only=False)
    content["model"]["base_model.visual.positional_embedding"] = torch.zeros(rows * columns + 1, 32)
    torch.save(content, tmp_path / "best.pth")
    with pytest.raises(WeightsError, match=rf"{rows * columns} patches, as images of .* at a stride of {stride}: they"):
        load_clip(NAME, pretrained=str(tmp_path / "best.pth"))


def test_activation_is_that_of_the_configuration_beside_the_file(tmp_path):
    clip = make()
    save_file(clip.state_dict(), tmp_path / "mine.safetensors")
    config = {
        "model_cfg": model_config(clip),
        "preprocess_cfg": preprocess_config(clip) | {"interpolation": "bilinear"},
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    again = load_clip(NAME, pretrained=str(tmp_path / "mine.safetensors"), image_size=(64, 64))
    same_features(again, clip)
    assert PromptedCLIP(again).train_transform.interpolation == "bilinear"
    config["model_cfg"]["quick_gelu"] = False
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"were trained with GELU\. Load 'ViT-B-16'"):
        load_clip(f"{NAME}-quickgelu", pretrained=str(tmp_path / "mine.safetensors"), image_size=(64, 64))


@pytest.mark.parametrize("value", ["true", "no", 1, 0, None, [True]])
def test_activation_that_is_neither_true_nor_false_is_refused(tmp_path, value):
    clip = make()
    save_file(clip.state_dict(), tmp_path / "mine.safetensors")
    path = str(tmp_path / "mine.safetensors")
    config = {"model_cfg": model_config(clip) | {"quick_gelu": value}, "preprocess_cfg": preprocess_config(clip)}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"open_clip_config\.json .*quick_gelu is .*, expected true or false"):
        load_clip(NAME, pretrained=path, image_size=(64, 64))
    if value is not None:  # which leaves it to the weights
        for pretrained in (path, "openai"):
            (tmp_path / "open_clip_config.json").unlink(missing_ok=True)
            with pytest.raises(TypeError, match=r"quick_gelu is .*, expected True, False or None"):
                load_clip(NAME, pretrained=pretrained, image_size=(64, 64), quick_gelu=value)


def test_activation_that_nothing_states_is_warned_of_with_its_switch(tmp_path):
    clip = make()
    save_file(clip.state_dict(), tmp_path / "mine.safetensors")
    path = str(tmp_path / "mine.safetensors")
    with pytest.warns(UserWarning, match=r"mine\.safetensors does not say .* quick_gelu=True if they descend"):
        plain = load_clip(NAME, pretrained=path, image_size=(64, 64))
    assert not any(isinstance(part, QuickGELU) for part in plain.modules())
    same_features(load_clip(NAME, pretrained=path, image_size=(64, 64), quick_gelu=True), clip)
    same_features(load_clip(f"{NAME}-quickgelu", pretrained=path, image_size=(64, 64)), clip)
    with pytest.raises(ValueError, match=r"computes QuickGELU, but quick_gelu is False\. Load 'ViT-B-16'"):
        load_clip(f"{NAME}-quickgelu", pretrained=path, image_size=(64, 64), quick_gelu=False)
    with pytest.raises(ValueError, match="quick_gelu is False, but the weights tagged 'openai' were trained with"):
        load_clip(NAME, pretrained="openai", quick_gelu=False)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_values_that_are_not_finite_are_refused_with_their_names(tmp_path, value, suffix):
    state = {key: each.clone() for key, each in make().state_dict().items()}
    state["ln_final.weight"][2] = value
    path = tmp_path / f"a.{suffix}"
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    with pytest.raises(WeightsError, match=rf"a\.{suffix} holds NaN or infinity in ln_final\.weight \(1 of \d+"):
        load_clip(NAME, pretrained=str(path), image_size=(64, 64), quick_gelu=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda state: {"classifier.weight": torch.zeros(2)},
            r"no image encoder of a known kind: only classifier\.weight\. Expected the whole model's weights, not",
        ),
        (lambda state: {"epoch": 3}, "no image encoder of a known kind: no tensors"),
        (lambda state: {k: v for k, v in state.items() if "visual" not in k}, "no image encoder of a known kind: only"),
        (lambda state: {k: v for k, v in state.items() if k != "ln_final.bias"}, r"Missing key\(s\) ln_final\.bias"),
        (lambda state: state | {"ln_final.bias": torch.zeros(7)}, r"size mismatch for ln_final\.bias \(7,\) instead"),
        (lambda state: state | {"extra.weight": torch.zeros(7)}, r"Unexpected key\(s\) extra\.weight"),
        (lambda state: state | {"ln_final.bias": torch.ones(32).to(torch.int8)}, r"whole numbers in ln_final\.bias"),
    ],
)
def test_file_that_does_not_fit_says_what_it_is_and_what_was_expected(tmp_path, change, words):
    torch.save(change(dict(make().state_dict())), tmp_path / "a.pt")
    with pytest.raises(WeightsError, match=words):
        load_clip(NAME, pretrained=str(tmp_path / "a.pt"), image_size=(64, 64), quick_gelu=True)


def test_half_a_file_of_any_format_is_refused_by_name(tmp_path):
    clip = make()
    save_scripted(clip, tmp_path / "a.pt")
    torch.save(clip.state_dict(), tmp_path / "b.pt")
    save_file(clip.state_dict(), tmp_path / "c.safetensors")
    for path in sorted(tmp_path.iterdir()):
        content = path.read_bytes()
        for kept in (9, len(content) // 2, len(content) - 30):
            path.write_bytes(content[:kept])
            with pytest.raises(WeightsError, match=rf"{re.escape(path.name)} is (not a weight file|damaged)"):
                load_clip(NAME, pretrained=str(path), image_size=(64, 64))


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code of the file ran')",))


def test_pipe_for_weights_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "weights.pt")
    with pytest.raises(
        WeightsError, match=r"weights\.pt cannot be read as weights: it is a pipe, expected a plain file"
    ):
        load_clip(NAME, pretrained=str(tmp_path / "weights.pt"))


def test_code_in_a_checkpoint_is_never_run(tmp_path):
    state = make().state_dict()
    torch.save({"state_dict": dict(state), "evil": Evil()}, tmp_path / "a.pt")
    load_clip(NAME, pretrained=str(tmp_path / "a.pt"), image_size=(64, 64), quick_gelu=True)
    torch.save({**state, "evil": Evil()}, tmp_path / "b.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(WeightsError, match=r"holds more than tensors, .* publish it as safetensors") as caught:
        load_clip(NAME, pretrained=str(tmp_path / "b.pt"), image_size=(64, 64))
    assert "weights_only" not in str(caught.value)


def test_tensor_larger_than_its_record_is_refused_before_memory_is_taken(tmp_path):
    class Huge:
        def __reduce__(self):
            return (torch._utils._rebuild_tensor_v2, (Storage(), 0, (2**40,), (1,), False, {}))

    class Storage: ...

    class Pickler(pickle.Pickler):
        def persistent_id(self, each):
            return ("storage", torch.FloatStorage, "0", "cpu", 2**40) if isinstance(each, Storage) else None

    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        with archive.open("a/data.pkl", "w") as file:
            Pickler(file, protocol=2).dump({"visual.conv1.weight": Huge()})
        archive.writestr("a/data/0", b"1234")
    with pytest.raises(CheckpointError, match=r"a\.pt is damaged: visual\.conv1\.weight is not whole in it"):
        load_clip(NAME, pretrained=str(tmp_path / "a.pt"), image_size=(64, 64))


@pytest.mark.parametrize("what", ["list of names", "values"])
def test_archive_that_unpacks_to_far_more_than_it_is_is_refused_unread(tmp_path, what):
    """torch never compresses: what is small in the file and large in memory is no checkpoint."""
    torch.save(make().state_dict(), tmp_path / "a.pt")
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(tmp_path / "a.pt") as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            content = old.read(entry)
            if what == "list of names" and entry.filename.endswith("data.pkl"):
                content += b"\0" * (65 * 2**20)
            new.writestr(entry.filename, content)
    assert path.stat().st_size < 2 * (tmp_path / "a.pt").stat().st_size
    words = {
        "list of names": r"lists more than weights: its index \(data\.pkl\) is 68,.*save only",
        "values": "is not whole in it",
    }[what]
    with pytest.raises(WeightsError, match=rf"bomb\.pt .*{words}"):
        load_clip(NAME, pretrained=str(path), image_size=(64, 64))


def test_file_of_another_width_says_whose_shapes_it_has(tmp_path, monkeypatch):
    torch.save(make().state_dict(), tmp_path / "a.pt")
    wider = open_clip.get_model_config(NAME)
    wider["text_cfg"]["width"] = 64
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-L-16", wider)
    words = (
        r"a\.pt does not hold the weights of this architecture: size mismatch .* Its shapes are those of ViT-B-16: name"
    )
    with pytest.raises(WeightsError, match=words):
        load_clip("ViT-L-16", pretrained=str(tmp_path / "a.pt"), image_size=(64, 64), quick_gelu=True)


@pytest.mark.parametrize("typed", ["vit_b_16", "ViT-b-16", "VIT/B/16", "vit-b_16"])
def test_name_in_another_case_or_with_other_signs_finds_the_right_one(typed):
    with pytest.raises(ValueError, match=rf"no model named '{typed}'\. Did you mean ViT-B-16[,?]"):
        load_clip(typed)


@pytest.mark.parametrize(
    ("stated", "mean", "std", "interpolation"),
    [
        ({"mean": (0, 0, 0), "std": (1, 1, 1), "interpolation": "bilinear"}, 0, 1, "bilinear"),
        (
            {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "interpolation": "bicubic"},
            0.5,
            0.5,
            "bicubic",
        ),
    ],
)
def test_transforms_use_the_statistics_and_interpolation_of_a_tag(
    tmp_path, monkeypatch, stated, mean, std, interpolation
):
    save_file(make(quick_gelu=False).state_dict(), tmp_path / "weights.safetensors")
    monkeypatch.setattr("open_clip.factory.download_pretrained", lambda *_, **__: str(tmp_path / "weights.safetensors"))
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, NAME, {"there": {"url": "https://a.org", **stated}})
    model = PromptedCLIP(load_clip(NAME, pretrained="there", image_size=(64, 32)))
    for transform in (model.train_transform, model.eval_transform):
        assert (transform.mean[0], transform.std[0], transform.interpolation) == (mean, std, interpolation)
    assert preprocess_config(model.clip)["interpolation"] == interpolation


def test_weights_of_a_tag_that_are_not_finite_are_refused(tmp_path, monkeypatch):
    state = {key: each.clone() for key, each in make(quick_gelu=False).state_dict().items()}
    state["visual.proj"][0, 0] = float("inf")
    save_file(state, tmp_path / "weights.safetensors")
    monkeypatch.setattr("open_clip.factory.download_pretrained", lambda *_, **__: str(tmp_path / "weights.safetensors"))
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, NAME, {"there": {"url": "https://a.org"}})
    with pytest.raises(WeightsError, match=r"tagged 'there' holds NaN or infinity in visual\.proj \(1 of"):
        load_clip(NAME, pretrained="there", image_size=(64, 32))
