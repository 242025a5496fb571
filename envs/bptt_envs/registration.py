"""The one table of ids, and their registration with Gymnasium."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from bptt_envs.checks import as_float, finite, nearest, shown, string
from bptt_envs.system import ENV_OPTIONS, System
from bptt_envs.task import Task, as_task


@dataclass(frozen=True)
class Threshold:
    """The mean return of episodes, which is minus their mean loss, from which on a task counts as solved.

    Attributes:
        reward: what Gymnasium calls the reward threshold.
        source: where it comes from: methods whose median run ends there, and the file that says so; or in words.
        options: those of these runs that differ from the id's defaults; the task counts as the same with them.
    """

    reward: float
    source: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "reward", finite("reward_threshold", self.reward))


@dataclass(frozen=True)
class Entry:
    """One row: which system an id makes, what it is, and when it counts as solved."""

    system: str
    summary: str
    defaults: dict[str, Any] = field(default_factory=dict)
    threshold: Threshold | None = None


ENTRIES: dict[str, Entry] = {}

SAME_TASK = ("render_mode", "compile", "observe_time", "num_envs", "vectorization_mode", "autoreset_mode")
"""What may be asked of an environment without changing what its return means."""


def register(
    env_id: str, system: str, summary: str, *, reward_threshold: Threshold | float | None = None, **defaults: Any
) -> None:
    """Make `env_id` known to `gym.make` and `gym.make_vec`.

    Args:
        env_id: the id, such as "DiffCartPole-v0".
        system: the import path "module:Class" of a `System`. Physics that is a function becomes a class in a few lines,
            derived from `FunctionSystem`, whose constructor's arguments are the options.
        summary: what it is, in one line.
        reward_threshold: the mean return from which on it counts as solved, with the defaults; None: nobody knows.
        defaults: options of the system that differ from its own defaults, or of any environment (`ENV_OPTIONS`).

    Raises:
        ValueError: if `system` is not an import path, or that of what is no system already (else when one is made), the
            id is taken by another system, or the threshold is no number.
    """
    try:
        gym.envs.registration.parse_env_id(string("env_id", env_id))
    except gym.error.Error as error:
        raise ValueError(f"env_id must be one such as 'DiffCartPole-v0'; got {shown(env_id)}.") from error
    string("summary", summary)
    if not isinstance(system, str) or not re.fullmatch(r"[^:]+:[^:]+", system):
        raise ValueError(f'system must be an import path "module:Class"; got {shown(system)}.')
    module, _, name = system.partition(":")
    if module in sys.modules and hasattr(sys.modules[module], name):
        _as_system(getattr(sys.modules[module], name), system)
    if env_id in ENTRIES and ENTRIES[env_id].system != system:
        raise ValueError(f"env_id {env_id!r} is taken by {ENTRIES[env_id].system}; choose another one.")
    solved = reward_threshold
    if solved is not None and not isinstance(solved, Threshold):
        solved = Threshold(solved)
    ENTRIES[env_id] = Entry(system, summary, defaults, solved)
    gym.register(
        env_id,
        entry_point="bptt_envs.differentiable_env:DifferentiableEnv",  # gym.pprint_registry groups by the module
        vector_entry_point="bptt_envs.vector_env:DifferentiableVectorEnv",
        reward_threshold=None if solved is None else solved.reward,
        kwargs={"system": system, **defaults},
    )


def system_class(env_id: str) -> type[System]:
    """The system that `env_id` makes.

    Raises:
        ValueError: if the id is not registered here (the message suggests the nearest), or with what is no `System`.
    """
    if not isinstance(env_id, str) or env_id not in ENTRIES:
        raise ValueError(
            f"unknown environment id {shown(env_id)}.{nearest(env_id, ENTRIES)} Registered: {', '.join(ENTRIES)}. "
            "One of your own is registered by importing the module that calls bptt_envs.register (bptt: "
            "my_module:MyEnv-v0, or --module my_module)."
        )
    return import_system(ENTRIES[env_id].system)


def threshold_of(spec: EnvSpec) -> float | None:
    """The reward threshold of an environment as it was made: its id's, None if its options make another task of it."""
    entry = ENTRIES.get(spec.id)
    if entry is None or entry.threshold is None:
        return spec.reward_threshold
    usual = import_system(entry.system).options() | entry.defaults
    for name, value in spec.kwargs.items():
        if name in SAME_TASK or name == "system":
            continue
        known = [usual.get(name), *(one for key, one in entry.threshold.options.items() if key == name)]
        if _comparable(value) not in map(_comparable, known):
            return None
    return entry.threshold.reward


def _comparable(value: Any) -> Any:
    """A value of an option as its system has it, numbers of NumPy as Python's; what is no plain one equals nothing."""
    if isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim):
        return tuple(map(_comparable, value))
    if isinstance(value, (np.integer, np.floating)):
        return as_float(value)
    if isinstance(value, np.bool_):
        return bool(value)
    return value if isinstance(value, (str, int, float, type(None))) else object()


def import_system(path: str) -> type[System]:
    """The system at an import path "module:Class".

    Raises:
        ValueError: if there is no such class, or it is no system.
    """
    module, _, name = string("system", path).partition(":")
    if not module or not name:
        raise ValueError(f'system must be a System or an import path "module:Class"; got {shown(path)}.')
    return _as_system(getattr(importlib.import_module(module), name, None), path)


