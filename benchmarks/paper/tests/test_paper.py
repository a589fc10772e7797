"""The paper's recipe: its tables, its cost, and the command on drawn data in each layout with the small base."""

import json
import runpy
import sys
from pathlib import Path

import pytest

import paper_cost
import paper_rows
import paper_tables

ROOT = Path(__file__).parents[3]
PAPER = ROOT / "benchmarks" / "paper"
TINY = ["--model", "promptreid-tiny", "--pretrained", "none", "--image-size", "96", "48", "--device", "cpu"]


@pytest.fixture
def reproduce(monkeypatch, capsys):
    """Runs the command as a person would type it, and returns what it printed."""

    def reproduce(*arguments):
        monkeypatch.setattr(sys, "argv", ["reproduce.py", *map(str, arguments), *TINY])
        runpy.run_path(str(PAPER / "reproduce.py"), run_name="__main__")
        return capsys.readouterr().out

    return reproduce


@pytest.mark.parametrize(
    ("layout", "rule"),
    [
        ("CUHK-PEDES", "best validation mAP"),
        pytest.param("ICFG-PEDES", "last epoch", marks=pytest.mark.slow),
        pytest.param("RSTPReid", "best validation mAP", marks=pytest.mark.slow),
    ],
)
def test_a_dry_run_in_each_layout_writes_the_main_table(reproduce, tmp_path, layout, rule):
    arguments = ("--dry-run", layout, "--rows", "zero_shot", "direct", "pd", "--output", tmp_path)
    output = reproduce(*arguments)
    assert "expected on one GPU" in output
    assert "measured" in output
    tables = (tmp_path / "tables.md").read_text(encoding="utf-8")
    assert "**A dry run on drawn people" in tables
    assert rule in tables
    assert tables.count("| 1 | ") >= 3
    assert "| with position embedding | not run |" in tables
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "results").iterdir()}
    assert len(before) == 3
    solvers = {path.name: json.loads(path.read_text())["settings"]["own"] for path in before}
    assert solvers.pop("direct-seed0.json") == paper_rows.IRRA_SOLVER
    assert not any(solvers.values())
    reproduce(*arguments)  # nothing is done twice
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "results").iterdir()} == before


@pytest.mark.slow
def test_every_row_runs_and_both_tables_are_full(reproduce, tmp_path):
    reproduce("--dry-run", "CUHK-PEDES", "--output", tmp_path, "--seeds", 0, 1)
    tables = (tmp_path / "tables.md").read_text(encoding="utf-8")
    assert "not run" not in tables
    assert " ± " in tables


def test_results_of_other_settings_are_refused(reproduce, tmp_path):
    common = ("--dry-run", "CUHK-PEDES", "--rows", "zero_shot", "--output", tmp_path)
    reproduce(*common)
    with pytest.raises(FileExistsError, match="is of other settings"):
        reproduce(*common, "--batch-size", 2)
    other_row = ("--dry-run", "CUHK-PEDES", "--rows", "direct", "--output", tmp_path)
    with pytest.raises(FileExistsError, match=r"zero_shot-seed0\.json is of other settings: batch_size was 4, is 2"):
        reproduce(*other_row, "--batch-size", 2)
    with next((tmp_path / "data" / "imgs").rglob("*.jpg")).open("ab") as image:
        image.write(b"\0")
    with pytest.raises(FileExistsError, match=r"of other settings: identity\.\w+\.images\.bytes was"):
        reproduce(*other_row)


def test_data_and_dry_run_exclude_each_other(reproduce, capsys):
    with pytest.raises(SystemExit):
        reproduce()
    assert "give either a dataset's folder, or --dry-run" in capsys.readouterr().err


def test_another_data_set_is_refused(reproduce, tmp_path):
    from promptreid.synthetic import write_generated

    crops = write_generated(tmp_path / "drawn", num_identities=(2, 1, 1), images_per_identity=1, progress=False)
    image = next((crops / "imgs").rglob("*.jpg"))
    (tmp_path / "own").mkdir()
    for number in range(3):
        (tmp_path / "own" / f"{number}.jpg").write_bytes(image.read_bytes())
    (tmp_path / "own" / "table.csv").write_text(
        "image,caption,person_id,split\n0.jpg,a,1,train\n1.jpg,b,2,train\n2.jpg,c,3,test\n"
    )
    with pytest.raises(SystemExit, match="the paper's datasets are CUHK-PEDES, ICFG-PEDES, RSTPReid"):
        reproduce(tmp_path / "own")


def test_every_table_has_published_figures_as_the_docs_have_them():
    docs = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
    for method, figures in paper_tables.PUBLISHED.items():
        if method == "Prompt Decoupling":
            assert "near 71.6, 60.9 and 56.7" in docs
            continue
        assert list(figures) == ["CUHK-PEDES", "ICFG-PEDES", "RSTPReid"]
        assert " | ".join(f"{rank1} / {mAP}" for rank1, mAP in figures.values()) in docs, method


def test_rows_of_the_tables_are_those_of_the_ablations_page():
    assert set(paper_rows.rows_of(["main", "ablations"])) == set(paper_rows.ROWS)
    assert paper_rows.rows_of(["main"]) == ["zero_shot", "direct", "pd"]


def test_the_direct_row_alone_is_trained_with_irras_optimiser_settings():
    from promptreid.training.recipe import Recipe

    tiny = paper_rows.Setting(model="promptreid-tiny", pretrained=None, image_size=(96, 48))
    for row in ("direct", "pd", "joint"):
        stages = paper_rows.make_stages(
            row, paper_rows.make_model(row, 0, tiny, device="cpu"), Recipe(num_identities=2)
        )
        found = {(each.algorithm, each.epsilon, each.max_norm) for each in stages}
        assert found == {("adam", 1e-3, None) if row == "direct" else ("adamw", 1e-8, 1.0)}, row
        assert stages[-1].weight_decay == (4e-5 if row == "direct" else 0.01)


def test_cost_by_hand(tmp_path):
    from promptreid import PromptedCLIP, load_clip
    from promptreid.training import ablations
    from promptreid.training.recipe import Recipe

    model = PromptedCLIP(load_clip("promptreid-tiny", image_size=(96, 48)))
    recipe = Recipe(num_identities=2, stage_one_epochs=3, stage_two_epochs=5)
    cost = paper_cost.Cost(frozen=2.0, trained=3.0, encoded=1.0, source="")
    # 3 epochs · 10 pairs · 2 s + 5 · 10 · 3 s = 210 s; 8 looks at validation and one at test, 4 images each: 36 s.
    assert cost.seconds(ablations.two_stages(model, recipe), 10, images=4) == 246.0
    assert cost.seconds(ablations.joint_one_stage(model, recipe), 10, images=4) == 150.0 + 24.0
    assert "not measured" in paper_cost.known_cost(tmp_path / "none.json").source
    measured = {
        "pairs": 100,
        "test_pictures": 10,
        "device": "a GPU",
        "date": "2026-01-01",
        "seconds": {"stage_one": 50.0, "stage_two": 100.0, "evaluation": 5.0},
    }
    (tmp_path / "found.json").write_text(json.dumps(measured))
    found = paper_cost.known_cost(tmp_path / "found.json")
    assert (found.frozen, found.trained, found.encoded) == (0.5, 1.0, 0.5)
    assert found.source.startswith("measured on a GPU, 2026-01-01")
