"""The whole protocol, part by part, the main arms first; goes on where it was.

make study-full
python benchmarks/study/full.py --parts main controls --device cuda
"""

import argparse
from dataclasses import replace
from pathlib import Path

from arms import ABLATIONS, CONTROLS, MAIN
from plan import FULL, plan, read_rates
from runs import Run, perform
from tqdm import tqdm

from promptreid.data.generated.camera import CAMERAS

HERE = Path(__file__).parent
COMPARED = ("direct", "direct_equal_steps", "pd")
GAPS = (0.0, 0.5, 1.5, 2.0)
SHARES = (0.01, 0.05, 0.25)


def parts(rates: dict[str, object]) -> dict[str, list[Run]]:
    """Every part of the protocol by name, in the order in which they matter."""
    half = tuple(camera.name for camera in CAMERAS)[: len(CAMERAS) // 2]
    main = plan(MAIN, range(10), FULL, rates)
    return {
        "main": main,
        "controls": plan(CONTROLS, range(5), FULL, rates),
        "gap": [run for gap in GAPS for run in plan(COMPARED, range(5), FULL, rates, gap=gap)],
        "low_data": [run for share in SHARES for run in plan(COMPARED, range(5), FULL, rates, share=share)],
        "transfer": [replace(run, train_cameras=half) for run in plan(COMPARED, range(5), FULL, rates)],
        "ablations": plan(ABLATIONS, range(5), FULL, rates),
    }


def main() -> None:
    """Do what is not done yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    all_parts = parts(read_rates(HERE / "rates.json"))
    parser.add_argument("--parts", nargs="+", choices=all_parts, default=list(all_parts))
    parser.add_argument("--results", type=Path, default=HERE.parent / "results" / "study-full")
    parser.add_argument("--scratch", type=Path, default=Path("runs/study-full"))
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    for part in arguments.parts:
        for run in tqdm(all_parts[part], desc=part, unit="run"):
            perform(run, arguments.results / part / run.condition, arguments.scratch, device=arguments.device)
    print("done; python benchmarks/study/page.py builds the page")


if __name__ == "__main__":
    main()
