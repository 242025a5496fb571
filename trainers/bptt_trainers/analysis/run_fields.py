"""The fields of a training run, at checkpoints kept along training; what is finished is kept in a folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch

from bptt_envs import System
from bptt_envs.settings import Count, Positive, Seed, at_least, read
from bptt_trainers.analysis.fields import (
    STENCIL_STEP,
    Table,
    evaluate,
    grid,
    read_csv,
    rules_sample,
    to_csv,
    vectors_at_once,
)
from bptt_trainers.analysis.planes import Plane, path_plane, random_plane, rules_plane
from bptt_trainers.directions.rules import Directions, flat
from bptt_trainers.records.claim import Claim, locked, plain_differences
from bptt_trainers.records.files import RunFolderError, exists, refuse_links, write_atomic
from bptt_trainers.records.progress import progress_bar
from bptt_trainers.training.run_folder import RunFolder
from bptt_trainers.training.start_states import training_states

PlaneName = Literal["path", "random", "rules"]
RADII = {"path": 1.0, "random": 1.0, "rules": 0.1}
"""The planes, and half the width of the square if none is given, as a share of the path's."""

DIGEST = "digest of the run"
MARGIN = 1.2  # around the path
SETTINGS, POINTS, CHECKPOINTS = "fields.json", "fields.csv", "checkpoints.csv"  # files in the folder


@dataclass(frozen=True)
class FieldsConfig:
    """Which planes, and how finely.

    Raises:
        ValueError: if a setting is out of range; the message names it.
    """

    directions: PlaneName = "path"
    """Plane: along the path of training, random (filter-normalised), or spanned by R and M (rules)."""

    size: Annotated[int, at_least(2)] = 21
    """Points of the grid along each axis."""

    states: Count = 32
    """Start states: the first of the run's training states; all if there are fewer."""

    radius: Positive | None = None
    """Half the width of the square, a distance in parameter space. None: the path fits; a tenth of it for rules."""

    checkpoints: Count = 6
    """How many of the checkpoints: the last, the first, and others spaced evenly between."""

    seed: Seed = 0
    """Seeds random directions."""

    def __post_init__(self) -> None:
        read(self)


@dataclass(frozen=True)
class Slice:
    """One picture: the plane of a checkpoint, and the square in it.

    Attributes:
        plane: it holds the checkpoint.
        path: all checkpoints projected on it, (K, 2).
        here: which of them it belongs to.
        center: of the square.
        radius: half its width.
    """

    plane: Plane
    path: np.ndarray
    here: int
    center: tuple[float, float]
    radius: float


