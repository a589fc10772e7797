"""Saves that are killed; `test_prompt_files.py` starts this file as a program.

killed_save.py every-step FOLDER BEFORE AFTER    kill before each single step on the file system
killed_save.py random FOLDER KILLS SEED          kill at random moments
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import torch

from promptreid import PromptConfig
from promptreid.errors import CheckpointError
from promptreid.hub.manifest import PromptManifest
from promptreid.hub.prompt_files import read_prompt_files, read_weights, write_prompt_files

SHAPES = {"vision.prompts.tokens": (3, 4, 32), "text.prompts.tokens": (3, 4, 24)}
CONFIG = {"model_cfg": {}, "preprocess_cfg": {}}
MORE = [("nothing", "tuned"), ("nothing", "prompts"), ("prompts", "prompts"), ("tuned", "tuned")]
KEPT = {"prompts.safetensors", "prompt_config.json", ".prompts.lock"}
MANIFEST = PromptManifest("ViT-B-16", "openai", (32, 16), True, PromptConfig(), SHAPES, (1.0,), (1.0,), {}, "0.1.0")


def save(folder: Path, value: float, kind: str) -> None:
    tensors = {name: torch.full(shape, value) for name, shape in SHAPES.items()}
    encoders = {"weights": torch.full((50_000,), value)} if kind == "tuned" else None
    write_prompt_files(folder, MANIFEST, tensors, encoders=encoders, open_clip_config=CONFIG)


def look(folder: Path) -> tuple[float, str] | None:
    """The value saved and whether encoders are there; None if nothing loads."""
    try:
        files = read_prompt_files(folder)
    except CheckpointError:
        return None
    values = set(torch.cat([value.flatten() for value in files.tensors.values()]).tolist())
    if files.encoders is not None:
        values |= set(read_weights(files.encoders.path)["weights"].tolist())
    if len(values) != 1:
        raise RuntimeError(f"{folder} mixes {values}")
    return values.pop(), "prompts" if files.encoders is None else "tuned"


def save_and_die(folder: Path, value: float, kind: str, step: int) -> None:
    """Kill this process before its `step`th step in the folder."""
    count = 0

    def watch(event: str, arguments: tuple) -> None:
        nonlocal count
        if event.split(".")[0] in ("open", "os", "tempfile", "shutil") and any(
            isinstance(item, str | os.PathLike) and str(item).startswith(str(folder)) for item in arguments
        ):
            count += 1
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    save(folder, value, kind)


def fork(action, *arguments) -> int:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            action(*arguments)
            status = 0
        finally:
            os._exit(status)
    return pid


def kill_every_step(root: Path, before: str, after: str) -> dict:
    outcomes, last, left, step = [], None, [], 0
    while last is None:
        step += 1
        folder = root / str(step)
        if before != "nothing":
            save(folder, 1.0, before)
        killed = os.WIFSIGNALED(os.waitpid(fork(save_and_die, folder, 2.0, after, step), 0)[1])
        found = look(folder)
        names = {(1.0, before): "old", (2.0, after): "new", None: "old" if before == "nothing" else "neither"}
        outcomes.append(names.get(found, "neither"))
        # The next save works as if nothing had happened, and clears what was left.
        save(folder, 3.0, "prompts")
        if look(folder) != (3.0, "prompts"):
            outcomes.append("neither")
        left += sorted({path.name for path in folder.iterdir()} - KEPT)
        if not killed:
            last = outcomes[-1]
        shutil.rmtree(folder)
    counts = {name: outcomes.count(name) for name in ("old", "new", "neither")}
    return {"steps": step, "last": last, "left": left, **counts}


def save_for_ever(folder: Path, value: float) -> None:
    while True:
        value += 1
        save(folder, value, "tuned" if value % 2 else "prompts")


def kill_at_random(root: Path, kills: int, seed: int) -> dict:
    draw, folder = random.Random(seed), root / "p"
    save(folder, 0.0, "prompts")
    killed = neither = 0
    for _ in range(kills):
        found = look(folder)
        if found is None:
            neither += 1
            break
        pid = fork(save_for_ever, folder, found[0])
        time.sleep(draw.random() * 0.1)
        os.kill(pid, signal.SIGKILL)
        killed += os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    return {"killed": killed, "neither": neither + (look(folder) is None), "saves": (look(folder) or (0.0,))[0]}


def main(root: Path, kills: int, seed: int) -> None:
    torch.set_num_threads(1)
    report = {
        f"{before} {after}": kill_every_step(root / before / after, before, after)
        for before, after in [("prompts", "tuned"), ("tuned", "prompts")] + (kills > 50) * MORE
    }
    print(json.dumps(report | {"random": kill_at_random(root, kills, seed)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
