"""What the pictures show, and that they are written."""

import json

import pytest
import torch
from PIL import Image

from promptreid.data.records import ReIDSplit
from promptreid.evaluation.pictures import curves
from promptreid.evaluation.pictures.canvas import figure_as_svg, new_figure, save_figure
from promptreid.evaluation.pictures.curves import (
    draw_compared_curves,
    draw_losses,
    draw_scores,
    draw_training_curves,
    read_log,
)
from promptreid.evaluation.pictures.feature_space import (
    draw_feature_map,
    draw_similarities,
    principal_components,
    similarity_histograms,
)
from promptreid.evaluation.splits import EncodedSplit


@pytest.fixture
def encoded():
    """Two persons on two axes; three captions, the last of which points at the wrong person."""
    images, texts = torch.eye(2), torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    return EncodedSplit(ReIDSplit("test", []), images, texts, torch.tensor([4, 7]), torch.tensor([4, 7, 7]), ["a"] * 3)


def size_of(path):
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return picture.size


def test_similarities_are_counted_as_by_hand(encoded):
    right, wrong = similarity_histograms(encoded, bins=2)
    # Right pairs score 1, 1 and 0; wrong ones 0, 0 and 1. The upper bin holds 0 and more.
    assert right.tolist() == [0, 3]
    assert wrong.tolist() == [0, 3]
    right, wrong = similarity_histograms(encoded, bins=4)
    assert right.tolist() == [0, 0, 1, 2]
    assert wrong.tolist() == [0, 0, 2, 1]


def test_draw_similarities_makes_a_panel_a_state(encoded, tmp_path):
    one = size_of(draw_similarities(tmp_path / "one.png", {"before": encoded}))
    two = size_of(draw_similarities(tmp_path / "two.png", {"before": encoded, "after": encoded}))
    assert two[0] == pytest.approx(2 * one[0], abs=2)
    with pytest.raises(ValueError, match="splits is empty"):
        draw_similarities(tmp_path / "none.png", {})


def test_principal_components_keep_what_lies_in_a_plane():
    plane = torch.randn(20, 2) @ torch.randn(2, 9)
    images, texts, share = principal_components(plane[:12], plane[12:])
    assert share == pytest.approx(1.0)
    both = torch.cat([images, texts])
    assert torch.allclose(torch.cdist(both, both), torch.cdist(plane.double(), plane.double()), atol=1e-4)


def test_draw_feature_map_makes_a_panel_a_state(encoded, tmp_path):
    size_of(draw_feature_map(tmp_path / "map.png", {"before": encoded, "after": encoded}, persons=2))
    with pytest.raises(ValueError, match="persons is 9, expected 1 to 8"):
        draw_feature_map(tmp_path / "map.png", {"before": encoded}, persons=9)
    with pytest.raises(ValueError, match="splits is empty"):
        draw_feature_map(tmp_path / "map.png", {})


def test_draw_training_curves_from_a_log(tmp_path):
    entries = [
        {
            "stage": stage,
            "epoch": epoch,
            "losses": {"total": 3.0 - epoch, "identity": 1.0},
            "scores": {"mAP": epoch / 9},
        }
        for stage in ("stage_one", "stage_two")
        for epoch in (1, 2)
    ]
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    assert read_log(log) == entries
    size_of(draw_training_curves(tmp_path / "curves.png", read_log(log)))
    size_of(draw_training_curves(tmp_path / "bare.png", [{"stage": "one", "losses": {"total": 1.0}}]))
    entries[0]["losses"]["of a\u2028line"] = 1.0
    log.write_text("".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries), encoding="utf-8")
    assert read_log(log) == entries
    with pytest.raises(ValueError, match="history is empty"):
        draw_training_curves(tmp_path / "none.png", [])
    log.write_text(json.dumps(entries[0]) + "\n{broken\n")
    with pytest.raises(ValueError, match=r"log\.jsonl, line 2 is not valid JSON"):
        read_log(log)
    log.write_text("[1]\n")
    with pytest.raises(ValueError, match="line 1 is list, expected an object"):
        read_log(log)


def test_figures_on_a_page_take_dollar_signs_for_dollars():
    history = [{"stage": "$5% or $6", "losses": {"costs $5% or $6": 1.0}}]
    assert figure_as_svg(lambda figure: draw_losses(figure.subplots(), history), 3, 3).startswith("<svg")


def test_figure_is_left_as_it_was_by_saving_it(tmp_path):
    figure = new_figure(2, 2)
    figure.set_layout_engine("none")  # which moves the axes a little each time
    axis = figure.subplots()
    axis.plot([1, 10], [1, 10])
    axis.set_yscale("log")  # whose labels are formulas
    title = figure.suptitle("cost $5 and $6")
    files = [save_figure(figure, tmp_path / name) for name in ("a.png", "b.png")]
    assert title.get_text() == "cost $5 and $6"
    assert files[0].read_bytes() == files[1].read_bytes()


