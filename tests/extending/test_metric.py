import json
import re

import pytest
import torch


@pytest.fixture
def metric_example(run_example):
    return run_example("A metric")


def test_metric_is_the_hand_worked_median_and_in_its_table(metric_example, capsys):
    from promptreid.evaluation.metrics import compute_metrics

    # Queries 7, 8 and 9 find their item at ranks 1, 2 and 3; the fourth has none and is left out.
    gallery = torch.eye(3, 4)
    queries = torch.tensor([[3.0, 2, 1, 0], [3.0, 2, 1, 0], [3.0, 2, 1, 0], [1.0, 1, 1, 0]])
    with pytest.warns(UserWarning, match="1 of 4 queries"):
        found = compute_metrics(queries, gallery, torch.tensor([7, 8, 9, 5]), torch.tensor([7, 8, 9]))
    assert found.as_dict()["MedR"] == 2
    head, text_to_image, _ = metric_example.score_table(
        {"mine": found.as_dict() | {"image_to_text": found.as_dict()}}
    ).split("\n")
    assert head.split()[-1] == "MedR"
    assert text_to_image.split()[-3:] == ["61.11", "61.11", "2"]  # (1 + 1/2 + 1/3) / 3 twice, and the rank as it is


def test_metric_is_in_metrics_json_comparison_report_and_card(metric_example, tmp_path):
    from promptreid.evaluation.comparison import Comparison
    from promptreid.evaluation.evaluate import encode_split, write_evaluation
    from promptreid.evaluation.report import RunReport, write_report
    from promptreid.hub.card import CardDetails, make_card
    from promptreid.hub.prompt_files import read_prompt_files
    from promptreid.training.seeds import SeedScores

    scores = metric_example.scores
    own = scores.text_to_image.as_dict()
    shown = f"{own['MedR']:.4g}"
    model = metric_example.load_prompts(metric_example.tiny_prompts())
    encoded = encode_split(model, metric_example.load_dataset("data/CUHK-PEDES").test, progress=False)
    write_evaluation(tmp_path / "scored", encoded, scores)
    assert json.loads((tmp_path / "scored/metrics.json").read_text())["text_to_image"]["MedR"] == own["MedR"]
    assert f" {shown} |" in Comparison({"mine": SeedScores({0: own})}, {}).markdown()
    report = RunReport(title="t", data="d", scores={"a": scores}, encoded={"a": encoded}, history=[])
    page = write_report(tmp_path / "report.html", report).read_text()
    assert "<th>Median rank</th>" in page
    assert f"<td>{shown}</td></tr>" in page
    manifest = read_prompt_files(metric_example.tiny_prompts()).manifest
    card = make_card(
        manifest, repo_id="a/b", base_model=None, metrics=scores.as_dict(), details=CardDetails(dataset="D")
    )
    assert f"| Median rank | {shown} | one run |" in card.text
    assert re.search(rf"value: {float(shown)}\n\s+name: Median rank", card.content)


def test_metric_of_another_table_is_left_out_where_a_score_lacks_it(metric_example):
    old = {"rank1": 0.5, "image_to_text": {"rank1": 0.25}}
    assert metric_example.score_table({"old": old}).split("\n")[1].split() == ["old", "text", "to", "image", "50.00"]
