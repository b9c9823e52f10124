"""Sphinx configuration of the site, English and Chinese in one: `make docs`."""

import re

import jieba

from paddle_freeze_callback import __version__

project = "paddle_freeze_callback"
author = "The paddle_freeze_callback developers"
copyright = author
release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "index"
exclude_patterns = ["_build"]
# Splits Chinese into words, and stems the English ones beside it.
html_search_language = "zh"
for _term in (
    "骨干网络",
    "任务头",
    "冻结计划",
    "解冻策略",
    "逐层解冻",
    "选择器",
    "断点续训",
    "梯度累积",
):
    jieba.add_word(_term)
html_static_path = ["_static"]
html_js_files = ["search.js"]
html_theme = "furo"
html_title = f"paddle_freeze_callback {release}"
html_theme_options = {"navigation_with_keys": True}

# The pages are read in the repository, too, so their links name files there.
myst_heading_anchors = 3
myst_enable_extensions = ["attrs_inline"]
suppress_warnings = ["myst.xref_missing"]  # benchmarks/*.md and the like; tests/test_docs.py looks

autodoc_member_order = "bysource"
autodoc_typehints = "description"
napoleon_use_rtype = False
nitpicky = True
# Of Python and of Paddle, whose inventories would need the network; and unions that the text
# beside them explains.
nitpick_ignore_regex = [
    ("py:class", r"(collections\.abc|os|fractions|paddle|nn)\..*"),
    ("py:class", r"When|Stages|Selector|File|Metrics|Figure|Axes|(norms\.)?TrainNorm"),
    # handed over, never written by hand
    ("py:class", r"LearningRates|CacheOptions|(.*\.)?Record|.*\.Survey"),
]


def _quote_stars(app, what, name, obj, options, lines):
    """A help text is plain: its "*" begins no emphasis."""
    for number, line in enumerate(lines):
        if line.startswith("    ") or not line.lstrip().startswith(">>>"):
            lines[number] = re.sub(r"(?<![`*])(['\"{=]\*|\*['\"])(?![`*])", _escaped, line)


def _escaped(found):
    return found[0].replace("*", "\\*")


def setup(app):
    app.connect("autodoc-process-docstring", _quote_stars, priority=100)
