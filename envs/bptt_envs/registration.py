"""The one table of ids, and their registration with Gymnasium."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym

from bptt_envs.checks import nearest
from bptt_envs.system import System


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
        defaults: options of the system that differ from its own defaults.

    Raises:
        ValueError: if `system` is not an import path, or the id is taken by another system.
    """
    if not isinstance(system, str) or system.count(":") != 1:
        raise ValueError(f'system must be an import path "module:Class"; got {system!r}.')
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
    if env_id not in ENTRIES:
        raise ValueError(
            f"unknown environment id {env_id!r}.{nearest(env_id, ENTRIES)} Registered: {', '.join(ENTRIES)}. "
            "One of your own is registered by importing its module (bptt: --module)."
        )
    module, _, name = ENTRIES[env_id].system.partition(":")
    found = getattr(importlib.import_module(module), name, None)
    if not (isinstance(found, type) and issubclass(found, System)):
        raise ValueError(f"{env_id} is registered with {ENTRIES[env_id].system}, which is no System; got {found!r}.")
    return found


def register_all() -> None:
    """Register the ids of this package: the table."""
    register("DiffIntegrator-v0", "bptt_envs.systems:Integrator", "x' = x + u: the smallest system")
    register("DiffLQR-v0", "bptt_envs.systems:LQR", "a linear system with a quadratic cost, and its optimum")
    register("DiffCartPole-v0", "bptt_envs.systems:CartPole", "swing up one pole on a cart")
    register("DiffMultiPole-v0", "bptt_envs.systems:MultiPole", "swing up several poles on one cart")
    register("DiffQuantumControl-v0", "bptt_envs.systems:QuantumControl", "steer a quantum particle in a box")
    register("DiffGuidance-v0", "bptt_envs.systems:Guidance", "drivers herd evaders to a target")
