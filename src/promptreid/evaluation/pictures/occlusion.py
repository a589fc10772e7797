"""Which parts of a crop answer which words, by covering one part after another."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from promptreid.data.images import open_image
from promptreid.evaluation.pictures.canvas import new_figure, save_figure
from promptreid.model.prompted_clip import PromptedCLIP
from promptreid.towers.modes import evaluating

# As many letters as fit above a crop.
_TITLE_LETTERS = 20


def occlusion_map(
    model: PromptedCLIP, image: Tensor, phrase: str, *, grid: tuple[int, int] = (12, 6), batch_size: int = 24
) -> Tensor:
    """How much of an image's similarity to a phrase is lost when a part of the image is covered.

    Each cell of a grid is covered with the mean colour, together with its neighbours; a cell's value is the mean loss
    over the covers that hold it. It works on every image tower, since it only encodes.

    Args:
        model: The model; its train or eval mode is put back afterwards.
        image: What `model.eval_transform` makes of an image.
        phrase: Such as `red coat`.
        grid: Rows and columns of the map.
        batch_size: Covered images at a time.

    Shape:
        - image: (3, H, W); returns: (rows, columns) float32 in [0, 1]: 0 where covering loses nothing, 1 where it
          loses most

    Raises:
        ValueError: The phrase is empty.

    Source:
        Zeiler and Fergus 2014, arXiv 1311.2901, section 4.2 (occlusion sensitivity).
    """
    _check_phrase(phrase)
    covers = _covers(*grid)
    with evaluating(model), torch.inference_mode():
        device = next(model.parameters()).device
        pixels = image.to(device)
        wanted = model.encode_text(model.tokenizer([phrase]).to(device), normalize=True)[0]
        # The transform has taken the mean colour away, so that it is 0 here.
        masks = interpolate(1 - covers[:, None], size=tuple(pixels.shape[1:]), mode="nearest")
        covered = [pixels * batch.to(device) for batch in masks.split(batch_size)]
        scores = torch.cat([model.encode_image(batch, normalize=True) @ wanted for batch in covered])
        whole = model.encode_image(pixels[None], normalize=True)[0] @ wanted
    losses = (whole - scores).float().cpu()
    heat = (torch.einsum("n,nrc->rc", losses, covers) / covers.sum(0)).clamp(min=0)
    return heat / heat.max().clamp(min=1e-12)


def _check_phrase(phrase: str) -> None:
    if not phrase.strip():
        raise ValueError("the phrase is empty; give a few words, such as 'red coat'")


def draw_occlusion_maps(path: str | Path, model: PromptedCLIP, crop: str | Path, phrases: Sequence[str]) -> Path:
    """Draw a crop, and beside it which parts of it answer each phrase.

    Args:
        path: PNG file to write.
        model: The model.
        crop: The image.
        phrases: Such as `["red coat", "black trousers"]`.

    Returns:
        The file.

    Raises:
        ValueError: There is no phrase, or one is empty.
        TypeError: `phrases` is one text.
        DatasetError: The crop cannot be read.
        MissingExtraError: matplotlib is not installed.
    """
    if isinstance(phrases, str):
        raise TypeError(f"phrases is {phrases!r}, expected a list, such as {[phrases]!r}")
    if not phrases:
        raise ValueError("phrases is empty, give at least one")
    for phrase in phrases:
        _check_phrase(phrase)
    image = open_image(Path(crop))
    transformed = model.eval_transform(image)
    figure = new_figure(1.5 * (len(phrases) + 1), 3.4)
    panels = figure.subplots(1, len(phrases) + 1, squeeze=False)[0]
    extent = (0, image.width, image.height, 0)
    for axis, phrase in zip(panels, ["", *phrases], strict=True):
        axis.imshow(image, extent=extent, aspect="equal")
        axis.axis("off")
        axis.set_title(textwrap.fill(f"“{phrase}”", _TITLE_LETTERS) if phrase else "crop", fontsize=8)
        if phrase:
            heat = occlusion_map(model, transformed, phrase).numpy()
            axis.imshow(heat, extent=extent, aspect="equal", cmap="cividis", alpha=0.6, interpolation="bilinear")
    return save_figure(figure, path)


def _covers(rows: int, columns: int) -> Tensor:
    """One mask a cell, 1 on the cell and its neighbours: (cells, rows, columns)."""
    row, column = torch.arange(rows), torch.arange(columns)
    near_rows = (row[:, None] - row).abs() <= 1
    near_columns = (column[:, None] - column).abs() <= 1
    return torch.einsum("ir,jc->ijrc", near_rows.float(), near_columns.float()).flatten(0, 1)
