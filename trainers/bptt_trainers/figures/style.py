"""What all figures share: colors, lines, axes, legends, and how they are written."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.typing import LineStyleType
from numpy.typing import ArrayLike, NDArray

from bptt_envs.canvas import FAINT, MUTED, Color
from bptt_trainers.figures.ticks import CHARACTER, TICK_SIZE
from bptt_trainers.records.files import write_atomic

FIGURE_FORMATS = ("png", "pdf", "svg")
DPI = 200  # of a PNG
WIDTH = 7.5  # inches: a page of paper, so that numbers of 8 points are printed no smaller than 7
UNDATED = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}  # the same figure is the same file

# Colors of Okabe and Ito (2008), without their yellow: the same method has the same one in every figure
COLORS = {"C": "#D55E00", "R": "#0072B2", "M": "#56B4E9", "S": "#CC79A7", "PPO": "#009E73", "SAC": "#E69F00"}
# Of Tol's muted scheme (2021) those that are unlike all of these: whatever else has a curve, in this order
OTHERS = ("#332288", "#999933", "#882255", "#117733", "#555555", "#CC6677", "#DDCC77")
LINES: tuple[LineStyleType, ...] = ("-", "--", ":", "-.")
MARKER = 4.0  # points: of a place without neighbours
COVERED = 2.8  # points: the width of a curve that others may run along, so that it shows beside them
HANDLE = 40.0  # points of a legend's entry that are not text


class Look(NamedTuple):
    """How a curve is told from others."""

    color: str
    linestyle: LineStyleType


def line_style(place: int) -> LineStyleType:
    """The line style of the curve at a place among those of one color; no two places have the same."""
    if place < len(LINES):
        return LINES[place]
    return (0.0, (6.0, 1.5) + (1.0, 1.5) * (place - len(LINES) + 2))


def looks_of(methods: Iterable[str]) -> dict[str, Look]:
    """A look for each method: its own color, or the next that is no method's; dashed when these are used up."""
    names = list(dict.fromkeys(methods))
    own = {name: Look(COLORS[name], "-") for name in names if name in COLORS}
    others = [name for name in names if name not in COLORS]
    return own | {name: Look(OTHERS[i % len(OTHERS)], line_style(i // len(OTHERS))) for i, name in enumerate(others)}


def variant_looks(rules: Mapping[str, str]) -> dict[str, Look]:
    """A look for each variant of a rule or algorithm: the color of that, and a line of its own.

    Args:
        rules: the rule or algorithm of each variant.
    """
    names = list(rules)
    before = [[rules[other] for other in names[:i]].count(rules[name]) for i, name in enumerate(names)]
    return {name: Look(COLORS[rules[name]], line_style(count)) for name, count in zip(names, before, strict=True)}


def draw_curve(
    axes: Axes, x: ArrayLike, y: ArrayLike, look: Look, label: str | None = None, linewidth: float = 1.6
) -> Line2D:
    """Draw a curve, with a dot at each place that has no neighbour to draw a line to.

    Args:
        axes: where to draw.
        x: (points,).
        y: (points,); NaN is a gap.
        look: its color and line.
        label: in the legend.
        linewidth: points.
    """
    (line,) = axes.plot(x, y, color=look.color, linestyle=look.linestyle, linewidth=linewidth, label=label)
    alone = isolated(np.asarray(y, dtype=float))
    if alone.any():
        line.set(marker="o", markersize=MARKER, markevery=list(map(int, np.flatnonzero(alone))))
    return line


def isolated(y: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which places of a curve are finite between others that are not: no line shows them."""
    there = np.pad(np.isfinite(y), 1)
    return np.asarray(there[1:-1] & ~there[:-2] & ~there[2:])


def wrapped(text: str, width: float, fontsize: float) -> str:
    """A text in lines that are about `width` points long at most."""
    letters = int(width / _letter(fontsize))
    return "\n".join(line for paragraph in text.split("\n") for line in textwrap.wrap(paragraph, letters))


def title_above(figure: Figure, text: str, fontsize: float = 9.5) -> None:
    """A title over everything else, in as many lines as the width of the figure asks for."""
    figure.suptitle(wrapped(text, 72.0 * figure.get_figwidth(), fontsize), fontsize=fontsize)


def legend_below(figure: Figure | SubFigure, handles: Mapping[str, Artist], fontsize: float = 8.5) -> None:
    """A legend under everything else, in as many columns as the width of the figure has room for.

    Args:
        figure: what it stands under; laid out as "constrained".
        handles: what has which label, in order.
        fontsize: points.
    """
    if not handles:
        return
    width = 72.0 * figure.bbox.width / figure.dpi
    rows, columns = 1, len(handles)
    while columns > 1 and _legend_width(list(handles), columns, fontsize) > width:
        rows += 1
        columns = math.ceil(len(handles) / rows)  # no row with fewer than it need be
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=fontsize,
        handlelength=2.6,  # shows what dashes a line has
    )


def _legend_width(labels: Sequence[str], columns: int, fontsize: float) -> float:
    """Points, about: matplotlib fills column by column, the first ones with one entry more."""
    rows, more = divmod(len(labels), columns)
    ends = [min(i, more) + i * rows for i in range(columns + 1)]
    letters = sum(max(map(len, labels[start:end])) for start, end in pairwise(ends))
    return letters * _letter(fontsize) + columns * HANDLE


def _letter(fontsize: float) -> float:
    """Points: the width of a letter, about."""
    return CHARACTER / TICK_SIZE * fontsize


def handles_of(panels: Iterable[Axes]) -> dict[str, Artist]:
    """What the legend of several panels shows: everything that they label, each label once."""
    found: dict[str, Artist] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    return found


def style_axes(axes: Axes) -> None:
    """Axes in the colors of the house: two spines, a faint grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(rgb(MUTED))
    axes.tick_params(which="both", color=rgb(MUTED), labelsize=TICK_SIZE)
    axes.grid(True, color=rgb(FAINT), linewidth=0.6)
    axes.set_axisbelow(True)


def rgb(color: Color) -> tuple[float, float, float]:
    """A color as matplotlib has it, from 0 to 1."""
    red, green, blue = color
    return red / 255, green / 255, blue / 255


def plain_text(text: str) -> str:
    """A name as matplotlib draws it letter for letter: no formula between dollars, no bytes that are no text."""
    return text.encode(errors="backslashreplace").decode().replace("$", r"\$")


def save_figure(figure: Figure, path: str | Path, *, vector: bool = False) -> None:
    """Write a figure as PNG, PDF or SVG, by the suffix of `path`; each file is written whole or not at all.

    The same figure gives the same bytes: no file holds a date.

    Args:
        figure: the figure.
        path: the file; a PNG has 200 dots an inch.
        vector: whether a PDF of the same name is written beside it, for a paper.

    Raises:
        ValueError: if the suffix is another.
        RunFolderError: if a file cannot be written.
    """
    path = Path(path)
    suffix = checked_suffix("path", path, FIGURE_FORMATS)
    files = {path: suffix} | ({path.with_suffix(".pdf"): "pdf"} if vector else {})
    for file, kind in files.items():
        write_atomic(file, figure_bytes(figure, kind))


def figure_bytes(figure: Figure, kind: str) -> bytes:
    """A figure as the content of a file of one of `FIGURE_FORMATS`; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    # Fonts that publishers take, and the same names in every SVG
    with matplotlib.rc_context({"pdf.fonttype": 42, "svg.hashsalt": "bptt"}):
        figure.savefig(buffer, format=kind, dpi=DPI, metadata=UNDATED[kind])
    return buffer.getvalue()


def checked_suffix(name: str, path: Path, known: Sequence[str]) -> str:
    """The suffix of `path` without its dot, if it is one of `known`; else raise ValueError that names the argument."""
    suffix = path.suffix.lower().removeprefix(".")
    if suffix not in known:
        raise ValueError(f"{name} must end in {' or '.join(f'.{name}' for name in known)}; got {str(path)!r}.")
    return suffix
