"""Settings of the site. `make docs` assembles its sources first (see `assemble.py`)."""

from __future__ import annotations

import re
import sys
from configparser import ConfigParser
from pathlib import Path

import plotly
from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.writers.html5 import HTML5Translator

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT)]

from assemble import chapters_of_modules, modules, notebooks  # noqa: E402

config = ConfigParser(delimiters=["="])
config.read(ROOT / "settings.ini", encoding="utf-8")
project = config["DEFAULT"]["title"]
author = config["DEFAULT"]["author"]
project_copyright = config["DEFAULT"]["copyright"]
release = config["DEFAULT"]["version"]

extensions = [
    "myst_nb", "sphinx_design", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon",
    "sphinx.ext.linkcode",
]  # fmt: skip
nitpicky = True
suppress_warnings = ["ref.python"]  # a type that several modules have; missing ones still fail
highlight_language = "none"

nb_execution_mode = "off"
nb_merge_streams = True
nb_render_markdown_format = "myst"  # of outputs: the default, CommonMark, has no tables
nb_ipywidgets_js = {}
nb_code_prompt_show = nb_code_prompt_hide = "Imports"
myst_enable_extensions = ["colon_fence", "attrs_block", "dollarmath"]
myst_heading_anchors = 3
myst_links_external_new_tab = True

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"no-value": True}
autodoc_preserve_defaults = True
autosummary_generate = False
maximum_signature_line_length = 100
python_use_unqualified_type_names = True
napoleon_google_docstring = False
napoleon_use_rtype = False
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "pydata_sphinx_theme"
html_title = "cups"
html_static_path = ["_static", str(Path(plotly.__file__).parent / "package_data" / "plotly.min.js")]
html_css_files = ["cups.css"]
html_favicon = "_static/favicon.svg"
html_search_scorer = str(HERE / "_static" / "scorer.js")
html_math_renderer = "mathml"
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "logo": {"text": "cups"},
    "navbar_align": "left",
    "header_links_before_dropdown": 8,
    "show_prev_next": True,
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "footer_start": ["copyright"],
    "footer_end": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
html_sidebars = {name: [] for name in ("index", "gallery", "compare", "changelog")}

CHAPTERS = chapters_of_modules(ROOT)
MODULES = modules(ROOT)
NOTEBOOKS = {path.with_suffix("").as_posix() for path in notebooks(ROOT)}


def linkcode_resolve(domain: str, info: dict[str, str]) -> str | None:
    """Return the place in a chapter where something is defined, as seen from a page of the reference."""
    page = CHAPTERS.get(info["module"])
    return f"../{page}.html#source-{info['fullname'].split('.')[0]}" if page else None


def known_names() -> dict[str, str]:
    """Return what a word set as code can only mean: the full name of something public, by its short and full name."""
    stems = {re.sub(r"^(.*/)?(\d+_)?", "", name) for name in NOTEBOOKS}
    defining = {module: names for module, (names, _) in MODULES.items() if module not in ("cups", "cups.model")}
    full = [f"{module}.{name}" for module, names in defining.items() for name in names]
    short = [name.rsplit(".", 1)[-1] for name in full]
    telling = {s for s in short if short.count(s) == 1 and re.search("[A-Z_]", s) and s not in stems}
    return {name: name for name in full} | {s: f for s, f in zip(short, full, strict=True) if s in telling}


NAMES = known_names()

# Types in docstrings are English ("Tensor, (H, W), bool"); other projects and private names are not linked to.
nitpick_ignore_regex = [("py:.*", r"(?!cups\.).*|.*\._.*")]
nitpick_ignore = [("py:class", f"{module}.{name}") for module, (_, bare) in MODULES.items() for name in bare]


class CodeLinks(SphinxTransform):
    """Words set as code become links: names to the reference, notebooks to chapters, modules to their page."""

    default_priority = 5

    def apply(self) -> None:
        """Change the document."""
        for node in list(self.document.findall(lambda n: isinstance(n, nodes.literal | nodes.title_reference))):
            text = node.astext()
            code = nodes.literal(text, text)
            notebook = re.fullmatch(r"nbs/([\w/]+?)(\.ipynb)?", text)
            if isinstance(node.parent, nodes.reference | addnodes.pending_xref | nodes.title):
                target = None
            elif text in NAMES:
                target = {"refdomain": "py", "reftype": "obj", "reftarget": NAMES[text]}
            elif text in CHAPTERS:
                target = {"refdomain": "py", "reftype": "mod", "reftarget": text}
            elif notebook and notebook[1] in NOTEBOOKS - {self.env.docname}:
                target = {"refdomain": "std", "reftype": "doc", "reftarget": f"/{notebook[1]}"}
            else:
                target = None
            if target:
                link = {"refdoc": self.env.docname, "refexplicit": True, "refwarn": True, **target}
                code = addnodes.pending_xref("", code, **link)
            node.replace_self(code)


def mathml(translator: HTML5Translator, node: nodes.math | nodes.math_block) -> None:
    """Write a formula as MathML, which browsers show without a script."""
    block = isinstance(node, nodes.math_block)
    translator.body.append(tex2mathml(node.astext(), as_block=block))
    raise nodes.SkipNode


def escape_bars(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Keep |x| in docstrings from being taken for a substitution."""
    lines[:] = [line.replace("|", r"\|") for line in lines]


def setup(app: Sphinx) -> None:
    """Register what is the site's own."""
    app.connect("autodoc-process-docstring", escape_bars)
    app.add_transform(CodeLinks)
    app.add_html_math_renderer("mathml", (mathml, None), (mathml, None))
