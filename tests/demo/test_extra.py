import os
import sys

import pytest

from promptreid.demo.extra import require_gradio
from promptreid.errors import MissingExtraError


def test_require_gradio_without_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(MissingExtraError, match=r'the demo needs gradio: pip install "promptreid\[demo\]"'):
        require_gradio()


def test_require_gradio_turns_its_telemetry_off_first(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GRADIO_ANALYTICS_ENABLED", "GRADIO_RUN_HISTORY", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "untouched")
    monkeypatch.setitem(sys.modules, "gradio", sys)
    assert require_gradio() is sys
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert os.environ["GRADIO_RUN_HISTORY"] == "False"
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"
