"""Shows which part of a crop answers a phrase, by covering one part after another."""

import torch
from PIL import Image
from torch import Tensor

from promptreid.demo.comparison import Version

_ROWS, _COLUMNS = 12, 6
_BATCH = 24


def phrase_heat(version: Version, image: Image.Image, phrase: str) -> Tensor:
    """How much of the similarity to `phrase` is lost when a part of the image is covered.

    Each part is covered with the mean colour, three by three cells at a time; a cell's value is the mean loss over
    the covers that hold it.

    Args:
        version: The model.
        image: The crop.
        phrase: Such as `red coat`.

    Returns:
        (rows, columns) float32, 0 where covering loses nothing, 1 where it loses most.

    Raises:
        ValueError: The phrase is empty.

    Source:
        Zeiler and Fergus 2014, arXiv 1311.2901, section 4.2 (occlusion sensitivity).
    """
    if not phrase.strip():
        raise ValueError("the phrase is empty; give a few words, such as 'red coat'")
    with version.running() as model, torch.inference_mode():
        device = next(model.parameters()).device
        pixels = model.eval_transform(image.convert("RGB")).to(device)
        wanted = model.encode_text(model.tokenizer([phrase]).to(device), normalize=True)[0]
        covers = _covers()
        masks = torch.nn.functional.interpolate(covers[:, None], size=tuple(pixels.shape[1:]), mode="nearest")
        covered = [pixels * (1 - batch.to(device)) for batch in masks.split(_BATCH)]
        scores = torch.cat([model.encode_image(batch, normalize=True) @ wanted for batch in covered])
        whole = model.encode_image(pixels[None], normalize=True)[0] @ wanted
    losses = (whole - scores).float().cpu()
    heat = torch.einsum("n,nrc->rc", losses, covers) / covers.sum(0)
    heat = heat.clamp(min=0)
    return heat / heat.max().clamp(min=1e-12)


def _covers() -> Tensor:
    """One mask a cell, 1 on the cell and its neighbours: (cells, rows, columns)."""
    rows, columns = torch.arange(_ROWS), torch.arange(_COLUMNS)
    near_rows = (rows[:, None] - rows[None]).abs() <= 1
    near_columns = (columns[:, None] - columns[None]).abs() <= 1
    return torch.einsum("ir,jc->ijrc", near_rows.float(), near_columns.float()).flatten(0, 1)
