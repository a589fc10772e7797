"""Several sets of prompts on one base, and the methods that save, load and publish."""

import copy

import pytest
import torch

from promptreid import PromptConfig, PromptedCLIP, load_clip, load_prompts, save_prompts
from promptreid.errors import AttachmentError, CheckpointError

_BASES: list[torch.nn.Module] = []


@pytest.fixture
def base() -> torch.nn.Module:
    if not _BASES:
        _BASES.append(load_clip("promptreid-tiny", pretrained="generated", image_size=(32, 16)))
    return copy.deepcopy(_BASES[0])


@pytest.fixture
def model(base) -> PromptedCLIP:
    return PromptedCLIP(base, PromptConfig(text_length=2, vision_length=2)).eval()


@pytest.fixture
def other(base) -> PromptedCLIP:
    """Other prompts, of other lengths and depth, on a base of their own."""
    return PromptedCLIP(copy.deepcopy(_BASES[0]), PromptConfig(text_length=3, vision_length=1, vision_depth=2)).eval()


@torch.no_grad()
def scores(model: PromptedCLIP) -> torch.Tensor:
    images = torch.randn(3, 3, 32, 16, generator=torch.Generator().manual_seed(5))
    tokens = model.tokenizer(["a woman in a red coat", "a man"])
    return model.encode_text(tokens, normalize=True) @ model.encode_image(images, normalize=True).T


def test_set_that_is_used_scores_as_the_model_it_came_from(model, other, tmp_path):
    first, second = scores(model), scores(other)
    model.add_prompts("other", save_prompts(other, tmp_path / "o"))
    assert model.prompt_sets == ("default", "other")
    assert torch.equal(scores(model), first)
    model.use("other")
    assert model.prompts_in_use == "other"
    assert model.config == other.config
    assert torch.equal(scores(model), second)
    model.use("default")
    assert torch.equal(scores(model), first)


def test_base_is_not_copied_and_is_bare_when_disabled(model, other, tmp_path):
    parameters = [id(parameter) for parameter in model.encoder_parameters()]
    with model.disabled():
        bare = scores(model)
    model.add_prompts("other", save_prompts(other, tmp_path / "o"))
    model.use("other")
    assert [id(parameter) for parameter in model.encoder_parameters()] == parameters
    assert len(list(model.parameters())) == len(parameters) + 2
    with model.disabled():
        assert torch.equal(scores(model), bare)


def test_what_was_learned_is_kept_over_a_switch(model, other, tmp_path):
    model.add_prompts("other", save_prompts(other, tmp_path / "o"))
    model.use("other")
    with torch.no_grad():
        model.text.prompts.tokens.add_(1)
    learned = model.text.prompts.tokens.clone()
    model.use("default")
    model.use("other")
    assert torch.equal(model.text.prompts.tokens, learned)


def test_new_set_starts_at_first_use_and_can_be_trained(model):
    model.add_prompts("new", PromptConfig(text_length=5, vision_length=1))
    model.use("new")
    assert model.text.prompts.tokens.shape == (4, 5, 128)
    assert float(model.text.prompts.tokens.detach().abs().sum()) > 0
    model.encode_text(model.tokenizer(["a man"])).sum().backward()
    assert model.text.prompts.tokens.grad is not None


def test_set_in_use_is_what_is_saved(model, other, tmp_path):
    model.add_prompts("other", save_prompts(other, tmp_path / "o"))
    model.use("other")
    loaded = PromptedCLIP.from_pretrained(model.save_pretrained(tmp_path / "again"))
    assert torch.equal(scores(loaded), scores(other))


def test_subclass_loads_as_itself(model, tmp_path):
    class Mine(PromptedCLIP):
        """Somebody's own."""

    loaded = Mine.from_pretrained(model.save_pretrained(tmp_path / "m"))
    assert type(loaded) is Mine
    assert torch.equal(scores(loaded), scores(model))


def test_training_mode_and_frozen_prompts_survive_a_switch(model):
    model.train()
    for parameter in model.prompt_parameters():
        parameter.requires_grad_(False)
    model.add_prompts("new", PromptConfig())
    model.use("new")
    assert model.text.training
    assert not any(parameter.requires_grad for parameter in model.prompt_parameters())


def test_deep_copy_switches_by_itself(model, other, tmp_path):
    model.add_prompts("other", save_prompts(other, tmp_path / "o"))
    twin = copy.deepcopy(model)
    twin.use("other")
    assert model.prompts_in_use == "default"
    assert torch.equal(scores(twin), scores(other))
    assert not torch.equal(scores(model), scores(other))


def test_names_that_do_not_fit_are_refused(model):
    with pytest.raises(ValueError, match="are there already; the model holds default"):
        model.add_prompts("default", PromptConfig())
    for name in ("", None, 3):
        with pytest.raises(ValueError, match=r"name is .*, expected some text to call the prompts by"):
            model.add_prompts(name, PromptConfig())
    with pytest.raises(KeyError, match="there are no prompts 'no'; the model holds default"):
        model.use("no")


def test_prompts_of_other_encoders_are_refused(model, other, tmp_path):
    with torch.no_grad():
        for parameter in other.clip.parameters():
            parameter.add_(0.01)
    with pytest.raises(CheckpointError, match="its weights differ: theirs were fine-tuned together with the prompts"):
        model.add_prompts("other", save_prompts(other, tmp_path / "o"))
    assert model.prompt_sets == ("default",)


