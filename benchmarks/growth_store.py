"""Cost of a store's operations as it grows, compared with a gallery's, and recall of its approximate search.

    python benchmarks/growth_store.py

Needs the extra `store`. Two kinds of features, in a folder on this machine:

- *made*, 512 dimensions: people who differ in 256 dimensions, ten images each with a cosine of about 0.7, from 200
  cameras; sentence features lie across a modality gap, as in CLIP, and carry a third of the image's information. This
  is hard enough that lists and re-ranking matter, which the recalls with a part of the lists show.
- *drawn*: the test split that the package draws, encoded once by the shipped model, captions as queries. It has 800
  images; to make more of them, each is repeated with noise.

Prints seconds, bytes written, recall@10 of approximate against exact search and the ratios between both, and writes
them to benchmarks/results/growth_store.json; `--page docs/scale.md` writes the page's tables too.
A million needs 12 GB of disk and, on two cores, a quarter of an hour.
"""

import math
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

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
from promptreid import Gallery, load_prompts
from promptreid.data import load_dataset
from promptreid.evaluation.splits import encode_split
from promptreid.retrieval import lance_store
from promptreid.retrieval.lance_connection import require_lance
from promptreid.retrieval.lance_removal import erase
from promptreid.retrieval.lance_store import LanceStore, renumbered
from promptreid.retrieval.lance_upkeep import describe, optimize
from promptreid.retrieval.table import Hit, ImageTable
from promptreid.synthetic import write_generated
from promptreid.towers.tiny import tiny_prompts

DIMENSIONS, DIRECTIONS, IMAGES_EACH, CAMERAS = 512, 256, 10, 200
COMMIT, ADDED, QUERIES, BEST, ROUNDS = 5000, 100, 100, 10, 3
SIZES = (10_000, 100_000, 1_000_000)
CAMERA = {"camera": "cam_007"}
OWN, SAID, GAP = 0.65, 0.35, 1.0  # of an image alone; of a person that a sentence says; between images and sentences
NOISE = 0.5  # of a repeated image, beside its features of length one
FIRST_SECOND = 1_700_000_000


class Features(NamedTuple):
    """Where features come from.

    Attributes:
        dimensions: E.
        images: Those of so many images from the first given.
        queries: (Q, E), of sentences.
    """

    dimensions: int
    images: Callable[[int, int], Tensor]
    queries: Tensor


