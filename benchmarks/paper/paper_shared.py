"""What the recipe takes from benchmarks/_bench.py: of a command, Python's path holds only the folder it lies in."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

from _bench import RESULTS, in_words, made_with, make_parser, report, write_json

__all__ = ["RESULTS", "in_words", "made_with", "make_parser", "report", "write_json"]
