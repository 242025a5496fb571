"""A page of chapters as one HTML file: figures and style are in it, nothing is loaded from elsewhere."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from bptt_trainers.figures.style import figure_bytes
from bptt_trainers.records.tables import Cell

TEMPLATE = "page.html"


@dataclass(frozen=True)
class Picture:
    """A figure with what it shows.

    Attributes:
        figure: drawn into the page as SVG.
        caption: below it, and read out where it cannot be seen.
    """

    figure: Figure
    caption: str

    @property
    def source(self) -> str:
        """The figure as the source of an image."""
        return f"data:image/svg+xml;base64,{base64.b64encode(figure_bytes(self.figure, 'svg')).decode()}"


@dataclass(frozen=True)
class Section:
    """A part of a chapter: any of a text, a picture and a table, in this order.

    Attributes:
        title: its heading.
        text: a paragraph.
        picture: a figure.
        rows: of a table, all with the same columns.
        note: a paragraph below the table.
        command: one line for a terminal.
        folded: whether the reader opens it to see what is in it.
    """

    title: str
    text: str = ""
    picture: Picture | None = None
    rows: Sequence[Mapping[str, Cell]] = ()
    note: str = ""
    command: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Chapter:
    """What is told of one run or comparison.

    Attributes:
        title: its heading.
        lead: a sentence on what it is.
        facts: what to see first, by name.
        sections: in order.
    """

    title: str
    lead: str
    facts: Mapping[str, str] = field(default_factory=dict)
    sections: Sequence[Section] = ()


def to_html(title: str, chapters: Sequence[Chapter]) -> str:
    """A page of chapters as the text of an HTML file; all that is handed in is shown letter for letter."""
    environment = Environment(
        loader=PackageLoader("bptt_trainers.pages", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests["numeric"] = _is_numeric
    return environment.get_template(TEMPLATE).render(title=title, chapters=chapters)


def _is_numeric(cell: Cell) -> bool:
    """Whether a cell of a table stands to the right."""
    return not isinstance(cell, str) or cell[:1].isdigit() or cell.startswith("–")
