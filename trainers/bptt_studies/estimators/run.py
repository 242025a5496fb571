"""Measure every estimator at every point: a point is kept as soon as it is finished."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import Tensor

from bptt_envs import System
from bptt_envs.registration import build_system
from bptt_studies.estimators.config import TASKS, EstimatorsConfig
from bptt_trainers.controllers.defaults import default_controller
from bptt_trainers.directions.augmented import draw_noise
from bptt_trainers.directions.estimators import KINDS, EstimatorEngine, alpha_of, mixture, propagated, replaced
from bptt_trainers.directions.recursion import Mix
from bptt_trainers.directions.rules import MODIFIED, REGULAR, STOPPED, Feedback
from bptt_trainers.records.claim import Claim, locked
from bptt_trainers.records.files import write_atomic
from bptt_trainers.records.progress import progress_bar
from bptt_trainers.records.tables import read_rows, reader_of, short, to_csv

ROWS, CLAIM = "estimators.csv", "study.json"
HIDDEN = (8,)
NAMES = ("R", "M", "S", "LR", "TP", "AoBG")
"""What is measured: passes of rules with the noise held, and estimators by their names as methods."""


@dataclass(frozen=True)
class Measured:
    """One estimator at one point; all but `truth` and `cosine` are shares of the norm of the gradient.

    Attributes:
        value: of what is varied.
        estimator: its name.
        truth: norm of the gradient of the expected loss, as well as it is known.
        truth_error: standard error of that gradient.
        by: what it is the mean of, "R" or "LR": of the two, which both are unbiased, the one of less error.
        noise: root of the mean squared distance of an estimate from the mean of all.
        bias: distance of that mean from the gradient.
        floor: what that distance is to be expected to be without any bias.
        cosine: of the angle between an estimate and the gradient, the mean over estimates.
    """

    value: float
    estimator: str
    truth: float
    truth_error: float
    by: str
    noise: float
    bias: float
    floor: float
    cosine: float


def study(config: EstimatorsConfig) -> list[Measured]:
    """Do what the folder does not hold yet.

    Returns:
        All that it holds then, the least value first.

    Raises:
        RunFolderError: if the folder is another study's, is in use, or cannot be written.
    """
    with locked(config.out):
        settings = {name: one for name, one in asdict(config).items() if name not in ("values", "out")}
        Claim(config.out / CLAIM, "study of estimators").take(settings)
        rows = read_study(config)
        missing = [value for value in config.points if value not in {row.value for row in rows}]
        with progress_bar("estimators", len(missing), "point", disable=not missing) as bar:
            for value in missing:
                rows = sorted([*rows, *_at(value, config)], key=lambda row: row.value)
                lines = [
                    {name: short(one, 6) if isinstance(one, float) else one for name, one in asdict(row).items()}
                    for row in rows
                ]
                write_atomic(config.out / ROWS, to_csv(lines).encode())
                bar.update()
    return read_study(config)


def read_study(config: EstimatorsConfig) -> list[Measured]:
    """What a folder holds; nothing if that is nothing.

    Raises:
        RunFolderError: if its file cannot be read.
    """
    return read_rows(config.out / ROWS, reader_of(Measured), missing_ok=True)


def system_of(config: EstimatorsConfig, value: float) -> System:
    """What is studied, at one point.

    Raises:
        ValueError: if the system does not take it.
    """
    task = TASKS[config.task]
    at = int(value) if task.over == "horizon" else value
    return build_system(task.env, {**task.options, task.over: at}, f"the study of estimators on {task.env}")


class Estimates:
    """Estimates of the gradient of the expected loss at one controller, many at once, in float64.

    Args:
        system: the physics.
        config: of the study.
    """

    def __init__(self, system: System, config: EstimatorsConfig) -> None:
        controller = default_controller(
            system, config.seed, HIDDEN, "mlp", deviation="constant", initial_deviation=config.deviation
        ).double()
        with torch.no_grad():
            for parameter in controller.get_submodule("network").parameters():
                parameter.mul_(TASKS[config.task].gain)
        self.system, self.controller, self.batch = system, controller, config.batch
        self.engine = EstimatorEngine(system, controller, "total_propagation", "adjoint")
        self.generator = torch.Generator().manual_seed(config.seed)

    def episodes(self, estimates: int) -> tuple[Tensor, Tensor]:
        """Start states, (N, B, *state_shape), and noise, (T, N, B, *noise_shape), of so many estimates."""
        states = self.system.initial_states(estimates * self.batch, self.generator, torch.float64)
        noise = draw_noise(self.controller, self.system.horizon, states, self.generator)
        assert noise is not None
        return states.unflatten(0, (estimates, -1)), noise.unflatten(1, (estimates, -1))

    def of_passes(self, states: Tensor, noise: Tensor, passes: Sequence[Feedback]) -> list[Tensor]:
        """Pathwise estimates by each pass, (N, n)."""
        return self._stacked(states, noise, passes, None)

    def by_step(self, states: Tensor, noise: Tensor, make: Callable[..., Mix]) -> Tensor:
        """Estimates of a kind that goes step by step, (N, n)."""
        feedback = next(of for kind, of in KINDS.values() if kind is make)
        return self._stacked(states, noise, (feedback,), partial(make, scale=1 / self.batch, groups=len(states)))[0]

    def of_episodes(self, states: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """What each episode says pathwise and by likelihood ratio, (N, B, n) each."""
        count, apart = len(states), (states.flatten(0, 1).unsqueeze(1), noise.flatten(1, 2).unsqueeze(2))
        pathwise = self._stacked(*apart, (REGULAR,), None)[0]
        ratio = self._stacked(*apart, (KINDS["likelihood_ratio"][1],), partial(replaced, scale=1.0, groups=count))[0]
        return pathwise.unflatten(0, (count, -1)), ratio.unflatten(0, (count, -1))

    def _stacked(
        self, states: Tensor, noise: Tensor, passes: Sequence[Feedback], make: Callable[..., Mix] | None
    ) -> list[Tensor]:
        """Directions, (E, n) for each pass, of E parts of a batch at the same parameters."""
        self.engine.chosen.choose(states[0])
        engine = self.engine.chosen.stacked()
        assert engine is not None
        members = {
            name: one.detach().expand(len(states), *one.shape)
            for name, one in self.engine.chosen.controller.named_parameters()
        }
        mixing = None if make is None else partial(make, self.engine.system)
        _, found = engine(members, states, passes, noise=noise, look=False, mixing=mixing)
        return [torch.cat([one.flatten(1) for one in found[feedback].values()], dim=1) for feedback in passes]


def gradient(estimates: Estimates, count: int, times: int) -> tuple[Tensor, float, str]:
    """The gradient of the expected loss from many episodes, (n,), its standard error, and what it is the mean of."""
    found: dict[str, list[Tensor]] = {"R": [], "LR": []}
    for _ in range(times):
        states, noise = estimates.episodes(count)
        found["R"].append(estimates.of_passes(states, noise, (REGULAR,))[0])
        found["LR"].append(estimates.by_step(states, noise, replaced))
    means = {}
    for name, parts in found.items():
        every = torch.cat(parts)
        means[name] = every.mean(0), math.sqrt(float(every.var(0).sum()) / len(every))
    by = min(means, key=lambda name: means[name][1] if math.isfinite(means[name][1]) else math.inf)
    return *means[by], by


def _at(value: float, config: EstimatorsConfig) -> list[Measured]:
    """Every estimator at one point."""
    estimates = Estimates(system_of(config, value), config)
    true, error, by = gradient(estimates, config.estimates, config.truth)
    states, noise = estimates.episodes(config.estimates)
    regular, modified, stopped = estimates.of_passes(states, noise, (REGULAR, MODIFIED, STOPPED))
    pathwise, ratio = estimates.of_episodes(states, noise)
    found = {
        "R": regular,
        "M": modified,
        "S": stopped,
        "LR": ratio.mean(1),
        "TP": estimates.by_step(states, noise, propagated),
        "AoBG": torch.stack(
            [mixture(alpha_of(*both), *(one.mean(0) for one in both)) for both in zip(pathwise, ratio, strict=True)]
        ),
    }
    norm = float(true.norm())
    rows = []
    for name in NAMES:
        mean, variance = found[name].mean(0), float(found[name].var(0).sum())
        cosines = torch.nn.functional.cosine_similarity(found[name], true.unsqueeze(0), dim=1)
        rows.append(
            Measured(
                value=value,
                estimator=name,
                truth=norm,
                truth_error=error / norm,
                by=by,
                noise=math.sqrt(variance) / norm,
                bias=float((mean - true).norm()) / norm,
                floor=math.sqrt(variance / len(found[name]) + error**2) / norm,
                cosine=float(cosines.mean()),
            )
        )
    return rows
