"""The README as a package index shows it: no link that leads nowhere there."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def for_index():
    pytest.importorskip("hatchling")
    spec = importlib.util.spec_from_file_location("index_readme", ROOT / "tools" / "index_readme.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.for_index


@pytest.mark.parametrize(
    ("text", "without", "within"),
    [
        ("see [docs/a.md](docs/a.md#b).", "see docs/a.md.", "see [docs/a.md](https://h/r/blob/HEAD/docs/a.md#b)."),
        (
            "![two\nlines](docs/p.png)",
            "*Picture, in the repository as `docs/p.png`: two\nlines*",
            "![two\nlines](https://h/r/raw/HEAD/docs/p.png)",
        ),
        ("[x](https://a.b) [y](#z) [m](mailto:a@b.c)",) * 3,
        ("| [a](a.md), [b](b.md) | [c] (d) |", "| a, b | [c] (d) |", None),
    ],
)
def test_relative_links_become_words_or_addresses(for_index, text, without, within):
    assert for_index(text, None) == without
    if within is not None:
        assert for_index(text, "https://h/r/") == within


def test_the_readme_itself_keeps_every_word_of_its_links(for_index):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = for_index(readme, None)
    assert "](docs/" in readme
    assert "](docs/" not in shown
    assert "](examples/" not in shown
    assert "docs/concepts.md" in shown
    assert shown.count("](https://") == readme.count("](https://")
