"""`bptt sweep`."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any

from tyro.conf import OmitArgPrefixes, arg

from bptt_trainers.commands.compare import Overrides, Tuning, announce_rows, seeds_each, settings_of
from bptt_trainers.commands.environment import EnvOptions, Module, named_texts, parse_options
from bptt_trainers.commands.exits import Interrupted, Misuse, checking_arguments
from bptt_trainers.commands.output import file_list
from bptt_trainers.comparison.sweep import SweepConfig, sweep
from bptt_trainers.records.files import exists
from bptt_trainers.tuning.space import Choice, read_entry

FILES = {
    "cells.md": "the table, for readers",
    "cells.csv": "the table: a line a method and point of the grid",
    "cells.png": "the losses over the grid",
    "cells.pdf": "the same for print",
    "runs.csv": "a line a run",
    "curves.csv": "the learning curves in numbers",
    "runs": "a folder for each run",
}

Grid = Annotated[tuple[str, ...], arg(metavar="NAME=A,B,...")]


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Train methods over a grid of settings and options.

    Every method at every point of the grid with every seed: same held-out start
    states, same simulator steps. Leaves a table (Markdown, CSV) with medians and
    quartiles over the seeds, and a figure over the first axis of numbers. Run
    again, it computes only what is missing, also with more values or seeds.

    example: bptt sweep --methods R C --grid learning_rate=1e-3,1e-2 clip=none,norm
    """

    module: Module = None
    """Module to import first: one that registers the environment, if that is your own."""

    sweep: OmitArgPrefixes[SweepConfig]

    grid: Grid = ()
    """Settings and their values: learning_rate=1e-3,1e-2 for every method, PPO.num_envs=8,16 for one of them."""

    grid_env: Grid = ()
    """Options of the environment and their values, such as n_poles=1,2."""

    env_option: EnvOptions = ()
    """An option of the environment that is the same for all, such as max_force=50 (N). bptt envs ID lists them."""

    tuning: Tuning = None
    """A folder of bptt tune: every method that learns has the best row found there, whatever --preset is; what a row
    does not say is as the paper has it."""

    override: Overrides = ()
    """A setting of one method that is the same for all and differs from its default, such as C.clip=norm."""

    def run(self) -> None:
        """Sweep."""
        with checking_arguments():
            if not self.grid and not self.grid_env:
                raise Misuse("name an axis of the grid, as --grid learning_rate=1e-3,1e-2; without one: bptt compare.")
            env = self.sweep.env
            options = {
                name: tuple(parse_options(env, [f"{name}={_text(value)}"])[name] for value in values)
                for name, values in _axes("--grid-env", self.grid_env)
            }
            fixed = parse_options(env, self.env_option)
            config = replace(
                self.sweep,
                env_options=fixed,
                **settings_of(self.sweep, self.tuning, self.override, fixed | options),
                grid=dict(_axes("--grid", self.grid)),
                env_grid=options,
            )
        announce_rows(self.tuning)
        print(
            f"{config.out}: {', '.join(config.methods)} on {config.env}, {len(config.cells)} cells, "
            f"{seeds_each(config)};\n"
            f"{config.steps:,} simulator steps a run; what is finished is not computed again",
            flush=True,
        )
        for note in config.notes:
            print(textwrap.fill(note, 80), flush=True)
        try:
            made = sweep(config)
        except KeyboardInterrupt:
            raise Interrupted("stopped; what is finished is kept") from None
        there = {name: what for name, what in FILES.items() if exists(config.out / name)}
        print(f"{made.table}\n{file_list(config.out, there)}")


def _axes(option: str, texts: Iterable[str]) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Read "name=a,b" texts: tuples in parentheses, words without quotes."""
    for name, values in named_texts(option, tuple(texts), "learning_rate=1e-3,1e-2"):
        try:
            entry = read_entry(f"{{{values}}}")
        except ValueError as error:
            raise ValueError(f"{option} {name}, values with commas between them: {error}") from error
        assert isinstance(entry, Choice)
        yield name, entry.values


def _text(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)
