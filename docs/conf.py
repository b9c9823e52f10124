"""Sphinx configuration of the API reference: `make docs`."""

from paddle_freeze_callback import __version__

project = "paddle_freeze_callback"
author = "The paddle_freeze_callback developers"
release = __version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "alabaster"
exclude_patterns = ["_build", "*.md"]
autodoc_member_order = "bysource"
autodoc_typehints = "description"
napoleon_use_rtype = False
nitpicky = False
