"""The table of the paper's own budget: its claims over all tasks of a kind together, at the end and smoothed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bptt_studies.paper.across_tasks import improvement_over_tasks
from bptt_studies.paper.results import Result
from bptt_studies.paper.statistics import SMOOTHED
from bptt_studies.paper.study import TaskResults, plain
from bptt_studies.paper.tables import NONE, PAIRS, Claim, Row, Table, measured_losses, smoothed_losses

Losses = Callable[[TaskResults, Sequence[Result]], Sequence[float]]

ENDS: dict[str, Losses] = {"final": lambda _, results: measured_losses(results), f"last {SMOOTHED}": smoothed_losses}
"""Where a run ends: at its last epoch, and smoothed as the paper's curves are."""


def kinds_table(tasks: Sequence[TaskResults]) -> Table:
    """A row for each kind of task, clipping and claim: whether it holds over all tasks of the kind together."""
    kinds: dict[str, list[TaskResults]] = {}
    for task in tasks:
        kinds.setdefault(task.title.partition(",")[0], []).append(task)
    rows: list[Row] = []
    for kind, of_kind in kinds.items():
        for clip in dict.fromkeys(clip for task in of_kind for clip in task.clips()):
            for better, worse in PAIRS:
                one, other = plain(better, clip), plain(worse, clip)
                both = [task for task in of_kind if {one, other} <= task.methods().keys()]
                row: Row = {"tasks": f"{kind}, {len(both)}", "clipping": clip, "claim": f"{better} better than {worse}"}
                row |= {end: _over(both, kind, one, other, end) for end in ENDS}
                rows.append(row)
    below = (
        "The mean over the tasks of the probability that a run of the first ends lower than one of the second, with "
        "its stratified bootstrap 95 % interval, and the verdict of the exact test that deals runs within each task "
        f"(van Elteren 1960): at the last epoch, and of the means over the last {SMOOTHED}."
    )
    return Table(rows, below if rows else "")


def _over(tasks: Sequence[TaskResults], kind: str, better: str, worse: str, end: str) -> Claim | str:
    if not tasks:
        return NONE
    sides = [{task.name: ENDS[end](task, task.methods()[label]) for task in tasks} for label in (better, worse)]
    found = improvement_over_tasks(sides[0], sides[1])
    return Claim((f"budget, {kind}", better), (f"budget, {kind}", worse), end, found)
