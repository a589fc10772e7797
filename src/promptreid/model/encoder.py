"""The base class of the text and the image encoder, which may hold prompts of several kinds."""

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from promptreid.errors import CheckpointError
from promptreid.hub.manifest import PromptManifest
from promptreid.prompts.config import Initialization
from promptreid.prompts.kind import PromptKind
from promptreid.towers.trimming import LastBlock

# Makes a kind of prompt from the description of the tower that it is for.
PromptFactory = Callable[[Any], PromptKind]
# Of each tower; `None` for the built-in kind that fits.
Factories = Mapping[str, PromptFactory | None]


class PromptCarrier(nn.Module):
    """Prompts in one tower of a model that is owned elsewhere.

    Args:
        clip: The open_clip model; referred to, not registered, so its parameters are not listed here.
        prompts: The prompts, not attached yet.
        initialization: How prompts start.
        probe: Sends a few inputs through the tower.
        trim: Compute only what the features depend on, where that is exact.

    Attributes:
        tower: The description of the tower.
        prompts: The module that owns the prompts and their hooks.

    Raises:
        AttachmentError: The tower carries prompts already.
        ValueError: The initialisation is unknown.
        TypeError: `prompts` is not a kind of prompt.
    """

    tower: Any

    def __init__(
        self,
        clip: nn.Module,
        prompts: PromptKind,
        *,
        initialization: Initialization | None,
        probe: Callable[[], Any],
        trim: bool,
    ) -> None:
        super().__init__()
        if not isinstance(prompts, PromptKind):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"prompts made {type(prompts).__name__}, expected a promptreid.prompts.kind.PromptKind")
        self._base = (clip,)  # a tuple hides the module from registration
        self.tower = prompts.tower
        self.prompts: PromptKind = prompts.to(next(clip.parameters()).device)
        self.prompts.attach()
        try:
            prompts.start(initialization, probe)
        except Exception:
            prompts.detach()
            raise
        self.trim = trim
        self.last_block: LastBlock = LastBlock(prompts.tower, prompts.position, clip)

    @property
    def clip(self) -> nn.Module:
        """The open_clip model."""
        return self._base[0]

    @property
    def kind(self) -> str:
        """Family and class of the tower."""
        return self.tower.kind

    @property
    def width(self) -> int:
        """D, the size of one prompt."""
        return self.prompts.width

    @contextmanager
    def disabled(self) -> Generator[None, None, None]:
        """Run the tower bare inside the block, only in the calling thread."""
        with self.prompts.disabled():
            yield

    def attach(self) -> None:
        """Put the prompts back that `detach` took out.

        Raises:
            AttachmentError: The tower carries prompts, these or others.
        """
        self.prompts.attach()
        self.last_block = LastBlock(self.tower, self.prompts.position, self.clip)

    def detach(self) -> nn.Module:
        """Take the prompts out of the model, until `attach`, and return it as it was."""
        self.last_block.remove()
        self.prompts.detach()
        return self.clip

    def extra_repr(self) -> str:
        """Name the tower in `print(model)`."""
        return self.kind


def make_own(factory: PromptFactory, tower: Any, **options: object) -> PromptKind:
    """A kind of prompt of the user's own, which has none of the built-in kinds' options."""
    refuse_options("prompts are of your own kind, which has none of these options", **options)
    return factory(tower)


def check_tensor(value: object, what: str, maker: str) -> None:
    """Refuse what is not a tensor, and say what makes one."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{what} are {type(value).__name__}, expected a tensor, as {maker} makes")


def refuse_options(reason: str, **options: object) -> None:
    """Refuse options that are given, that is not `None`, and have no meaning here.

    Raises:
        ValueError: An option is given; names it, and says the reason.
    """
    given = [f"{name} is {value!r}" for name, value in options.items() if value is not None]
    if given:
        raise ValueError(f"{' and '.join(given)}, but {reason}. Leave these options out")


def check_factories(manifest: PromptManifest, factories: Factories) -> None:
    """Refuse prompts of a kind that nobody can make here, before the base is made for them.

    Raises:
        CheckpointError: The prompts of a tower are not of a built-in kind, and nothing makes them.
    """
    for tower, kind in manifest.kinds.items():
        if factories[tower] is None:
            raise CheckpointError(
                f"the {tower} prompts are of the kind {kind}, which is not built in; pass {tower}_prompts=, a function "
                "that takes the tower and makes them"
            )


def check_kinds(manifest: PromptManifest, kinds: Mapping[str, str]) -> None:
    """Refuse prompts of another kind, whose tensors may have the same shapes by chance.

    Raises:
        CheckpointError: The prompts of a tower were saved by another kind than those that are to hold them.
    """
    for tower in ("vision", "text"):
        saved, own = (each.get(tower, "a built-in kind") for each in (manifest.kinds, kinds))
        if saved != own:
            raise CheckpointError(
                f"the {tower} prompts were saved by {saved}, and this model has {own}; load them into a model with "
                f"{tower}_prompts= making the kind that saved them, or without it for a built-in kind"
            )
