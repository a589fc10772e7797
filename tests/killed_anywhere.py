"""Programs that are killed before each change to a folder, and run again: `killed_anywhere.py NAME FOLDER EVERY`.

Prints a line of JSON for each kill, with what does not hold afterwards; `test_killed_anywhere.py` starts it. It imports
once and forks a process for each run.
"""

import json
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from promptreid.data.captions import tokenize_captions
from promptreid.data.image_cache import build_image_cache
from promptreid.model.prompted_clip import PromptedCLIP
from promptreid.training.recipe import TwoStageSchedule
from promptreid.training.trainer import Trainer

sys.path.append(str(Path(__file__).parent / "training"))
from killed_run import Noise, small_model

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.link", "os.symlink", "os.truncate"}
AGAIN: list[bool] = []  # whether the run was killed before; in a list, which is no part of what the run is


def weights(model: PromptedCLIP, start: str) -> float:
    named = model.named_parameters()
    return float(sum(value.detach().double().abs().sum() for name, value in named if name.startswith(start)))


def score(model: PromptedCLIP) -> dict[str, float]:
    """The weights that it scores; and what is repeated after a kill comes out worse than before."""
    mAP = weights(model, "clip.visual.proj") % 1 * (0.1 if AGAIN else 1)
    return {"mAP": mAP, "stage_one": weights(model, "text.prompts"), "stage_two": weights(model, "clip.")}


def train(folder: Path) -> list[str]:
    model = small_model()
    stages = TwoStageSchedule(model, num_identities=4, stage_one_epochs=2, stage_two_epochs=3)
    settings: dict[str, Any] = {"evaluate": score, "evaluate_every_epoch": True, "best_metric": "mAP", "trackers": ()}
    where: dict[str, Any] = {"output_dir": folder, "device": "cpu", "progress": False, "checkpoint_every_steps": 2}
    history = Trainer(model, stages, train_data=Noise(), batch_size=4, **settings, **where).fit()
    faults: list[str] = []
    for name, start in (("stage_one", "text.prompts"), ("stage_two", "clip.")):
        entries = [entry for entry in history if entry["stage"] == name]
        chosen = entries[-1]["chosen"]
        kept = entries[chosen["epoch"] - 1]["scores"]
        if kept["mAP"] != chosen["mAP"] or chosen["mAP"] != max(entry["scores"]["mAP"] for entry in entries):
            faults.append(f"{name} chose {chosen} of {entries}")
        if kept[name] != weights(model, start):
            faults.append(f"{name} says epoch {chosen['epoch']}, but ended with other weights")
    logged = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    steps = [json.loads(line)["step"] for line in (folder / "steps.jsonl").read_text().splitlines()]
    if logged != history or steps != list(range(1, 16)):
        faults.append(f"the logs are {logged} and {steps}")
    return faults


def cache(folder: Path) -> list[str]:
    crops = folder.parent / "crops"
    if not crops.is_dir():
        crops.mkdir()
        for number in range(6):
            Image.new("RGB", (16, 32), (40 * number, 9, 9)).save(crops / f"{number}.png")
    paths = sorted(crops.iterdir())
    found = build_image_cache(paths, folder, image_size=(32, 16), progress=False)
    red = found.pixels[int(found.rows(paths)[3])][0, 0, 0].item()
    tokens = tokenize_captions(["a man", "a woman"], lambda words: torch.ones(len(words), 4).long(), cache_dir=folder)
    return [] if red == 120 and tokens.eq(1).all() else ["other pixels or tokens"]


PROGRAMS: dict[str, Callable[[Path], list[str]]] = {"train": train, "cache": cache}


def count_changes(folder: Path, until: int | None) -> list[int]:
    """Counts changes below a folder from now on, and ends the process before the one with number `until`."""
    count, inside = [0], str(folder)

    def changed(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            is_change = bool(flags & (os.O_WRONLY | os.O_RDWR)) or (isinstance(mode, str) and mode[:1] in "wax")
        else:
            path, is_change = arguments[0], event in CHANGES
        # shutil.rmtree names files by their folder's descriptor.
        if is_change and (str(path).startswith(inside) or not str(path).startswith("/")):
            count[0] += 1
            if count[0] == until:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(changed)
    return count


def fork(run: Callable[[], Any]) -> Any:
    """What a function returned in a process of its own; None if it was killed."""
    read, write = os.pipe()
    if os.fork() == 0:
        try:
            answer = run()
        except BaseException as error:
            answer = [f"{type(error).__name__}: {error}"]
        os.write(write, json.dumps(answer).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as stream:
        told = stream.read()
    os.wait()
    return json.loads(told) if told else None


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


COPIES = (
    "checkpoints/step-000000004-good",
    "checkpoints/step-000000099.bak",
    ".steps.jsonl-mine",
    "best.safetensors.1",
)


def killed(name: str, folder: Path, number: int) -> list[str]:
    program = PROGRAMS[name]
    for copy in COPIES:  # which a person keeps there
        (folder / copy).mkdir(parents=True)

    def until_killed() -> list[str]:
        count_changes(folder, number)
        program(folder)
        return ["was not killed"]

    def again() -> list[str]:
        AGAIN.append(True)
        return program(folder)

    return (fork(until_killed) or []) + fork(again)


def main(name: str, root: Path, every: int) -> None:
    whole = root / "whole"

    def counted() -> list[Any]:
        count = count_changes(whole, None)
        return [program(whole), count[0]]

    program = PROGRAMS[name]
    faults, changes = fork(counted)
    print(json.dumps({"changes": changes, "faults": faults}))
    for number in range(1 + random.randrange(every), changes + 1, every):
        folder = root / f"killed-{number}"
        faults = killed(name, folder, number)
        left = set(names(folder)) ^ set(names(whole)) ^ {*COPIES, *(["checkpoints"] if name == "cache" else [])}
        print(json.dumps({"kill": number, "faults": faults, "left": sorted(left)}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
