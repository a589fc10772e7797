"""What must be known of a model and its towers, whatever their family."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import torch
from open_clip.model import CLIP
from open_clip.transformer import QuickGELU
from torch import Tensor, nn

from promptreid.errors import AttachmentError

# Parameters of the pair as a whole, and CoCa's decoder, which writes captions.
_SCALES = ("logit_scale", "logit_bias")

_DECODER = "text_decoder"

Trim = Literal["never", "end", "class_at_end", "slice"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Tower:
    """The description that every tower has.

    `promptreid.towers.families` makes them; nothing outside `towers/` reads open_clip's attributes.

    Attributes:
        kind: Family and class, such as `"open_clip.VisionTransformer"`.
        module: The module that is the tower.
        pooling: How the tower makes one feature of its tokens or its map.
    """

    kind: str
    module: nn.Module
    pooling: str

    @property
    def hooked(self) -> tuple[nn.Module, ...]:
        """The modules that prompts may be hooked into."""
        return (self.module,)


@dataclass(frozen=True, eq=False, kw_only=True)
class TokenTower(Tower):
    """A Transformer tower as a prompt sees it: a row of blocks that a token sequence passes through.

    Attributes:
        container: The module that iterates over the blocks.
        blocks: The Transformer blocks, first to last.
        width: D, the size of one token.
        length: L, tokens in the sequence without prompts.
        slot: Position at which prompts are inserted.
        position_owner: Module that holds the learned position embedding, or `None` if there is none.
        position_name: Its name in `position_owner`.
        grid: (rows, columns) of patches for images, `None` for text.
        prefix: Number of tokens before the first patch, which rotary tables leave out.
        mask_arguments: Block arguments that hold an attention mask growing with the sequence.
        bias_arguments: Block arguments that hold an additive bias by position, which prompts do not get.
        count_arguments: Block arguments that number the positions from 0, of which prompts make more.
        rotary_arguments: Block arguments that hold a rotary table of the patches.
        relative_biases: Modules whose `get_bias()` makes a bias inside each block.
        causal: Whether a token may only look back.
        drops_blocks: Whether the tower skips whole blocks while training.
        unordered: Whether the blocks treat all positions alike, so that prompts do the same at every position.
        pooled_at: Position of the one token that the feature is made of, -1 for the last; `None` where it is made of
            more, or of another in each sequence.
    """

    container: nn.Module
    blocks: tuple[nn.Module, ...]
    width: int
    length: int
    slot: int
    position_owner: nn.Module | None = None
    position_name: str = "positional_embedding"
    grid: tuple[int, int] | None = None
    prefix: int = 0
    mask_arguments: tuple[str, ...] = ("attn_mask",)
    bias_arguments: tuple[str, ...] = ()
    count_arguments: tuple[str, ...] = ()
    rotary_arguments: tuple[str, ...] = ()
    relative_biases: tuple[nn.Module, ...] = ()
    causal: bool = False
    drops_blocks: bool = False
    unordered: bool = False
    pooled_at: int | None = None

    @property
    def hooked(self) -> tuple[nn.Module, ...]:
        """The modules that prompts may be hooked into."""
        return (self.container, *self.blocks)

    @property
    def sequence_axis(self) -> int:
        """Axis of the sequence inside the blocks: 1 for (B, L, D), 0 for (L, B, D); read at call time."""
        return 1 if getattr(self.container, "batch_first", True) else 0

    @property
    def positions(self) -> Tensor | None:
        """The learned position embedding, (L, D); read at call time, so that a replaced parameter is seen."""
        if self.position_owner is None:
            return None
        positions: Any = getattr(self.position_owner, self.position_name)
        return positions[0] if positions.ndim == 3 else positions


@dataclass(frozen=True, eq=False, kw_only=True)
class TextTower(TokenTower):
    """A text tower, with what is known of its captions.

    Attributes:
        trim: How a batch may be cut to its longest caption without changing any feature: `"never"`; `"end"`, after
            the token that is pooled; `"class_at_end"`, keeping the class token behind the captions and one more
            position; `"slice"`, by passing fewer token ids.
        context_length: Tokens of a caption that the tower takes.
        shortest_too: Whether it takes fewer tokens as well.
        vocabulary: Number of token ids; 0 if not known.
        pad_id: Token id of the positions after the caption.
        end_id: Token id that is pooled at, `None` for the largest id of a caption.
        end_pooled: Whether the feature is pooled at the caption's end.
        embedding: The module that looks token ids up.
        heads: Attention heads of a block, for a mask for each caption; 0 where masks are not made that way.
        behind: Tokens of the tower's own behind the caption, at the last positions.
    """

    trim: Trim
    context_length: int
    shortest_too: bool = False
    vocabulary: int = 0
    pad_id: int = 0
    end_id: int | None = None
    end_pooled: bool = False
    embedding: nn.Module | None = None
    heads: int = 0
    behind: int = 0

    def caption_end(self, tokens: Tensor) -> Tensor:
        """Position of the token that the feature of each caption is pooled from, if it is pooled at the end.

        Shape:
            - tokens: (B, L) int64
            - returns: (B,) int64, in [0, L)
        """
        if self.end_id is not None:
            return (tokens == self.end_id).int().argmax(dim=-1)
        return tokens.argmax(dim=-1)

    def pooled(self, tokens: Tensor) -> Tensor | int | None:
        """Position of the one token that the feature of each caption is made of, `None` where it is made of more."""
        return self.caption_end(tokens) if self.end_pooled else self.pooled_at

    def longest_caption(self, tokens: Tensor) -> int:
        """Number of positions, from the first, that hold everything a feature of the batch can depend on.

        Shape:
            - tokens: (B, L) int64
        """
        if tokens.shape[0] == 0 or self.trim == "never":
            return tokens.shape[1]
        if self.trim == "end":
            return int(self.caption_end(tokens).max()) + 1
        used = (tokens != self.pad_id).any(dim=0).nonzero()
        return int(used.max()) + 1 if len(used) else 1


@dataclass(frozen=True, eq=False)
class AttentionPool:
    """An attention pool at the end of an image tower, which can be given further keys and values.

    Attributes:
        module: The pool; called with the map, (B, D, H, W), it returns the feature, (B, E).
        width: D, the size of one key's token.
        attend: Pools a map with tokens, (P, D), as further keys and values: (B, E).
    """

    module: nn.Module
    width: int
    attend: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class PatchGrid:
    """How an image tower divides the image, and where it keeps what it has learned by absolute position.

    Attributes:
        patch: (height, width) in pixels of a patch; (1, 1) if there are none, and any size is taken.
        shape: (rows, columns) of patches.
        key: Name in `clip.state_dict()` of what has a row for every patch; empty for nothing.
        prefix: Rows before those of the patches.
    """

    patch: tuple[int, int] = (1, 1)
    shape: tuple[int, int] = (0, 0)
    key: str = ""
    prefix: int = 0


@dataclass(frozen=True, eq=False, kw_only=True)
class PixelTower(Tower):
    """An image tower without a token sequence, as a prompt sees it: pixels, and sometimes an attention pool.

    Attributes:
        entrance: The first module that the image passes through.
        image_size: (height, width) in pixels.
        channels: Colour channels of the image.
        attention_pool: The attention pool at the tower's end, where there is one.
    """

    entrance: nn.Module
    image_size: tuple[int, int]
    channels: int
    attention_pool: AttentionPool | None = None

    @property
    def hooked(self) -> tuple[nn.Module, ...]:
        """The modules that prompts may be hooked into."""
        pool = () if self.attention_pool is None else (self.attention_pool.module,)
        return (self.module, self.entrance, *pool)


def runs_slow_when_frozen(tower: TokenTower) -> bool:
    """Whether every block attends through a batch-first `nn.MultiheadAttention`.

    With `batch_first=True` it gives its projection a transposed view. With a weight that needs no gradient PyTorch
    then expands the weight once for every position instead of folding the view, so a frozen tower becomes many times
    slower. Run sequence-first, the same weights give the same values without the copy.
    """
    attentions = [getattr(block, "attn", None) for block in tower.blocks]
    return bool(getattr(tower.container, "batch_first", False)) and all(
        isinstance(attention, nn.MultiheadAttention) and attention.batch_first for attention in attentions
    )


def set_sequence_first(tower: TokenTower, *, enable: bool) -> None:
    """Switch the tower's blocks between (L, B, D), if `enable`, and (B, L, D)."""
    attentions: list[Any] = [block.attn for block in tower.blocks]
    # PEFT's layers only show the layout of the attention that they replace.
    modules: list[Any] = [tower.container, *(getattr(each, "base_layer", each) for each in attentions)]
    for module in modules:
        module.batch_first = not enable


