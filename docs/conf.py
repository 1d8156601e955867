"""Sphinx configuration; the build needs no network."""

from importlib.metadata import version as installed

project = "lowres-vision"
author = "The lowres-vision developers"
copyright = "2026, the lowres-vision developers"
version = release = installed("lowres-vision")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "lowres-vision"

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
copybutton_exclude = ".linenos, .gp, .go"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False

# References into other projects have no inventory here; everything of our own must resolve.
nitpick_ignore_regex = [
    (r"py:.*", r"(?!lowres_vision\.).*"),
]
