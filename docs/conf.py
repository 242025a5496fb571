"""The documentation as a site, `make docs`: the pages of this folder, tutorials that are run, a reference."""

from __future__ import annotations

import logging
import os
import re
from dataclasses import is_dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_type_hints

from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.util import inspect as sphinx_inspect

import bptt_envs
import bptt_trainers

DOCS = Path(__file__).parent
ROOT = DOCS.parent

logging.getLogger("traitlets").setLevel(logging.WARNING)  # of each tutorial it would say that it is run
SETTINGS = TemporaryDirectory()  # of IPython, which runs the tutorials: not the user's, and quiet
(Path(SETTINGS.name) / "profile_default").mkdir()
(Path(SETTINGS.name) / "profile_default" / "ipython_kernel_config.py").write_text("c.IPKernelApp.log_level = 40\n")
os.environ |= {"IPYTHONDIR": SETTINGS.name, "OMP_NUM_THREADS": "1", "SDL_VIDEODRIVER": "dummy"}

project = "stable-bptt"
author = "The stable-bptt authors"
version = release = bptt_envs.__version__

extensions = [
    "myst_nb",  # Markdown, and tutorials among it that are run
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]

# Pages; the other Markdown of this folder are tables, which pages hold or link to
include_patterns = ["*.md", "tutorials/*.md", "environments/*.md", "reference/*.md", "development/*.md"]

myst_heading_anchors = 4  # as a forge has them, for links to headings

nb_execution_mode = "force"
nb_execution_timeout = 180  # s, a cell
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_merge_streams = True
nb_render_markdown_format = "myst"  # of outputs, which may be tables

autodoc_inherit_docstrings = False  # what a system does is said at System
default_role = "py:obj"  # `Name` in a docstring leads to it, where there is such a thing
autodoc_default_options = {"members": True, "member-order": "bysource", "show-inheritance": True}
autodoc_typehints_format = "short"
maximum_signature_line_length = 88
python_display_short_literal_types = True
autosummary_generate = False  # the tables lead to what the pages say themselves
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"stable-bptt {version}"
html_static_path = ["site"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_theme_options = {"top_of_page_buttons": []}
copybutton_prompt_text = "$ "

PAGES_OF = {"README": "index", "CONTRIBUTING": "development/contributing", "CHANGELOG": "development/changelog"}
"""The pages that show Markdown from outside of this folder."""


class LinksToFiles(SphinxTransform):
    """Lets links lead to what the site has: a page, or a file to download; the name of a folder becomes text.

    The pages are read on a forge, too, where any file or folder of the repository can be linked to.
    """

    default_priority = 400

    def apply(self, **_: Any) -> None:
        """Change the links of the page at hand to what is no page; those to other files are downloads as it is."""
        here = Path(self.env.doc2path(self.env.docname)).parent
        for link in list(self.document.findall(addnodes.pending_xref)):
            if link["reftype"] != "myst" or link["reftarget"] in self.env.found_docs:
                continue
            if link["refdomain"] != "doc":
                if (here / link["reftarget"]).is_dir():
                    link.replace_self(link.children)
                continue
            markdown = DOCS / link["reftarget"]  # without its ending
            page = PAGES_OF.get(os.path.relpath(markdown, ROOT))
            if page is not None:
                link["reftarget"] = page
            else:  # tables
                target = os.path.relpath(f"{markdown}.md", here)
                given = {"refdoc": self.env.docname, "refdomain": None, "reftarget": target, "refexplicit": True}
                link.replace_self(addnodes.download_reference("", *link.children, reftype="myst", **given))


def without_readers(kind: type) -> None:
    """Leave, of the types of the fields of a settings class, what a reader wants to know: not how they are checked."""
    hints = get_type_hints(kind)
    for annotated in (kind, kind.__init__):
        annotated.__annotations__ = {n: hints.get(n, was) for n, was in annotated.__annotations__.items()}


for package in (bptt_envs, bptt_trainers):
    for public in package.__all__:
        if is_dataclass(getattr(package, public)):
            without_readers(getattr(package, public))

LITERAL = re.compile(r"(`+.*?`+)")

HELD: list[str] = []
"""What is said of the attribute at hand, of which napoleon would take what stands before a colon for its type."""


def escape(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Keep shapes such as (B, *state_shape) and sizes such as |x| of a docstring from being markup."""
    for i, line in enumerate(lines):
        parts = LITERAL.split(line)
        lines[i] = "".join(p if k % 2 else re.sub(r"([*|]|(?<=\w)_(?!\w))", r"\\\1", p) for k, p in enumerate(parts))
    if what == "attribute":
        HELD[:] = lines
        lines.clear()


def give_back(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Say of an attribute what napoleon was not shown."""
    if what == "attribute":
        lines[:] = HELD


def as_called(
    app: Sphinx, what: str, name: str, obj: Any, options: object, arguments: str | None, result: str | None
) -> tuple[str | None, str | None]:
    """Show what the constructor of a system takes, and that a setting which is made anew is {}."""
    if isinstance(obj, type) and issubclass(obj, bptt_envs.System):  # a metaclass stands before it
        constructor = sphinx_inspect.signature(obj.__init__, bound_method=True)
        arguments = sphinx_inspect.stringify_signature(
            constructor, show_return_annotation=False, unqualified_typehints=True, short_literals=True
        )
    return arguments and arguments.replace("<factory>", "{}"), result


def offer_notebook(app: Sphinx, docname: str, source: list[str]) -> None:
    """Put a link to the notebook, with its outputs, at the end of a tutorial."""
    folder, _, name = docname.rpartition("/")
    if folder == "tutorials":
        source[0] += f"\nThis page as a notebook: {{nb-download}}`{name}.ipynb`\n"


def setup(app: Sphinx) -> dict[str, bool]:
    """Add what is of this site."""
    app.connect("autodoc-process-docstring", escape, priority=400)  # before napoleon makes markup of it
    app.connect("autodoc-process-docstring", give_back, priority=600)
    app.connect("autodoc-process-signature", as_called)
    app.connect("source-read", offer_notebook)
    app.add_transform(LinksToFiles)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
