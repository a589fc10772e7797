"""Two toy runs of the study, for the test that kills it: python killed_study.py RESULTS SCRATCH."""

import sys
from pathlib import Path

import runs
from measures import draw_own_domain
from plan import Budget, Run

if __name__ == "__main__":
    print("ready", flush=True)
    runs.draw_own_domain = lambda: draw_own_domain(10)
    for arm in ("direct", "pd"):
        run = Run(arm, 0, (5e-3, 3.2e-4), budget=Budget((8, 3, 4), 2, (96, 48), 8, 4, 8, 2))
        runs.perform(run, Path(sys.argv[1]), Path(sys.argv[2]))
