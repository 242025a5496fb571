"""The report: every table and figure, made from the CSV files alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from bptt_envs.checks import one_of
from bptt_studies.paper.algorithm_tables import algorithm_table, choice_table, questions_table, scores_table
from bptt_studies.paper.budget_tables import kinds_table
from bptt_studies.paper.experiments import EXPERIMENTS, Experiment, Task
from bptt_studies.paper.figures import (
    ablation_figure,
    algorithm_figure,
    algorithms_figure,
    budget_figure,
    continued_figure,
    improvement_figure,
    overview_figure,
    profiles_figure,
    reinforcement_figure,
    rules_figure,
    sensitivity_figure,
    stability_figure,
    tuned_figure,
)
from bptt_studies.paper.results import read_books
from bptt_studies.paper.study import TaskResults, plain
from bptt_studies.paper.tables import (
    Family,
    Table,
    ablation_table,
    comparison_table,
    continued_table,
    memory_table,
    method_table,
    overview_table,
    reinforcement_table,
    sensitivity_table,
    stability_table,
)
from bptt_studies.paper.tuned_tables import (
    ablations_table,
    headline_table,
    rates_table,
    summary_table,
    targets_table,
    tuned_table,
)
from bptt_trainers.figures.style import save_figure
from bptt_trainers.records.files import write_atomic

Studies = Mapping[str, Sequence[TaskResults]]
"""The tasks of each study, by its name."""

REFERENCES = {"ablation": ("RMC", ("none",)), "stability": ("RC", ("none", "norm"))}
"""Rules and clippings whose runs, in the study of the rules on the same task, belong into the tables of another study.

