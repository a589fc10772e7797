"""The whole path at full size and without a network: train, save, publish, load, index, search, plain open_clip.

    python benchmarks/whole_road.py

A Hub on the loopback serves random weights in the format of OpenAI's ViT-B-16, under the id and file name that
open_clip asks for. Every step is a separate process with an empty home; the published model is loaded from the Hub,
and gives the same features as the saved folder. The record has each step's time and the peak memory of its largest
process, without the Hub's.
"""

import argparse
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import open_clip
import torch
from safetensors.torch import save

from _bench import RESULTS, made_with, make_parser, report
from promptreid.synthetic import write_generated

ROOT = Path(__file__).parents[1]
MODEL, TAG, IDENTITIES = "ViT-B-16", "openai", (6, 2, 3)
REPOSITORY = "alice/road"
SENTENCE = "a woman in a red coat with a bag"
# A small process between this one and the step: a child counts its parent's memory as its own until it runs.
MEASURED = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[2:])
open(sys.argv[1], "w").write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(code)
"""
# Prints the beginning of the features of a sentence and of an image, with the model's prompts and without.
FEATURES = """
import sys, torch
from promptreid import load_prompts
model = load_prompts(sys.argv[1])
image = torch.linspace(-1, 1, 3 * 384 * 128).reshape(1, 3, 384, 128)
with torch.no_grad():
    found = [model.encode_text(model.tokenizer([sys.argv[2]])), model.encode_image(image)]
    with model.disabled():
        found += [model.encode_text(model.tokenizer([sys.argv[2]])), model.encode_image(image)]
print(*(f"{float(value):.6f}" for each in found for value in each[0, :4]))
"""
PLAIN = """
import sys, open_clip, torch
model, _, transform = open_clip.create_model_and_transforms(sys.argv[1])
image = torch.linspace(-1, 1, 3 * 384 * 128).reshape(1, 3, 384, 128)
tokens = open_clip.get_tokenizer(sys.argv[1])([sys.argv[2]])
with torch.no_grad():
    found = [model.eval().encode_text(tokens), model.encode_image(image)]
print(*(f"{float(value):.6f}" for each in found for value in each[0, :4]))
"""


def load_server() -> ModuleType:
    """The tests' own Hub."""
    spec = importlib.util.spec_from_file_location("hub_server", ROOT / "tests" / "hub" / "hub_server.py")
    if spec is None or spec.loader is None:
        raise FileNotFoundError("tests/hub/hub_server.py is missing; run this in a checkout")
    module = importlib.util.module_from_spec(spec)
    sys.modules["hub_server"] = module
    spec.loader.exec_module(module)
    return module


def serve_base(server: ModuleType, hub: Any) -> str:
    """Put random weights of the model on the Hub, as the tag's repository has them; returns its id."""
    stated = open_clip.get_pretrained_cfg(MODEL, TAG)
    repo_id, _, file = stated["hf_hub"].rpartition("/")
    torch.manual_seed(0)
    clip = open_clip.create_model(MODEL, force_quick_gelu=stated.get("quick_gelu", False))
    content = save({name: value.half() for name, value in clip.state_dict().items()})
    repo = hub.repos[repo_id] = server.Repo(repo_id, private=False)
    hub.large[hashlib.sha256(content).hexdigest()] = content
    tree = {file or "open_clip_model.safetensors": content}
    repo.refs["refs/heads/main"] = repo.commit(repo.refs["refs/heads/main"], tree, "weights")
    return str(repo_id)


def walk(command: Sequence[object], environment: Mapping[str, str], folder: Path) -> tuple[str, dict[str, float]]:
    """Run a step in a process of its own; returns what it printed, and its seconds and peak memory."""
    started, peak = time.perf_counter(), folder / "peak"
    words = [sys.executable, "-c", MEASURED, str(peak), *map(str, command)]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    seconds, kilobytes = time.perf_counter() - started, int(peak.read_text(encoding="utf-8"))
    return done.stdout, {"seconds": round(seconds, 1), "peak_gib": round(kilobytes / 2**20, 2)}


