import copy
import warnings

import open_clip
import pytest
import torch
from open_clip.model import CLIP
from torch import nn

from promptreid import PromptConfig, PromptedCLIP, load_prompts, save_prompts
from promptreid.errors import CheckpointError
from promptreid.towers.families import resize_images
from promptreid.towers.fingerprint import (
    fingerprint,
    nearer,
    pack_fingerprint,
    same_fingerprint,
    unpack_fingerprint,
    weight_digests,
    weights_changed,
    without_tensors,
)
from promptreid.towers.loading import ClipSource, stamp


def test_fingerprint_takes_the_middle_of_each_tensor_and_even_places_of_the_whole():
    module = nn.ParameterDict({"a": nn.Parameter(torch.arange(4.0)), "b": nn.Parameter(10 + torch.arange(2.0))})
    # 6 weights: as "whole" places all of 0..5; the middles are a[2] = 2 and b[1] = 11.
    assert fingerprint(module) == (0, 1, 2, 2, 3, 10, 11, 11)


def test_fingerprint_of_a_large_model_has_256_samples(clip):
    assert sum(value.numel() for value in clip.state_dict().values()) > 256
    samples = fingerprint(clip)
    assert len(samples) == 128 + min(128, sum(1 for name in clip.state_dict() if name != "visual.positional_embedding"))


@pytest.fixture(scope="module")
def deep_clip() -> nn.Module:
    """A model of 12 blocks a tower, as ViT-B/16: more tensors than the first part of a fingerprint has samples."""
    shape = {"width": 8, "layers": 12}
    vision = {"image_size": [16, 16], "head_width": 4, "patch_size": 8, **shape}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CLIP(8, vision, {"context_length": 8, "vocab_size": 16, "heads": 2, **shape}).eval()


def test_fingerprint_sees_any_single_tensor_that_was_tuned(deep_clip):
    before, state = fingerprint(deep_clip), deep_clip.state_dict()
    assert len(before) == 256 + len(state) - 1
    unseen_by_the_first = []
    for name in state.keys() - {"visual.positional_embedding"}:
        kept = state[name].clone()
        state[name].add_(0.5)
        after = fingerprint(deep_clip)
        state[name].copy_(kept)
        assert not same_fingerprint(after, before), name
        if same_fingerprint(without_tensors(after), without_tensors(before)):
            unseen_by_the_first.append(name)
    assert len(unseen_by_the_first) > 20


def test_prompts_of_encoders_tuned_in_one_tensor_are_refused_on_the_base(deep_clip, tmp_path):
    source = ClipSource("ViT-B-16", "openai", (16, 16))
    clip = stamp(copy.deepcopy(deep_clip), source, {"vision_cfg": {}}, digests=weight_digests(deep_clip))
    model = PromptedCLIP(clip, PromptConfig(1, 1), source=source)
    base = save_prompts(model, tmp_path / "base")
    unchanged = without_tensors(fingerprint(model.clip))
    state = model.clip.state_dict()
    for name in sorted(state.keys() - {"visual.positional_embedding"}):
        kept = state[name].clone()
        state[name].add_(0.5)
        if without_tensors(fingerprint(model.clip)) == unchanged:
            break
        state[name].copy_(kept)
    else:
        pytest.fail("the first part sees every tensor")
    tuned = save_prompts(model, tmp_path / "tuned")
    with pytest.raises(CheckpointError, match="its weights differ: theirs were fine-tuned together with the prompts"):
        load_prompts(tuned, model=deep_clip)
    assert load_prompts(tuned, model=copy.deepcopy(model).detach()).base_digests is None
    load_prompts(base, model=copy.deepcopy(deep_clip))
    assert sum(path.stat().st_size for path in base.glob("prompt*")) < 4 * 24 * 8 + 2048


def test_fingerprint_ignores_the_image_grid_and_integers(clip):
    before = fingerprint(clip)
    with torch.no_grad():
        clip.visual.positional_embedding.add_(1)
    clip.register_buffer("steps", torch.tensor(3))
    assert fingerprint(clip) == before


@pytest.mark.filterwarnings("ignore")  # of open_clip's and timm's making these models
@pytest.mark.parametrize(
    "name", ["ViT-B-16", "RN50", "EVA02-B-16", "ViT-B-16-SigLIP", "swin_base_patch4_window7_224", "convnext_tiny"]
)
def test_fingerprint_of_a_resized_base_is_the_same(zoo, name):
    with zoo.shrunk():
        clip = open_clip.create_model(name)
    before = fingerprint(clip)
    resize_images(clip, (448, 224))
    assert same_fingerprint(fingerprint(clip), before)
    with torch.no_grad():
        for parameter in clip.parameters():
            parameter.mul_(1.05)
    assert not same_fingerprint(fingerprint(clip), before)


def test_fingerprint_of_half_precision_is_the_same_and_of_other_weights_is_not(clip):
    own = fingerprint(clip)
    assert same_fingerprint(own, fingerprint(copy.deepcopy(clip).bfloat16()))
    assert same_fingerprint(own, fingerprint(copy.deepcopy(clip).half()))
    other = copy.deepcopy(clip)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.05)
    assert not same_fingerprint(own, fingerprint(other))


def test_fingerprints_of_different_length_or_not_finite_differ():
    assert same_fingerprint((), ())
    assert not same_fingerprint((1.0,), (1.0, 1.0))
    assert not same_fingerprint((float("nan"),), (float("nan"),))


def test_nearer_compares_distances():
    assert nearer((1.0, 1.0), (1.1, 1.0), (1.0, 0.8))
    assert not nearer((1.0, 1.0), (1.0, 1.0), (1.0, 1.0))


def test_packed_exactly_it_comes_back_bit_for_bit():
    values = tuple(torch.randn(256).tolist())
    assert unpack_fingerprint(pack_fingerprint(values, exact=True)) == values


def test_packed_short_it_comes_back_the_same_and_takes_690_characters():
    values = tuple((torch.randn(256) * 10.0 ** torch.randint(-8, 8, (256,))).tolist())
    packed = pack_fingerprint(values, exact=False)
    assert same_fingerprint(unpack_fingerprint(packed), values)
    assert len(packed) <= 690


@pytest.mark.parametrize(
    "text",
    ["", "f32:", "f32:AAA", "f32:AAAA", "f16:AAA=", "f32:é", "bf16:" + "AAAA" * 3000, "bf16:gH8=", "bf16:wH8="],
)
def test_unpacking_something_else_is_refused(text):
    with pytest.raises(ValueError, match="a fingerprint "):
        unpack_fingerprint(text)


def never() -> nn.Module:
    pytest.fail("the base was made again")


def test_weights_changed_sees_one_weight_of_a_large_tensor(clip):
    before = weight_digests(clip)
    assert not weights_changed(before, clip, never)
    # 64 samples of each tensor, as once, missed this.
    with torch.no_grad():
        clip.token_embedding.weight[3, 5] += 1e-6
    assert weights_changed(before, clip, never)


def test_weights_changed_sees_keys_and_not_precision(clip):
    before = weight_digests(clip)
    cast = copy.deepcopy(clip).bfloat16()
    assert not weights_changed(before, cast, lambda: clip)
    with torch.no_grad():
        cast.token_embedding.weight[3, 5] += 1
    assert weights_changed(before, cast, lambda: clip)
    clip.head = nn.Linear(2, 2)
    assert weights_changed(before, clip, never)


def test_weight_digests_do_not_follow_the_weights(clip):
    before = weight_digests(clip)
    kept = dict(before)
    with torch.no_grad():
        for parameter in clip.parameters():
            parameter.zero_()
    assert before == kept
