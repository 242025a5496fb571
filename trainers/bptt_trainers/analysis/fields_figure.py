"""Figures of the fields of R, M and C over a plane, and their animation over training."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import matplotlib.cm
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from bptt_envs.canvas import ACTION, BACKGROUND, CYCLE, FAINT, INK, MUTED
from bptt_trainers.analysis.fields import SHOWN_RULES, Table
from bptt_trainers.figures.style import rgb
from bptt_trainers.records.files import write_atomic

TITLES = {"R": "R: the gradient", "M": "M: through the physics only", "C": "C: M where the signs agree"}
SIZE = (9.0, 9.6)  # inches at 100 dpi
MOST_ARROWS = 17  # in a row
LEVELS = 13  # of the loss
LOG_DECADES = 1.0  # a loss that spans more is drawn on a log scale
COMMON = (1.0, 99.0)  # percentiles between which the colors of a magnitude lie

LOSS_COLORS = LinearSegmentedColormap.from_list("loss", [(0.36, 0.62, 0.80), (0.72, 0.85, 0.92), rgb(BACKGROUND)])
ROTATION_COLORS = LinearSegmentedColormap.from_list(
    "rotation", [(0.0, 0.2, 0.33), rgb(CYCLE[0]), rgb(BACKGROUND), rgb(CYCLE[1]), (0.4, 0.17, 0.0)]
)
ZERO_COLORS = LinearSegmentedColormap.from_list("zero", [rgb(BACKGROUND), rgb(CYCLE[2]), (0.0, 0.25, 0.18)])
MAGNITUDE_COLORS = matplotlib.colormaps["viridis"]

Overlay = Callable[[Axes], object]
"""Draws into a panel, above the field."""


@dataclass(frozen=True)
class Scales:
    """What the colors of a figure stand for, so that several figures can share it.

    Attributes:
        loss: its least and largest value.
        magnitude: log10 of the projected field, between two percentiles.
    """

    loss: tuple[float, float]
    magnitude: tuple[float, float]

    @property
    def norm(self) -> Normalize:
        """That of the loss: logarithmic if it is above 0 and spans more than a decade."""
        low, high = self.loss
        if low > 0.0 and high > low * 10.0**LOG_DECADES:
            return LogNorm(low, high)
        return Normalize(low, high)

    @property
    def levels(self) -> np.ndarray:
        """The losses of the contours."""
        low, high = self.loss
        return (np.geomspace if isinstance(self.norm, LogNorm) else np.linspace)(low, high, LEVELS)


def scales_of(tables: Iterable[Table]) -> Scales:
    """The scales that fit all of `tables`; values that are not finite do not count."""
    tables = list(tables)
    magnitudes = np.concatenate([_log_magnitude(table, rule) for table in tables for rule in SHOWN_RULES])
    losses = np.concatenate([table["loss"] for table in tables])
    losses = losses[np.isfinite(losses)]
    return Scales(
        _range(losses.min(), losses.max()) if len(losses) else (0.0, 1.0),
        _range(*np.nanpercentile(magnitudes, COMMON)) if np.isfinite(magnitudes).any() else (0.0, 1.0),
    )


def fields_figure(
    table: Table, labels: tuple[str, str], title: str, scales: Scales | None = None, overlay: Overlay | None = None
) -> Figure:
    """Draw the fields of R, M and C on a square grid, a column for each.

    First row: the loss, and arrows in the direction of descent (against the rule's direction), all of one
    length. Second: log10 of the length of the projected field. Third: under R the share of parameter
    components in which C is zero; under M and C how much of the field is rotation (that of R is 0). What is
    not finite is left grey, and so is the rotation of a field that is constant.

    Args:
        table: the points of a grid, as `grid` orders them.
        labels: of the axes.
        title: written above.
        scales: of the colors; None: those that fit the table.
        overlay: draws into each panel of the first row, such as the path of training.
    """
    scales = scales_of([table]) if scales is None else scales
    figure = Figure(figsize=SIZE, dpi=100, layout="constrained")
    panels = figure.subplots(3, 3, sharex=True, sharey=True)
    for (top, middle, bottom), rule in zip(panels.T, SHOWN_RULES, strict=True):
        draw_loss(top, table, scales)
        _arrows(top, table, rule)
        if overlay is not None:
            overlay(top)
        _colors(middle, table, _log_magnitude(table, rule), MAGNITUDE_COLORS, Normalize(*scales.magnitude))
        if rule == "R":
            _colors(bottom, table, table["C_zero"], ZERO_COLORS, Normalize(0.0, 1.0))
        else:
            _colors(bottom, table, table[f"{rule}_rotation"], ROTATION_COLORS, Normalize(-1.0, 1.0))
        top.set_title(TITLES[rule], fontsize=10)
        middle.set_title(f"magnitude of {rule}", fontsize=9)
        bottom.set_title("components that are 0 in C" if rule == "R" else f"rotation of {rule}", fontsize=9)
    for axes in panels.flat:
        style(axes)
    color_bar(figure, panels[0], scales.norm, LOSS_COLORS, "loss; arrows: direction of descent")
    color_bar(figure, panels[1], Normalize(*scales.magnitude), MAGNITUDE_COLORS, "log10 of the length in the plane")
    color_bar(figure, panels[2, :1], Normalize(0.0, 1.0), ZERO_COLORS, "share", ticks=(0, 0.5, 1))
    color_bar(
        figure, panels[2, 1:], Normalize(-1.0, 1.0), ROTATION_COLORS, "curl / (√2 |J|)", ticks=(-1, -0.5, 0, 0.5, 1)
    )
    figure.supxlabel(labels[0], fontsize=9, color=rgb(INK))
    figure.supylabel(labels[1], fontsize=9, color=rgb(INK))
    figure.suptitle(title, fontsize=11)
    return figure


def path_overlay(path: np.ndarray, here: int) -> Overlay:
    """The path of training, (K, 2), projected on the plane, with one of its points marked."""

    def draw(axes: Axes) -> None:
        axes.plot(*path.T, "-", color=rgb(ACTION), linewidth=1.4, scalex=False, scaley=False)
        axes.plot(*path.T, "o", color=rgb(ACTION), markersize=3, scalex=False, scaley=False)
        axes.plot(*path[here], "o", color=rgb(ACTION), markersize=8, markeredgecolor=rgb(INK), clip_on=False)

    return draw


def save_frames(figures: Sequence[Figure], path: Path, *, seconds: float = 1.0, hold: float = 2.0) -> None:
    """Show figures of one size one after another, as a GIF; the file is written whole or not at all.

    Args:
        figures: the frames.
        path: the file.
        seconds: how long each is shown, in s.
        hold: how long the last is shown, in s.

    Raises:
        RunFolderError: if the file cannot be written.
    """
    first, *rest = (_image(figure) for figure in figures)
    durations = [round(1000 * seconds)] * len(rest) + [round(1000 * hold)]
    buffer = io.BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=rest, duration=durations, loop=0, optimize=False)
    write_atomic(path, buffer.getvalue())


def _image(figure: Figure) -> Image.Image:
    """The figure in 256 colors of its own; dithered ones would flicker."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    pixels = Image.open(buffer).convert("RGB")
    return pixels.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)


