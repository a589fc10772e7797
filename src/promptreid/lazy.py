"""Public names that are imported when they are first used, so that `import promptreid` takes no time."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """A package's `__getattr__` (PEP 562): imports a name from its module and keeps it.

    Args:
        package: The package's `__name__`.
        modules: Module of each name.

    Example:
        ```python
        __getattr__ = lazy_names(__name__, {"Gallery": "promptreid.retrieval.gallery"})
        ```
    """

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(modules[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return get
