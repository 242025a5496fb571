"""The figure of `bptt diagnose`: how the rules differ over training, how feedback grows backwards in time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bptt_envs import System
from bptt_trainers.analysis.diagnostics import PAIRS, RULES_SHOWN, Diagnosis
from bptt_trainers.figures.style import COLORS, style_axes

MOST_EPOCHS = 6  # whose adjoints and growth are drawn
LineStyle = Literal["-", "--", ":", "-."]
LINE_STYLES: tuple[LineStyle, ...] = ("-", "--", ":", "-.")
PAIR_COLORS = ("#2B2F36", "#D55E00", "#56B4E9")
EPOCH_MAP = "viridis"


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
    figure = Figure(figsize=(10.0, 7.2), dpi=100, layout="constrained")
    (norms, angles), (adjoints, growth) = figure.subplots(2, 2)
    for axes in (norms, angles, adjoints, growth):
        style_axes(axes)
    _draw_norms(norms, diagnoses)
    _draw_angles(angles, diagnoses)
    shown = [diagnoses[i] for i in sorted({round(x) for x in np.linspace(0, len(diagnoses) - 1, MOST_EPOCHS)})]
    for one, color in _colored(shown):
        times = system.dt * np.arange(1, one.adjoints.shape[1] + 1)
        starts = system.dt * one.times
        for row, style in enumerate(("-", "--")):
            adjoints.plot(times, _positive(one.adjoints[row]), style, color=color, linewidth=1.4)
            growth.plot(starts, one.growth[1 - row], style, color=color, linewidth=1.4)
    adjoints.set_yscale("log")
    adjoints.set_title(r"feedback that arrives at step t: $|\partial L / \partial x_t|$", fontsize=10)
    _legend(adjoints, {"R": "-", "M": "--"})
    growth.set_title("largest singular value of the Jacobian from t to the end, log10", fontsize=10)
    _legend(growth, {"with the controller (R)": "-", "physics alone (M)": "--"})
    for axes in (adjoints, growth):
        axes.set_xlabel(system.time_label)
    scale = Normalize(shown[0].epoch, max(shown[-1].epoch, shown[0].epoch + 1))
    bar = figure.colorbar(ScalarMappable(scale, _epoch_map()), ax=[adjoints, growth], pad=0.01, fraction=0.03)
    bar.set_label("epoch")
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def _draw_norms(axes: Axes, diagnoses: Sequence[Diagnosis]) -> None:
    epochs = [one.epoch for one in diagnoses]
    layers = diagnoses[0].layers
    styles = [LINE_STYLES[i % len(LINE_STYLES)] for i in range(len(layers))]
    norms = np.stack([one.norms for one in diagnoses])  # (epochs, rules, layers)
    for i, rule in enumerate(RULES_SHOWN):
        for j, style in enumerate(styles):
            axes.plot(epochs, _positive(norms[:, i, j]), linestyle=style, color=COLORS[rule], linewidth=1.2)
    axes.set_yscale("log")
    axes.set_title("norm of the direction by layer", fontsize=10)
    axes.set_xlabel("epoch")
    handles = [Line2D([], [], color=COLORS[rule], label=rule) for rule in RULES_SHOWN]
    handles += [
        Line2D([], [], color="#555555", linestyle=style, label=name) for name, style in zip(layers, styles, strict=True)
    ]
    axes.legend(handles=handles, fontsize=8, frameon=False, ncols=2)


def _draw_angles(axes: Axes, diagnoses: Sequence[Diagnosis]) -> None:
    epochs = [one.epoch for one in diagnoses]
    for i, (pair, color) in enumerate(zip(PAIRS, PAIR_COLORS, strict=True)):
        name = f"{pair[0]}, {pair[1]}"
        axes.plot(epochs, [one.cosine[i] for one in diagnoses], color=color, label=f"cosine {name}", linewidth=1.4)
    share = [one.agreement[0] for one in diagnoses]  # C has the sign of both or is 0, so its pairs say the same
    axes.plot(epochs, share, "--", color=PAIR_COLORS[0], label="same sign R, M", linewidth=1.4)
    axes.axhline(0.0, color="#767C86", linewidth=0.8)
    axes.set_ylim(-1.05, 1.05)
    axes.set_title("angles between the rules, share of components of one sign", fontsize=10)
    axes.set_xlabel("epoch")
    axes.legend(fontsize=8, frameon=False, loc="lower left", ncols=2)


def _legend(axes: Axes, styles: dict[str, LineStyle]) -> None:
    handles = [Line2D([], [], color="#555555", linestyle=style, label=name) for name, style in styles.items()]
    axes.legend(handles=handles, fontsize=8, frameon=False)


def _colored(diagnoses: Sequence[Diagnosis]) -> Iterator[tuple[Diagnosis, tuple[float, float, float, float]]]:
    first, last = diagnoses[0].epoch, diagnoses[-1].epoch
    for one in diagnoses:
        yield one, _epoch_map()((one.epoch - first) / max(1, last - first))


def _epoch_map() -> matplotlib.colors.Colormap:
    """Without the lightest colors, which a white ground swallows."""
    base = matplotlib.colormaps[EPOCH_MAP]
    return matplotlib.colors.ListedColormap(base(np.linspace(0.0, 0.88, 256)))


def _positive(values: np.ndarray) -> np.ndarray:
    """What a log axis can show; the rest is a gap."""
    return np.where(np.isfinite(values) & (values > 0), values, np.nan)
