"""The command `calibrate`: a threshold from labelled images, kept with the index and used by `search`."""

import pytest

from promptreid import Gallery


@pytest.fixture
def index(drawn, tmp_path, call):
    assert call("index", drawn / "imgs", "--output", tmp_path / "gallery")[0] == 0
    return tmp_path / "gallery"


def test_calibrate_keeps_a_threshold_that_search_takes(index, drawn, call):
    code, answer, _ = call("calibrate", index, drawn, "--split", "test", "--false-alarms", "0.25", "--json")
    assert code == 0
    assert answer["split"] == "test"
    chosen = answer["calibration"]
    assert 0 <= chosen["false_alarm_rate"] <= 0.25
    assert (chosen["num_queries"], chosen["gallery_size"]) == (24, 12)
    assert Gallery.load(index).calibration.threshold == chosen["threshold"]
    code, found, _ = call("search", index, "a man in a green jacket", "--threshold", "calibrated", "--json")
    assert found["threshold"] == chosen["threshold"]
    assert (code == 0) == (found["best_score"] >= chosen["threshold"])


def test_calibrate_says_what_the_threshold_costs_and_what_to_type(index, drawn, call):
    code, said, _ = call("calibrate", index, drawn, "--split", "test")
    assert code == 0
    assert "of 24 searches for somebody there reach it" in said
    assert f'promptreid search {index} "a woman in a red coat" --threshold calibrated' in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--split", "val"], "more persons are needed"),  # one person
        (["--split", "test", "--false-alarms", "1"], "'1', expected a share from 0 to below 1, such as 0.05"),
        (["--split", "test", "--false-alarms", "often"], "'often', expected a share"),
    ],
)
def test_calibrate_on_too_little_or_by_no_rate_is_refused(index, drawn, call, arguments, words):
    code, _, errors = call("calibrate", index, drawn, *arguments)
    assert code == 2
    assert words in errors
    assert Gallery.load(index).calibration is None


def test_search_of_an_index_without_calibration_names_the_command(index, call):
    code, _, errors = call("search", index, "a man", "--threshold", "calibrated")
    assert code == 2
    assert "promptreid calibrate GALLERY DATA" in errors
