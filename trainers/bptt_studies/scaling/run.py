"""Measure the points of the axes: time, memory and loss, a line of a CSV file for each."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor, nn

from bptt_envs import System
from bptt_studies.benchmarks.memory import MIB, MemoryExceeded, Program, peak_memory
from bptt_studies.benchmarks.timing import in_turns, waited_for
from bptt_studies.scaling.config import AXES, MOST_MEMORY, Point, ScalingConfig
from bptt_studies.scaling.file import Measurement, read_measurements, write_measurements
from bptt_trainers.controllers.controller import Controller
from bptt_trainers.controllers.defaults import default_controller
from bptt_trainers.directions.policy_gradient import choose_engine
from bptt_trainers.directions.rules import combined, get_rule
from bptt_trainers.directions.system_of import system_of
from bptt_trainers.host.machine import versions
from bptt_trainers.host.threads import threads
from bptt_trainers.records.claim import locked
from bptt_trainers.records.files import RunFolderError
from bptt_trainers.records.progress import progress_bar
from bptt_trainers.training.config import TrainConfig
from bptt_trainers.training.start_states import WEIGHTS, stream_seed, training_states
from bptt_trainers.training.trainer import Trainer

CSV = "scaling.csv"
SEED = 0


def scale(config: ScalingConfig) -> list[Measurement]:
    """Measure what the CSV file in `config.out` does not hold yet; each point is written as it is finished.

    Returns:
        Everything that the file holds then, in the order of the axes.

    Raises:
        ValueError: if the engine cannot serve a controller.
        RunFolderError: if the file holds measurements of other settings, is in use, or cannot be written.
        MemoryMeasurementError: if memory cannot be measured.
    """
    with locked(config.out):
        return _scale(config)


def _scale(config: ScalingConfig) -> list[Measurement]:
    path = config.out / CSV
    done = {(row.axis, row.value): row for row in read_measurements(path)}
    _check_same(path, done.values(), config)
    missing = [[p for p in AXES[name].points(name) if (name, p.value) not in done] for name in config.axes]
    count = sum(map(len, missing))
    bar = progress_bar("scaling", count, "point", disable=count == 0)
    with bar, threads(config.threads):
        for points in missing:
            for row in _measure(points, config, lambda doing: bar.set_postfix_str(doing, sys.stderr.isatty())):
                done[row.axis, row.value] = row
                write_measurements(path, _in_order(done.values()))
                bar.update()
    return _in_order(done.values())


def _measure(points: Sequence[Point], config: ScalingConfig, say: Callable[[str], object]) -> Iterator[Measurement]:
    """The points of one axis: the memory of each, the time of all that have enough, in turns, the loss of each."""
    peaks: dict[str, float] = {}
    for point in points:
        say(f"{point.axis} {point.value}, memory")
        peaks[point.value] = _peak(point, config)
    fitting = [point for point in points if math.isfinite(peaks[point.value])]
    if fitting:
        say(f"{fitting[0].axis} {fitting[0].value} to {fitting[-1].value}, time")
    timings = in_turns({p.value: waited_for(_update(p, config), config.device) for p in fitting}, config.repeats)
    for point in points:
        say(f"{point.axis} {point.value}, loss")
        system, controller = _task(point, config.device)
        layers = [module for module in controller.modules() if isinstance(module, nn.Linear)]
        row: dict[str, Any] = _identity(point, config) | {
            "horizon": system.horizon,
            "hidden": " ".join(str(layer.out_features) for layer in layers[:-1]),
            "peak_mib": round(peaks[point.value] / MIB, 2),
        }
        if point in fitting:
            timing = timings[point.value]
            milliseconds = [round(1e3 * s, 3) for s in (timing.median, timing.least, timing.largest)]
            row |= dict(zip(("milliseconds", "least", "largest"), milliseconds, strict=True))
            row |= _losses(system, controller, point, config)
        else:
            row |= dict.fromkeys(("milliseconds", "least", "largest", "untrained_loss", "loss_after"), math.nan)
            row |= {"skipped": 0}
        yield Measurement(**row)


def _task(point: Point, device: str) -> tuple[System, Controller]:
    system = system_of(gym.make(point.env, **point.options))
    return system, default_controller(system, stream_seed(WEIGHTS, SEED), point.hidden).to(device)


def _update(point: Point, config: ScalingConfig) -> Program:
    """Loss and direction of one batch, as a program that is warm: its memory is what any later update needs."""
    system, controller = _task(point, config.device)
    states = training_states(system, point.batch, SEED).to(config.device)
    rule = get_rule(config.rule)

    def program_of(system: System, states: Tensor) -> Program:
        engine = choose_engine(system, controller, states, config.engine, compile=config.compile).engine
        return lambda: combined(rule, engine(states, rule.passes)[1])

    program = program_of(system, states)
    if config.compile:
        program()  # what is compiled serves these shapes only
    else:
        program_of(system_of(gym.make(point.env, **{**point.options, "horizon": 2})), states[:1])()
    return program


def _alone(point: Point, config: ScalingConfig) -> Program:
    """The update, in the process in which its memory is measured."""
    torch.set_num_threads(config.threads)
    return _update(point, config)


def _peak(point: Point, config: ScalingConfig) -> float:
    """Bytes that an update needs at most, infinite if they are too many."""
    if torch.device(config.device).type == "cuda":
        return _peak_on_gpu(point, config)
    try:
        return peak_memory(_alone, limit=MOST_MEMORY, point=point, config=config)
    except MemoryExceeded:
        return math.inf


def _peak_on_gpu(point: Point, config: ScalingConfig) -> float:
    try:
        run = waited_for(_update(point, config), config.device)
        torch.cuda.reset_peak_memory_stats(config.device)
        before = torch.cuda.memory_allocated(config.device)
        run()
        grown = torch.cuda.max_memory_allocated(config.device) - before
    except torch.OutOfMemoryError:
        return math.inf
    return grown if grown <= MOST_MEMORY else math.inf


class _HeldOutOnly(Trainer):
    """Judges by the held-out states only: at large batches, losses over those of training would take the most time."""

    def evaluate(self, states: Tensor) -> float:
        return super().evaluate(states) if states is self.test_states else math.nan


def _losses(system: System, controller: Controller, point: Point, config: ScalingConfig) -> dict[str, Any]:
    """The held-out loss before and after the updates: one epoch over so many batches."""
    training = TrainConfig(
        rule=config.rule,
        engine=config.engine,
        compile=config.compile,
        device=config.device,
        epochs=1,
        batch_size=point.batch,
        train_states=point.batch * config.updates,
        test_states=config.test_states,
        seed=SEED,
        on_nonfinite="skip",
    )
    untrained, trained = _HeldOutOnly(system, controller, training).fit()
    return {
        "untrained_loss": float(f"{untrained.test_loss:.6g}"),
        "loss_after": float(f"{trained.test_loss:.6g}"),
        "skipped": trained.skipped,
    }


def _identity(point: Point, config: ScalingConfig) -> dict[str, Any]:
    """The columns that say what is measured, as far as they are known beforehand."""
    return {
        "axis": point.axis,
        "value": point.value,
        "size": point.size,
        "env": point.env,
        "options": " ".join(f"{name}={value}" for name, value in point.options.items()),
        "batch": point.batch,
        "rule": config.rule,
        "engine": f"compiled {config.engine}" if config.compile else config.engine,
        "threads": config.threads,
        "device": config.device,
        "repeats": config.repeats,
        "updates": config.updates,
        "test_states": config.test_states,
        "versions": versions("torch", "Python"),
    }


def _check_same(path: Path, stored: Iterable[Measurement], config: ScalingConfig) -> None:
    """Refuse a file whose points are not those that this configuration would measure."""
    known = {(name, point.value): point for name, axis in AXES.items() for point in axis.points(name)}
    different: list[str] = []
    for row in stored:
        point = known.get((row.axis, row.value))
        if point is None:
            different.append(f"{row.axis} {row.value}: in the file, and no point of any axis")
        else:
            different += row.differences(_identity(point, config))
    if different:
        raise RunFolderError(
            f"{path} holds other measurements; use another folder or the same settings, or delete the file to measure "
            "anew:\n  " + "\n  ".join(dict.fromkeys(different))
        )


def _in_order(rows: Iterable[Measurement]) -> list[Measurement]:
    """Sorted as the axes and their points are."""
    places = [(name, point.value) for name, axis in AXES.items() for point in axis.points(name)]
    return sorted(rows, key=lambda row: places.index((row.axis, row.value)))
