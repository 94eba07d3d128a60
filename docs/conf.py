"""Sphinx: the numbered pages, built offline with warnings as errors (make docs)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

from netspectra.version import __version__

project = "netspectra"
author = "The netspectra authors"
copyright = author
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "registered"]
exclude_patterns = ["_build", "_ext"]
default_role = "literal"
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"netspectra {release}"
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
