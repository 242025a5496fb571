"""What the scaling measurements say: slopes, practical limits, tables for readers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bptt_studies.benchmarks.memory import MIB
from bptt_studies.scaling.config import AXES, MOST_MEMORY, Axis
from bptt_studies.scaling.file import Measurement
from bptt_trainers.records.tables import piped

SLOW = 1e3  # milliseconds an update from which a task counts as too slow
LARGE = MOST_MEMORY / MIB  # MiB from which it counts as too large
LEARNS = 0.9  # a held-out loss of at most so much of the untrained one counts as learning


@dataclass(frozen=True)
class Slopes:
    """Slopes of a quantity over the size of the task, on log-log axes.

    Attributes:
        upper_half: by least squares over the larger half of the points, the middle one included; small tasks, of
            which most is the same overhead for all, are left out.
        last: between the two largest points.
        level: log of the quantity at size 1 on the fitted line.
        first: the smallest size that was fitted.
        end: the largest.
    """

    upper_half: float
    last: float
    level: float
    first: float
    end: float

    def fitted(self, size: np.ndarray) -> np.ndarray:
        """The quantity on the fitted line."""
        line: np.ndarray = np.exp(self.level + self.upper_half * np.log(size))
        return line


def slopes(sizes: Sequence[float], values: Sequence[float]) -> Slopes | None:
    """Fit the slopes; None if fewer than two points of the upper half have a value."""
    half = [(x, y) for x, y in list(zip(sizes, values, strict=True))[len(sizes) // 2 :] if 0.0 < y < math.inf]
    if len(half) < 2:
        return None
    x, y = np.log(np.array(half)).T
    slope, level = np.polyfit(x, y, 1)
    last = (y[-1] - y[-2]) / (x[-1] - x[-2])
    return Slopes(float(slope), float(last), float(level), half[0][0], half[-1][0])


def reach(sizes: Sequence[float], values: Sequence[float], threshold: float, slope: float) -> tuple[float, bool] | None:
    """The size at which a quantity reaches a threshold, and whether that lies beyond what was measured.

    Between two points it is interpolated on log-log axes; an infinite value counts from its own size on; beyond the
    last point it is extrapolated by `slope`. None if there is no value.
    """
    before: tuple[float, float] | None = None
    for x, y in zip(sizes, values, strict=True):
        if y >= threshold:
            if before is None or math.isinf(y):
                return x, False
            share = math.log(threshold / before[1]) / math.log(y / before[1])
            return before[0] * (x / before[0]) ** share, False
        if y > 0.0:
            before = (x, y)
    return None if before is None else (before[0] * (threshold / before[1]) ** (1.0 / slope), True)


def by_axis(measurements: Sequence[Measurement]) -> dict[str, list[Measurement]]:
    """The measurements of each axis, the smallest task first."""
    found: dict[str, list[Measurement]] = {}
    for row in sorted(measurements, key=lambda row: (list(AXES).index(row.axis), row.size)):
        found.setdefault(row.axis, []).append(row)
    return found


def report(measurements: Sequence[Measurement]) -> str:
    """Everything in Markdown: the slopes of all axes, the limits in words, then each axis with its figure and table.

    Args:
        measurements: at least one.
    """
    head = "# Scaling: the numbers\n\nWritten by `bptt scale`, from [scaling.csv](scaling.csv)."
    parts = [f"{head} {_settings(measurements[0])}"]
    axes = by_axis(measurements)
    parts.append(f"## Slopes\n\n{slope_table(measurements)}")
    words = "\n".join(f"- **{name}**: {limits(AXES[name], rows)}" for name, rows in axes.items())
    note = "What is extrapolated goes on from the last point by the theoretical slope."
    parts.append(f"## Where the limit lies\n\n{words}\n\n{note}")
    for name, rows in axes.items():
        caption = f"{AXES[name].label}: time, memory, loss"
        parts.append(f"## {title(name)}\n\n![{caption}]({name}.png)\n\n{_table(rows)}")
    return "\n\n".join(parts) + "\n"


def title(name: str) -> str:
    """An axis with its environment."""
    axis = AXES[name]
    return f"{name}: {', '.join([axis.env, *(f'{k}={v}' for k, v in axis.fixed.items())])}"


def slope_cells(measurements: Sequence[Measurement]) -> list[list[str]]:
    """The slopes of time and memory of every axis beside the theory, with a header."""
    lines = [["axis", "of", "upper half", "last two points", "theory"]]
    for name, rows in by_axis(measurements).items():
        sizes = [row.size for row in rows]
        for what, theory, values in (
            ("time", AXES[name].time, [row.milliseconds for row in rows]),
            ("memory", AXES[name].memory, [row.peak_mib for row in rows]),
        ):
            found = slopes(sizes, values)
            cells = ["–", "–"] if found is None else [f"{found.upper_half:.2f}", f"{found.last:.2f}"]
            lines.append([name, what, *cells, f"{theory.slope:g}"])
    return lines


def slope_table(measurements: Sequence[Measurement]) -> str:
    """The same in Markdown, with the reasons of the theory."""
    head, *lines = slope_cells(measurements)
    reasons = [growth.why for name in by_axis(measurements) for growth in (AXES[name].time, AXES[name].memory)]
    rows = [[*cells, why] for cells, why in zip(lines, reasons, strict=True)]
    return piped([[*head, "as"], ["---"] * 2 + ["---:"] * 3 + ["---"], *rows])


def limits(axis: Axis, rows: Sequence[Measurement]) -> str:
    """Where the practical limit of an axis lies, in sentences: by time, by memory, by the loss."""
    sizes = [row.size for row in rows]
    time = reach(sizes, [row.milliseconds for row in rows], SLOW, axis.time.slope)
    memory = reach(sizes, [row.peak_mib for row in rows], LARGE, axis.memory.slope)
    said = [f"An update takes {SLOW / 1e3:g} s {_where(axis, time)}."] if time else []
    said += [f"It needs {LARGE / 1024:g} GiB {_where(axis, memory)}."] if memory else []
    if time and memory:
        said += [f"{'Time' if time[0] <= memory[0] else 'Memory'} is the first limit."]
    return " ".join([*said, _learning(rows)])


def _where(axis: Axis, reached: tuple[float, bool]) -> str:
    size, beyond = reached
    return f"at about {float(f'{size:.2g}'):,.0f} {axis.label}{', extrapolated' * beyond}"


def _learning(rows: Sequence[Measurement]) -> str:
    trained = [row for row in rows if math.isfinite(row.untrained_loss)]
    slow = [row.value for row in trained if not row.loss_after <= LEARNS * row.untrained_loss]
    where = f"everywhere but at {', '.join(slow)}" if slow else "at every point"
    return (
        f"After {rows[0].updates} updates the held-out loss is below {LEARNS:.0%} of that of the untrained controller "
        f"{where}."
    )


def _settings(row: Measurement) -> str:
    return (
        f"Rule {row.rule}, {row.engine} engine, {row.threads} thread{'s' * (row.threads > 1)}, {row.device}. Times are "
        f"medians of {row.repeats} updates (least to largest), losses means over {row.test_states} held-out start "
        f"states, before and after {row.updates} updates. {row.versions}."
    )


def _table(rows: Sequence[Measurement]) -> str:
    lines = [
        [AXES[rows[0].axis].label, "batch", "steps", "hidden", "ms an update", "peak MiB", "untrained loss", "after"],
        ["---:"] * 8,
    ]
    for row in rows:
        time, peak = "–", f"above {LARGE:,.0f}"
        if math.isfinite(row.milliseconds):
            time = " ".join(
                (_digits(row.milliseconds), f"({_digits(row.least)} to {_digits(row.largest)})"),
            )
        if math.isfinite(row.peak_mib):
            peak = _digits(row.peak_mib)
        after = _digits(row.loss_after) + (f", {row.skipped} skipped" if row.skipped else "")
        lines.append(
            [row.value, str(row.batch), str(row.horizon), row.hidden, time, peak, _digits(row.untrained_loss), after]
        )
    return piped(lines)


def _digits(number: float) -> str:
    """Three digits, and all before the point."""
    if math.isnan(number):
        return "–"
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"
