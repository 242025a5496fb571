"""Train by every rule at every stiffness and measure the gradients: a stiffness is kept as soon as it is finished."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

from bptt_envs import System
from bptt_envs.registration import build_system
from bptt_studies.contact.config import TASKS, ContactConfig
from bptt_studies.contact.gradients import Gradients, measure
from bptt_trainers.directions.rules import PAPER_RULES
from bptt_trainers.records.claim import Claim, locked
from bptt_trainers.records.files import write_atomic
from bptt_trainers.records.progress import progress_bar
from bptt_trainers.records.tables import read_rows, reader_of, short, to_csv
from bptt_trainers.training.config import TrainConfig
from bptt_trainers.training.ensemble import Ensemble
from bptt_trainers.training.start_states import held_out_states

RUNS, GRADIENTS, CLAIM = "runs.csv", "gradients.csv", "study.json"
START = "start"
OVER_HORIZONS = (START, "C")
"""Whose controllers are measured over parts of the horizon, too."""
BATCH, EPOCH_STATES, TEST_STATES = 8, 256, 128


@dataclass(frozen=True)
class Run:
    """What one training came to.

    Attributes:
        stiffness: of the contacts, in N/m.
        rule: the update rule.
        seed: of the run.
        untrained: held-out loss before training.
        loss: after; infinite if a number on the way was none.
    """

    stiffness: float
    rule: str
    seed: int
    untrained: float
    loss: float


@dataclass(frozen=True)
class Measured(Gradients):
    """Gradients at one controller, and which it is.

    Attributes:
        stiffness: of the contacts, in N/m.
        trained: the rule that trained the controller, or "start" before any did.
        seed: of the run.
        horizon: steps of the episodes.
    """

    stiffness: float
    trained: str
    seed: int
    horizon: int


def study(config: ContactConfig) -> tuple[list[Run], list[Measured]]:
    """Do what the folder does not hold yet.

    Returns:
        All that it holds then, the softest first.

    Raises:
        RunFolderError: if the folder is another study's, is in use, or cannot be written.
    """
    with locked(config.out):
        changeable = ("stiffness", "out")
        Claim(config.out / CLAIM, "contact study").take(
            {name: value for name, value in asdict(config).items() if name not in changeable}
        )
        runs, measured = read_study(config.out)
        done = {one.stiffness for one in measured}  # they are written after the runs
        missing = [stiffness for stiffness in config.stiffnesses if stiffness not in done]
        with progress_bar("contact", len(missing), "stiffness", disable=not missing) as bar:
            for stiffness in missing:
                found, gradients = _at(stiffness, config)
                runs = [one for one in runs if one.stiffness != stiffness] + found
                measured = measured + gradients
                _write(config.out / RUNS, runs)
                _write(config.out / GRADIENTS, measured)
                bar.update()
    return read_study(config.out)


def system_of(config: ContactConfig, stiffness: float, horizon: int) -> System:
    """What is studied, at one stiffness, over so many steps.

    Raises:
        ValueError: if the system does not take them.
    """
    task = TASKS[config.task]
    options = {**task.options, "stiffness": stiffness, "horizon": horizon}
    return build_system(task.env, options, f"the contact study of {task.env}")


def read_study(folder: Path) -> tuple[list[Run], list[Measured]]:
    """What a folder holds; nothing if that is nothing.

    Raises:
        RunFolderError: if a file cannot be read.
    """
    return (
        read_rows(folder / RUNS, reader_of(Run), missing_ok=True),
        read_rows(folder / GRADIENTS, reader_of(Measured), missing_ok=True),
    )


def _write(path: Path, rows: Sequence[Run | Measured]) -> None:
    """Write rows, the softest first, with what they are of before what was found."""
    names = ("stiffness", "rule", "trained", "seed", "horizon")
    lines = []
    for row in sorted(rows, key=lambda row: row.stiffness):
        line = asdict(row)
        of = {name: line.pop(name) for name in names if name in line}
        lines.append(of | {name: short(value, 6) for name, value in line.items()})
    write_atomic(path, to_csv(lines).encode())


def _at(stiffness: float, config: ContactConfig) -> tuple[list[Run], list[Measured]]:
    """Everything at one stiffness."""
    cases = list(product(PAPER_RULES, range(config.seeds)))
    ensemble = Ensemble(
        system_of(config, stiffness, config.horizon), [_training(rule, seed, config) for rule, seed in cases]
    )
    controllers = {(START, seed): copy.deepcopy(ensemble.members[seed].controller) for seed in range(config.seeds)}
    histories = ensemble.fit()
    losses = [math.inf if i in ensemble.errors else history[-1].test_loss for i, history in enumerate(histories)]
    runs = [
        Run(stiffness, *case, history[0].test_loss, loss)
        for case, history, loss in zip(cases, histories, losses, strict=True)
    ]
    controllers |= {case: member.controller for case, member in zip(cases, ensemble.members, strict=True)}
    measured = []
    for horizon in config.horizons:
        system = system_of(config, stiffness, horizon)
        states = held_out_states(system, config.samples)
        for (trained, seed), controller in controllers.items():
            if horizon < config.horizon and trained not in OVER_HORIZONS:
                continue
            found = asdict(measure(system, controller, states))
            measured.append(Measured(**found, stiffness=stiffness, trained=trained, seed=seed, horizon=horizon))
    return runs, measured


def _training(rule: str, seed: int, config: ContactConfig) -> TrainConfig:
    return TrainConfig(
        rule=rule,
        seed=seed,
        epochs=config.epochs,
        batch_size=BATCH,
        train_states=EPOCH_STATES,
        test_states=TEST_STATES,
        start_states="fresh",
        learning_rate=config.learning_rate,
        final_learning_rate=0.0,
        clip="norm",
        record=(),
    )
