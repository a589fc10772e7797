"""Torch datasets over a split, and the pictures they open."""

import gc
import pickle
import pickletools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo
from torch.utils.data import DataLoader

from promptreid.data.captions import TokenDeletion
from promptreid.data.dataset import CaptionedImages, CaptionsOnly, ImagesOnly
from promptreid.data.image_cache import build_image_cache
from promptreid.data.images import open_image, to_rgb
from promptreid.data.reader import load_cuhk_pedes
from promptreid.data.records import ImageRecord, ReIDSplit
from promptreid.data.samplers import IdentitySampler
from promptreid.data.transforms import EvalTransform, eval_transform, train_transform
from promptreid.errors import DatasetError
from promptreid.losses.cross_modal_id import CrossModalIDLoss

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


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes")  # of a machine with one core
@pytest.mark.parametrize("num_workers", [0, 2])
def test_captioned_images_loader_gives_the_same_with_and_without_workers(
    train: ReIDSplit, tokenizer: Any, num_workers: int
) -> None:
    pairs = CaptionedImages(train, transform=PLAIN, tokenizer=tokenizer)
    loader = DataLoader(pairs, batch_size=4, num_workers=num_workers)
    images = torch.cat([batch["images"] for batch in loader])
    assert torch.equal(images, torch.stack([pairs[index]["images"] for index in range(13)]))


@pytest.mark.parametrize(("dtype", "words"), [("float32", "floating-point numbers"), ("int32", "more than 16 bits")])
def test_captioned_images_pixels_of_unknown_range_are_to_be_converted(
    train: ReIDSplit, tokenizer: Any, dtype: str, words: str
) -> None:
    path = train.records[3].path
    Image.fromarray(np.full((4, 2), 70_000, dtype=dtype)).save(path, format="TIFF")
    pairs = CaptionedImages(train, transform=PLAIN, tokenizer=tokenizer)
    with pytest.raises(
        DatasetError, match=rf"0003\.png .*{words}.*; convert it to 8 or 16 bits per channel, or remove"
    ):
        pairs[7]


def test_captioned_images_broken_picture_is_named(train: ReIDSplit, tokenizer: Any) -> None:
    path = train.records[3].path
    path.write_bytes(path.read_bytes()[:60])
    pairs = CaptionedImages(train, transform=PLAIN, tokenizer=tokenizer)
    with pytest.raises(DatasetError, match=r"cannot read the image .*0003\.png .*copy it again, or take its record"):
        pairs[7]


def test_captioned_images_with_cache_gives_the_same_pixels(train: ReIDSplit, tokenizer: Any, tmp_path: Path) -> None:
    paths = [record.path for record in train.records]
    cache = build_image_cache(paths, tmp_path / "cache", image_size=(20, 10), progress=False)
    transform = train_transform((20, 10), mean=(0.5,) * 3, std=(0.5,) * 3)
    plain = CaptionedImages(train, transform=transform, tokenizer=tokenizer)
    cached = CaptionedImages(train, transform=transform, tokenizer=tokenizer, cache=cache)
    images = ImagesOnly(train, transform=EvalTransform((20, 10), mean=(0,) * 3, std=(1,) * 3), cache=cache)
    for index in range(13):
        torch.manual_seed(index)
        expected = plain[index]
        torch.manual_seed(index)
        found = cached[index]
        assert all(torch.equal(found[key], expected[key]) for key in expected)
    torch.testing.assert_close(images[3] * 255, cache[paths[3]].float())


def test_captioned_images_leaves_out_what_the_cache_found_bad(train: ReIDSplit, tokenizer: Any, tmp_path: Path) -> None:
    train.records[1].path.write_bytes(b"rubbish")
    paths = [record.path for record in train.records]
    with pytest.warns(UserWarning, match="1 of 6 images cannot be used"):
        cache = build_image_cache(paths, tmp_path / "cache", image_size=(16, 8), on_bad="skip", progress=False)
    pairs = CaptionedImages(train, transform=PLAIN, tokenizer=tokenizer, cache=cache)
    assert len(pairs) == 10  # without the three captions of image 1
    # Person 3 still has image 2, so labels stay: 3, 7, 20 are 0, 1, 2.
    assert pairs.pair_person_ids.tolist() == [1, 1, 0, 0, 2, 2, 1, 1, 2, 2]


