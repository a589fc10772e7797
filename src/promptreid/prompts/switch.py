"""Turns the prompts of one tower off and on, each thread for itself."""

import itertools
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

# A context variable, not an attribute: each thread that infers has its own.
_bare: ContextVar[frozenset[int]] = ContextVar("promptreid_bare", default=frozenset())
_keys = itertools.count()


class Switch:
    """Whether the prompts of one tower go in."""

    def __init__(self) -> None:
        self.key = next(_keys)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Give a deep copy a key of its own, so that disabling one does not disable the other."""
        self.__dict__.update(state)
        self.key: int = next(_keys)

    @property
    def on(self) -> bool:
        """Whether prompts go in, in the calling thread."""
        return self.key not in _bare.get()

    @contextmanager
    def off(self) -> Generator[None, None, None]:
        """Run the tower bare inside the block, in the calling thread alone."""
        token = _bare.set(_bare.get() | {self.key})
        try:
            yield
        finally:
            _bare.reset(token)
