"""The folder of a run: its configuration, metrics and checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

import bptt_envs
from bptt_envs import DifferentiableEnv, Task, make_env
from bptt_envs.checks import one_of
from bptt_envs.registration import ENTRIES, system_class
from bptt_envs.system import MADE_WITH
from bptt_trainers.controllers.described import described, identified
from bptt_trainers.controllers.model_folder import is_model
from bptt_trainers.controllers.rebuilt import KNOWN, check_size, rebuilt, take_weights
from bptt_trainers.directions.system_of import Physics, given_system, system_of
from bptt_trainers.records.claim import in_words, plain_differences, same
from bptt_trainers.records.files import RunFolderError
from bptt_trainers.records.plain import EVAL, code_line, content, objects_in, parts, plain, tensor_line, tensors
from bptt_trainers.training.books import Books, Checkpoint, Config
from bptt_trainers.training.config import ANY_TIME, TrainConfig, marked
from bptt_trainers.training.recorders import RECORDERS
from bptt_trainers.training.sapo_config import SAPOConfig
from bptt_trainers.training.shac_config import SHACConfig

CHANGEABLE = marked(ANY_TIME)
"""Settings with others of which a run may be continued. The number of epochs is none where `epochs_count`."""

CONFIGS: dict[str, type[TrainConfig]] = {kind.learner: kind for kind in (TrainConfig, SHACConfig, SAPOConfig)}
"""The settings of each learner, by the name that config.json has for it."""

EPOCHS_COUNT = " (its step sizes follow from the number of epochs: choose it when training begins)"

FLAGS = {"tensorboard": True, "pictures": True, "diagnostics": False}
"""What earlier versions had in the place of `record`, with the defaults."""

# What config.json says since later versions, by part: not compared with a folder that does not say it
YOUNGER = (("environment", "content"), ("controller", "dtypes"), ("controller", "parts"), ("controller", "tensors"))

# How much a folder, which may be a stranger's, may ask for: a layer or state of more would fill the memory
LARGEST = {"train_states": 2**24, "test_states": 2**24, "horizon": 2**20, "seed": 2**63}
LARGEST_OPTION = 2**12  # of the other whole numbers among the options of this package's systems


def describe(env: Any, controller: nn.Module, config: TrainConfig, own: Mapping[str, Any]) -> Config:
    """What config.json says: environment, controller, training settings, what is the user's own, versions.

    Beside names, shapes and plain values there are digests of all that the run depends on and JSON cannot hold: the
    classes and attributes of the system and of the controller's parts, tensors that are not trained, networks and
    functions among the options, and the `own` classes and functions, by argument of the trainer. So another network of
    the same shapes is another run.
    """
    system = system_of(env)
    asked = system.asked if isinstance(system, Task) else {}
    system = system.system if isinstance(system, Task) else system
    options = type(system).env_options()
    settings = {k: plain(v) for k, v in vars(system).items() if k in options or _is_scalar(v)}
    for name in system.parameter_names:  # a system may come to declare more of them: those of old are the defaults
        if settings.get(name) == options.get(name):
            settings.pop(name, None)
    environment: Config = {
        **identified(env),
        "system": type(system).__name__,
        "settings": settings | {k: plain(v) for k, v in asked.items()},
        "content": content(system, apart=(*settings, MADE_WITH)),
    }
    description: Config = {
        **described(controller),
        "parts": _parts(controller),
        "tensors": tensors(controller),
    }
    return {
        "environment": environment,
        "controller": description,
        "learner": config.learner,
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


def of_today(training: Mapping[str, Any]) -> Config:
    """Training settings as config.json says them now."""
    flags = FLAGS | {name: on for name, on in training.items() if name in FLAGS}
    rest = {name: value for name, value in training.items() if name not in FLAGS}
    return {"record": [name for name, on in flags.items() if on]} | rest


def differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What differs between two configurations in a way that makes them different runs, a line each."""
    known = ("environment", "controller", "training", "own")
    said = {part: stored[part] for part in known if isinstance(stored.get(part), Mapping)}
    said |= {"training": of_today(said["training"])} if "training" in said else {}
    younger = [f"{part}.{name}." for part, name in YOUNGER if name not in said.get(part, {})]
    learners = _learner(stored), _learner(wanted)
    if learners[0] != learners[1]:
        return [in_words("learner", *learners)]
    old = _flat(asdict(_config_of(wanted)()), "training")  # of a setting that is younger than the folder
    old |= {k: v for part in known for k, v in _flat(said.get(part, stored.get(part)), part).items()}
    new = {k: v for part in known for k, v in _flat(wanted.get(part), part).items()}
    ignored = {f"training.{name}" for name in CHANGEABLE}
    if epochs_count(wanted):
        ignored.remove("training.epochs")
    return [
        in_words(name, old.get(name), new.get(name)) + (EPOCHS_COUNT if name == "training.epochs" else "")
        for name in dict.fromkeys([*old, *new])
        if name not in ignored and not name.startswith(tuple(younger)) and not same(old.get(name), new.get(name))
    ]


def _learner(config: Mapping[str, Any]) -> Any:
    """What learned in a folder; earlier versions knew one learner."""
    return config.get("learner", TrainConfig.learner)


def _config_of(config: Mapping[str, Any]) -> type[TrainConfig]:
    """The settings of what learned in a folder.

    Raises:
        ValueError: if it is no learner of this version.
    """
    return CONFIGS[one_of("its learner", _learner(config), CONFIGS)]


def epochs_count(config: Mapping[str, Any]) -> bool:
    """Whether the step sizes of a run follow from the number of its epochs, which then must stay what it is."""
    training = config["training"]
    return training["final_learning_rate"] is not None or training["warmup"] > 0.0 or "schedule" in config["own"]