def test_set_that_does_not_fit_leaves_the_one_before_in_use(model):
    before = scores(model)
    model.add_prompts("deep", PromptConfig(text_depth=50))
    parameters = list(map(id, model.parameters()))
    with pytest.raises(ValueError, match="depth is 50"):
        model.use("deep")
    assert model.prompts_in_use == "default"
    assert list(map(id, model.parameters())) == parameters  # an optimiser still has them
    assert torch.equal(scores(model), before)


def traces(clip):
    """Hooks and other attributes of every module."""
    kept = {}
    for name, part in clip.named_modules():
        kept[name] = {key: len(value) if hasattr(value, "__len__") else key for key, value in vars(part).items()}
    return kept


@pytest.mark.parametrize("failing", [{"vision_length": 1000}, {"text_depth": 50}, {"kind": "coupled", "text_depth": 9}])
@pytest.mark.parametrize(
    "config",
    [
        PromptConfig(2, 2),
        PromptConfig(2, 2, text_slot="before_end"),
        PromptConfig(2, 2, kind="coupled"),
        PromptConfig(2, 2, kind="prefix"),
        PromptConfig(2, 2, kind="grouped", groups=("a", "b")),
    ],
    ids=lambda config: f"{config.kind} {config.text_slot}",
)
def test_attach_that_fails_leaves_the_prompts_before_in_place(base, config, failing, tmp_path):
    model = PromptedCLIP(base, config).eval()
    parameters = {name: parameter.requires_grad_(False) for name, parameter in model.named_parameters()}
    before, kept = scores(model), traces(model.clip)
    if "kind" in failing:
        failing = failing | {"vision_depth": 9}
    with pytest.raises(ValueError, match=r"length is 1000|depth is"):
        model.attach(PromptConfig(**failing))
    assert model.config == config
    assert torch.equal(scores(model), before)
    assert traces(model.clip) == kept
    for name, parameter in model.named_parameters():
        assert parameter is parameters[name]
        assert not parameter.requires_grad
    assert torch.equal(scores(load_prompts(save_prompts(model, tmp_path / "m"))), before)
    model.attach(PromptConfig(1, 1))
    assert model.config == PromptConfig(1, 1)


def test_model_without_weights_is_refused_and_left_bare(base):
    clip = base.to("meta")
    before = traces(clip)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"on the meta device, so its weights were not loaded; make it with"):
            PromptedCLIP(clip)
    assert traces(clip) == before


@pytest.mark.parametrize("clip", [None, "ViT-B-16", {}])
def test_clip_that_is_no_module_is_refused(clip):
    with pytest.raises(TypeError, match=f"clip is {type(clip).__name__}, expected an open_clip model"):
        PromptedCLIP(clip)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_prompts_that_are_not_finite_are_refused_and_those_before_stay(model, value):
    before = {name: tensor.clone() for name, tensor in model.prompt_state_dict().items()}
    harmed = {name: tensor.clone() for name, tensor in before.items()}
    harmed["text.prompts.tokens"][0, 0, 0] = value
    with pytest.raises(CheckpointError, match=r"text\.prompts\.tokens hold NaN or infinity"):
        model.load_prompt_state_dict(harmed)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.prompt_state_dict().items())


def test_attach_that_fails_leaves_a_bare_model_bare(model):
    model.detach()
    with pytest.raises(ValueError, match="depth is 50"):
        model.attach(PromptConfig(text_depth=50))
    assert model.config == PromptConfig(text_length=2, vision_length=2)
    assert not model.vision.prompts.attached
    assert not model.text.prompts.attached


def test_other_prompts_leave_the_encoders_in_their_modes(base):
    model = PromptedCLIP(base, PromptConfig(2, 2))
    model.add_prompts("new", PromptConfig(1, 1))
    model.text.eval()
    base.visual.transformer.train()
    modes = {name: part.training for name, part in base.named_modules()}
    for change in (lambda: model.use("new"), lambda: model.attach(PromptConfig(1, 3))):
        change()
        assert {name: part.training for name, part in base.named_modules()} == modes
        assert (model.training, model.vision.training, model.text.training) == (True, True, False)
        assert (model.vision.prompts.training, model.text.prompts.training) == (True, False)


def test_prompts_that_were_detached_are_not_saved_and_can_be_put_back(model, tmp_path):
    before = scores(model)
    model.detach()
    bare = scores(model)
    assert not torch.equal(bare, before)
    words = r"image prompts and text prompts are not in .* model\.vision\.attach\(\) and model\.text\.attach\(\)"
    with pytest.raises(ValueError, match=words):
        model.save_pretrained(tmp_path / "m")
    assert not (tmp_path / "m").exists()
    model.text.attach()
    with pytest.raises(ValueError, match="the image prompts are not in"):
        save_prompts(model, tmp_path / "m")
    model.vision.attach()
    assert torch.equal(scores(model), before)
    assert torch.equal(scores(load_prompts(save_prompts(model, tmp_path / "m"))), before)
    with pytest.raises(AttachmentError, match="already carries prompts"):
        model.text.attach()
    assert torch.equal(scores(model), before)


def test_compiled_model_follows_a_switch(model, other, tmp_path):
    images = torch.randn(2, 3, 32, 16)
    compiled = torch.compile(model.forward, backend="eager")
    tokens = model.tokenizer(["a", "b"])
    with torch.no_grad():
        compiled(images, tokens)
        model.add_prompts("other", save_prompts(other, tmp_path / "o"))
        model.use("other")
        expected = model.encode_image(images)
        torch.testing.assert_close(compiled(images, tokens)["image_features"], expected)
