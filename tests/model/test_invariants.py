"""The invariants of prompts in a tower: nothing changes that should not."""

import copy
import threading

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from promptreid import PromptConfig, PromptedCLIP, PromptedTextEncoder, PromptedVisionEncoder, load_clip
from promptreid.errors import AttachmentError

# Older torch cannot trace how a thread turns prompts off: there the graph breaks, and the values are the same.
ONE_GRAPH = torch.__version__ >= "2.14"


def bytes_of(module):
    return {key: value.clone() for key, value in module.state_dict().items()}


def same_bytes(module, before):
    after = module.state_dict()
    return after.keys() == before.keys() and all(torch.equal(after[key], before[key]) for key in before)


def attributes_of(module):
    """Everything an object and its submodules carry besides tensors."""
    return {
        name: {
            key: len(value) if hasattr(value, "__len__") else value
            for key, value in vars(part).items()
            if not isinstance(value, torch.Tensor)
        }
        for name, part in module.named_modules()
    }


def reference_image_features(clip, images, prompts):
    """Deep prompting written out: block by block, prompts replaced."""
    visual = clip.visual
    sequence = visual._embeds(images)
    depth, count, _ = prompts.shape
    for index, block in enumerate(visual.transformer.resblocks):
        if index < depth:
            own = prompts[index].expand(len(images), -1, -1)
            kept = sequence[:, 1:] if index == 0 else sequence[:, 1 + count :]
            sequence = torch.cat([sequence[:, :1], own, kept], dim=1)
        sequence = block(sequence)
    sequence = torch.cat([sequence[:, :1], sequence[:, 1 + count :]], dim=1)
    return visual.ln_post(sequence)[:, 0] @ visual.proj


def reference_text_features(clip, tokens, prompts):
    sequence = clip.token_embedding(tokens) + clip.positional_embedding
    depth, count, _ = prompts.shape
    length = tokens.shape[1] + count
    mask = torch.full((length, length), float("-inf")).triu(1)
    for index, block in enumerate(clip.transformer.resblocks):
        if index < depth:
            own = prompts[index].expand(len(tokens), -1, -1)
            kept = sequence[:, 1:] if index == 0 else sequence[:, 1 + count :]
            sequence = torch.cat([sequence[:, :1], own, kept], dim=1)
        sequence = block(sequence, attn_mask=mask)
    sequence = clip.ln_final(sequence)
    return sequence[torch.arange(len(tokens)), tokens.argmax(-1) + count] @ clip.text_projection


@pytest.mark.parametrize("exact", [True, False])
def test_length_zero_is_the_bare_model(clip, images, tokens, exact):
    bare = copy.deepcopy(clip)
    model = PromptedCLIP(clip, PromptConfig(text_length=0, vision_length=0), sequence_first=not exact, trim=not exact)
    for prompted, plain in (
        (model.encode_image(images), bare.encode_image(images)),
        (model.encode_text(tokens), bare.encode_text(tokens)),
    ):
        if exact:
            assert torch.equal(prompted, plain)
        else:
            torch.testing.assert_close(prompted, plain, rtol=1e-5, atol=1e-5 * plain.abs().max().item())


def test_detach_leaves_no_trace(clip, images):
    before, bare = attributes_of(clip), clip.encode_image(images)
    state = bytes_of(clip)
    model = PromptedCLIP(clip)
    assert not torch.equal(model.encode_image(images), bare)
    assert model.detach() is clip
    assert attributes_of(clip) == before
    assert same_bytes(clip, state)
    assert torch.equal(clip.encode_image(images), bare)


