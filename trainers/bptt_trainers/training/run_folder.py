"""The folder of a run: its configuration, metrics and checkpoints."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

import bptt_envs
from bptt_envs import DifferentiableEnv, System, Task, checks, make_env
from bptt_envs.registration import ENTRIES, system_class
from bptt_envs.system import MADE_WITH
from bptt_trainers.controllers.defaults import CONTROLLERS
from bptt_trainers.directions.policy_gradient import system_of
from bptt_trainers.records.checkpoints import packed, unpacked
from bptt_trainers.records.claim import Claim, in_words, locked, plain_differences, same
from bptt_trainers.records.files import (
    DATA_LIMIT,
    RunFolderError,
    append,
    exists,
    list_names,
    read_bytes,
    read_text,
    remove,
    sweep,
    understanding,
    write_atomic,
)
from bptt_trainers.records.plain import EVAL, code_line, content, objects_in, parts, plain, tensor_line, tensors
from bptt_trainers.training.config import TrainConfig
from bptt_trainers.training.metrics import EpochMetrics, read_csv, to_csv

# Settings that do not change what has been computed so far: a run may be continued with others. (The number of epochs
# does where `epochs_count`.)
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

EPOCHS_COUNT = " (its step sizes follow from the number of epochs: choose it when training begins)"

KEPT = "checkpoints"  # the folder in a run folder of those that are kept along training

# What config.json says since later versions, by part: not compared with a folder that does not say it
YOUNGER = (("environment", "content"), ("controller", "dtypes"), ("controller", "parts"), ("controller", "tensors"))

# How much a folder, which may be a stranger's, may ask for: a layer or state of more would fill the memory
LARGEST = {"train_states": 2**24, "test_states": 2**24, "horizon": 2**20, "seed": 2**63}
LARGEST_OPTION = 2**12  # of the other whole numbers among the options of this package's systems
LAYERS = 1000

Config = dict[str, Any]
Checkpoint = dict[str, Any]


@dataclass(frozen=True)
class Standing:
    """Where a run stands: the state after its last finished epoch, and a row for each epoch to there."""

    last: Checkpoint
    rows: list[EpochMetrics]


def describe(env: Any, controller: nn.Module, config: TrainConfig, own: Mapping[str, Any]) -> Config:
    """What config.json says: environment, controller, training settings, what is the user's own, versions.

    Beside names, shapes and plain values there are digests of all that the run depends on and JSON cannot hold: the
    classes and attributes of the system and of the controller's parts, tensors that are not trained, networks and
    functions among the options, and the `own` classes and functions, by argument of the trainer. So another network of
    the same shapes is another run.
    """
    system = system_of(env)
    spec = getattr(getattr(env, "unwrapped", None), "spec", None)  # a wrapper's is a deep copy
    given = {} if spec is None else spec.kwargs
    asked = system.asked if isinstance(system, Task) else {}
    system = system.system if isinstance(system, Task) else system
    options = type(system).env_options()
    settings = {k: plain(v) for k, v in vars(system).items() if k in options or _is_scalar(v)}
    for name in system.parameter_names:  # a system may come to declare more of them: those of old are the defaults
        if settings.get(name) == options.get(name):
            settings.pop(name, None)
    environment: Config = {
        "id": None if spec is None else spec.id,
        "options": {k: plain(v) for k, v in given.items() if k in options},
        "system": type(system).__name__,
        "settings": settings | {k: plain(v) for k, v in asked.items()},
        "content": content(system, apart=(*settings, MADE_WITH)),
    }
    parameters = dict(controller.named_parameters())
    description: Config = {
        "type": type(controller).__name__,
        "parameters": {name: list(p.shape) for name, p in parameters.items()},
        "dtypes": {name: str(p.dtype).removeprefix("torch.") for name, p in parameters.items()},
        "parts": _parts(controller),
        "tensors": tensors(controller),
    }
    if type(controller) in CONTROLLERS.values():
        description["settings"] = controller.settings
    return {
        "environment": environment,
        "controller": description,
        "training": {k: plain(v) for k, v in asdict(config).items() if k != "out"},
        "own": {name: _in_a_line(one) for name, one in own.items()},
        "versions": {module.__name__: module.__version__ for module in (bptt_envs, torch, gym, np)},
    }


def _in_a_line(own: Any) -> str:
    """States, a class or a function of the user's own."""
    return tensor_line(own) if isinstance(own, Tensor) else code_line(own)


def _parts(controller: nn.Module) -> dict[str, str]:
    """The parts of a controller, without what training changes or `tensors` says."""
    return parts(controller, apart=[*controller.parameters(), *controller.buffers()])


