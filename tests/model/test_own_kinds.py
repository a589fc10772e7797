"""A kind of prompt from outside the package: trained, saved, loaded and switched like a built-in one."""

import json

import pytest
import torch
from torch import nn

from promptreid import PromptConfig, PromptedCLIP, load_clip, load_prompts, save_prompts
from promptreid.errors import CheckpointError
from promptreid.prompts.kind import PromptKind


class Shift(PromptKind):
    """Adds a learnable vector to what each of two blocks makes, under names with digits, and a scalar gate."""

    def __init__(self, tower) -> None:
        super().__init__(tower, length=1, width=tower.width)
        self.shifts = nn.ParameterList(nn.Parameter(0.1 * torch.randn(tower.width)) for _ in tower.blocks[:2])
        self.gate = nn.Parameter(torch.tensor(0.5))

    def register_hooks(self):
        for block, shift in zip(self.tower.blocks, self.shifts, strict=False):
            yield block.register_forward_hook(Add(self, shift))


class Add:
    def __init__(self, kind: Shift, shift: nn.Parameter) -> None:
        self.kind, self.shift = kind, shift

    def __call__(self, module, args, output):
        return output + self.kind.gate * self.shift if self.kind.active else None


class Other(Shift):
    """Another kind with the same tensors."""


def make_base() -> nn.Module:
    return load_clip("promptreid-tiny", pretrained="generated", image_size=(32, 16))


@pytest.fixture
def model() -> PromptedCLIP:
    return PromptedCLIP(make_base(), PromptConfig(text_length=2), vision_prompts=Shift).eval()


@torch.no_grad()
def features(model: PromptedCLIP) -> torch.Tensor:
    return model.encode_image(torch.randn(2, 3, 32, 16, generator=torch.Generator().manual_seed(7)))


def test_every_parameter_of_the_kind_is_trained(model):
    names = {name for name, _ in model.named_parameters() if not name.startswith("clip.")}
    own = {"vision.prompts.shifts.0", "vision.prompts.shifts.1", "vision.prompts.gate"}
    assert names == own | {"text.prompts.tokens"}
    assert len(model.prompt_parameters()) == 4
    model.encode_image(torch.randn(2, 3, 32, 16)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.vision.prompts.parameters())


def test_kind_is_saved_by_name_and_loads_with_its_factory(model, tmp_path):
    folder = save_prompts(model, tmp_path / "m")
    manifest = json.loads((folder / "prompt_config.json").read_text())
    assert manifest["kinds"] == {"vision": f"{__name__}.Shift"}
    assert manifest["shapes"]["vision.prompts.shifts.1"] == [128]
    loaded = load_prompts(folder, vision_prompts=Shift)
    assert torch.equal(features(loaded), features(model))
    again = save_prompts(loaded, tmp_path / "again")
    assert (again / "prompt_config.json").read_bytes() == (folder / "prompt_config.json").read_bytes()


def test_loading_without_the_factory_says_which_to_pass(model, tmp_path, monkeypatch):
    folder = save_prompts(model, tmp_path / "m")
    monkeypatch.setattr("promptreid.model.prompted_clip.make_clip", lambda *_, **__: pytest.fail("made the base"))
    with pytest.raises(CheckpointError, match=r"the vision prompts are of the kind .*\.Shift, .*pass vision_prompts="):
        load_prompts(folder)


def test_other_kind_is_refused_and_the_model_left_bare(model, tmp_path):
    folder = save_prompts(model, tmp_path / "m")
    clip = model.detach()
    bare = clip.encode_image(torch.ones(1, 3, 32, 16))
    with pytest.raises(CheckpointError, match=r"were saved by .*\.Shift, and this model has .*\.Other"):
        load_prompts(folder, model=clip, vision_prompts=Other)
    assert torch.equal(clip.encode_image(torch.ones(1, 3, 32, 16)), bare)
    built_in = save_prompts(PromptedCLIP(make_base()), tmp_path / "built-in")
    with pytest.raises(CheckpointError, match=r"saved by a built-in kind, and this model has .*\.Shift"):
        load_prompts(built_in, vision_prompts=Shift)


def test_sets_of_the_kind_are_switched_and_keep_what_is_frozen(model, tmp_path):
    first = features(model)
    model.add_prompts("new", PromptConfig(text_length=1))
    model.vision.prompts.gate.requires_grad_(False)
    model.use("new")
    assert not torch.equal(features(model), first)
    assert not model.vision.prompts.gate.requires_grad
    assert model.vision.prompts.shifts[0].requires_grad
    model.use("default")
    assert torch.equal(features(model), first)
    with pytest.raises(CheckpointError, match="saved by a built-in kind"):
        model.add_prompts("built-in", save_prompts(PromptedCLIP(make_base()), tmp_path / "built-in"))


def test_a_factory_that_makes_something_else_is_refused():
    with pytest.raises(TypeError, match=r"expected a promptreid\.prompts\.kind\.PromptKind"):
        PromptedCLIP(make_base(), text_prompts=lambda tower: nn.Linear(2, 2))


def test_files_of_built_in_kinds_have_no_kinds(tmp_path):
    folder = save_prompts(PromptedCLIP(make_base()), tmp_path / "m")
    assert "kinds" not in json.loads((folder / "prompt_config.json").read_text())
