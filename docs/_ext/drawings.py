"""Draws the figures of the concepts page, each for a light and for a dark page."""

from dataclasses import dataclass
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from sphinx.application import Sphinx


@dataclass(frozen=True)
class Palette:
    """Colours of one page background. What trains is labelled in words too, so no meaning depends on a colour."""

    page: str
    ink: str
    frozen: str
    trains: str
    paper: str


PALETTES = {
    "light": Palette(page="#ffffff", ink="#1f2328", frozen="#dfe6ee", trains="#ffd9a0", paper="#f6f8fa"),
    "dark": Palette(page="#131416", ink="#e6e6e6", frozen="#36424f", trains="#8a5200", paper="#1d2127"),
}


def box(
    axes: Axes, at: tuple[float, float, float, float], text: str, colour: str, ink: str, *, size: float = 9
) -> None:
    """A rounded box at (x, y, width, height) with centred text; its edge has the text's colour."""
    x, y, width, height = at
    style = "round,pad=0,rounding_size=0.08"
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, fc=colour, ec=ink, lw=1.0))
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", color=ink, fontsize=size)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], ink: str) -> None:
    """A thin arrow."""
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=9, lw=1.0, color=ink))


def blank(axes: Axes, width: float, height: float) -> None:
    """A drawing area without axes."""
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.set_aspect("equal")
    axes.axis("off")


def draw_stage(axes: Axes, p: Palette, *, title: str, prompts_train: bool, losses: list[str]) -> None:
    """One stage: two towers with their prompts, and the losses above."""
    blank(axes, 8, 7.4)
    axes.text(4, 7.1, title, ha="center", va="center", color=p.ink, fontsize=11, weight="bold")
    prompt_colour, tower_colour = (p.trains, p.frozen) if prompts_train else (p.frozen, p.trains)
    prompt_word, tower_word = ("train", "frozen") if prompts_train else ("frozen", "trains")
    for x, tower, shown in ((0.3, "image encoder", "crops"), (4.3, "text encoder", "sentences")):
        box(axes, (x, 1.3, 3.4, 2.9), "", tower_colour, p.ink)
        axes.text(x + 1.7, 3.85, f"{tower}\n({tower_word})", ha="center", va="center", color=p.ink, fontsize=9)
        for row in range(3):
            y = 1.5 + 0.62 * row
            box(axes, (x + 0.2, y, 1.75, 0.45), f"prompts ({prompt_word})", prompt_colour, p.ink, size=7)
            axes.text(
                x + 2.7, y + 0.22, f"block {('1', '…', '12')[row]}", ha="center", va="center", color=p.ink, fontsize=8
            )
        arrow(axes, (x + 1.7, 0.75), (x + 1.7, 1.3), p.ink)
        axes.text(x + 1.7, 0.5, shown, ha="center", va="center", color=p.ink, fontsize=9)
        arrow(axes, (x + 1.7, 4.2), (x + 1.7, 5.3), p.ink)
        axes.text(x + 1.85, 4.72, "features", ha="left", va="center", color=p.ink, fontsize=8)
    for index, loss in enumerate(losses):
        box(axes, (0.3, 5.3 + 0.75 * index, 7.4, 0.62), loss, p.paper, p.ink)


def draw_method(p: Palette) -> Figure:
    """Prompt Decoupling: both stages side by side."""
    figure = Figure(figsize=(8.4, 4.1), facecolor=p.page, layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_stage(left, p, title="Stage 1: domain adaptation", prompts_train=True, losses=["contrastive loss"])
    draw_stage(
        right,
        p,
        title="Stage 2: task adaptation",
        prompts_train=False,
        losses=["contrastive loss", "cross-modal identity loss (one classifier for both, trains)"],
    )
    return figure


ROWS = (
    ("text, causal (CLIP)", ["start", "P₁ … P₄", "a", "woman", "in", "red", "end", "pad …"], 1),
    ("image, with a class token (CLIP)", ["class", "P₁ … P₄", "patch 1", "patch 2", "…", "patch 192"], 1),
    ("image, without one (SigLIP)", ["P₁ … P₄", "patch 1", "patch 2", "…", "patch 192", "→ MAP head"], 0),
)


def draw_slots(p: Palette) -> Figure:
    """Where prompts are in the sequence of one block."""
    figure = Figure(figsize=(8.4, 3.9), facecolor=p.page, layout="constrained")
    axes = figure.subplots()
    blank(axes, 16, 7.2)
    for row, (name, tokens, slot) in enumerate(ROWS):
        y = 5.6 - 1.75 * row
        axes.text(0.1, y + 0.95, name, ha="left", va="center", color=p.ink, fontsize=10, weight="bold")
        x = 0.1
        for position, token in enumerate(tokens):
            width = 2.4 if position == slot else 1.75
            if token.startswith("→"):
                axes.text(x, y + 0.31, token, ha="left", va="center", color=p.ink, fontsize=9)
                continue
            box(axes, (x, y, width, 0.62), token, p.trains if position == slot else p.frozen, p.ink)
            x += width + 0.15
    y = 0.2
    axes.text(
        0.1,
        y + 1.0,
        "image, no token sequence (ConvNeXt, ResNet, Swin)",
        ha="left",
        va="center",
        color=p.ink,
        fontsize=10,
        weight="bold",
    )
    box(axes, (0.1, y - 0.1, 2.4, 0.8), "", p.trains, p.ink)
    box(axes, (0.45, y + 0.1, 1.7, 0.4), "crop", p.frozen, p.ink)
    axes.text(
        2.8, y + 0.3, "learnable pixels around the border of the input", ha="left", va="center", color=p.ink, fontsize=9
    )
    return figure


FIGURES = {"method": draw_method, "slots": draw_slots}


def draw_all(folder: Path) -> list[Path]:
    """Write every figure as SVG for both backgrounds, with the same bytes each time."""
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    with rc_context({"svg.hashsalt": "promptreid", "svg.fonttype": "path"}):
        for name, draw in FIGURES.items():
            for page, palette in PALETTES.items():
                path = folder / f"{name}_{page}.svg"
                draw(palette).savefig(path, metadata={"Date": None})
                written.append(path)
    return written


def _draw(app: Sphinx) -> None:
    draw_all(Path(app.srcdir) / "drawn")


def setup(app: Sphinx) -> dict[str, bool]:
    """Draw before Sphinx looks for images."""
    app.connect("builder-inited", _draw)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
