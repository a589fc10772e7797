"""The text encoder with prompts."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize as unit_length

from promptreid.model.encoder import PromptCarrier, PromptFactory, check_tensor, make_own
from promptreid.prompts.block_tokens import BlockTokens
from promptreid.prompts.config import Initialization, TextSlot
from promptreid.towers.families import find_text_tower
from promptreid.towers.initial_states import probe_tokens
from promptreid.towers.modes import constants_when_traced, is_traced
from promptreid.towers.tower import TextTower, join_skipped_blocks
from promptreid.towers.trimming import CaptionTrim

_INTEGERS = frozenset(
    {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64}
)


class PromptedTextEncoder(PromptCarrier):
    """The text encoder of an open_clip model with learnable prompts in its blocks.

    Block i works on `[start, P_i, caption]`; what it makes of the prompts is dropped and block i+1 gets its own.
    Prompts take none of the caption's positions. Batches are cut to their longest caption where that is exact.

    Args:
        clip: An open_clip model; it keeps its weights, keys and methods, and its `encode_text` is prompted.
        length: P, prompts per block; 0 gives the bare encoder.
        depth: Number of first blocks that own prompts, 1 for shallow prompts; `None` for every block.
        position_embedding: Give prompts the tower's positions 1…P and shift the caption by P.
        initialization: `"start_state"`, `"mean_state"` or `"normal"`, see `PromptConfig`; `None` leaves them zero.
        slot: `"after_start"`, or `"before_end"` for prompts between the caption and its end token (causal towers).
        sequence_first: Keep frozen attention fast (values change by rounding only); `detach` undoes it.
        trim: Cut batches to their longest caption in towers where no feature can depend on what follows it (compiled
            and exported code is not cut, and has one shape), and compute the last block only for the pooled token.
        prompts: Makes your own kind of prompts from the tower's description, see `PromptKind`; `length` and the
            options of prompts in blocks are then not used. `None` for prompts in blocks.

    Shape:
        - tokens: (B, L) integers, L the model's context length, as `model.tokenizer` makes them; Hugging Face towers
          take fewer as well
        - returns: (B, E) text features, of unit length if `normalize`

    Raises:
        UnsupportedTowerError: Prompts cannot be put into a text tower of this family.
        AttachmentError: The tower already carries prompts, was compiled, or is TorchScript.
        ValueError: `length`, `depth` or another option does not fit the tower or the kind of prompt; tokens of the
            wrong shape or beyond the vocabulary.
        TypeError: Tokens that are not integers.

    Example:
        >>> import torch
        >>> from promptreid import load_clip
        >>> encoder = PromptedTextEncoder(load_clip("promptreid-tiny"), length=4)
        >>> encoder(torch.ones(2, 77, dtype=torch.int64)).shape
        torch.Size([2, 128])

    Source:
        Zhou et al. 2022, Learning to Prompt for Vision-Language Models, arXiv 2109.01134; Khattak et al. 2023,
        MaPLe (deep text prompts), arXiv 2210.03117; Li et al. 2024, arXiv 2401.02173.
    """

    tower: TextTower

    def __init__(
        self,
        clip: nn.Module,
        length: int = 4,
        *,
        depth: int | None = None,
        position_embedding: bool = False,
        initialization: Initialization | None = "start_state",
        slot: TextSlot = "after_start",
        sequence_first: bool = True,
        trim: bool = True,
        prompts: PromptFactory | None = None,
    ) -> None:
        tower = find_text_tower(clip)
        if prompts is None:
            own = BlockTokens(
                tower,
                length,
                depth=depth,
                position_embedding=position_embedding,
                slot=slot,
                sequence_first=sequence_first,
            )
        else:
            own = make_own(
                prompts,
                tower,
                depth=depth,
                position_embedding=position_embedding or None,
                slot=None if slot == "after_start" else slot,
            )
        encode: Any = clip.encode_text
        super().__init__(clip, own, initialization=initialization, probe=lambda: encode(probe_tokens(tower)), trim=trim)
        self.caption_trim: CaptionTrim = CaptionTrim(tower, clip)

    @property
    def context_length(self) -> int:
        """L, tokens of a caption: what the tower takes, or what open_clip's tokenizer makes for it."""
        return self.tower.length if self.tower.shortest_too else self.tower.context_length

    def forward(self, tokens: Tensor, *, normalize: bool = False) -> Tensor:
        """Encode a batch of captions."""
        tokens = self._checked(tokens)
        encode: Any = self.clip.encode_text
        # How long captions are is known only by looking at them, which a traced graph cannot.
        cut = self.caption_trim.cut(tokens, enable=self.trim and not is_traced())
        read = self.last_block.reading(self.tower.pooled(tokens) if self.trim else None)
        with constants_when_traced(self.clip), read, cut as kept:
            features = encode(kept, normalize=False)
        if self.tower.drops_blocks:
            features = join_skipped_blocks(self.tower, features)
        return unit_length(features, dim=-1) if normalize else features

    def attach(self) -> None:
        """Put the prompts back that `detach` took out; see `PromptedVisionEncoder.attach`."""
        super().attach()
        self.caption_trim = CaptionTrim(self.tower, self.clip)

    def detach(self) -> nn.Module:
        """Take the prompts out of the model, until `attach`, and return it as it was."""
        self.caption_trim.remove()
        return super().detach()

    def _checked(self, tokens: Tensor) -> Tensor:
        """The tokens as int64, the one type that every tower takes."""
        check_tensor(tokens, "tokens", "model.tokenizer(captions)")
        if tokens.dtype not in _INTEGERS:
            raise TypeError(
                f"tokens have dtype {tokens.dtype}, expected integers as model.tokenizer(captions) makes them"
            )
        tokens = tokens.long()
        longest, shorter = self.tower.context_length, self.tower.shortest_too
        fits = tokens.ndim == 2 and tokens.shape[1] >= 1
        fits = fits and (tokens.shape[1] == longest or (shorter and not 0 < longest < tokens.shape[1]))
        if not fits:
            wanted = f"at most {longest}" if shorter and longest else "any length" if shorter else str(longest)
            raise ValueError(
                f"tokens have shape {tuple(tokens.shape)}, expected (batch, {wanted}); make them with "
                "model.tokenizer(captions)"
            )
        # Looking at values would wait for the GPU at every step, and cannot be traced; there the embedding itself
        # refuses them.
        if tokens.device.type == "cpu" and tokens.numel() and not is_traced():
            self._check_vocabulary(int(tokens.min()), int(tokens.max()))
        return tokens

    def _check_vocabulary(self, smallest: int, largest: int) -> None:
        vocabulary = self.tower.vocabulary
        if smallest < 0 or (vocabulary and largest >= vocabulary):
            raise ValueError(
                f"token ids run from {smallest} to {largest}, but this text tower knows 0 to {vocabulary - 1}; make "
                "them with model.tokenizer(captions)"
            )