class RunFields:
    """The fields of a run's controller in the slices that a configuration asks for.

    Args:
        folder: the run.
        config: which planes, and how finely.

    Raises:
        ValueError: if a setting does not suit the run.
        RunFolderError: if the run cannot be read, or holds too few checkpoints.
    """

    def __init__(self, folder: RunFolder, config: FieldsConfig) -> None:
        self.config = config
        self._run = folder.path
        environment = folder.read_config()["environment"]
        self.name = f"{environment['id']}, rule {folder.train_config().rule}"
        system = folder.make_env().system
        self.path = _path(folder, system)
        trained = folder.train_config()
        controller, _ = folder.load_controller(system, "last")
        states = training_states(system, trained.train_states, trained.seed)[: config.states]
        self._sample = rules_sample(system, controller, states.to(next(controller.parameters())))
        self._at_once = vectors_at_once(system, controller, len(states))
        self._settings = {name: value for name, value in asdict(config).items() if name != "checkpoints"}
        self._settings[DIGEST] = _digest(environment, self.path)
        self.slices = self._slices(folder)

    def compute(self, out: Path) -> tuple[dict[int, Table], dict[int, Table]]:
        """The fields on the grid of each slice, and at each checkpoint itself; both by epoch.

        After each slice both are written to CSV files in `out`; what is there is not computed again.

        Raises:
            RunFolderError: if `out` holds fields of other settings, is in use, or cannot be read or written.
        """
        refuse_links(self._run, out)
        with locked(out):
            known = self._begin(out)
            points, checkpoints = (read_csv(out / name) if known else {} for name in (POINTS, CHECKPOINTS))
            missing = [epoch for epoch in self.slices if epoch not in points or epoch not in checkpoints]
            with progress_bar("fields", len(missing) * self.config.size**2, "point", disable=not missing) as bar:
                for epoch in missing:
                    piece = self.slices[epoch]
                    step = STENCIL_STEP * piece.radius
                    square = grid(piece.center, piece.radius, self.config.size)
                    here = torch.from_numpy(piece.path[[piece.here]])
                    points[epoch] = evaluate(
                        self._sample, piece.plane, square, step, at_once=self._at_once, on_progress=bar.update
                    )
                    checkpoints[epoch] = evaluate(self._sample, piece.plane, here, step, at_once=self._at_once)
                    for name, tables in ((POINTS, points), (CHECKPOINTS, checkpoints)):
                        write_atomic(out / name, to_csv(dict(sorted(tables.items()))).encode())
            points, checkpoints = (read_csv(out / name) for name in (POINTS, CHECKPOINTS))
            return {epoch: points[epoch] for epoch in self.slices}, {epoch: checkpoints[epoch] for epoch in self.slices}

    def _begin(self, out: Path) -> bool:
        """Claim the folder; return whether it holds fields of these settings."""
        path = out / SETTINGS
        if exists(path):
            stored = Claim(path, "fields").read()
            different = plain_differences({name: stored.get(name) for name in self._settings}, self._settings)
            if different and exists(out / POINTS):
                raise RunFolderError(
                    f"{out} holds fields of other settings, of another run, or of this one before it was continued; "
                    "delete it or use another folder (--out):\n  " + "\n  ".join(different)
                )
            if not different:
                return True
        write_atomic(path, (json.dumps(self._settings, indent=2) + "\n").encode())
        return False

    def _slices(self, folder: RunFolder) -> dict[int, Slice]:
        config, epochs, points = self.config, list(self.path), list(self.path.values())
        radius, along = config.radius, None
        try:
            along = path_plane(points)
        except ValueError as error:
            if config.directions == "path":
                raise RunFolderError(
                    f"{folder.path}: {error} Train with --keep-every, such as bptt train --keep-every 10, or take "
                    "--directions random or rules: the last checkpoint is enough for them."
                ) from error
            if radius is None:
                raise ValueError(f"radius must be given, as there is no path to take it from: {error}") from error
        else:
            path = _projected(along, points)
            low, high = path.min(0), path.max(0)
            radius = radius or RADII[config.directions] * MARGIN * float((high - low).max()) / 2
        slices = {}
        count = min(config.checkpoints, len(points))
        for i in sorted({round(i) for i in np.linspace(len(points) - 1, 0, count)}):
            if along is not None and config.directions == "path":
                center = (float(low[0] + high[0]) / 2, float(low[1] + high[1]) / 2)
                slices[epochs[i]] = Slice(along.through(points[i]), path, i, center, radius)
            else:
                plane = self._plane(folder, epochs[i])
                slices[epochs[i]] = Slice(plane, _projected(plane, points), i, (0.0, 0.0), radius)
        return slices

    def _plane(self, folder: RunFolder, epoch: int) -> Plane:
        """The plane of one checkpoint, which is its origin."""
        at = self.path[epoch]
        if self.config.directions == "random":
            return random_plane(at, torch.Generator().manual_seed(self.config.seed))
        _, directions = self._sample({name: p.unsqueeze(0) for name, p in at.items()})
        R, M = ({name: d[0] for name, d in directions[rule].items()} for rule in "RM")
        try:
            return rules_plane(at, R, M)
        except ValueError as error:
            raise RunFolderError(f"{folder.path}, epoch {epoch}: {error}") from error


def _path(folder: RunFolder, system: System) -> dict[int, Directions]:
    """The trainable parameters of the checkpoints that were kept, and of the last one, by epoch."""
    path = {}
    last = folder.load("last")
    done = -1 if last is None else last["epoch"]
    earlier = [name for epoch, name in folder.kept().items() if epoch < done]  # a kill may leave a later one
    for name in (*earlier, "last"):
        controller, checkpoint = folder.load_controller(system, name)
        path[int(checkpoint["epoch"])] = {n: p.detach() for n, p in controller.named_parameters() if p.requires_grad}
    return path


def _projected(plane: Plane, points: Sequence[Directions]) -> np.ndarray:
    """The coordinates in the plane of K points, (K, 2)."""
    return torch.stack([plane.coordinates(point) for point in points]).numpy()


def _digest(environment: Mapping[str, Any], path: Mapping[int, Directions]) -> str:
    """Tells runs apart, and what became of one when it was continued."""
    named = {name: value for name, value in environment.items() if name != "content"}  # which older runs do not say
    digest = hashlib.sha256(json.dumps(named, sort_keys=True).encode())
    for epoch, parameters in path.items():
        digest.update(str(epoch).encode())
        digest.update(flat(parameters).numpy().tobytes())
    return digest.hexdigest()[:16]
