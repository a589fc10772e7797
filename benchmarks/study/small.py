"""Does Prompt Decoupling beat direct and joint fine-tuning? Five seeds on generated pedestrians, under an hour.

    make study
    python benchmarks/study/small.py --results benchmarks/results/study      # for the record, which is committed

Everything is done from scratch in `runs/study`, run by run; after an interruption the same command resumes. At the end
the table is printed, and each run is compared with the committed result where there is one.
"""

import argparse
from pathlib import Path
from typing import Any

from comparison import gather
from plan import RESULTS, SMALL_ARMS, Run, plan, read_rates
from runs import read_result
from speed import perform_missing
from tables import difference_table, score_table


def compare_with(runs: list[Run], results: Path, committed: Path) -> str:
    """How far Rank-1 of each run is from the committed result."""
    gaps: list[float] = []
    for run in runs:
        own, kept = read_result(run, results), _kept(run, committed)
        if own is not None and kept is not None:
            gaps.append(abs(own["test"]["rank1"] - kept["test"]["rank1"]))
    if not gaps:
        return "There are no committed results of these runs to compare with."
    return (
        f"{len(gaps)} of {len(runs)} runs have a committed result; Rank-1 differs by at most "
        f"{100 * max(gaps):.2f} points, {sum(gap == 0 for gap in gaps)} are equal."
    )


def _kept(run: Run, committed: Path) -> dict[str, Any] | None:
    """The committed result of this very run, not one with other rates or another budget."""
    try:
        return read_result(run, committed)
    except FileExistsError:
        return None


def main() -> None:
    """Do what is not done yet and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("runs/study/results"))
    parser.add_argument("--scratch", type=Path, default=Path("runs/study"))
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    runs = plan(SMALL_ARMS, range(5), read_rates())
    perform_missing("small study", runs, arguments.results, arguments.scratch, device=arguments.device)
    results = gather(runs, arguments.results)
    print(score_table(results, SMALL_ARMS), difference_table(results, SMALL_ARMS, "direct"), sep="\n\n")
    if arguments.results.resolve() != RESULTS.resolve():
        print("\n" + compare_with(runs, arguments.results, RESULTS))


if __name__ == "__main__":
    main()
