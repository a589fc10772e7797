"""How long one sentence takes among a million features, against reading them once from memory.

    python benchmarks/search_speed.py

Prints ratios of times measured by turns in one process, and writes them to benchmarks/results/search_speed.json.
"""

import datetime
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch

from promptreid.retrieval.index import top_scores

PICTURES, DIMENSIONS, BEST, REPEATS = 1_000_000, 512, 10, 7
RESULT = Path(__file__).parent / "results" / "search_speed.json"


def seconds(work: Callable[[], object]) -> float:
    """Time of one call."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def by_turns(works: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Shortest time of each, called one after the other so that all meet the same machine."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(REPEATS + 1):
        for name, work in works.items():
            times[name].append(seconds(work))
    return {name: min(found[1:]) for name, found in times.items()}


def main() -> None:
    """Measure and report."""
    generator = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(PICTURES, DIMENSIONS, generator=generator), dim=-1)
    query = torch.nn.functional.normalize(torch.randn(1, DIMENSIONS, generator=generator), dim=-1)
    eight = torch.nn.functional.normalize(torch.randn(8, DIMENSIONS, generator=generator), dim=-1)
    half = features.half()
    # Adding up the bytes as whole numbers is the fastest way here to look at each once.
    times = by_turns(
        {
            "read_float32": lambda: features.view(torch.int64).sum(),
            "search_float32": lambda: top_scores(features, query, BEST, unit_length=True),
            "search_8_float32": lambda: top_scores(features, eight, BEST, unit_length=True),
            "read_float16": lambda: half.view(torch.int64).sum(),
            "search_float16": lambda: top_scores(half, query, BEST, unit_length=True),
        }
    )
    result = {
        "pictures": PICTURES,
        "dimensions": DIMENSIONS,
        "seconds": times,
        "search_to_read_float32": times["search_float32"] / times["read_float32"],
        "search_to_read_float16": times["search_float16"] / times["read_float16"],
        "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