def random(*shape: int, seed: int) -> Tensor:
    """Made-up numbers of a standard normal distribution."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def people(first: int, count: int) -> Tensor:
    """Features of people, (count, E), of about unit length, who differ in few directions, as those of a model do."""
    directions = random(DIRECTIONS, DIMENSIONS, seed=1) / math.sqrt(DIRECTIONS * DIMENSIONS)
    return random(count, DIRECTIONS, seed=1000 + first) @ directions


def gap() -> Tensor:
    """What all images have and no sentence has, (E,)."""
    return GAP * normalize(random(DIMENSIONS, seed=2), dim=0)


def made_images(first: int, count: int) -> Tensor:
    """Features of images, (count, E): of people, and of each image alone."""
    persons = people(first // IMAGES_EACH, -(-count // IMAGES_EACH)).repeat_interleave(IMAGES_EACH, 0)[:count]
    return normalize(persons + gap() + OWN * random(count, DIMENSIONS, seed=first) / math.sqrt(DIMENSIONS), dim=-1)


def made() -> Features:
    """Made-up features; sentences are about people of the first commit."""
    said = SAID * people(0, QUERIES) + (1 - SAID) * people(10**9, QUERIES)
    return Features(DIMENSIONS, made_images, normalize(said - gap(), dim=-1))


def drawn() -> Features:
    """Features of the drawn test split by the shipped model, encoded once; repeated with noise for more images."""
    with tempfile.TemporaryDirectory() as place:
        split = load_dataset(write_generated(Path(place, "drawn"), progress=False)).test
        encoded = encode_split(load_prompts(tiny_prompts()), split, progress=False)
    own = normalize(encoded.image_features.float().cpu(), dim=-1)
    captions = normalize(encoded.text_features.float().cpu(), dim=-1)

    def repeated(first: int, count: int) -> Tensor:
        rows = torch.arange(first, first + count)
        noise = NOISE * random(count, own.shape[1], seed=first) / math.sqrt(own.shape[1])
        return normalize(own[rows % len(own)] + noise * (rows >= len(own))[:, None], dim=-1)

    return Features(own.shape[1], repeated, captions[:: max(1, len(captions) // QUERIES)][:QUERIES])


def commits(features: Features, size: int) -> Iterator[tuple[ImageTable, Tensor]]:
    """Images and features, as they are committed."""
    for begin in range(0, size, COMMIT):
        rows = range(begin, min(begin + COMMIT, size))
        metadata = [{"camera": f"cam_{row * 7919 % CAMERAS:03}", "time": FIRST_SECOND + row} for row in rows]
        keys = [f"crops/{row:09}.jpg" for row in rows]
        yield renumbered(ImageTable.of_keys(keys, metadata=metadata)), features.images(begin, len(rows))


def more(features: Features, size: int) -> tuple[ImageTable, Tensor]:
    """A hundred more images than so many."""
    keys = [f"new/{row}.jpg" for row in range(ADDED)]
    table = renumbered(ImageTable.of_keys(keys, metadata=[{"camera": "cam_000", "time": FIRST_SECOND}] * ADDED))
    return table, features.images(size, ADDED)


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
    hits = sum(len({hit.path for hit in some} & {hit.path for hit in all_of_them}) for some, all_of_them in pairs)
    return hits / sum(len(all_of_them) for _, all_of_them in pairs)


def filled(store: LanceStore, gallery: Gallery, features: Features, size: int) -> dict[str, float]:
    """Fill both, and return what that took."""
    taken = {"build": 0.0, "gallery_build": 0.0}
    for images, some in commits(features, size):
        taken["build"] += seconds(partial(store.add, images, some))
        known = list(images.metadata)
        taken["gallery_build"] += seconds(partial(gallery.add_features, some, list(images.paths), metadata=known))
    return taken


def measure_changes(store: LanceStore, folder: Path, gallery: Gallery, features: Features) -> dict[str, float]:
    """A hundred more, and the index."""
    images, some = more(features, len(store))
    place, keys, known = Path(str(gallery.directory)), list(images.paths), list(images.metadata)
    add, add_bytes = written(folder, lambda: store.add(images, some))
    other, other_bytes = written(place, lambda: gallery.add_features(some, keys, metadata=known))
    return {
        "add": add,
        "add_bytes": add_bytes,
        "gallery_add": other,
        "gallery_add_bytes": other_bytes,
        "optimize": seconds(lambda: optimize(store)),
        "optimize_again": seconds(lambda: optimize(store)),
        "bytes": folder_bytes(folder),
        "gallery_bytes": folder_bytes(place),
    }


def measure_searches(store: LanceStore, gallery: Gallery, queries: Tensor) -> dict[str, float]:
    """Searches in turn, and the recall of those that are approximate."""
    few = queries[:10]

    def timed(where: Any, exact: bool) -> Callable[[], float]:
        return lambda: seconds(lambda: [store.nearest(one[None], BEST, where=where, exact=exact) for one in few]) / 10

    def in_gallery(where: Any) -> Callable[[], float]:
        return lambda: seconds(lambda: [gallery.search(one, BEST, where=where) for one in few]) / 10

    half = (FIRST_SECOND, FIRST_SECOND + len(store) // 2)
    filters: dict[str, Any] = {"": None, "_camera": CAMERA, "_half": {"time": half}}
    works = {
        f"search_{name}{ending}": in_gallery(where) if name == "gallery" else timed(where, name == "exact")
        for ending, where in filters.items()
        for name in ("exact", "approximate", "gallery")
    }
    taken = {name: spread(found).median for name, found in take_turns(works, rounds=ROUNDS, warm_up=1).items()}
    for ending, where in filters.items():
        right = store.nearest(queries, BEST, where=where, exact=True)
        taken[f"recall{ending}"] = recall(store.nearest(queries, BEST, where=where), right)
        taken[f"recall_of_gallery{ending}"] = recall([gallery.search(one, BEST, where=where) for one in queries], right)
        taken[f"time_ratio{ending}"] = taken[f"search_approximate{ending}"] / taken[f"search_exact{ending}"]
    return taken | measure_settings(store, queries)


@contextmanager
def searching(**settings: int) -> Generator[None, None, None]:
    """Search another number of lists, or re-rank another number of images."""
    kept = {name: getattr(lance_store, name) for name in settings}
    for name, value in settings.items():
        setattr(lance_store, name, value)
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(lance_store, name, value)


def measure_settings(store: LanceStore, queries: Tensor) -> dict[str, float]:
    """Recall and time with a part of the lists, and recall without re-ranking."""
    right = store.nearest(queries, BEST, exact=True)
    found: dict[str, float] = {}
    lists = describe(store).partitions
    if not lists:
        return found
    few = queries[:10]

    def timed(percent: int) -> float:
        with searching(_LISTS=math.ceil(lists * percent / 100)):
            return seconds(lambda: [store.nearest(one[None], BEST) for one in few]) / len(few)

    works = {f"search_{percent}": partial(timed, percent) for percent in PERCENTS}
    found |= {name: spread(taken).median for name, taken in take_turns(works, rounds=ROUNDS, warm_up=1).items()}
    for percent in PERCENTS:
        with searching(_LISTS=math.ceil(lists * percent / 100)):
            found[f"recall_{percent}"] = recall(store.nearest(queries, BEST), right)
    with searching(_REFINE=1):
        found["recall_not_reranked"] = recall(store.nearest(queries, BEST), right)
    return found


def measure(size: int, features: Features) -> dict[str, float]:
    """Every operation at one size."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "store")
        store = LanceStore.create(folder, dimensions=features.dimensions)
        gallery = Gallery(None, [], torch.empty(0, features.dimensions))
        gallery.save(Path(place, "gallery"))
        found = filled(store, gallery, features, size)
        found |= measure_changes(store, folder, gallery, features)
        found["first_search"] = seconds(lambda: LanceStore.open(folder).nearest(features.queries[:1], BEST))
        found |= measure_searches(store, gallery, features.queries)
        found["lists"] = describe(store).partitions
        found["erase"] = seconds(lambda: erase(store, [f"crops/{size // 2:09}.jpg"]))
        found["gallery_remove"] = seconds(lambda: gallery.remove(f"crops/{size // 2:09}.jpg"))
    return found


