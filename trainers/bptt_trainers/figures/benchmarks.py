"""Figures of the benchmark: updates, environment steps, memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

from bptt_envs.rendering import INK, MUTED
from bptt_trainers.benchmarks.config import PEER_NAMES
from bptt_trainers.benchmarks.memory import MIB
from bptt_trainers.benchmarks.stepping import STEPPERS
from bptt_trainers.benchmarks.table import Line, chosen
from bptt_trainers.benchmarks.update_memory import BAR
from bptt_trainers.figures.style import COLORS, rgb, style_axes

PEER_COLORS = dict(
    zip(PEER_NAMES, (COLORS["C"], COLORS["SAC"], COLORS["R"], COLORS["M"], COLORS["S"], COLORS["PPO"]), strict=True)
)
STEPPER_COLORS = dict(zip(STEPPERS, (COLORS[name] for name in ("C", "SAC", "R", "PPO", "M")), strict=True))
DIGITS = (1.0, 2.0, 5.0)  # of the numbers that are written at an axis


def updates_figure(lines: Sequence[Line]) -> Figure:
    """Time of an update of C by batch size, a line for each peer, a panel for each number of threads."""
    timed = [line for line in lines if line["rule"] == "C"]
    figure, panels = _by_threads(timed, "batch", "start states an update")
    for threads, axes in panels.items():
        for peer, color in PEER_COLORS.items():
            _line(axes, chosen(timed, threads=threads, peer=peer), "batch", "milliseconds", color, peer)
    next(iter(panels.values())).set_ylabel("time of an update by rule C [ms]", fontsize=9)
    return _finished(figure, panels, "Time of an update: lower is faster")


def stepping_figure(lines: Sequence[Line]) -> Figure:
    """Steps a second by the number of environments, likewise."""
    figure, panels = _by_threads(lines, "envs", "environments")
    for threads, axes in panels.items():
        for name, color in STEPPER_COLORS.items():
            _line(axes, chosen(lines, threads=threads, stepper=name), "envs", "steps_per_second", color, name)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    next(iter(panels.values())).set_ylabel("environment steps a second", fontsize=9)
    return _finished(figure, panels, "Environment steps a second: higher is faster")


def memory_figure(lines: Sequence[Line]) -> Figure:
    """Peak memory of an update by the horizon, with the states' own size and the bar it is to stay below."""
    figure = Figure(figsize=(6.4, 4.6), dpi=100, layout="constrained")
    axes = figure.subplots()
    _style(axes, sorted({int(line["horizon"]) for line in lines}), "steps of an episode")
    plain = chosen(lines, engine="autograd")
    ink, muted, blue = rgb(INK), rgb(MUTED), COLORS["R"]
    _line(axes, chosen(lines, engine="adjoint"), "horizon", "peak_mib", COLORS["C"], "adjoint engine")
    _line(axes, plain, "horizon", "peak_mib", blue, "autograd engine")
    _line(axes, _in_proportion(plain), "horizon", "peak_mib", blue, "autograd, continued in proportion", linestyle="--")
    _line(axes, lines, "horizon", "states_mib", muted, "the states and actions themselves", linestyle=":")
    axes.axhline(BAR / MIB, color=ink, linewidth=1.0, linestyle="-.", label=f"{BAR / 2**30:g} GiB")
    axes.set_ylabel("peak memory of an update by rule C [MiB]", fontsize=9)
    return _finished(figure, {"": axes}, f"Memory against the horizon, batch {lines[0]['batch']}")


def _in_proportion(lines: Sequence[Line]) -> list[Line]:
    """From the longest horizon that was measured to those that were left out."""
    measured = [line for line in lines if line["peak_mib"]]
    if not measured:
        return []
    last = max(measured, key=lambda line: int(line["horizon"]))
    each = float(last["peak_mib"]) / int(last["horizon"])
    left_out = [line | {"peak_mib": str(each * int(line["horizon"]))} for line in lines if not line["peak_mib"]]
    return [last, *left_out] if left_out else []


FIGURES: Mapping[str, Callable[[Sequence[Line]], Figure]] = {
    "updates": updates_figure,
    "stepping": stepping_figure,
    "memory": memory_figure,
}


def _by_threads(lines: Sequence[Line], by: str, label: str) -> tuple[Figure, dict[str, Axes]]:
    """A figure with a panel for each number of threads."""
    counts = list(dict.fromkeys(line["threads"] for line in lines))
    figure = Figure(figsize=(2.2 + 4.0 * len(counts), 4.6), dpi=100, layout="constrained")
    panels = dict(zip(counts, figure.subplots(1, len(counts), sharey=True, squeeze=False)[0], strict=True))
    for threads, axes in panels.items():
        _style(axes, sorted({int(line[by]) for line in chosen(lines, threads=threads)}), label)
        axes.set_title(f"{threads} thread{'s' * (threads != '1')}", fontsize=10)
    return figure, panels


def _style(axes: Axes, places: Sequence[int], label: str) -> None:
    style_axes(axes)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(FixedLocator(places))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(places, [f"{place:,}" for place in places])
    axes.yaxis.set_major_locator(LogLocator(subs=DIGITS))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.set_xlabel(label, fontsize=9)


def _line(axes: Axes, lines: Sequence[Line], by: str, of: str, color: object, label: str, linestyle: str = "-") -> None:
    """One curve, with a bar from the least to the largest where there are such."""
    held = sorted((line for line in lines if line[of]), key=lambda line: int(line[by]))
    if not held:
        return
    x, y = [int(line[by]) for line in held], [float(line[of]) for line in held]
    spread = None
    if "least" in held[0]:
        spread = [[m - float(line["least"]) for m, line in zip(y, held, strict=True)]]
        spread += [[float(line["largest"]) - m for m, line in zip(y, held, strict=True)]]
    axes.errorbar(
        x,
        y,
        spread,
        color=color,
        linestyle=linestyle,
        linewidth=1.6,
        elinewidth=1.0,
        marker="o",
        markersize=4,
        label=label,
    )


def _finished(figure: Figure, panels: Mapping[str, Axes], title: str) -> Figure:
    found: dict[Any, Artist] = {}
    for axes in panels.values():
        handles, labels = axes.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    figure.legend(
        found.values(),
        found,
        loc="outside lower center",
        ncols=3 if len(panels) > 1 else 2,
        frameon=False,
        fontsize=8.5,
    )
    figure.suptitle(title, fontsize=11)
    return figure
