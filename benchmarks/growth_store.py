"""What a store's operations take as it grows, approximate search beside exact search, with the recall of the former.

    python benchmarks/growth_store.py

Needs the extra `store`. Features of 512 dimensions are made up: people in clusters of few directions, ten images each,
from 200 cameras, and sentences about them on the other side of a gap, as CLIP's are. Prints seconds, bytes written,
recall@10 of approximate against exact search and the ratios between both, in a folder of this machine, and writes them
to benchmarks/results/growth_store.json. A million needs 6 GB of disk and, on two cores, an hour.
"""

import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from _bench import RESULTS, made_with, make_parser, report, seconds, spread, take_turns
from promptreid.retrieval.lance_engine import require_lance
from promptreid.retrieval.lance_store import LanceStore, renumbered
from promptreid.retrieval.lance_upkeep import describe, erase, optimize
from promptreid.retrieval.table import Hit, ImageTable

DIMENSIONS, DIRECTIONS, IMAGES_EACH, CAMERAS, COMMIT, ADDED, QUERIES, BEST, ROUNDS = (
    512,
    64,
    10,
    200,
    5000,
    100,
    100,
    10,
    3,
)
SIZES = (10_000, 100_000)
CAMERA = {"camera": "cam_007"}


def random(*shape: int, seed: int) -> Tensor:
    """Made-up numbers of a standard normal distribution."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def people(first: int, count: int) -> Tensor:
    """Features of people, (count, E), who differ in few directions, as those of a model do."""
    directions = random(DIRECTIONS, DIMENSIONS, seed=1) / math.sqrt(DIMENSIONS)
    return random(count, DIRECTIONS, seed=1000 + first) @ directions


def gap() -> Tensor:
    """What all images have and no sentence has, (E,)."""
    return 4.0 * normalize(random(DIMENSIONS, seed=2), dim=0)


def commits(size: int) -> Iterator[tuple[ImageTable, Tensor]]:
    """Images and features, as they are committed."""
    for begin in range(0, size, COMMIT):
        count = min(COMMIT, size - begin)
        persons = people(begin // IMAGES_EACH, -(-count // IMAGES_EACH)).repeat_interleave(IMAGES_EACH, 0)[:count]
        features = normalize(persons + gap() + 0.1 * random(count, DIMENSIONS, seed=begin), dim=-1)
        rows = range(begin, begin + count)
        metadata = [{"camera": f"cam_{row * 7919 % CAMERAS:03}", "time": 1_700_000_000 + row} for row in rows]
        keys = [f"crops/{row:09}.jpg" for row in rows]
        yield renumbered(ImageTable.of_keys(keys, metadata=metadata)), features


def sentences() -> Tensor:
    """Features of sentences about people of the first commit, (Q, E): they say only a part, and are across the gap."""
    said = people(0, QUERIES)
    return normalize(said + 0.7 * people(10**9, QUERIES) - gap(), dim=-1)


def folder_bytes(folder: Path) -> int:
    """Bytes of all files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def written(folder: Path, work: Callable[[], object]) -> tuple[float, int]:
    """Seconds of a change, and the bytes by which the folder grew."""
    before = folder_bytes(folder)
    return seconds(work), folder_bytes(folder) - before


def recall(found: list[list[Hit]], right: list[list[Hit]]) -> float:
    """The share of the right images that were found."""
    pairs = list(zip(found, right, strict=True))
    hits = sum(len({hit.id for hit in some} & {hit.id for hit in all_of_them}) for some, all_of_them in pairs)
    return hits / sum(len(all_of_them) for _, all_of_them in pairs)


def measure_changes(store: LanceStore, folder: Path, size: int) -> dict[str, float]:
    """Filling, a hundred more, indexing, and erasing one image."""
    parts = list(commits(size)) if size <= SIZES[0] else commits(size)
    taken, count = 0.0, 0
    for images, features in parts:
        taken += seconds(lambda one=images, two=features: store.add(one, two))
        count += len(images)
    more = [f"new/{row}.jpg" for row in range(ADDED)]
    table = renumbered(ImageTable.of_keys(more, metadata=[{"camera": "cam_000"}] * ADDED))
    features = normalize(random(ADDED, DIMENSIONS, seed=3), dim=-1)
    add, add_bytes = written(folder, lambda: store.add(table, features))
    return {
        "build": taken,
        "add": add,
        "add_bytes": add_bytes,
        "optimize": seconds(lambda: optimize(store)),
        "optimize_again": seconds(lambda: optimize(store)),
        "bytes": folder_bytes(folder),
    }


def measure_searches(store: LanceStore) -> dict[str, float]:
    """Searches in turn, and the recall of those that are approximate."""
    queries = sentences()

    def timed(where: Any, exact: bool) -> Callable[[], float]:
        few = queries[:10]
        return lambda: seconds(lambda: [store.nearest(one[None], BEST, where=where, exact=exact) for one in few]) / 10

    filters = {"": None, "_camera": CAMERA, "_half": {"time": (1_700_000_000, 1_700_000_000 + len(store) // 2)}}
    works = {
        f"search_{name}{ending}": timed(where, name == "exact")
        for ending, where in filters.items()
        for name in ("exact", "approximate")
    }
    taken = {name: spread(found).median for name, found in take_turns(works, rounds=ROUNDS, warm_up=1).items()}
    for ending, where in filters.items():
        right = store.nearest(queries, BEST, where=where, exact=True)
        taken[f"recall{ending}"] = recall(store.nearest(queries, BEST, where=where), right)
        taken[f"time_ratio{ending}"] = taken[f"search_approximate{ending}"] / taken[f"search_exact{ending}"]
    return taken


def measure(size: int) -> dict[str, float]:
    """Every operation at one size."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "store")
        store = LanceStore.create(folder, dimensions=DIMENSIONS)
        found = measure_changes(store, folder, size) | measure_searches(store)
        found["lists"] = describe(store).partitions
        found["erase"] = seconds(lambda: erase(store, [f"crops/{size // 2:09}.jpg"]))
        return found


def main() -> None:
    """Measure and report."""
    parser = make_parser(__doc__, output=RESULTS / "growth_store.json")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="images; default %(default)s")
    arguments = parser.parse_args()
    by_size = {size: measure(size) for size in sorted(arguments.sizes)}
    rounded = {str(size): {name: float(f"{value:.4g}") for name, value in one.items()} for size, one in by_size.items()}
    made = made_with()
    made["versions"] |= {module.__name__: module.__version__ for module in require_lance()}
    report({"images": rounded, "dimensions": DIMENSIONS, "queries": QUERIES, **made}, arguments.output)


if __name__ == "__main__":
    main()
