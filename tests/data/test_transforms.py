"""Transforms for training and evaluation, at any size."""

import numpy as np
import pytest
import torch
from PIL import Image

from promptreid.data.transforms import check_image_size, eval_transform, train_transform

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)


def noise(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_eval_transform_normalises_by_hand_worked_values() -> None:
    tensor = eval_transform((2, 1), mean=MEAN, std=STD)(Image.new("RGB", (1, 2), (255, 51, 0)))
    # (1 - 0.5) / 0.2 = 2.5; (0.2 - 0.4) / 0.25 = -0.8; (0 - 0.3) / 0.5 = -0.6
    expected = torch.tensor([2.5, -0.8, -0.6]).view(3, 1, 1).expand(3, 2, 1)
    assert torch.allclose(tensor, expected, atol=1e-6)


@pytest.mark.parametrize("size", [(384, 128), (96, 48), (224, 224), (1, 1), (7, 300)])
def test_transforms_give_the_asked_size_from_any_picture(size: tuple[int, int]) -> None:
    for make in (train_transform, eval_transform):
        for picture in (noise(50, 20), noise(1, 1), noise(3, 400)):
            tensor = make(size, mean=MEAN, std=STD)(picture)
            assert (tensor.shape, tensor.dtype) == ((3, *size), torch.float32)


def test_eval_transform_keeps_the_edges_of_the_picture() -> None:
    # White ends above and below a black middle: a centre crop would lose them.
    pixels = np.zeros((100, 10, 3), dtype=np.uint8)
    pixels[:10], pixels[-10:] = 255, 255
    tensor = eval_transform((20, 20), mean=(0, 0, 0), std=(1, 1, 1))(Image.fromarray(pixels))
    assert float(tensor[:, 0].min()) > 0.9
    assert float(tensor[:, -1].min()) > 0.9


def test_train_transform_flip_mirrors_about_half_and_off_none() -> None:
    pixels = np.zeros((40, 40, 3), dtype=np.uint8)
    pixels[:, :20] = 255  # the left half is white, so a mirrored picture is white on the right
    picture = Image.fromarray(pixels)
    for flip, low, high in ((True, 60, 140), (False, 0, 0)):
        transform = train_transform((40, 40), mean=(0, 0, 0), std=(1, 1, 1), flip=flip)
        mirrored = 0
        for _ in range(200):
            tensor = transform(picture)
            mirrored += int(tensor[:, :, 35:].sum() > tensor[:, :, :5].sum())
        assert low <= mirrored <= high


def test_train_transform_erased_area_is_the_mean_colour() -> None:
    transform = train_transform((40, 40), mean=MEAN, std=STD)
    white = Image.new("RGB", (40, 40), (255, 255, 255))
    erased = 0
    for _ in range(200):
        zero = (transform(white) == 0).all(dim=0)
        erased += int(zero.any())
        # The recipe's scale is 0.02 to 0.4 of the area, and rounding may add a row.
        assert float(zero.float().mean()) <= 0.42
    assert 60 <= erased <= 140


def test_train_transform_same_seed_gives_the_same() -> None:
    transform, picture = train_transform((96, 48), mean=MEAN, std=STD), noise(50, 20)
    first, second = [], []
    for results in (first, second):
        torch.manual_seed(3)
        results.extend(transform(picture) for _ in range(5))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize("size", [(0, 10), (10, -1)])
def test_check_image_size_not_positive_raises(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"image_size is .*expected \(height, width\) in pixels, both positive"):
        check_image_size(size)
    with pytest.raises(ValueError, match="image_size is"):
        train_transform(size, mean=MEAN, std=STD)
    with pytest.raises(ValueError, match="image_size is"):
        eval_transform(size, mean=MEAN, std=STD)
