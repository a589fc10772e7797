"""Pictures of rankings."""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from promptreid.evaluation.pictures import ranking as ranking_module
from promptreid.evaluation.pictures.canvas import new_figure, save_figure
from promptreid.evaluation.pictures.ranking import Ranking, draw_ranking, rank_captions
from promptreid.evaluation.splits import EncodedSplit


@pytest.fixture
def encoded(split):
    """Features by hand: captions of person i point along axis i, and pictures too, but for the first two."""
    persons = sorted({record.person_id for record in split.records})
    axes = {person: torch.eye(len(persons))[place] for place, person in enumerate(persons)}
    images = torch.stack([axes[record.person_id] for record in split.records])
    captions = [(caption, record.person_id) for record in split.records for caption in record.captions]
    return EncodedSplit(
        split,
        images,
        torch.stack([axes[person] for _, person in captions]),
        torch.tensor([record.person_id for record in split.records]),
        torch.tensor([person for _, person in captions]),
        [caption for caption, _ in captions],
    )


def test_rank_captions_gives_right_ones_first_and_marks_them(encoded):
    first, last = rank_captions(encoded, [0, 47], k=6)
    assert first.caption == encoded.captions[0]
    assert list(first.right) == [True] * 4 + [False] * 2
    assert list(first.paths[:4]) == [record.path for record in encoded.split.records[:4]]
    assert list(last.paths[:4]) == [record.path for record in encoded.split.records[20:]]
    assert list(first.scores) == [1.0] * 4 + [0.0] * 2


def test_draw_ranking_writes_a_picture_that_grows_with_its_rows(encoded, tmp_path):
    rankings = rank_captions(encoded, [0, 20], k=5)
    with (
        Image.open(draw_ranking(tmp_path / "one.png", rankings[:1])) as one,
        Image.open(draw_ranking(tmp_path / "two.png", rankings, title="Two sentences")) as two,
    ):
        assert one.format == "PNG"
        assert two.height > 1.8 * one.height
        assert two.width == one.width


def test_draw_ranking_frames_right_and_wrong_in_their_colours(split, tmp_path):
    def colours(right):
        path = tmp_path / "framed.png"
        draw_ranking(path, [Ranking("a man", [split.records[0].path], [0.5], [right])])
        with Image.open(path) as picture:
            return {colour for _, colour in picture.convert("RGB").getcolors(2**24)}

    green, red = (0, 158, 115), (213, 94, 0)
    assert green in colours(True)
    assert red not in colours(True)
    assert red in colours(False)
    assert green not in colours(False)


def test_draw_ranking_frames_right_whole_and_wrong_with_gaps(split, tmp_path):
    def covered(right, colour):
        """Of the frame's upright side, the share that has its colour."""
        path = tmp_path / "framed.png"
        draw_ranking(path, [Ranking("a man", [split.records[0].path], [0.5], [right])])
        with Image.open(path) as picture:
            framed = (np.asarray(picture.convert("RGB")) == colour).all(axis=2)
        columns = framed[:, framed.sum(axis=0).argmax()].nonzero()[0]
        return len(columns) / (columns.max() - columns.min() + 1)

    assert covered(True, (0, 158, 115)) > 0.95
    assert covered(False, (213, 94, 0)) < 0.85


def test_draw_ranking_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="rankings is empty"):
        draw_ranking(tmp_path / "none.png", [])


def test_draw_ranking_takes_dollar_signs_for_dollars(split, tmp_path):
    ranking = Ranking("costs $5% or $6", [split.records[0].path], [0.5])
    assert draw_ranking(tmp_path / "a.png", [ranking], title="$5% or $6").is_file()


def test_draw_ranking_of_a_missing_crop_is_an_empty_frame(tmp_path):
    Image.new("RGB", (48, 96), "red").save(tmp_path / "there_$x_$.png")
    paths = [tmp_path / "gone.jpg", tmp_path / "there_$x_$.png"]
    with Image.open(draw_ranking(tmp_path / "a.png", [Ranking("a man", paths, [0.5, 0.4])])) as drawing:
        assert (255, 0, 0) in {colour for _, colour in drawing.convert("RGB").getcolors(10**6)}


@pytest.mark.parametrize(
    "sentence",
    ["a man with a very red coat and " * 70, "x" * 900, "é" * 900, "word\n\tand " * 300, "a man", "$5 and $6 " * 200],
)
def test_sentence_of_any_length_leaves_the_crops_their_size(split, tmp_path, monkeypatch, sentence):
    figures = []
    save = ranking_module.save_figure

    def kept(figure, path):
        figures.append(figure)
        return save(figure, path)

    monkeypatch.setattr(ranking_module, "save_figure", kept)
    paths = [split.records[0].path]
    draw_ranking(tmp_path / "long.png", [Ranking(sentence, paths, [0.5]), Ranking("a woman", paths, [0.5])])
    rows = figures[0].subfigs
    text = rows[0]._suptitle.get_text()
    assert (text.count("\n") < 3, text.endswith("”")) == (True, True)
    assert text.endswith("…”") == (len(sentence) > 200)
    first, second = (row.axes[0].get_window_extent() for row in rows)
    assert first.height == pytest.approx(second.height, rel=0.06)
    assert rows[0]._suptitle.get_window_extent().y0 > first.y1


def test_sentence_without_spaces_fills_its_three_lines():
    lines = ranking_module._wrapped("“" + "一" * 420 + "”", 4.2)
    assert len(lines) == 3
    assert min(map(len, lines)) > 0.9 * max(map(len, lines))


def test_letters_are_told_once_by_older_versions_of_matplotlib_too(tmp_path, monkeypatch):
    figure = new_figure(2, 2)
    words = "Glyph {} (\\N{{CJK UNIFIED IDEOGRAPH}}) missing from current font."

    def warn(*_, **__):
        for number in (0x4E00, 0x7EA2):
            warnings.warn(words.format(number), UserWarning, stacklevel=1)

    monkeypatch.setattr(figure, "savefig", warn)
    with pytest.warns(UserWarning, match="the font of the figure does not have 一, 红, and draws boxes") as found:
        save_figure(figure, tmp_path / "a.png")
    assert len(found) == 1


def test_letters_that_the_font_lacks_are_told_once_with_what_helps(split, tmp_path):
    rankings = [
        Ranking(caption, [split.records[0].path], [0.5]) for caption in ("一个女人 " * 50, "红色外套, 黑色的包")
    ]
    with pytest.warns(UserWarning, match="the font of the figure") as found:
        draw_ranking(tmp_path / "a.png", rankings)
    (told,) = [str(each.message) for each in found]
    names_fonts = pytest.importorskip("matplotlib").__version_info__ >= (3, 9)
    name = ", DejaVu Sans," if names_fonts else ""
    assert told.startswith(f"the font of the figure{name} does not have 一, 个, 女, 人, 红, 色, 外, 套 and others")
    assert 'matplotlib.rcParams["font.family"] = [' in told
    assert "Glyph" not in told


def test_other_warnings_of_a_figure_are_passed_on(tmp_path, monkeypatch):
    figure = new_figure(2, 2)
    monkeypatch.setattr(
        figure, "savefig", lambda *_, **__: warnings.warn("something else", RuntimeWarning, stacklevel=1)
    )
    with pytest.warns(RuntimeWarning, match="something else"):
        save_figure(figure, tmp_path / "a.png")
