"""The tables of the tuned study: each task, what was aimed at, all tasks together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bptt_studies.paper.across_tasks import Estimate, average_improvement, interquartile_mean, scores
from bptt_studies.paper.results import SMALLEST, Result
from bptt_studies.paper.statistics import Values, climbed_back, measured, quantile, to_level
from bptt_studies.paper.study import TaskResults
from bptt_studies.paper.tables import (
    DIGITS,
    NONE,
    Row,
    Table,
    claim,
    measured_losses,
    median_cell,
    reinforcement_table,
    runs_cell,
    to_level_cell,
    what_was_run,
)
from bptt_trainers.comparison.summary import CLIMB
from bptt_trainers.records.tables import number

PEER = "PPO"
PEERS = (PEER, "PPO by hand")
RULES = ("R", "M", "S", "C", "C turned")
"""The rules that are tuned, each by itself."""

COMPARED = (*RULES, PEER)
"""What is compared over all tasks together."""

HEADLINE = ("C", "R", "PPO", "PPO by hand")


@dataclass(frozen=True)
class Target:
    """What was aimed at on a task.

    Attributes:
        loss: the level.
        steps: the simulator steps to there at most, as a multiple of PPO's.
        seconds: the seconds to there at most, likewise.
    """

    loss: float
    steps: float
    seconds: float


TARGETS: Mapping[str, Target] = {
    "cart-pole-1": Target(0.001, 0.6, 0.2),
    "cart-pole-2": Target(0.01, 1.0, 0.25),
    "cart-pole-4": Target(0.01, 1.0, 0.25),
    "guidance-0.1": Target(1.3, 1.0, 0.5),
    "quantum-3": Target(20.0, 1.5, 0.5),
}
"""By task: medians over all seeds, with those that never got there counted as infinite."""


def tuned_table(task: TaskResults) -> Table:
    """A row for each method: what it took, where it ended, when it reached each level, and whether C is better."""
    table = reinforcement_table(task)
    rows = []
    for row, results in zip(table.rows, task.methods().values(), strict=True):
        climbed = f"{sum(map(climbed_back, results))}/{len(results)}" if results[0].member.epochs else NONE
        rows.append({name: cell for name, cell in row.items() if name != "C better"} | {"climbed back": climbed})
        rows[-1]["C better"] = row["C better"]
    return Table(rows, f"{table.below} *Climbed back*: runs that ended above {CLIMB:g} times their best.")


def targets_table(tasks: Sequence[TaskResults]) -> Table:
    """For each target the best rule and C beside PPO: simulator steps and seconds to the level, the loss at the end."""
    rows: list[Row] = []
    for task in tasks:
        methods, target = task.methods(), TARGETS.get(task.name)
        if target is None or PEER not in methods:
            continue
        medians = [_medians_to(task, methods[label], target.loss) for label in PEERS if label in methods]
        peer = [min(of) for of in zip(*medians, strict=True)]  # steps of the one, seconds perhaps of the other
        for label in dict.fromkeys(["C", _first_there(task, methods, target.loss)]):
            if label not in methods:
                continue
            steps, seconds = _medians_to(task, methods[label], target.loss)
            by_steps, by_seconds = _ratio(steps, peer[0]), _ratio(seconds, peer[1])
            finals = [quantile(measured_losses(methods[one]), 0.5) for one in (label, PEER)]
            rows.append(
                {
                    "task, level": f"{task.title}, {target.loss:g}",
                    "method": label,
                    "steps": _number(steps),
                    "PPO's steps": _number(peer[0]),
                    "steps over PPO's": _number(by_steps),
                    "aim": f"≤ {target.steps:g}, {_met(by_steps, target.steps)}",
                    "seconds": _number(seconds),
                    "PPO's seconds": _number(peer[1]),
                    "seconds over PPO's": _number(by_seconds),
                    "aim ": f"≤ {target.seconds:g}, {_met(by_seconds, target.seconds)}",
                    "loss at the end over PPO's": f"{_number(_ratio(*finals))}, {_met(finals[0], finals[1])}",
                }
            )
    below = (
        "Medians over all seeds; a run that never reached the level counts as infinite. C, and the rule that reached "
        "the level after the fewest simulator steps. Of PPO the fewer steps and the fewer seconds of its two settings, "
        "and the loss at the end of the tuned one. Seconds are those of one core, without what is compiled once for "
        "ever."
    )
    return Table(rows, below if rows else "")


def headline_table(tasks: Sequence[TaskResults]) -> Table:
    """For each task, a row for each of a few methods: when it reached the level that was aimed at, where it ended."""
    rows: list[Row] = []
    for task in tasks:
        methods, target = task.methods(), TARGETS.get(task.name)
        for label in HEADLINE:
            if target is None or label not in methods:
                continue
            results = methods[label]
            stuck = sum(result.final_loss**2 > result.untrained_loss * target.loss for result in results)
            row: Row = {"task, level": f"{task.title}, {target.loss:g}", "method": label, "runs": len(results)}
            row |= {"to the level: steps, seconds (runs)": to_level_cell(task, results, target.loss)}
            row |= {"loss at the end": median_cell(results, "final"), "stuck": stuck}
            rows.append(row)
    below = (
        "Held-out loss, median over the runs [quartiles], on the very same environment, with the same bounds of the "
        "actions; each run alone on one core, the rules compiled. *Stuck*: ended nearer to the untrained loss than to "
        "the level, by their ratios."
    )
    return Table(rows, below if rows else "")


def summary_table(tasks: Sequence[TaskResults]) -> Table:
    """All tasks together: the interquartile mean of scores, and how probably a run of C ends lower."""
    kept, runs = whole_tasks(tasks)
    if not kept:
        return Table([])
    scored = scores_of(kept, COMPARED, runs)
    finals = {label: finals_of(kept, label) for label in scored}
    rows: list[Row] = []
    for label, values in scored.items():
        better = NONE if label == "C" else estimate_cell(average_improvement(finals["C"], finals[label]))
        rows.append(
            {"method": label, "interquartile mean": estimate_cell(interquartile_mean(values)), "C better": better}
        )
    names = ", ".join(task.title for task in kept)
    below = (
        f"Over {names}; {runs} runs of each method a task. A score is 0 at the untrained controller's loss and 1 at "
        "the lowest median of all methods, linear in the logarithm of the loss in between; its mean is over the middle "
        "half of all runs. *C better*: the probability that a run of C ends lower, the mean over the tasks. Both with "
        "stratified bootstrap 95 % intervals ([Agarwal et al. 2021](https://arxiv.org/abs/2108.13264))."
    )
    return Table(rows, below)


def whole_tasks(tasks: Sequence[TaskResults]) -> tuple[list[TaskResults], int]:
    """The tasks that all rules and PPO were run on, and how many runs each of them has at least."""
    kept = [task for task in tasks if set(COMPARED) <= task.methods().keys()]
    return kept, min((len(task.methods()[label]) for task in kept for label in COMPARED), default=0)


def scores_of(tasks: Sequence[TaskResults], labels: Sequence[str], runs: int) -> dict[str, Values]:
    """The scores (tasks, runs) of methods: 0 at the loss of rule C's untrained controllers, 1 at the lowest median.

    Args:
        tasks: that all of them, and C, were run on.
        labels: of the methods.
        runs: of each method that count, the first ones.
    """
    references = {}
    for task in tasks:
        methods = task.methods()
        medians = [quantile(measured_losses(methods[label]), 0.5) for label in labels]
        untrained = quantile([result.untrained_loss for result in methods["C"]], 0.5)
        references[task.name] = (untrained, max(min(medians), SMALLEST))
    return {
        label: scores({name: one[:runs] for name, one in finals_of(tasks, label).items()}, references)
        for label in labels
    }


def ablations_table(tasks: Sequence[TaskResults]) -> Table:
    """For each task what is left of C when a part of it is changed, and C beside R and M."""
    rows: list[Row] = []
    for task in tasks:
        methods = task.methods()
        for label in ("R", "M", "S", "C turned", "C keeping R", "M masked at random"):
            if label in methods and "C" in methods:
                row: Row = {"task": task.title, "instead of C": label, "runs": runs_cell(len(methods[label]))}
                row |= {"its final": median_cell(methods[label], "final"), "C's": median_cell(methods["C"], "final")}
                row |= {"C better: final": claim(methods["C"], methods[label])}
                rows.append(row | {"area": claim(methods["C"], methods[label], "area")})
    return Table(rows)


def rates_table(task: TaskResults) -> Table:
    """A row for each step size, all else as tuned: where C and R end, and whether C is better."""
    rows: list[Row] = []
    rates = sorted({result.member.learning_rate for result in task.results})
    for rate in rates:
        of = {
            rule: [one for one in task.results if (one.member.rule, one.member.learning_rate) == (rule, rate)]
            for rule in ("C", "R")
        }
        row: Row = {"learning rate": f"{rate:g}"}
        row |= {f"{rule} final": median_cell(results, "final") if results else NONE for rule, results in of.items()}
        rows.append(row | {"C better": claim(of["C"], of["R"]), "area": claim(of["C"], of["R"], "area")})
    return Table(rows, what_was_run(task))


def finals_of(tasks: Sequence[TaskResults], label: str) -> dict[str, Values]:
    """The final losses (runs,) of a method on each of some tasks that it was run on."""
    found = {task.name: measured(task.methods()[label], "final") for task in tasks}
    return {name: values for name, values in found.items() if values is not None}


def _medians_to(task: TaskResults, results: Sequence[Result], loss: float) -> tuple[float, float]:
    """Median simulator steps and seconds to a level."""
    steps, seconds = to_level([task.curves[result.member.name] for result in results], loss)
    return quantile(steps, 0.5), quantile(seconds, 0.5)


def _first_there(task: TaskResults, methods: Mapping[str, Sequence[Result]], loss: float) -> str:
    """The rule that reaches a level after the fewest simulator steps."""
    there = [label for label in RULES if label in methods]
    return min(there, key=lambda label: _medians_to(task, methods[label], loss)[0], default="C")


def _ratio(value: float, peer: float) -> float:
    return math.inf if value == math.inf else value / peer if peer else math.nan


def _number(value: float) -> str:
    return number(str(value), DIGITS) if math.isfinite(value) else NONE


def _met(value: float, most: float) -> str:
    return "met" if value <= most else "missed"


def estimate_cell(of: Estimate) -> str:
    """A number over all tasks (interval)."""
    return f"{of.value:.2f} ({of.low:.2f} to {of.high:.2f})"
