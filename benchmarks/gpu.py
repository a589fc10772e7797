"""The checks for a few minutes on a GPU, the most important first, so that a time limit loses the least.

    make gpu
    python benchmarks/gpu.py --minutes 9
    python benchmarks/gpu.py --only tests limit                # results of the other parts are kept
    python benchmarks/gpu.py --device cpu --output runs/gpu    # a small version on the CPU

The tests marked `gpu`; then speed of the encoders and of training at ViT-B-16, 384 x 128, batches of 64 and 256,
compared with the field's usual method and with the card's matrix rate; then as much of the study at convergence as
fits. The results of a part are saved immediately. `gpu.json`, beside the parts' own results, records what ran, for how
long and how it ended.
"""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from _bench import RESULTS, cores, made_with, make_parser, report, write_json

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Part:
    """One thing to do.

    Attributes:
        name: For the record.
        words: Arguments of Python.
        most_seconds: When it is stopped, if the time is not up before.
    """

    name: str
    words: tuple[str, ...]
    most_seconds: float


def parts(device: str, folder: Path, jobs: int) -> list[Part]:
    """What to do, in order."""
    study = ROOT / "benchmarks/study/convergence.py"
    if device == "cpu":
        small = ("--model", "promptreid-tiny", "--image-size", "96", "48")
        own = ("--results", folder / "convergence", "--scratch", folder / "scratch")
        return [
            _part("tests", 600, "-m", "pytest", "-q", ROOT / "tests/gpu", "-m", "slow"),
            _part("limit", 120, _bench("limit"), *small, "--batch-size", "2", "--rounds", "1", "--side", "64",
                  "--output", folder / "limit.json"),
            _backbones_speed(300, "cpu", 2, folder, "--rounds", "1", "--only", "prompted"),
            _part("training_throughput", 300, _bench("training_throughput"), "--device", "cpu", *small,
                  "--batch-sizes", "8", "--steps", "1", "--rounds", "1",
                  "--output", folder / "training_throughput.json"),
            _part("study", 600, study, "run", "--parts", "few", "--jobs", "1", *own, "--persons", "8", "3", "4",
                  "--most-epochs", "1"),
        ]  # fmt: skip
    return [
        _part("tests", 150, "-m", "pytest", "-q", ROOT / "tests/gpu", ROOT / "tests/evaluation", "-m", "gpu"),
        _part("limit", 60, _bench("limit"), "--device", "cuda", "--batch-size", "256", "--precision", "bf16",
              "--side", "8192", "--output", folder / "limit.json"),
        _backbones_speed(120, "cuda", 64, folder, "--rounds", "4"),
        _part("training_throughput", 120, _bench("training_throughput"), "--device", "cuda", "--rounds", "3",
              "--steps", "10", "--output", folder / "training_throughput.json"),
        _backbones_speed(120, "cuda", 256, folder, "--rounds", "4"),
        _part("study", 3600, study, "all", "--device", "cuda", "--jobs", jobs),
    ]  # fmt: skip


def _backbones_speed(most_seconds: float, device: str, batch_size: int, folder: Path, *words: object) -> Part:
    name = f"backbones_speed_{batch_size}"
    settings = ("--device", device, "--batch-size", batch_size, "--precision", "bf16", *words)
    return _part(name, most_seconds, _bench("backbones_speed"), *settings, "--output", folder / f"{name}.json")


def _part(name: str, most_seconds: float, *words: object) -> Part:
    return Part(name, tuple(map(str, words)), most_seconds)


def _bench(name: str) -> Path:
    return ROOT / "benchmarks" / f"{name}.py"


def run(part: Part, seconds: float, log: Path) -> dict[str, object]:
    """Run one part for at most some seconds; what it says goes into `log`, and its last lines into the record."""
    started = time.monotonic()
    paths = (str(ROOT / "src"), os.environ.get("PYTHONPATH", ""))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, *part.words],
            cwd=ROOT, env=environment, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            ended: int | str = process.wait(min(seconds, part.most_seconds))
        except subprocess.TimeoutExpired:
            ended = "stopped, as the time was up"
            os.killpg(process.pid, signal.SIGKILL)  # the study's processes too; whole results are on the disk
            process.wait()
    said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return {"ended": ended, "seconds": round(time.monotonic() - started, 1), "said": said[-3:]}


def main() -> None:
    """Do what fits into the time."""
    started = time.monotonic()
    parser = make_parser(__doc__, output=None)
    parser.set_defaults(output=RESULTS / "gpu")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything; default %(default)s")
    parser.add_argument("--spent", type=float, default=0.0, help="seconds already used, such as by the installation")
    parser.add_argument(
        "--jobs",
        type=int,
        default=min(16, cores()),
        help="runs of the study side by side; default: one a core, up to 16",
    )
    parser.add_argument("--only", nargs="+", metavar="PART", help="some of the parts; default: all of them")
    arguments = parser.parse_args()
    if arguments.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            parser.exit(1, "not run: torch sees no CUDA device; --device cpu tries this out in small\n")
    folder: Path = arguments.output.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    planned = parts(arguments.device, folder, arguments.jobs)
    names = [part.name for part in planned]
    if unknown := set(arguments.only or ()) - set(names):
        parser.error(f"--only {', '.join(sorted(unknown))}: the parts are {', '.join(names)}")
    path = folder / "gpu.json"
    before = json.loads(path.read_text(encoding="utf-8"))["parts"] if arguments.only and path.is_file() else {}
    settings = {"device": arguments.device, "minutes": arguments.minutes}
    record = {"parts": before}
    for part in planned:
        if arguments.only and part.name not in arguments.only:
            continue
        left = 60 * arguments.minutes - arguments.spent - (time.monotonic() - started)
        if left < 5:
            found: dict[str, object] = {"ended": "not begun, as the time was up"}
        else:
            found = run(part, left, folder / f"{part.name}.log")
        record["parts"][part.name] = found | {"settings": settings} | made_with()
        write_json(path, record)
    report(record, None)


if __name__ == "__main__":
    main()
