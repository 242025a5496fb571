"""The tables of the study of algorithms: which of them to take for which task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bptt_studies.paper.across_tasks import average_improvement, improvement_over_tasks, interquartile_mean
from bptt_studies.paper.results import Result
from bptt_studies.paper.statistics import quantile, to_level
from bptt_studies.paper.study import TaskResults
from bptt_studies.paper.tables import NONE, Claim, Row, Table, claim, measured_losses, median_cell
from bptt_studies.paper.tuned_tables import estimate_cell, finals_of, scores_of, tuned_table

FAMILIES: Mapping[str, tuple[str, ...]] = {
    "through the whole episode": ("R", "C", "R decay 0.9", "C decay 0.9", "R every 16", "C every 16"),
    "windows and a critic": ("SHAC", "SHAC-M", "SHAC-C", "SAPO"),
    "through noise": ("LR", "TP", "AoBG"),
    "no gradients of the physics": ("PPO",),
}
"""The algorithms, by what they are."""

QUESTIONS = (
    ("C", "R"),
    ("R decay 0.9", "R"),
    ("C decay 0.9", "C"),
    ("R every 16", "R"),
    ("C every 16", "C"),
    ("SHAC", "R"),
    ("SHAC-M", "SHAC"),
    ("SHAC-C", "SHAC"),
    ("SAPO", "SHAC"),
    ("TP", "R"),
    ("AoBG", "R"),
    ("C", "PPO"),
    ("SHAC", "PPO"),
)
"""Is the first better than the second?"""

LIKE_THE_BEST = 1.5  # times its median: who ends there is named beside it


def algorithm_table(task: TaskResults) -> Table:
    """A row for each algorithm: what it took, where it ended, when it reached each level."""
    table = tuned_table(task)
    return Table([{n: cell for n, cell in row.items() if n != "C better"} for row in table.rows], table.below)


def questions_table(tasks: Sequence[TaskResults]) -> Table:
    """A row for each of `QUESTIONS`, a column for each task, and the mean over those on which both were run."""
    rows: list[Row] = []
    for better, worse in QUESTIONS:
        cells = [claim(task.methods().get(better, []), task.methods().get(worse, [])) for task in tasks]
        if any(cell != NONE for cell in cells):
            row: Row = {"claim": f"{better} better than {worse}"}
            row |= {task.title: cell for task, cell in zip(tasks, cells, strict=True)}
            rows.append(row | {"all tasks": _over_tasks(tasks, better, worse)})
    below = (
        "*All tasks*: the mean over the tasks of the probability that a run of the first ends lower than one of the "
        "second, with its stratified bootstrap 95 % interval, and the verdict of the exact test that deals runs within "
        f"each task (van Elteren 1960); {NONE} where one task only has both."
    )
    return Table(rows, below if rows else "")


def choice_table(tasks: Sequence[TaskResults]) -> Table:
    """For each task the algorithm that ends lowest, those that end near it, and the first ones at a level."""
    rows: list[Row] = []
    for task in tasks:
        methods = task.methods()
        finals = {label: quantile(measured_losses(results), 0.5) for label, results in methods.items()}
        best = min(finals, key=lambda label: finals[label])
        near = [label for label in finals if label != best and finals[label] <= LIKE_THE_BEST * finals[best]]
        row: Row = {"task": task.title, "ends lowest": f"{best}, {median_cell(methods[best], 'final')}"}
        row["likewise"] = ", ".join(near) or NONE
        for loss in task.thresholds:
            for place, unit in enumerate(("steps", "seconds")):
                row[f"first at level {_place(task, loss)}, {unit}"] = _first(task, methods, loss, place)
        rows.append(row)
    below = (
        "Medians over the runs. *Likewise*: those whose median loss at the end is at most "
        f"{LIKE_THE_BEST:g} times the lowest. The levels of a task are those of its own table, in its order; {NONE} "
        "where no median run got there."
    )
    return Table(rows, below if rows else "")


def scores_table(tasks: Sequence[TaskResults]) -> Table:
    """All tasks with R and C: the interquartile mean of scores of each algorithm, and how probably it ends below R."""
    tasks = [task for task in tasks if {"R", "C"} <= task.methods().keys()]
    labels, runs = on_all(tasks)
    if not labels:
        return Table([])
    finals = {label: finals_of(tasks, label) for label in labels}
    rows: list[Row] = []
    for label, values in scores_of(tasks, labels, runs).items():
        better = NONE if label == "R" else estimate_cell(average_improvement(finals[label], finals["R"]))
        mean = estimate_cell(interquartile_mean(values))
        rows.append({"algorithm": label, "interquartile mean": mean, "better than R": better})
    names = ", ".join(task.title for task in tasks)
    below = (
        f"Over {names}. A score is 0 at the untrained controller's loss and 1 at the lowest median of all algorithms, "
        "linear in the logarithm of the loss in between; its mean is over the middle half of all runs. *Better than "
        "R*: the probability that a run ends lower than one of R, the mean over the tasks. Both with stratified "
        "bootstrap 95 % intervals ([Agarwal et al. 2021](https://arxiv.org/abs/2108.13264))."
    )
    return Table(rows, below)


def on_all(tasks: Sequence[TaskResults]) -> tuple[list[str], int]:
    """The algorithms that were run on all of some tasks, and how many runs each of them has on each at least."""
    every = [task.methods() for task in tasks]
    labels = [label for label in (every[0] if every else ()) if all(label in methods for methods in every)]
    return labels, min((len(methods[label]) for methods in every for label in labels), default=0)


def _over_tasks(tasks: Sequence[TaskResults], better: str, worse: str) -> Claim | str:
    both = [task for task in tasks if {better, worse} <= task.methods().keys()]
    if len(both) < 2:
        return NONE
    found = improvement_over_tasks(finals_of(both, better), finals_of(both, worse))
    return Claim(("algorithms", better), ("algorithms", worse), "final", found)


def _first(task: TaskResults, methods: Mapping[str, Sequence[Result]], loss: float, place: int) -> str:
    """Who reaches a level after the fewest simulator steps (place 0) or seconds (1), in the median."""
    medians = {
        label: quantile(to_level([task.curves[one.member.name] for one in results], loss)[place], 0.5)
        for label, results in methods.items()
    }
    first = min(medians, key=lambda label: medians[label])
    return NONE if medians[first] == float("inf") else first


def _place(task: TaskResults, loss: float) -> int:
    return 1 + list(task.thresholds).index(loss)
