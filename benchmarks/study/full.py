"""The whole protocol, part by part, the main arms first; after an interruption the same command resumes.

    make study-full
    python benchmarks/study/full.py --parts main controls --device cuda

Results are committed: `benchmarks/results/study`. Runs of the small study are among them.
"""

import argparse
from pathlib import Path

from plan import RESULTS, expected, parts, read_rates
from speed import perform_missing

PARTS = ("main", "controls", "gap", "long", "base", "low_data", "transfer", "ablations")


def main() -> None:
    """Do what is not done yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--scratch", type=Path, default=Path("runs/study"))
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    all_parts = parts(read_rates())
    for part in arguments.parts:
        runs = all_parts[part]
        if len(runs) < expected(part):
            left_out = f"{expected(part) - len(runs)} of {expected(part)} runs"
            print(f"{part}: {left_out} are left out, as their arms' rates were not tuned; tune.py --arms does it")
        perform_missing(part, runs, arguments.results, arguments.scratch, device=arguments.device)
    print("done; python benchmarks/study/page.py builds the page")


if __name__ == "__main__":
    main()
