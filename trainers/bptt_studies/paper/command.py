"""`bptt reproduce`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from bptt_envs.checks import nearest, positive_integer
from bptt_studies.paper.experiments import EXPERIMENTS, STUDIES, Experiment, Tier
from bptt_studies.paper.report import report
from bptt_studies.paper.work import missing, runs_of, train_missing
from bptt_trainers.commands.exits import Interrupted, checking_arguments
from bptt_trainers.commands.output import aligned
from bptt_trainers.host.executors import LOCAL, ExecutorName, executor_name
from bptt_trainers.records.page import fill, read_page


@dataclass(frozen=True, kw_only=True)
class Reproduce:
    """Rerun the paper's experiments, over seeds, with statistics.

    Tiers: smoke runs everything for one short epoch, in minutes; standard is what
    docs/results.md shows, some hours on two cores; full is the paper's protocol
    of 1000 epochs with 10 seeds, for a larger machine.

    Every finished run is a line of results/EXPERIMENT.csv; figures and tables are
    made from those files alone. Run again, it trains only what the files lack:
    deleting a line has that run made anew.

    example: bptt reproduce --experiments rules-cart-pole-1 --out runs/paper
    """

    tier: Tier = "standard"
    """How much of each experiment: smoke, standard or full."""

    experiments: tuple[str, ...] = ()
    """Experiments, or studies: all of a study. Run in this order; none named: everything but what nothing was tuned for
    yet. --list says what there is."""

    out: Path = Path("runs/reproduce")
    """Folder for runs/, and for results/ and report/ unless they are named."""

    results: Path | None = None
    """Folder of the CSV files."""

    report: Path | None = None
    """Folder of figures and tables."""

    document: Path | None = None
    """A Markdown page whose tables, between <!-- NAME --> and <!-- end -->, are brought up to date."""

    report_only: bool = False
    """Train nothing: make figures and tables of what is there."""

    jobs: int | None = None
    """Processes that train at once, with one thread each. None: as many as there are cores, or workers."""

    executor: ExecutorName = LOCAL
    """Who trains: local (the processes above), dask:ADDRESS or slurm (docs/scaling-out.md)."""

    together: int = 24
    """Runs that are trained as one ensemble, at most."""

    compile: bool = False
    """Compile the loops of the adjoint engine: needs a C++ compiler; compiled code is kept on disk."""

    list: bool = False
    """Say what there is and what is missing, and do nothing."""

    def run(self) -> None:
        """Train what is missing; report."""
        results = self.results or self.out / "results"
        folder = self.out / "runs"
        with checking_arguments():
            chosen = choose(self.experiments)
            positive_integer("together", self.together)
            jobs = None if self.jobs is None else positive_integer("jobs", self.jobs)
            executor = executor_name("executor", self.executor)
            runs = {
                experiment.name: runs_of(experiment, self.tier, folder, compile=self.compile) for experiment in chosen
            }
        if self.document is not None:
            read_page(self.document)  # hours later would be late to find out
        if self.list:
            rows = [["experiment", "task", "variants", "runs", "missing"]]
            rows += [
                [one.name, one.task.title, *map(str, (len(one.variants), len(runs[one.name]), len(lacking)))]
                for one in chosen
                for lacking in [missing(runs[one.name], results)]
            ]
            print("\n".join(aligned(rows, left=2)))
            return
        if not self.report_only:
            later = [one.name for one in chosen if not (one.ready or self.experiments or self.tier == "smoke")]
            if later:
                print(f"left out, as nothing is tuned there yet: {', '.join(later)}.", file=sys.stderr)
            try:
                every = [run for name, of_one in runs.items() if name not in later for run in of_one]
                train_missing(every, results, folder=folder, jobs=jobs, together=self.together, executor=executor)
            except KeyboardInterrupt:
                raise Interrupted("stopped; every finished run and epoch is kept") from None
        where = self.report or self.out / "report"
        tables = report(chosen, results, where)
        if self.document is not None:
            fill(self.document, tables)
        print(f"results in {results}, figures and tables in {where}")


def choose(names: tuple[str, ...]) -> list[Experiment]:
    """The experiments of these names, or of the studies of these names, in this order; all, if none is named.

    Raises:
        ValueError: if there is none of a name.
    """
    known = [*STUDIES, *EXPERIMENTS]
    for name in names:
        if name not in known:
            raise ValueError(f"experiments must be among {', '.join(known)}; got {name!r}.{nearest(name, known)}")
    every = EXPERIMENTS.values()
    named = [one for name in names for one in every if name in (one.name, one.study)] if names else every
    return list({one.name: one for one in named}.values())
