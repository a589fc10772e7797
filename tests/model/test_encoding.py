"""model.encode: sentences and images of every kind become unit features, in order, on the CPU."""

import copy
import gc
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from promptreid.data.images import open_image
from promptreid.errors import DatasetError
from promptreid.model.encoding import encode_images

SENTENCES = ["a woman in a red coat with a black backpack", "a man", "a child in a yellow jacket", "a tall man"]


@pytest.fixture(scope="module")
def model(shipped):
    return shipped[0]


@pytest.fixture(scope="module")
def paths(split):
    return split.paths[:5]


@pytest.fixture(scope="module")
def expected(model, paths):
    """What the encoder itself makes of the images."""
    images = torch.stack([model.eval_transform(open_image(path)) for path in paths])
    with torch.no_grad():
        return model.eval().encode_image(images, normalize=True)


def same(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_sentences_give_their_own_unit_features_in_order_for_any_batch_size(model):
    with torch.no_grad():
        expected = model.encode_text(model.tokenizer(SENTENCES), normalize=True)
    for batch_size in (1, 3, 64):
        found = model.encode(SENTENCES, batch_size=batch_size, progress=False)
        same(found, expected)
    same(found.norm(dim=-1), torch.ones(4))
    assert (found.dtype, found.device.type, found.requires_grad) == (torch.float32, "cpu", False)
    assert not found.is_inference()


def test_images_of_every_kind_give_equal_features(model, paths, expected):
    pictures = [open_image(path) for path in paths]
    kinds = {
        "paths": paths,
        "PIL images": pictures,
        "arrays": [np.asarray(picture) for picture in pictures],
        "tensors": [pil_to_tensor(picture) for picture in pictures],
        "transformed": [model.eval_transform(picture) for picture in pictures],
        "one tensor": torch.stack([model.eval_transform(picture) for picture in pictures]),
        "mixed kinds": [paths[0], pictures[1], np.asarray(pictures[2]), pil_to_tensor(pictures[3]), pictures[4]],
        "a generator": (picture for picture in pictures),
    }
    for kind, images in kinds.items():
        found = model.encode(images, batch_size=2, progress=False)
        assert found.shape == (5, 128), kind
        same(found, expected)


def test_arrays_and_tensors_of_many_images_give_a_row_each(model, paths):
    small = [open_image(path).resize((30, 80)) for path in paths]
    expected = model.encode(small, progress=False)
    same(model.encode(np.stack([np.asarray(picture) for picture in small])), expected)
    same(model.encode(torch.stack([pil_to_tensor(picture) for picture in small])), expected)


def test_one_input_gives_one_vector(model, paths, expected):
    assert model.encode("a man").shape == (128,)
    assert model.encode(["a man"]).shape == (1, 128)
    for image in (paths[0], open_image(paths[0]), np.asarray(open_image(paths[0]))):
        same(model.encode(image), expected[0])


def test_nothing_gives_no_features(model):
    assert model.encode([]).shape == (0, 128)


def test_unnormalised_features_are_those_of_the_encoder(model):
    with torch.no_grad():
        expected = model.encode_text(model.tokenizer(SENTENCES))
    same(model.encode(SENTENCES, normalize=False, progress=False), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("part", ["encoders", "all"])
def test_encoders_of_another_precision_give_unit_features_in_float32(model, paths, expected, dtype, part):
    other = copy.deepcopy(model)
    (other.clip if part == "encoders" else other).to(dtype)
    with torch.no_grad():
        texts = model.encode_text(model.tokenizer(SENTENCES), normalize=True)
    for found, exact in ((other.encode(paths, progress=False), expected), (other.encode(SENTENCES), texts)):
        assert found.dtype == torch.float32
        assert (found * exact).sum(dim=-1).min() > 0.995
        # Half precision would miss the unit length by up to 0.4 %, and so favour some images.
        same(found.norm(dim=-1), torch.ones(len(exact)))


def test_images_are_turned_and_converted_as_open_image_does(model, tmp_path):
    turned = Image.effect_noise((60, 20), 80).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as opened:
        same(model.encode(opened), model.encode(tmp_path / "turned.png"))


def test_modes_are_put_back(model):
    model.train()
    model.encode(["a man"])
    assert model.training
    model.eval()


def reading_threads():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("promptreid-read")]


def test_error_that_is_kept_holds_neither_the_mode_nor_threads(model, paths, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    model.train()
    # As a notebook keeps it, in sys.last_value, with every frame that it went through.
    with pytest.raises(DatasetError) as kept:
        model.encode([*paths, broken, *paths], batch_size=2, progress=False)
    assert model.training
    assert not reading_threads()
    model.eval()
    del kept
    gc.collect()
    assert not model.training


def test_batches_that_wait_leave_the_model_to_its_owner(model, paths):
    model.train()
    batches = encode_images(model, paths, batch_size=2, progress=False)
    first = next(batches)
    assert model.training
    model.eval()
    batches.close()
    assert not model.training
    assert not reading_threads()
    same(first.features, model.encode(paths[:2]))


@pytest.mark.parametrize(
    ("inputs", "error", "words"),
    [
        (["a man", Image.new("RGB", (8, 8))], TypeError, "inputs mixes 1 sentences with 1 images; encode them one"),
        (["a man", 3], TypeError, r"inputs holds int, expected sentences \(str\), or images: pathlib\.Path"),
        (3, TypeError, "inputs is int, expected sentences"),
        (b"a man", TypeError, "inputs is bytes"),
        ({"text": "a man"}, TypeError, "inputs is dict"),
        (["a man", " "], ValueError, "a sentence is empty"),
        ("crop.jpg", ValueError, r"'crop\.jpg' is the name of an image.* give pathlib\.Path\('crop\.jpg'\)"),
        ("un \udce9l", ValueError, r"a sentence is 'un .udce9l', .* half of a character .*; write it in UTF-8"),
        (np.zeros((8, 8)), ValueError, r"an array is float64 \(8, 8\), expected uint8 \(H, W, 3\), red first"),
        (np.zeros((8, 8, 4), dtype=np.uint8), ValueError, r"an array is uint8 \(8, 8, 4\)"),
        (torch.zeros(3, 8, 8), ValueError, r"a tensor is torch\.float32 \(3, 8, 8\), .* floating point \(3, 96, 48\)"),
        (torch.zeros(2, 77, dtype=torch.int64), ValueError, r"a tensor is torch\.int64 \(2, 77\)"),
    ],
)
def test_what_cannot_be_encoded_is_refused(model, inputs, error, words):
    with pytest.raises(error, match=words):
        model.encode(inputs)


def test_missing_or_broken_image_is_named(model, paths, tmp_path):
    with pytest.raises(DatasetError, match=r"there is no image .*nobody\.jpg"):
        model.encode([paths[0], tmp_path / "nobody.jpg"])
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(DatasetError, match=r"cannot read the image .*broken\.jpg"):
        model.encode([paths[0], tmp_path / "broken.jpg"])


def test_features_that_are_not_finite_are_refused(model):
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.text.prompts.tokens.fill_(float("nan"))
    with pytest.raises(ValueError, match="1 features hold NaN or infinity"):
        broken.encode("a man")


@pytest.mark.parametrize("option", ["batch_size", "num_threads"])
@pytest.mark.parametrize("inputs", [["a man"], [Image.new("RGB", (8, 8))]])
def test_options_below_one_are_refused(model, inputs, option):
    with pytest.raises(ValueError, match=f"{option}.*0, expected at least 1|batch_size is 0"):
        model.encode(inputs, **{option: 0})


def test_encode_images_goes_on_past_what_cannot_be_read(model, paths, expected, tmp_path):
    names = [str(paths[0]), str(tmp_path / "nobody.jpg"), str(paths[1])]
    batches = list(encode_images(model, names, batch_size=2, progress=False))
    assert [batch.positions for batch in batches] == [[0], [2]]
    assert list(batches[0].unreadable) == [1]
    same(torch.cat([batch.features for batch in batches]), expected[:2])
