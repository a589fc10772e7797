"""Brings in gradio, or says how to install it."""

import importlib
import os
from typing import Any

from promptreid.errors import MissingExtraError

# gradio reads these when it is imported or when a page is made; nothing is ever sent to anyone from this page.
_SILENT = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_RUN_HISTORY": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


def require_gradio() -> Any:
    """gradio, with its telemetry and its record of what was asked turned off.

    Raises:
        MissingExtraError: It is not installed.
    """
    os.environ.update(_SILENT)
    try:
        return importlib.import_module("gradio")
    except ImportError as error:
        raise MissingExtraError('the demo needs gradio: pip install "promptreid[demo]"') from error
