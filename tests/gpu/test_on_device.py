"""What must hold on a GPU, each test on the processor too (`make test-all`), so that nothing is found out on the card.

`make gpu` runs the ones marked `gpu`: every loss, the metrics, the trainer's modes, gradient caching, a gallery, and
processes' collectives with one process.
"""

import os
import socket

import pytest
import torch
from PIL import Image

from promptreid import ContrastiveLoss, CrossModalIDLoss, Gallery, PromptConfig, PromptedCLIP, Trainer, TwoStageSchedule
from promptreid.evaluation.metrics import compute_metrics
from promptreid.losses.contrastive import NITCLoss, SDMLoss
from promptreid.losses.self_consistency import FrozenFeatures, SelfConsistencyLoss
from promptreid.training.processes import gather_batch

# torch 2.11's compiler reads .grad of every tensor, which warns of those that are no leaves.
COMPILER_READS_GRADIENTS = pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
DEVICES = [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    return request.param


class Pairs(torch.utils.data.Dataset):
    def __init__(self):
        self.person_ids = torch.arange(12) % 4

    def __len__(self):
        return 12

    def __getitem__(self, index):
        tokens = torch.zeros(24, dtype=torch.int64)
        tokens[0], tokens[1], tokens[2] = 510, 1 + index, 511
        image = torch.randn(3, 32, 16, generator=torch.Generator().manual_seed(index))
        return {"images": image, "tokens": tokens, "person_ids": self.person_ids[index]}


@pytest.mark.parametrize(
    "loss",
    [
        ContrastiveLoss(0.1), ContrastiveLoss(0.1, same_person="positive"), SDMLoss(0.1), NITCLoss(0.1),
        CrossModalIDLoss(3, 8), SelfConsistencyLoss(temperature=0.1),
    ],
    ids=lambda loss: type(loss).__name__,
)  # fmt: skip
def test_losses_and_gradients_are_those_of_the_processor(device, loss):
    images, texts, *frozen = torch.randn(4, 6, 8)
    ids = torch.tensor([0, 1, 2, 0, 1, 2])
    more = {"frozen": frozen} if getattr(loss, "needs", ()) else {}
    found = []
    for place in ("cpu", device):
        loss.to(place)
        leaf = images.clone().to(place).requires_grad_()
        given = {name: FrozenFeatures(*(each.to(place) for each in value)) for name, value in more.items()}
        value = loss(leaf, texts.to(place), ids.to(place), **given)
        value.backward()
        found.append((value.detach().cpu(), leaf.grad.cpu()))
    loss.to("cpu")
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_metrics_are_those_of_the_processor(device):
    queries, gallery = torch.randn(50, 16), torch.randn(80, 16)
    ids = torch.arange(50) % 20, torch.arange(80) % 20
    found = compute_metrics(queries.to(device), gallery.to(device), *(each.to(device) for each in ids))
    assert found.as_dict() == pytest.approx(compute_metrics(queries, gallery, *ids).as_dict(), abs=0.02)


@pytest.mark.parametrize(
    "settings",
    [{}, {"mixed_precision": "bf16"}, {"mixed_precision": "fp16"}, {"chunk_size": 4},
     pytest.param({"compile": True}, marks=COMPILER_READS_GRADIENTS), {"gradient_checkpointing": True}],
    ids=["fp32", "bf16", "fp16", "chunks", "compile", "recomputed"],
)  # fmt: skip
@pytest.mark.timeout(280)
def test_trainer_trains_both_stages_in_every_mode(device, clip, settings, tmp_path):
    if device == "cpu" and ("fp16" in settings.values() or "compile" in settings):
        pytest.skip("fp16 needs a GPU, and what torch.compile does on the processor is tested elsewhere")
    model = PromptedCLIP(clip, PromptConfig(text_length=2, vision_length=2))
    stages = TwoStageSchedule(
        model, num_identities=4, stage_one_epochs=1, stage_two_epochs=1, self_consistency=1.0, average_prompts=True
    )
    common = {"batch_size": 8, "output_dir": tmp_path / "run", "device": device, "progress": False, "trackers": ()}
    history = Trainer(model, stages, train_data=Pairs(), **common, **settings).fit()
    assert [entry["stage"] for entry in history] == ["stage_one", "stage_two"]
    assert all(entry["losses"]["total"] < 100 for entry in history)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_gallery_finds_on_the_device_what_it_finds_on_the_processor(device, tmp_path):
    from promptreid import load_clip

    paths = []
    for number, colour in enumerate(("red", "green", "blue")):
        paths.append(tmp_path / f"{number}.png")
        Image.new("RGB", (48, 96), colour).save(paths[-1])
    model = PromptedCLIP(load_clip("promptreid-tiny", pretrained="generated", image_size=(96, 48), device=device))
    gallery = Gallery.build(model, paths)
    hits = gallery.search("a person in red", k=3)
    order = [str(hit.path) for hit in hits]
    model.to("cpu")
    assert [str(hit.path) for hit in Gallery.build(model, paths).search("a person in red", k=3)] == order


def test_collectives_of_one_process_give_the_batch_and_its_gradient(device):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    backend = "nccl" if device == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, init_method=address, rank=0, world_size=1)
    try:
        features = torch.randn(3, 2, device=device, requires_grad=True)
        (gathered,) = gather_batch(features)
        gathered.square().sum().backward()
        total = torch.ones(1, device=device)
        torch.distributed.all_reduce(total)
        assert total.item() == 1
        torch.testing.assert_close(features.grad, 2 * features.detach())
    finally:
        torch.distributed.destroy_process_group()
        os.environ.pop("MASTER_ADDR", None)
