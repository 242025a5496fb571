"""What all figures share: colors, axes, and how they are written."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bptt_envs.rendering import FAINT, MUTED, Color
from bptt_trainers.records.files import write_atomic

FIGURE_FORMATS = ("png", "pdf", "svg")

# Colors of Okabe and Ito (2008), without their yellow: the same method has the same one in every figure
COLORS = {"C": "#D55E00", "R": "#0072B2", "M": "#56B4E9", "S": "#CC79A7", "PPO": "#009E73", "SAC": "#E69F00"}
OTHERS = (
    *("#555555", "#8C564B", "#17BECF", "#7B4FB3", "#BCBD22"),
    *("#E377C2", "#1B7837", "#2B3FBF", "#B2182B", "#9BD05A"),
)


def colors_of(methods: Iterable[str]) -> dict[str, str]:
    """A color for each method: its own, or in order one of those that are no method's."""
    names = list(methods)
    others = [name for name in names if name not in COLORS]
    return {name: COLORS[name] for name in names if name in COLORS} | {
        name: OTHERS[i % len(OTHERS)] for i, name in enumerate(others)
    }


def style_axes(axes: Axes) -> None:
    """Axes in the colors of the house: two spines, a faint grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(rgb(MUTED))
    axes.tick_params(colors=rgb(MUTED), labelsize=8)
    axes.grid(True, color=rgb(FAINT), linewidth=0.6)
    axes.set_axisbelow(True)


def rgb(color: Color) -> tuple[float, float, float]:
    """A color as matplotlib has it, from 0 to 1."""
    red, green, blue = color
    return red / 255, green / 255, blue / 255


def plain_text(text: str) -> str:
    """A name as matplotlib draws it letter for letter: no formula between dollars, no bytes that are no text."""
    return text.encode(errors="backslashreplace").decode().replace("$", r"\$")


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG, PDF or SVG, by the suffix of `path`; the file is written whole or not at all.

    Raises:
        ValueError: if the suffix is another.
        RunFolderError: if the file cannot be written.
    """
    path = Path(path)
    suffix = checked_suffix(path, FIGURE_FORMATS)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=suffix)
    write_atomic(path, buffer.getvalue())


def checked_suffix(path: Path, known: Sequence[str]) -> str:
    """The suffix of `path` without its dot, if it is one of `known`; else raise ValueError."""
    suffix = path.suffix.lower().removeprefix(".")
    if suffix not in known:
        raise ValueError(f"path must end in {' or '.join(f'.{name}' for name in known)}; got {str(path)!r}.")
    return suffix
