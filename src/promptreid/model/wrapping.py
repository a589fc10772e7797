"""Makes both encoders of an open_clip model as a configuration of prompts says."""

from typing import Any, TypedDict, cast

import torch
from torch import nn

from promptreid.hub.manifest import check_elements
from promptreid.model.encoder import Factories, PromptFactory, refuse_options
from promptreid.model.text import PromptedTextEncoder
from promptreid.model.vision import PromptedVisionEncoder, fitting_prompts
from promptreid.prompts.attention_prefix import AttentionPrefix
from promptreid.prompts.block_tokens import BlockTokens
from promptreid.prompts.border_pixels import BorderPixels
from promptreid.prompts.config import PromptConfig
from promptreid.prompts.coupled_tokens import CoupledTokens
from promptreid.prompts.grouped_tokens import GroupedTokens
from promptreid.prompts.kind import PromptKind
from promptreid.towers.adapters import merge_adapters
from promptreid.towers.families import find_text_tower, find_vision_tower
from promptreid.towers.fingerprint import fingerprint
from promptreid.towers.tower import PixelTower, TokenTower, refuse_compiled


class Setup(TypedDict):
    """How encoders run, with any prompts."""

    sequence_first: bool
    trim: bool


def wrap(
    clip: nn.Module, config: PromptConfig, factories: Factories, setup: Setup, *, initialize: bool
) -> tuple[PromptedVisionEncoder, PromptedTextEncoder]:
    """Put prompts into both towers.

    Args:
        clip: The bare open_clip model.
        config: Kind, lengths, depths and initialisation of the prompts.
        factories: Makes the prompts of a tower instead, where they are of a kind of the user's own.
        setup: How the encoders run.
        initialize: Start the prompts; `False` leaves them zero.

    Raises:
        UnsupportedTowerError, AttachmentError, ValueError: As `PromptedCLIP`; the model is bare then.
    """
    if config.kind == "coupled":
        refuse_options(
            'kind is "coupled", which makes the prompts of both towers',
            **{f"{tower}_prompts": factory for tower, factory in factories.items()},
        )
    # A kind of the user's own may be one that is never saved.
    counted = None if any(factories.values()) else _Counted(config.kind)
    if config.kind != "coupled":
        vision = _vision_encoder(clip, config, factories, setup, counted, initialize=initialize)
        try:
            return vision, _text_encoder(clip, config, factories, setup, counted, initialize=initialize)
        except Exception:
            vision.detach()
            raise
    text = _text_encoder(clip, config, factories, setup, counted, initialize=initialize)
    try:
        return _vision_encoder(clip, config, factories, setup, counted, initialize=initialize, text=text.prompts), text
    except Exception:
        text.detach()
        raise


def sample_base(clip: nn.Module) -> tuple[float, ...]:
    """Samples of the weights that prompts are put on, PEFT's layers merged; to be taken before anything is attached.

    Raises:
        AttachmentError, TypeError, ValueError: As `PromptedCLIP`.
    """
    refuse_compiled(clip)
    return fingerprint(merge_adapters(clip))