def test_captioned_images_labels_are_those_of_the_split_if_the_cache_lacks_a_person(
    train: ReIDSplit, tokenizer: Any, tmp_path: Path
) -> None:
    for number in (0, 4):  # all images of person 7
        train.records[number].path.write_bytes(b"rubbish")
    with pytest.warns(UserWarning, match="2 of 6 images cannot be used"):
        cache = build_image_cache(train.paths, tmp_path / "cache", image_size=(16, 8), on_bad="skip", progress=False)
    pairs = CaptionedImages(train, transform=PLAIN, tokenizer=tokenizer, cache=cache)
    assert train.labels == {3: 0, 7: 1, 20: 2}
    assert pairs.person_ids.tolist() == [0, 0, 2, 2]
    # The loss has a row for every person of the split, and the sampler draws those there are.
    loss = CrossModalIDLoss(train.num_identities, 4)
    assert loss(torch.randn(4, 4), torch.randn(4, 4), pairs.person_ids).isfinite()
    for batch in IdentitySampler(pairs.pair_person_ids, identities_per_batch=2, pairs_per_identity=2):
        assert sorted(pairs.pair_person_ids[batch].tolist()) == [0, 0, 2, 2]


def test_captioned_images_cache_of_another_size_raises(train: ReIDSplit, tokenizer: Any, tmp_path: Path) -> None:
    paths = [record.path for record in train.records]
    cache = build_image_cache(paths, tmp_path / "cache", image_size=(8, 8), progress=False)
    with pytest.raises(ValueError, match=r"the cache holds images of \(8, 8\), but the transform makes \(16, 8\)"):
        CaptionedImages(train, transform=PLAIN, tokenizer=tokenizer, cache=cache)


def test_captioned_images_cache_of_other_images_raises(train: ReIDSplit, tokenizer: Any, tmp_path: Path) -> None:
    cache = build_image_cache([train.records[0].path], tmp_path / "cache", image_size=(16, 8), progress=False)
    with pytest.raises(KeyError, match="5 of 6 images are not in the cache"):
        CaptionedImages(train, transform=PLAIN, tokenizer=tokenizer, cache=cache)


def test_captioned_images_empty_split_raises(tokenizer: Any) -> None:
    with pytest.raises(DatasetError, match="the train split has no images"):
        CaptionedImages(ReIDSplit("train", []), transform=PLAIN, tokenizer=tokenizer)
    with pytest.raises(DatasetError, match="the val split has no images"):
        ImagesOnly(ReIDSplit("val", []), transform=PLAIN)


@pytest.fixture
def sided(train: ReIDSplit) -> ReIDSplit:
    """One picture, white on its left, black on its right; one caption with a side, one without."""
    path = train.records[0].path
    pixels = np.zeros((40, 40, 3), dtype=np.uint8)
    pixels[:, :20] = 255
    Image.fromarray(pixels).save(path)
    return ReIDSplit("train", [replace(train.records[0], captions=("bag in left hand", "blue coat"))])


@pytest.mark.parametrize("sides", ["swap", "keep", "ignore"])
def test_captioned_images_mirrored_picture_has_its_caption(sided: ReIDSplit, tokenizer: Any, sides: Any) -> None:
    transform = train_transform((40, 40), mean=(0, 0, 0), std=(1, 1, 1))
    pairs = CaptionedImages(sided, transform=transform, tokenizer=tokenizer, sides=sides)
    assert len(pairs) == 2
    left, right, plain = tokenizer(["bag in left hand", "bag in right hand", "blue coat"])
    seen = set()
    for _ in range(60):
        item = pairs[0]
        mirrored = bool(item["images"][:, :, 34:].sum() > item["images"][:, :, :6].sum())
        seen.add(mirrored)
        assert torch.equal(item["tokens"], right if mirrored and sides == "swap" else left)
        assert torch.equal(pairs[1]["tokens"], plain)
    assert seen == ({False} if sides == "keep" else {False, True})


def test_captioned_images_keep_still_mirrors_captions_without_sides(sided: ReIDSplit, tokenizer: Any) -> None:
    transform = train_transform((40, 40), mean=(0, 0, 0), std=(1, 1, 1))
    pairs = CaptionedImages(sided, transform=transform, tokenizer=tokenizer, sides="keep")
    images = [pairs[1]["images"] for _ in range(60)]
    mirrored = sum(bool(image[:, :, 34:].sum() > image[:, :, :6].sum()) for image in images)
    assert 10 < mirrored < 50


def test_captioned_images_never_mirroring_transform_needs_no_other_captions(sided: ReIDSplit, tokenizer: Any) -> None:
    transform = train_transform((40, 40), mean=(0, 0, 0), std=(1, 1, 1), flip=False)
    assert len(CaptionedImages(sided, transform=transform, tokenizer=tokenizer).tokens) == 2


def test_captioned_images_unknown_sides_raise(train: ReIDSplit, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="sides is 'both', expected 'swap', 'keep' or 'ignore'"):
        CaptionedImages(train, transform=PLAIN, tokenizer=tokenizer, sides="both")  # type: ignore[arg-type]


