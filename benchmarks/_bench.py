"""Shared by the benchmarks: the record of the machine, variants measured in turn, made-up pairs, and the JSON file."""

import argparse
import json
import multiprocessing
import os
import platform
import re
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import open_clip
import PIL
import torch
import torchvision
from torch import Tensor
from torch.utils.data import Dataset

import promptreid
from promptreid.files import write_bytes_atomically
from promptreid.scores import RANKS

RESULTS = Path(__file__).parent / "results"
METRICS = (*(f"rank{k}" for k in RANKS), "mAP", "mINP")  # of every table
START, END, WORDS = 49406, 49407, 49000  # CLIP's tokens for start and end, and some below them that stand for words
Measured = TypeVar("Measured")


def made_with() -> dict[str, Any]:
    """The machine, the versions and the date, as every result records them.

    Names the processor's model and no host or user. A process started with fewer threads records fewer.
    """
    return {
        "machine": {
            "processor": processor_model(),
            "architecture": platform.machine(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "amx_bf16": any("amx_bf16" in line for line in _processor_lines()),
            "cores": cores(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "system": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "open_clip": open_clip.__version__,
            "numpy": np.__version__,
            "pillow": PIL.__version__,
            "promptreid": promptreid.__version__,
        },
        "date": datetime.now(timezone.utc).date().isoformat(),
    }


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor_model() -> str:
    """The processor's model as the system names it, such as `AMD EPYC 9654 96-Core Processor`."""
    names = [line.partition(":")[2].strip() for line in _processor_lines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _processor_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def describe(machine: Mapping[str, Any]) -> str:
    """One line about the machine of a record.

    Example:
        >>> describe({"processor": "AMD EPYC", "architecture": "x86_64", "threads": 1, "gpu": None})
        'AMD EPYC, x86_64, 1 thread'
    """
    threads = f"{machine['threads']} thread{'' if machine['threads'] == 1 else 's'}"
    return ", ".join([machine["processor"], machine["architecture"], threads, *filter(None, [machine["gpu"]])])


def in_words(made: Mapping[str, Any]) -> str:
    """Machine and main versions of a record, or of a first one, which has the machine in words and no groups."""
    versions = made.get("versions", made)
    machine = made["machine"] if isinstance(made["machine"], str) else describe(made["machine"])
    return f"{machine}, torch {versions['torch']}, open_clip {versions['open_clip']}"


class Spread(NamedTuple):
    """Median and range of some measurements."""

    median: float
    lowest: float
    highest: float

    def rounded(self, digits: int) -> "Spread":
        """The same to a number of digits after the point."""
        return Spread(*(round(value, digits) for value in self))


def spread(values: Sequence[float]) -> Spread:
    """Median, lowest and highest.

    Example:
        >>> spread([3.0, 1.0, 2.0])
        Spread(median=2.0, lowest=1.0, highest=3.0)
    """
    return Spread(statistics.median(values), min(values), max(values))


def paired_ratio(first: Sequence[float], second: Sequence[float]) -> Spread:
    """What the first takes over what the second takes, round by round: a slow moment is slow for both.

    Example:
        >>> paired_ratio([2.0, 6.0, 4.0], [1.0, 2.0, 4.0])
        Spread(median=2.0, lowest=1.0, highest=3.0)
    """
    return spread([one / other for one, other in zip(first, second, strict=True)])


def seconds(work: Callable[[], object], *, device: str = "cpu", warm_up: int = 0) -> float:
    """Wall-clock time of one call, with what it started on a GPU.

    Args:
        work: What is timed.
        device: Where it runs; a GPU is waited for.
        warm_up: Calls before it that are not timed.
    """
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    for _ in range(warm_up):
        work()
    wait()
    started = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - started


def take_turns(
    variants: Mapping[str, Callable[[], Measured]], *, rounds: int, warm_up: int = 0, mirrored: bool = False
) -> dict[str, list[Measured]]:
    """Measure every variant once a round, so that all of them meet the same machine.

    Args:
        variants: By name, what measures once and returns the measurement.
        rounds: How often each is measured.
        warm_up: Rounds before them whose measurements are dropped.
        mirrored: Go through the variants backwards in every second round (A B B A instead of A B A B).

    Returns:
        The measurements by name, in the order of the rounds.
    """
    found: dict[str, list[Measured]] = {name: [] for name in variants}
    for number in range(warm_up + rounds):
        names = list(variants)
        for name in reversed(names) if mirrored and number % 2 else names:
            measured = variants[name]()
            if number >= warm_up:
                found[name].append(measured)
    return found


def in_own_process(work: Callable[..., Measured], *arguments: Any) -> Measured:
    """Call a module's function in a fresh process, so that memory left over from others does not shape it."""
    with multiprocessing.get_context("spawn").Pool(1, initializer=end_with_parent) as pool:
        return pool.apply(work, arguments)


def end_with_parent() -> None:
    """Have this process end as soon as the one that started it has, even if that was killed."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def random_captions(count: int, *, words: int | Sequence[int] = 29, context_length: int = 77) -> Tensor:
    """Made-up captions as CLIP's tokenizer would give them, (count, context_length) int64.

    Args:
        count: How many.
        words: Tokens between start and end, the same for all or one number a caption.
        context_length: Tokens with padding.
    """
    tokens = torch.zeros(count, context_length, dtype=torch.int64)
    for row, length in enumerate([words] * count if isinstance(words, int) else words):
        tokens[row, 0], tokens[row, 1 + length] = START, END
        tokens[row, 1 : 1 + length] = torch.randint(1, WORDS, (length,))
    return tokens


class RandomPairs(Dataset[dict[str, Tensor]]):
    """Random images with made-up captions of a hundred persons.

    Args:
        length: How many pairs.
        image_size: (height, width) in pixels.
        in_memory: Make them once; otherwise each is made when it is asked for.
    """

    def __init__(self, length: int, image_size: tuple[int, int], *, in_memory: bool = False) -> None:
        self.image_size = image_size
        self.person_ids = torch.arange(length) % 100
        self.kept = [self._make(index) for index in range(length)] if in_memory else None

    def __len__(self) -> int:
        return len(self.person_ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.kept[index] if self.kept is not None else self._make(index)

    def _make(self, index: int) -> dict[str, Tensor]:
        return {
            "images": torch.randn(3, *self.image_size),
            "tokens": random_captions(1)[0],
            "person_ids": self.person_ids[index],
        }


def make_parser(description: str | None, *, output: Path | None) -> argparse.ArgumentParser:
    """A parser that shows a benchmark's docstring and takes `--output`.

    Args:
        description: The docstring.
        output: Where in `RESULTS` it goes by default; None where that depends on other arguments.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = "" if output is None else f" (default: benchmarks/results/{output.name})"
    parser.add_argument("--output", type=Path, default=output, help=f"JSON file for the result{default}")
    return parser


def write_json(path: Path, content: Any, *, indent: int | None = 2) -> None:
    """Write a JSON file whole or not at all; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes_atomically(path, (json.dumps(content, indent=indent) + "\n").encode())


def write_between(page: Path, mark: str, text: str) -> None:
    """Replace what stands on a page between `<!-- mark -->` and the next `<!-- end -->`.

    Raises:
        ValueError: The page has no such marks.
    """
    content = page.read_text(encoding="utf-8")
    marked = re.compile(rf"(<!-- {re.escape(mark)} -->\n).*?(<!-- end -->)", flags=re.DOTALL)
    if not marked.search(content):
        raise ValueError(f"{page} has no marks <!-- {mark} --> and <!-- end --> to put the table between")
    page.write_text(marked.sub(lambda found: f"{found[1]}\n{text}\n\n{found[2]}", content), encoding="utf-8")


def report(result: Mapping[str, Any], path: Path | None, *, indent: int = 2) -> None:
    """Print a result, and write it if there is a path."""
    print(json.dumps(result, indent=indent))
    if path is not None:
        write_json(path, result, indent=indent)


def in_time(value: float) -> str:
    """Seconds for people.

    Example:
        >>> in_time(0.0042), in_time(84.46)
        ('4.2 ms', '84.5 s')
    """
    return f"{value * 1e3:.1f} ms" if value < 1 else f"{value:.1f} s"


def in_bytes(value: float) -> str:
    """Bytes for people.

    Example:
        >>> in_bytes(2018), in_bytes(21.27e6)
        ('2.0 kB', '21.3 MB')
    """
    return f"{value / 1e3:.1f} kB" if value < 1e5 else f"{value / 1e6:.1f} MB"


def sizes_table(by_size: Mapping[str, Mapping[str, float]], rows: Mapping[str, str | Callable[..., str]]) -> list[str]:
    """The lines of a table with a column for each size; a row is a key of seconds, or what writes a size's cell."""
    lines = [f"| | {' | '.join(f'{int(size):,}' for size in by_size)} |", f"|---|{'---|' * len(by_size)}"]
    for name, row in rows.items():
        cells = [in_time(one[row]) if isinstance(row, str) else row(one) for one in by_size.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines
