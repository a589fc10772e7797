import pytest
from PIL import Image

from promptreid import PromptedCLIP
from promptreid.demo.comparison import make_versions
from promptreid.demo.heat_map import phrase_heat


def two_halves() -> Image.Image:
    """Red above, blue below."""
    image = Image.new("RGB", (48, 96), (190, 36, 40))
    image.paste((40, 74, 170), (0, 48, 48, 96))
    return image


def test_phrase_heat_lies_on_the_half_that_is_named(model: PromptedCLIP) -> None:
    bare = make_versions(model)[1]
    red, blue = (phrase_heat(bare, two_halves(), f"a {name} shirt") for name in ("red", "blue"))
    assert red.shape == blue.shape == (12, 6)
    assert red[:6].mean() - red[6:].mean() > blue[:6].mean() - blue[6:].mean() + 0.1


@pytest.mark.parametrize("size", [(48, 96), (1, 1), (300, 20), (20, 300)])
def test_phrase_heat_of_any_size_is_between_0_and_1(model: PromptedCLIP, size: tuple[int, int]) -> None:
    heat = phrase_heat(make_versions(model)[0], two_halves().resize(size), "red coat")
    assert bool(((heat >= 0) & (heat <= 1)).all())


def test_phrase_heat_of_nothing_is_refused(model: PromptedCLIP) -> None:
    with pytest.raises(ValueError, match="the phrase is empty; give a few words"):
        phrase_heat(make_versions(model)[0], two_halves(), " ")