def as_trained(config: Config) -> str:
    """What last.pt says of the settings that it was trained with, in JSON."""
    controller = {name: value for name, value in config["controller"].items() if name != "tensors"}  # it holds them
    return json.dumps(config | {"controller": controller})


def differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What differs between two configurations in a way that makes them different runs, a line each."""
    known = ("environment", "controller", "training", "own")
    said = {part: stored[part] for part in known if isinstance(stored.get(part), Mapping)}
    younger = [f"{part}.{name}." for part, name in YOUNGER if name not in said.get(part, {})]
    old = _flat(asdict(TrainConfig()), "training")  # of a setting that is younger than the folder
    old |= {k: v for part in known for k, v in _flat(stored.get(part), part).items()}
    new = {k: v for part in known for k, v in _flat(wanted.get(part), part).items()}
    ignored = {f"training.{name}" for name in CHANGEABLE}
    if epochs_count(wanted):
        ignored.remove("training.epochs")
    return [
        in_words(name, old.get(name), new.get(name)) + (EPOCHS_COUNT if name == "training.epochs" else "")
        for name in dict.fromkeys([*old, *new])
        if name not in ignored and not name.startswith(tuple(younger)) and not same(old.get(name), new.get(name))
    ]


def epochs_count(config: Mapping[str, Any]) -> bool:
    """Whether the step sizes of a run follow from the number of its epochs, which then must stay what it is."""
    training = config["training"]
    return training["final_learning_rate"] is not None or training["warmup"] > 0.0 or "schedule" in config["own"]


def kept_name(epoch: int) -> str:
    """The name of the checkpoint that is kept after `epoch`."""
    return f"{KEPT}/epoch_{epoch:06d}"


class RunFolder:
    """Reads and writes the files of a run.

    config.json, metrics.csv (a line an epoch), last.pt and best.pt (best on the training states), and in
    checkpoints/ those that were kept along training. Every file is written whole or not at all, metrics.csv line by
    line; checkpoints hold tensors and plain values only and are loaded with `weights_only=True`. Nothing of a folder
    runs code, and nothing is written through a link in it.

    Args:
        path: the folder; made when first written to.
    """

    def __init__(self, path: Path) -> None:
        self.path = checks.path("path", path)
        self.metrics_path = self.path / "metrics.csv"
        self.config_path = self.path / "config.json"
        self._claim = Claim(self.config_path, "run", differences)
        self._size = 0  # bytes of metrics.csv that are of finished epochs
        self._loadable: frozenset[str] = frozenset()  # kinds of values that were seen to come back

    def exists(self) -> bool:
        """Whether a run was begun here."""
        return exists(self.config_path)

    def read_config(self) -> Config:
        """The stored configuration.

        Raises:
            RunFolderError: if there is none or it cannot be read.
        """
        config = self._claim.read()
        parts = ("environment", "controller", "training")
        if not set(parts) <= config.keys():
            raise RunFolderError(f"{self.path} is not a run folder of the trainer: its config.json is another's.")
        for part in parts:
            if not isinstance(config[part], dict):
                raise RunFolderError(
                    f"cannot use {self.config_path}: it is damaged or of another version ({part} is {config[part]!r})."
                )
        return config

    def check(self, config: Config) -> Standing | None:
        """Where the run of `config` stands in the folder; None if it has no finished epoch yet. Writes nothing.

        Raises:
            RunFolderError: if the folder holds anything else, or its files do not belong together.
        """
        last = self.load("last") if self.exists() else None
        if self._claim.check(self._as_begun(config, last)) is None:
            return None
        rows = self._read_rows()
        if last is None:
            best = self.load("best")
            later = max([rows[-1].epoch if rows else 0, 0 if best is None else best["epoch"]])
            if later > 0:
                raise RunFolderError(
                    f"{self.path} has no last.pt, but its other files are of {later} epochs: put last.pt back from a "
                    "copy, or train into another folder."
                )
            return None
        epoch = last["epoch"]
        with self.understanding("last.pt"):
            different = differences(json.loads(last["config"]), config) if "config" in last else []  # else it is older
        if different:
            raise RunFolderError(
                f"{self.path / 'last.pt'} is of a run of other settings than config.json beside it; put the one that "
                "was changed back from a copy:\n  " + "\n  ".join(different)
            )
        if epoch > config["training"]["epochs"]:
            raise RunFolderError(
                f"{self.path} has {epoch} epochs already; epochs={config['training']['epochs']} asks for fewer."
            )
        self._check_rows(rows, last)
        self._check_best(last)
        return Standing(last, rows[: epoch + 1])

    def begin(self, config: Config, standing: Standing | None) -> None:
        """Claim the folder for a run of `config`, or take up the run that `check` found there.

        Raises:
            RunFolderError: if it holds a run of another configuration, or cannot be written.
        """
        self._claim.take(self._as_begun(config, None if standing is None else standing.last))
        sweep(self.path / KEPT)
        if standing is None:
            remove(self.metrics_path)  # begun and killed before its first checkpoint
            self._size = 0
        else:
            self.rewind_metrics(standing.last["epoch"])

    def _as_begun(self, config: Config, last: Checkpoint | None) -> Config:
        """`config` with those tensors that are as training left them, such as running means, as it found them."""
        if last is None:
            return config
        with self.understanding("config.json"):
            before, now = self.read_config()["controller"].get("tensors", {}), last["controller"]
            given = config["controller"]["tensors"]
            left = {n for n, line in given.items() if n in before and n in now and tensor_line(now[n]) == line}
            found = {n: before[n] if n in left else line for n, line in given.items()}
            return config | {"controller": config["controller"] | {"tensors": found}}

    def _read_rows(self) -> list[EpochMetrics]:
        """The rows of metrics.csv; none if there is no whole line in it."""
        try:
            started = "\n" in read_text(self.metrics_path)
        except FileNotFoundError:
            return []
        return read_csv(self.metrics_path) if started else []

    def _check_rows(self, rows: Sequence[EpochMetrics], last: Checkpoint) -> None:
        """Raise RunFolderError unless there is a row for each epoch, and at most one that a kill wrote ahead."""
        epoch, epochs = last["epoch"], [row.epoch for row in rows]
        books = f"{self.metrics_path} and last.pt do not belong together: last.pt is of epoch {epoch}, metrics.csv "
        advice = ". Put the one that was changed back from a copy, or train into another folder."
        if epochs != list(range(len(epochs))):
            wrong = next(i for i, one in enumerate(epochs) if one != i)
            raise RunFolderError(f"{books}has epoch {epochs[wrong]} where epoch {wrong} should be{advice}")
        if not epoch <= len(epochs) - 1 <= epoch + 1:
            raise RunFolderError(f"{books}{f'ends with epoch {epochs[-1]}' if epochs else 'has no epoch'}{advice}")
        for name in ("train_loss", "test_loss"):
            if not same(getattr(rows[epoch], name), last[name]):
                raise RunFolderError(
                    f"{books}says {name} {getattr(rows[epoch], name)!r} of that epoch, last.pt {last[name]!r}{advice}"
                )

    def _check_best(self, last: Checkpoint) -> None:
        """Raise RunFolderError unless best.pt is there, and is the best that last.pt knows."""
        advice = "put it back from a copy, or train into another folder."
        try:
            best = self.load("best")
        except RunFolderError as error:
            raise RunFolderError(f"{error} The run cannot go on without it: {advice}") from error
        with self.understanding("last.pt"):
            wanted = float(last["best_train_loss"]) < float("inf")
        if best is None and wanted:
            raise RunFolderError(f"{self.path} has no best.pt, which belongs to its last.pt: {advice}")
        if best is not None and best["epoch"] > last["epoch"] + 1:
            raise RunFolderError(
                f"{self.path / 'best.pt'} is of epoch {best['epoch']}, last.pt of {last['epoch']}: {advice}"
            )
        # One of a later epoch was written by a run that was killed before its last.pt
        if best is not None and best["epoch"] <= last["epoch"] and best["train_loss"] != last["best_train_loss"]:
            raise RunFolderError(
                f"{self.path / 'best.pt'} has the training loss {best['train_loss']}, the best that last.pt knows is "
                f"{last['best_train_loss']}: {advice}"
            )

    def record(self, row: EpochMetrics, state: Checkpoint) -> None:
        """Add a finished epoch: its line in metrics.csv, then last.pt. If either fails, neither counts.

        Raises:
            RunFolderError: if one cannot be written; the earlier epochs stand.
        """
        if self._size == 0:
            data = to_csv([row]).encode()
            write_atomic(self.metrics_path, data)
            size = len(data)
        else:
            size = append(self.metrics_path, to_csv([row], header=False).encode(), at=self._size)
        self.save("last", state)
        self._size = size

    def rewind_metrics(self, epoch: int) -> list[EpochMetrics]:
        """Drop the lines after `epoch`, which a killed run had written ahead of its checkpoint."""
        rows = [row for row in read_csv(self.metrics_path) if row.epoch <= epoch]
        data = to_csv(rows).encode()
        write_atomic(self.metrics_path, data)  # also where nothing is dropped: a file of our own, whatever was linked
        self._size = len(data)
        return rows

    def save(self, name: str, checkpoint: Checkpoint) -> None:
        """Save a checkpoint as "last", "best" or one of `kept`, see `kept_name`.

        Raises:
            RunFolderError: if it cannot be written, or `load` would refuse it.
        """
        write_atomic(self.path / f"{name}.pt", self.packed(checkpoint))

    def packed(self, checkpoint: Checkpoint) -> bytes:
        """The bytes of a checkpoint. They are loaded once wherever it holds a kind of value that was not tried yet.

        Raises:
            RunFolderError: if `load` would refuse it; the message names the entry.
        """
        data, self._loadable = packed(checkpoint, str(self.path), self._loadable)
        return data

    def kept(self) -> dict[int, str]:
        """The checkpoints that were kept along training, by epoch: names for `load` and `load_controller`."""
        found = {}
        for name in list_names(self.path / KEPT):
            number = name.removeprefix("epoch_").removesuffix(".pt")
            if name == f"epoch_{number}.pt" and number.isascii() and number.isdecimal() and len(number) < 20:
                found[int(number)] = f"{KEPT}/epoch_{number}"
        return dict(sorted(found.items()))

    def load(self, name: str) -> Checkpoint | None:
        """Load the checkpoint "last", "best" or one of `kept`; None if there is none.

        Raises:
            RunFolderError: if it cannot be read, or holds anything but tensors and plain values.
        """
        path = self.path / f"{name}.pt"
        try:
            data = read_bytes(path)
        except FileNotFoundError:
            return None
        try:
            checkpoint: Checkpoint = unpacked(data)
        except Exception as error:  # torch raises many kinds for a damaged or a hostile file
            raise RunFolderError(f"cannot read {path}: it is damaged, or no checkpoint of this program.") from error
        with self.understanding(f"{name}.pt"):
            _check_checkpoint(checkpoint)
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
            for name, largest in LARGEST.items():
                _check_size(name, stored.get(name), largest)
            config = TrainConfig(**(stored | {"hidden": hidden, "adam_betas": betas, "out": self.path}))
        return replace(config, **changes)

    def check_complete(self) -> None:
        """Raise RunFolderError if training goes on only with code or states of the user's own, which no file holds."""
        with self.understanding("config.json"):
            own = dict(self.read_config().get("own", {}))
        if own:
            named = ", ".join(f"{name}={str(line).rpartition(' ')[0]}" for name, line in own.items())  # without digests
            raise RunFolderError(
                f"{self.path} was trained with code or states of its user's own, which no file holds; go on in Python, "
                f"by Trainer(..., {named}).fit()."
            )

    def make_env(self, **kwargs: Any) -> DifferentiableEnv:
        """Build the environment of the run.

        Raises:
            RunFolderError: if it was not made by a registered id, or config.json cannot be used.
        """
        with self.understanding("config.json"):
            stored = self.read_config()["environment"]
            env_id, options = stored["id"], dict(stored["options"])
            objects = objects_in(options)
            if objects:
                raise RunFolderError(
                    f"{self.path} was trained on {env_id} with {', '.join(objects)} among its options, which no file "
                    "holds; build the environment in Python, and hand the controller's system to load_controller."
                )
            if env_id not in ENTRIES or env_id not in gym.registry:
                raise RunFolderError(
                    f"{self.path} was trained on {env_id or stored['system']}, which is not registered here; import "
                    "the module that registers it (bptt: --module), or use the Python API with your own environment."
                )
            system_class(env_id).check_options(options, env_id)  # options only: no other system, no other code
            if ENTRIES[env_id].system.startswith("bptt_envs."):
                for name, value in options.items():
                    _check_size(name, value, LARGEST.get(name, LARGEST_OPTION))
            return make_env(env_id, **options, **kwargs)

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
            kind, settings = known[stored["type"]], dict(stored["settings"])
            _check_size("the number of hidden layers", len(settings["hidden"]), LAYERS)
            with torch.device("meta"):  # of a stranger's widths, first how much they are
                sketch = kind(system.observation_shape, system.action_shape, **settings)
            if {name: list(p.shape) for name, p in sketch.named_parameters()} != stored["parameters"]:
                raise ValueError("its controller's settings and parameters are not of the same shapes")
            _check_size("the size of the controller", 4 * sum(p.numel() for p in sketch.parameters()), DATA_LIMIT)
            return kind(system.observation_shape, system.action_shape, **settings)

    def load_controller(
        self, system: System, which: str = "best", controller: nn.Module | None = None
    ) -> tuple[nn.Module, Checkpoint]:
        """The trained controller and its checkpoint.

        Args:
            system: the system of the run.
            which: "best" (on the training states), "last" or the name of one that was kept.
            controller: a module of your own, as it was built for training; its weights are replaced.

        Raises:
            RunFolderError: if there is no such checkpoint, it does not fit, or `controller` is another network than the
                one that was trained.
        """
        checkpoint = self.load(which)
        if checkpoint is None:
            raise RunFolderError(f"{self.path} has no checkpoint {which}.pt yet.")
        given = controller is not None
        controller = self.make_controller(system) if controller is None else controller
        with self.understanding(f"{which}.pt"):
            weights = checkpoint["controller"]
            _load_weights(controller, weights)
        if given:
            self._check_same(controller, weights)
        return controller, checkpoint

    def _check_same(self, controller: nn.Module, weights: Mapping[str, Any]) -> None:
        """Raise RunFolderError if a controller does something else with the weights than the one of the run."""
        with self.understanding("config.json"):
            stored = self.read_config()["controller"] if self.exists() else {}
            if "parts" not in stored:
                return  # a checkpoint alone, or of an earlier version
            before = {name: line.replace(EVAL, "") for name, line in stored["parts"].items()}
            before |= {name: line for name, line in stored["tensors"].items() if name not in weights}
            now = {name: line.replace(EVAL, "") for name, line in _parts(controller).items()}
            now |= {name: line for name, line in tensors(controller).items() if name not in weights}
            different = plain_differences(before, now, "in the controller")
        if different:
            raise RunFolderError(
                f"{self.path} was trained with another network than the controller that is to take its weights:\n  "
                + "\n  ".join(different)
            )

    def locked(self) -> AbstractContextManager[None]:
        """Keep other processes from training into the folder, and the folder where it is.

        Raises:
            RunFolderError: if another one does, or the folder cannot be made.
        """
        return locked(self.path)

    def understanding(self, name: str) -> AbstractContextManager[None]:
        """Turn into words what a damaged file, or one of another version, raises; an error of user's code stays one."""
        return understanding(self.path / name)


