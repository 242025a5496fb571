"""Figures of the benchmark: updates, environment steps, memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from bptt_envs.canvas import INK, MUTED
from bptt_studies.benchmarks.config import PEER_NAMES
from bptt_studies.benchmarks.memory import MIB
from bptt_studies.benchmarks.stepping import STEPPERS
from bptt_studies.benchmarks.update_memory import BAR
from bptt_trainers.figures.style import (
    WIDTH,
    Look,
    handles_of,
    legend_below,
    looks_of,
    rgb,
    style_axes,
    title_above,
)
from bptt_trainers.figures.ticks import log_axes, ticks_at
from bptt_trainers.records.tables import Line, chosen

PEERS = looks_of(PEER_NAMES)
STEPPER_LOOKS = looks_of(STEPPERS)


def updates_figure(lines: Sequence[Line]) -> Figure:
    """Time of an update of C by batch size, a line for each peer, a panel for each number of threads."""
    timed = [line for line in lines if line["rule"] == "C"]
    figure, panels = _by_threads(timed, "batch", "start states an update")
    for threads, axes in panels.items():
        for peer, look in PEERS.items():
            _line(axes, chosen(timed, threads=threads, peer=peer), "batch", "milliseconds", look, peer)
    next(iter(panels.values())).set_ylabel("time of an update by rule C [ms]", fontsize=9)
    return _finished(figure, list(panels.values()), "Time of an update: lower is faster")


def stepping_figure(lines: Sequence[Line]) -> Figure:
    """Steps a second by the number of environments, likewise."""
    figure, panels = _by_threads(lines, "envs", "environments")
    for threads, axes in panels.items():
        for name, look in STEPPER_LOOKS.items():
            _line(axes, chosen(lines, threads=threads, stepper=name), "envs", "steps_per_second", look, name)
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    next(iter(panels.values())).set_ylabel("environment steps a second", fontsize=9)
    return _finished(figure, list(panels.values()), "Environment steps a second: higher is faster")


def memory_figure(lines: Sequence[Line]) -> Figure:
    """Peak memory of an update by the horizon, with the states' own size and the bar it is to stay below."""
    figure = Figure(figsize=(0.8 * WIDTH, 4.2), dpi=100, layout="constrained")
    axes = figure.subplots()
    _style(axes, sorted({int(line["horizon"]) for line in lines}), "steps of an episode")
    plain = chosen(lines, engine="autograd")
    ink, adjoint, autograd = to_hex(rgb(INK)), PEERS["adjoint"], PEERS["autograd"]
    onwards = Look(autograd.color, "--")
    _line(axes, chosen(lines, engine="adjoint"), "horizon", "peak_mib", adjoint, "adjoint engine")
    _line(axes, plain, "horizon", "peak_mib", autograd, "autograd engine")
    _line(axes, _in_proportion(plain), "horizon", "peak_mib", onwards, "autograd, continued in proportion")
    states = Look(to_hex(rgb(MUTED)), ":")
    _line(axes, lines, "horizon", "states_mib", states, "the states and actions themselves")
    axes.axhline(BAR / MIB, color=ink, linewidth=1.0, linestyle="-.", label=f"{BAR / 2**30:g} GiB")
    axes.set_ylabel("peak memory of an update by rule C [MiB]", fontsize=9)
    return _finished(figure, [axes], f"Memory against the horizon, batch {lines[0]['batch']}")


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
    figure = Figure(figsize=(WIDTH if len(counts) > 1 else 0.7 * WIDTH, 4.2), dpi=100, layout="constrained")
    panels = dict(zip(counts, figure.subplots(1, len(counts), sharey=True, squeeze=False)[0], strict=True))
    for threads, axes in panels.items():
        _style(axes, sorted({int(line[by]) for line in chosen(lines, threads=threads)}), label)
        axes.set_title(f"{threads} thread{'s' * (threads != '1')}", fontsize=9)
    return figure, panels


def _style(axes: Axes, places: Sequence[int], label: str) -> None:
    style_axes(axes)
    log_axes(axes)
    ticks_at(axes, places, [f"{place:,}" for place in places])
    axes.set_xlabel(label, fontsize=9)


def _line(axes: Axes, lines: Sequence[Line], by: str, of: str, look: Look, label: str) -> None:
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
        color=look.color,
        linestyle=look.linestyle,
        linewidth=1.6,
        elinewidth=1.0,
        marker="o",
        markersize=4,
        label=label,
    )


def _finished(figure: Figure, panels: Sequence[Axes], title: str) -> Figure:
    legend_below(figure, handles_of(panels))
    title_above(figure, title)
    return figure