def _as_system(found: Any, path: str) -> type[System]:
    """What is found at an import path, which must be a system.

    Raises:
        ValueError: if it is none.
    """
    if isinstance(found, type) and issubclass(found, System):
        return found
    hint = ""
    if isinstance(found, System) or (callable(found) and not isinstance(found, type)):
        hint = " What makes a system is to be its class, of which an id has the options."
    raise ValueError(
        f"system must be the import path of a System; {path}, which is no System, is {shown(found)}.{hint}"
    )


def build_system(system: str, options: Mapping[str, Any], owner: str) -> System:
    """Build the system of an environment: the one way from options to a system.

    Args:
        system: a registered id, whose defaults count where `options` say nothing, or an import path "module:Class".
        options: options of the environment: the system's, and those of all systems (`ENV_OPTIONS`).
        owner: whose options these are, for messages.

    Raises:
        ValueError: if there is no such system, or an option is unknown or out of range.
    """
    entry = ENTRIES.get(system) if isinstance(system, str) else None
    kind = import_system(system if entry is None else entry.system)
    given = dict(options) if entry is None else entry.defaults | dict(options)
    kind.check_options(given, owner)
    asked = {name: given.pop(name) for name in ENV_OPTIONS.keys() - kind.options().keys() if name in given}
    built = kind(**given)
    task = Task(built, **asked)
    return task if task.asked else as_task(built)


SYSTEMS = {
    "DiffIntegrator-v0": ("Integrator", "x' = x + u: the smallest system"),
    "DiffLQR-v0": ("LQR", "a linear system with a quadratic cost, and its optimum"),
    "DiffCartPole-v0": ("CartPole", "swing up one pole on a cart"),
    "DiffMultiPole-v0": ("MultiPole", "swing up several poles on one cart"),
    "DiffChainedPendulum-v0": ("ChainedPendulum", "swing up a chain of links on a cart"),
    "DiffBouncingBall-v0": ("BouncingBall", "steer a ball over a wall, or two that collide"),
    "DiffQuadrotor-v0": ("Quadrotor", "fly a planar quadrotor through a gate to a target"),
    "DiffPusher-v0": ("Pusher", "push a disk over a table to a target"),
    "DiffQuantumControl-v0": ("QuantumControl", "steer a quantum particle in a box"),
    "DiffGuidance-v0": ("Guidance", "drivers herd evaders to a target"),
    "DiffHopper-v0": ("Hopper", "hop on one springy leg, at a speed or to a height"),
    "DiffHeat-v0": ("Heat", "cool a rod by heaters; linear, and its optimum is known"),
    "DiffBurgers-v0": ("Burgers", "bring a flow with shocks to a target profile"),
    "DiffKuramotoSivashinsky-v0": ("KuramotoSivashinsky", "calm a chaotic flame front"),
}
"""The ids of this package: the class in `bptt_envs.systems` that each makes, and what it is."""

POLES = {"max_force": 50.0, "observation": "cos_sin"}  # what poles were tuned with

THRESHOLDS = {
    "DiffIntegrator-v0": Threshold(-0.005, "x ends within 0.1 of the target, root mean square; 0 is possible"),
    "DiffLQR-v0": Threshold(-1.9, "the least mean loss that there is, with Riccati's gains, is 1.80"),
    "DiffCartPole-v0": Threshold(-0.01, "R, M, C, PPO: results/tuned-cart-pole-1.csv", POLES),
    "DiffMultiPole-v0": Threshold(-0.01, "R, M, C, PPO: results/tuned-cart-pole-2.csv", POLES),
    "DiffChainedPendulum-v0": Threshold(-0.02, "R, C, PPO: results/systems-chained-2.csv", POLES),
    "DiffBouncingBall-v0": Threshold(-0.012, "R, C, PPO: results/systems-bouncing-ball.csv", {"max_force": 10.0}),
    "DiffQuadrotor-v0": Threshold(-1.7, "C turned, PPO: results/systems-quadrotor.csv"),
    "DiffPusher-v0": Threshold(-0.005, "R, C turned, PPO: results/systems-pusher.csv", {"max_action": 5.0}),
    "DiffQuantumControl-v0": Threshold(-16.0, "SHAC, PPO: results/algorithms-quantum-3.csv", {"max_control": 30.0}),
    "DiffGuidance-v0": Threshold(-1.1, "R, M, C: results/tuned-guidance-0.1.csv", {"max_control": 12.0}),
    "DiffHopper-v0": Threshold(-0.15, "SHAC-C, PPO: results/algorithms-hopper.csv", {"max_action": 1.0}),
    "DiffHeat-v0": Threshold(-0.03, "R, C, SHAC: results/algorithms-heat.csv", {"max_action": 5.0}),
    "DiffBurgers-v0": Threshold(-0.008, "R, M, C: results/systems-burgers.csv", {"max_action": 2.0}),
    "DiffKuramotoSivashinsky-v0": Threshold(
        -0.45, "C turned, PPO: results/systems-kuramoto-sivashinsky.csv", {"max_action": 1.0}
    ),
}
"""When they count as solved; how many of the best methods' runs end there is for the results to say."""


def register_all() -> None:
    """Register the ids of this package: the table."""
    for env_id, (name, summary) in SYSTEMS.items():
        register(env_id, f"bptt_envs.systems:{name}", summary, reward_threshold=THRESHOLDS.get(env_id))
