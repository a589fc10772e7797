"""The base of every kind of prompts: parameters, hooks in one tower, and a way to turn them off temporarily."""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from promptreid.errors import AttachmentError
from promptreid.prompts.config import Initialization
from promptreid.towers.trimming import ThreadValue
from promptreid.values import whole_number

_OCCUPANT = "promptreid_prompts"  # attribute of a tower's module: the prompts in it


class PromptKind(nn.Module):
    """A kind of prompt: a module that owns learnable tensors and the hooks that carry them into one tower.

    Its parameters are what stage 1 trains, and its `state_dict()` is what is saved. Your own kind defines its
    parameters and `register_hooks`; `PromptedVisionEncoder(clip, prompts=MyKind)` then puts it in.

    Args:
        tower: The tower that it is for.
        length: P, how many prompts; with 0 the tower stays bare.
        width: D, the size of one prompt.

    Raises:
        ValueError: `length` is negative.
        TypeError: `length` is not an integer.

    Example:
        >>> import torch
        >>> class Shift(PromptKind):
        ...     def __init__(self, tower):
        ...         super().__init__(tower, length=1, width=128)
        ...         self.shift = nn.Parameter(torch.zeros(128))
        ...     def register_hooks(self):
        ...         yield self.tower.module.register_forward_hook(self._add)
        ...     def _add(self, module, args, output):
        ...         return output + self.shift if self.active else None
        >>> from promptreid import PromptedVisionEncoder, load_clip
        >>> encoder = PromptedVisionEncoder(load_clip("promptreid-tiny", image_size=(96, 48)), prompts=Shift)
        >>> [name for name, _ in encoder.named_parameters()]
        ['prompts.shift']
    """

    tower: Any

    def __init__(self, tower: Any, length: int, *, width: int) -> None:
        super().__init__()
        self.tower = tower
        self.length: int = whole_number("length", length, minimum=0)
        self.width = width
        self._bare: ThreadValue = ThreadValue()
        self._handles: list[RemovableHandle] = []

    def register_hooks(self) -> Iterator[RemovableHandle]:
        """Register every hook and yield its handle.

        Hooks are bound methods, or objects that refer to this one, so that a deep copy has its own hooks; they
        do nothing unless `active`.
        """
        raise NotImplementedError

    def start(self, initialization: Initialization | None, run: Callable[[], Any]) -> None:
        """Give the prompts their first values once the hooks are in; a kind whose constructor does that needs none.

        Args:
            initialization: As in `PromptConfig`; `None` leaves them as they are, for a loader that sets them.
            run: Sends a few inputs through the tower.
        """

    def position(self, bare: Any) -> Any:
        """Positions of tokens in the blocks, from their positions in the bare sequence, an integer or a tensor of them.

        The built-in kinds know it, so that the last block may compute only the pooled token; `None`: every token.
        """
        return None

    @contextmanager
    def for_groups(self, groups: Sequence[str | None] | Tensor | None, count: int) -> Generator[None, None, None]:
        """Encode inside the block a batch whose images are of these groups, where a kind has prompts for each.

        Args:
            groups: Of each image its group; `None` where groups are not given.
            count: Images in the batch.

        Raises:
            ValueError: Groups are given, and this kind has none.
        """
        if groups is not None:
            raise ValueError(
                "groups are given, but these prompts are the same for all; leave groups out, or choose "
                'PromptConfig(kind="grouped", groups=[...])'
            )
        yield

    @property
    def attached(self) -> bool:
        """Whether the hooks are in place."""
        return vars(self.tower.module).get(_OCCUPANT) is self

    @property
    def active(self) -> bool:
        """Whether prompts go in, in the calling thread."""
        return self.length > 0 and self._bare.get() is None

    def attach(self) -> None:
        """Put the hooks into the tower.

        Raises:
            AttachmentError: The tower carries prompts already.
        """
        occupied = vars(self.tower.module)
        if _OCCUPANT in occupied:
            raise AttachmentError(
                f"this {self.tower.kind} already carries prompts, and two sets would stack. Call .detach() on the "
                "first wrapper, or take copy.deepcopy(clip) of the bare model before wrapping."
            )
        occupied[_OCCUPANT] = self
        try:
            for handle in self.register_hooks():
                self._handles.append(handle)
        except Exception:
            self.detach()
            raise

    def detach(self) -> None:
        """Take every hook out."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self.attached:
            del vars(self.tower.module)[_OCCUPANT]

    @contextmanager
    def disabled(self) -> Generator[None, None, None]:
        """Run the tower bare inside the block, only in the calling thread."""
        with self._bare.held(True):
            yield

    def extra_repr(self) -> str:
        """Number and width of the prompts, for `print(model)`."""
        return f"{self.length} of width {self.width}"


def checked_depth(tower: Any, depth: int | None) -> int:
    """How many of a tower's first blocks own prompts; `None` for every block.

    Raises:
        ValueError: `depth` is below 1, or the tower has fewer blocks.
        TypeError: `depth` is not an integer.
    """
    blocks = len(tower.blocks)
    if depth is None:
        return blocks
    depth = whole_number("depth", depth, minimum=1)
    if depth > blocks:
        raise ValueError(f"depth is {depth}, but this {tower.kind} has {blocks} blocks; give 1 to {blocks}")
    return depth