def test_figure_that_cannot_be_saved_is_left_as_it_was(tmp_path, monkeypatch):
    figure = new_figure(2, 2)
    title = figure.suptitle("cost $5 and $6")
    monkeypatch.setattr(figure, "savefig", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_figure(figure, tmp_path / "a.png")
    assert title.get_text() == "cost $5 and $6"


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are drawn, in place of files."""
    figures = []
    monkeypatch.setattr(curves, "save_figure", lambda figure, path: figures.append(figure) or path)
    return figures


def logged(*scores, kept=0):
    """A history as a log has it: a stage of epochs with these scores."""
    entries = [
        {"stage": "one", "losses": {"total": 1.0}, "scores": each, "epoch": epoch}
        for epoch, each in enumerate(scores, 1)
    ]
    entries[-1]["chosen"] = {"epoch": kept or len(entries)}
    return entries


def lines(axis):
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axis.lines}


@pytest.mark.parametrize("unknown", [None, float("nan"), float("inf")])
def test_draw_scores_has_no_point_and_no_ring_where_a_score_is_no_number(unknown):
    history = logged({"mAP": 0.25, "q": 1.0}, {"mAP": unknown, "q": unknown}, {"mAP": 0.5, "q": 0.75}, kept=2)
    axis = new_figure(3, 3).subplots()
    draw_scores(axis, history, baseline={"mAP": unknown, "q": 0.5})
    assert lines(axis) == {"mAP": ([1, 3], [25, 50]), "q": ([0, 1, 3], [50, 100, 75])}
    assert axis.get_ylabel() == "score, %"
    history[-1]["chosen"]["epoch"] = 3
    axis = new_figure(3, 3).subplots()
    draw_scores(axis, history)
    assert lines(axis)["kept"] == ([3], [50])


def test_draw_scores_leaves_out_what_is_no_share():
    history = logged({"rank20": 0.5, "val_loss": 2.3, "q": 0.25}, {"rank20": 0.75, "val_loss": 0.5, "q": 0.5})
    axis = new_figure(3, 3).subplots()
    draw_scores(axis, history, baseline={"val_loss": 0.5})
    assert lines(axis) == {"q": ([1, 2], [25, 50]), "rank20": ([1, 2], [50, 75])}


def test_draw_scores_of_which_none_is_a_share_are_drawn_as_they_are():
    history = logged({"own": 45.0, "gap": -2.0, "q": None}, {"own": 55.0, "gap": -1.0, "q": None})
    axis = new_figure(3, 3).subplots()
    draw_scores(axis, history, baseline={"own": 30.0})
    assert lines(axis) == {"own": ([0, 1, 2], [30, 45, 55]), "gap": ([1, 2], [-2, -1])}
    assert axis.get_ylabel() == "score"


def test_draw_training_curves_of_scores_and_losses_that_are_null(tmp_path):
    history = logged({"mAP": None, "q": 1.0})
    history[0]["losses"]["own"] = None
    size_of(draw_training_curves(tmp_path / "curves.png", history))


@pytest.mark.parametrize("missing", [{"mAP": None}, {"q": 1.0}, {}])
def test_draw_compared_curves_leaves_out_scores_that_are_missing(missing, drawn, tmp_path):
    runs = {
        "pd": [logged({"mAP": 0.25}, missing, {"mAP": 0.75}), logged({"mAP": 0.75}, {"mAP": 0.5}, {"mAP": 0.25})],
        "with_none": [logged(missing), logged({"mAP": 0.5})],
        "apart": [logged(missing, {"mAP": 0.5}), logged({"mAP": 0.5}, missing)],
        "none": [logged(missing)],
    }
    draw_compared_curves(tmp_path / "c.png", runs)
    (axis,) = drawn[0].axes
    found = [(list(line.get_xdata()), list(line.get_ydata())) for line in axis.lines]
    assert found == [
        ([1, 3], [25, 75]),
        ([1, 2, 3], [75, 50, 25]),
        ([1, 3], [50, 50]),
        ([1], [50]),
        ([1], [50]),
        ([2], [50]),
        ([1], [50]),
        ([], []),
    ]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["pd", "with none", "apart"]
    assert axis.get_ylabel() == "mAP, %"


@pytest.mark.parametrize("runs", [{}, {"pd": []}, {"pd": [[]]}, {"pd": [logged({"mAP": 0.5, "rank5": None})]}])
def test_draw_compared_curves_of_a_score_that_no_epoch_has_is_refused(runs, tmp_path):
    with pytest.raises(ValueError, match="no epoch of any run has the score rank5"):
        draw_compared_curves(tmp_path / "c.png", runs, metric="rank5")