@pytest.mark.parametrize("sequence_first", [True, False])
@pytest.mark.parametrize("depth", [1, 2, None])
@pytest.mark.parametrize("length", [1, 5])
def test_features_any_depth_equal_the_written_out_forward(clip, images, tokens, length, depth, sequence_first):
    bare = copy.deepcopy(clip)
    config = PromptConfig(
        text_length=length, vision_length=length, text_depth=depth, vision_depth=depth, text_initialization="normal"
    )
    model = PromptedCLIP(clip, config, sequence_first=sequence_first)
    expected = reference_image_features(bare, images, model.vision.prompts.tokens)
    torch.testing.assert_close(model.encode_image(images), expected, rtol=1e-5, atol=1e-5)
    expected = reference_text_features(bare, tokens, model.text.prompts.tokens)
    torch.testing.assert_close(model.encode_text(tokens), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("depth", [1, 2, None])
@pytest.mark.parametrize("length", [1, 2, 5])
def test_features_without_gradients_equal_those_with(clip, images, tokens, length, depth):
    """Without gradients prompts are taken out in place; `length` is below, at and above the tokens before the slot."""
    model = PromptedCLIP(clip, PromptConfig(length, length, depth, depth)).eval()
    expected = model.encode_image(images), model.encode_text(tokens)
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            torch.testing.assert_close(model.encode_image(images), expected[0], rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(model.encode_text(tokens), expected[1], rtol=1e-6, atol=1e-6)


def test_base_model_while_wrapped_keeps_its_keys_and_answers_prompted(clip, images, tokens):
    bare = copy.deepcopy(clip)
    model = PromptedCLIP(clip)
    assert list(clip.state_dict()) == list(bare.state_dict())
    torch.testing.assert_close(clip.encode_text(tokens), model.encode_text(tokens), rtol=1e-5, atol=1e-5)
    image_features, text_features, _ = clip(images, tokens)
    assert not torch.allclose(image_features, bare.encode_image(images, normalize=True))
    with model.disabled():
        image_features, text_features, _ = clip(images, tokens)
        torch.testing.assert_close(image_features, bare.encode_image(images, normalize=True), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(text_features, bare.encode_text(tokens, normalize=True), rtol=1e-5, atol=1e-6)


def test_disabled_in_one_thread_leaves_another_prompted(clip, images):
    model = PromptedCLIP(clip)
    prompted = model.encode_image(images)
    inside, done, seen = threading.Event(), threading.Event(), []

    def infer():
        inside.wait(10)
        with torch.no_grad():
            seen.append(model.encode_image(images))
        done.set()

    thread = threading.Thread(target=infer)
    thread.start()
    with model.disabled(), torch.no_grad():
        inside.set()
        assert done.wait(10)
        bare = model.encode_image(images)
    thread.join()
    torch.testing.assert_close(seen[0], prompted, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(bare, prompted)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")  # torch's, of its own formulas
@pytest.mark.parametrize("gradients", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_forward_derivatives_and_batches_of_transforms_are_those_of_single_passes(clip, images, gradients):
    with gradients():
        one = torch.ones(1)
        if jvp(torch.sin, (one,), (one,))[1] == 0:
            pytest.skip("torch 2.6 has no forward derivatives in inference mode")
    model = PromptedCLIP(clip.double()).eval()
    images, change = images.double(), torch.randn(5, 3, 32, 16, dtype=torch.float64)
    prompts = torch.randn(3, *model.vision.prompts.tokens.shape, dtype=torch.float64)

    def encode(prompts, images):
        return functional_call(model.vision, {"prompts.tokens": prompts}, (images,))

    def slope(function, at, along, step=1e-6):
        return (function(at + step * along) - function(at - step * along)) / (2 * step)

    cases = [
        (lambda prompts: encode(prompts, images), prompts[0], prompts[1]),
        (lambda images: encode(prompts[0], images), images, change),
    ]
    with sdpa_kernel(SDPBackend.MATH), gradients():
        for function, at, along in cases:
            expected = slope(function, at, along)
            torch.testing.assert_close(jvp(function, (at,), (along,))[1], expected, rtol=1e-5, atol=1e-7)
            if gradients is torch.inference_mode:
                continue  # torch keeps no tangents in it outside of jvp
            with forward_ad.dual_level():
                found = forward_ad.unpack_dual(function(forward_ad.make_dual(at, along))).tangent
                torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
        each = torch.stack([encode(own, images) for own in prompts])
        torch.testing.assert_close(vmap(encode, in_dims=(0, None))(prompts, images), each)


@pytest.mark.parametrize("same", [True, False])
def test_models_disabled_in_blocks_that_overlap_are_prompted_again_afterwards(clip, images, same):
    model = PromptedCLIP(clip)
    other = model if same else copy.deepcopy(model)

    def features(model):
        with model.disabled(), torch.no_grad():
            yield model.encode_image(images)
            yield model.encode_image(images)

    with torch.no_grad():
        prompted = model.encode_image(images), other.encode_image(images)
        first, second = features(model), features(other)
        bare = next(first)
        next(second)
        first.close()
        torch.testing.assert_close(model.encode_image(images), bare if same else prompted[0])
        torch.testing.assert_close(other.encode_image(images), bare)
        second.close()
        torch.testing.assert_close((model.encode_image(images), other.encode_image(images)), prompted)


def test_disabling_one_model_leaves_its_deep_copy_prompted(clip, images):
    model = PromptedCLIP(clip)
    twin = copy.deepcopy(model)
    assert twin.vision.clip is twin.clip
    assert twin.clip is not model.clip
    with model.disabled():
        assert not torch.allclose(twin.encode_image(images), model.encode_image(images))
    assert torch.equal(twin.encode_image(images), model.encode_image(images))
    with torch.no_grad():
        twin.vision.prompts.tokens.normal_()
    assert not torch.allclose(twin.encode_image(images), model.encode_image(images))


def step(model, images, tokens, parameters):
    optimizer = torch.optim.AdamW(parameters, lr=0.01)
    output = model(images, tokens)
    loss = (output["image_features"] - output["text_features"]).square().mean()
    loss.backward()
    optimizer.step()


def test_stage_one_step_changes_prompts_and_no_byte_of_the_base(clip, images, tokens):
    model = PromptedCLIP(clip)
    before, prompts = bytes_of(clip), bytes_of(model.vision.prompts)
    for parameter in model.encoder_parameters():
        parameter.requires_grad = False
    step(model.train(), images, tokens, model.prompt_parameters())
    assert same_bytes(clip, before)
    assert all(parameter.grad is None for parameter in clip.parameters())
    assert not same_bytes(model.vision.prompts, prompts)
    for prompts in model.prompt_parameters():
        assert prompts.grad is not None
        assert prompts.grad.abs().sum(dim=-1).gt(0).all(), "every prompt of every block has a gradient"


def test_stage_two_step_changes_encoders_and_no_byte_of_the_prompts(clip, images, tokens):
    model = PromptedCLIP(clip)
    before = bytes_of(clip)
    prompts = model.prompt_state_dict()
    prompts = {name: value.clone() for name, value in prompts.items()}
    for parameter in model.prompt_parameters():
        parameter.requires_grad = False
    step(model, images, tokens, model.encoder_parameters())
    assert not same_bytes(clip, before)
    assert all(torch.equal(value, prompts[name]) for name, value in model.prompt_state_dict().items())


def test_trimming_a_causal_tower_is_exact_for_any_caption_length(clip):
    model = PromptedCLIP(clip)
    full = PromptedCLIP(copy.deepcopy(model.detach()), trim=False)
    model = PromptedCLIP(clip)
    full.load_prompt_state_dict(model.prompt_state_dict())
    for words in (1, 2, 10, 21, 22):
        tokens = torch.zeros(3, 24, dtype=torch.int64)
        tokens[:, 0] = 510
        tokens[:, 1 : 1 + words] = torch.randint(1, 500, (3, words))
        tokens[:, 1 + words] = 511
        torch.testing.assert_close(model.encode_text(tokens), full.encode_text(tokens), rtol=1e-5, atol=1e-5)


def test_trimming_shortens_what_the_blocks_see(clip, tokens):
    model = PromptedCLIP(clip)
    lengths = []
    clip.transformer.resblocks[-1].register_forward_pre_hook(
        lambda _, args, kwargs: lengths.append((args[0] if args else kwargs["q_x"]).shape[0]), with_kwargs=True
    )
    model.encode_text(tokens)
    # The longest caption has 12 words between start and end: 14 tokens, and 4 prompts.
    assert lengths[0] == 14 + 4


def test_trimming_is_never_done_where_it_is_not_exact(clip):
    clip.text_pool_type = "last"
    assert PromptedTextEncoder(clip).tower.trim == "never"


INTEGERS = [torch.int32, torch.int16, torch.uint16, torch.uint32, torch.uint64]


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_tokens_of_any_integer_type_give_the_same_features(clip, tokens, dtype):
    model = PromptedCLIP(clip)
    assert torch.equal(model.encode_text(tokens.to(dtype)), model.encode_text(tokens))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8], ids=str)
def test_tokens_of_a_short_integer_type_give_the_same_features(clip, tokens, dtype):
    model, short = PromptedCLIP(clip), tokens.clamp(max=100)
    assert torch.equal(model.encode_text(short.to(dtype)), model.encode_text(short))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.complex64], ids=str)
def test_tokens_that_are_no_integers_are_refused(clip, tokens, dtype):
    with pytest.raises(TypeError, match=f"tokens have dtype {dtype}, expected integers"):
        PromptedCLIP(clip).encode_text(tokens.to(dtype))


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_gradient_checkpointing_with_trimming_gives_the_same_gradients(clip, images, tokens):
    model, images = PromptedCLIP(clip.double()).train(), images.double()
    gradients = []
    for checkpointing in (False, True):
        model.zero_grad()
        clip.set_grad_checkpointing(checkpointing)
        output = model(images, tokens)
        (output["image_features"] * output["text_features"]).sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.prompt_parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain, rtol=1e-6, atol=1e-7)


