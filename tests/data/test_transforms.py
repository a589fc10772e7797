"""Transforms for training and evaluation, at any size."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from promptreid.data.transforms import (
    TrainTransform,
    check_image_size,
    eval_transform,
    fit_image,
    shift_image,
    train_transform,
)

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


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize(("down", "right"), [(0, 0), (3, -2), (-3, 2), (-4, -4), (4, 4), (30, 0)])
def test_shift_image_is_mirror_pad_and_crop(down: int, right: int, mirror: bool) -> None:
    pixels = torch.arange(3 * 12 * 8, dtype=torch.uint8).view(3, 12, 8)
    padded = v2.functional.pad(v2.functional.horizontal_flip(pixels) if mirror else pixels, [30])
    expected = padded[:, 30 + down : 42 + down, 30 + right : 38 + right].float()
    assert torch.equal(shift_image(pixels, down, right, mirror=mirror), expected)


def test_train_transform_without_chance_is_torchvisions_normalise(monkeypatch: pytest.MonkeyPatch) -> None:
    # 0.5 everywhere: no mirroring, no shift (int(0.5 * 21) = 10 = padding), no erasing (0.5 < 0.5 is false).
    monkeypatch.setattr(torch, "rand", lambda *shape: torch.full(shape if isinstance(shape[0], int) else (), 0.5))
    picture = noise(50, 20)
    reference = v2.Compose(
        [
            v2.Resize([96, 48], interpolation=InterpolationMode.BICUBIC, antialias=True),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    expected = torch.as_tensor(reference(picture))
    # Pillow's and torch's bicubic kernels round differently now and then: a step or two of 1 / (255 * 0.2).
    for transform in (train_transform((96, 48), mean=MEAN, std=STD), eval_transform((96, 48), mean=MEAN, std=STD)):
        difference = (transform(picture) - expected).abs()
        assert float(difference.max()) < 2.01 / 255 / 0.2
        assert float((difference > 1e-5).float().mean()) < 0.02
        assert type(transform(picture)) is torch.Tensor


def test_train_transform_shifts_spread_evenly_over_the_padding() -> None:
    transform = train_transform((96, 16), mean=(0, 0, 0), std=(1, 1, 1), flip=False)
    assert transform.padding == 2  # round(10 * 96 / 384 = 2.5)
    rows = torch.arange(1, 97, dtype=torch.uint8).view(1, 96, 1).expand(3, 96, 16)
    shifts = [round(float(transform(rows)[:, 48].max()) * 255) - 49 for _ in range(400)]
    counts = [shifts.count(shift) for shift in range(-2, 3)]
    # 80 each expected, standard deviation 8; erasing hides a few.
    assert min(counts) > 40
    assert sum(counts) > 380


def test_train_transform_told_to_mirror_does_so() -> None:
    pixels = torch.zeros(3, 40, 40, dtype=torch.uint8)
    pixels[:, :, :10] = 255
    for flip in (True, False):
        transform = train_transform((40, 40), mean=(0, 0, 0), std=(1, 1, 1), flip=flip)
        for mirror, side in ((True, slice(34, 36)), (False, slice(4, 6))):
            assert all(float(transform(pixels, mirror=mirror)[:, 1:-1, side].max()) == 1 for _ in range(20))


def test_transforms_of_bytes_and_of_the_picture_agree() -> None:
    picture = noise(50, 20)
    pixels = fit_image(picture, (96, 48))
    assert (pixels.shape, pixels.dtype) == ((3, 96, 48), torch.uint8)
    assert fit_image(pixels, (96, 48)) is pixels
    transform = eval_transform((96, 48), mean=MEAN, std=STD)
    before = pixels.clone()
    assert torch.equal(transform(pixels), transform(picture))
    TrainTransform((96, 48), mean=MEAN, std=STD)(pixels)
    assert torch.equal(pixels, before)  # what is in a cache is not written to


@pytest.mark.parametrize("image", [torch.zeros(3, 4, 4), torch.zeros(4, 4, dtype=torch.uint8), "a.jpg", None])
def test_fit_image_of_something_else_raises(image: object) -> None:
    with pytest.raises(TypeError, match=r"the image is .*expected a PIL image or a uint8 tensor \(3, height, width\)"):
        fit_image(image, (4, 4))


@pytest.mark.parametrize(("mean", "std"), [((0.5,), (0.5, 0.5, 0.5)), (MEAN, (1, 1)), (MEAN, (1, 0, 1))])
def test_transforms_bad_statistics_raise(mean: tuple, std: tuple) -> None:
    with pytest.raises(ValueError, match="expected three numbers each, std positive"):
        eval_transform((4, 4), mean=mean, std=std)


def test_train_transform_share_out_of_range_raises() -> None:
    with pytest.raises(ValueError, match=r"mirror is 1.5, expected a share from 0 to 1"):
        TrainTransform((4, 4), mean=MEAN, std=STD, mirror=1.5)


def test_transforms_show_their_settings() -> None:
    assert repr(eval_transform((4, 2), mean=MEAN, std=STD)).startswith("EvalTransform((4, 2), mean=(0.5, 0.4, 0.3)")


@pytest.mark.parametrize("make", [eval_transform, train_transform])
def test_interpolation_is_the_stated_one(make) -> None:
    statistics = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    image = torch.randint(0, 256, (3, 9, 7), dtype=torch.uint8)
    transform = make((24, 12), **statistics, interpolation="bilinear")
    expected = fit_image(image, (24, 12), "bilinear")
    assert not torch.equal(expected, fit_image(image, (24, 12)))
    if make is eval_transform:
        torch.testing.assert_close(transform(image), expected / 255)
    else:
        transform.padding = 0  # neither moved nor mirrored: all but the erased rectangle is the image
        same = torch.isclose(transform(image, mirror=False), expected / 255).float().mean()
        assert same > 0.5
    assert "bilinear" in repr(transform)
    with pytest.raises(ValueError, match="interpolation is 'nearest', expected one of bicubic, bilinear"):
        make((24, 12), **statistics, interpolation="nearest")
