"""Cameras: what each does to the picture of a person."""

from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image, ImageFilter

from promptreid.data.generated.drawing import Figure, draw_figure
from promptreid.data.generated.person import Person

IMAGE_SIZE = (144, 72)  # height, width


@dataclass(frozen=True)
class Camera:
    """One camera; its name is the sub-folder that CUHK-PEDES keeps its pictures in.

    Attributes:
        name: Sub-folder.
        views: Which sides of people it sees.
        background: Colours of wall and floor.
        cast: Factor per colour channel.
        blur: Radius in pixels.
        contrast: Factor around mid-grey.
        quality: Of the JPEG, 1 to 95.
    """

    name: str
    views: tuple[str, ...]
    background: tuple[tuple[int, int, int], tuple[int, int, int]]
    cast: tuple[float, float, float]
    blur: float
    contrast: float
    quality: int


CAMERAS = (
    Camera("cam_a", ("front", "side"), ((120, 130, 140), (90, 90, 84)), (0.92, 0.98, 1.08), 0.6, 0.80, 60),
    Camera("cam_b", ("back", "side"), ((150, 140, 120), (110, 104, 96)), (1.08, 1.0, 0.88), 0.9, 0.75, 50),
    Camera("CUHK01", ("front", "back"), ((90, 110, 90), (130, 130, 124)), (0.94, 1.04, 0.94), 0.5, 0.9, 75),
    Camera("CUHK03", ("side", "back"), ((160, 160, 164), (140, 138, 136)), (0.8, 0.8, 0.86), 1.1, 0.7, 45),
    Camera("Market", ("front", "side"), ((70, 76, 84), (120, 112, 100)), (1.0, 0.94, 0.9), 0.8, 0.85, 55),
)


def photograph(random: np.random.Generator, person: Person, camera: Camera, view: str) -> bytes:
    """A JPEG of `person` as `camera` sees them from `view`."""
    height, width = IMAGE_SIZE
    wall, floor = camera.background
    image = Image.new("RGB", (width, height), wall)
    edge = int(height * random.uniform(0.6, 0.8))
    image.paste(floor, (0, edge, width, height))
    for _ in range(int(random.integers(0, 3))):  # posts, doors, signs behind the person
        left, top = int(random.integers(-10, width)), int(random.integers(0, height // 2))
        shade = tuple(int(value) for value in random.integers(50, 200, 3))
        image.paste(shade, (left, top, left + int(random.integers(6, 26)), edge))
    tall = height * random.uniform(0.82, 0.94)
    figure = Figure(
        centre=width * random.uniform(0.44, 0.56),
        top=(height - tall) * random.uniform(0.2, 0.8),
        height=tall,
        view=view,
        stride=random.uniform(-1, 1),
    )
    draw_figure(image, person, figure)
    return _develop(random, image, camera)


def _develop(random: np.random.Generator, image: Image.Image, camera: Camera) -> bytes:
    image = image.filter(ImageFilter.GaussianBlur(camera.blur * random.uniform(0.7, 1.3)))
    pixels = np.asarray(image, dtype=np.float32)
    light = random.uniform(0.75, 1.15)
    pixels = (pixels - 128) * camera.contrast * light + 128 * light
    pixels = pixels * np.asarray(camera.cast, dtype=np.float32)
    pixels += random.normal(0, 5, pixels.shape).astype(np.float32)
    stream = BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=camera.quality)
    return stream.getvalue()
