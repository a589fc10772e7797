"""What a model's features are made of: their size, the images it takes, and the parameters without a part in them."""

from collections.abc import Iterator
from typing import Any

import torch
from open_clip.model import CLIP
from open_clip.transformer import QuickGELU
from torch import Tensor, nn

from promptreid.towers.tower import TextTower

# Parameters of the pair as a whole, and CoCa's decoder, which writes captions.
_SCALES = ("logit_scale", "logit_bias")

_DECODER = "text_decoder"


def feature_size_of(clip: nn.Module) -> int:
    """E, size of the features that both towers share."""
    # The text tower says it in every family; timm's image towers do not.
    text: Any = clip if isinstance(clip, CLIP) else clip.text
    projection: Any = getattr(text, "text_projection", None)
    if isinstance(projection, nn.Linear):
        return projection.out_features
    if isinstance(projection, Tensor):
        return projection.shape[1]
    return int(getattr(text, "output_dim", None) or text.transformer.width)


def parameters_without_features(clip: nn.Module) -> Iterator[nn.Parameter]:
    """Parameters of an open_clip model that neither image nor text features are computed from.

    Losses on features give them no gradient, which `DistributedDataParallel` takes for an error.
    """
    for name, parameter in clip.named_parameters():
        if name in _SCALES or name.split(".")[0] == _DECODER:
            yield parameter


def fill_unset_parameters(clip: nn.Module) -> None:
    """Give CoCa's decoder the projection that open_clip leaves as the memory came, which may be NaN."""
    decoder: Any = getattr(clip, _DECODER, None)
    if decoder is not None:
        projection: nn.Parameter = decoder.text_projection
        nn.init.normal_(projection, std=projection.shape[0] ** -0.5)


def join_skipped_blocks(tower: TextTower, features: Tensor) -> Tensor:
    """The same features, computed also from the blocks that the tower skipped at random, with zero as their share.

    Without it a skipped block's parameters get no gradient, and `DistributedDataParallel` waits for it in vain.

    Shape:
        - features: (B, E)
        - returns: (B, E)
    """
    trained = [part for block in tower.blocks for part in block.parameters() if part.requires_grad]
    if not (trained and tower.container.training and torch.is_grad_enabled()):
        return features
    return features + 0 * torch.stack([part.sum(dtype=torch.float32) for part in trained]).sum().to(features.dtype)


def uses_quick_gelu(clip: nn.Module) -> bool:
    """Whether a model computes QuickGELU, which the weights cannot tell."""
    return any(isinstance(module, QuickGELU) for module in clip.modules())


def is_scripted(clip: object) -> bool:
    """Whether a model is TorchScript, into which no prompts can be put."""
    return isinstance(clip, torch.jit.ScriptModule)
