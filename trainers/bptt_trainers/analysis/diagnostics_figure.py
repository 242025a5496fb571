"""The figure of `bptt diagnose`: how the rules differ over training, how feedback grows backwards in time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bptt_envs import System
from bptt_envs.canvas import MUTED
from bptt_trainers.analysis.diagnostics import PAIRS, RULES_SHOWN, Diagnosis
from bptt_trainers.figures.style import (
    COLORS,
    COVERED,
    WIDTH,
    Look,
    draw_curve,
    line_style,
    looks_of,
    rgb,
    style_axes,
    title_above,
)
from bptt_trainers.figures.ticks import log_axes

MOST_EPOCHS = 6  # whose adjoints and growth are drawn
EPOCH_MAP = "viridis"
LINE = 1.3  # points


def diagnostics_figure(diagnoses: Sequence[Diagnosis], system: System, title: str = "") -> Figure:
    """Draw the diagnoses of a run.

    Above, over the epochs: norms of the directions by layer, cosine and sign agreement of each pair. Below, over
    the time within the episode, a line for each of up to 6 epochs: the norm of the adjoint as R and as M feed it
    back, and the largest singular value of the product of Jacobians from each step to the end.

    Args:
        diagnoses: of the epochs, in order.
        system: whose horizon it is.
        title: written above.
    """
    figure = Figure(figsize=(WIDTH, 7.2), dpi=100, layout="constrained")
    (norms, angles), (adjoints, growth) = figure.subplots(2, 2)
    for axes in (norms, angles, adjoints, growth):
        style_axes(axes)
    for axes in (norms, adjoints):
        log_axes(axes, "y")
    _draw_norms(norms, diagnoses)
    _draw_angles(angles, diagnoses)
    shown = [diagnoses[i] for i in sorted({round(x) for x in np.linspace(0, len(diagnoses) - 1, MOST_EPOCHS)})]
    for one, color in _colored(shown):
        times = system.dt * np.arange(1, one.adjoints.shape[1] + 1)
        starts = system.dt * one.times
        for row in range(2):
            look = Look(color, line_style(row))
            draw_curve(adjoints, times, _positive(one.adjoints[row]), look, linewidth=LINE)
            draw_curve(growth, starts, one.growth[1 - row], look, linewidth=LINE)
    adjoints.set_title("feedback that arrives at step t:\n" r"$|\partial L / \partial x_t|$", fontsize=9)
    growth.set_title("largest singular value of the\nJacobian from t to the end, log10", fontsize=9)
    _legend(adjoints, [_grey("R", 0), _grey("M", 1)])
    _legend(growth, [_grey("with the controller (R)", 0), _grey("physics alone (M)", 1)])
    for axes in (adjoints, growth):
        axes.set_xlabel(system.time_label, fontsize=9)
    scale = Normalize(shown[0].epoch, max(shown[-1].epoch, shown[0].epoch + 1))
    bar = figure.colorbar(ScalarMappable(scale, _epoch_map()), ax=[adjoints, growth], pad=0.01, fraction=0.03)
    bar.set_label("epoch", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    if title:
        title_above(figure, title)
    return figure


def _draw_norms(axes: Axes, diagnoses: Sequence[Diagnosis]) -> None:
    """A color for each rule, a line for each layer. C is M with components left out, and often runs along it."""
    epochs = [one.epoch for one in diagnoses]
    layers = diagnoses[0].layers
    norms = np.stack([one.norms for one in diagnoses])  # (epochs, rules, layers)
    widths = {rule: COVERED if rule == "M" else LINE for rule in RULES_SHOWN}
    for i, rule in enumerate(RULES_SHOWN):
        for j in range(len(layers)):
            draw_curve(axes, epochs, _positive(norms[:, i, j]), Look(COLORS[rule], line_style(j)), None, widths[rule])
    axes.set_title("norm of the direction by layer", fontsize=9)
    axes.set_xlabel("epoch", fontsize=9)
    rules = [Line2D([], [], color=COLORS[rule], linewidth=widths[rule], label=rule) for rule in RULES_SHOWN]
    _legend(axes, [*rules, *(_grey(name, j) for j, name in enumerate(layers))])


def _draw_angles(axes: Axes, diagnoses: Sequence[Diagnosis]) -> None:
    """C has the sign of both or is 0, so the shares of its pairs say the same as that of R and M."""
    epochs = [one.epoch for one in diagnoses]
    curves = {f"cosine {pair[0]}, {pair[1]}": [one.cosine[i] for one in diagnoses] for i, pair in enumerate(PAIRS)}
    curves["same sign R, M"] = [one.agreement[0] for one in diagnoses]
    for (name, look), values in zip(looks_of(curves).items(), curves.values(), strict=True):
        draw_curve(axes, epochs, values, look, name, COVERED if name == "cosine R, M" else LINE)  # C is near M
    axes.axhline(0.0, color=rgb(MUTED), linewidth=0.8)
    axes.set_ylim(-1.05, 1.05)
    axes.set_title("angles between the rules,\nshare of components of one sign", fontsize=9)
    axes.set_xlabel("epoch", fontsize=9)
    _legend(axes, axes.get_legend_handles_labels()[0])


def _legend(axes: Axes, handles: Sequence[Artist]) -> None:
    """Under the panel, where it covers no curve."""
    axes.legend(
        handles=handles,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.2),
        ncols=2,
        fontsize=8,
        frameon=False,
        handlelength=2.6,
    )


def _grey(name: str, place: int) -> Line2D:
    """An entry of the legend for whatever color a line of this style has."""
    return Line2D([], [], color=rgb(MUTED), linestyle=line_style(place), label=name)


def _colored(diagnoses: Sequence[Diagnosis]) -> Iterator[tuple[Diagnosis, str]]:
    first, last = diagnoses[0].epoch, diagnoses[-1].epoch
    for one in diagnoses:
        yield one, to_hex(_epoch_map()((one.epoch - first) / max(1, last - first)))


def _epoch_map() -> matplotlib.colors.Colormap:
    """Without the lightest colors, which a white ground swallows."""
    base = matplotlib.colormaps[EPOCH_MAP]
    return matplotlib.colors.ListedColormap(base(np.linspace(0.0, 0.88, 256)))


def _positive(values: np.ndarray) -> np.ndarray:
    """What a log axis can show; the rest is a gap."""
    return np.where(np.isfinite(values) & (values > 0), values, np.nan)
