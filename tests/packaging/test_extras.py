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
    from promptreid.training.processes import make_accelerator

    without("accelerate")
    with pytest.raises(MissingExtraError, match=r'pip install "promptreid\[train\]"'):
        make_accelerator("cpu", "no")


def test_drawing_without_matplotlib_names_the_extra(without, tmp_path):
    from promptreid.evaluation.pictures.ranking import Ranking, draw_ranking

    without("matplotlib")
    with pytest.raises(MissingExtraError, match=r'pip install "promptreid\[viz\]"'):
        draw_ranking(tmp_path / "ranking.png", [Ranking("a man", [tmp_path / "a.jpg"], [0.5], [True])])
    assert not list(tmp_path.iterdir())


def test_hugging_face_text_tower_without_transformers_names_the_extra(without):
    from promptreid import load_clip

    without("transformers")
    with pytest.raises(MissingExtraError, match=r'text tower of roberta-ViT-B-32 .* pip install "promptreid\[hf\]"'):
        load_clip("roberta-ViT-B-32")


def test_hugging_face_tokenizer_without_transformers_names_the_extra(without):
    from promptreid.towers.tokenizer import tokenizer_of

    without("transformers")
    with pytest.raises(MissingExtraError, match=r'tokenizer of ViT-B-16-SigLIP .* pip install "promptreid\[hf\]"'):
        tokenizer_of("ViT-B-16-SigLIP")


def test_another_missing_module_is_not_taken_for_transformers():
    from promptreid.errors import explain_missing_transformers

    with pytest.raises(ModuleNotFoundError, match="sentencepiece") as caught, explain_missing_transformers("this"):
        raise ModuleNotFoundError("No module named 'sentencepiece'", name="sentencepiece")
    assert not isinstance(caught.value, MissingExtraError)


def test_page_without_gradio_names_the_extra(without):
    from promptreid.demo.app import require_gradio

    without("gradio")
    with pytest.raises(MissingExtraError, match=r'pip install "promptreid\[demo\]"'):
        require_gradio()


def test_parquet_without_pyarrow_names_the_extra(without, tmp_path):
    import torch

    from promptreid.retrieval.export import export_features
    from promptreid.retrieval.table import ImageTable

    without("pyarrow")
    one = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(MissingExtraError, match=r'pip install "promptreid\[parquet\]"'):
        export_features(tmp_path / "features.parquet", torch.zeros(1, 2), ImageTable(["a.jpg"], one, one, one, [{}]))
    assert not list(tmp_path.iterdir())