Row = str | Callable[[Mapping[str, float]], str]


def both(key: str, other: str, *, written_too: bool = False) -> Row:
    """A cell of a store's seconds and a gallery's."""

    def cell(one: Mapping[str, float]) -> str:
        more = [f", {in_bytes(one[f'{name}_bytes'])} written" if written_too else "" for name in (key, other)]
        return f"{in_time(one[key])}{more[0]}; {in_time(one[other])}{more[1]}"

    return cell


def searches(ending: str) -> dict[str, Row]:
    """The rows of a search, or of one with a filter."""
    where = {"": "", "_camera": ", in one camera of 200", "_half": ", in half of the time"}[ending]
    return {
        f"exact search{where}": both(f"search_exact{ending}", f"search_gallery{ending}"),
        f"approximate search{where}": lambda one: (
            f"{in_time(one[f'search_approximate{ending}'])}, {one[f'time_ratio{ending}']:.2f} of exact, "
            f"recall@{BEST} {one[f'recall{ending}']:.3f}"
        ),
    }


ROWS: dict[str, Row] = {
    "fill, in commits of 5,000": both("build", "gallery_build"),
    "add 100": both("add", "gallery_add", written_too=True),
    "`optimize` the first time (the index)": "optimize",
    "open, and search for the first time": "first_search",
    **searches(""),
    **searches("_camera"),
    **searches("_half"),
    "`erase`, or remove, one image": both("erase", "gallery_remove"),
    "all files": lambda one: f"{in_bytes(one['bytes'])}; {in_bytes(one['gallery_bytes'])}",
}
PERCENTS = (1, 5, 25, 50, 100)  # of the lists of an index


def page_tables(result: Mapping[str, Any]) -> str:
    """The page's tables."""
    versions = result["versions"]
    lines = [
        f"Measured on {in_words(result)}, lancedb {versions['lancedb']}, lance {versions['lance']}, {result['date']}; "
        "where there are two figures, the store's and a gallery's:",
        "",
    ]
    for kind, by_size in result["images"].items():
        lines += [f"{kind.capitalize()} features:", "", *sizes_table(by_size, ROWS), ""]
        for size, one in by_size.items():
            if one["lists"]:
                parts = [
                    f"{one[f'recall_{part}']:.3f} in {in_time(one[f'search_{part}'])} ({part} %)" for part in PERCENTS
                ]
                told = f"{', '.join(parts)}; all lists, but not re-ranked: {one['recall_not_reranked']:.3f}"
                lines += [f"Recall@{BEST} of {int(size):,} with a part of the lists: {told}.", ""]
    return "\n".join(lines).rstrip()


def main() -> None:
    """Measure and report."""
    parser = make_parser(__doc__, output=RESULTS / "growth_store.json")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="images; default %(default)s")
    parser.add_argument("--page", type=Path, help="page that gets the tables, such as docs/scale.md")
    arguments = parser.parse_args()
    kinds = {"made": made(), "drawn": drawn()}
    by_kind = {
        kind: {size: measure(size, features) for size in sorted(arguments.sizes)} for kind, features in kinds.items()
    }
    rounded = {
        kind: {str(size): {name: float(f"{value:.4g}") for name, value in one.items()} for size, one in by_size.items()}
        for kind, by_size in by_kind.items()
    }
    record = made_with()
    record["versions"] |= {module.__name__: module.__version__ for module in require_lance()}
    result = {"images": rounded, "dimensions": DIMENSIONS, "queries": QUERIES, **record}
    report(result, arguments.output)
    if arguments.page is not None:
        write_between(arguments.page, "store growth", page_tables(result))


if __name__ == "__main__":
    main()