def refuse_compiled(clip: nn.Module, *modules: nn.Module) -> None:
    """Refuse what is not a model, is TorchScript, or was compiled (or has `modules` that were) before attaching.

    Raises:
        AttachmentError: It is TorchScript or compiled; says what to do.
        TypeError: The argument is not a module.
    """
    if not isinstance(clip, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"clip is {type(clip).__name__}, expected an open_clip model, as promptreid.load_clip(name) and "
            "open_clip.create_model(name) make them"
        )
    if isinstance(clip, torch.jit.ScriptModule):
        raise AttachmentError(
            f"this model is TorchScript ({type(clip).__qualname__}), whose blocks take no hooks. Make it without "
            "jit=True, attach the prompts, and export the wrapped model if you need a file of it."
        )
    for module in (clip, *modules):
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            raise AttachmentError(
                f"this {type(module).__qualname__} was compiled before prompts were attached, and compiled code "
                "ignores them. Attach first, then call torch.compile on the wrapped model."
            )


def text_module_of(clip: nn.Module) -> nn.Module | None:
    """The module that encodes text, which is the model itself in open_clip's `CLIP`; `None` if there is none."""
    return clip if isinstance(clip, CLIP) else getattr(clip, "text", None)


def image_size_of(model: nn.Module) -> tuple[int, int]:
    """Height and width in pixels of the images that a model, or an image tower of it, takes."""
    visual: Any = getattr(model, "visual", model)
    size: int | tuple[int, int] = visual.image_size
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def image_dtype_of(clip: nn.Module) -> torch.dtype:
    """Precision of the images that `clip` takes: that of its first convolution."""
    visual: Any = clip.visual
    for parameter in visual.parameters():
        if parameter.ndim == 4:
            return parameter.dtype
    return next(visual.parameters()).dtype


