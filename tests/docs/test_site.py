"""What the pages need beside their text: formulas without a network, and copy buttons that copy commands."""

import importlib
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


def test_formulas_are_drawings_in_the_colour_of_the_text(monkeypatch):
    pytest.importorskip("sphinx")
    monkeypatch.syspath_prepend(str(DOCS / "_ext"))
    drawn = importlib.import_module("drawn_math").formula(r"x^\top \bar z < 1")
    assert drawn.startswith("<svg ")
    assert "currentColor" in drawn
    assert "#ffffff" not in drawn  # no white box on a dark page
    assert r'aria-label="x^\top \bar z &lt; 1"' in drawn


@pytest.mark.browser
@pytest.mark.parametrize(
    ("shown", "copied"),
    [
        (
            "$ pip install promptreid\n$ promptreid --version\npromptreid 1\n",
            "pip install promptreid\npromptreid --version",
        ),
        ("$ promptreid search gallery \\\n    'a man'\n  1  0.4\n", "promptreid search gallery \\\n    'a man'"),
        (">>> for _ in range(2):\n...     print(1)\n1\n1\n", "for _ in range(2):\n    print(1)"),
        ("price = '$ 5'\nprint(price)\n", "price = '$ 5'\nprint(price)"),
    ],
)
def test_copy_leaves_out_prompts_and_output(shown, copied):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page()
        page.add_script_tag(path=str(DOCS / "_static" / "copy.js"))
        assert page.evaluate("textToCopy", shown) == copied
        browser.close()
