"""Update directions of a controller by rule and engine: the front door to both engines."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal, Protocol
from weakref import WeakKeyDictionary, WeakSet

import gymnasium as gym
from torch import Tensor, nn

from bptt_envs import System
from bptt_envs.checks import one_of
from bptt_trainers.adjoint_engine import AdjointEngine
from bptt_trainers.autograd_engine import AutogradEngine
from bptt_trainers.probe import layers_can_be_shared, why_not_adjoint
from bptt_trainers.rules import COMBINE, Combine, Directions, Feedback, Rule, combined, get_rule

EngineName = Literal["auto", "adjoint", "autograd"]
ENGINES = ("auto", "adjoint", "autograd")


class Engine(Protocol):
    """Computes the loss, (), of a batch of start states and the directions of every pass."""

    name: str

    def __call__(  # noqa: D102
        self, initial_states: Tensor, passes: tuple[Feedback, ...]
    ) -> tuple[Tensor, dict[Feedback, Directions]]: ...


@dataclass(frozen=True)
class Choice:
    """An engine, and why it was chosen."""

    engine: Engine
    reason: str


@dataclass(frozen=True)
class PolicyGradient:
    """A loss and the direction that a rule gives for it.

    Attributes:
        loss: (), the mean over the batch; the same under every rule.
        directions: by parameter name, to be used in the gradient's place.
        passes: the direction of each backward pass that the rule is made of.
        engine: the engine that computed it.
        reason: why that engine.
    """

    loss: Tensor
    directions: Directions
    passes: dict[Feedback, Directions]
    engine: str
    reason: str


def policy_gradient(
    env: gym.Env[Any, Any] | gym.vector.VectorEnv[Any, Any, Any] | System,
    controller: nn.Module,
    initial_states: Tensor,
    rule: str | Rule = "C",
    engine: EngineName = "auto",
    *,
    combine: Combine = "modified",
) -> PolicyGradient:
    """Loss and update direction of `controller` for one batch of episodes.

    Nothing is changed: no `.grad` is written, the environment's state stays.

    Args:
        env: an environment of this package, or its system.
        controller: any torch module from observations (B, *observation_shape) to actions (B, *action_shape).
        initial_states: (B, *state_shape), in the dtype and on the device of the controller.
        rule: "R", "M", "S", "C" or a `Rule`.
        engine: "autograd" (the definition), "adjoint" (fast) or "auto" (adjoint where it can serve the
            controller; warns once where it cannot).
        combine: the component that rule C keeps where signs agree, "modified" or "regular".

    Raises:
        ValueError: if a name is unknown, a shape is wrong, nothing is trainable, or engine="adjoint" cannot
            serve the controller.
    """
    system = system_of(env)
    rule = get_rule(rule)
    one_of("combine", combine, COMBINE)
    choice = choose_engine(system, controller, initial_states, engine)
    loss, passes = choice.engine(initial_states, rule.passes)
    return PolicyGradient(loss, combined(rule, passes, combine), passes, choice.engine.name, choice.reason)


def choose_engine(system: System, controller: nn.Module, initial_states: Tensor, engine: EngineName = "auto") -> Choice:
    """The engine of that name for `controller`, and why; the answer for a controller is remembered.

    Raises:
        ValueError: as `policy_gradient`.
    """
    one_of("engine", engine, ENGINES)
    _check_states(system, controller, initial_states)
    if engine == "autograd":
        return Choice(AutogradEngine(system, controller), "asked for")
    obstacle, by_layer = _examine(system, controller, initial_states)
    if obstacle is None:
        reason = "asked for" if engine == "adjoint" else "the controller acts on each observation alone"
        reason += "" if by_layer else "; its layers need a vector-Jacobian product for each rule"
        return Choice(AdjointEngine(system, controller, by_layer=by_layer), reason)
    if engine == "adjoint":
        raise ValueError(
            f"engine='adjoint' cannot serve this {type(controller).__name__}: {obstacle}. "
            "Use engine='autograd' or 'auto'."
        )
    if controller not in _warned:
        _warned.add(controller)
        warnings.warn(
            f"engine='auto' falls back to the slower autograd engine for {type(controller).__name__}: {obstacle}.",
            stacklevel=3,
        )
    return Choice(AutogradEngine(system, controller), f"the adjoint engine cannot serve the controller: {obstacle}")


def system_of(env: gym.Env[Any, Any] | gym.vector.VectorEnv[Any, Any, Any] | System) -> System:
    """The system behind an environment.

    Raises:
        ValueError: if `env` is none of this package's, or a wrapper changes what the controller would see,
            do or be paid: backpropagation goes through the system and would pass it by.
    """
    if isinstance(env, System):
        return env
    layer: Any = env
    while layer is not env.unwrapped:
        if isinstance(layer, _CHANGING_WRAPPERS):
            raise ValueError(
                f"env is wrapped in {type(layer).__name__}, which backpropagation through the system does not see; "
                "pass env.unwrapped to train without the wrapper."
            )
        layer = layer.env
    system = getattr(env.unwrapped, "system", None)
    if not isinstance(system, System):
        raise ValueError(f"env must be a differentiable environment of bptt_envs or a System; got {env!r}.")
    return system


_CHANGING_WRAPPERS = (
    gym.ObservationWrapper,
    gym.ActionWrapper,
    gym.RewardWrapper,
    gym.vector.VectorObservationWrapper,
    gym.vector.VectorActionWrapper,
    gym.vector.VectorRewardWrapper,
)

_Examined = tuple[str | None, bool]
_warned: WeakSet[nn.Module] = WeakSet()
_examined: WeakKeyDictionary[nn.Module, dict[Any, _Examined]] = WeakKeyDictionary()


def _examine(system: System, controller: nn.Module, initial_states: Tensor) -> _Examined:
    """Why the adjoint engine cannot serve the controller, and whether it may share layers."""
    key = (type(system), system.observation_shape, tuple(part.training for part in controller.modules()))
    known = _examined.setdefault(controller, {})
    if key not in known:
        obstacle = why_not_adjoint(system, controller, initial_states)
        known[key] = (obstacle, obstacle is None and layers_can_be_shared(system, controller, initial_states))
    return known[key]


def _check_states(system: System, controller: nn.Module, states: Tensor) -> None:
    if states.dim() != len(system.state_shape) + 1 or states.shape[1:] != system.state_shape or len(states) == 0:
        expected = ", ".join(map(str, system.state_shape))
        raise ValueError(f"initial_states must have shape (B, {expected}) with B >= 1; got {tuple(states.shape)}.")
    trainable = [p for p in controller.parameters() if p.requires_grad]
    if not trainable:
        raise ValueError(f"controller {type(controller).__name__} has no parameter that requires a gradient.")
    dtype, device = trainable[0].dtype, trainable[0].device
    if states.dtype != dtype or states.device != device:
        raise ValueError(
            f"initial_states must be {dtype} on {device} like the controller; got {states.dtype} on {states.device}."
        )
