"""What a tower can and cannot take: options, sizes, and models that prompts cannot be put into."""

import copy
import warnings
from unittest.mock import patch

import open_clip
import pytest
import torch
from open_clip.model import CustomTextCLIP
from torch import nn

from promptreid import PromptConfig, PromptedCLIP, PromptedTextEncoder, PromptedVisionEncoder, load_clip
from promptreid.errors import AttachmentError, UnsupportedTowerError
from promptreid.towers.families import find_text_tower, find_vision_tower
from promptreid.towers.modes import can_reach_prompts, recomputed_activations

# Older torch cannot trace how a thread turns prompts off: there the graph breaks, and the values are the same.
ONE_GRAPH = torch.__version__ >= "2.14"


def make(zoo, name, size=None):
    size = size or ((96, 64) if "B-32" in name else (56, 28) if "14" in name else (64, 32))
    torch.manual_seed(0)
    with zoo.shrunk(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return load_clip(name, image_size=size)


class Strange(nn.Module):
    def __init__(self):
        super().__init__()
        self.visual = nn.Linear(2, 2)
        self.text = nn.Linear(2, 2)


def test_towers_of_unknown_kind_are_refused_by_class():
    with pytest.raises(UnsupportedTowerError, match=r"image tower of class torch\.nn\.modules\.linear\.Linear: known"):
        find_vision_tower(Strange())
    with pytest.raises(UnsupportedTowerError, match=r"text tower of class torch\.nn\.modules\.linear\.Linear: known"):
        find_text_tower(Strange())


def test_what_is_no_open_clip_model_or_configuration_is_refused(clip):
    for wrong in (None, "ViT-B-16"):
        with pytest.raises(TypeError, match=r"expected an open_clip model, as promptreid\.load_clip"):
            PromptedCLIP(wrong)
    with pytest.raises(TypeError, match="expected a PromptConfig"):
        PromptedCLIP(clip, {"text_length": 2})
    with pytest.raises(UnsupportedTowerError, match=r"class promptreid\.model\.prompted_clip\.PromptedCLIP"):
        PromptedVisionEncoder(PromptedCLIP(clip))


def test_unknown_initialization_is_refused_and_leaves_the_model_bare(clip):
    for encoder in (PromptedTextEncoder, PromptedVisionEncoder):
        with pytest.raises(ValueError, match="initialization is 'zeros', expected one of start_state, mean_state"):
            encoder(clip, 2, initialization="zeros")
        assert encoder(clip, 2).detach() is clip


def test_inputs_that_are_no_tensors_or_not_finite_are_refused(clip, images, tokens):
    model = PromptedCLIP(clip)
    with pytest.raises(TypeError, match="tokens are list, expected a tensor"):
        model.encode_text(["a man"])
    with pytest.raises(TypeError, match="images are ndarray, expected a tensor"):
        model.encode_image(images.numpy())
    with pytest.raises(ValueError, match=r"not numbers \(NaN\)"):
        model.encode_image(images * float("nan"))


class Scripted(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_torchscript_is_refused():
    with pytest.raises(AttachmentError, match=r"TorchScript .* Make it without jit=True"):
        PromptedCLIP(torch.jit.script(Scripted()))


@pytest.mark.parametrize("wrapped", ["model", "tower", "block"])
def test_what_was_compiled_first_is_refused(clip, wrapped):
    if wrapped == "model":
        clip = torch.compile(clip, backend="eager")
    elif wrapped == "tower":
        clip.transformer.compile(backend="eager")
    else:
        clip.transformer.resblocks[1].compile(backend="eager")
    with pytest.raises(AttachmentError, match="compiled before prompts were attached"):
        PromptedTextEncoder(clip)


@pytest.mark.parametrize("name", ["RN50", "convnext_base"])
def test_tower_of_pixels_takes_no_options_of_blocks(zoo, name):
    clip = make(zoo, name)
    for options in ({"depth": 2}, {"position_embedding": True}, {"initialization": "mean_state"}):
        with pytest.raises(ValueError, match="not in blocks of tokens"):
            PromptedVisionEncoder(clip, 2, **options)
    with pytest.raises(ValueError, match="give at most 16"):
        PromptedVisionEncoder(clip, 17)
    PromptedVisionEncoder(clip, 2, depth=1)
    with pytest.raises(AttachmentError, match="already carries prompts"):
        PromptedVisionEncoder(clip, 2)


def test_attention_pool_is_refused_where_there_is_none(zoo):
    for name in ("convnext_base", "ViT-B-16"):
        with pytest.raises(ValueError, match=r'place is "attention_pool", but this .* has none'):
            PromptedVisionEncoder(make(zoo, name), 2, place="attention_pool")
    with pytest.raises(ValueError, match="place is 'border', expected one of auto, attention_pool"):
        PromptedVisionEncoder(make(zoo, "RN50"), 2, place="border")


def test_attention_pool_prompts_and_border_do_not_stack(zoo):
    clip = make(zoo, "RN50")
    encoder = PromptedVisionEncoder(clip, 2, place="attention_pool")
    with pytest.raises(AttachmentError, match="two sets would stack"):
        PromptedVisionEncoder(clip, 2)
    encoder.detach()
    assert PromptedVisionEncoder(clip, 2).prompts.tokens.shape == (1, 64 * 32 - 60 * 28, 3)


@pytest.mark.parametrize("name", ["roberta-ViT-B-32", "mt5-base-ViT-B-32", "nllb-clip-base"])
def test_position_embedding_is_refused_where_none_is_learned(zoo, name):
    with pytest.raises(ValueError, match=r"has no learned position embedding .* leave it at False"):
        PromptedTextEncoder(make(zoo, name), 2, position_embedding=True)


@pytest.mark.parametrize("name", ["ViT-B-16-SigLIP", "EVA02-B-16", "MobileCLIP-B", "coca_ViT-B-32"])
def test_position_embedding_adds_the_frozen_table(zoo, name):
    clip = make(zoo, name)
    images, tokens = torch.randn(2, 3, *clip.visual.image_size), zoo.tokens_for(name)
    torch.manual_seed(1)
    plain = PromptedCLIP(copy.deepcopy(clip))
    torch.manual_seed(1)
    moved = PromptedCLIP(clip, PromptConfig(position_embedding=True))
    assert not torch.equal(plain.encode_image(images), moved.encode_image(images))
    assert not torch.equal(plain.encode_text(tokens), moved.encode_text(tokens))
    assert not torch.equal(moved.vision.prompts.layer(0), moved.vision.prompts.tokens[0])


@pytest.mark.parametrize("name", ["ViT-B-16-SigLIP", "ViT-L-14-CLIPA", "coca_ViT-B-32", "roberta-ViT-B-32"])
def test_slot_before_the_end_is_refused_where_it_changes_nothing(zoo, name):
    with pytest.raises(ValueError, match=r'slot is "before_end", but this .* leave it at "after_start"'):
        PromptedTextEncoder(make(zoo, name), 2, slot="before_end")


def test_slot_before_the_end_and_its_limits(clip, tokens):
    with pytest.raises(ValueError, match='slot is "before_end" and position_embedding is True'):
        PromptedTextEncoder(clip, 2, slot="before_end", position_embedding=True)
    encoder = PromptedTextEncoder(clip, 2, slot="before_end")
    cut = encoder(tokens)
    encoder.trim = False
    torch.testing.assert_close(encoder(tokens), cut, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(clip.encode_text(tokens), cut, rtol=1e-5, atol=1e-6)
    with pytest.raises(AttachmentError, match="forward_intermediates"):
        clip.forward_intermediates(text=tokens)
    with encoder.disabled():
        bare = clip.encode_text(tokens)
    encoder.detach()
    torch.testing.assert_close(clip.encode_text(tokens), bare, rtol=1e-5, atol=1e-6)
    assert not clip.token_embedding._forward_pre_hooks


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_slot_before_the_end_survives_gradient_checkpointing(clip, tokens):
    encoder = PromptedTextEncoder(clip.double(), 2, slot="before_end").train()
    gradients = []
    for checkpointing in (False, True):
        clip.set_grad_checkpointing(checkpointing)
        encoder.zero_grad()
        encoder(tokens).square().sum().backward()
        gradients.append(encoder.prompts.tokens.grad.clone())
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["ViT-B-16-SigLIP", "EVA02-B-16", "vit_relpos_medium_patch16_cls_224"])
def test_intermediates_of_prompts_that_continue_are_refused_in_other_families(zoo, name):
    clip = make(zoo, name)
    PromptedVisionEncoder(clip, 2, depth=1)
    with pytest.raises(AttachmentError, match="so its intermediate sequences hold them"):
        clip.visual.forward_intermediates(torch.zeros(1, 3, 64, 32))


@pytest.mark.parametrize("depth", [None, 1])
def test_image_prompts_do_the_same_in_front_of_all_tokens_as_at_their_slot(zoo, depth):
    clip = make(zoo, "ViT-B-16").eval()
    encoder = PromptedVisionEncoder(clip, 3, depth=depth)
    images = torch.randn(2, 3, 64, 32)
    at_slot = encoder(images).detach()
    with torch.no_grad():
        assert encoder.prompts.in_front == (depth is None)
        torch.testing.assert_close(encoder(images), at_slot, rtol=1e-5, atol=1e-6)
    with torch.inference_mode():
        torch.testing.assert_close(encoder(images), at_slot, rtol=1e-5, atol=1e-6)


def test_block_outputs_without_gradients_can_be_kept_for_a_gradient(zoo):
    clip = make(zoo, "ViT-B-16").eval()
    encoder = PromptedVisionEncoder(clip, 3)
    probe, losses = torch.nn.Linear(clip.visual.transformer.width, 1), []

    def keep(module, args, output):
        with torch.enable_grad():
            losses.append(probe(output).sum())

    for block in clip.visual.transformer.resblocks:
        block.register_forward_hook(keep)
    with torch.no_grad():
        encoder(torch.randn(2, 3, 64, 32))
    sum(losses).backward()
    assert probe.weight.grad is not None


def test_image_prompts_enter_inference_mode_in_the_middle_of_a_tower(zoo):
    clip = make(zoo, "ViT-B-16").eval()
    encoder = PromptedVisionEncoder(clip, 3)
    first, second = clip.visual.transformer.resblocks[:2]
    tokens = torch.randn(5, 2, clip.visual.transformer.width)
    with torch.inference_mode():
        middle = first(tokens)
    with torch.no_grad():
        result = second(middle.clone()), second(middle)
    torch.testing.assert_close(result[1], result[0], rtol=1e-5, atol=1e-6)
    assert encoder.prompts.attached


def test_intermediates_without_gradients_are_those_with(zoo):
    clip = make(zoo, "ViT-B-16").eval()
    PromptedVisionEncoder(clip, 3)
    images = torch.randn(2, 3, 64, 32)

    def intermediates():
        return clip.visual.forward_intermediates(images, output_extra_tokens=True)

    with_gradients = intermediates()
    with torch.no_grad():
        without = intermediates()
    for name in ("image_intermediates", "image_intermediates_prefix"):
        for one, other in zip(without[name], with_gradients[name], strict=True):
            torch.testing.assert_close(one, other.detach(), rtol=1e-5, atol=1e-6)


def test_tower_that_skips_blocks_takes_prompts_only_in_every_block(zoo):
    clip = make(zoo, "nllb-clip-base")
    assert clip.text.transformer.layerdrop > 0
    with pytest.raises(ValueError, match=r"depth is 1, but this huggingface\.m2m_100 skips whole blocks"):
        PromptedTextEncoder(clip, 2, depth=1)
    encoder = PromptedTextEncoder(clip, 2).train()
    clip.train()
    clip.text.transformer.layerdrop = 0.7
    tokens = zoo.tokens_for("nllb-clip-base")
    assert all(encoder(tokens).shape == (3, 32) for _ in range(10))


@pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*gradient_checkpointing_enable:FutureWarning")
@pytest.mark.parametrize("name", ["ViT-B-16-SigLIP", "EVA02-B-16", "roberta-ViT-B-32", "mt5-base-ViT-B-32", "RN50"])
def test_gradient_checkpointing_gives_the_same_gradients_in_every_family(zoo, name):
    model = PromptedCLIP(make(zoo, name), PromptConfig(vision_length=2)).train()
    if not can_reach_prompts(model.clip):
        with (
            pytest.raises(ValueError, match="install transformers>=5"),
            recomputed_activations(model.clip, enable=True),
        ):
            pass
        return
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    model.clip.eval()  # no running statistics, no dropout
    images, tokens = torch.randn(2, 3, *model.image_size), zoo.tokens_for(name, batch=2)
    gradients = []
    for checkpointing in (False, True):
        model.zero_grad()
        if checkpointing:
            for module in (model.clip.visual, getattr(model.clip, "text", model.clip)):
                module.train()
        with recomputed_activations(model.clip, enable=checkpointing):
            output = model(images, tokens)
            (output["image_features"] * output["text_features"]).sum().backward()
        gradients.append([prompts.grad.clone() for prompts in model.prompt_parameters()])
        if name == "RN50":
            break  # open_clip has no checkpointing for it
    for plain, recomputed in zip(gradients[0], gradients[-1], strict=True):
        torch.testing.assert_close(recomputed, plain, rtol=1e-4, atol=1e-6)


def checkpointed(clip):
    """What says that activations are computed again, and the hooks that go with it."""
    names = ("grad_checkpointing", "gradient_checkpointing", "_gradient_checkpointing_func", "_require_grads_hooks")
    flags = {
        f"{path}.{name}": value
        for path, part in clip.named_modules()
        for name, value in vars(part).items()
        if name in names
    }
    return flags, [list(part._forward_hooks.values()) for part in clip.modules()]


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
@pytest.mark.parametrize("name", ["ViT-B-16", "ViT-B-16-SigLIP", "roberta-ViT-B-32", "mt5-base-ViT-B-32"])
def test_gradient_checkpointing_ends_as_it_was_before(zoo, name):
    clip = make(zoo, name)
    if not can_reach_prompts(clip):
        pytest.skip("transformers before 5 skips prompts")
    for _ in range(2):
        before = checkpointed(clip)
        with recomputed_activations(clip, enable=True):
            assert checkpointed(clip) != before
        assert checkpointed(clip) == before
        # What the user switched on stays on.
        if hasattr(clip, "text") and hasattr(clip.text.transformer, "activation_checkpointing_enable"):
            clip.text.transformer.activation_checkpointing_enable({"use_reentrant": True})
        else:
            clip.visual.set_grad_checkpointing(True)


def test_gradient_checkpointing_that_one_tower_refuses_leaves_the_other_without(clip):
    clip.text = nn.Module()
    with (
        patch.object(type(clip), "set_grad_checkpointing", CustomTextCLIP.set_grad_checkpointing),
        pytest.raises(ValueError, match="has a tower without gradient checkpointing"),
        recomputed_activations(clip, enable=True),
    ):
        pass
    assert not clip.visual.transformer.grad_checkpointing


def test_gradient_checkpointing_that_goes_past_prompts_is_refused(clip):
    clip.text = nn.Module()
    clip.text.transformer = nn.Module()
    clip.text.transformer.gradient_checkpointing_enable = lambda: None  # as transformers before 5 has it
    with pytest.raises(ValueError, match="skips its prompts"), recomputed_activations(clip, enable=True):
        pass


def test_patch_dropout_while_training_leaves_room_for_prompts(model_cfg, images):
    from open_clip.model import CLIP

    model_cfg["vision_cfg"]["patch_dropout"] = 0.5
    encoder = PromptedVisionEncoder(CLIP(**model_cfg), 3).train()
    encoder.clip.train()
    encoder(images).sum().backward()
    assert encoder.prompts.tokens.grad.abs().sum(dim=-1).gt(0).all()


@pytest.mark.parametrize(
    "name",
    [
        "ViT-B-16-SigLIP",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("EVA02-B-16", "vit_relpos_medium_patch16_cls_224", "RN50")
        ),
    ],
)
@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_image_encoder_of_other_families_gives_equal_features(zoo, name):
    model = PromptedCLIP(make(zoo, name), PromptConfig(vision_length=2))
    images = torch.randn(2, 3, 64, 32)
    compiled = torch.compile(model.vision, backend="aot_eager", fullgraph=ONE_GRAPH)
    torch.testing.assert_close(compiled(images), model.encode_image(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("slot", ["after_start", "before_end"])
@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_text_encoder_is_one_graph(clip, tokens, slot):
    encoder = PromptedTextEncoder(clip, slot=slot)
    compiled = torch.compile(encoder, backend="aot_eager", fullgraph=ONE_GRAPH)
    for captions in (tokens, tokens.flip(0)):
        torch.testing.assert_close(compiled(captions), encoder(captions), rtol=1e-5, atol=1e-5)
        assert encoder.prompts._caption_ends.get() is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_weights_take_prompts_of_float32(clip, images, tokens, dtype):
    model = PromptedCLIP(clip)
    exact = model.encode_image(images), model.encode_text(tokens)
    clip.to(dtype)
    rough = model.encode_image(images.to(dtype)), model.encode_text(tokens)
    for one, other in zip(rough, exact, strict=True):
        assert one.dtype == dtype
        assert torch.nn.functional.cosine_similarity(one.float(), other).min() > 0.99
    fresh = PromptedCLIP(model.detach(), PromptConfig(vision_initialization="mean_state"))
    assert fresh.vision.prompts.tokens.dtype == torch.float32
    assert fresh.vision.prompts.tokens.isfinite().all()


def test_images_of_0_to_255_are_refused(clip):
    with pytest.raises(ValueError, match="values up to 255, expected about -3 to 3"):
        PromptedVisionEncoder(clip)(torch.full((1, 3, 32, 16), 255.0))


def test_hugging_face_tower_takes_fewer_tokens_but_not_more(zoo):
    encoder = PromptedTextEncoder(make(zoo, "roberta-ViT-B-32"))
    assert encoder(torch.full((2, 9), 5)).shape == (2, 32)
    with pytest.raises(ValueError, match=r"shape \(2, 120\), expected \(batch, at most 98\)"):
        encoder(torch.full((2, 120), 5))


def test_empty_batch_of_captions_gives_no_features_and_of_images_is_refused(clip):
    model = PromptedCLIP(clip)
    assert model.encode_text(torch.zeros(0, 24, dtype=torch.int64)).shape == (0, 32)
    with pytest.raises(ValueError, match="the batch holds no images"):
        model.encode_image(torch.zeros(0, 3, 32, 16))


def test_longest_caption_is_that_of_the_rule(clip, tokens, zoo):
    tower = find_text_tower(clip)
    assert tower.longest_caption(tokens) == 14  # twelve words, start and end
    coca = find_text_tower(make(zoo, "coca_ViT-B-32"))
    assert coca.longest_caption(torch.tensor([[9, 8, 7, 0, 0], [9, 7, 0, 0, 0]])) == 3
    assert coca.longest_caption(torch.zeros(2, 5, dtype=torch.int64)) == 1
    siglip = find_text_tower(make(zoo, "ViT-B-16-SigLIP"))
    assert siglip.longest_caption(torch.zeros(2, 64, dtype=torch.int64)) == 64


def test_trimming_of_one_encoder_is_not_seen_by_another(clip, tokens):
    other = PromptedTextEncoder(copy.deepcopy(clip))
    one = PromptedTextEncoder(clip)
    whole = other.clip.encode_text(tokens)
    with one.caption_trim.cut(tokens[:, :2]):
        assert torch.equal(other.clip.encode_text(tokens), whole)


def test_every_name_of_open_clip_is_in_the_coverage_table(zoo):
    from pathlib import Path

    page = (Path(__file__).parents[2] / "docs" / "coverage.md").read_text(encoding="utf-8")
    rows = {line.split("|")[1].strip() for line in page.splitlines() if line.startswith("|")}
    assert set(zoo.names()) <= rows


def test_sweeps_leave_out_what_has_no_tower_for_images(zoo, monkeypatch):
    audio = {"embed_dim": 8, "audio_cfg": {"model_type": "HTSAT"}, "text_cfg": {"width": 8}}
    before = zoo.names()
    assert len(before) > 100
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "HTSAT-tiny", audio)
    assert "HTSAT-tiny" in open_clip.list_models()
    assert zoo.names() == before
