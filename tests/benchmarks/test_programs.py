"""Every benchmark takes --output and records its machine; each is tried in small."""

import contextlib
import importlib
import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PROGRAMS = [path.stem for path in sorted(BENCHMARKS.glob("[a-z]*.py")) if path.stem != "conftest"]
needs_gradio = pytest.mark.skipif(find_spec("gradio") is None, reason="needs the extra demo")
TINY = {"MODEL": "promptreid-tiny", "IMAGE_SIZE": (96, 48)}


@pytest.fixture
def command(monkeypatch):
    """Runs a program's `main` with arguments, and with other constants."""

    def command(name, arguments, **constants):
        module = importlib.import_module(name)
        for constant, value in constants.items():
            monkeypatch.setattr(module, constant, value)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        module.main()

    return command


@pytest.mark.parametrize("name", [*PROGRAMS, "speed", "paper_cost"])
def test_help_shows_where_the_result_goes(command, capsys, name):
    with pytest.raises(SystemExit) as end:
        command(name, ["--help"])
    assert end.value.code == 0
    assert "--output OUTPUT" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "arguments", "constants"),
    [
        pytest.param(
            "absent_people",
            "",
            {"PERSONS": 8, "SEEDS": (1,), "HALVES": 2, "TRAINED_ON": 8, "EPOCHS": 1},
            marks=pytest.mark.slow,
        ),
        ("data_loading", "", {"IMAGES": 16, "BATCH": 8, "TRAIN_IMAGES": 70, "OTHER_IMAGES": 30, "ROUNDS": 2}),
        ("evaluation_speed", "", {"CUHK_PEDES": (60, 30, 2), "PERSONS": 20}),
        ("generated_summary", "--persons 24 --sheets {folder}", {}),
        ("paper_cost", "", {}),
        ("search_indexing", "", {**TINY, "IDENTITIES": (2, 1, 1)}),
        ("search_speed", "", {"IMAGES": 1000}),
        ("training_overhead", "", {"ROUNDS": 1, "STEPS": 3, "BATCH_SIZE": 4}),
        pytest.param(
            "generated_calibration",
            "--identities 8 --epochs 1",
            {"IDENTITIES": (8, 4, 1), "BATCH_SIZE": 8},
            marks=pytest.mark.slow,
        ),
        pytest.param("demo_start", "", {"PEOPLE": 4, "ROUNDS": 1}, marks=[pytest.mark.slow, needs_gradio]),
        ("limit", "--model promptreid-tiny --image-size 96 48 --batch-size 2 --rounds 1 --side 64", {}),
        pytest.param("side_by_side", "--jobs 1 --steps 1 --rounds 1", {}, marks=pytest.mark.slow),
        pytest.param("hub_speed", "", {**TINY, "ROUNDS": 1}, marks=pytest.mark.slow),
        pytest.param("int8_export", "", {**TINY, "IDENTITIES": (1, 1, 2), "ROUNDS": 2}, marks=pytest.mark.slow),
        pytest.param("prompt_initialization", "", {"SEEDS": (0, 1), "IDENTITIES": (4, 1, 1)}, marks=pytest.mark.slow),
        pytest.param(
            "service_speed",
            "",
            {**TINY, "IMAGES": 100, "IDENTITIES": (1, 1, 2), "SINGLE": 8, "TOGETHER": 2},
            marks=[pytest.mark.slow, pytest.mark.skipif(find_spec("fastapi") is None, reason="the service needs it")],
        ),
        pytest.param("speed", "--steps 1", {}, marks=pytest.mark.slow),
        pytest.param("training_memory", "", {"VARIANTS": {"64": (8, None), "chunks": (16, 8)}}, marks=pytest.mark.slow),
        # At true size: some minutes, and no smaller model has weights on the Hub.
        pytest.param("whole_road", "", {}, marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
        pytest.param(
            "training_seeds",
            "--seeds 0 --runs {folder}/runs",
            {"IDENTITIES": (8, 3, 4), "BATCH_SIZE": 8},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "training_throughput",
            "--device cpu --model promptreid-tiny --image-size 96 48 --batch-sizes 8 --steps 1 --rounds 1",
            {},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_try_in_small_writes_figures_with_their_machine(command, tmp_path, name, arguments, constants):
    output = tmp_path / "result.json"
    with contextlib.suppress(SystemExit):  # so small, loading may miss what it promises
        command(name, ["--output", output, *arguments.format(folder=tmp_path).split()], **constants)
    result = json.loads(output.read_text())
    assert result["machine"]["processor"]
    assert result["versions"]["promptreid"]
    assert result["date"].startswith("20")
    assert len(result) > 3


@pytest.mark.slow
def test_each_precision_of_the_speed_of_backbones_keeps_its_machine(command, tmp_path, monkeypatch):
    import backbones_speed

    small = {**TINY, "BATCH": 2, "CAPTIONS": 2}
    monkeypatch.setattr(backbones_speed, "in_own_process", lambda work, *arguments: work(*arguments))
    output = tmp_path / "result.json"
    for precision in ("fp32", "bf16"):
        arguments = ["--output", output, "--rounds", 1, "--precision", precision, "--only", "prompted", "captions"]
        command("backbones_speed", [*arguments, "last_blocks"], **small)
    result = json.loads(output.read_text())
    for precision in ("fp32", "bf16"):
        assert result[precision]["machine"]["processor"]
        assert result[precision]["rounds"] == 1
        ratio = result[precision][backbones_speed.PROMPTED]
        assert ratio["lowest"] == ratio["ratio"] == ratio["highest"]  # of one round
        assert result[precision]["2 captions: largest relative difference"] < 0.1


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_gpu_in_small_runs_every_part(command, tmp_path):
    import backbones_speed

    command("gpu", ["--device", "cpu", "--minutes", "20", "--output", tmp_path])
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert {name: part["ended"] for name, part in record["parts"].items()} == {
        "tests": 0, "limit": 0, "backbones_speed_2": 0, "training_throughput": 0, "study": 0,
    }  # fmt: skip
    assert all(part["versions"]["torch"] for part in record["parts"].values())
    assert json.loads((tmp_path / "training_throughput.json").read_text())["by_batch_size"]
    assert backbones_speed.PROMPTED in json.loads((tmp_path / "backbones_speed_2.json").read_text())["bf16"]
    runs = [json.loads(path.read_text()) for path in (tmp_path / "convergence").rglob("*.json")]
    assert {run["run"]["arm"] for run in runs if run["history"]} == {"direct", "direct_more", "pd"}


def test_gpu_whose_time_is_up_says_what_was_not_begun(command, tmp_path):
    command("gpu", ["--device", "cpu", "--minutes", "0.01", "--output", tmp_path])
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert {part["ended"] for part in record["parts"].values()} == {"not begun, as the time was up"}


def test_limit_counts_the_products_of_both_stages(command, tmp_path):
    words = ["--model", "promptreid-tiny", "--image-size", 96, 48, "--batch-size", 2, "--rounds", 1, "--side", 64]
    command("limit", ["--output", tmp_path / "limit.json", *words])
    found = json.loads((tmp_path / "limit.json").read_text())
    # Stage 2 has products for the gradients of weights too; stage 1 has none, and prompts are few.
    assert 1.2 < found["stage_two"]["gflop"] / found["stage_one"]["gflop"] < 1.7
    assert all(found[name]["time_over_limit"][0] > 0 for name in ("stage_one", "stage_two"))
