"""Every architecture that open_clip names, shrunk: the promises that hold for all of them.

One of each kind of tower runs always; the sweep over all of them is slow.
"""

import copy
import importlib.metadata
import warnings
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from unittest import mock

import open_clip
import pytest
import torch

from promptreid import PromptConfig, PromptedCLIP, TwoStageSchedule, load_clip, load_prompts, save_prompts
from promptreid.towers.families import find_text_tower, find_vision_tower
from promptreid.towers.tower import PixelTower

FAMILIES = [
    "ViT-B-16",  # built-in, class token; causal text
    "ViT-L-14-CLIPA",  # average pooling; bidirectional text, last token
    "ViT-H-14-worldwide",  # text pooled at a stated end token
    "coca_ViT-B-32",  # attentional pooling; class token behind the caption, decoder
    "ViT-B-16-SigLIP",  # timm, attention head, no class token
    "ViTamin-S",  # convolutions before the blocks
    "MobileCLIP2-B",  # class token without a position
    "MobileCLIP2-S0",  # no tokens: pixels; bidirectional text, argmax
    "EVA02-B-16",  # rotary
    "EVA02-E-14",  # norms after the blocks
    "PE-Core-bigG-14-448",  # rotary, no class token
    "vit_relpos_medium_patch16_cls_224",  # relative position bias
    "RN50",
    "convnext_base",
    "swin_base_patch4_window7_224",
    "roberta-ViT-B-32",
    "mt5-base-ViT-B-32",
    "nllb-clip-base",
]
FAMILIES = [name for name in FAMILIES if name in open_clip.list_models()]  # older versions know fewer


