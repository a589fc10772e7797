"""What all figures have in common: matplotlib without a screen, and files written whole."""

import io
from pathlib import Path
from typing import Any

from promptreid.errors import missing_extra
from promptreid.files import write_bytes_atomically

# Okabe and Ito's colours, which colour-blind readers tell apart.
GREEN, VERMILION, BLUE, SKY, ORANGE, GREY = "#009E73", "#D55E00", "#0072B2", "#56B4E9", "#E69F00", "#666666"


def new_figure(width_inches: float, height_inches: float) -> Any:
    """An empty figure of 150 dots per inch.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_extra("drawing", "matplotlib", "viz") from error
    return Figure(figsize=(width_inches, height_inches), dpi=150, layout="constrained")


def save_figure(figure: Any, path: str | Path, *, mode: int = 0o644) -> Path:
    """Write a figure as PNG, whole or not at all."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    write_bytes_atomically(Path(path), stream.getvalue(), mode=mode)
    return Path(path)