def described_env(stored: Mapping[str, Any], whose: str, **kwargs: Any) -> DifferentiableEnv:
    """Build the environment that a file of a stranger's may describe.

    Args:
        stored: its id and options.
        whose: the beginning of a message, such as "runs/two was trained on".
        kwargs: what else `make_env` takes.

    Raises:
        RunFolderError: if it was not made by a registered id.
        ValueError: if an option is unknown, out of range or larger than a file may ask for.
    """
    env_id, options = stored["id"], dict(stored["options"])
    objects = objects_in(options)
    if objects:
        raise RunFolderError(
            f"{whose} {env_id} with {', '.join(objects)} among its options, which no file "
            "holds; build the environment in Python, and hand it to load_controller."
        )
    if env_id not in ENTRIES or env_id not in gym.registry:
        raise RunFolderError(
            f"{whose} {env_id or stored['system']}, which is not registered here; import "
            "the module that registers it (bptt: --module), or use the Python API with your own environment."
        )
    system_class(env_id).check_options(options, env_id)  # options only: no other system, no other code
    if ENTRIES[env_id].system.startswith("bptt_envs."):
        for name, value in options.items():
            check_size(name, value, LARGEST.get(name, LARGEST_OPTION))
    return make_env(env_id, **{**options, **kwargs})


class RunFolder(Books):
    """Reads and writes the files of a run of `Trainer` (see `Books`), and builds from them what was trained.

    Args:
        path: the folder; made when first written to.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, differences)

    def read_config(self) -> Config:
        """The stored configuration.

        Raises:
            RunFolderError: if there is none or it cannot be read.
        """
        config = super().read_config()
        if is_model(config):
            raise RunFolderError(f"{self.path} holds a model to share (load_pretrained), not a run.")
        parts = ("environment", "controller", "training")
        if not set(parts) <= config.keys():
            raise RunFolderError(f"{self.path} is not a run folder of the trainer: its config.json is another's.")
        for part in parts:
            if not isinstance(config[part], dict):
                raise RunFolderError(
                    f"cannot use {self.config_path}: it is damaged or of another version ({part} is {config[part]!r})."
                )
        return config

    def as_trained(self, config: Config) -> str:
        """What last.pt says of the settings that it was trained with, in JSON."""
        controller = {name: value for name, value in config["controller"].items() if name != "tensors"}  # it holds them
        return super().as_trained(config | {"controller": controller})

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

    def train_config(self, **changes: Any) -> TrainConfig:
        """The stored training settings, with `changes`.

        Recorders of the user's own are left out, unless they are registered or among the changes: a folder, which may
        be a stranger's, names no code to run.

        Raises:
            RunFolderError: if config.json cannot be used.
            ValueError: if a change is out of range.
        """
        with self.understanding("config.json"):
            stored = of_today(self.read_config()["training"])
            record = changes.get("record", [name for name in stored["record"] if name in RECORDERS])
            hidden = None if stored["hidden"] is None else tuple(stored["hidden"])
            kind = _config_of(self.read_config())
            tuples = {one.name: tuple(stored[one.name]) for one in fields(kind) if type(stored.get(one.name)) is list}
            for name, largest in LARGEST.items():
                check_size(name, stored.get(name), largest)
            config = kind(**(stored | tuples | {"hidden": hidden, "record": record, "out": self.path}))
        return replace(config, **changes)

    def check_complete(self, record: Sequence[str] | None = None) -> None:
        """Raise RunFolderError if training goes on only with code or states of the user's own, which no file holds.

        Args:
            record: the recorders with which it is to go on; None: those of the folder.
        """
        with self.understanding("config.json"):
            stored = self.read_config()
            own = dict(stored.get("own", {}))
            record = of_today(stored["training"])["record"] if record is None else ()
            foreign = [str(name) for name in record if name not in RECORDERS]
        if foreign:
            raise RunFolderError(
                f"{self.path} was recorded by {', '.join(foreign)}, code of its user's own, which is not run because a "
                f"folder names it: say so again, --record {' '.join(map(str, record))}, or name others."
            )
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
            return described_env(self.read_config()["environment"], f"{self.path} was trained on", **kwargs)

    def make_controller(self, system: Physics) -> nn.Module:
        """Build the untrained controller of the run, for its system or an environment of it.

        Raises:
            RunFolderError: if it is a module of the user's own, or config.json cannot be used.
        """
        system = given_system(system)
        with self.understanding("config.json"):
            stored = self.read_config()["controller"]
            if stored["type"] in KNOWN and "settings" not in stored:
                raise RunFolderError(
                    f"{self.path} was made by an earlier version; its controller cannot be rebuilt here."
                )
            if stored["type"] not in KNOWN:
                raise RunFolderError(
                    f"{self.path} holds a controller of its own type, {stored['type']}; build it in Python and hand it "
                    "to load_controller(system, controller=...)."
                )
            return rebuilt(stored, system.observation_shape, system.action_shape)

    def load_controller(
        self, system: Physics, which: str = "best", controller: nn.Module | None = None
    ) -> tuple[nn.Module, Checkpoint]:
        """The trained controller and its checkpoint.

        Args:
            system: the system of the run, or an environment of it.
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
            take_weights(controller, weights)
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


def _is_scalar(value: Any) -> bool:
    return isinstance(value, (bool, int, float, str, type(None)))


def _flat(tree: Any, prefix: str) -> dict[str, Any]:
    if isinstance(tree, Mapping):
        return {k: v for name, part in tree.items() for k, v in _flat(part, f"{prefix}.{name}").items()}
    return {prefix: list(tree) if isinstance(tree, Sequence) and not isinstance(tree, str) else tree}