def test_autocast_bf16_stays_near_fp32_and_keeps_prompts_fp32(clip, images, tokens):
    model = PromptedCLIP(clip)
    exact = model.encode_image(images, normalize=True), model.encode_text(tokens, normalize=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model.encode_image(images, normalize=True), model.encode_text(tokens, normalize=True)
    for one, other in zip(exact, rough, strict=True):
        assert torch.nn.functional.cosine_similarity(one, other.float()).min() > 0.995
    assert all(parameter.dtype == torch.float32 for parameter in model.prompt_parameters())


HALF_AND_DOUBLE = [torch.bfloat16, torch.float16, torch.float64]


@pytest.mark.parametrize("dtype", HALF_AND_DOUBLE, ids=str)
def test_float32_images_are_cast_for_encoders_of_another_precision(clip, images, dtype):
    model = PromptedCLIP(clip)
    model.clip.to(dtype)
    images.requires_grad_()
    features = model.encode_image(images)
    assert features.dtype == dtype
    assert torch.equal(features, model.encode_image(images.to(dtype)))
    features.float().square().sum().backward()
    assert images.grad is not None
    assert images.grad.dtype == torch.float32
    assert model.vision.prompts.tokens.grad is not None


def test_float32_images_reach_float32_encoders_without_a_copy(clip, images, monkeypatch):
    model = PromptedCLIP(clip)
    seen, encode = [], clip.encode_image

    def note(images, **options):
        seen.append(images)
        return encode(images, **options)

    monkeypatch.setattr(clip, "encode_image", note)
    model.encode_image(images)
    assert seen[0] is images


@pytest.mark.parametrize(
    "name", ["RN50", "convnext_base", "EVA02-B-16", "ViT-B-16-SigLIP", "coca_ViT-B-32", "MobileCLIP-S1", "ViTamin-S"]
)
def test_bf16_encoders_of_other_families_take_float32_images(zoo, name):
    with zoo.shrunk():
        size = (96, 64) if "B-32" in name else (64, 32)
        model = PromptedCLIP(load_clip(name, image_size=size), PromptConfig(vision_length=2)).eval()
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        exact = model.encode_image(images, normalize=True)
        model.clip.bfloat16()
        rough = model.encode_image(images, normalize=True)
    assert rough.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(exact, rough.float()).min() > 0.98


@pytest.mark.usefixtures("fresh_compiler")
def test_compile_after_attaching_gives_equal_features_without_graph_breaks(clip, images):
    model = PromptedCLIP(clip)
    compiled = torch.compile(model.vision, fullgraph=ONE_GRAPH, backend="aot_eager")
    torch.testing.assert_close(compiled(images), model.encode_image(images), rtol=1e-5, atol=1e-5)
    with model.disabled():
        torch.testing.assert_close(compiled(images), model.encode_image(images), rtol=1e-5, atol=1e-5)
    clip.bfloat16()
    torch.testing.assert_close(compiled(images), model.encode_image(images), rtol=0.05, atol=0.05)


def test_state_dict_round_trip_gives_the_same_features(clip, images, tokens):
    model = PromptedCLIP(clip)
    with torch.no_grad():
        model.text.prompts.tokens.normal_()
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert set(other.state_dict()) == {f"clip.{key}" for key in clip.state_dict()} | set(model.prompt_state_dict())
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.encode_text(tokens), model.encode_text(tokens))
    assert torch.equal(other.encode_image(images), model.encode_image(images))
    assert len(list(model.parameters())) == len(list(clip.parameters())) + 2


