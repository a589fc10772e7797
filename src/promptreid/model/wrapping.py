"""Makes both encoders of an open_clip model as a configuration of prompts says."""

from typing import TypedDict, cast

from torch import nn

from promptreid.hub.manifest import check_elements
from promptreid.model.encoder import Factories, PromptFactory, refuse_options
from promptreid.model.text import PromptedTextEncoder
from promptreid.model.vision import PromptedVisionEncoder
from promptreid.prompts.attention_prefix import AttentionPrefix
from promptreid.prompts.block_tokens import BlockTokens
from promptreid.prompts.border_pixels import BorderPixels
from promptreid.prompts.config import PromptConfig
from promptreid.prompts.coupled_tokens import CoupledTokens
from promptreid.prompts.grouped_tokens import GroupedTokens
from promptreid.prompts.kind import PromptKind
from promptreid.towers.families import find_text_tower, find_vision_tower
from promptreid.towers.tower import PixelTower, TokenTower


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
    make = _wrap_coupled if config.kind == "coupled" else _wrap_each
    vision, text = make(clip, config, factories, setup, initialize=initialize)
    try:
        if not any(factories.values()):  # a kind of the user's own may be one that is never saved
            tensors = [*vision.state_dict().values(), *text.state_dict().values()]
            check_elements([tensor.shape for tensor in tensors], config.kind)
    except ValueError:
        vision.detach()
        text.detach()
        raise
    return vision, text


def _wrap_each(
    clip: nn.Module, config: PromptConfig, factories: Factories, setup: Setup, *, initialize: bool
) -> tuple[PromptedVisionEncoder, PromptedTextEncoder]:
    vision = _vision_encoder(clip, config, factories, setup, initialize=initialize)
    try:
        text = _text_encoder(clip, config, factories, setup, depth=config.text_depth, initialize=initialize)
    except Exception:
        vision.detach()
        raise
    return vision, text


def _wrap_coupled(
    clip: nn.Module, config: PromptConfig, factories: Factories, setup: Setup, *, initialize: bool
) -> tuple[PromptedVisionEncoder, PromptedTextEncoder]:
    refuse_options(
        'kind is "coupled", which makes the prompts of both towers',
        **{f"{tower}_prompts": factory for tower, factory in factories.items()},
    )
    tower = find_vision_tower(clip)
    if isinstance(tower, PixelTower):
        raise ValueError(
            f'kind is "coupled", but this {tower.kind} has no blocks that tokens pass through, which image prompts '
            'could be projected into; choose kind="independent"'
        )
    both = min(len(tower.blocks), len(find_text_tower(clip).blocks))
    text = _text_encoder(clip, config, factories, setup, depth=config.text_depth or both, initialize=initialize)

    def project(tower: TokenTower) -> PromptKind:
        return CoupledTokens(
            tower,
            cast("BlockTokens", text.prompts),  # no factory of the user's made others
            position_embedding=config.position_embedding,
            sequence_first=setup["sequence_first"],
        )

    try:
        vision = PromptedVisionEncoder(
            clip,
            initialization=config.vision_initialization if initialize else None,
            trim=setup["trim"],
            prompts=project,
        )
    except Exception:
        text.detach()
        raise
    return vision, text


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


def _vision_encoder(
    clip: nn.Module, config: PromptConfig, factories: Factories, setup: Setup, *, initialize: bool
) -> PromptedVisionEncoder:
    initialization = config.vision_initialization if initialize else None
    if factories["vision"] is None and config.kind in ("prefix", "grouped"):
        prefix = _prefix(setup, config.vision_length, config.vision_depth)
        own = prefix if config.kind == "prefix" else _grouped(config, setup)
        return PromptedVisionEncoder(clip, initialization=initialization, prompts=own, trim=setup["trim"])
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
    clip: nn.Module, config: PromptConfig, factories: Factories, setup: Setup, *, depth: int | None, initialize: bool
) -> PromptedTextEncoder:
    initialization = config.text_initialization if initialize else None
    if factories["text"] is None and config.kind == "prefix":
        prefix = _prefix(setup, config.text_length, depth)
        return PromptedTextEncoder(clip, initialization=initialization, prompts=prefix, **setup)
    return PromptedTextEncoder(
        clip,
        config.text_length,
        depth=depth,
        position_embedding=config.position_embedding,
        initialization=initialization,
        slot=config.text_slot,
        prompts=factories["text"],
        **setup,
    )
