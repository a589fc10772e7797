"""The text encoder with prompts."""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize as unit_length

from promptreid.backbones.probing import probe_tokens
from promptreid.backbones.text import caption_end, find_text_tower, vocabulary_size_of
from promptreid.encoders.tower_encoder import PromptCarrier
from promptreid.prompts import Initialization, Prompts


class PromptedTextEncoder(PromptCarrier):
    """The text encoder of an open_clip model with learnable prompts in its blocks.

    Block i works on `[start, P_i, caption]`; what it makes of the prompts is dropped and block i+1 gets its own.
    Prompts take none of the caption's places. Batches are cut to their longest caption where that is exact.

    Args:
        clip: An open_clip model; it keeps its weights, keys and methods, and its `encode_text` is prompted.
        length: P, prompts a block; 0 gives the bare encoder.
        depth: Number of first blocks that own prompts, 1 for shallow prompts; `None` for every block.
        position_embedding: Give prompts the tower's positions 1…P and move the caption on by P.
        initialization: `"start_state"`, `"mean_state"` or `"normal"`, see `PromptConfig`; `None` leaves them zero.
        sequence_first: Keep frozen attention fast (values change by rounding only); `detach` undoes it.
        trim: Cut batches to their longest caption in towers where no feature can depend on what follows it.

    Shape:
        - tokens: (B, L) int64, L the model's context length, as `model.tokenizer` makes them
        - returns: (B, E) text features, of unit length if `normalize`

    Raises:
        UnsupportedTowerError: The text tower is of a kind that prompts cannot be put into.
        AttachmentError: The tower already carries prompts, or was compiled.
        ValueError: `length` or `depth` do not fit the tower; tokens of the wrong shape or beyond the vocabulary.
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

    def __init__(
        self,
        clip: nn.Module,
        length: int = 4,
        *,
        depth: int | None = None,
        position_embedding: bool = False,
        initialization: Initialization | None = "start_state",
        sequence_first: bool = True,
        trim: bool = True,
    ) -> None:
        tower = find_text_tower(clip)
        self_length = tower.length
        super().__init__(
            clip,
            tower,
            Prompts(tower, length, depth=depth, position_embedding=position_embedding),
            probe=lambda: clip.encode_text(probe_tokens(clip, self_length)),  # pyright: ignore[reportCallIssue]
            initialization=initialization,
            sequence_first=sequence_first,
        )
        self.trim = trim

    def forward(self, tokens: Tensor, *, normalize: bool = False) -> Tensor:
        """Encode a batch of captions."""
        self._check(tokens)
        if self.trim and self.injection.tower.exact_trim:
            longest = int(caption_end(self.clip, tokens).max()) + 1
            with self.injection.trimmed(longest):
                features = self.clip.encode_text(tokens, normalize=False)  # pyright: ignore[reportCallIssue]
        else:
            features = self.clip.encode_text(tokens, normalize=False)  # pyright: ignore[reportCallIssue]
        return unit_length(features, dim=-1) if normalize else features

    def _check(self, tokens: Tensor) -> None:
        length = self.injection.tower.length
        if tokens.is_floating_point() or tokens.dtype == torch.bool:
            raise TypeError(
                f"tokens have dtype {tokens.dtype}, expected integers as model.tokenizer(captions) makes them"
            )
        if tokens.ndim != 2 or tokens.shape[1] != length:
            raise ValueError(
                f"tokens have shape {tuple(tokens.shape)}, expected (batch, {length}); make them with "
                "model.tokenizer(captions)"
            )
        vocabulary = vocabulary_size_of(self.clip)
        # Looking at values would wait for the GPU at every step; there the embedding itself refuses them.
        if (
            tokens.device.type == "cpu"
            and tokens.numel()
            and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocabulary
        ):
            raise ValueError(
                f"token ids run from {int(tokens.min())} to {int(tokens.max())}, but this text tower knows 0 to "
                f"{vocabulary - 1}; make them with model.tokenizer(captions)"
            )
