"""Cost of a gallery's operations as it grows: 10 thousand, 100 thousand and a million images, without encoding.

    python benchmarks/growth.py

Features of 512 dimensions are made up, in batches of 64 as an encoder gives them, with a camera (one of 200) and a time
for each. Prints seconds (the median of some rounds, searches measured in turn), bytes written and the ratios and
exponents that show how they grow, and writes them to benchmarks/results/growth.json; `--page docs/scale.md` writes the
page's table too. Needs 5 GB of memory and of disk.
"""

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from _bench import (
    RESULTS,
    in_bytes,
    in_time,
    in_words,
    made_with,
    make_parser,
    report,
    seconds,
    sizes_table,
    spread,
    take_turns,
    write_between,
)
from promptreid import Gallery

DIMENSIONS, BATCH, CAMERAS, ADDED, QUERIES, BEST, ROUNDS = 512, 64, 200, 100, 64, 10, 5
BLOCK = 4096
SIZES = (10_000, 100_000, 1_000_000)


def unit_features(count: int, *, seed: int) -> Tensor:
    """Made-up features."""
    made = torch.randn(count, DIMENSIONS, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(made, dim=-1)


def batches(size: int) -> Iterator[tuple[Tensor, list[str], list[dict[str, Any]]]]:
    """Features, keys and metadata of a gallery, as they come from an encoder."""
    for begin in range(0, size, BATCH):
        rows = range(begin, min(begin + BATCH, size))
        metadata = [{"camera": f"cam_{row * 7919 % CAMERAS:03}", "time": 1_700_000_000 + row} for row in rows]
        yield unit_features(len(rows), seed=begin), [f"crops/{row:09}.jpg" for row in rows], metadata


def built(size: int, dtype: torch.dtype) -> tuple[Gallery, float]:
    """A gallery in memory, and the processor seconds of adding its batches, without making the features."""
    gallery = Gallery(None, [], torch.empty(0, DIMENSIONS, dtype=dtype))
    taken = 0.0
    for features, keys, metadata in batches(size):
        begin = time.process_time()
        gallery.add_features(features, keys, metadata=metadata)
        taken += time.process_time() - begin
    begin = time.process_time()
    gallery.compact()
    return gallery, taken + time.process_time() - begin


def sizes_by_file(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file, by which those that were written are told."""
    return {path.name: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.iterdir()}


def written(folder: Path, change: Callable[[], object]) -> tuple[float, int]:
    """Seconds of a change of a gallery, and the bytes that it wrote."""
    before = sizes_by_file(folder)
    taken = seconds(change)
    return taken, sum(size[0] for name, size in sizes_by_file(folder).items() if before.get(name) != size)


def measure_changes(folder: Path, size: int) -> dict[str, float]:
    """Loading, adding, a changed header, and removal, each in the gallery's folder."""
    loaded: list[Gallery] = []
    taken = {"load": seconds(lambda: loaded.append(Gallery.load(folder)))}
    (gallery,) = loaded
    adds: list[tuple[float, int]] = []
    for number in range(ROUNDS):
        keys = [f"new/{number}/{row}.jpg" for row in range(ADDED)]
        features = unit_features(ADDED, seed=size + number)
        metadata = [{"camera": "cam_000", "time": 1_800_000_000 + number}] * ADDED
        adds.append(written(folder, lambda k=keys, f=features, m=metadata: gallery.add_features(f, k, metadata=m)))
    taken["first_add"] = adds[0][0]
    taken["add"], taken["add_bytes"] = statistics.median(one for one, _ in adds), max(count for _, count in adds)
    gallery.notes["place"] = "somewhere else"
    taken["header"], taken["header_bytes"] = written(folder, gallery.save)
    taken["remove"], taken["remove_bytes"] = written(folder, lambda: gallery.remove(size // 2))
    taken["compact"], taken["compact_bytes"] = written(folder, gallery.compact)
    return taken


def multiplied(features: list[Tensor], queries: Tensor) -> None:
    """Multiply all features by all queries, in the queries' kind of number; what it is converted from is read once."""
    for part in features:
        for begin in range(0, len(part), BLOCK):
            _ = part[begin : begin + BLOCK].to(queries.dtype) @ queries.T


def measure_searches(single: Gallery, half: Gallery) -> dict[str, float]:
    """Searches of one gallery in both storages, in turn, and reading its features once."""
    queries = unit_features(QUERIES, seed=-1)
    rough = queries.bfloat16()
    features = [segment.features for segment in single._store.exact.segments]
    last = 1_700_000_000 + len(half) - 1

    def search(gallery: Gallery, query: Tensor, where: Any = None) -> Callable[[], float]:
        return lambda: seconds(lambda: gallery.search(query, BEST, where=where))

    works = {
        # Adding up the bytes as whole numbers is the fastest way here to look at each once.
        "read": lambda: seconds(lambda: [part.view(torch.int64).sum() for part in features]),
        "search": search(single, queries[0]),
        "search_camera": search(single, queries[0], {"camera": "cam_007"}),
        "search_time": search(single, queries[0], {"time": (last - len(half) // 100, last)}),
        f"search_{QUERIES}": search(single, queries),
        "search_float16": search(half, queries[0]),
        f"search_{QUERIES}_float16": search(half, queries),
        # Arithmetic alone, in blocks that stay in the cache, nothing compared or kept: no search of all can be faster.
        f"multiply_{QUERIES}": lambda: seconds(lambda: multiplied(features, queries)),
        f"multiply_{QUERIES}_bfloat16": lambda: seconds(lambda: multiplied(features, rough)),
    }
    return {name: spread(taken).median for name, taken in take_turns(works, rounds=ROUNDS, warm_up=1).items()}


def measure(size: int) -> dict[str, float]:
    """Every operation at one size."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "gallery")
        gallery, taken = built(size, torch.float32)
        found = {"build": taken, "save": seconds(partial(gallery.save, folder))}
        gallery = Gallery.load(folder)  # what was in memory is let go
        found |= measure_changes(folder, size)
        half, _ = built(size, torch.float16)
        found |= measure_searches(Gallery.load(folder), half)
    return found


def ratios(by_size: dict[int, dict[str, float]]) -> dict[str, float]:
    """How operations grow from the smallest to the largest, and what they take beside each other in the largest."""
    first, last = by_size[min(by_size)], by_size[max(by_size)]
    growth = math.log(max(by_size) / min(by_size)) if len(by_size) > 1 else math.nan
    return {
        "build_exponent": math.log(last["build"] / first["build"]) / growth,
        "add_last_to_first": last["add"] / first["add"],
        "camera_to_unfiltered": last["search_camera"] / last["search"],
        "queries_to_one": last[f"search_{QUERIES}"] / last["search"],
        "float16_to_float32_batch": last[f"search_{QUERIES}_float16"] / last[f"search_{QUERIES}"],
        "multiply_to_one": last[f"multiply_{QUERIES}"] / last["search"],
        "multiply_bfloat16_to_one": last[f"multiply_{QUERIES}_bfloat16"] / last["search"],
        "search_to_read": last["search"] / last["read"],
    }


def with_bytes(key: str) -> Callable[[Mapping[str, float]], str]:
    """A cell of seconds and what was written."""
    return lambda one: f"{in_time(one[key])}, {in_bytes(one[f'{key}_bytes'])} written"


ROWS: dict[str, str | Callable[[Mapping[str, float]], str]] = {
    "build in batches of 64, in memory (processor time)": "build",
    "save to a folder": "save",
    "load": "load",
    "add 100 to the folder": with_bytes("add"),
    "change a note": with_bytes("header"),
    "remove one image": with_bytes("remove"),
    "reading the features once": "read",
    "one sentence's features": "search",
    "the same in one camera of 200": "search_camera",
    "the same in 1 % of the time": "search_time",
    "64 sentences' features": f"search_{QUERIES}",
    "one, float16": "search_float16",
    "64, float16": f"search_{QUERIES}_float16",
    "only the multiplications for 64, float32": f"multiply_{QUERIES}",
    "only the multiplications for 64, bfloat16": f"multiply_{QUERIES}_bfloat16",
}

# What the ratios should be at most.
BOUNDS = {
    "build_exponent": 1.1,
    "add_last_to_first": 3.0,
    "camera_to_unfiltered": 1.0,
    "queries_to_one": 4.0,
    "float16_to_float32_batch": 1.0,
    "search_to_read": 1.5,
}
MEANINGS = {
    "build_exponent": "building grows with the exponent",
    "add_last_to_first": "to add 100, largest to smallest",
    "camera_to_unfiltered": "a camera to all",
    "queries_to_one": "64 sentences to one",
    "float16_to_float32_batch": "64 sentences, float16 to float32",
    "search_to_read": "one sentence to reading the features once",
    "multiply_to_one": "the multiplications for 64 to one sentence, float32",
    "multiply_bfloat16_to_one": "the same in bfloat16",
}


def page_table(result: Mapping[str, Any]) -> str:
    """The page's tables."""
    made = f"Measured on {in_words(result)}, {result['date']}:"
    ratios_lines = ["| in the largest | ratio | wanted |", "|---|---|---|"]
    for name, meaning in MEANINGS.items():
        wanted = f"at most {BOUNDS[name]}" if name in BOUNDS else "a floor, nothing to search"
        ratios_lines.append(f"| {meaning} | {result['ratios'][name]:.2f} | {wanted} |")
    return "\n".join([made, "", *sizes_table(result["images"], ROWS), "", *ratios_lines])


def main() -> None:
    """Measure and report."""
    parser = make_parser(__doc__, output=RESULTS / "growth.json")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="images; default %(default)s")
    parser.add_argument("--page", type=Path, help="page that gets the table, such as docs/scale.md")
    arguments = parser.parse_args()
    by_size = {size: measure(size) for size in sorted(arguments.sizes)}
    result = {
        "images": {
            str(size): {name: float(f"{value:.4g}") for name, value in one.items()} for size, one in by_size.items()
        },
        "ratios": {name: round(value, 3) for name, value in ratios(by_size).items()},
        "dimensions": DIMENSIONS,
        "cameras": CAMERAS,
        "added": ADDED,
        "queries": QUERIES,
        **made_with(),
    }
    report(result, arguments.output)
    if arguments.page is not None:
        write_between(arguments.page, "gallery growth", page_table(result))


if __name__ == "__main__":
    main()
