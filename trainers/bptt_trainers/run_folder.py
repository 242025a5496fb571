"""The folder of a run: its configuration, metrics and checkpoints."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import nn

import bptt_envs
from bptt_envs import DifferentiableEnv, System, checks
from bptt_envs.registration import ENTRIES, system_class
from bptt_trainers.config import TrainConfig
from bptt_trainers.default_controllers import CONTROLLERS
from bptt_trainers.gradient import system_of
from bptt_trainers.metrics import EpochMetrics, read_csv, to_csv
from bptt_trainers.records.files import RunFolderError, write_atomic

# Settings that do not change what has been computed so far: a run may be continued with others. (With a learning rate
# that falls over the epochs, their number does.)
CHANGEABLE = (
    "epochs",
    "compile",
    "device",
    "on_nonfinite",
    "keep_every",
    "diagnostics",
    "tensorboard",
    "pictures",
    "out",
)

KEPT = "checkpoints"  # the folder in a run folder of those that are kept along training

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

Config = dict[str, Any]
Checkpoint = dict[str, Any]


def describe(env: Any, controller: nn.Module, config: TrainConfig) -> Config:
    """What config.json says: the environment, the controller, the training settings, the versions."""
    system = system_of(env)
    spec = getattr(env, "spec", None)
    given = {} if spec is None else spec.kwargs
    environment: Config = {
        "id": None if spec is None else spec.id,
        "options": {k: _plain(v) for k, v in given.items() if k in type(system).options()},
        "system": type(system).__name__,
        "settings": {k: _plain(v) for k, v in vars(system).items() if k in type(system).options() or _is_scalar(v)},
    }
    shapes = {name: list(p.shape) for name, p in controller.named_parameters()}
    description: Config = {"type": type(controller).__name__, "parameters": shapes}
    if type(controller) in CONTROLLERS.values():
        description["settings"] = controller.settings
    training = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(config).items() if k != "out"}
    return {
        "environment": environment,
        "controller": description,
        "training": training,
        "versions": {module.__name__: module.__version__ for module in (bptt_envs, torch, gym, np)},
    }


def differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What differs between two configurations in a way that makes them different runs, a line each."""
    parts = ("environment", "controller", "training")
    old = _flat(asdict(TrainConfig()), "training")  # of a setting that is younger than the folder
    old |= {k: v for part in parts for k, v in _flat(stored.get(part), part).items()}
    new = {k: v for part in parts for k, v in _flat(wanted.get(part), part).items()}
    ignored = {f"training.{name}" for name in CHANGEABLE}
    if new.get("training.final_learning_rate") is not None:
        ignored.remove("training.epochs")  # the learning rate falls over all of them
    return [
        f"{name}: {old.get(name)!r} in the folder, {new.get(name)!r} asked for"
        for name in dict.fromkeys([*old, *new])
        if name not in ignored and old.get(name) != new.get(name)
    ]


def kept_name(epoch: int) -> str:
    """The name of the checkpoint that is kept after `epoch`."""
    return f"{KEPT}/epoch_{epoch:06d}"


