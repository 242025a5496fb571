"""Tables of the study of estimators."""

from __future__ import annotations

from collections.abc import Sequence

from bptt_studies.estimators.config import TASKS, EstimatorsConfig
from bptt_studies.estimators.run import NAMES, Measured
from bptt_trainers.records.tables import Row, markdown

COLUMNS = {
    "noise": "noise of one estimate, over the norm of the gradient",
    "bias": "distance of the mean estimate from the gradient, over its norm (what it would be without bias)",
    "cosine": "cosine of one estimate and the gradient",
}
"""What is shown of each, and its title."""


def value_rows(rows: Sequence[Measured], config: EstimatorsConfig, what: str) -> list[Row]:
    """A row for each value of what is varied: a number of every estimator."""
    task = TASKS[config.task]
    table: list[Row] = []
    for value in sorted({row.value for row in rows}):
        there = {row.estimator: row for row in rows if row.value == value}
        any_of = there[NAMES[0]]
        line: Row = {f"{task.over} [{task.unit}]": f"{value:g}"}
        for name in NAMES:
            number = f"{getattr(there[name], what):.2g}"
            line[name] = f"{number} ({there[name].floor:.2g})" if what == "bias" else number
        table.append(line | {"gradient": f"{any_of.truth:.3g} ± {any_of.truth * any_of.truth_error:.2g}, {any_of.by}"})
    return table


def report(rows: Sequence[Measured], config: EstimatorsConfig) -> str:
    """All tables as Markdown."""
    parts = [
        f"## {title[0].upper()}{title[1:]}\n\n{markdown(value_rows(rows, config, what))}"
        for what, title in COLUMNS.items()
    ]
    head = f"# Estimators, {config.task}: {config.estimates} estimates of {config.batch} episodes"
    return "\n\n".join([head, *parts]) + "\n"
