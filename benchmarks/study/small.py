"""Does Prompt Decoupling beat direct and joint fine-tuning? Five seeds on generated pedestrians, under an hour.

    make study
    python benchmarks/study/small.py --results benchmarks/results/study      # for the record, which is committed

Everything is done from scratch in `runs/study`, run by run; the same command goes on after a kill. At the end the
table is printed, and each run is held against the committed result where there is one.
"""

import argparse
from pathlib import Path
from typing import Any

from plan import HERE, SMALL_ARMS, Run, plan, read_rates
from runs import perform, read_result
from speed import announce
from tables import difference_table, gather, score_table
from tqdm import tqdm

COMMITTED = HERE.parent / "results" / "study"


def held_against(runs: list[Run], results: Path, committed: Path) -> str:
    """How far Rank-1 of each run is from the committed result."""
    gaps: list[float] = []
    for run in runs:
        own, kept = read_result(run, results), _kept(run, committed)
        if own is not None and kept is not None:
            gaps.append(abs(own["test"]["rank1"] - kept["test"]["rank1"]))
    if not gaps:
        return "No committed results of these runs to hold this against."
    return (
        f"{len(gaps)} of {len(runs)} runs have a committed result; Rank-1 differs by at most "
        f"{100 * max(gaps):.2f} points, {sum(gap == 0 for gap in gaps)} are equal."
    )


def _kept(run: Run, committed: Path) -> dict[str, Any] | None:
    """The committed result of this very run; one with other rates or another budget is none."""
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
    left = [run for run in runs if read_result(run, arguments.results) is None]
    announce("small study", left, len(runs) - len(left), arguments.device)
    for run in tqdm(left, desc="study", unit="run"):
        perform(run, arguments.results, arguments.scratch, device=arguments.device)
    results = gather(runs, arguments.results)
    print(score_table(results, SMALL_ARMS), difference_table(results, SMALL_ARMS, "direct"), sep="\n\n")
    if arguments.results.resolve() != COMMITTED.resolve():
        print("\n" + held_against(runs, arguments.results, COMMITTED))


if __name__ == "__main__":
    main()
