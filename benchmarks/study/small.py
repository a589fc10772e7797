"""Does Prompt Decoupling beat direct and joint fine-tuning? Five seeds on generated pedestrians, about an hour.

    make study

Results are written run by run; the same command goes on after a kill, and reads what is there already.
"""

import argparse
from pathlib import Path

from plan import SMALL, plan, read_rates
from runs import perform
from tables import difference_table, read_results, score_table
from tqdm import tqdm

ARMS = ("zero_shot", "direct", "joint", "pd")
SEEDS = range(5)
HERE = Path(__file__).parent


def main() -> None:
    """Do what is not done yet and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE.parent / "results" / "study-small")
    parser.add_argument("--scratch", type=Path, default=Path("runs/study"))
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    runs = plan(ARMS, SEEDS, SMALL, read_rates(HERE / "rates.json"))
    for run in tqdm(runs, desc="study", unit="run"):
        perform(run, arguments.results, arguments.scratch, device=arguments.device)
    results = read_results(arguments.results)
    print(score_table(results, ARMS))
    print()
    print(difference_table(results, ARMS, "direct"))


if __name__ == "__main__":
    main()
