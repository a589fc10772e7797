"""The basis of all figures: matplotlib without a screen, and files written atomically."""

import io
import re
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from promptreid.errors import missing_extra
from promptreid.files import write_bytes_atomically

# Okabe and Ito's colours, which colour-blind readers tell apart.
GREEN, VERMILION, BLUE, SKY, ORANGE, GREY = "#009E73", "#D55E00", "#0072B2", "#56B4E9", "#E69F00", "#666666"

_INK = "#010203"  # stands for the colour of a page's text
_NO_GLYPH = re.compile(r"Glyph (\d+) .*missing from (?:font\(s\) (.*)|current font)\.")  # matplotlib 3.8 names none


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


def figure_as_svg(draw: Callable[[Any], None], width_inches: float, height_inches: float) -> str:
    """An SVG element for a page, whose text and axes have the colour of the page's text.

    Args:
        draw: Draws into the figure that it is given.
        width_inches: Natural width; a page may scale it.
        height_inches: Height.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = new_figure(width_inches, height_inches)
    from matplotlib import rc_context

    inked = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    stream = io.StringIO()
    with rc_context({**dict.fromkeys(inked, _INK), "svg.hashsalt": "promptreid"}):
        draw(figure)
        with _taken_literally(figure), _missing_letters_told_once():
            figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    return text[text.index("<svg") :].replace(_INK, "currentColor")


def save_figure(figure: Any, path: str | Path, *, mode: int = 0o644) -> Path:
    """Write a figure as PNG, whole or not at all; dollar signs in its texts enclose no formula, but in tick labels."""
    stream = io.BytesIO()
    with _taken_literally(figure), _missing_letters_told_once():
        figure.savefig(stream, format="png")
    write_bytes_atomically(Path(path), stream.getvalue(), mode=mode)
    return Path(path)


@contextmanager
def _taken_literally(figure: Any) -> Generator[None, None, None]:
    """Escape dollar signs in all texts inside the block: in a sentence or a name they do not enclose a formula.

    Tick labels are made while the figure is drawn and stay as they are: a logarithmic axis writes formulas of its own.
    """
    from matplotlib.text import Text

    before = {text: text.get_text() for text in figure.findobj(Text)}
    try:
        for text, content in before.items():
            # Not `parse_math=False`, which matplotlib 3.11 does not heed where it wraps a text.
            text.set_text(content.replace("$", r"\$"))
        yield
    finally:
        for text, content in before.items():
            text.set_text(content)


@contextmanager
def _missing_letters_told_once() -> Generator[None, None, None]:
    """Give one warning for all letters that the font lacks, of which matplotlib warns one by one."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    letters: dict[str, str | None] = {}
    for each in caught:
        if found := _NO_GLYPH.match(str(each.message)):
            letters[chr(int(found[1]))] = found[2]
        else:
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
    if letters:
        font = next(iter(letters.values()))
        named = f", {font}," if font else ""
        more = " and others" if len(letters) > 8 else ""
        warnings.warn(
            f"the font of the figure{named} does not have {', '.join(list(letters)[:8])}{more}, and draws boxes; "
            'add one that does: matplotlib.rcParams["font.family"] = ["DejaVu Sans", "Noto Sans CJK SC"], or a file '
            "matplotlibrc in the working folder with the line font.family: DejaVu Sans, Noto Sans CJK SC",
            stacklevel=5,
        )
