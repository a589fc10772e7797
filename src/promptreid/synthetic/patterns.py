"""Stripes, checks and dots."""

import numpy as np
from PIL import ImageDraw

from promptreid.synthetic.palette import Colour

Box = tuple[float, float, float, float]


def fill_pattern(canvas: ImageDraw.ImageDraw, box: Box, pattern: str, colour: Colour, *, pitch: float) -> None:
    """Draw stripes, checks or dots, one every `pitch` pixels, into `box`."""
    left, top, right, bottom = box
    line = max(1, round(pitch * 0.4))
    if pattern in ("striped", "checked"):
        for y in np.arange(top + pitch * 0.5, bottom - line / 2, pitch):
            canvas.line((left, float(y), right, float(y)), fill=colour, width=line)
    if pattern == "checked":
        for x in np.arange(left + pitch * 0.4, right, pitch):
            canvas.line((float(x), top, float(x), bottom), fill=colour, width=max(1, line // 2))
    if pattern == "dotted":
        radius = pitch * 0.27
        for y in np.arange(top + pitch * 0.4, bottom - radius, pitch):
            for x in np.arange(left + pitch * 0.4, right - radius / 2, pitch):
                dot = (float(x) - radius, float(y) - radius, float(x) + radius, float(y) + radius)
                canvas.ellipse(dot, fill=colour)
