"""Two processes of which one fails or has other settings; `test_processes.py` starts this file as a program."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from two_processes import Noise, in_two, small_clip

from promptreid.model.prompted_clip import PromptedCLIP
from promptreid.prompts.config import PromptConfig
from promptreid.training.recipe import TwoStageSchedule
from promptreid.training.trainer import Trainer


def train(folder: Path, case: str) -> None:
    rank = int(os.environ["RANK"])
    data, settings = Noise(), {"seed": 0, "output_dir": folder / "run"}
    if case == "one person" and rank == 1:
        data.person_ids = torch.zeros(12, dtype=torch.int64)
    if case == "another seed":
        settings["seed"] = rank
    if case == "another folder":
        settings["output_dir"] = folder / ("run" if rank == 0 else "empty")
    model = PromptedCLIP(small_clip(), PromptConfig(text_length=2, vision_length=2))
    stages = TwoStageSchedule(model, num_identities=4, stage_one_epochs=1, stage_two_epochs=1)
    trainer = Trainer(
        model, stages, train_data=data, batch_size=4, device="cpu", progress=False, trackers=(), **settings
    )
    if case == "disk full" and rank == 0:
        trainer.folder.save = full
    trainer.fit()


def full(*_: Any, **__: Any) -> Path:
    raise OSError("no space left on the disk")


def noted(folder: Path, case: str) -> None:
    try:
        train(folder, case)
    except Exception as error:
        (folder / f"{case}-{os.environ['RANK']}.txt").write_text(f"{type(error).__name__}: {error}")


def main(folder: Path) -> None:
    seconds = {}
    for case in ("one person", "another seed", "disk full", "whole", "another folder"):
        started = time.perf_counter()
        in_two(folder, lambda case=case: noted(folder, case))
        seconds[case] = time.perf_counter() - started
    print(json.dumps(seconds))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