def test_captioned_images_augmentation_cannot_corrupt_the_stored_caption(train: ReIDSplit, tokenizer: Any) -> None:
    def vandal(tokens: torch.Tensor) -> torch.Tensor:
        return tokens.zero_()  # in place, as the peers' masking code does

    pairs = CaptionedImages(train, transform=PLAIN, tokenizer=tokenizer, augment_tokens=vandal)
    before = pairs.tokens.clone()
    for _ in range(3):
        assert all(not pairs[index]["tokens"].any() for index in range(len(pairs)))
    assert torch.equal(pairs.tokens, before)


def test_captioned_images_augments_anew_each_time(train: ReIDSplit, tokenizer: Any) -> None:
    augment = TokenDeletion(tokenizer, probability=0.5)
    pairs = CaptionedImages(train, transform=PLAIN, tokenizer=tokenizer, augment_tokens=augment)
    assert len({tuple(pairs[0]["tokens"].tolist()) for _ in range(30)}) > 3


def test_captioned_images_index_out_of_range_raises(train: ReIDSplit, tokenizer: Any) -> None:
    pairs = CaptionedImages(train, transform=PLAIN, tokenizer=tokenizer)
    assert torch.equal(pairs[-1]["tokens"], pairs[12]["tokens"])
    with pytest.raises(IndexError):
        pairs[13]


def test_captioned_images_pickled_to_a_worker_holds_no_records(train: ReIDSplit, tokenizer: Any) -> None:
    records = [replace(train.records[0], captions=("a man in a coat",) * 2) for _ in range(5000)]
    pairs = CaptionedImages(ReIDSplit("train", records), transform=PLAIN, tokenizer=tokenizer)
    assert not any(isinstance(found, ImageRecord | Path) for found in gc.get_referents(pairs.__dict__))
    objects = pickletools.genops(pickle.dumps(pairs))
    assert sum(1 for _ in objects) < 2000  # a few tensors, whatever the number of records


@pytest.mark.parametrize(
    "context", [pytest.param("fork", marks=pytest.mark.posix), pytest.param("spawn", marks=pytest.mark.slow)]
)
def test_captioned_images_broken_picture_stops_an_epoch_with_workers(
    train: ReIDSplit, context: str, tmp_path: Path
) -> None:
    train.records[3].path.write_bytes(b"")
    tokenizer = open_clip.get_tokenizer("ViT-B-16")
    pairs = CaptionedImages(train, transform=PLAIN, tokenizer=tokenizer, token_cache=tmp_path)
    loader = DataLoader(pairs, batch_size=4, num_workers=1, multiprocessing_context=context, timeout=60)
    with pytest.raises(DatasetError, match=r"cannot read the image .*0003\.png"):
        list(loader)


def test_open_image_palette_alpha_grey_and_cmyk_become_rgb(tmp_path: Path) -> None:
    for mode, ending in (("P", "png"), ("RGBA", "png"), ("L", "png"), ("CMYK", "jpg"), ("1", "png")):
        path = tmp_path / f"{mode}.{ending}"
        Image.new("RGB", (8, 16), (255, 255, 255)).convert(mode).save(path)
        image = open_image(path)
        assert (image.mode, image.size) == ("RGB", (8, 16))
        assert image.getpixel((3, 3)) == (255, 255, 255)


@pytest.mark.parametrize("ending", ["tif", "png", "jpg"])
@pytest.mark.parametrize("orientation", range(10))
def test_image_is_turned_as_pillow_does(tmp_path: Path, orientation: int, ending: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 4, 3), dtype=np.uint8))
    image.save(tmp_path / f"turned.{ending}", exif=exif)
    with Image.open(tmp_path / f"turned.{ending}") as opened:
        expected = ImageOps.exif_transpose(opened)
        assert to_rgb(opened).tobytes() == expected.tobytes()
    turned = open_image(tmp_path / f"turned.{ending}")
    assert (turned.size, turned.tobytes()) == (expected.size, expected.tobytes())
    assert to_rgb(turned).tobytes() == expected.tobytes()  # as what a gallery encodes: turned once, not twice


XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'


@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
def test_image_with_its_orientation_in_xmp_is_turned_once(tmp_path: Path, ending: str) -> None:
    metadata = PngInfo()
    metadata.add_itxt("XML:com.adobe.xmp", XMP)
    more = {"pnginfo": metadata} if ending == "png" else {"xmp": XMP.encode()}
    Image.new("RGB", (6, 4)).save(tmp_path / f"turned.{ending}", **more)
    turned = open_image(tmp_path / f"turned.{ending}")
    assert turned.size == to_rgb(turned).size == (4, 6)


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
