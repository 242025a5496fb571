"""`bptt evaluate`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from gymnasium.error import DependencyNotInstalled
from tyro.conf import Positional, arg

from bptt_envs.checks import finite, positive_integer
from bptt_trainers.analysis.trained import trained
from bptt_trainers.commands.environment import Module
from bptt_trainers.commands.exits import Failed, Misuse, checking_arguments
from bptt_trainers.commands.output import aligned
from bptt_trainers.comparison.runs import FINISHED
from bptt_trainers.directions.rollout import losses
from bptt_trainers.records.files import RunFolderError, each_place, exists, folders_with, printable


@dataclass(frozen=True)
class Evaluate:
    """Judge trained controllers on the held-out start states: a table, a line a run.

    The loss is that of an episode; the table shows its mean, median and largest
    value over the episodes, and the share of episodes below a given loss. Of a
    folder that holds runs, such as a comparison's, all of them are judged.

    example: bptt evaluate runs/one runs/two --which last
    """

    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN [RUN ...]", help_behavior_hint="(required)")]
    """Run folders, of whatever learner, and folders of such."""

    which: Literal["best", "last"] = "best"
    """The checkpoint: that of the best epoch on the training states, or of the last epoch."""

    states: int | None = None
    """Number of held-out start states. None: as many as the run used while training."""

    objective: Literal["final", "continuous"] | None = None
    """Count the cost at the last step only (final) or at every step (continuous). None: as the run did."""

    below: float = 0.01
    """Show the share of episodes with a loss below this."""

    module: Module = None
    """Module to import first: one that registers the environment of a run, if that is your own."""

    def run(self) -> None:
        """Print the table."""
        with checking_arguments():
            if not self.runs:
                raise Misuse("name at least one run folder, such as runs/two.")
            finite("--below", self.below)
            if self.states is not None:
                positive_integer("--states", self.states)
        runs = each_place(run for folder in self.runs for run in with_controller(folder))
        head = ["run", "method", "objective", "epoch", "states", "mean", "median", "max", f"< {self.below:g}"]
        rows: list[list[str]] = []
        wrong: list[Exception] = []
        try:
            for run in runs:
                try:
                    rows.append(self._row(run))
                except (RunFolderError, Misuse, DependencyNotInstalled) as error:
                    if len(runs) == 1:
                        raise
                    wrong.append(error)
        finally:  # what is judged is not lost to an error in somebody's system
            for line in aligned([head, *rows]) if rows else []:
                print(line)
        if wrong:
            raise Failed("\n  ".join([f"{len(wrong)} of {len(runs)} runs cannot be judged:", *map(str, wrong)]))
        if not runs:
            raise Failed("there is nothing to judge.")

    def _row(self, folder: Path) -> list[str]:
        with checking_arguments():
            found = trained(folder, self.which, **({} if self.objective is None else {"objective": self.objective}))
        loss = losses(found.system, found.episodes(self.states))
        return [
            printable(folder),
            found.method,
            found.system.objective,
            str(found.epoch),
            str(len(loss)),
            f"{loss.mean():.3g}",
            f"{loss.median():.3g}",
            f"{loss.max():.3g}",
            f"{(loss < self.below).float().mean():.0%}",
        ]


def with_controller(folder: Path) -> list[Path]:
    """The run that a folder is, or those in it; none of a method that leaves no controller, which is said."""
    runs = folders_with(folder, "config.json")
    if not runs and exists(folder / FINISHED):
        print(
            f"{printable(folder)} is left out: its method leaves a learning curve and no controller.", file=sys.stderr
        )
        return []
    return runs or [folder]
