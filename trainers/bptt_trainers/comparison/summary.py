"""What the curves of a comparison amount to: a line for each run, a line for each method."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from bptt_trainers.records.curve import Curve
from bptt_trainers.records.tables import Cell, Row, piped

PLANNED = """Planners learn nothing: each held-out episode is planned by itself, in the seconds given. "Above the best
plan": the loss at the end minus the least of theirs."""

CLIMB = 3.0  # a run climbed back if its loss at the end is more than this times its best

READING = f"""Losses are means over the held-out start states, then the median over the runs (least to largest). Seconds
are of training, without evaluation. "Best" is the lowest of a run's evaluations, seen in hindsight. A run climbed back
if its loss at the end is more than {CLIMB:g} times its best. "To 0.1": simulator steps and seconds until the first
evaluation with at most this loss, the median over all runs, those that never reached it counted as infinite."""


class Evaluation(Protocol):
    """A point of a learning curve, as a `CurvePoint` is one."""

    @property
    def simulator_steps(self) -> int:
        """Taken for training so far."""

    @property
    def seconds(self) -> float:
        """Spent on training so far."""

    @property
    def test_loss(self) -> float:
        """Over the held-out states."""


def reached(curve: Sequence[Evaluation], loss: float) -> tuple[float, float]:
    """Simulator steps and seconds at the first evaluation with at most this loss; infinite if there is none."""
    return next(
        ((point.simulator_steps, point.seconds) for point in curve if point.test_loss <= loss), (math.inf, math.inf)
    )


@dataclass(frozen=True)
class RunSummary:
    """One run in numbers.

    Attributes:
        method: its method.
        seed: its seed.
        simulator_steps: steps of the physics taken for training.
        seconds: time spent on training.
        final_loss: held-out loss at the end.
        best_loss: the lowest held-out loss of the curve; chosen in hindsight, so it flatters.
        steps_to: simulator steps at the first evaluation with at most each loss; infinite if there is none.
        seconds_to: seconds likewise.
    """

    method: str
    seed: int
    simulator_steps: int
    seconds: float
    final_loss: float
    best_loss: float
    steps_to: Mapping[float, float]
    seconds_to: Mapping[float, float]

    @property
    def climbed_back(self) -> bool:
        """Whether the loss at the end is more than 3 times the best."""
        return self.final_loss > CLIMB * self.best_loss


def summarize(method: str, seed: int, curve: Curve, losses: Sequence[float]) -> RunSummary:
    """Put a curve in numbers; a loss that is not a number counts as infinite."""
    values = [math.inf if math.isnan(point.test_loss) else point.test_loss for point in curve]
    first = {loss: reached(curve, loss) for loss in losses}
    return RunSummary(
        method=method,
        seed=seed,
        simulator_steps=curve[-1].simulator_steps,
        seconds=curve[-1].seconds,
        final_loss=values[-1],
        best_loss=min(values),
        steps_to={loss: steps for loss, (steps, _) in first.items()},
        seconds_to={loss: seconds for loss, (_, seconds) in first.items()},
    )


def run_rows(runs: Iterable[RunSummary]) -> list[Row]:
    """A row for each run."""
    rows: list[Row] = []
    for run in runs:
        row: Row = {"method": run.method, "seed": run.seed, "simulator_steps": run.simulator_steps}
        row |= {"seconds": run.seconds, "final_loss": run.final_loss, "best_loss": run.best_loss}
        row |= {"climbed_back": int(run.climbed_back)}
        for loss in run.steps_to:
            row |= {f"steps_to_{loss:g}": run.steps_to[loss], f"seconds_to_{loss:g}": run.seconds_to[loss]}
        rows.append(row)
    return rows


def method_rows(runs: Iterable[RunSummary], planners: Collection[str] = ()) -> list[Row]:
    """A row for each method: medians over its runs, with the least and the largest.

    A run that does not reach a loss counts as one that takes forever.

    Args:
        runs: of all methods.
        planners: those methods that know best: with any, a row says how far a method ends above their best run.
    """
    runs = list(runs)
    known = [run.final_loss for run in runs if run.method in planners]
    by_method: dict[str, list[RunSummary]] = {}
    for run in runs:
        by_method.setdefault(run.method, []).append(run)
    rows: list[Row] = []
    for method, members in by_method.items():
        row: Row = {"method": method, "runs": len(members)}
        row |= {"simulator_steps": members[0].simulator_steps}
        row |= {"seconds": statistics.median(run.seconds for run in members)}
        for name in ("final_loss", "best_loss"):
            values = [getattr(run, name) for run in members]
            row |= {name: statistics.median(values), f"{name}_min": min(values), f"{name}_max": max(values)}
        if known:
            row |= {"above_best": float(row["final_loss"]) - min(known)}
        row |= {"climbed_back": sum(run.climbed_back for run in members)}
        for loss in members[0].steps_to:
            steps = [run.steps_to[loss] for run in members]
            row |= {f"reached_{loss:g}": sum(map(math.isfinite, steps))}
            row |= {f"steps_to_{loss:g}": statistics.median(steps)}
            row |= {f"seconds_to_{loss:g}": statistics.median(run.seconds_to[loss] for run in members)}
        rows.append(row)
    return rows


def worded(rows: Sequence[Row], losses: Sequence[float]) -> list[Row]:
    """The rows of the methods in words and round numbers, for readers."""
    return [_worded(row, losses) for row in rows]


def reading(rows: Sequence[Row]) -> str:
    """How to read the rows of the methods."""
    return f"{READING}\n{PLANNED}" if "above_best" in rows[0] else READING


def to_markdown(rows: Sequence[Row], losses: Sequence[float]) -> str:
    """The rows of the methods as a Markdown table for readers."""
    shown = worded(rows, losses)
    lines: list[Sequence[object]] = [list(shown[0]), ["---"] + ["---:"] * (len(shown[0]) - 1)]
    lines += [list(row.values()) for row in shown]
    return f"{piped(lines)}\n\n{reading(rows)}\n"


def _worded(row: Row, losses: Sequence[float]) -> Row:
    words: Row = {"method": row["method"], "runs": row["runs"], "simulator steps": _steps(row["simulator_steps"])}
    words |= {"seconds": _seconds(row["seconds"]), "loss at the end": _spread(row, "final_loss")}
    words |= {"best loss": _spread(row, "best_loss")}
    words |= {"above the best plan": f"{row['above_best']:.2g}"} if "above_best" in row else {}
    words |= {"climbed back": f"{row['climbed_back']}/{row['runs']}"}
    return words | {f"to {loss:g}": _reached(row, f"{loss:g}") for loss in losses}


def _spread(row: Row, name: str) -> str:
    middle, least, largest = (f"{row[key]:.2g}" for key in (name, f"{name}_min", f"{name}_max"))
    return middle if least == largest else f"{middle} ({least} to {largest})"


def _reached(row: Row, loss: str) -> str:
    reached, runs, steps = row[f"reached_{loss}"], row["runs"], row[f"steps_to_{loss}"]
    share = "" if reached == runs else f" ({reached}/{runs} runs)"
    if steps == math.inf:
        return f"–{share}" if reached else "–"
    return f"{_steps(steps)}, {_seconds(row[f'seconds_to_{loss}'])} s{share}"


def _steps(count: Cell) -> str:
    number = float(count)
    return f"{number / 1e6:.3g}M" if number >= 1e6 else f"{number / 1e3:.3g}k" if number >= 1e3 else f"{number:g}"


def _seconds(seconds: Cell) -> str:
    number = float(seconds)
    return f"{number:.0f}" if number >= 10 else f"{number:.1f}"
