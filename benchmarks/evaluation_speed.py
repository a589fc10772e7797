"""Metrics by counting, compared with a full argsort and the usual cumulative sums: times, results, memory.

`argsort` is as lean as we can write it, `field` is what other repositories of the field run (loops over queries and
ranks).

    python benchmarks/evaluation_speed.py                 # CUHK-PEDES' sizes
    python benchmarks/evaluation_speed.py --icfg          # ICFG-PEDES' sizes; some minutes

Prints ratios of times measured in turn in one process, and writes them to benchmarks/results/evaluation_speed.json, or
evaluation_speed_icfg.json.
"""

import resource
from collections.abc import Callable

import torch
from torch import Tensor

from _bench import RESULTS, made_with, make_parser, report, seconds, spread, take_turns
from promptreid.evaluation.metrics import RetrievalMetrics, compute_metrics, score_similarity

DIMENSIONS, PERSONS = 512, 1000
CUHK_PEDES, ICFG_PEDES = (6_156, 3_074, 3), (19_848, 19_848, 1)  # queries, gallery, rounds


def sorted_metrics(
    similarity: Tensor, query_ids: Tensor, gallery_ids: Tensor, ranks: tuple[int, ...] = (1, 5, 10)
) -> list[float]:
    """Sort every row, then cumulative sums over the sorted labels, without a loop over queries."""
    sums = torch.zeros(len(ranks) + 2, dtype=torch.float64)
    ranking = torch.arange(1, similarity.shape[1] + 1)
    for begin in range(0, len(similarity), 1024):  # in chunks too, or it would not fit into memory at ICFG's sizes
        order = torch.argsort(similarity[begin : begin + 1024], dim=1, descending=True)
        matches = gallery_ids[order] == query_ids[begin : begin + 1024, None]
        hits = matches.cumsum(1)
        counts = hits[:, -1]
        found = hits.clamp(max=1)
        precision = (hits / ranking * matches).sum(1) / counts
        last = (matches * ranking).amax(1)
        sums += torch.tensor(
            [*(float(found[:, k - 1].sum()) for k in ranks), float(precision.sum()), float((counts / last).sum())],
            dtype=torch.float64,
        )
    return (sums / len(similarity)).tolist()


def field_metrics(
    similarity: Tensor, query_ids: Tensor, gallery_ids: Tensor, ranks: tuple[int, ...] = (1, 5, 10)
) -> list[float]:
    """The same as IRRA and those who build on it compute it: loops over queries and ranks, in rows of 1,024 here."""
    sums = torch.zeros(len(ranks) + 2, dtype=torch.float64)
    for begin in range(0, len(similarity), 1024):
        order = torch.argsort(similarity[begin : begin + 1024], dim=1, descending=True)
        matches = gallery_ids[order].eq(query_ids[begin : begin + 1024].view(-1, 1))
        found = matches[:, : max(ranks)].cumsum(1)
        found[found > 1] = 1
        hits = matches.cumsum(1)
        penalties = [hits[row][match.nonzero()[-1]] / (match.nonzero()[-1] + 1.0) for row, match in enumerate(matches)]
        precision = torch.stack([hits[:, rank] / (rank + 1.0) for rank in range(hits.shape[1])], 1) * matches
        means = [*(found[:, k - 1].sum() for k in ranks), (precision.sum(1) / matches.sum(1)).sum()]
        sums += torch.stack([torch.as_tensor(mean).double() for mean in [*means, torch.cat(penalties).sum()]])
    return (sums / len(similarity)).tolist()


def largest_difference(metrics: object, reference: object) -> float:
    """Largest difference between two results."""
    values = list(metrics.as_dict().values()) if isinstance(metrics, RetrievalMetrics) else metrics
    return max(abs(one - other) for one, other in zip(values, reference, strict=True))


def features(queries: int, gallery: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random text and image features of unit length, and their person ids."""
    generator = torch.Generator().manual_seed(0)
    text, images = (
        torch.nn.functional.normalize(torch.randn(count, DIMENSIONS, generator=generator), dim=-1)
        for count in (queries, gallery)
    )
    return text, images, torch.arange(queries) % PERSONS, torch.arange(gallery) % PERSONS


def measure(
    rivals: dict[str, Callable[..., object]],
    text: Tensor,
    images: Tensor,
    text_ids: Tensor,
    image_ids: Tensor,
    *,
    repeats: int,
) -> tuple[dict[str, float], dict[str, object]]:
    """Shortest time and result of counting and of its rivals, each alone and with the product of the features."""
    similarity = text @ images.T
    works: dict[str, Callable[[], object]] = {"counting": lambda: score_similarity(similarity, text_ids, image_ids)}
    works["product_and_counting"] = lambda: compute_metrics(text, images, text_ids, image_ids)
    for name, rank in rivals.items():
        works[name] = lambda rank=rank: rank(similarity, text_ids, image_ids)
        works[f"product_and_{name}"] = lambda rank=rank: rank(text @ images.T, text_ids, image_ids)
    results: dict[str, object] = {}

    def timed(name: str) -> float:
        return seconds(lambda: results.update({name: works[name]()}))

    times = take_turns({name: lambda name=name: timed(name) for name in works}, rounds=repeats)
    return {name: spread(taken).lowest for name, taken in times.items()}, results


def main() -> None:
    """Measure and report."""
    parser = make_parser(__doc__, output=None)
    parser.add_argument("--icfg", action="store_true", help="ICFG-PEDES' sizes")
    arguments = parser.parse_args()
    icfg = arguments.icfg
    queries, gallery, repeats = ICFG_PEDES if icfg else CUHK_PEDES
    text, images, text_ids, image_ids = features(queries, gallery)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    compute_metrics(text, images, text_ids, image_ids)
    above = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    rivals = {"argsort": sorted_metrics} if icfg else {"argsort": sorted_metrics, "field": field_metrics}
    times, results = measure(rivals, text, images, text_ids, image_ids, repeats=repeats)
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
        **made_with(),
    }
    report(result, arguments.output or RESULTS / ("evaluation_speed_icfg.json" if icfg else "evaluation_speed.json"))


if __name__ == "__main__":
    main()