def numbers(printed: str) -> list[float]:
    """The features that a step printed last."""
    return [float(value) for value in printed.strip().splitlines()[-1].split()]


def check_equal(one: Sequence[float], other: Sequence[float], what: str) -> None:
    """Refuse features that differ by more than rounding."""
    if len(one) != len(other) or any(abs(a - b) > 2e-5 for a, b in zip(one, other, strict=True)):
        raise RuntimeError(f"{what}: {one} and {other} differ")


def walk_all(server: ModuleType, hub: Any, folder: Path, batch_size: int) -> dict[str, dict[str, float]]:
    """Every step in turn."""
    base = serve_base(server, hub)
    data = write_generated(folder / "CUHK-PEDES", num_identities=IDENTITIES, progress=False)
    crops = folder / "crops"
    crops.mkdir()
    for number, path in enumerate(sorted(Path(data).rglob("*.jpg"))[:12]):
        shutil.copy(path, crops / f"{number:02}.jpg")
    environment = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "OMP_NUM_THREADS") if name in os.environ}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": server.ALICE}
    python, taken = sys.executable, dict[str, dict[str, float]]()

    def step(name: str, *command: object, home: str) -> str:
        (folder / home).mkdir(exist_ok=True)
        printed, taken[name] = walk([python, *command], {**environment, "HOME": str(folder / home)}, folder)
        print(name, taken[name], flush=True)
        return printed

    example = [ROOT / "examples" / "train_cuhk.py", "--data-root", data, "--model", MODEL, "--pretrained", TAG]
    short = ["--epochs", 1, 1, "--steps-per-epoch", 2, "--batch-size", batch_size, "--device", "cpu"]
    step("train, save and load", *example, *short, "--output", "run", home="trainer")
    own = numbers(step("features of the saved folder", "-c", FEATURES, "run/model", SENTENCE, home="trainer"))
    step("publish", "-m", "promptreid", "push", "run/model", REPOSITORY, home="trainer")
    del hub.repos[base]  # whoever loads the published model needs the base no more
    loaded = numbers(step("load from the Hub", "-c", FEATURES, REPOSITORY, SENTENCE, home="reader"))
    check_equal(loaded, own, "the published model and the saved folder")
    step("index", "-m", "promptreid", "index", "crops", "--output", "gallery", "--model", REPOSITORY, home="searcher")
    search = ["-m", "promptreid", "search", "gallery", SENTENCE, "--model", REPOSITORY]
    if "crops" not in (found := step("search", *search, home="searcher")):
        raise RuntimeError(f"the search found nothing: {found}")
    plain = numbers(step("plain open_clip", "-c", PLAIN, f"hf-hub:{REPOSITORY}", SENTENCE, home="stranger"))
    check_equal(plain, own[len(own) // 2 :], "plain open_clip and the model without its prompts")
    return taken


def main() -> None:
    """Walk, print and write."""
    parser: argparse.ArgumentParser = make_parser(__doc__, output=RESULTS / "whole_road.json")
    parser.add_argument("--batch-size", type=int, default=4, help="pairs of a step; default: %(default)s")
    arguments = parser.parse_args()
    server = load_server()
    with tempfile.TemporaryDirectory() as scratch, server.serve() as hub:
        taken = walk_all(server, hub, Path(scratch), arguments.batch_size)
    total = {"seconds": round(sum(each["seconds"] for each in taken.values()), 1)}
    total["peak_gib"] = max(each["peak_gib"] for each in taken.values())
    settings = {"model": f"{MODEL} tagged {TAG} at 384 x 128", "batch_size": arguments.batch_size}
    report(settings | {"steps": taken, "all": total} | made_with(), arguments.output)


if __name__ == "__main__":
    main()
