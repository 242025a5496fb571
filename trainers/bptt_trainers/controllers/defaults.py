"""Which controller a system is trained with unless one is given: a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch

from bptt_envs import System, Task, checks
from bptt_envs.surroundings import own_surroundings
from bptt_envs.systems import QuantumControl
from bptt_trainers.controllers.controller import Controller
from bptt_trainers.controllers.gaussian import NETWORKS, Gaussian
from bptt_trainers.controllers.networks import MLP, ConvNet
from bptt_trainers.controllers.normalized import Normalized
from bptt_trainers.controllers.recurrent import Recurrent
from bptt_trainers.directions.system_of import Physics, given_system

CONTROLLERS: tuple[type[MLP | ConvNet | Recurrent | Gaussian | Normalized], ...] = (
    *NETWORKS.values(),
    Gaussian,
    Normalized,
)
"""The controllers that run folders name."""

DEFAULTS: dict[type[System], str] = {QuantumControl: "conv"}
"""The paper's controller for each system; an MLP for those that are not here."""

ControllerName = Literal["default", "mlp", "conv", "gru", "lstm"]
CONTROLLER_NAMES = get_args(ControllerName)

DeviationName = Literal["none", "constant", "state"]


def default_controller(
    system: Physics,
    seed: int = 0,
    hidden: Sequence[int] | None = None,
    kind: ControllerName = "default",
    *,
    squash: bool = False,
    deviation: DeviationName = "none",
    initial_deviation: float = 0.1,
    normalize: bool = False,
) -> Controller:
    """The paper's controller for `system`, in float32 on the CPU: an MLP 100-100, for quantum control a ConvNet 60-60.

    Args:
        system: whose observations it takes and whose actions it gives, or an environment of it.
        seed: its weights are drawn from this.
        hidden: widths of an MLP's hidden layers or of cells, or output channels of convolutions; None: the paper's, and
            one cell of 32.
        kind: "default", "mlp", "conv", or one with memory, "gru" or "lstm".
        squash: whether to bend its actions by tanh within `system.action_range`, see `Squash`.
        deviation: "none", or that of a `Gaussian` around what the network gives.
        initial_deviation: of that, as a share of half of `system.action_range`.
        normalize: whether it is `Normalized`.

    Raises:
        ValueError: if `system` is none, the kind is unknown or does not fit the observation, or another argument is
            wrong.
    """
    system = given_system(system)
    checks.one_of("controller", kind, CONTROLLER_NAMES)
    if kind == "default":
        kinds = type(system.system if isinstance(system, Task) else system).__mro__
        name = next((DEFAULTS[base] for base in kinds if base in DEFAULTS), "mlp")
        if name == "conv" and len(system.observation_shape) != 2:  # with what a task shows it is flat
            name = "mlp"
    else:
        name = kind
    given: dict[str, Any] = {} if hidden is None else {"hidden": hidden}
    if checks.flag("squash", squash):
        given["squash"] = system.action_range
    with own_surroundings():
        generator = torch.Generator().manual_seed(checks.seed("seed", seed))
        shapes = system.observation_shape, system.action_shape
        checks.one_of("deviation", deviation, get_args(DeviationName))
        acts: type[Any] = NETWORKS[name]
        if deviation != "none":
            low, high = system.action_range
            reach = checks.positive("initial_deviation", initial_deviation) * (high - low) / 2
            acts = Gaussian
            given |= {"network": name, "deviation": deviation, "initial_deviation": reach}
        if checks.flag("normalize", normalize):
            return Normalized(*shapes, kind=acts.__name__, generator=generator, **given)
        made: Controller = acts(*shapes, generator=generator, **given)
        return made