def _check_checkpoint(checkpoint: Any) -> None:
    """Raise an error if a checkpoint lacks what all have, or has it in another form."""
    epoch, weights = checkpoint["epoch"], checkpoint["controller"]
    if type(epoch) is not int or not 0 <= epoch < 2**63:
        raise ValueError(f"its epoch is {epoch!r:.40}")
    if not isinstance(weights, Mapping) or not all(isinstance(name, str) for name in weights):
        raise ValueError("it holds no weights by name")
    for name in ("train_loss", "test_loss"):
        if type(checkpoint[name]) is not float:
            raise ValueError(f"its {name} is {checkpoint[name]!r:.40}")


def _load_weights(controller: nn.Module, weights: Mapping[str, Any]) -> None:
    """Take over weights in the dtypes that they have."""
    own = {name: one for name, one in controller.state_dict(keep_vars=True).items() if isinstance(one, Tensor)}
    stored = {name: one for name, one in weights.items() if isinstance(one, Tensor)}
    for name in own.keys() & stored.keys():
        if own[name].is_floating_point() != stored[name].is_floating_point():
            raise ValueError(f"{name} is {stored[name].dtype}, not {own[name].dtype}")
    floating = [{one.dtype for one in of.values() if one.is_floating_point()} for of in (own, stored)]
    if [len(dtypes) for dtypes in floating] == [1, 1]:
        controller.to(floating[1].pop())  # with what is not in its state_dict
    for name, one in controller.state_dict(keep_vars=True).items():
        if name in stored and one.dtype != stored[name].dtype:
            one.data = one.data.to(stored[name].dtype)
    controller.load_state_dict(weights)


def _check_size(name: str, value: Any, largest: int) -> None:
    if type(value) is int and value > largest:
        raise ValueError(f"{name} is {value:.3g}, more than the {largest} that a run folder may ask for")


def _is_scalar(value: Any) -> bool:
    return isinstance(value, (bool, int, float, str, type(None)))


def _flat(tree: Any, prefix: str) -> dict[str, Any]:
    if isinstance(tree, Mapping):
        return {k: v for name, part in tree.items() for k, v in _flat(part, f"{prefix}.{name}").items()}
    return {prefix: list(tree) if isinstance(tree, Sequence) and not isinstance(tree, str) else tree}
