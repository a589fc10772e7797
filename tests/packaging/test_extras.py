"""Without an extra the rest works, and the call that needs it says which to install."""

import sys

import pytest

from promptreid.errors import MissingExtraError


@pytest.fixture
def without(monkeypatch):
    """Makes packages look as if they were not installed."""

    def block(*names: str) -> None:
        for name in names:
            for loaded in [key for key in sys.modules if key == name or key.startswith(f"{name}.")]:
                monkeypatch.delitem(sys.modules, loaded)
            monkeypatch.setitem(sys.modules, name, None)

    return block


def test_trainer_without_accelerate_names_the_extra(without):
    from promptreid.training.acceleration import make_accelerator

    without("accelerate")
    with pytest.raises(MissingExtraError, match=r'pip install "promptreid\[train\]"'):
        make_accelerator("cpu", "no")


def test_drawing_without_matplotlib_names_the_extra(without, tmp_path):
    from promptreid.evaluation.pictures.ranking import Ranking, draw_ranking

    without("matplotlib")
    with pytest.raises(MissingExtraError, match=r'pip install "promptreid\[viz\]"'):
        draw_ranking(tmp_path / "ranking.png", [Ranking("a man", [tmp_path / "a.jpg"], [0.5], [True])])
    assert not list(tmp_path.iterdir())