def test_two_wraps_of_one_model_are_refused_and_the_first_stays_prompted(clip, images):
    model = PromptedCLIP(clip)
    features = model.encode_image(images)
    with pytest.raises(AttachmentError, match=r"already carries prompts.*\.detach\(\)"):
        PromptedCLIP(clip)
    assert torch.equal(model.encode_image(images), features)


def test_failed_wrap_leaves_the_model_bare(clip, images):
    bare = clip.encode_image(images)
    with pytest.raises(ValueError, match="length is 24"):
        PromptedCLIP(clip, PromptConfig(text_length=24))
    assert torch.equal(clip.encode_image(images), bare)
    PromptedCLIP(clip)


def test_compiled_model_is_refused(clip):
    clip.visual.transformer.compile(backend="eager")
    with pytest.raises(AttachmentError, match="Attach first"):
        PromptedVisionEncoder(clip)


def test_several_models_side_by_side_do_not_mix(clip, images):
    other = copy.deepcopy(clip)
    first, second = PromptedCLIP(clip), PromptedCLIP(other, PromptConfig(vision_length=2))
    alone = second.encode_image(images)
    with first.disabled():
        assert torch.equal(second.encode_image(images), alone)


def test_output_tokens_and_intermediates_have_the_bare_shapes(clip, images):
    bare = clip.visual.forward_intermediates(images)["image_intermediates"]
    model = PromptedCLIP(clip)
    assert [part.shape for part in clip.visual.forward_intermediates(images)["image_intermediates"]] == [
        part.shape for part in bare
    ]
    clip.visual.output_tokens = True
    pooled, patches = clip.visual(images)
    assert pooled.shape == (5, 32)
    assert patches.shape == (5, 8, 32)
    assert model.config.vision_length == 4


