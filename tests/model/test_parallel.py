"""Invariant 6 where several workers share a model: DistributedDataParallel, threads, train and eval switching."""

import copy
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist
from open_clip.model import CLIP
from torch._dynamo.testing import CompileCounter
from torch.nn.parallel import DistributedDataParallel

from promptreid import PromptConfig, PromptedCLIP, TwoStageSchedule, load_clip
from promptreid.towers.modes import evaluating


@pytest.fixture
def process_group(monkeypatch):
    """A group of this process alone; DistributedDataParallel watches its parameters as in a group of many."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}.items():
        monkeypatch.setitem(os.environ, name, value)
    dist.init_process_group("gloo", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


KINDS = {
    "independent": PromptConfig(),
    "coupled": PromptConfig(2, 2, kind="coupled"),
    "prefix": PromptConfig(2, 2, kind="prefix"),
    "grouped": PromptConfig(2, 2, kind="grouped", groups=("cam_a", "cam_b")),
}


def groups_of(model, images):
    """A group for each image, where the model has groups."""
    return [[model.groups[index % 2] for index in range(len(images))]] if model.groups else []


def train_in_parallel(model, stage, images, tokens, person_ids, *, steps=3):
    """Take steps of a stage through DistributedDataParallel; a parameter left unused fails the next one."""
    stage.prepare()
    parallel = DistributedDataParallel(model)
    optimizer = stage.optimizer()
    for _ in range(steps):
        output = parallel(images, tokens, *groups_of(model, images))
        stage.losses(output["image_features"], output["text_features"], person_ids)["total"].backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("kind", KINDS)
def test_ddp_trains_both_stages_without_unused_parameters(clip, images, tokens, process_group, kind):
    model = PromptedCLIP(clip, KINDS[kind])
    for stage in TwoStageSchedule(model, num_identities=3):
        before = [parameter.clone() for parameter in stage.parameters()]
        train_in_parallel(model, stage, images, tokens, torch.tensor([0, 1, 2, 0, 1]))
        changed = [not torch.equal(a, b) for a, b in zip(before, stage.parameters(), strict=True)]
        assert all(changed)


@pytest.mark.parametrize(
    "name",
    [
        "coca_ViT-B-32",  # a decoder that no feature comes from
        "ViT-B-16-SigLIP",  # a logit bias
        "nllb-clip-base",  # skips blocks while training
        "RN50",  # pixels around the border
        "mt5-base-ViT-B-32",
    ],
)
def test_ddp_trains_both_stages_of_other_families_without_unused_parameters(zoo, name, process_group):
    size = (96, 64) if "B-32" in name else (64, 32)
    with zoo.shrunk():
        clip = load_clip(name, image_size=size)
    if name == "nllb-clip-base":
        clip.text.transformer.layerdrop = 0.5
    model = PromptedCLIP(clip, PromptConfig(vision_length=2))
    images, tokens, person_ids = torch.randn(3, 3, *size), zoo.tokens_for(name), torch.tensor([0, 1, 2])
    for stage in TwoStageSchedule(model, num_identities=3):
        train_in_parallel(model, stage, images, tokens, person_ids, steps=6)


def test_decoder_that_no_feature_comes_from_is_left_as_it_was(zoo):
    with zoo.shrunk():
        clip = load_clip("coca_ViT-B-32", image_size=(96, 64))
    stage = TwoStageSchedule(PromptedCLIP(clip), num_identities=3)[1]
    stage.prepare()
    decoder = set(clip.text_decoder.parameters())
    assert not decoder & set(stage.parameters())
    assert not any(parameter.requires_grad for parameter in decoder)
    assert all(parameter.requires_grad for parameter in clip.text.parameters())


def test_threads_that_infer_side_by_side_get_what_one_gets(clip, images, tokens):
    model = PromptedCLIP(clip)
    with torch.no_grad():
        expected = model.encode_image(images), model.encode_text(tokens)
        with model.disabled():
            bare = model.encode_image(images), model.encode_text(tokens)

    def infer(number):
        rows = slice(number % 5, None)  # captions of different length: each thread trims its own batch
        with torch.no_grad():
            if number % 3 == 0:
                with model.disabled():
                    return number, model.encode_image(images[rows]), model.encode_text(tokens[rows])
            return number, model.encode_image(images[rows]), model.encode_text(tokens[rows])

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(infer, range(60)))
    for number, image_features, text_features in results:
        wanted = bare if number % 3 == 0 else expected
        torch.testing.assert_close(image_features, wanted[0][number % 5 :], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(text_features, wanted[1][number % 5 :], rtol=1e-4, atol=1e-5)


class Paused:
    """A hook that holds a thread by the name of A until B is here, and B until A has ended."""

    def __init__(self):
        self.here, self.ended = threading.Event(), threading.Event()

    def __call__(self, *_):
        name = threading.current_thread().name
        if name == "A":
            assert self.here.wait(10)
        elif name == "B" and not self.here.is_set():
            self.here.set()
            assert self.ended.wait(10)

    def run(self, first, second):
        def end():
            first()
            self.ended.set()

        threads = [threading.Thread(target=end, name="A"), threading.Thread(target=second, name="B")]
        for thread in threads:
            thread.start()
            time.sleep(0.2)
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("tower", ["ViT", "ResNet"])
def test_model_that_trains_is_in_eval_mode_until_the_last_thread_has_encoded(clip, model_cfg, tower):
    where = clip.visual.transformer.resblocks[1].ls_1
    if tower == "ResNet":
        model_cfg["vision_cfg"] = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
        clip = CLIP(**model_cfg)
        where = clip.visual.conv1
    model = PromptedCLIP(clip.train())
    model.text.eval()
    images = torch.randn(4, 3, *model.image_size)
    expected = model.encode(images, progress=False)
    before = copy.deepcopy(clip.state_dict())
    pause, found = Paused(), []
    where.register_forward_hook(pause)
    pause.run(*[lambda: found.append(model.encode(images, progress=False))] * 2)
    for features in found:
        torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(clip.state_dict(), before, rtol=0, atol=0)
    assert all(part.training for part in clip.modules())
    assert (model.vision.training, model.text.training) == (True, False)


def test_mode_that_is_set_inside_a_block_of_evaluating_is_found_again(clip):
    model = PromptedCLIP(clip).train()
    with evaluating(model):
        model.train()
        with evaluating(model):
            assert not model.training
        assert model.training
        model.eval()
        with evaluating(model):
            model.train()
        assert not any(part.training for part in model.modules())
    assert all(part.training for part in model.modules())


def test_block_of_evaluating_that_ends_before_a_newer_one_leaves_the_mode_to_it(clip):
    model = PromptedCLIP(clip).train()
    first, second, third = (evaluating(model) for _ in range(3))
    first.__enter__()
    model.train()
    second.__enter__()
    third.__enter__()
    second.__exit__(None, None, None)
    assert not model.training
    third.__exit__(None, None, None)
    assert model.training  # as it was when the second one began
    model.eval()
    first.__exit__(None, None, None)
    assert model.training  # as it was when the first one began


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("config", [PromptConfig(), PromptConfig(kind="grouped", groups=("a", "b"), text_length=0)])
def test_blocks_that_are_compiled_one_by_one_are_compiled_once(clip, images, config):
    model = PromptedCLIP(clip, config).eval()
    groups = {"groups": ["a", "b", "a", "b", "a"][: len(images)]} if config.kind == "grouped" else {}
    counter, counts = CompileCounter(), []
    with torch.no_grad():
        expected = model.encode_image(images, **groups)
        for block in clip.visual.transformer.resblocks:
            block.compile(backend=counter)
        for _ in range(12):
            torch.testing.assert_close(model.encode_image(images, **groups), expected, rtol=1e-4, atol=1e-5)
            counts.append(counter.frame_count)
    assert counts[1] == counts[-1] > 0


def test_switch_to_train_mode_within_a_block_leaves_prompts_where_they_are(clip, images):
    model = PromptedCLIP(clip).eval()
    block = clip.visual.transformer.resblocks[-1]
    with torch.no_grad():
        expected = model.encode_image(images)
        handle = block.ln_1.register_forward_hook(lambda *_: clip.train() and None)
        torch.testing.assert_close(model.encode_image(images), expected, rtol=1e-4, atol=1e-5)
        handle.remove()
        model.eval()
        middle = clip.visual.transformer.resblocks[1]
        middle.ln_1.register_forward_hook(lambda *_: clip.train() and None)
        torch.testing.assert_close(model.encode_image(images), expected, rtol=1e-4, atol=1e-5)


def test_train_and_eval_switching_gives_the_features_of_before(clip, images, tokens):
    model = PromptedCLIP(clip).eval()
    before = model.encode_image(images), model.encode_text(tokens)
    model.train()
    (model.encode_image(images).sum() + model.encode_text(tokens).sum()).backward()
    model.eval()
    torch.testing.assert_close(model.encode_image(images), before[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.encode_text(tokens), before[1], rtol=1e-5, atol=1e-6)


def test_two_prompted_models_run_in_turn_keep_their_own_prompts(model_cfg, images, tokens):
    models = [PromptedCLIP(CLIP(**model_cfg).eval()) for _ in range(2)]
    alone = [(model.encode_image(images), model.encode_text(tokens)) for model in models]
    assert not torch.allclose(alone[0][0], alone[1][0])
    for _ in range(2):
        for model, (image_features, text_features) in zip(models, alone, strict=True):
            assert torch.equal(model.encode_image(images), image_features)
            assert torch.equal(model.encode_text(tokens), text_features)


def test_text_encoder_compiles_and_gives_equal_features(clip, tokens):
    model = PromptedCLIP(clip)
    compiled = torch.compile(model.text, backend="aot_eager")
    torch.testing.assert_close(compiled(tokens), model.encode_text(tokens), rtol=1e-5, atol=1e-5)
    with model.disabled():
        torch.testing.assert_close(compiled(tokens), model.encode_text(tokens), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_fully_sharded_blocks_take_prompts_and_give_them_gradients(clip, images, tokens, process_group, kind):
    if not hasattr(torch.cpu.Stream, "record_event"):
        pytest.skip("torch 2.6 cannot run fully_shard on a CPU: its torch.cpu.Stream has no record_event")
    from torch.distributed.fsdp import fully_shard

    model = PromptedCLIP(clip, KINDS[kind])
    groups = groups_of(model, images)
    expected = model(images, tokens, *groups)["image_features"].detach()
    mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
    for block in clip.visual.transformer.resblocks:
        fully_shard(block, mesh=mesh)
    output = model(images, tokens, *groups)
    torch.testing.assert_close(output["image_features"], expected, rtol=1e-5, atol=1e-5)
    output["image_features"].sum().backward()
    assert all(parameter.grad is not None for parameter in model.vision.prompts.parameters())
