"""A kind of prompt from outside the package, in both encoders."""

import copy

import pytest
import torch
from torch import nn

from promptreid import PromptedTextEncoder, PromptedVisionEncoder
from promptreid.errors import AttachmentError
from promptreid.prompts.block_tokens import BlockTokens
from promptreid.prompts.kind import PromptKind


class Gates(PromptKind):
    """Learned factors of what every block adds, and a shift of the feature: two parameters, neither called tokens."""

    def __init__(self, tower, length=1):
        super().__init__(tower, length, width=tower.width)
        self.gates = nn.ParameterList(nn.Parameter(torch.ones(tower.width)) for _ in tower.blocks)
        self.shift = nn.Parameter(torch.zeros(tower.width))

    def register_hooks(self):
        for index, block in enumerate(self.tower.blocks):
            yield block.register_forward_hook(Gate(self, index))
        yield self.tower.container.register_forward_hook(self.move)

    def move(self, module, args, output):
        return output + self.shift if self.active else None


class Gate:
    def __init__(self, prompts, index):
        self.prompts, self.index = prompts, index

    def __call__(self, module, args, output):
        return output * self.prompts.gates[self.index] if self.prompts.active else None


def image_encoder(clip, **options):
    return PromptedVisionEncoder(clip, prompts=Gates, **options), torch.randn(3, 3, 32, 16)


def text_encoder(clip, **options):
    tokens = torch.zeros(3, 24, dtype=torch.int64)
    tokens[:, 0], tokens[:, 1:5], tokens[:, 5] = 510, torch.randint(1, 500, (3, 4)), 511
    return PromptedTextEncoder(clip, prompts=Gates, **options), tokens


@pytest.mark.parametrize("make", [image_encoder, text_encoder])
def test_foreign_kind_is_prompted_disabled_saved_and_taken_out(clip, make):
    traces = {name: list(vars(part)) for name, part in clip.named_modules()}
    encoder, inputs = make(clip)
    bare = encoder(inputs)
    names = {"prompts.shift", *(f"prompts.gates.{index}" for index in range(3))}
    assert set(encoder.state_dict()) == {name for name, _ in encoder.named_parameters()} == names
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter))
    prompted = encoder(inputs)
    assert not torch.allclose(prompted, bare)
    prompted.sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in encoder.parameters())
    with encoder.disabled():
        assert torch.equal(encoder(inputs), bare)
    twin = copy.deepcopy(encoder)
    with encoder.disabled():
        assert torch.equal(twin(inputs), prompted)
    with torch.no_grad():
        twin.prompts.shift.zero_()
    assert torch.equal(encoder(inputs), prompted)
    saved = encoder.state_dict()
    assert encoder.prompts.attached
    assert encoder.detach() is clip
    assert not encoder.prompts.attached
    assert {name: list(vars(part)) for name, part in clip.named_modules()} == traces
    again, _ = make(clip)
    again.load_state_dict(saved)
    torch.testing.assert_close(again(inputs), prompted)


def test_foreign_kind_of_length_zero_is_the_bare_model(clip):
    bare = clip.encode_image(images := torch.randn(2, 3, 32, 16))
    encoder = PromptedVisionEncoder(clip, prompts=lambda tower: Gates(tower, 0))
    with torch.no_grad():
        encoder.prompts.shift.fill_(1)
    assert torch.equal(encoder(images), bare)


@pytest.mark.parametrize("make", [image_encoder, text_encoder])
def test_foreign_kind_takes_no_options_of_blocks(clip, make):
    with pytest.raises(
        ValueError, match=r"depth is 2 and position_embedding is True, but prompts are of your own kind"
    ):
        make(clip, depth=2, position_embedding=True)
    with pytest.raises(TypeError, match=r"prompts made Linear, expected a promptreid\.prompts\.kind\.PromptKind"):
        type(make(clip)[0])(clip, prompts=lambda tower: nn.Linear(1, 1))


def test_two_kinds_in_one_tower_are_refused_in_either_order(clip):
    first = PromptedVisionEncoder(clip, prompts=Gates)
    with pytest.raises(AttachmentError, match="already carries prompts, and two sets would stack"):
        PromptedVisionEncoder(clip)
    first.detach()
    second = PromptedVisionEncoder(clip)
    with pytest.raises(AttachmentError, match="already carries prompts"):
        PromptedVisionEncoder(clip, prompts=Gates)
    assert isinstance(second.prompts, BlockTokens)
    assert second.prompts.attached


def test_hooks_that_fail_half_way_leave_the_tower_bare(clip):
    class Broken(Gates):
        def register_hooks(self):
            yield from super().register_hooks()
            raise RuntimeError("no such module")

    with pytest.raises(RuntimeError, match="no such module"):
        PromptedVisionEncoder(clip, prompts=Broken)
    assert not any(part._forward_hooks for part in clip.modules())
    PromptedVisionEncoder(clip)