def test_intermediates_of_prompts_that_continue_are_refused(clip, images, tokens):
    bare = clip.visual.forward_intermediates(images)["image_intermediates"]
    model = PromptedCLIP(clip, PromptConfig(text_depth=2, vision_depth=1))
    with pytest.raises(AttachmentError, match=r"depth 1 of 3.* Leave depth out"):
        clip.visual.forward_intermediates(images)
    with pytest.raises(AttachmentError, match=r"depth 2 of 3.* Leave depth out"):
        clip.forward_intermediates(text=tokens)
    with model.disabled():
        again = clip.visual.forward_intermediates(images)["image_intermediates"]
    for one, other in zip(again, bare, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    copy.deepcopy(model).detach().visual.forward_intermediates(images)
    assert "forward_intermediates" not in vars(model.detach().visual.transformer)
    clip.visual.forward_intermediates(images)


def test_position_embedding_changes_features_and_stays_zero_for_zero_prompts(clip, images, tokens):
    plain = PromptedCLIP(copy.deepcopy(clip))
    moved = PromptedCLIP(copy.deepcopy(clip), PromptConfig(position_embedding=True))
    moved.load_prompt_state_dict(plain.prompt_state_dict())
    assert not torch.allclose(plain.encode_text(tokens), moved.encode_text(tokens))
    assert not torch.allclose(plain.encode_image(images), moved.encode_image(images))
    empty = PromptedCLIP(clip, PromptConfig(text_length=0, vision_length=0, position_embedding=True), trim=False)
    with empty.disabled():
        bare = empty.encode_text(tokens)
    assert torch.equal(empty.encode_text(tokens), bare)


def test_position_embedding_gives_the_caption_the_places_after_the_prompts(clip, tokens):
    encoder = PromptedTextEncoder(clip, 2, position_embedding=True, sequence_first=False, trim=False)
    seen = []
    # The block's own input, as the block gets it.
    clip.transformer.resblocks[0].ln_1.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    encoder(tokens)
    words, positions = clip.token_embedding(tokens), clip.positional_embedding
    prompts = encoder.prompts.tokens[0]
    torch.testing.assert_close(seen[0][:, 0], words[:, 0] + positions[0])
    torch.testing.assert_close(seen[0][0, 1:3], prompts + positions[1:3])
    torch.testing.assert_close(seen[0][:, 3 : 3 + 10], words[:, 1:11] + positions[3:13])


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.zeros(2, 3, 16, 32), r"images have shape \(2, 3, 16, 32\), expected \(batch, 3, 32, 16\)"),
        (torch.zeros(2, 1, 32, 16), r"expected \(batch, 3, 32, 16\)"),
        (torch.zeros(3, 32, 16), "model.eval_transform"),
    ],
)
def test_images_of_the_wrong_shape_are_refused(clip, images, words):
    with pytest.raises(ValueError, match=words):
        PromptedVisionEncoder(clip)(images)


def test_images_of_integers_are_refused(clip):
    with pytest.raises(TypeError, match=r"torch\.uint8, expected floating point"):
        PromptedVisionEncoder(clip)(torch.zeros(2, 3, 32, 16, dtype=torch.uint8))


def test_tokens_that_do_not_fit_are_refused(clip):
    encoder = PromptedTextEncoder(clip)
    with pytest.raises(TypeError, match=r"torch\.float32, expected integers"):
        encoder(torch.zeros(2, 24))
    with pytest.raises(ValueError, match=r"shape \(2, 77\), expected \(batch, 24\)"):
        encoder(torch.zeros(2, 77, dtype=torch.int64))
    with pytest.raises(ValueError, match="run from 0 to 600, but this text tower knows 0 to 511"):
        encoder(torch.tensor([[0] * 23 + [600]]))
