"""Cameras: what each does to the image of a person."""

from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from promptreid.synthetic.doll import draw_web_person
from promptreid.synthetic.figure import draw_figure
from promptreid.synthetic.pen import Colour, shade, tint
from promptreid.synthetic.scenes import Scene

_STREET_WIDTH = 900


@dataclass(frozen=True)
class Camera:
    """One camera; its name is the sub-folder that CUHK-PEDES keeps its images in.

    `size` is (height, width), `views` are the sides of people that it sees, `cast` and `contrast` are factors (a
    channel; around mid-grey), `blur` is a radius in pixels, `light` the lowest and highest brightness, `quality` the
    JPEG's, and `sharp` says whether glasses and the kind of shoes can be made out.
    """

    name: str
    size: tuple[int, int]
    views: tuple[str, ...]
    wall: Colour
    floor: Colour
    cast: tuple[float, float, float]
    blur: float
    contrast: float
    light: tuple[float, float]
    quality: int
    sharp: bool


CAMERAS = (
    Camera("cam_a", (128, 56), ("front", "side"), (120, 130, 140), (90, 90, 84), (0.92, 0.98, 1.08), 0.5, 0.85,
           (0.8, 1.15), 60, True),
    Camera("cam_b", (112, 48), ("back", "side"), (150, 140, 120), (110, 104, 96), (1.08, 1.0, 0.88), 0.7, 0.8,
           (0.75, 1.2), 50, False),
    Camera("CUHK01", (160, 60), ("front", "back"), (90, 110, 90), (130, 130, 124), (0.94, 1.04, 0.94), 0.6, 0.92,
           (0.85, 1.1), 75, True),
    Camera("CUHK03", (144, 64), ("side", "back"), (160, 160, 164), (140, 138, 136), (0.82, 0.84, 0.92), 1.0, 0.75,
           (0.65, 1.0), 50, False),
    Camera("Market", (128, 64), ("front", "side", "back"), (70, 76, 84), (120, 112, 100), (1.03, 0.96, 0.9), 0.7, 0.85,
           (0.8, 1.3), 55, True),
)  # fmt: skip


def photograph(random: np.random.Generator, scene: Scene, camera: Camera, *, gap: float = 1.0) -> bytes:
    """A JPEG of `scene` as `camera` takes it; `gap` is the strength of everything that the camera does to it."""
    height, width = camera.size
    if scene.style == "web":
        plain = (225, 225, 225)
        image = Image.new("RGB", (2 * width, 2 * height), tint(random, plain, 30))
        draw_web_person(random, image, scene.person, scene.view, loose=False)
    else:
        image = _street(random, scene, camera)
    return _develop(random, image.reduce(2), camera, gap)


def _street(random: np.random.Generator, scene: Scene, camera: Camera) -> Image.Image:
    """The person before a piece of the camera's street, at twice the size for smooth edges."""
    height, width = 2 * camera.size[0], 2 * camera.size[1]
    left = int(random.integers(_STREET_WIDTH - width))
    image = panorama(camera).crop((left, 0, left + width, height))
    foot = (width * float(random.uniform(0.43, 0.57)), height * float(random.uniform(0.945, 0.985)))
    tall = height * float(random.uniform(0.86, 0.93))
    draw_figure(image, scene.person, view=scene.view, facing=scene.facing, phase=scene.phase, foot=foot, tall=tall)
    _draw_occluder(random, image, scene.occluder)
    return image


@lru_cache
def panorama(camera: Camera) -> Image.Image:
    """The street before a camera, always the same: wall, doors, windows, posters, kerb."""
    random = np.random.default_rng([len(camera.name), *camera.wall])
    height = 2 * camera.size[0]
    image = Image.new("RGB", (_STREET_WIDTH, height), camera.wall)
    canvas, edge = ImageDraw.Draw(image), int(height * 0.72)
    for y in range(0, edge, 18):  # courses of the wall
        canvas.line((0, y, _STREET_WIDTH, y), fill=shade(camera.wall, 0.94), width=2)
    for x in range(0, _STREET_WIDTH, 75):
        left, kind = x + int(random.integers(40)), int(random.integers(4))
        colour = tint(random, (110, 110, 110), 70)
        wide, top = int(random.integers(16, 50)), int(random.integers(height // 8, height // 2))
        bottom = (top + 50, edge, edge, top + 24)[kind]
        canvas.rectangle((left, min(top, bottom - 4), left + wide, bottom), fill=colour, outline=shade(colour, 0.7))
    canvas.rectangle((0, edge, _STREET_WIDTH, height), fill=camera.floor)
    canvas.line((0, edge, _STREET_WIDTH, edge), fill=shade(camera.floor, 0.75), width=5)
    for y in range(edge + 14, height, 22):
        canvas.line((0, y, _STREET_WIDTH, y + 6), fill=shade(camera.floor, 0.93), width=2)
    return image


def _draw_occluder(random: np.random.Generator, image: Image.Image, occluder: str) -> None:
    canvas, (width, height) = ImageDraw.Draw(image), image.size
    low = height * float(random.uniform(0.8, 0.84))  # above every shoe
    if occluder == "bench":
        for offset in (0.0, 0.05, 0.1):
            canvas.rectangle((0, low + height * offset, width, low + height * (offset + 0.035)), fill=(104, 78, 52))
        canvas.rectangle((0, low + height * 0.04, width, height), fill=(70, 58, 46))
    elif occluder == "bush":
        canvas.rectangle((0, low + height * 0.04, width, height), fill=(44, 74, 38))
        for _ in range(26):
            x, y = float(random.uniform(0, width)), low + height * float(random.uniform(0.02, 0.1))
            canvas.ellipse((x - 14, y - 12, x + 14, y + 12), fill=tint(random, (52, 88, 44), 14))
    elif occluder == "post":
        x = width * _post_position(random)
        canvas.rectangle((x - 7, 0, x + 7, height), fill=(92, 94, 98), outline=(66, 68, 72))


def _post_position(random: np.random.Generator) -> float:
    """The position of a post: near one edge, where it hides no whole thing."""
    return float(random.uniform(0.04, 0.14)) if random.random() < 0.5 else float(random.uniform(0.86, 0.96))


def _develop(random: np.random.Generator, image: Image.Image, camera: Camera, gap: float) -> bytes:
    """Light, colour cast, blur, noise and compression; `gap` 0 leaves the image nearly as it was drawn."""
    image = image.filter(ImageFilter.GaussianBlur(camera.blur * gap * float(random.uniform(0.7, 1.3))))
    pixels = np.asarray(image, dtype=np.float32)
    light = 1 + gap * (float(random.uniform(*camera.light)) - 1)
    contrast = max(0.2, 1 + gap * (camera.contrast - 1))
    # One side of the street is often brighter.
    slope = np.linspace(-1, 1, image.width, dtype=np.float32)[None, :, None] * float(random.uniform(-0.12, 0.12)) * gap
    cast = np.asarray(camera.cast, dtype=np.float32) ** gap
    pixels = ((pixels - 128) * contrast + 128) * light * (1 + slope) * cast
    pixels += random.normal(0, 1, pixels.shape).astype(np.float32) * 4 * gap
    stream = BytesIO()
    quality = max(5, round(95 + gap * (camera.quality - 95)))
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=quality)
    return stream.getvalue()
