"""Which parts of a crop answer which words."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from promptreid.data.images import open_image
from promptreid.evaluation.pictures.canvas import new_figure, save_figure
from promptreid.model.prompted_clip import PromptedCLIP

_SAMPLES = 16
# As many letters as fit above a crop.
_TITLE_LETTERS = 20
_NOISE = 0.15
_ROWS, _COLUMNS = 12, 6


def phrase_map(
    model: PromptedCLIP, image: Tensor, phrase: str, *, grid: tuple[int, int] = (_ROWS, _COLUMNS), seed: int = 0
) -> Tensor:
    """How strongly each part of a picture moves its similarity to a phrase.

    The gradient of the cosine similarity with respect to the pixels, its absolute value averaged over noisy copies of
    the picture and over the cells of a grid. It needs nothing but gradients, so it works on every image tower; it
    says where the model looks, not whether it is right.

    Args:
        model: The model; its modes and gradients are left as they were.
        image: What `model.eval_transform` makes of a picture.
        phrase: Such as `red coat`.
        grid: Rows and columns of the map.
        seed: Of the noise.

    Shape:
        - image: (3, H, W); returns: (rows, columns) float32 in [0, 1], 1 where the similarity moves most

    Raises:
        ValueError: The phrase is empty.

    Source:
        Smilkov et al. 2017, SmoothGrad, arXiv 1706.03825.
    """
    if not phrase.strip():
        raise ValueError("the phrase is empty; give a few words, such as 'red coat'")
    device = next(model.parameters()).device
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            wanted = model.encode_text(model.tokenizer([phrase]).to(device), normalize=True)[0]
        noise = torch.randn(_SAMPLES, *image.shape, generator=torch.Generator().manual_seed(seed))
        pixels = (image.cpu() + _NOISE * noise).to(device).requires_grad_(True)
        with torch.enable_grad():
            similarity = (model.encode_image(pixels, normalize=True) @ wanted).sum()
            (gradient,) = torch.autograd.grad(similarity, [pixels])
    finally:
        for module, training in modes.items():
            module.training = training
    strength = gradient.float().abs().sum(dim=1).mean(dim=0).cpu()
    cells = interpolate(avg_pool2d(strength[None, None], 3, 1, 1), size=grid, mode="area")[0, 0]
    cells = cells - cells.min()
    return cells / cells.max().clamp(min=1e-12)


def draw_phrase_maps(path: str | Path, model: PromptedCLIP, crop: str | Path, phrases: Sequence[str]) -> Path:
    """Draw a crop, and beside it which parts of it answer each phrase.

    Args:
        path: PNG file to write.
        model: The model.
        crop: The picture.
        phrases: Such as `["red coat", "black trousers"]`.

    Returns:
        The file.

    Raises:
        ValueError: There is no phrase, or one is empty.
        DatasetError: The crop cannot be read.
        MissingExtraError: matplotlib is not installed.
    """
    if not phrases:
        raise ValueError("phrases is empty, give at least one")
    picture = open_image(Path(crop))
    transformed = model.eval_transform(picture)
    figure = new_figure(1.5 * (len(phrases) + 1), 3.4)
    panels = figure.subplots(1, len(phrases) + 1, squeeze=False)[0]
    extent = (0, picture.width, picture.height, 0)
    for axis, phrase in zip(panels, ["", *phrases], strict=True):
        axis.imshow(picture, extent=extent, aspect="equal")
        axis.axis("off")
        axis.set_title(textwrap.fill(f"“{phrase}”", _TITLE_LETTERS) if phrase else "crop", fontsize=8)
        if phrase:
            cells = phrase_map(model, transformed, phrase).numpy()
            axis.imshow(cells, extent=extent, aspect="equal", cmap="cividis", alpha=0.6, interpolation="bilinear")
    return save_figure(figure, path)
