"""Losses, gradients and whole runs of two gloo processes; `test_processes.py` starts this file as a program."""

import os
import socket
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from open_clip.model import CLIP
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import default_collate

from promptreid.data.samplers import EpochSampler, IdentitySampler
from promptreid.losses.contrastive import ContrastiveLoss, SDMLoss
from promptreid.losses.cross_modal_id import CrossModalIDLoss
from promptreid.losses.self_consistency import SelfConsistencyLoss
from promptreid.model.prompted_clip import PromptedCLIP
from promptreid.prompts.config import PromptConfig
from promptreid.training.batches import SeededItems
from promptreid.training.processes import make_accelerator
from promptreid.training.recipe import TwoStageSchedule
from promptreid.training.stage import Stage
from promptreid.training.step import RunningStage
from promptreid.training.trainer import Trainer

SAMPLERS: dict[str, Callable[..., Any]] = {
    "epoch": partial(EpochSampler, 12, batch_size=8),
    "identity": partial(IdentitySampler, torch.arange(12) % 4, identities_per_batch=4, pairs_per_identity=2),
}
CASES = {
    f"{str(dtype).removeprefix('torch.')}-{chunk or 'plain'}-{sampler}": (dtype, chunk, sampler)
    for dtype in (torch.float64, torch.float32)
    for chunk in (None, 3)
    for sampler in SAMPLERS
}


def small_clip(*, patch_dropout: float = 0.0) -> CLIP:
    torch.manual_seed(0)
    vision = {"image_size": 16, "layers": 2, "width": 32, "head_width": 8, "patch_size": 8}
    text = {"context_length": 16, "vocab_size": 64, "width": 32, "heads": 4, "layers": 2}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CLIP(embed_dim=32, vision_cfg=vision | {"patch_dropout": patch_dropout}, text_cfg=text)


class Noise(torch.utils.data.Dataset):
    def __init__(self) -> None:
        self.person_ids = torch.arange(12) % 4

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = torch.zeros(16, dtype=torch.int64)
        tokens[0], tokens[1], tokens[2] = 62, 1 + index, 63
        return {"images": torch.randn(3, 16, 16), "tokens": tokens, "person_ids": self.person_ids[index]}


def every_loss() -> dict[str, nn.Module]:
    losses: dict[str, nn.Module] = {
        same_person: ContrastiveLoss(0.1, same_person=same_person)
        for same_person in ("negative", "positive", "ignored")
    }
    losses["learnt"] = ContrastiveLoss(0.1, learnable_temperature=True)
    losses["sdm"] = SDMLoss(0.1)
    losses["identity"] = CrossModalIDLoss(4, 32)
    losses["cmpc"] = CrossModalIDLoss(4, 32, classifier="norm_softmax", cross_modal_projection=True)
    return losses


def save_gradients(path: Path, case: str, *, mixed_precision: str = "no") -> None:
    """Gradients of everything that can train and every loss, of one batch of eight or this process's share of it.

    Then those of prompts alone, which may be held near frozen features.
    """
    dtype, chunk, sampler = CASES[case]
    accelerator = make_accelerator("cpu", mixed_precision)
    clip = small_clip()
    # Words that differ: features that are all alike have gradients that cancel, and float32 loses them.
    nn.init.normal_(clip.token_embedding.weight)
    model = PromptedCLIP(clip, PromptConfig(text_length=2, vision_length=2)).to(dtype)
    whole = Stage("all", model, trains=["prompts", "encoders"], losses=every_loss())
    held = Stage("prompts", model, trains=["prompts"], losses={"held": SelfConsistencyLoss(temperature=0.1)})
    found: dict[str, torch.Tensor] = {}
    for stage, mark in ((whole, ""), (held, "held ")):
        stage.loss_modules.to(dtype)
        model.zero_grad()
        running = RunningStage(stage, accelerator, steps_per_epoch=1, chunk_size=chunk)
        items = SeededItems(Noise(), seed=0)
        batches = SAMPLERS[sampler](seed=0, num_replicas=accelerator.num_processes, rank=accelerator.process_index)
        batch = default_collate(items.__getitems__(next(iter(batches))))
        batch["images"] = batch["images"].to(dtype)
        losses = running.backward(batch)
        named = {**dict(model.named_parameters()), **dict(stage.loss_modules.named_parameters(prefix="losses"))}
        found |= {
            mark + name: parameter.grad.clone() for name, parameter in named.items() if parameter.grad is not None
        }
        found |= {f"{mark}loss {name}": value.detach() for name, value in losses.items()}
    path.mkdir(exist_ok=True)
    save_file(found, path / f"{case}-rank{accelerator.process_index}.safetensors")


