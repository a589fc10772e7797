"""The first minute: people are drawn, searched and shown, and the commands named next work on them."""

import pytest
from PIL import Image

from promptreid.cli import try_search


@pytest.fixture
def few(monkeypatch, tmp_path):
    """Few people, drawn in an empty working directory."""
    monkeypatch.setattr(try_search, "PEOPLE", (4, 1, 3))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_try_draws_searches_shows_and_names_the_next_commands(call, few):
    code, text, notes = call("try", "a man in a green jacket")
    assert (code, notes) == (0, "")
    lines = text.splitlines()
    assert lines[0] == "8 people, 16 images, with captions, are drawn in crops/"
    assert lines[1].startswith("  1   0.")
    assert "crops/imgs/" in lines[1]
    with Image.open(few / "found.png") as picture:
        assert picture.format == "PNG"
    for command in lines[-3:]:
        words = command.replace('"a woman in a red coat"', "woman").split()
        if words[1] != "train":
            assert call(*(word if word != "woman" else "a woman in a red coat" for word in words[1:]))[0] == 0
    assert lines[-1].strip() == "promptreid train crops --output run"
    assert call("check", "crops")[0] == 0


def test_try_again_searches_the_people_that_are_there(call, few):
    call("try", "a man")
    before = {path: path.stat().st_mtime_ns for path in (few / "crops").rglob("*")}
    code, answer, _ = call("try", "a woman", "--json")
    assert code == 0
    assert (answer["query"], answer["crops"], len(answer["hits"])) == ("a woman", "crops", 10)
    assert before == {path: path.stat().st_mtime_ns for path in (few / "crops").rglob("*")}
    assert call("try", "a woman")[1].startswith("8 people, 16 images, with captions: crops/, drawn before\n")


def test_try_leaves_a_folder_that_it_did_not_write_as_it_is(call, few):
    (few / "crops").mkdir()
    (few / "crops" / "mine.jpg").write_bytes(b"mine")
    code, text, notes = call("try", "a man's coat")
    assert (code, text) == (2, "")
    assert notes.startswith("error: crops holds files that promptreid try did not write, and is left as it is; name")
    assert [path.name for path in (few / "crops").iterdir()] == ["mine.jpg"]


@pytest.mark.parametrize(("sentence", "words"), [(" ", "the sentence is empty"), ("a.jpg", "is the name of an image")])
def test_try_looks_at_the_sentence_before_it_draws(call, few, sentence, words):
    code, text, notes = call("try", sentence)
    assert (code, text, words in notes) == (2, "", True)
    assert not (few / "crops").exists()


def test_try_without_matplotlib_still_finds_and_says_what_draws(call, few, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    code, text, _ = call("try", "a man")
    assert code == 0
    assert "  1   0." in text
    assert 'no picture: drawing needs matplotlib: pip install "promptreid[viz]"' in text
    assert not (few / "found.png").exists()


def test_the_sentence_of_the_readme_describes_people_who_are_drawn():
    from promptreid.synthetic.writer import draw_people

    people = draw_people(try_search.PEOPLE, near_twins=0.3, seed=try_search.SEED)
    wanted = ("man", "green", "jacket")
    assert sum((each.gender, each.upper_colour, each.upper_kind) == wanted for _, each, _ in people) == 4
