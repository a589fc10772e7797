"""Torch data sets over a split, and the pictures they open."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from promptreid.data.cuhk_pedes import load_cuhk_pedes
from promptreid.data.dataset import CaptionedImages, CaptionsOnly, ImagesOnly, open_image
from promptreid.data.records import ReIDSplit
from promptreid.data.transforms import eval_transform
from promptreid.errors import DatasetError

PLAIN = eval_transform((16, 8), mean=(0, 0, 0), std=(1, 1, 1))


@pytest.fixture
def train(write_cuhk: Callable[[Any], Path], entries: list[dict]) -> ReIDSplit:
    """Images 0 to 5 of persons 7, 3, 3, 20, 7, 20, two captions each but three for image 1."""
    entries[1]["captions"].append("a third sentence")
    return load_cuhk_pedes(write_cuhk(entries)).train


def test_captioned_images_has_every_pair_in_order(train: ReIDSplit, tokenizer: Any) -> None:
    pairs = CaptionedImages(train, transform=PLAIN, tokenizer=tokenizer)
    assert len(pairs) == 13
    # Labels of 3, 7, 20 are 0, 1, 2; image 1 has three captions.
    assert [int(pairs[index]["person_ids"]) for index in range(13)] == [1, 1, 0, 0, 0, 0, 0, 2, 2, 1, 1, 2, 2]
    captions = [caption for record in train.records for caption in record.captions]
    assert torch.equal(torch.stack([pairs[index]["tokens"] for index in range(13)]), tokenizer(captions))


def test_captioned_images_item_is_the_picture_on_disk(train: ReIDSplit, tokenizer: Any) -> None:
    item = CaptionedImages(train, transform=PLAIN, tokenizer=tokenizer)[4]
    pixels = np.asarray(Image.open(train.records[1].path), dtype=np.float32) / 255
    torch.testing.assert_close(torch.as_tensor(item["images"]), torch.from_numpy(pixels).permute(2, 0, 1))
    assert (item["images"].dtype, item["tokens"].dtype, item["person_ids"].dtype) == (
        torch.float32,
        torch.int64,
        torch.int64,
    )


def test_captioned_images_tokenises_once(train: ReIDSplit, tokenizer: Any) -> None:
    calls: list[int] = []

    def counted(captions: list[str]) -> torch.Tensor:
        calls.append(len(captions))
        return tokenizer(captions)

    pairs = CaptionedImages(train, transform=PLAIN, tokenizer=counted)
    before = len(calls)
    for _ in range(2):
        for index in range(len(pairs)):
            pairs[index]
    assert len(calls) == before


def test_images_only_has_every_image_once_with_the_annotations_numbers(train: ReIDSplit) -> None:
    images = ImagesOnly(train, transform=PLAIN)
    assert len(images) == 6
    assert images.person_ids.tolist() == [7, 3, 3, 20, 7, 20]
    assert torch.equal(images[2], PLAIN(Image.open(train.records[2].path)))


def test_captions_only_has_every_caption_once_with_the_annotations_numbers(train: ReIDSplit, tokenizer: Any) -> None:
    captions = CaptionsOnly(train, tokenizer=tokenizer)
    assert captions.person_ids.tolist() == [7, 7, 3, 3, 3, 3, 3, 20, 20, 7, 7, 20, 20]
    assert captions.captions[4] == "a third sentence"
    assert torch.equal(captions[4], tokenizer(["a third sentence"])[0])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_captioned_images_loader_gives_the_same_with_and_without_workers(
    train: ReIDSplit, tokenizer: Any, num_workers: int
) -> None:
    pairs = CaptionedImages(train, transform=PLAIN, tokenizer=tokenizer)
    loader = DataLoader(pairs, batch_size=4, num_workers=num_workers)
    images = torch.cat([batch["images"] for batch in loader])
    assert torch.equal(images, torch.stack([pairs[index]["images"] for index in range(13)]))


def test_captioned_images_broken_picture_is_named(train: ReIDSplit, tokenizer: Any) -> None:
    path = train.records[3].path
    path.write_bytes(path.read_bytes()[:60])
    pairs = CaptionedImages(train, transform=PLAIN, tokenizer=tokenizer)
    with pytest.raises(DatasetError, match=r"cannot read the image .*0003\.png .*copy it again, or take its record"):
        pairs[7]


def test_open_image_palette_alpha_grey_and_cmyk_become_rgb(tmp_path: Path) -> None:
    for mode, ending in (("P", "png"), ("RGBA", "png"), ("L", "png"), ("CMYK", "jpg"), ("1", "png")):
        path = tmp_path / f"{mode}.{ending}"
        Image.new("RGB", (8, 16), (255, 255, 255)).convert(mode).save(path)
        image = open_image(path)
        assert (image.mode, image.size) == ("RGB", (8, 16))
        assert image.getpixel((3, 3)) == (255, 255, 255)


def test_open_image_exif_rotation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate 90 degrees clockwise to see it upright"
    image = Image.new("RGB", (8, 4), (0, 0, 0))
    image.putpixel((0, 0), (255, 0, 0))
    image.save(tmp_path / "turned.png", exif=exif)
    turned = open_image(tmp_path / "turned.png")
    assert turned.size == (4, 8)
    # Turned clockwise, the upper left pixel comes to the upper right.
    assert turned.getpixel((3, 0)) == (255, 0, 0)


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0\x00\x10JFIF"])
def test_open_image_no_picture_raises(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.jpg").write_bytes(content)
    with pytest.raises(DatasetError, match=r"cannot read the image .*bad\.jpg"):
        open_image(tmp_path / "bad.jpg")


def test_open_image_missing_file_raises(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"cannot read the image .*gone\.jpg"):
        open_image(tmp_path / "gone.jpg")
