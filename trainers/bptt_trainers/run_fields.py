"""The fields of a training run: at checkpoints kept along training, with what is finished kept in a folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from bptt_envs.checks import one_of, positive, positive_integer
from bptt_trainers.fields import STENCIL_STEP, Sample, Table, evaluate, grid, read_csv, rules_sample, to_csv, vectors_at_once
from bptt_trainers.files import RunFolderError, write_atomic
from bptt_trainers.planes import Plane, flat, path_plane, random_plane, rules_plane
from bptt_trainers.rules import Directions
from bptt_trainers.run_folder import RunFolder
from bptt_trainers.start_states import training_states

DirectionsName = Literal["path", "random", "rules"]
DIRECTIONS = ("path", "random", "rules")
MARGIN = 1.2  # around the path


@dataclass(frozen=True)
class FieldsConfig:
    """Which planes, and how finely.

    Raises:
        ValueError: if a setting is out of range; the message names it.
    """

    directions: DirectionsName = "path"
    """The plane: along the path of training, random (filter-normalised), or spanned by R and M."""

    size: int = 21
    """Points of the grid along each axis."""

    states: int = 32
    """Start states: so many of the run's training states, the first."""

    radius: float | None = None
    """Half the width of the square, as distance in parameter space. None: from the extent of the path."""

    checkpoints: int = 6
    """How many of the checkpoints to draw: the first, the last, and others evenly between."""

    seed: int = 0
    """Seeds random directions."""

    def __post_init__(self) -> None:
        one_of("directions", self.directions, DIRECTIONS)
        for name in ("size", "states", "checkpoints"):
            positive_integer(name, getattr(self, name))
        if self.size < 2:
            raise ValueError(f"size must be an integer of at least 2; got {self.size}.")
        if self.radius is not None:
            positive("radius", self.radius)
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise ValueError(f"seed must be an integer of at least 0; got {self.seed!r}.")
