"""Draws the figures of the concepts and the prompts page, each for a light and for a dark page."""

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


def draw_block(axes: Axes, p: Palette, at: tuple[float, float], name: str, prompts: str, colour: str) -> None:
    """One block with its prompts on the left, at (x, y), four wide; no prompts if the word is empty."""
    x, y = at
    box(axes, (x, y, 4.0, 0.9), "", p.paper, p.ink)
    if prompts:
        box(axes, (x + 0.12, y + 0.18, 1.35, 0.54), prompts, colour, p.ink, size=7)
    axes.text(x + 2.75, y + 0.45, name, ha="center", va="center", color=p.ink, fontsize=8)


BLOCK_HEIGHTS = (0.5, 2.1, 3.7)


def draw_form(axes: Axes, p: Palette, title: str, setting: str) -> None:
    """What every panel has: a title, how it is set, and the arrows of the tokens through three blocks."""
    blank(axes, 7.2, 6.5)
    axes.text(3.6, 6.25, title, ha="center", va="center", color=p.ink, fontsize=10, weight="bold")
    axes.text(3.6, 5.65, setting, ha="center", va="center", color=p.ink, fontsize=7, family="monospace")
    for y in (0.05, *(bottom + 0.9 for bottom in BLOCK_HEIGHTS)):
        arrow(axes, (5.5, y), (5.5, y + 0.65 if y > 0.1 else 0.5), p.ink)


def draw_replaced(axes: Axes, p: Palette) -> None:
    """Every block has its own prompts; its output for them is dropped."""
    draw_form(axes, p, "independent: replaced (VPT-deep, IVLP)", "the default")
    for number, y in enumerate(BLOCK_HEIGHTS, start=1):
        draw_block(axes, p, (2.6, y), f"block {number}", f"P{number}", p.trains)
        axes.text(3.4, y + 1.15, "×", ha="center", va="center", color=p.ink, fontsize=11)


def draw_kept(axes: Axes, p: Palette) -> None:
    """The first block has prompts; each block's output for them is passed on."""
    draw_form(axes, p, "kept (VPT-shallow)", "text_depth=1, vision_depth=1")
    for number, y in enumerate(BLOCK_HEIGHTS, start=1):
        first = number == 1
        draw_block(axes, p, (2.6, y), f"block {number}", "P1" if first else "kept", p.trains if first else p.frozen)
        if number < len(BLOCK_HEIGHTS):
            arrow(axes, (3.4, y + 0.9), (3.4, y + 1.6), p.ink)


def draw_coupled(axes: Axes, p: Palette) -> None:
    """The image prompts of a block are a linear map of its text prompts."""
    draw_form(axes, p, "coupled (MaPLe)", 'kind="coupled"')
    for number, y in enumerate(BLOCK_HEIGHTS, start=1):
        draw_block(axes, p, (2.6, y), f"block {number}", f"F{number}(P{number})", p.trains)
        box(axes, (0.1, y + 0.18, 1.35, 0.54), f"text P{number}", p.trains, p.ink, size=7)
        arrow(axes, (1.45, y + 0.45), (2.72, y + 0.45), p.ink)


def draw_prefix(axes: Axes, p: Palette) -> None:
    """Keys and values enter the attention of a block, and nothing else of it."""
    draw_form(axes, p, "prefix (prefix tuning)", 'kind="prefix"')
    for number, y in enumerate(BLOCK_HEIGHTS, start=1):
        draw_block(axes, p, (2.6, y), "", "", p.paper)
        box(axes, (2.75, y + 0.18, 1.6, 0.54), "attention", p.frozen, p.ink, size=7)
        box(axes, (4.75, y + 0.18, 1.6, 0.54), "MLP", p.frozen, p.ink, size=7)
        box(axes, (0.1, y + 0.18, 1.75, 0.54), f"K{number}, V{number}", p.trains, p.ink, size=7)
        arrow(axes, (1.85, y + 0.45), (2.75, y + 0.45), p.ink)


def draw_grouped(axes: Axes, p: Palette) -> None:
    """Each image has its camera's prompts, one of no known camera their mean."""
    draw_form(axes, p, "grouped (by camera)", 'kind="grouped", groups=(…)')
    for number, y in enumerate(BLOCK_HEIGHTS, start=1):
        draw_block(axes, p, (2.6, y), f"block {number}", f"P{number}[c]", p.trains)
    for index, name in enumerate(("camera a", "camera b", "mean")):
        y = 3.9 - 1.0 * index
        box(axes, (0.1, y, 1.75, 0.54), name, p.trains if index < 2 else p.frozen, p.ink, size=7)
        arrow(axes, (1.85, y + 0.27), (2.6, 2.55), p.ink)


def draw_border(axes: Axes, p: Palette) -> None:
    """A tower without tokens has learnable pixels around its input."""
    blank(axes, 7.2, 6.5)
    axes.text(3.6, 6.25, "border (visual prompting)", ha="center", va="center", color=p.ink, fontsize=10, weight="bold")
    words = "independent, towers without tokens"
    axes.text(3.6, 5.65, words, ha="center", va="center", color=p.ink, fontsize=7, family="monospace")
    box(axes, (2.1, 0.6, 3.0, 4.4), "", p.trains, p.ink)
    box(axes, (2.5, 1.0, 2.2, 3.6), "crop", p.frozen, p.ink)


FORMS = (draw_replaced, draw_kept, draw_coupled, draw_prefix, draw_grouped, draw_border)


def draw_forms(p: Palette) -> Figure:
    """The forms of prompts side by side."""
    figure = Figure(figsize=(8.4, 5.4), facecolor=p.page, layout="constrained")
    for axes, draw in zip(figure.subplots(2, 3).flat, FORMS, strict=True):
        draw(axes, p)
    return figure


FIGURES = {"method": draw_method, "slots": draw_slots, "forms": draw_forms}


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
