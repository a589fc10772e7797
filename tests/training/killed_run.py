"""A run that is killed with SIGKILL and started again; `test_resume.py` starts this file as a program.

It imports once and forks a process for every run, so that a kill costs no new start of torch.
"""

import os
import random
import signal
import sys
import time
import warnings
from pathlib import Path

import torch
from open_clip.model import CLIP

from promptreid.model.prompted_clip import PromptedCLIP
from promptreid.prompts.config import PromptConfig
from promptreid.training.checkpoint import list_checkpoints
from promptreid.training.recipe import TwoStageSchedule
from promptreid.training.trainer import Trainer


class Noise(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = torch.zeros(16, dtype=torch.int64)
        tokens[0], tokens[1], tokens[2] = 62, 1 + index, 63
        return {"images": torch.randn(3, 16, 16), "tokens": tokens, "person_ids": torch.tensor(index % 4)}


def small_model(*, patch_dropout: float = 0.0) -> PromptedCLIP:
    torch.manual_seed(0)
    vision = {"image_size": 16, "layers": 2, "width": 32, "head_width": 8, "patch_size": 8}
    text = {"context_length": 16, "vocab_size": 64, "width": 32, "heads": 4, "layers": 2}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        clip = CLIP(embed_dim=32, vision_cfg=vision | {"patch_dropout": patch_dropout}, text_cfg=text)
    return PromptedCLIP(clip, PromptConfig(text_length=2, vision_length=2))


def run(folder: Path) -> None:
    model = small_model(patch_dropout=0.25)
    stages = TwoStageSchedule(model, num_identities=4, stage_one_epochs=3, stage_two_epochs=3)
    trainer = Trainer(
        model,
        stages,
        train_data=Noise(),
        batch_size=4,
        output_dir=folder,
        device="cpu",
        progress=False,
        evaluate=lambda model: {"mAP": float(model.clip.visual.proj.sum())},
        best_metric="mAP",
        checkpoint_every_steps=2,
        trackers=(),
    )
    trainer.fit()


def slow_disk() -> None:
    """Let every flush take some milliseconds, so that a kill can fall between any two of a checkpoint's writes."""
    flush = os.fsync

    def slow(descriptor: int) -> None:
        time.sleep(0.005)
        flush(descriptor)

    os.fsync = slow


def start(folder: Path) -> int:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            slow_disk()
            run(folder)
            status = 0
        finally:
            os._exit(status)
    return pid


def checkpoints(folder: Path) -> list[Path]:
    return list_checkpoints(folder / "checkpoints")


def unfinished(folder: Path) -> bool:
    return any((folder / "checkpoints").glob("unfinished-*"))


def kill(pid: int, folder: Path, *, while_writing: bool, delay: float) -> bool:
    """SIGKILL a moment after one more checkpoint stands, or after the next one was begun; False if the run ended."""
    known = checkpoints(folder)
    while checkpoints(folder) == known or (while_writing and not unfinished(folder)):
        if os.waitpid(pid, os.WNOHANG)[0]:
            return False
        time.sleep(0.0005)
    time.sleep(delay)
    os.kill(pid, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def main(folder: Path, kills: int, seed: int) -> None:
    draw = random.Random(seed)
    whole = os.waitpid(start(folder / "whole"), 0)[1]
    killed = writing = 0
    for count in range(kills):
        pid = start(folder / "killed")
        while_writing = count % 2 == 0
        delay = draw.random() * (0.02 if while_writing else 0.06)
        killed += kill(pid, folder / "killed", while_writing=while_writing, delay=delay)
        writing += unfinished(folder / "killed")
    final = os.waitpid(start(folder / "killed"), 0)[1]
    print(f"whole={whole} killed={killed} final={final}")
    print(f"while writing={writing}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
