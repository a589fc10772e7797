"""Imports from benchmarks/_bench.py for the recipe: for a script, Python's path holds only its own folder."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

from _bench import METRICS, RESULTS, in_words, made_with, make_parser, report, write_json

__all__ = ["METRICS", "RESULTS", "in_words", "made_with", "make_parser", "report", "write_json"]
