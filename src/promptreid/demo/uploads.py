"""Takes a picture from a stranger: small files of four formats, checked before they are decoded."""

from pathlib import Path

from PIL import Image, ImageOps

MAX_BYTES = 10 * 2**20
MAX_PIXELS = 25_000_000
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_KEPT_SIDE = 1024


def read_upload(path: str | Path) -> Image.Image:
    """Decode an uploaded picture.

    Only the four formats' own decoders are ever tried, whatever the file is called, and the size is read from the
    header before any pixel is.

    Args:
        path: Where the upload was put.

    Returns:
        The picture as RGB, turned as its EXIF data says, at most 1,024 pixels a side.

    Raises:
        ValueError: The file is too large, of another format, has too many pixels, or is broken.
    """
    size = Path(path).stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"the picture has {size / 2**20:.1f} MB, at most {MAX_BYTES // 2**20} MB are taken; shrink it")
    try:
        with Image.open(path, formats=FORMATS) as image:
            _check_pixels(image)
            upright = ImageOps.exif_transpose(image).convert("RGB")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"the picture is too large: {error}") from error
    except (OSError, SyntaxError) as error:
        raise ValueError("this file is no readable picture; upload a JPEG, PNG, WebP or BMP file") from error
    upright.thumbnail((_KEPT_SIDE, _KEPT_SIDE))
    return upright


def _check_pixels(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"the picture is {width} x {height} pixels, at most {MAX_PIXELS:,} are taken; cut the person out of it"
        )
