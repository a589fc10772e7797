import copy

import pytest
import torch
from torch import nn

from promptreid.hub.fingerprint import (
    fingerprint,
    nearer,
    pack_fingerprint,
    same_fingerprint,
    unpack_fingerprint,
    weight_samples,
    weights_changed,
)


def test_fingerprint_takes_the_middle_of_each_tensor_and_even_places_of_the_whole():
    module = nn.ParameterDict({"a": nn.Parameter(torch.arange(4.0)), "b": nn.Parameter(10 + torch.arange(2.0))})
    # 6 weights: as "whole" places all of 0..5; the middles are a[2] = 2 and b[1] = 11.
    assert fingerprint(module) == (0, 1, 2, 2, 3, 10, 11, 11)


def test_fingerprint_of_a_large_model_has_256_samples(clip):
    assert sum(value.numel() for value in clip.state_dict().values()) > 256
    samples = fingerprint(clip)
    assert len(samples) == 128 + min(128, sum(1 for name in clip.state_dict() if name != "visual.positional_embedding"))


def test_fingerprint_ignores_the_image_grid_and_integers(clip):
    before = fingerprint(clip)
    with torch.no_grad():
        clip.visual.positional_embedding.add_(1)
    clip.register_buffer("steps", torch.tensor(3))
    assert fingerprint(clip) == before


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
    ["", "f32:", "f32:AAA", "f32:AAAA", "f16:AAA=", "f32:é", "bf16:" + "AAAA" * 300, "bf16:gH8=", "bf16:wH8="],
)
def test_unpacking_something_else_is_refused(text):
    with pytest.raises(ValueError, match="a fingerprint "):
        unpack_fingerprint(text)


def test_weights_changed_sees_one_layer_norm_trained_a_little(clip):
    before = weight_samples(clip)
    assert not weights_changed(before, clip)
    with torch.no_grad():
        clip.ln_final.bias.add_(1e-6)
    assert weights_changed(before, clip)


def test_weights_changed_sees_keys_and_not_precision(clip):
    before = weight_samples(clip)
    assert not weights_changed(before, copy.deepcopy(clip).bfloat16())
    clip.head = nn.Linear(2, 2)
    assert weights_changed(before, clip)


def test_weight_samples_do_not_follow_the_weights(clip):
    before = weight_samples(clip)
    kept = {name: value.clone() for name, value in before.items()}
    with torch.no_grad():
        for parameter in clip.parameters():
            parameter.zero_()
    assert all(torch.equal(before[name], value) for name, value in kept.items())