# Pieces of figures


def draw_loss(axes: Axes, table: Table, scales: Scales) -> None:
    """Fill the space between contours of the loss; leave grey where it is not finite."""
    a, b, loss = square(table, table["loss"])
    axes.set_facecolor(rgb(FAINT))
    if np.isfinite(loss).any():
        low, high = scales.loss
        shown = np.ma.masked_invalid(np.clip(loss, low, high))
        axes.contourf(a, b, shown, levels=scales.levels, norm=scales.norm, cmap=LOSS_COLORS)
        axes.contour(a, b, shown, levels=scales.levels, colors=[rgb(MUTED)], linewidths=0.4)
    axes.set_xlim(a[0], a[-1])
    axes.set_ylim(b[0], b[-1])


def _arrows(axes: Axes, table: Table, rule: str) -> None:
    """Arrows of one length against the direction, where it is neither 0 nor a gap."""
    a, b, along_a = square(table, table[f"{rule}_a"])
    along_b = square(table, table[f"{rule}_b"])[2]
    every = math.ceil(len(a) / MOST_ARROWS)
    chosen = slice((len(a) - 1) % every // 2, None, every)
    x, y = (grid[chosen, chosen] for grid in np.meshgrid(a, b))
    u, v = along_a[chosen, chosen], along_b[chosen, chosen]
    with np.errstate(invalid="ignore", divide="ignore"):
        length = np.hypot(u, v)
        there = np.isfinite(length) & (length > 0)
        u, v = -u / length, -v / length
    axes.quiver(
        x[there],
        y[there],
        u[there],
        v[there],
        color=rgb(INK),
        angles="xy",
        scale_units="xy",
        scale=1.25 / (every * (a[1] - a[0])),
        pivot="middle",
        width=0.006,
        headwidth=4.0,
        headlength=4.5,
        headaxislength=4.0,
    )


def _colors(axes: Axes, table: Table, values: np.ndarray, colors: Colormap, norm: Normalize) -> None:
    """A colored cell for each point."""
    a, b, cells = square(table, values)
    axes.set_facecolor(rgb(FAINT))
    axes.pcolormesh(a, b, np.ma.masked_invalid(cells), cmap=colors, norm=norm, shading="nearest", rasterized=True)


def style(axes: Axes) -> None:
    """A square panel in the colors of the house."""
    axes.set_aspect("equal")
    axes.spines[:].set_color(rgb(MUTED))
    axes.tick_params(colors=rgb(MUTED), labelsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_locator(MaxNLocator(5))


def color_bar(
    figure: Figure,
    panels: np.ndarray,
    norm: Normalize,
    colors: Colormap,
    label: str,
    ticks: Sequence[float] | None = None,
) -> None:
    """One scale for neighbouring panels: to the right of them or, if its ticks are given, below."""
    mappable = matplotlib.cm.ScalarMappable(norm, colors)
    if ticks is None:
        scale = figure.colorbar(mappable, ax=panels, aspect=18)
    else:
        scale = figure.colorbar(mappable, ax=panels, aspect=18 * len(panels), location="bottom")
        scale.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    scale.set_label(label, fontsize=8)
    scale.ax.tick_params(labelsize=8)
    scale.outline.set_visible(False)


def square(table: Table, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The points of a grid as a (n,), b (n,) and values (n, n), a row for each b."""
    size = math.isqrt(len(values))
    return table["a"][:size], table["b"][::size], values.reshape(size, size)


def _log_magnitude(table: Table, rule: str) -> np.ndarray:
    """log10 of the length of the projected field, NaN where it is 0."""
    length = np.hypot(table[f"{rule}_a"], table[f"{rule}_b"])
    return np.log10(np.where(length > 0, length, np.nan))


def _range(low: float, high: float) -> tuple[float, float]:
    """As floats, apart."""
    return (float(low), float(high)) if high > low else (float(low) - 0.5, float(low) + 0.5)