class RunFolder:
    """Reads and writes the files of a run.

    config.json, metrics.csv (a line an epoch), last.pt and best.pt (best on the training states), and in
    checkpoints/ those that were kept along training. Every
    file is written whole or not at all, metrics.csv line by line; checkpoints hold tensors and plain
    values only and are loaded with `weights_only=True`.

    Args:
        path: the folder; made when first written to.
    """

    def __init__(self, path: Path) -> None:
        self.path = checks.path("path", path)
        self.metrics_path = self.path / "metrics.csv"
        self.config_path = self.path / "config.json"

    def exists(self) -> bool:
        """Whether a run was begun here."""
        return self.config_path.exists()

    def read_config(self) -> Config:
        """The stored configuration.

        Raises:
            RunFolderError: if there is none or it cannot be read.
        """
        try:
            config: Config = json.loads(self.config_path.read_text())
        except FileNotFoundError as error:
            raise RunFolderError(f"{self.path} is not a run folder: it has no config.json.") from error
        except (OSError, ValueError) as error:
            raise RunFolderError(f"cannot read {self.config_path}: {error}.") from error
        if not isinstance(config, dict) or not {"environment", "controller", "training"} <= config.keys():
            raise RunFolderError(f"{self.path} is not a run folder of the trainer: its config.json is another's.")
        return config

    def check(self, config: Config) -> None:
        """Raise RunFolderError if the folder holds anything but a run of `config`."""
        if self.exists():
            different = differences(self.read_config(), config)
            if different:
                raise RunFolderError(
                    f"{self.path} holds a run of another configuration; use another folder or the same settings:\n  "
                    + "\n  ".join(different)
                )
        elif self.path.is_dir() and any(self.path.iterdir()):
            raise RunFolderError(f"{self.path} holds other files and no run; use a new or empty folder.")

    def begin(self, config: Config) -> None:
        """Claim the folder for a run of `config`, or continue the run that is there.

        Raises:
            RunFolderError: if it holds a run of another configuration, or cannot be written.
        """
        self.check(config)
        write_atomic(self.config_path, (json.dumps(config, indent=2) + "\n").encode())

    def append_metrics(self, row: EpochMetrics) -> None:
        """Add one line to metrics.csv."""
        try:
            with self.metrics_path.open("ab") as file:
                start = file.tell()
                try:
                    file.write(to_csv([row], header=start == 0).encode())
                    file.flush()
                    os.fsync(file.fileno())
                except OSError:
                    os.truncate(self.metrics_path, start)
                    raise
        except OSError as error:
            raise RunFolderError(
                f"cannot write {self.metrics_path}: {error.strerror or error}. Its earlier lines still stand."
            ) from error

    def rewind_metrics(self, epoch: int) -> list[EpochMetrics]:
        """Drop the lines after `epoch`, which a killed run had written ahead of its checkpoint."""
        rows = [row for row in read_csv(self.metrics_path) if row.epoch <= epoch]
        write_atomic(self.metrics_path, to_csv(rows).encode())
        return rows

    def save(self, name: str, checkpoint: Checkpoint) -> None:
        """Save a checkpoint as "last", "best" or one of `kept`, see `kept_name`."""
        data = io.BytesIO()
        torch.save(checkpoint, data)
        write_atomic(self.path / f"{name}.pt", data.getvalue())

    def kept(self) -> dict[int, str]:
        """The checkpoints that were kept along training, by epoch: names for `load` and `load_controller`."""
        paths = (self.path / KEPT).glob("epoch_*.pt")
        found = {int(path.stem.removeprefix("epoch_")): f"{KEPT}/{path.stem}" for path in paths}
        return dict(sorted(found.items()))

    def load(self, name: str) -> Checkpoint | None:
        """Load the checkpoint "last", "best" or one of `kept`; None if there is none.

        Raises:
            RunFolderError: if it cannot be read, or holds anything but tensors and plain values.
        """
        path = self.path / f"{name}.pt"
        if not path.exists():
            return None
        try:
            checkpoint: Checkpoint = torch.load(path, weights_only=True, map_location="cpu")
        except Exception as error:  # torch raises many kinds for a damaged or a hostile file
            raise RunFolderError(f"cannot read {path}: it is damaged, or no checkpoint of this program.") from error
        return checkpoint

    def train_config(self, **changes: Any) -> TrainConfig:
        """The stored training settings, with `changes`.

        Raises:
            RunFolderError: if config.json cannot be used.
            ValueError: if a change is out of range.
        """
        with self.understanding("config.json"):
            stored = self.read_config()["training"]
            hidden = None if stored["hidden"] is None else tuple(stored["hidden"])
            betas = tuple(stored.get("adam_betas", TrainConfig.adam_betas))
            config = TrainConfig(**(stored | {"hidden": hidden, "adam_betas": betas, "out": self.path}))
        return replace(config, **changes)

    def make_env(self, **kwargs: Any) -> DifferentiableEnv:
        """Build the environment of the run.

        Raises:
            RunFolderError: if it was not made by a registered id, or config.json cannot be used.
        """
        with self.understanding("config.json"):
            stored = self.read_config()["environment"]
            env_id, options = stored["id"], dict(stored["options"])
            if env_id not in ENTRIES or env_id not in gym.registry:
                raise RunFolderError(
                    f"{self.path} was trained on {env_id or stored['system']}, which is not registered here; import "
                    "the module that registers it (bptt: --module), or use the Python API with your own environment."
                )
            system_class(env_id).check_options(options, env_id)  # options only: no other system, no other code
            env = gym.make(env_id, **options, **kwargs).unwrapped
            if not isinstance(env, DifferentiableEnv):
                raise TypeError(f"{env_id} makes a {type(env).__name__}")
        return env

    def make_controller(self, system: System) -> nn.Module:
        """Build the untrained controller of the run.

        Raises:
            RunFolderError: if it is a module of the user's own, or config.json cannot be used.
        """
        with self.understanding("config.json"):
            stored = self.read_config()["controller"]
            known = {kind.__name__: kind for kind in CONTROLLERS.values()}
            if stored["type"] in known and "settings" not in stored:
                raise RunFolderError(
                    f"{self.path} was made by an earlier version; its controller cannot be rebuilt here."
                )
            if stored["type"] not in known:
                raise RunFolderError(
                    f"{self.path} holds a controller of its own type, {stored['type']}; build it in Python and hand it "
                    "to load_controller(system, controller=...)."
                )
            return known[stored["type"]](system.observation_shape, system.action_shape, **stored["settings"])

    def load_controller(
        self, system: System, which: str = "best", controller: nn.Module | None = None
    ) -> tuple[nn.Module, Checkpoint]:
        """The trained controller and its checkpoint.

        Args:
            system: the system of the run.
            which: "best" (on the training states), "last" or the name of one that was kept.
            controller: a module of your own, as it was built for training; its weights are replaced.

        Raises:
            RunFolderError: if there is no such checkpoint, or it does not fit.
        """
        checkpoint = self.load(which)
        if checkpoint is None:
            raise RunFolderError(f"{self.path} has no checkpoint {which}.pt yet.")
        controller = self.make_controller(system) if controller is None else controller
        with self.understanding(f"{which}.pt"):
            weights = checkpoint["controller"]
            controller.to(next(iter(weights.values())).dtype).load_state_dict(weights)
        return controller, checkpoint

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from training into the folder.

        Raises:
            RunFolderError: if another one does.
        """
        if fcntl is None:  # not on this platform
            yield
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise RunFolderError(
                f"cannot write {self.path}: {error.strerror or error}. Nothing was written."
            ) from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise RunFolderError(f"{self.path} is in use by another process that trains into it.") from error
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def understanding(self, name: str) -> Iterator[None]:
        """Turn into words what a damaged file, or one of another version, raises."""
        try:
            yield
        except RunFolderError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError, StopIteration, RuntimeError) as error:
            raise RunFolderError(
                f"cannot use {self.path / name}: it is damaged or of another version "
                f"({type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else error!r})."
            ) from error


def _is_scalar(value: Any) -> bool:
    return isinstance(value, (bool, int, float, str, type(None)))


def _plain(value: Any) -> Any:
    """The value as config.json gives it back: tuples, arrays and tensors as lists."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return [_plain(part) for part in value] if isinstance(value, (tuple, list)) else value


def _flat(tree: Any, prefix: str) -> dict[str, Any]:
    if isinstance(tree, Mapping):
        return {k: v for name, part in tree.items() for k, v in _flat(part, f"{prefix}.{name}").items()}
    return {prefix: list(tree) if isinstance(tree, Sequence) and not isinstance(tree, str) else tree}
