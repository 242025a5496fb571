"""Controllers and environments as names and plain values that a file holds."""

from __future__ import annotations

from typing import Any

from torch import nn

from bptt_envs import Task
from bptt_trainers.directions.system_of import system_of
from bptt_trainers.records.plain import plain


def identified(env: Any) -> dict[str, Any]:
    """The id of an environment, None without one, and those of its options that were given, as plain values."""
    spec = getattr(getattr(env, "unwrapped", None), "spec", None)  # a wrapper's is a deep copy
    system = system_of(env)
    options = type(system.system if isinstance(system, Task) else system).env_options()
    given = {} if spec is None else spec.kwargs
    return {
        "id": None if spec is None else spec.id,
        "options": {name: plain(value) for name, value in given.items() if name in options},
    }


def described(controller: nn.Module) -> dict[str, Any]:
    """The type of a controller, the shapes and dtypes of its parameters and, of one of this package, its settings."""
    parameters = dict(controller.named_parameters())
    description: dict[str, Any] = {
        "type": type(controller).__name__,
        "parameters": {name: list(p.shape) for name, p in parameters.items()},
        "dtypes": {name: str(p.dtype).removeprefix("torch.") for name, p in parameters.items()},
    }
    if of_this_package(controller):
        description["settings"] = controller.settings
    return description


def of_this_package(controller: nn.Module) -> bool:
    """Whether a controller can be built again from its type and its settings."""
    return type(controller).__module__.startswith("bptt_trainers.controllers.") and hasattr(controller, "settings")
