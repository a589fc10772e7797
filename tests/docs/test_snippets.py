"""Every Python block of the documentation runs, page by page, as a reader would type it."""

import asyncio
import re
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
WRITTEN_BY_THE_BUILD = {"_build", "api", "drawn"}
FENCE = re.compile(r"^```(?P<language>[^\n`]*)\n(?P<text>.*?)^```\s*$", flags=re.DOTALL | re.MULTILINE)


def pages() -> list[Path]:
    return [
        path
        for path in sorted(DOCS.rglob("*.md"))
        if not WRITTEN_BY_THE_BUILD & set(path.relative_to(DOCS).parts) and path != DOCS / "benchmarks.md"
    ]


def blocks(page: Path, *languages: str) -> list[str]:
    found = FENCE.finditer(page.read_text(encoding="utf-8"))
    return [match["text"] for match in found if match["language"].strip() in languages]


def stand_in_for_langchain(monkeypatch) -> None:
    """Where langchain-core is not installed, an empty base class in the place of its own."""
    if find_spec("langchain_core") is None:
        module = ModuleType("langchain_core.embeddings")
        module.Embeddings = object
        monkeypatch.setitem(sys.modules, "langchain_core", ModuleType("langchain_core"))
        monkeypatch.setitem(sys.modules, "langchain_core.embeddings", module)


PAGES_WITH_PYTHON = [page for page in pages() if blocks(page, "python")]


def test_there_are_pages_with_snippets():
    assert {page.stem for page in PAGES_WITH_PYTHON} >= {"index", "quick_start", "concepts", "own_training_loop"}


@pytest.mark.parametrize("page", PAGES_WITH_PYTHON, ids=lambda page: page.relative_to(DOCS).with_suffix("").as_posix())
def test_snippets_of_a_page_run_one_after_another(page, reader_folder, tables_restored, tmp_path, monkeypatch):
    folder = tmp_path / "reader"
    shutil.copytree(reader_folder, folder)
    monkeypatch.chdir(folder)
    stand_in_for_langchain(monkeypatch)
    names: dict[str, object] = {"__name__": "snippet"}
    for number, text in enumerate(blocks(page, "python"), start=1):
        exec(compile(text, f"{page.relative_to(ROOT)}, snippet {number}", "exec"), names)


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(DOCS).as_posix())
def test_every_block_has_a_language_that_is_checked_or_plain_text(page):
    known = ("python", "console", "bash", "text", "json", "yaml", "csv", "jsonl", "pycon", "toml", "{")
    found = [match["language"].strip() for match in FENCE.finditer(page.read_text(encoding="utf-8"))]
    assert not [language for language in found if not language.startswith(known)]


def test_langchain_recipe_is_a_class_of_langchains_and_serves_its_vector_store(shipped):
    embeddings = pytest.importorskip("langchain_core.embeddings")
    vectorstores = pytest.importorskip("langchain_core.vectorstores")
    names: dict[str, object] = {"model": shipped[0], "Path": Path}
    exec(next(text for text in blocks(DOCS / "recipes.md", "python") if "langchain_core" in text), names)
    recipe = names["embeddings"]
    assert isinstance(recipe, embeddings.Embeddings)
    sentences = ["a woman in a red coat", "a man with a black backpack", "a child in blue shorts"]
    store = vectorstores.InMemoryVectorStore(recipe)
    store.add_texts(sentences)
    for sentence in sentences:
        ((found, score),) = store.similarity_search_with_score(sentence, k=1)
        assert found.page_content == sentence
        assert score == pytest.approx(1, abs=1e-5)
    assert asyncio.run(recipe.aembed_query(sentences[0])) == recipe.embed_query(sentences[0])


def test_fiftyone_recipe_fills_a_field_with_one_vector_a_sample(shipped, split, monkeypatch):
    """FiftyOne itself is not installed: an object with the two methods of its datasets that the recipe calls."""
    stand_in_for_langchain(monkeypatch)

    class Samples:
        fields = {"filepath": [str(path) for path in split.paths[:3]]}  # noqa: RUF012

        def values(self, field):
            return self.fields[field]

        def set_values(self, field, values):
            self.fields[field] = values

    (recipe,) = [text for text in blocks(DOCS / "recipes.md", "python") if "def add_features" in text]
    names = {"Path": Path}
    exec(compile(recipe, "recipes.md", "exec"), names)
    samples, model = Samples(), shipped[0]
    names["add_features"](samples, model)
    assert [vector.shape for vector in samples.values("promptreid")] == [(128,)] * 3
    expected = model.encode(split.paths[:3], progress=False).numpy()
    assert abs(sum(samples.values("promptreid")) - expected.sum(axis=0)).max() < 1e-6
