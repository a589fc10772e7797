"""Eval mode for a while."""

from collections.abc import Generator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(module: nn.Module) -> Generator[None, None, None]:
    """Put a module and everything in it into eval mode inside the block, and each back into its own mode afterwards.

    Example:
        >>> model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
        >>> with evaluating(model):
        ...     print([part.training for part in model])
        [False, False]
        >>> [part.training for part in model]
        [True, False]
    """
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training
