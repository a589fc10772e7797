"""Draws formulas as SVG while the pages are built, so that a reader needs no network and no script."""

import html
import io
import re

from docutils import nodes
from matplotlib import rc_context
from matplotlib.font_manager import FontProperties
from matplotlib.mathtext import math_to_image
from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata
from sphinx.writers.html5 import HTML5Translator

FONT_POINTS = 12


def formula(tex: str) -> str:
    """A formula as an SVG element in the colour of the text around it, with its source as alternative text.

    Raises:
        ValueError: matplotlib's mathtext cannot read the formula.
    """
    buffer = io.StringIO()
    settings = {"svg.hashsalt": "promptreid", "svg.fonttype": "path", "savefig.facecolor": "none"}
    with rc_context({**settings, "mathtext.fontset": "cm"}):
        font = FontProperties(size=FONT_POINTS)
        depth = math_to_image(f"${tex}$", buffer, prop=font, dpi=72, format="svg", color="#010203")
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    # Ids are of the whole page, and two formulas may use the same glyphs.
    mark = f"m{hash_of(tex)}-"
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{mark}", svg).replace("#010203", "currentColor")
    label = html.escape(tex, quote=True)
    attributes = f'role="img" aria-label="{label}" style="vertical-align: {-depth / FONT_POINTS:.3f}em"'
    svg = re.sub(r'(width|height)="([\d.]+)pt"', lambda m: f'{m[1]}="{float(m[2]) / FONT_POINTS:.3f}em"', svg, count=2)
    return svg.replace("<svg ", f"<svg {attributes} ", 1)


def hash_of(tex: str) -> int:
    """The same number for the same formula on every machine."""
    return int.from_bytes(tex.encode(), "big") % 1_000_000_007


def _visit_inline(self: HTML5Translator, node: nodes.math) -> None:
    self.body.append(f'<span class="math">{formula(node.astext())}</span>')
    raise nodes.SkipNode


def _visit_block(self: HTML5Translator, node: nodes.math_block) -> None:
    self.body.append(f'<div class="math">{formula(" ".join(node.astext().split()))}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> ExtensionMetadata:
    """Offer the renderer; `html_math_renderer = "drawn"` chooses it."""
    app.add_html_math_renderer("drawn", (_visit_inline, None), (_visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