class _Counted:
    """Counts the numbers of both towers' prompts, and refuses more than a file of them may have.

    Args:
        kind: That of the configuration.
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._shapes: list[torch.Size] = []

    def first(self, make: PromptFactory) -> PromptFactory:
        """The same factory, which takes memory for prompts only once they are counted."""

        def counted(tower: Any) -> PromptKind:
            with torch.device("meta"):  # where tensors have a shape and no content
                self._shapes += [tensor.shape for tensor in make(tower).state_dict().values()]
            check_elements(self._shapes, self._kind)
            return make(tower)

        return counted


def _vision_encoder(
    clip: nn.Module,
    config: PromptConfig,
    factories: Factories,
    setup: Setup,
    counted: _Counted | None,
    *,
    initialize: bool,
    text: PromptKind | None = None,
) -> PromptedVisionEncoder:
    """The image encoder; `text` are the prompts that coupled ones are made of."""
    initialization = config.vision_initialization if initialize else None
    if factories["vision"] is None:
        built_in = _vision_prompts(config, setup, initialize=initialize, text=text)
        if counted is not None:
            built_in = counted.first(built_in)
        return PromptedVisionEncoder(clip, initialization=initialization, prompts=built_in, trim=setup["trim"])
    return PromptedVisionEncoder(
        clip,
        config.vision_length,
        depth=config.vision_depth,
        position_embedding=config.position_embedding,
        initialization=initialization,
        place=config.vision_place,
        prompts=factories["vision"],
        **setup,
    )


def _text_encoder(
    clip: nn.Module,
    config: PromptConfig,
    factories: Factories,
    setup: Setup,
    counted: _Counted | None,
    *,
    initialize: bool,
) -> PromptedTextEncoder:
    initialization = config.text_initialization if initialize else None
    if factories["text"] is None:
        built_in = _text_prompts(clip, config, setup)
        if counted is not None:
            built_in = counted.first(built_in)
        return PromptedTextEncoder(clip, initialization=initialization, prompts=built_in, trim=setup["trim"])
    return PromptedTextEncoder(
        clip,
        config.text_length,
        depth=config.text_depth,
        position_embedding=config.position_embedding,
        initialization=initialization,
        slot=config.text_slot,
        prompts=factories["text"],
        **setup,
    )


def _vision_prompts(
    config: PromptConfig, setup: Setup, *, initialize: bool, text: PromptKind | None = None
) -> PromptFactory:
    """Makes the image prompts of a built-in kind."""
    if config.kind == "coupled":
        return _coupled(config, setup, cast("BlockTokens", text))  # whose factory made no others
    if config.kind == "prefix":
        return _prefix(setup, config.vision_length, config.vision_depth)
    if config.kind == "grouped":
        return _grouped(config, setup)

    def make(tower: TokenTower | PixelTower) -> PromptKind:
        return fitting_prompts(
            tower,
            config.vision_length,
            depth=config.vision_depth,
            position_embedding=config.position_embedding,
            initialization=config.vision_initialization if initialize else None,
            place=config.vision_place,
            sequence_first=setup["sequence_first"],
        )

    return make


def _text_prompts(clip: nn.Module, config: PromptConfig, setup: Setup) -> PromptFactory:
    """Makes the text prompts of a built-in kind.

    Raises:
        ValueError: They are to be coupled, and the image tower has no blocks.
    """
    if config.kind == "prefix":
        return _prefix(setup, config.text_length, config.text_depth)
    depth = config.text_depth
    if config.kind == "coupled":
        both = min(_number_of_blocks(find_vision_tower(clip)), len(find_text_tower(clip).blocks))
        depth = depth or both

    def make(tower: TokenTower) -> PromptKind:
        return BlockTokens(
            tower,
            config.text_length,
            depth=depth,
            position_embedding=config.position_embedding,
            slot=config.text_slot,
            sequence_first=setup["sequence_first"],
        )

    return make


def _number_of_blocks(tower: TokenTower | PixelTower) -> int:
    """How many blocks an image tower has for coupled prompts."""
    if isinstance(tower, PixelTower):
        raise ValueError(
            f'kind is "coupled", but this {tower.kind} has no blocks that tokens pass through, which image prompts '
            'could be projected into; choose kind="independent"'
        )
    return len(tower.blocks)


def _coupled(config: PromptConfig, setup: Setup, text: BlockTokens) -> PromptFactory:
    def make(tower: TokenTower) -> PromptKind:
        return CoupledTokens(
            tower,
            text,
            position_embedding=config.position_embedding,
            sequence_first=setup["sequence_first"],
        )

    return make


def _grouped(config: PromptConfig, setup: Setup) -> PromptFactory:
    def make(tower: TokenTower | PixelTower) -> PromptKind:
        if isinstance(tower, PixelTower):
            raise ValueError(
                f'kind is "grouped", but this {tower.kind} has no blocks that tokens pass through; choose '
                'kind="independent"'
            )
        return GroupedTokens(
            tower,
            config.vision_length,
            groups=config.groups,
            depth=config.vision_depth,
            position_embedding=config.position_embedding,
            sequence_first=setup["sequence_first"],
        )

    return make


def _prefix(setup: Setup, length: int, depth: int | None) -> PromptFactory:
    def make(tower: TokenTower | PixelTower) -> PromptKind:
        if isinstance(tower, TokenTower):
            return AttentionPrefix(tower, length, depth=depth, sequence_first=setup["sequence_first"])
        if length:
            raise ValueError(
                f'kind is "prefix", but this {tower.kind} has no blocks whose attention could be given keys and '
                'values; choose kind="independent", or vision_length=0'
            )
        return BorderPixels(tower, 0)

    return make
