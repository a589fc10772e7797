"""Time of the paper's recipe on one GPU: measured if possible, otherwise by arithmetic; it says which.

python benchmarks/paper/paper_cost.py
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from paper_shared import RESULTS, made_with, make_parser, report
from promptreid import Stage

MEASURED = RESULTS / "full_size_epoch.json"
ASSUMED_TERAFLOPS = 100.0  # what a GPU of the A100's class may sustain in bf16; assumed, not measured
WORDS = 40  # tokens of a caption of usual length, with prompts


@dataclass(frozen=True)
class Cost:
    """Seconds a pair in training and in evaluation.

    Attributes:
        frozen: A pair in a stage whose encoders are frozen: no gradients of weights.
        trained: A pair in a stage whose encoders train.
        encoded: An image and its captions in evaluation.
        source: Where the numbers are from.
    """

    frozen: float
    trained: float
    encoded: float
    source: str

    def seconds(self, stages: Sequence[Stage], pairs: int, *, images: int) -> float:
        """Of a run: its stages' epochs over `pairs`, each with a look at the validation split, and one at the test's.

        Args:
            stages: The stages.
            pairs: Of the training split.
            images: Of the validation and of the test split.
        """
        training = sum(stage.epochs * pairs * self._a_pair(stage) for stage in stages)
        return training + self.encoded * images * (1 + sum(stage.epochs for stage in stages))

    def _a_pair(self, stage: Stage) -> float:
        return self.trained if "encoders" in stage.trains else self.frozen


def forward_flops(width: int, tokens: int, *, blocks: int = 12) -> float:
    """Floating-point operations of a transformer's forward pass for one sequence.

    Per token and block 24 · width² for the matrices (a multiplication and an addition each) and 4 · tokens · width for
    attention.

    Example:
        >>> round(forward_flops(768, 197) / 1e9, 1)  # ViT-B/16 at 384 × 128 with four prompts
        34.9
    """
    return blocks * tokens * (24 * width**2 + 4 * tokens * width)


def assumed_cost() -> Cost:
    """ViT-B/16 at 384 × 128 by arithmetic: training costs three forward passes, with frozen encoders two."""
    forward = (forward_flops(768, 197) + forward_flops(512, WORDS)) / (ASSUMED_TERAFLOPS * 1e12)
    source = (
        f"arithmetic for ViT-B/16 at 384 × 128 on a GPU that sustains {ASSUMED_TERAFLOPS:.0f} TFLOP/s; not measured, "
        "`python benchmarks/full_size_epoch.py` measures it"
    )
    return Cost(2 * forward, 3 * forward, forward, source)


def known_cost(path: Path = MEASURED) -> Cost:
    """What `full_size_epoch.py` measured on a GPU, or else the arithmetic."""
    if not path.is_file():
        return assumed_cost()
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    pairs, seconds = found["pairs"], found["seconds"]
    source = f"measured on {found['device']}, {found['date']} (`python benchmarks/full_size_epoch.py`)"
    return Cost(
        seconds["stage_one"] / pairs,
        seconds["stage_two"] / pairs,
        seconds["evaluation"] / found["test_pictures"],
        source,
    )


def main() -> None:
    """Print the seconds a pair; write them where asked."""
    arguments = make_parser(__doc__, output=None).parse_args()
    report({"seconds_a_pair": asdict(known_cost())} | made_with(), arguments.output)


if __name__ == "__main__":
    main()
