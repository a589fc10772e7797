import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from promptreid.demo import uploads
from promptreid.demo.uploads import read_upload


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 4, 3), dtype=np.uint8))


@pytest.mark.parametrize(("ending", "kind"), [(".png", "PNG"), (".bmp", "BMP"), (".webp", "WEBP"), (".jpg", "JPEG")])
def test_read_upload_of_each_format_gives_rgb(tmp_path: Path, ending: str, kind: str) -> None:
    path = tmp_path / f"crop{ending}"
    picture().save(path, kind)
    image = read_upload(path)
    assert (image.mode, image.size) == ("RGB", (4, 8))


def test_read_upload_named_wrongly_goes_by_content(tmp_path: Path) -> None:
    path = tmp_path / "crop.jpg"
    picture().save(path, "PNG")
    assert read_upload(path).size == (4, 8)


def test_read_upload_turned_by_exif_stands_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter
    picture().save(tmp_path / "crop.jpg", exif=exif)
    assert read_upload(tmp_path / "crop.jpg").size == (8, 4)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "I;16"])
def test_read_upload_of_any_mode_gives_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("crop.jpg" if mode == "CMYK" else "crop.png")
    Image.new(mode, (4, 8)).save(path)
    assert read_upload(path).mode == "RGB"


def test_read_upload_larger_than_needed_is_shrunk(tmp_path: Path) -> None:
    Image.new("RGB", (600, 3000)).save(tmp_path / "crop.png")
    assert read_upload(tmp_path / "crop.png").size == (205, 1024)  # 600 / 3000 * 1024 = 204.8


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PPM", "EPS", "ICO", "PDF"])
def test_read_upload_of_another_format_is_refused_whatever_its_name(tmp_path: Path, kind: str) -> None:
    picture().save(tmp_path / "crop.png", kind)
    with pytest.raises(ValueError, match="no readable picture; upload a JPEG, PNG, WebP or BMP"):
        read_upload(tmp_path / "crop.png")


@pytest.mark.parametrize("content", [b"", b"<svg onload='alert(1)'/>", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0" * 9])
def test_read_upload_of_rubbish_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "crop.png").write_bytes(content)
    with pytest.raises(ValueError, match="no readable picture"):
        read_upload(tmp_path / "crop.png")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_read_upload_cut_short_is_refused(tmp_path: Path, kind: str) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8))
    image.save(tmp_path / "whole", kind)
    content = (tmp_path / "whole").read_bytes()
    (tmp_path / "half").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="no readable picture"):
        read_upload(tmp_path / "half")


def test_read_upload_of_a_large_file_is_refused_before_it_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "MAX_BYTES", 2**20)
    (tmp_path / "crop.png").write_bytes(bytes(3 * 2**19))
    with pytest.raises(ValueError, match=r"has 1\.5 MB, at most 1 MB"):
        read_upload(tmp_path / "crop.png")


@pytest.mark.parametrize(("width", "height"), [(5001, 5000), (10_000, 10_000), (60_000, 60_000)])
def test_read_upload_with_too_many_pixels_is_refused_from_the_header(tmp_path: Path, width: int, height: int) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(bomb)
    with pytest.raises(ValueError, match=r"too large|at most 25,000,000 are taken"):
        read_upload(tmp_path / "bomb.png")