Where the rules were not run without clipping, those by norm take their place.
"""

OF_TASK: Mapping[str, Mapping[str, Callable[[TaskResults], Table]]] = {
    "rules": {"": method_table, "-claims": comparison_table},
    "sensitivity": {"": sensitivity_table},
    "ablation": {"": method_table, "-claims": ablation_table},
    "stability": {"": method_table, "-claims": stability_table},
    "continued": {"": continued_table},
    "rl": {"": reinforcement_table},
    "tuned": {"": tuned_table},
    "tuned-rates": {"": rates_table},
    "memory": {"": method_table, "-claims": memory_table},
    "systems": {"": tuned_table},
    "algorithms": {"": algorithm_table},
    "budget": {"": method_table, "-claims": comparison_table},
}
"""The tables of each task of a study, named STUDY-TASK and a suffix."""

OF_STUDY: Mapping[str, Mapping[str, Callable[[Sequence[TaskResults]], Table]]] = {
    "rules": {"claims": overview_table},
    "tuned": {
        "tuned-headline": headline_table,
        "tuned-targets": targets_table,
        "tuned-summary": summary_table,
        "tuned-ablations": ablations_table,
    },
    "algorithms": {
        "algorithms-choice": choice_table,
        "algorithms-scores": scores_table,
        "algorithms-questions": questions_table,
    },
    "budget": {"budget-tasks": overview_table, "budget-kinds": kinds_table},
}
"""The tables of a whole study, by name."""

FIGURES: Mapping[str, Callable[[TaskResults], Figure]] = {
    "rules": rules_figure,
    "ablation": ablation_figure,
    "stability": stability_figure,
    "continued": continued_figure,
    "rl": reinforcement_figure,
    "tuned": reinforcement_figure,
    "memory": ablation_figure,
    "systems": reinforcement_figure,
    "algorithms": algorithm_figure,
    "budget": budget_figure,
}
"""The figure of each task of a study, named STUDY-TASK."""

OVERVIEWS: Mapping[str, Mapping[str, Callable[[Sequence[TaskResults]], Figure]]] = {
    "rules": {"rules": overview_figure, "claims": improvement_figure},
    "sensitivity": {"sensitivity": sensitivity_figure},
    "tuned": {"tuned": tuned_figure, "tuned-profiles": profiles_figure},
    "algorithms": {"algorithms": algorithms_figure},
}
"""The figures of a whole study, by name."""


def report(experiments: Iterable[Experiment], results: Path, out: Path) -> dict[str, str]:
    """Read what experiments left, and report it.

    Args:
        experiments: what is reported; of one that left nothing, its name only.
        results: folder of the CSV files; those of all experiments are read, reported or not: verdicts are corrected for
            all comparisons together, so that one part of a page does not say otherwise than the whole.
        out: as `report_studies`.

    Returns:
        As `tables_of`.

    Raises:
        RunFolderError: if a file cannot be read or written.
    """
    chosen = list(experiments)
    every = {experiment.name: experiment for experiment in (*EXPERIMENTS.values(), *chosen)}
    return report_studies(read_studies(chosen, results), out, read_studies(every.values(), results))


def read_studies(experiments: Iterable[Experiment], results: Path) -> dict[str, list[TaskResults]]:
    """What experiments left on the tasks of each study, with the runs that they are compared with.

    Raises:
        RunFolderError: if a file cannot be read.
    """
    studies: dict[str, list[TaskResults]] = {}
    for experiment in experiments:
        task = read_task(results, experiment.study, experiment.task)
        if experiment.study in REFERENCES and task.results:
            task = with_rules(task, read_task(results, "rules", experiment.task), *REFERENCES[experiment.study])
        studies.setdefault(experiment.study, []).append(task)
    return studies


def with_rules(task: TaskResults, study: TaskResults, rules: str, clips: Sequence[str]) -> TaskResults:
    """What a study left on a task, with the runs of these rules and clippings from the study of the rules."""
    there = [clip for clip in clips if clip in study.clips()] or ["norm"]
    return task.beside(study, [plain(rule, clip) for rule in rules for clip in there])


def read_task(folder: Path, study: str, task: Task) -> TaskResults:
    """What a study left on a task; no results where there are no files.

    Raises:
        RunFolderError: if a file cannot be read.
    """
    name = f"{study}-{task.name}"
    results, curves = read_books(folder, name)
    return TaskResults(task.name, task.title, list(results.values()), curves, task.losses)


def report_studies(studies: Studies, out: Path, others: Studies | None = None) -> dict[str, str]:
    """Write the figures of studies as PNG and PDF into a folder, and their tables as Markdown, each file whole.

    Args:
        studies: as `tables_of` takes them.
        out: the folder; what it held under other names stays.
        others: as `tables_of` takes them.

    Returns:
        As `tables_of`.

    Raises:
        ValueError: if there is no such study.
        RunFolderError: if a file cannot be written.
    """
    tables = tables_of(studies, others)
    for study, tasks in studies.items():
        run = [task for task in tasks if task.results]
        for task in run:
            if study in FIGURES:
                save_figure(FIGURES[study](task), out / f"{study}-{task.name}.png", vector=True)
        if run:
            for name, draw in OVERVIEWS.get(study, {}).items():
                save_figure(draw(tasks if name == "rules" else run), out / f"{name}.png", vector=True)
    for name, text in tables.items():
        write_atomic(out / f"{name}.md", f"{text}\n".encode())
    return tables


def tables_of(studies: Studies, others: Studies | None = None) -> dict[str, str]:
    """The tables of studies in Markdown, by name.

    Args:
        studies: the tasks of each study of `OF_TASK`. A task without results has no table and no figure of its own.
        others: whose claims count, too, where the verdicts are corrected for how many there are.

    Returns:
        Those of `OF_TASK` and `OF_STUDY`, and "reading", how to read them.

    Raises:
        ValueError: if there is no such study.
    """
    tables = _tables(studies)
    family = Family(claim for table in (*tables.values(), *_tables(others or {}).values()) for claim in table.claims())
    return {"reading": family.reading()} | {name: table.text(family) for name, table in tables.items()}


def _tables(studies: Studies) -> dict[str, Table]:
    tables: dict[str, Table] = {}
    for study, tasks in studies.items():
        kinds = OF_TASK[one_of("studies", study, OF_TASK)]
        run = [task for task in tasks if task.results]
        for task in run:
            tables |= {f"{study}-{task.name}{suffix}": table(task) for suffix, table in kinds.items()}
        if run:
            tables |= {name: table(run) for name, table in OF_STUDY.get(study, {}).items()}
    return tables
