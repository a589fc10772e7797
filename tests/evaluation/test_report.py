"""The page about a run: what it says, that it needs no other file, and what moved."""

import re
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from promptreid.data.records import ImageRecord, ReIDSplit
from promptreid.evaluation import report as module
from promptreid.evaluation.evaluate import score
from promptreid.evaluation.report import Movement, RunReport, movement, write_report
from promptreid.evaluation.splits import EncodedSplit

HISTORY = [
    {"stage": "stage_one", "epoch": 1, "step": 5, "losses": {"total": 3.0}, "scores": {"mAP": 0.2}, "seconds": 61.0,
     "chosen": {"rule": "highest mAP", "epoch": 1, "step": 5}},
    {"stage": "stage_two", "epoch": 1, "step": 5, "losses": {"total": 2.0}, "scores": {"mAP": 0.4}, "seconds": 2.0,
     "chosen": {"rule": "highest mAP", "epoch": 1, "step": 5}},
]  # fmt: skip


@pytest.fixture
def splits(tmp_path):
    """Two persons on two axes: before, the first caption finds the wrong one; after, each finds its own."""
    records = []
    for person, colour in ((4, "red"), (7, "blue")):
        path = tmp_path / f"<{person}>.jpg"
        Image.new("RGB", (16, 32), colour).save(path)
        records.append(ImageRecord(path, person, (f"<b>person {person}</b>",), "test"))
    split, ids = ReIDSplit("test", records), torch.tensor([4, 7])
    images = torch.eye(2)
    before = EncodedSplit(split, images, torch.tensor([[0.0, 1.0], [0.0, 1.0]]), ids, ids, split.captions)
    after = EncodedSplit(split, images, torch.eye(2), ids, ids, split.captions)
    return {"zero_shot": before, "stage_two": after}


class Page(HTMLParser):
    """Collects addresses, headings and whether tags are closed."""

    def __init__(self):
        super().__init__()
        self.addresses, self.open, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_report_is_one_file_that_says_everything(splits, tmp_path):
    pytest.importorskip("matplotlib")
    scores = {state: score(encoded) for state, encoded in splits.items()}
    report = RunReport(
        "A <title>",
        "people",
        scores,
        splits,
        HISTORY,
        {"zero_shot": {"mAP": 0.1}},
        {"batch_size": 8},
        is_synthetic=True,
    )
    text = write_report(tmp_path / "report.html", report).read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert page.open == []
    assert page.addresses
    assert all(address.startswith(("data:image/jpeg;base64,", "#")) for address in page.addresses)
    assert not re.search(r"url\((?!#)|@import|<script|<link", text)
    assert "$" not in re.sub(r"data:[^\"]*", "", text)
    words = " ".join(" ".join(page.text).split())
    for said in (
        "A <title>", "The people are drawn", "100.00 %", "+50.00 points from zero shot", "2 epochs", "1 min 03 s",
        "stage one kept epoch 1 (highest mAP)", "only by stage two", "1 (50 %)", "Largest gains", "2 → 1",
        "<b>person 4</b>", "batch size", "image to text", "mINP",
    ):  # fmt: skip
        assert said in words, said
    assert text.count("<svg") == 4  # losses, scores, and similarities of two states


@pytest.mark.parametrize("validation", [{}, {"zero_shot": {"mAP": 0.1}}])
def test_report_draws_only_the_bare_model_as_the_bare_model(splits, tmp_path, monkeypatch, validation):
    pytest.importorskip("matplotlib")
    drawn = []
    monkeypatch.setattr(module, "draw_scores", lambda axis, history, baseline: drawn.append(baseline))
    last = {"stage_two": splits["stage_two"]}  # as where the test split is scored in the last state only
    validation = {**validation, "stage_one": {"mAP": 0.2}, "stage_two": {"mAP": 0.4}}
    scores = {"stage_two": score(last["stage_two"])}
    write_report(tmp_path / "report.html", RunReport("t", "d", scores, last, HISTORY, validation))
    assert drawn == [validation.get("zero_shot")]


def test_report_of_photographs_says_that_the_dataset_has_terms(splits, tmp_path):
    pytest.importorskip("matplotlib")
    encoded = {"zero_shot": splits["zero_shot"]}
    scores = {"zero_shot": score(splits["zero_shot"])}
    next(iter(splits["zero_shot"].split.records)).path.unlink()
    text = write_report(tmp_path / "report.html", RunReport("t", "d", scores, encoded, [])).read_text(encoding="utf-8")
    assert "only as far as the dataset's terms allow" in text
    assert "cannot be read" in text
    assert "What moved" not in text
    with pytest.raises(ValueError, match="encoded is empty"):
        write_report(tmp_path / "report.html", RunReport("t", "d", {}, {}, []))


def test_movement_counts_and_orders_as_by_hand(splits):
    moved = movement(splits["zero_shot"], splits["stage_two"])
    assert (moved.before.tolist(), moved.after.tolist()) == ([2, 1], [1, 1])
    assert moved.found == {"both": 1, "second": 1, "first": 0, "neither": 0}
    # Factors 12 / 3 = 4, 8 / 1 = 8, 1 / 5 and none; what has no right image counts nowhere.
    hand = Movement(torch.tensor([12, 8, 1, 0]), torch.tensor([3, 1, 5, 0]))
    assert hand.found == {"both": 0, "second": 1, "first": 1, "neither": 1}
    assert hand.furthest(up=True, most=3) == [1, 0]
    assert hand.furthest(up=False, most=3) == [2]