def save_all_gradients(path: Path) -> None:
    for case in CASES:
        save_gradients(path, case)


def save_bf16_gradients(path: Path) -> None:
    for way in ("plain", "3"):
        save_gradients(path, f"float32-{way}-identity", mixed_precision="bf16")


class Stop(Exception):
    pass


def train(
    path: Path, *, patch_dropout: float = 0.0, stop_at_step: int | None = None, chunk_size: int | None = None
) -> None:
    clip = small_clip(patch_dropout=patch_dropout)
    model = PromptedCLIP(clip, PromptConfig(text_length=2, vision_length=2))
    stages = TwoStageSchedule(model, num_identities=4, stage_one_epochs=1, stage_two_epochs=2)
    trainer = Trainer(
        model,
        stages,
        train_data=Noise(),
        batch_size=4,
        output_dir=path,
        device="cpu",
        progress=False,
        checkpoint_every_steps=2,
        chunk_size=chunk_size,
        trackers=(),
    )
    step = RunningStage.step

    def stopping(self: RunningStage, *args: Any, **settings: Any) -> Any:
        if trainer.position.step == stop_at_step:
            raise Stop
        return step(self, *args, **settings)

    RunningStage.step = stopping
    try:
        trainer.fit()
    except Stop:
        return
    rank = int(os.environ.get("RANK", "0"))
    assert trainer.last_checkpoint == path / "checkpoints" / "step-000000009"  # in every process
    save_file({name: value.clone() for name, value in model.state_dict().items()}, path / f"rank{rank}.safetensors")


def fork(task: Callable[[], None], **environment: str) -> int:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.environ.update(environment)
            task()
            status = 0  # the process group ends with the process: torch 2.6 may wait for ever in destroying one of gloo
        finally:
            sys.stderr.flush()
            os._exit(status)
    return pid


def in_one(path: Path, task: Callable[[], None]) -> list[int]:
    path.mkdir(exist_ok=True)
    return [os.waitpid(fork(task), 0)[1]]


def in_two(path: Path, task: Callable[[], None]) -> list[int]:
    path.mkdir(exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    pids = [fork(task, RANK=str(rank), LOCAL_RANK=str(rank), **common) for rank in range(2)]
    return [os.waitpid(pid, 0)[1] for pid in pids]


def main(folder: Path) -> None:
    codes = [
        in_one(folder / "gradients1", lambda: save_all_gradients(folder / "gradients1")),
        in_two(folder / "gradients2", lambda: save_all_gradients(folder / "gradients2")),
        in_one(folder / "bf16-1", lambda: save_bf16_gradients(folder / "bf16-1")),
        in_two(folder / "bf16-2", lambda: save_bf16_gradients(folder / "bf16-2")),
        in_one(folder / "train1", lambda: train(folder / "train1")),
        in_two(folder / "train2", lambda: train(folder / "train2")),
        in_two(folder / "whole", lambda: train(folder / "whole", patch_dropout=0.25, chunk_size=1)),
        in_two(folder / "broken", lambda: train(folder / "broken", patch_dropout=0.25, stop_at_step=5, chunk_size=1)),
        in_two(folder / "broken", lambda: train(folder / "broken", patch_dropout=0.25, chunk_size=1)),
    ]
    print(codes)
    sys.exit(any(code for pair in codes for code in pair))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
