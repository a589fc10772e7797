"""Time to search a million features for one sentence, compared with reading them once from memory.

    python benchmarks/search_speed.py

Prints ratios of times measured in turn in one process, and writes them to benchmarks/results/search_speed.json.
"""

import torch
from torch import Tensor

from _bench import RESULTS, made_with, make_parser, report, seconds, spread, take_turns
from promptreid.retrieval.index import top_scores

IMAGES, DIMENSIONS, BEST, REPEATS = 1_000_000, 512, 10, 7


def measure() -> dict[str, float]:
    """Shortest time to read the features and to search them, after one round of warm-up."""
    generator = torch.Generator().manual_seed(0)

    def features(count: int) -> Tensor:
        return torch.nn.functional.normalize(torch.randn(count, DIMENSIONS, generator=generator), dim=-1)

    gallery, query, eight = features(IMAGES), features(1), features(8)
    half = gallery.half()
    works = {
        # Adding up the bytes as whole numbers is the fastest way here to look at each once.
        "read_float32": lambda: gallery.view(torch.int64).sum(),
        "search_float32": lambda: top_scores(gallery, query, BEST, unit_length=True),
        "search_8_float32": lambda: top_scores(gallery, eight, BEST, unit_length=True),
        "read_float16": lambda: half.view(torch.int64).sum(),
        "search_float16": lambda: top_scores(half, query, BEST, unit_length=True),
    }
    times = take_turns(
        {name: lambda work=work: seconds(work) for name, work in works.items()}, rounds=REPEATS, warm_up=1
    )
    return {name: spread(taken).lowest for name, taken in times.items()}


def main() -> None:
    """Measure and report."""
    arguments = make_parser(__doc__, output=RESULTS / "search_speed.json").parse_args()
    times = measure()
    result = {
        "pictures": IMAGES,
        "dimensions": DIMENSIONS,
        "seconds": times,
        "search_to_read_float32": times["search_float32"] / times["read_float32"],
        "search_to_read_float16": times["search_float16"] / times["read_float16"],
        **made_with(),
    }
    report(result, arguments.output)


if __name__ == "__main__":
    main()
