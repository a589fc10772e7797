"""What the study takes from other folders: of a command, Python's path holds only the folder it lies in."""

import sys
from pathlib import Path

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "tools")]

from web_world import draw_web_pair

from _bench import (
    METRICS,
    end_with_parent,
    in_words,
    made_with,
    make_parser,
    report,
    seconds,
    spread,
    take_turns,
    write_json,
)
from side_by_side import KEPT

__all__ = [
    "KEPT", "METRICS", "draw_web_pair", "end_with_parent", "in_words", "made_with", "make_parser", "report", "seconds",
    "spread", "take_turns", "write_json",
]  # fmt: skip
