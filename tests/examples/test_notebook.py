"""The notebook: valid, without outputs, and run from its first cell to its last as Colab would."""

import json
import os
import re
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "first_search.ipynb"
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
CODE = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]


def test_notebook_is_kept_without_outputs_and_installs_only_where_needed():
    assert not [cell for cell in CELLS if cell.get("outputs") or cell.get("execution_count")]
    assert 'find_spec("promptreid") is None' in CODE[0]
    assert len({cell["id"] for cell in CELLS}) == len(CELLS)


def test_every_cell_of_code_is_python():
    for number, text in enumerate(CODE):
        compile(text, f"cell {number}", "exec")


@pytest.mark.slow
def test_notebook_runs_from_first_to_last_cell(tmp_path, monkeypatch):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    monkeypatch.setitem(os.environ, "CUDA_VISIBLE_DEVICES", "")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=240, kernel_name="python3", resources=resources).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    said = "".join(output.get("text", "") for output in outputs)
    assert len(re.findall(r"^0\.\d{3} crops", said, re.MULTILINE)) == 5
    bare, prompted = (float(found) for found in re.findall(r"rank-1 (\d\.\d{3})", said))
    assert prompted > bare
    assert "prompts.safetensors" in said
    drawn = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(drawn) == 2  # the crops found, and the bars
    assert (tmp_path / "run" / "model" / "prompt_config.json").is_file()