@contextmanager
def unset_memory_is_nan():
    """Torch fills what it allocates with NaN inside the block, so that a weight nobody initialises is seen."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def sums_of_attention_are_exact():
    """Sum float32 attention in float64, for a tower that has it in a float64 model too.

    Then what a position weighs does not depend on how many masked positions are beside it, to the last bit.
    """
    softmax = torch.nn.functional.softmax

    def exact(scores, *args, **settings):
        if scores.dtype is not torch.float32:
            return softmax(scores, *args, **settings)
        return softmax(scores.double(), *args, **settings).float()

    with mock.patch.object(torch.nn.functional, "softmax", exact):
        yield


def make(zoo, name):
    """The shrunken model at a size that is not square, in float64: some start with so little effect."""
    size = (56, 28) if "14" in name else (96, 64) if name.startswith("swin") else (64, 32)
    torch.manual_seed(0)
    with zoo.shrunk(), warnings.catch_warnings(), unset_memory_is_nan():
        warnings.simplefilter("ignore", UserWarning)
        clip = load_clip(name, image_size=size)
    assert all(value.isfinite().all() for value in clip.state_dict().values()), "every weight was given a value"
    generator = torch.Generator().manual_seed(1)
    return clip.double(), torch.randn(3, 3, *size, generator=generator).double(), zoo.tokens_for(name)


INDEPENDENT = PromptConfig(text_length=3, vision_length=2)
COUPLED = PromptConfig(text_length=2, vision_length=2, kind="coupled")
KEPT = PromptConfig(text_length=3, vision_length=2, text_depth=1, vision_depth=1)
PREFIX = PromptConfig(text_length=3, vision_length=2, kind="prefix")
GROUPED = PromptConfig(text_length=2, vision_length=2, kind="grouped", groups=("cam_a", "cam_b"))
# Of each form but the default, the refusal of a tower that it cannot be put into.
FORMS = {
    "kept": (KEPT, r"depth is 1, but this huggingface.m2m_100 skips whole blocks while training"),
    "coupled": (COUPLED, r'kind is "coupled", but this .* has no blocks .*choose kind="independent"'),
    "grouped": (GROUPED, r'kind is "grouped", but this .* has no blocks .*choose kind="independent"'),
    "prefix": (PREFIX, r'(has no blocks whose|no attention is found).*choose kind="independent"'),
}


def wrap(clip, config=INDEPENDENT, **arguments):
    torch.manual_seed(3)
    model = PromptedCLIP(clip, config, **arguments)
    with torch.no_grad():
        for prompts in model.prompt_parameters():
            prompts.normal_()
    return model


def tensors_of(module):
    return {key: value.clone() for key, value in (*module.state_dict().items(), *module.named_buffers())}


def same(module, before):
    after = tensors_of(module)
    return after.keys() == before.keys() and all(torch.equal(after[key], before[key]) for key in before)


def traces_of(module):
    return {
        name: {key: len(value) if hasattr(value, "__len__") else str(value) for key, value in vars(part).items()}
        for name, part in module.named_modules()
    }


def encode(model, images, tokens):
    with torch.no_grad():
        return model.encode_image(images, normalize=False), model.encode_text(tokens, normalize=False)


def check_length_zero(clip, images, tokens, config=None):
    bare = encode(clip, images, tokens)
    config = PromptConfig(text_length=0, vision_length=0) if config is None else config
    model = PromptedCLIP(clip, config, sequence_first=False, trim=False)
    assert all(torch.equal(one, other) for one, other in zip(encode(model, images, tokens), bare, strict=True))
    model.detach()
    model = PromptedCLIP(clip, config)
    for one, other in zip(encode(model, images, tokens), bare, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-10)
    model.detach()


def check_wrapping(clip, images, tokens, config=INDEPENDENT):
    before, traces, bare = tensors_of(clip), traces_of(clip), encode(clip, images, tokens)
    model = wrap(clip, config)
    prompted = encode(model, images, tokens)
    for one, other in zip(prompted, bare, strict=True):
        assert one.shape == other.shape
        assert not torch.equal(one, other)
    assert same(clip, before)
    for one, other in zip(encode(clip, images, tokens), prompted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-10)
    with torch.no_grad():
        output = clip(images, tokens)
        image_features = output["image_features"] if isinstance(output, dict) else output[0]
    expected = torch.nn.functional.normalize(prompted[0], dim=-1)
    torch.testing.assert_close(image_features, expected, rtol=1e-6, atol=1e-9)
    with model.disabled():
        for one, other in zip(encode(model, images, tokens), bare, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-10)
    check_training(model, images, tokens)
    assert model.detach() is clip
    clip.eval()
    assert same(clip, before)
    assert traces_of(clip) == traces
    assert all(torch.equal(one, other) for one, other in zip(encode(clip, images, tokens), bare, strict=True))


def check_training(model, images, tokens):
    """One step of stage 1: every prompt has a gradient and moves, nothing of the base does."""
    clip = model.clip
    before = tensors_of(clip)
    old = [prompts.detach().clone() for prompts in model.prompt_parameters()]
    clip.requires_grad_(False)
    optimizer = torch.optim.SGD(model.prompt_parameters(), lr=1e3)
    output = model(images, tokens)
    weights = torch.randn(output["image_features"].shape, generator=torch.Generator().manual_seed(5)).double()
    (output["image_features"] * weights).sum().backward(retain_graph=True)
    (output["text_features"] * weights).sum().backward()
    optimizer.step()
    for prompts, start in zip(model.prompt_parameters(), old, strict=True):
        assert prompts.grad.isfinite().all()
        reached = prompts.grad.abs().sum(dim=-1).gt(0).double().mean()
        # Of pixels, a few may lie where every channel of the stem's ReLU is at rest.
        least = 0.9 if isinstance(model.vision.tower, PixelTower) and prompts.shape[-1] == 3 else 1.0
        assert reached >= least, "every prompt of every block has a gradient"
        assert not torch.equal(prompts, start)
    assert all(parameter.grad is None for parameter in clip.parameters())
    assert same(clip, before)
    clip.requires_grad_(True)


def check_trimming(clip, images, tokens):
    """Cut to the longest caption, features are those of the whole context; where they are not, nothing is cut."""
    model = wrap(clip)
    seen = []
    handle = model.text.tower.blocks[-1].register_forward_hook(
        lambda _, args, output: seen.append((output[0] if isinstance(output, tuple) else output).shape)
    )
    cut = encode(model, images, tokens)[1]
    model.text.trim = False
    whole = encode(model, images, tokens)[1]
    handle.remove()
    torch.testing.assert_close(cut, whole, rtol=1e-6, atol=1e-9)
    assert (seen[0] != seen[1]) == (model.text.tower.trim != "never")
    model.detach()


def check_saving(clip, images, tokens, zoo, folder, config=INDEPENDENT):
    model = wrap(clip.float(), config)
    images = images.float()
    with zoo.shrunk():  # what is saved is compared with the architecture of that name
        save_prompts(model, folder)
        again = load_prompts(folder)
    for one, other in zip(encode(again, images, tokens), encode(model, images, tokens), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    model.detach()


def check_precision(clip, images, tokens):
    """bfloat16 weights, and autocast over float32 ones, stay near; prompts stay float32."""
    model = wrap(clip.float())
    exact = encode(model, images.float(), tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        automatic = encode(model, images.float(), tokens)
    model.clip.bfloat16()
    pure = encode(model, images.bfloat16(), tokens)
    for rough in (automatic, pure):
        for one, other in zip(rough, exact, strict=True):
            assert torch.nn.functional.cosine_similarity(one.double(), other.double()).min() > 0.97
    assert all(prompts.dtype == torch.float32 for prompts in model.prompt_parameters())
    model.detach()


def check_intermediates(clip, images, tokens):
    with torch.no_grad():
        if hasattr(getattr(clip, "text", clip), "forward_intermediates"):
            bare = clip.forward_intermediates(text=tokens)["text_intermediates"]
            model = wrap(clip)
            prompted = clip.forward_intermediates(text=tokens)["text_intermediates"]
            assert [part.shape for part in prompted] == [part.shape for part in bare]
            assert not torch.equal(prompted[-1], bare[-1])
            model.detach()
    kinds = getattr(clip.visual, "trunk", clip.visual)
    if not hasattr(kinds, "forward_intermediates"):
        return
    with torch.no_grad():
        bare = clip.visual.forward_intermediates(images)["image_intermediates"]
        model = wrap(clip)
        prompted = clip.visual.forward_intermediates(images)["image_intermediates"]
    assert [part.shape for part in prompted] == [part.shape for part in bare]
    in_pool = isinstance(model.vision.tower, PixelTower) and model.config.vision_place == "attention_pool"
    assert in_pool or not torch.equal(prompted[-1], bare[-1])
    model.detach()


def check_stages(clip, images, tokens, config=INDEPENDENT):
    """In either stage each parameter that trains gets a gradient, as DistributedDataParallel wants it, and no other."""
    model = wrap(clip.float(), config)
    for stage in TwoStageSchedule(model, num_identities=3):
        stage.prepare()
        model.zero_grad()
        output = model(images.float(), tokens)
        assert model.embed_dim == output["image_features"].shape[1] == output["text_features"].shape[1]
        losses = stage.losses(output["image_features"], output["text_features"], torch.tensor([0, 1, 2]))
        losses["total"].backward()
        trained = set(stage.parameters())
        assert all(parameter.grad is not None for parameter in trained)
        assert all(parameter.grad is None for parameter in set(model.parameters()) - trained)
    model.detach()


def refuses(form, clip):
    """Whether a form cannot be put into a model: tokens that continue through blocks that are skipped, or no blocks."""
    if form == "kept":
        return find_text_tower(clip).drops_blocks
    old = form == "prefix" and find_text_tower(clip).kind.startswith("huggingface") and not has_transformers_5()
    return old or isinstance(find_vision_tower(clip), PixelTower)


def has_transformers_5():
    return int(importlib.metadata.version("transformers").split(".")[0]) >= 5


def check_form(zoo, name, folder, form):
    """The promises of a form of prompts, or its refusal, which leaves the model bare."""
    clip, images, tokens = make(zoo, name)
    config, words = FORMS[form]
    if refuses(form, clip):
        bare, traces = encode(clip, images, tokens), traces_of(clip)
        with pytest.raises(ValueError, match=words):
            wrap(clip, config)
        assert traces_of(clip) == traces
        assert all(torch.equal(one, other) for one, other in zip(encode(clip, images, tokens), bare, strict=True))
        return
    with sums_of_attention_are_exact() if zoo.rounds_attention(name) else nullcontext():
        check_length_zero(clip, images, tokens, replace(config, text_length=0, vision_length=0))
        check_wrapping(clip, images, tokens, config)
    twin = copy.deepcopy(clip)
    check_saving(twin, images, tokens, zoo, folder, config)
    check_stages(twin, images, tokens, config)


def check_all(zoo, name, folder):
    clip, images, tokens = make(zoo, name)
    with sums_of_attention_are_exact() if zoo.rounds_attention(name) else nullcontext():
        check_length_zero(clip, images, tokens)
        check_wrapping(clip, images, tokens)
        check_trimming(clip, images, tokens)
        check_intermediates(clip, images, tokens)
    twin = copy.deepcopy(clip)
    check_saving(twin, images, tokens, zoo, folder)
    check_stages(twin, images, tokens)
    check_precision(clip, images, tokens)


@pytest.mark.parametrize("name", FAMILIES)
def test_family_keeps_every_promise(zoo, name, tmp_path):
    check_all(zoo, name, tmp_path)


@pytest.mark.slow
def test_config_keeps_every_promise(zoo, any_name, tmp_path):
    check_all(zoo, any_name, tmp_path)


# Those in whose towers a form is put in, or refused, in another way; the others are slow.
OF_FORMS = ("ViT-B-16", "ViT-B-16-SigLIP", "MobileCLIP2-B", "EVA02-B-16", "RN50", "roberta-ViT-B-32", "nllb-clip-base")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "name", [name if name in OF_FORMS else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_family_keeps_every_promise_of_a_form(zoo, name, form, tmp_path):
    check_form(zoo, name, tmp_path, form)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_config_keeps_every_promise_of_a_form(zoo, any_name, form, tmp_path):
    check_form(zoo, any_name, tmp_path, form)
