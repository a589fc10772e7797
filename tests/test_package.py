"""What the package promises as a whole: its public names, its version, its weight on import."""

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import promptreid

ROOT = Path(__file__).parents[1]


def test_public_names_are_those_of_the_design():
    assert set(promptreid.__all__) - {"__version__"} == {
        "ContrastiveLoss",
        "CrossModalIDLoss",
        "Gallery",
        "PromptConfig",
        "PromptedCLIP",
        "PromptedTextEncoder",
        "PromptedVisionEncoder",
        "Recipe",
        "Stage",
        "Trainer",
        "TwoStageSchedule",
        "adapt",
        "evaluate",
        "load_clip",
        "load_prompts",
        "push_prompts",
        "save_prompts",
    }
    assert all(getattr(promptreid, name) is not None for name in promptreid.__all__)


def test_every_public_name_has_a_docstring():
    assert all((getattr(promptreid, name).__doc__ or "").strip() for name in promptreid.__all__)


def test_changelog_newest_entry_equals_the_version():
    newest = re.search(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert newest is not None
    assert newest[1] == promptreid.__version__ == version("promptreid")


def test_import_needs_no_extra():
    extras = (
        "accelerate", "tensorboard", "matplotlib", "gradio", "transformers", "pyarrow", "onnx", "onnxruntime",
        "onnxscript",
    )  # fmt: skip
    blocked = "; ".join(f"sys.modules[{name!r}] = None" for name in extras)
    process = subprocess.run(
        [sys.executable, "-c", f"import sys; {blocked}; from promptreid import *"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr


def test_import_is_lazy_and_unknown_names_are_refused():
    program = "import sys, promptreid; print('torch' in sys.modules, hasattr(promptreid, 'no_such_name'))"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert output.split() == ["False", "False"]
