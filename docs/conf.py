"""How Sphinx turns the pages that scripts/docs.py gathers into the site."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

from pygments.lexers.special import TextLexer
from sphinx.highlighting import lexers

settings = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]

project = settings["name"]
release = version = settings["version"]
copyright = "the optscope authors"  # noqa: A001 (Sphinx's name)
extensions = ["myst_parser", "sphinx.ext.intersphinx"]
myst_enable_extensions = ["attrs_inline", "colon_fence"]
myst_heading_anchors = 3
# With DOCS_ONLINE=1, types of other packages link to their documentation; else the build asks no network.
intersphinx_mapping = {
    "python": ("https://docs.python.org/3", None),
    "torch": ("https://docs.pytorch.org/docs/stable", None),
    "numpy": ("https://numpy.org/doc/stable", None),
    "scipy": ("https://docs.scipy.org/doc/scipy", None),
} if os.environ.get("DOCS_ONLINE") == "1" else {}
lexers["levels"] = lexers["public"] = lexers["output"] = TextLexer()  # read by tests; what tutorials print
suppress_warnings = ["myst.header"]  # in committed reports a picture comes before sections
add_module_names = False
toc_object_entries_show_parents = "hide"
python_maximum_signature_line_length = 88
html_theme = "pydata_sphinx_theme"
html_title = "optscope"
html_copy_source = False  # the Markdown of a page lies beside it, under its own name
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["optscope.css"]
html_favicon = "_static/optscope.svg"  # without one browsers ask for a file that is not there
html_sidebars = {page: [] for page in ("start", "benchmarks", "contributing", "adding")}  # nothing lies below them
html_context = {"default_mode": "auto"}  # without it the theme complains on the console
html_theme_options = {
    "logo": {"text": "optscope"},
    "header_links_before_dropdown": 6,
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": ["theme-switcher"],
}
