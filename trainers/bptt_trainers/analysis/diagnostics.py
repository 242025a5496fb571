"""How the rules differ in a training run, and how feedback grows on its way back through the horizon."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from bptt_envs import checks
from bptt_envs.differentiable import start_states
from bptt_trainers.analysis.growth import feedback, feedback_growth
from bptt_trainers.directions.policy_gradient import adjoint_engine
from bptt_trainers.directions.rollout import rollout
from bptt_trainers.directions.rules import (
    Directions,
    combined,
    cosine,
    flat,
    get_rule,
    sign_agreement,
)
from bptt_trainers.directions.surroundings import computing
from bptt_trainers.directions.system_of import Physics, system_of
from bptt_trainers.records.files import RunFolderError, exists, read_bytes, write_atomic
from bptt_trainers.records.tables import csv_text
from bptt_trainers.training.bptt import BPTTLearner
from bptt_trainers.training.callbacks import Callback
from bptt_trainers.training.metrics import EpochMetrics

if TYPE_CHECKING:
    from bptt_trainers.training.run import Run

RULES_SHOWN = ("R", "M", "C")
PAIRS = tuple(f"{first}{second}" for first, second in combinations(RULES_SHOWN, 2))
LOOPS = ("open", "closed")
PURPOSE = "diagnostics"  # what needs the adjoint engine, in messages


@dataclass(frozen=True)
class Diagnosis:
    """What one batch of episodes shows about the rules.

    Attributes:
        epoch: epochs finished.
        layers: names of the layers, L.
        norms: norm of the direction of R, M and C by layer, (3, L).
        cosine: cosine of the angle between R and M, R and C, M and C, (3,).
        agreement: share of the parameter components in which the two have the same sign, (3,).
        adjoints: mean over the episodes of |dL/dx_t| at t = 1 .. T, as R and as M feed it back, (2, T). L is
            the loss of one episode.
        times: steps t at which growth is measured, (K,).
        growth: log10 of the largest singular value of the product of Jacobians from step t to the end, of the
            physics alone, A_{T-1} ... A_t, and with the controller in the loop, A_t + B_t K_t; the mean over
            the first few episodes, (2, K).
    """

    epoch: int
    layers: tuple[str, ...]
    norms: np.ndarray
    cosine: np.ndarray
    agreement: np.ndarray
    adjoints: np.ndarray
    times: np.ndarray
    growth: np.ndarray


def diagnose(system: Physics, controller: nn.Module, initial_states: Tensor, epoch: int = 0) -> Diagnosis:
    """Measure the rules on one batch of episodes.

    Args:
        system: the physics, or an environment of it.
        controller: one that the adjoint engine can serve.
        initial_states: (B, *state_shape).
        epoch: what to call it.

    Raises:
        ValueError: if the adjoint engine cannot serve the controller.
    """
    system = system_of(system, "system")
    initial_states = start_states("initial_states", initial_states, system)
    epoch = checks.integer("epoch", epoch, 0)
    with computing(initial_states):
        engine = adjoint_engine(system, controller, initial_states, PURPOSE)
        trajectory = rollout(system, controller, initial_states)
        arriving, passes = feedback(engine, trajectory)
        directions = {name: combined(get_rule(name), passes) for name in RULES_SHOWN}
    adjoints = arriving.norm(dim=-1).mean(-1).t()
    layers = _layers(directions["R"])
    pairs = list(combinations(directions.values(), 2))
    times, growth = feedback_growth(system, controller, trajectory)
    return Diagnosis(
        epoch=epoch,
        layers=tuple(layers),
        norms=np.array(
            [[float(flat({n: d[n] for n in names}).norm()) for names in layers.values()] for d in directions.values()]
        ),
        cosine=np.array([cosine(a, b) for a, b in pairs]),
        agreement=np.array([sign_agreement(a, b) for a, b in pairs]),
        adjoints=adjoints.double().cpu().numpy(),
        times=np.array(times),
        growth=growth.double().cpu().numpy(),
    )


class Diagnostics(Callback):
    """Diagnoses the first batch of training states before training and after each epoch.

    They are kept in diagnostics.csv (a line an epoch) and diagnostics.npz (everything) in the run folder; of a run
    without one in memory, in `diagnoses`.

    Raises:
        ValueError: if the run is not one of an update rule, or the adjoint engine cannot serve its controller.
    """

    def __init__(self, run: Run) -> None:
        if not isinstance(run.learner, BPTTLearner):
            raise ValueError(f"record='diagnostics' is for the update rules; got a {type(run.learner).__name__}.")
        self._learner = run.learner
        with computing(run.learner.train_states):
            adjoint_engine(run.learner.trained_system, run.learner.controller, run.learner.train_states, PURPOSE)
        self.folder = None if run.folder is None else run.folder.path
        self.diagnoses: list[Diagnosis] = []

    def on_fit_start(self, trainer: Run) -> None:
        """Load what the folder holds, and fill in the current epoch."""
        if self.folder is not None and exists(self.folder / NPZ):
            self.diagnoses = read_diagnostics(self.folder / NPZ)
        self.diagnoses = [one for one in self.diagnoses if one.epoch <= trainer.epoch]
        if not self.diagnoses or self.diagnoses[-1].epoch < trainer.epoch:
            self._add(trainer.epoch)
        self._save()  # a kill may have left the two files apart

    def on_epoch_end(self, trainer: Run, metrics: EpochMetrics) -> bool | None:
        """Diagnose and save."""
        self._add(metrics.epoch)
        return None

    def _add(self, epoch: int) -> None:
        states = self._learner.train_states[: self._learner.config.batch_size]
        self.diagnoses.append(diagnose(self._learner.trained_system, self._learner.controller, states, epoch))
        self._save()

    def _save(self) -> None:
        if self.folder is not None:
            write_atomic(self.folder / NPZ, to_npz(self.diagnoses))
            write_atomic(self.folder / CSV, to_csv(self.diagnoses).encode())


NPZ = "diagnostics.npz"
CSV = "diagnostics.csv"
_ARRAYS = ("norms", "cosine", "agreement", "adjoints", "growth")


def to_csv(diagnoses: Sequence[Diagnosis]) -> str:
    """A line an epoch: the norms by layer, the angles, and how much the horizon multiplies feedback in all."""
    first = diagnoses[0]
    columns = [
        "epoch",
        *(f"norm_{rule}_{layer}" for rule in RULES_SHOWN for layer in first.layers),
        *(f"cosine_{pair}" for pair in PAIRS),
        *(f"agreement_{pair}" for pair in PAIRS),
        "adjoint_first_R",
        "adjoint_first_M",
        "adjoint_last",
        *(f"log10_growth_{loop}_loop" for loop in LOOPS),
    ]
    rows = []
    for one in diagnoses:
        ends = [one.adjoints[0, 0], one.adjoints[1, 0], one.adjoints[0, -1]]
        values = [*one.norms.flatten(), *one.cosine, *one.agreement, *ends, *one.growth[:, 0]]
        rows.append([one.epoch, *(f"{value:.6g}" for value in values)])
    return csv_text(columns, rows)


def to_npz(diagnoses: Sequence[Diagnosis]) -> bytes:
    """Every array, with a first axis over the epochs; layers and times, which are the same for all."""
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {name: np.stack([getattr(one, name) for one in diagnoses]) for name in _ARRAYS}
    arrays["epoch"] = np.array([one.epoch for one in diagnoses])
    np.savez(buffer, layers=np.array(diagnoses[0].layers), times=diagnoses[0].times, **arrays)
    return buffer.getvalue()


def read_diagnostics(path: Path) -> list[Diagnosis]:
    """Read diagnostics.npz.

    Raises:
        RunFolderError: if it is not there or cannot be read.
    """
    try:
        with np.load(io.BytesIO(read_bytes(path)), allow_pickle=False) as data:
            arrays = {name: data[name] for name in _ARRAYS}
            layers, times = tuple(map(str, data["layers"])), data["times"]
            shapes = {"norms": (3, len(layers)), "cosine": (3,), "agreement": (3,), "growth": (2, *times.shape)}
            for name, array in arrays.items():
                expected = shapes.get(name, (2, *array.shape[2:]))  # adjoints: of any number of steps
                if array.shape != (*data["epoch"].shape, *expected) or array.dtype.kind != "f":
                    raise ValueError(f"{name} is of shape {array.shape}")
            return [
                Diagnosis(int(epoch), layers, times=times, **{name: array[i] for name, array in arrays.items()})
                for i, epoch in enumerate(data["epoch"])
            ]
    except FileNotFoundError as error:
        raise RunFolderError(f"{path} is not there: train with record=['diagnostics'] (--record).") from error
    except RunFolderError:
        raise
    except Exception as error:  # NumPy raises many kinds for a damaged file
        raise RunFolderError(f"cannot read {path}: it is damaged, or of another version.") from error


def _layers(directions: Directions) -> dict[str, list[str]]:
    """The parameters of each layer: those whose names differ after the last dot only."""
    layers: dict[str, list[str]] = {}
    for name in directions:
        layers.setdefault(name.rpartition(".")[0] or name, []).append(name)
    return layers
