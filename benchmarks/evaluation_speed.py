"""Metrics by counting against a full argsort with the usual cumulative sums: times, results, memory.

`argsort` is as lean as we can write it, `field` what the field's repositories run (loops over queries and places).

    python benchmarks/evaluation_speed.py                 # CUHK-PEDES' sizes
    python benchmarks/evaluation_speed.py --icfg          # ICFG-PEDES' sizes; some minutes

Prints ratios of times measured by turns in one process, and writes them to benchmarks/results/.
"""

import argparse
import datetime
import json
import platform
import resource
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from promptreid.evaluation.metrics import RetrievalMetrics, compute_metrics, score_similarity

DIMENSIONS, PERSONS = 512, 1000
RESULTS = Path(__file__).parent / "results"


def sorted_metrics(
    similarity: Tensor, query_ids: Tensor, gallery_ids: Tensor, ranks: tuple[int, ...] = (1, 5, 10)
) -> list[float]:
    """Sort every row, then cumulative sums over the sorted labels, without a loop over queries."""
    sums = torch.zeros(len(ranks) + 2, dtype=torch.float64)
    places = torch.arange(1, similarity.shape[1] + 1)
    for begin in range(0, len(similarity), 1024):  # in chunks too, or it would not fit into memory at ICFG's sizes
        order = torch.argsort(similarity[begin : begin + 1024], dim=1, descending=True)
        matches = gallery_ids[order] == query_ids[begin : begin + 1024, None]
        hits = matches.cumsum(1)
        counts = hits[:, -1]
        found = hits.clamp(max=1)
        precision = (hits / places * matches).sum(1) / counts
        last = (matches * places).amax(1)
        sums += torch.tensor(
            [*(float(found[:, k - 1].sum()) for k in ranks), float(precision.sum()), float((counts / last).sum())],
            dtype=torch.float64,
        )
    return (sums / len(similarity)).tolist()


def field_metrics(
    similarity: Tensor, query_ids: Tensor, gallery_ids: Tensor, ranks: tuple[int, ...] = (1, 5, 10)
) -> list[float]:
    """The same as IRRA and those who build on it compute it: loops over queries and places, in rows of 1,024 here."""
    sums = torch.zeros(len(ranks) + 2, dtype=torch.float64)
    for begin in range(0, len(similarity), 1024):
        order = torch.argsort(similarity[begin : begin + 1024], dim=1, descending=True)
        matches = gallery_ids[order].eq(query_ids[begin : begin + 1024].view(-1, 1))
        found = matches[:, : max(ranks)].cumsum(1)
        found[found > 1] = 1
        hits = matches.cumsum(1)
        penalties = [hits[row][match.nonzero()[-1]] / (match.nonzero()[-1] + 1.0) for row, match in enumerate(matches)]
        precision = torch.stack([hits[:, place] / (place + 1.0) for place in range(hits.shape[1])], 1) * matches
        means = [*(found[:, k - 1].sum() for k in ranks), (precision.sum(1) / matches.sum(1)).sum()]
        sums += torch.stack([torch.as_tensor(mean).double() for mean in [*means, torch.cat(penalties).sum()]])
    return (sums / len(similarity)).tolist()


def timed(work: Callable[[], object]) -> tuple[float, object]:
    """Seconds and result of one call."""
    begin = time.perf_counter()
    result = work()
    return time.perf_counter() - begin, result


def by_turns(works: dict[str, Callable[[], object]], repeats: int) -> tuple[dict[str, float], dict[str, object]]:
    """Shortest time and result of each, called one after the other so that all meet the same machine."""
    times: dict[str, list[float]] = {name: [] for name in works}
    results: dict[str, object] = {}
    for _ in range(repeats):
        for name, work in works.items():
            taken, results[name] = timed(work)
            times[name].append(taken)
    return {name: min(found) for name, found in times.items()}, results


def largest_difference(metrics: object, reference: object) -> float:
    """Largest difference between two results."""
    values = list(metrics.as_dict().values()) if isinstance(metrics, RetrievalMetrics) else metrics
    return max(abs(one - other) for one, other in zip(values, reference, strict=True))


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--icfg", action="store_true")
    icfg = parser.parse_args().icfg
    queries, gallery, repeats = (19_848, 19_848, 1) if icfg else (6_156, 3_074, 3)
    generator = torch.Generator().manual_seed(0)
    text, images = (
        torch.nn.functional.normalize(torch.randn(count, DIMENSIONS, generator=generator), dim=-1)
        for count in (queries, gallery)
    )
    text_ids, image_ids = torch.arange(queries) % PERSONS, torch.arange(gallery) % PERSONS
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    compute_metrics(text, images, text_ids, image_ids)
    above = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    similarity = text @ images.T
    rivals = {"argsort": sorted_metrics} if icfg else {"argsort": sorted_metrics, "field": field_metrics}
    works: dict[str, Callable[[], object]] = {"counting": lambda: score_similarity(similarity, text_ids, image_ids)}
    works["product_and_counting"] = lambda: compute_metrics(text, images, text_ids, image_ids)
    for name, rank in rivals.items():
        works[name] = lambda rank=rank: rank(similarity, text_ids, image_ids)
        works[f"product_and_{name}"] = lambda rank=rank: rank(text @ images.T, text_ids, image_ids)
    times, results = by_turns(works, repeats)
    result = {
        "queries": queries,
        "gallery": gallery,
        "dimensions": DIMENSIONS,
        "seconds": times,
        "ratios": {
            name: {
                "ranking_alone": times[name] / times["counting"],
                "with_product": times[f"product_and_{name}"] / times["product_and_counting"],
            }
            for name in rivals
        },
        "largest_difference": max(largest_difference(results["counting"], results[name]) for name in rivals),
        "peak_megabytes_above_the_inputs": round(above, 1),
        "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
    }
    RESULTS.mkdir(exist_ok=True)
    name = "evaluation_speed_icfg.json" if icfg else "evaluation_speed.json"
    (RESULTS / name).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
