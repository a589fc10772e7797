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
    assert "of searches for people who are not there and by " in said
    assert "measured with 24 sentences in 12 images" in said
    assert f'promptreid search {index} "a woman in a red coat" --threshold calibrated' in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--split", "val"],
            "of 1 persons. Calibrate on captions and images of at least two, or without labels: promptreid calibrate",
        ),  # one person
        (
            ["--split", "test", "--false-alarms", "0.04"],
            "24 labelled sentences are too few for a rate of 0.04; give a split with 25 or more, or calibrate without",
        ),
        (["--split", "test", "--false-alarms", "1"], "'1', expected a share from 0 to below 1, such as 0.05"),
        (["--split", "test", "--false-alarms", "often"], "'often', expected a share"),
    ],
)
def test_calibrate_on_too_little_or_by_no_rate_is_refused(index, drawn, call, arguments, words):
    code, _, errors = call("calibrate", index, drawn, *arguments)
    assert code == 2
    assert words in errors
    assert Gallery.load(index).calibration.hit_rate is None  # still that of the index


def test_search_of_a_gallery_without_calibration_names_the_command(index, call):
    gallery = Gallery.load(index)
    gallery._store.change(header={"calibration": None})
    code, _, errors = call("search", index, "a man", "--threshold", "calibrated")
    assert code == 2
    assert "never calibrated; run promptreid calibrate GALLERY, or add DATA with labelled images" in errors


def test_index_leaves_a_threshold_without_labels_and_renews_it_when_the_index_has_grown(index, drawn, call):
    chosen = Gallery.load(index).calibration
    assert (chosen.hit_rate, chosen.num_queries, chosen.gallery_size) == (None, 400, 32)
    assert 0 < chosen.false_alarm_rate <= 0.05
    code, text, _ = call("search", index, "a man in a green jacket", "-k", 3)
    assert code == 0
    best = text.split()[1]
    verdict = text.splitlines()[3]
    assert "for people who are not there" in verdict
    assert verdict.startswith(
        (f"no match stands out: the best score is {best}", "1 of these reaches", "2 of these reach", "3 of these reach")
    )
    assert call("search", index, "a man", "--json")[1]["calibration"]["threshold"] == chosen.threshold
    call("index", "--output", index, "--remove", *range(8))
    call("index", drawn / "imgs", "--output", index)
    assert Gallery.load(index).calibration.gallery_size == 24
    call("calibrate", index, drawn, "--split", "test")
    call("index", "--output", index, "--remove", *range(8, 16))
    call("index", drawn / "imgs", "--output", index)
    assert Gallery.load(index).calibration.hit_rate is not None  # labels are better


def test_calibrate_without_labels_takes_sentences_of_ones_own(index, call, tmp_path):
    code, text, _ = call("calibrate", index)
    assert code == 0
    assert "reached by 5% of searches for people who are not there" in text
    assert "only labelled data can tell" in text
    (tmp_path / "asked.txt").write_text("a man in a red coat\n" * 3 + "a woman\n")
    code, answer, _ = call("calibrate", index, "--queries", tmp_path / "asked.txt", "--false-alarms", "0.3", "--json")
    assert code == 0
    assert (answer["data"], answer["calibration"]["num_queries"], answer["calibration"]["hit_rate"]) == (None, 4, None)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--split", "test"], "--split would do nothing here: it goes with a dataset, DATA"),
        (["--on-bad", "skip"], "--on-bad would do nothing here"),
        (["--table", "people.csv"], "--table would do nothing here: it goes with a dataset, DATA"),
        (["--queries", "nowhere.txt"], "--queries is nowhere.txt, but there is no such file"),
    ],
)
def test_calibrate_without_labels_refuses_what_goes_with_labels(index, call, arguments, words):
    code, _, errors = call("calibrate", index, *arguments)
    assert code == 2
    assert words in errors
    code, _, errors = call("calibrate", index, index.parent, "--queries", index / "gallery.json")
    assert "--queries would do nothing here: a dataset has its own sentences" in errors


@pytest.mark.parametrize(
    ("hit_rate", "verdict"),
    [(0.5, "probably nobody matches"), (0.49, "no match stands out"), (None, "no match stands out")],
)
def test_nobody_is_said_to_match_only_where_somebody_there_is_mostly_found(index, call, hit_rate, verdict):
    chosen = {"threshold": 0.99, "false_alarm_rate": 0.05, "hit_rate": hit_rate, "num_queries": 9, "gallery_size": 32}
    Gallery.load(index)._store.change(header={"calibration": chosen})
    code, text, _ = call("search", index, "a man", "-k", 1)
    assert code == 0
    assert text.splitlines()[1] == (
        f"{verdict}: the best score is {text.split()[1]}, and such scores also occur for people who are not there; "
        "one of 0.990 or more would stand out"
    )


def test_an_image_is_not_judged_by_the_threshold_of_sentences(index, drawn, call):
    chosen = {"threshold": 0.01, "false_alarm_rate": 0.05, "hit_rate": None, "num_queries": 9, "gallery_size": 32}
    Gallery.load(index)._store.change(header={"calibration": chosen})
    assert "1 of these reaches 0.010, reached by" in call("search", index, "a man", "-k", 1)[1]
    image = next((drawn / "imgs").rglob("*.jpg"))
    code, text, _ = call("search", index, "--image", image, "-k", 3)
    assert (code, len(text.splitlines())) == (0, 3)
    assert call("search", index, "--image", image, "--json")[1]["calibration"] is None
    code, _, notes = call("search", index, "--image", image, "--threshold", "calibrated")
    assert (code, notes) == (
        2,
        "error: --threshold calibrated was measured with sentences, and --image scores higher than they do; give a "
        "number, or leave --threshold out\n",
    )
    assert call("search", index, "--image", image, "--threshold", 0.5)[0] == 0