class ImagePreprocessing(TypedDict):
    """How images are resized, `"bicubic"` or `"bilinear"`, and normalised: mean and standard deviation per channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str


def image_preprocessing_of(clip: nn.Module) -> ImagePreprocessing:
    """The preprocessing of images for `clip`, as open_clip states it."""
    stated: dict[str, Any] = getattr(clip.visual, "preprocess_cfg", None) or {}
    mean = stated.get("mean", (0.48145466, 0.4578275, 0.40821073))
    std = stated.get("std", (0.26862954, 0.26130258, 0.27577711))
    return {
        "mean": tuple(float(value) for value in mean),
        "std": tuple(float(value) for value in std),
        "interpolation": "bilinear" if stated.get("interpolation") == "bilinear" else "bicubic",
    }


def feature_size_of(clip: nn.Module) -> int:
    """E, size of the features that both towers share."""
    # The text tower says it in every family; timm's image towers do not.
    text: Any = text_module_of(clip)
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
    yield from (parameter for name, parameter in clip.named_parameters() if is_without_features(name))


def is_without_features(name: str) -> bool:
    """Whether no image or text feature is computed from the weight of this name."""
    return name in _SCALES or name.split(".")[0] == _DECODER


def fill_unset_parameters(clip: nn.Module) -> None:
    """Draw the projection of CoCa's decoder, which open_clip leaves uninitialised, so that it may be NaN."""
    decoder: Any = getattr(clip, _DECODER, None)
    if decoder is not None:
        projection: nn.Parameter = decoder.text_projection
        nn.init.normal_(projection, std=projection.shape[0] ** -0.5)


def join_skipped_blocks(tower: TextTower, features: Tensor) -> Tensor:
    """The same features, plus zero times the parameters of all blocks, some of which the tower may have skipped.

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
