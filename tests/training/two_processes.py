"""Losses, gradients and whole runs of two gloo processes; `test_gather.py` starts this file as a program."""

import os
import socket
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from open_clip.model import CLIP
from safetensors.torch import save_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from promptreid.encoders.clip import PromptedCLIP
from promptreid.losses.contrastive import ContrastiveLoss
from promptreid.losses.cross_modal_id import CrossModalIDLoss
from promptreid.prompts import PromptConfig
from promptreid.training.gather import gather_batch
from promptreid.training.schedule import TwoStageSchedule
from promptreid.training.trainer import Trainer


class Towers(nn.Module):
    """Two non-linear towers and every loss of ours, in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5))
        self.text = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 5))
        self.identity = CrossModalIDLoss(3, 5)
        nn.init.normal_(self.identity.classifier.weight)

    def forward(self, images: torch.Tensor, texts: torch.Tensor, person_ids: torch.Tensor) -> torch.Tensor:
        images, texts, person_ids = gather_batch(self.image(images), self.text(texts), person_ids)
        total = self.identity(images, texts, person_ids)
        for same_person in ("negative", "positive", "ignored"):
            total = total + ContrastiveLoss(0.1, same_person=same_person)(images, texts, person_ids)
        return total


def save_gradients(path: Path) -> None:
    torch.manual_seed(0)
    towers = Towers().double()
    images, texts, ids = torch.randn(8, 6).double(), torch.randn(8, 4).double(), torch.randint(0, 3, (8,))
    module: nn.Module = towers
    rank, world = 0, 1
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
        rank, world = dist.get_rank(), dist.get_world_size()
        module = DistributedDataParallel(towers)
    loss = module(images[rank::world], texts[rank::world], ids[rank::world])
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in towers.named_parameters()}
    save_file(gradients | {"loss": loss.detach()}, path / f"rank{rank}.safetensors")


class Noise(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = torch.zeros(16, dtype=torch.int64)
        tokens[0], tokens[1], tokens[2] = 62, 1 + index, 63
        return {"images": torch.randn(3, 16, 16), "tokens": tokens, "person_ids": torch.tensor(index % 4)}


class Stop(Exception):
    pass


def train(path: Path, *, patch_dropout: float = 0.0, stop_at_step: int | None = None) -> None:
    torch.manual_seed(0)
    vision = {"image_size": 16, "layers": 2, "width": 32, "head_width": 8, "patch_size": 8}
    text = {"context_length": 16, "vocab_size": 64, "width": 32, "heads": 4, "layers": 2}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        clip = CLIP(embed_dim=32, vision_cfg=vision | {"patch_dropout": patch_dropout}, text_cfg=text)
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
    )
    step = trainer._step

    def stopping(*args: object) -> None:
        if trainer._state.step == stop_at_step:
            raise Stop
        step(*args)

    trainer._step = stopping
    try:
        trainer.fit()
    except Stop:
        return
    rank = int(os.environ.get("RANK", "0"))
    save_file({name: value.clone() for name, value in model.state_dict().items()}, path / f"rank{rank}.safetensors")


def fork(task: Callable[[], None], **environment: str) -> int:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.environ.update(environment)
            task()
            if dist.is_initialized():
                dist.destroy_process_group()
            status = 0
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
        in_one(folder / "gradients1", lambda: save_gradients(folder / "gradients1")),
        in_two(folder / "gradients2", lambda: save_gradients(folder / "gradients2")),
        in_one(folder / "train1", lambda: train(folder / "train1")),
        in_two(folder / "train2", lambda: train(folder / "train2")),
        in_two(folder / "whole", lambda: train(folder / "whole", patch_dropout=0.25)),
        in_two(folder / "broken", lambda: train(folder / "broken", patch_dropout=0.25, stop_at_step=5)),
        in_two(folder / "broken", lambda: train(folder / "broken", patch_dropout=0.25)),
    ]
    print(codes)
    sys.exit(any(code for pair in codes for code in pair))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
