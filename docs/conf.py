"""How Sphinx builds these pages: `make docs`. Nothing is fetched while building."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

from pygments.lexers.data import JsonLexer
from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx

from promptreid import __version__

project = "promptreid"
author = "The promptreid founders"
copyright = "2026, the promptreid founders; MIT licence"
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "reference_pages",
    "benchmark_pages",
    "docstring_code",
    "drawings",
    "drawn_math",
]
exclude_patterns = ["_build", "README.md"]

# Several classes have attributes of the same name, and napoleon takes plain words for types: those are not links.
suppress_warnings = ["ref.python"]

myst_enable_extensions = ["attrs_block", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4

default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
autodoc_default_options = {"members": True, "exclude-members": "extra_repr", "show-inheritance": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = ["Shape", "Source"]
viewcode_follow_imported_members = False
python_use_unqualified_type_names = True
maximum_signature_line_length = 100

html_theme = "furo"
html_title = f"promptreid {__version__}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["copy.js"]
html_math_renderer = "drawn"
html_logo = html_favicon = "_static/logo.svg"
html_show_sphinx = False
html_copy_source = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#00695c", "color-brand-content": "#00695c"},
    "dark_css_variables": {"color-brand-primary": "#4db6a4", "color-brand-content": "#4db6a4"},
}


def setup(app: Sphinx) -> None:
    """Register lexers for CSV tables and JSON lines."""
    app.add_lexer("csv", TextLexer)
    app.add_lexer("jsonl", JsonLexer)
