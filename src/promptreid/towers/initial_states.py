"""The inputs of a bare tower's blocks: initial values for prompts that hardly change the features."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from promptreid.towers.modes import evaluating
from promptreid.towers.tower import TextTower, TokenTower, image_dtype_of, image_size_of

_PROBES = 8
_CAPTION_TOKENS = 24


def mean_states(tower: TokenTower, run: Callable[[], Any], *, count: int) -> Tensor:
    """Each block's own mean input, over `count` equal stretches of the sequence after the slot.

    Args:
        tower: The bare tower; it is run in eval mode and put back.
        run: Sends a batch through that tower.
        count: P, into how many stretches the sequence is divided.

    Shape:
        - returns: (blocks, P, D) float32
    """
    stretches = [sequence[tower.slot :].tensor_split(count) for sequence in _block_inputs(tower, run)]
    return torch.stack([torch.stack([part.mean(dim=(0, 1)) for part in parts]) for parts in stretches])


def start_states(tower: TokenTower, run: Callable[[], Any], *, count: int) -> Tensor:
    """Each block's own mean input at the position before the slot, `count` times.

    In a causal text tower that is the start token, on which later tokens rest the attention they have no use for:
    more of it changes what they compute least.

    Shape:
        - returns: (blocks, P, D) float32
    """
    position = max(tower.slot - 1, 0)
    states = torch.stack([sequence[position].mean(dim=0) for sequence in _block_inputs(tower, run)])
    return states.unsqueeze(1).repeat(1, count, 1)


def _block_inputs(tower: TokenTower, run: Callable[[], Any]) -> list[Tensor]:
    """The input of every block, each (L, B, D) float32."""
    seen: list[Tensor] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        sequence: Tensor = args[0] if args else next(iter(kwargs.values()))
        seen.append((sequence.transpose(0, 1) if tower.sequence_axis == 1 else sequence).float())

    handles = [block.register_forward_pre_hook(note, with_kwargs=True) for block in tower.blocks]
    try:
        with evaluating(tower.module), torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return seen


def probe_images(clip: nn.Module) -> Tensor:
    """A few smooth random images, normalised, of the size that `clip` takes: (B, 3, H, W)."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(_PROBES, 3, 6, 4, generator=generator)
    images = F.interpolate(coarse, size=image_size_of(clip), mode="bilinear", align_corners=False)
    return images.to(next(clip.parameters()).device, image_dtype_of(clip))


def probe_tokens(tower: TextTower) -> Tensor:
    """A few sequences of common token ids between the start and end tokens: (B, L) int64."""
    generator = torch.Generator().manual_seed(0)
    length = tower.length if tower.shortest_too else tower.context_length
    words = min(_CAPTION_TOKENS, length - 2)
    # Byte-pair vocabularies number frequent words first; open_clip's own ends with the start and the end token.
    common = max(2, min(tower.vocabulary - 2, 8192))
    tokens = torch.full((_PROBES, length), tower.pad_id, dtype=torch.int64)
    tokens[:, 1 : 1 + words] = torch.randint(1, common, (_PROBES, words), generator=generator)
    tokens[:, 0] = tower.vocabulary - 2
    tokens[:, 1 + words] = tower.vocabulary - 1 if tower.end_id is None else tower.end_id
    return tokens.to(next(tower.container.parameters()).device)
