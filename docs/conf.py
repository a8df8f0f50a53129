"""Sphinx: Markdown pages, the tour executed by sphinx-gallery, the reference from the docstrings. `make docs`."""

import os
import re
from pathlib import Path

os.environ["KERAS_BACKEND"] = "tensorflow"

from docutils.nodes import SkipNode
from docutils.utils.math.latex2mathml import tex2mathml

from covkeras import __version__
from covkeras.runtime import startup

startup.quiet_tensorflow()

project, author, version = "covkeras", "the covkeras authors", __version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_gallery.gen_gallery",
]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "tour", "results/pages", "results/data", "**/README.*"]
html_math_renderer = "mathml"
html_theme = "furo"
html_title = "covkeras"
autodoc_typehints = "none"
autodoc_member_order = "bysource"
sphinx_gallery_conf = {
    "examples_dirs": "tour",
    "gallery_dirs": "executed",
    "filename_pattern": r"tour_",
    "abort_on_example_error": True,
    "show_memory": False,
    "download_all_examples": False,
    "remove_config_comments": True,
    # What is measured belongs to the page, not to the machine that built it.
    "min_reported_time": 10**6,
    "write_computation_times": False,
}
# Pages on the web are checked by `make linkcheck`, which needs a network.
linkcheck_anchors = False


def _plain(app, what, name, obj, options, lines) -> None:
    """The docstrings are plain text with formulas: `code`, indented examples, and no markup in |x|, a * b or mu_c~."""
    made, example, last = [], False, ""
    for line in lines:
        indented = line.startswith("    ")
        if indented and made and not made[-1] and not last.endswith(":"):
            example = True
            made += ["::", ""]
        example = example and (indented or not line)
        last = line if line and not indented else last
        parts = [line] if example else re.split(r"(`[^`]+`)", line)
        made.append("".join(part if example else _literal(part) for part in parts))
    lines[:] = made


def _literal(part: str) -> str:
    if part.startswith("`"):
        return f"`{part}`"
    return re.sub(r"([|*\\])|(?<=\w)_(?=\W|$)", r"\\\g<0>", part)


def _mathml(translator, node) -> None:
    """Formulas as MathML, which browsers draw themselves: the pages need no script from the web."""
    block = node.tagname == "math_block"
    made = tex2mathml(node.astext(), as_block=block)
    translator.body.append(f'<div class="formula">{made}</div>' if block else made)
    raise SkipNode


def setup(app) -> None:
    app.add_html_math_renderer("mathml", (_mathml, None), (_mathml, None))
    app.connect("autodoc-process-docstring", _plain)
    # The executed tour writes its run here, and a build starts clean.
    Path(app.confdir, "_build", "tour").mkdir(parents=True, exist_ok=True)
