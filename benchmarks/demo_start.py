"""Processor time until the demo can be searched: with a gallery, with crops, and with no argument.

Each is a separate process, as a user starts it, measured up to the line with the page's address.

python benchmarks/demo_start.py        # benchmarks/results/demo_start.json; two minutes
"""

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from _bench import RESULTS, made_with, make_parser, report
from promptreid.synthetic import write_generated

PEOPLE, IMAGES_EACH, ROUNDS = 400, 2, 3
COMMAND = [sys.executable, "-m", "promptreid"]


def main() -> None:
    """Draw crops, index them, start the page several times in each of the three ways."""
    settings = make_parser(__doc__, output=RESULTS / "demo_start.json").parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        crops, index = Path(scratch, "crops"), Path(scratch, "gallery")
        people = (1, 1, PEOPLE - 2)
        write_generated(crops, num_identities=people, images_per_identity=IMAGES_EACH, seed=0, progress=False)
        subprocess.run([*COMMAND, "index", str(crops), "--output", str(index)], check=True, stdout=subprocess.DEVNULL)
        ways: dict[str, list[str]] = {"index": [str(index)], "crops": [str(crops)], "drawn": []}
        seconds = {way: [start_once(given) for _ in range(ROUNDS)] for way, given in ways.items()}
    result: dict[str, Any] = {
        **made_with(),
        "images": PEOPLE * IMAGES_EACH,
        "processor_seconds": seconds,
        "median_seconds": {way: statistics.median(all_of_one) for way, all_of_one in seconds.items()},
    }
    report(result, settings.output)


def start_once(given: list[str]) -> float:
    """Processor seconds, user's and system's, of a page from its start to its address; it is ended then."""
    command = [*COMMAND, "demo", *given]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            if not any("http://" in line for line in process.stdout or []):
                raise SystemExit("the demo did not start; try it by hand: promptreid demo")
            fields = Path(f"/proc/{process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
            process.terminate()
            process.wait(timeout=60)
        finally:
            process.kill()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
