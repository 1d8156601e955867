"""Sphinx configuration; the build needs no network.

sphinx-build -W -n -b html docs OUT                  # the site; the gallery runs
sphinx-build -t online -b linkcheck -D plot_gallery=0 docs OUT     # every link
"""

from collections.abc import Iterator
from importlib.metadata import version as installed
from typing import Any

import torch
from matplotlib.figure import Figure
from sphinx_gallery.scrapers import figure_rst

# The gallery's networks are tiny: two threads that share a core with other work wait for each other
# ten times as long as they compute.
torch.set_num_threads(1)

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
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "gallery"]
html_extra_path = ["extra"]  # the page that runs a model in the browser
suppress_warnings = ["config.cache"]  # sphinx_gallery_conf holds a function
html_theme = "furo"
html_title = "lowres-vision"
html_theme_options = {"light_css_variables": {"code-font-size": "0.74rem"}}  # 91 letters a line

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
copybutton_exclude = ".linenos, .gp, .go"

autodoc_member_order = "bysource"
autodoc_default_options = {"exclude-members": "extra_repr"}  # the repr of a Module
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# References into other projects have no inventory here; everything of our own must resolve, but
# for the private types in the signatures of public names.
nitpick_ignore_regex = [
    (r"py:.*", r"(?!lowres_vision\.).*"),
    (r"py:class", r"lowres_vision\.(\w+\.)*_\w+\.\w+"),
]

linkcheck_timeout = 20
linkcheck_retries = 3
linkcheck_rate_limit_timeout = 60  # 73 links go to arXiv
linkcheck_allowed_redirects = {r"https://doi\.org/.*": r"https://.*"}
linkcheck_ignore = [r"https://download\.pytorch\.org/whl/cpu"]  # an index for pip, no page

if tags.has("online"):  # noqa: F821, Sphinx defines it
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "lightning": ("https://lightning.ai/docs/pytorch/stable", None),
    }


def figures(block: Any, variables: dict[str, Any], settings: dict[str, Any]) -> str:
    """Save the figures that a block of a gallery script left in its variables, each once."""

    def pictures() -> Iterator[str]:
        for value in variables["example_globals"].values():
            if isinstance(value, Figure) and not hasattr(value, "shown"):
                value.shown = True
                path = next(variables["image_path_iterator"])
                value.savefig(path, dpi=100, bbox_inches="tight")
                yield path

    return figure_rst(list(pictures()), settings["src_dir"])


sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "pictures",
    "filename_pattern": r"\.py$",
    "image_scrapers": (figures,),
    "reset_modules": (),
    "download_all_examples": False,
    "remove_config_comments": True,
    "show_memory": False,
    "min_reported_time": 1e9,
    "write_computation_times": False,
}
