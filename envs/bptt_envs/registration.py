"""The one table of ids, and their registration with Gymnasium."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym

from bptt_envs.checks import nearest, shown, string
from bptt_envs.system import ENV_OPTIONS, System
from bptt_envs.task import Task, as_task


@dataclass(frozen=True)
class Entry:
    """One row: which system an id makes, and what it is."""

    system: str
    summary: str
    defaults: dict[str, Any] = field(default_factory=dict)


ENTRIES: dict[str, Entry] = {}


def register(env_id: str, system: str, summary: str, **defaults: Any) -> None:
    """Make `env_id` known to `gym.make` and `gym.make_vec`.

    Args:
        env_id: the id, such as "DiffCartPole-v0".
        system: the import path "module:Class" of a `System`.
        summary: what it is, in one line.
        defaults: options of the system that differ from its own defaults, or of any environment (`ENV_OPTIONS`).

    Raises:
        ValueError: if `system` is not an import path, or the id is taken by another system.
    """
    try:
        gym.envs.registration.parse_env_id(string("env_id", env_id))
    except gym.error.Error as error:
        raise ValueError(f"env_id must be one such as 'DiffCartPole-v0'; got {shown(env_id)}.") from error
    string("summary", summary)
    if not isinstance(system, str) or not re.fullmatch(r"[^:]+:[^:]+", system):
        raise ValueError(f'system must be an import path "module:Class"; got {shown(system)}.')
    if env_id in ENTRIES and ENTRIES[env_id].system != system:
        raise ValueError(f"env_id {env_id!r} is taken by {ENTRIES[env_id].system}; choose another one.")
    ENTRIES[env_id] = Entry(system, summary, defaults)
    gym.register(
        env_id,
        entry_point="bptt_envs.env:DifferentiableEnv",
        vector_entry_point="bptt_envs.vector_env:DifferentiableVectorEnv",
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
            "One of your own is registered by importing its module (bptt: --module)."
        )
    return import_system(ENTRIES[env_id].system)


def import_system(path: str) -> type[System]:
    """The system at an import path "module:Class".

    Raises:
        ValueError: if there is no such class, or it is no system.
    """
    module, _, name = string("system", path).partition(":")
    if not module or not name:
        raise ValueError(f'system must be a System or an import path "module:Class"; got {shown(path)}.')
    found = getattr(importlib.import_module(module), name, None)
    if not (isinstance(found, type) and issubclass(found, System)):
        raise ValueError(f"system must be the import path of a System; {path}, which is no System, is {shown(found)}.")
    return found


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


def register_all() -> None:
    """Register the ids of this package: the table."""
    register("DiffIntegrator-v0", "bptt_envs.systems:Integrator", "x' = x + u: the smallest system")
    register("DiffLQR-v0", "bptt_envs.systems:LQR", "a linear system with a quadratic cost, and its optimum")
    register("DiffCartPole-v0", "bptt_envs.systems:CartPole", "swing up one pole on a cart")
    register("DiffMultiPole-v0", "bptt_envs.systems:MultiPole", "swing up several poles on one cart")
    register("DiffChainedPendulum-v0", "bptt_envs.systems:ChainedPendulum", "swing up a chain of links on a cart")
    register("DiffBouncingBall-v0", "bptt_envs.systems:BouncingBall", "steer a ball over a wall, or two that collide")
    register("DiffQuadrotor-v0", "bptt_envs.systems:Quadrotor", "fly a planar quadrotor through a gate to a target")
    register("DiffPusher-v0", "bptt_envs.systems:Pusher", "push a disk over a table to a target")
    register("DiffQuantumControl-v0", "bptt_envs.systems:QuantumControl", "steer a quantum particle in a box")
    register("DiffGuidance-v0", "bptt_envs.systems:Guidance", "drivers herd evaders to a target")
    register("DiffHopper-v0", "bptt_envs.systems:Hopper", "hop on one springy leg, at a speed or to a height")
    register("DiffHeat-v0", "bptt_envs.systems:Heat", "cool a rod by heaters; linear, and its optimum is known")
    register("DiffBurgers-v0", "bptt_envs.systems:Burgers", "bring a flow with shocks to a target profile")
    register("DiffKuramotoSivashinsky-v0", "bptt_envs.systems:KuramotoSivashinsky", "calm a chaotic flame front")
