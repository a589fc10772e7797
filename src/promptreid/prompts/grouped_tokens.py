"""Prompts of the image tower for each group of images, such as those of one camera."""

import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from promptreid.errors import AttachmentError, listed
from promptreid.prompts.block_tokens import BlockTokens
from promptreid.prompts.config import Initialization
from promptreid.towers.modes import is_traced
from promptreid.towers.tower import TokenTower
from promptreid.towers.trimming import ThreadValue

_IDS = "promptreid_groups"  # attribute of a block's input: the group of each image in it


class GroupedTokens(BlockTokens):
    """Prompts in the blocks of one tower, a set for each group: block k works on `[class, tokens[g, k], patches]`.

    An image of no known group, and every image where groups are not given, gets the mean over the groups. All groups
    start alike, so that their mean is a prompt too, and as good as any at first.

    Args:
        tower: The tower they are for.
        length: P, prompts per block.
        groups: Names of the groups.
        depth: As for `BlockTokens`.
        position_embedding: As for `BlockTokens`.
        sequence_first: As for `BlockTokens`.

    Shape:
        - tokens: (G, J, P, D) float32, zero until `start`

    Raises:
        ValueError: As for `BlockTokens`.
    """

    def __init__(
        self,
        tower: TokenTower,
        length: int,
        *,
        groups: Sequence[str],
        depth: int | None = None,
        position_embedding: bool = False,
        sequence_first: bool = True,
    ) -> None:
        self.groups: tuple[str, ...] = tuple(groups)
        super().__init__(
            tower, length, depth=depth, position_embedding=position_embedding, sequence_first=sequence_first
        )
        self._ids: ThreadValue = ThreadValue()
        self._told: set[str | None] = set()

    def _make_parameters(self) -> None:
        self.tokens: nn.Parameter = nn.Parameter(torch.zeros(len(self.groups), self.depth, self.length, self.width))

    def start(self, initialization: Initialization | None, run: Callable[[], Any]) -> None:
        """Give the prompts of every group the same first values; see `BlockTokens.start`."""
        super().start(initialization, run)
        if initialization is not None:
            with torch.no_grad():
                self.tokens.copy_(self.tokens[:1].clone().expand_as(self.tokens))

    @contextmanager
    def for_groups(self, groups: Sequence[str | None] | Tensor | None, count: int) -> Generator[None, None, None]:
        """Encode inside the block a batch whose images are of these groups.

        Args:
            groups: Of each image the name of its group, or (B,) int64 positions in `groups`, -1 for the mean; `None`
                for the mean everywhere. An unknown name means the mean, with one warning for each.
            count: B.

        Raises:
            ValueError: There is not one group for each image, or a position is out of range.
        """
        ids = None
        if groups is not None and self.active:
            ids = self._positions(groups).to(self.tokens.device)
            if ids.shape != (count,):
                raise ValueError(f"groups are {tuple(ids.shape)}, expected one for each of {count} images")
        with self._ids.held(ids):
            yield

    def _positions(self, groups: Sequence[str | None] | Tensor) -> Tensor:
        if isinstance(groups, Tensor):
            if not is_traced() and groups.device.type == "cpu" and len(groups):
                lowest, highest = int(groups.min()), int(groups.max())
                if lowest < -1 or highest >= len(self.groups):
                    raise ValueError(
                        f"groups run from {lowest} to {highest}, expected positions in the {len(self.groups)} groups "
                        f"{listed(self.groups)}, or -1 for their mean"
                    )
            return groups
        self._tell_unknown(groups)
        known = {name: position for position, name in enumerate(self.groups)}
        return torch.tensor([-1 if name is None else known.get(name, -1) for name in groups], dtype=torch.int64)

    def _tell_unknown(self, groups: Sequence[str | None]) -> None:
        new = [name for name in dict.fromkeys(groups) if name not in self.groups and name not in self._told]
        if not new:
            return
        self._told.update(new)
        names = listed(["images without a camera" if name is None else repr(name) for name in new])
        warnings.warn(
            f"the prompts were trained for {listed(self.groups)}, and not for {names}: such images get the mean of the "
            f"{len(self.groups)} groups' prompts",
            stacklevel=5,
        )

    def _learned(self, index: int) -> Tensor:
        return self.tokens[:, index].mean(dim=0)

    def layer_for(self, index: int, sequence: Tensor) -> Tensor:
        """Prompts of block `index` for the images of a batch, (B, P, D), or (P, D) where groups are not given."""
        ids = self._groups_of(sequence)
        if ids is None:
            return self.layer(index)
        # A position of -1 takes the last, which is the mean.
        return self._placed(torch.cat([self.tokens[:, index], self._learned(index).unsqueeze(0)]))[ids]

    def _groups_of(self, sequence: Tensor) -> Tensor | None:
        """The group of each image of a block's input.

        They are noted at the input itself, which gradient checkpointing keeps: when a block is computed again in the
        backward pass, on any thread, the input is the same and the groups are no longer held.
        """
        if is_traced():
            return self._ids.get()
        if hasattr(sequence, _IDS):
            return getattr(sequence, _IDS)
        graph: Any = torch._C  # pyright: ignore[reportPrivateUsage]
        if graph._current_graph_task_id() != -1:
            raise AttachmentError(
                "a block is computed again in the backward pass, and its input no longer says of which groups the "
                "images are; leave gradient_checkpointing off, or use it with use_reentrant=False and no hooks on "
                "saved tensors"
            )
        ids: Tensor | None = self._ids.get()
        setattr(sequence, _IDS, ids)
        return ids
