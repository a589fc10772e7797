"""Says which extra to install when an architecture needs transformers."""

import importlib
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

from promptreid.errors import MissingExtraError


def check_transformers(name: str, config: Mapping[str, Any]) -> None:
    """Refuse an architecture whose text tower is Hugging Face's where transformers is not installed.

    Raises:
        MissingExtraError: It is not installed.
    """
    if "hf_model_name" in config.get("text_cfg", {}):
        with explain_missing_transformers(f"the text tower of {name}"):
            importlib.import_module("transformers")


@contextmanager
def explain_missing_transformers(what: str) -> Generator[None, None, None]:
    """Turn the error of an import of transformers into one that names the extra.

    Raises:
        MissingExtraError: transformers was imported and is not installed.
    """
    try:
        yield
    except ImportError as error:
        if (error.name or "").split(".")[0] != "transformers":
            raise
        raise MissingExtraError(f'{what} needs transformers: pip install "promptreid[hf]"') from error
