"""What a prompt must know of a tower, whatever its family."""

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from promptreid.errors import AttachmentError

Trim = Literal["never", "end", "class_at_end", "slice"]


@dataclass(frozen=True, eq=False, kw_only=True)
class TokenTower:
    """A Transformer tower as a prompt sees it: a row of blocks that a token sequence passes through.

    One is made by `promptreid.towers.families.vision_towers.find_vision_tower` or
    `promptreid.towers.families.text_towers.find_text_tower`; nothing outside `towers/` reads open_clip's attributes.

    Attributes:
        kind: Family and class, such as `"open_clip.VisionTransformer"`.
        container: The module that iterates over the blocks.
        blocks: The Transformer blocks, first to last.
        width: D, the size of one token.
        length: L, tokens in the sequence without prompts.
        slot: Position at which prompts are inserted.
        pooling: How the tower makes one feature of its tokens.
        position_owner: Module that holds the learned position embedding, or `None` if there is none.
        position_name: Its name in `position_owner`.
        grid: (rows, columns) of patches for images, `None` for text.
        prefix: Number of tokens before the first patch, which rotary tables leave out.
        mask_arguments: Block arguments that hold an attention mask growing with the sequence.
        bias_arguments: Block arguments that hold an additive bias by position, which prompts do not get.
        rotary_arguments: Block arguments that hold a rotary table of the patches.
        relative_biases: Modules whose `get_bias()` makes a bias inside each block.
        drops_blocks: Whether the tower skips whole blocks while training.
        unordered: Whether the blocks treat all places alike, so that prompts do the same wherever they stand.
    """

    kind: str
    container: nn.Module
    blocks: tuple[nn.Module, ...]
    width: int
    length: int
    slot: int
    pooling: str
    position_owner: nn.Module | None = None
    position_name: str = "positional_embedding"
    grid: tuple[int, int] | None = None
    prefix: int = 0
    mask_arguments: tuple[str, ...] = ("attn_mask",)
    bias_arguments: tuple[str, ...] = ()
    rotary_arguments: tuple[str, ...] = ()
    relative_biases: tuple[nn.Module, ...] = ()
    drops_blocks: bool = False
    unordered: bool = False

    @property
    def sequence_axis(self) -> int:
        """Axis of the sequence inside the blocks: 1 for (B, L, D), 0 for (L, B, D); read at call time."""
        return 1 if getattr(self.container, "batch_first", True) else 0

    @property
    def causal(self) -> bool:
        """Whether a token may only look back."""
        return False

    @property
    def positions(self) -> Tensor | None:
        """The learned position embedding, (L, D), looked up anew so that replaced parameters are seen."""
        if self.position_owner is None:
            return None
        positions: Any = getattr(self.position_owner, self.position_name)
        return positions[0] if positions.ndim == 3 else positions


@dataclass(frozen=True, eq=False, kw_only=True)
class TextTower(TokenTower):
    """A text tower, with what is known of its captions.

    Attributes:
        module: The module that owns the tower.
        looks_back: Whether a token may only look back.
        trim: How a batch may be cut to its longest caption without changing any feature: `"never"`; `"end"`, after
            the token that is pooled; `"class_at_end"`, keeping the class token behind the captions and one more
            place; `"slice"`, by passing fewer token ids.
        context_length: Tokens of a caption that the tower takes.
        shortest_too: Whether it takes fewer tokens as well.
        vocabulary: Number of token ids; 0 if not known.
        pad_id: Token id of the places after the caption.
        end_id: Token id that is pooled at, `None` for the largest id of a caption.
        end_pooled: Whether the feature is pooled at the caption's end.
        embedding: The module that looks token ids up.
    """

    module: nn.Module
    looks_back: bool
    trim: Trim
    context_length: int
    shortest_too: bool = False
    vocabulary: int = 0
    pad_id: int = 0
    end_id: int | None = None
    end_pooled: bool = False
    embedding: nn.Module | None = None

    @property
    def causal(self) -> bool:
        """Whether a token may only look back."""
        return self.looks_back


@dataclass(frozen=True, eq=False, kw_only=True)
class PixelTower:
    """An image tower without a token sequence, as a prompt sees it: pixels, and at times an attention pool.

    Attributes:
        kind: Family and class, such as `"timm.ConvNeXt"`.
        visual: The tower.
        entrance: The first module that the image passes through.
        image_size: (height, width) in pixels.
        channels: Colour channels of the image.
        pooling: How the tower makes one feature of its map.
        attention_pool: open_clip's attention pool at the tower's end, where there is one.
    """

    kind: str
    visual: nn.Module
    entrance: nn.Module
    image_size: tuple[int, int]
    channels: int
    pooling: str
    attention_pool: nn.Module | None = None


def refuse_compiled(clip: nn.Module, *modules: nn.Module) -> None:
    """Refuse what is no model, is TorchScript or was compiled before prompts were attached.

    Raises:
        AttachmentError: It is; says what to do.
        TypeError: It is no module.
    """
    if not isinstance(clip, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"clip is {type(clip).__name__}, expected an open_clip model, as promptreid.load_clip(name) and "
            "open_clip.create_model(name) make them"
        )
    if isinstance(clip, _script_module()):
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


def _script_module() -> type[nn.Module]:
    from torch.jit import ScriptModule

    return ScriptModule
