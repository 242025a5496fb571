"""Update directions of a controller by rule and engine: the front door to both engines."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal, Protocol
from weakref import WeakKeyDictionary, WeakSet

import gymnasium as gym
from torch import Generator, Tensor, nn

from bptt_envs import System, checks
from bptt_envs.differentiable import check_batch
from bptt_trainers.adjoint_engine import AdjointEngine
from bptt_trainers.autograd_engine import AutogradEngine
from bptt_trainers.compiled_engine import CompiledEngine
from bptt_trainers.probe import Verdict, examine, scalars
from bptt_trainers.rules import COMBINE, Combine, Directions, Feedback, Rule, combined, get_rule
from bptt_trainers.stacked import StackedEngine

EngineName = Literal["auto", "adjoint", "autograd"]
ENGINES = ("auto", "adjoint", "autograd")


class Engine(Protocol):
    """Computes the loss of each episode, (B,), and the directions of every pass for their mean."""

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
    generator: Generator | None = None,
) -> PolicyGradient:
    """Loss and update direction of `controller` for one batch of episodes.

    Nothing is changed: no `.grad` is written, the environment's state stays. Only a module that keeps state or
    draws random numbers does so here too, once for each step of the rollout, and combine="random" draws.

    Args:
        env: an environment of this package, or its system.
        controller: any torch module from observations (B, *observation_shape) to actions (B, *action_shape).
        initial_states: (B, *state_shape), in the dtype and on the device of the controller.
        rule: "R", "M", "S", "C" or a `Rule`.
        engine: "autograd" (the definition), "adjoint" (fast) or "auto" (adjoint where it can serve the
            controller; warns once where it cannot).
        combine: the component that rule C keeps where signs agree, "modified" or "regular"; "random": that of M,
            at as many random places of each parameter; "turned": that of M everywhere, with the sign of R's.
        generator: on the CPU, of the random places. None: torch's random numbers.

    Raises:
        ValueError: if a name is unknown, a shape is wrong, nothing is trainable, or engine="adjoint" cannot
            serve the controller.
    """
    system = system_of(env)
    rule = get_rule(rule)
    checks.one_of("combine", combine, COMBINE)
    checks.generator("generator", generator)
    choice = choose_engine(system, controller, initial_states, engine)
    losses, passes = choice.engine(initial_states, rule.passes)
    directions = combined(rule, passes, combine, generator)
    return PolicyGradient(losses.mean(), directions, passes, choice.engine.name, choice.reason)


def choose_engine(
    system: System,
    controller: nn.Module,
    initial_states: Tensor,
    engine: EngineName = "auto",
    *,
    compile: bool = False,
) -> Choice:
    """The engine of that name for `controller`, and why; the answer for a controller is remembered.

    Args:
        system: the physics.
        controller: from observations (B, *observation_shape) to actions (B, *action_shape).
        initial_states: (B, *state_shape), in the dtype and on the device of the controller.
        engine: as in `policy_gradient`.
        compile: compile the loops of the adjoint engine at its first call, see `CompiledEngine`; keep the engine,
            as each one reads its programs from the disk again.

    Raises:
        ValueError: as `policy_gradient`, and if `compile` is asked for and the adjoint engine is not the choice.
    """
    checks.one_of("engine", engine, ENGINES)
    _check_states(system, controller, initial_states)
    if engine == "autograd":
        if compile:
            raise ValueError(
                "compile=True compiles the adjoint engine; engine must be 'adjoint' or 'auto', not 'autograd'."
            )
        return Choice(AutogradEngine(system, controller), "asked for")
    verdict = _examine(system, controller, initial_states)
    if verdict.obstacle is None:
        reason = "asked for" if engine == "adjoint" else "the controller acts on each observation alone"
        reason += "" if verdict.by_layer else "; its layers need a vector-Jacobian product for each rule"
        adjoint = AdjointEngine(system, controller, by_layer=verdict.by_layer)
        return Choice(CompiledEngine(adjoint), f"{reason}; compiled") if compile else Choice(adjoint, reason)
    if engine == "adjoint" or compile:
        asked = "compile=True" if compile else "engine='adjoint'"
        raise ValueError(
            f"{asked} cannot serve this {type(controller).__name__}: {verdict.obstacle}. "
            f"Use engine='autograd' or 'auto'{', without compile' if compile else ''}."
        )
    if controller not in _warned:
        _warned.add(controller)
        warnings.warn(
            f"engine='auto' falls back to the slower autograd engine for {type(controller).__name__}: "
            f"{verdict.obstacle}.",
            stacklevel=3,
        )
    return Choice(
        AutogradEngine(system, controller), f"the adjoint engine cannot serve the controller: {verdict.obstacle}"
    )


def adjoint_engine(system: System, controller: nn.Module, initial_states: Tensor, purpose: str) -> AdjointEngine:
    """The adjoint engine for `controller`.

    Args:
        system: the physics.
        controller: from observations to actions.
        initial_states: (B, *state_shape).
        purpose: what needs it, for the message.

    Raises:
        ValueError: if it cannot serve the controller.
    """
    verdict = _served(system, controller, initial_states, purpose)
    return AdjointEngine(system, controller, by_layer=verdict.by_layer)


def stacked_engine(
    system: System, controller: nn.Module, initial_states: Tensor, purpose: str, *, compile: bool = False
) -> StackedEngine:
    """The adjoint engine for many parameter vectors of `controller` at once.

    Args:
        system: the physics.
        controller: from observations to actions.
        initial_states: (B, *state_shape).
        purpose: what needs it, for the message.
        compile: compile its loops, see `CompiledEngine`.

    Raises:
        ValueError: if it cannot serve the controller.
    """
    verdict = _served(system, controller, initial_states, purpose)
    return StackedEngine(system, controller, by_layer=verdict.by_layer, compile=compile)


def _served(system: System, controller: nn.Module, initial_states: Tensor, purpose: str) -> Verdict:
    _check_states(system, controller, initial_states)
    verdict = _examine(system, controller, initial_states)
    if verdict.obstacle is not None:
        raise ValueError(
            f"{purpose} need the adjoint engine, which cannot serve this {type(controller).__name__}: "
            f"{verdict.obstacle}."
        )
    return verdict


def system_of(env: gym.Env[Any, Any] | gym.vector.VectorEnv[Any, Any, Any] | System) -> System:
    """The system behind an environment.

    Raises:
        ValueError: if `env` is none of this package's, or a wrapper changes what the controller would see,
            do or be paid: backpropagation goes through the system and would pass it by.
    """
    if isinstance(env, System):
        return env
    system = getattr(getattr(env, "unwrapped", None), "system", None)
    if not isinstance(system, System):
        raise ValueError(f"env must be a differentiable environment of bptt_envs or a System; got {checks.shown(env)}.")
    layer: Any = env
    while layer is not env.unwrapped:
        if not _only_watches(layer, system):
            raise ValueError(
                f"env is wrapped in {type(layer).__name__}, which backpropagation through the system does not see; "
                "pass env.unwrapped to train without the wrapper."
            )
        layer = layer.env
    return system


_WATCHING_WRAPPERS = (
    gym.wrappers.PassiveEnvChecker,
    gym.wrappers.OrderEnforcing,
    gym.wrappers.RecordVideo,
    gym.wrappers.RecordEpisodeStatistics,
    gym.wrappers.HumanRendering,
    gym.wrappers.RenderCollection,
    gym.wrappers.vector.RecordEpisodeStatistics,
)


def _only_watches(layer: Any, system: System) -> bool:
    """Whether a wrapper changes nothing that a controller would see, do or be paid."""
    if isinstance(layer, gym.wrappers.TimeLimit):
        return bool(layer._max_episode_steps >= system.horizon)
    monitor = type(layer).__name__ == "Monitor"  # of stable-baselines3, which is slow to import
    return monitor or isinstance(layer, _WATCHING_WRAPPERS)


_warned: WeakSet[nn.Module] = WeakSet()
_examined: WeakKeyDictionary[nn.Module, dict[Any, Verdict]] = WeakKeyDictionary()


def _examine(system: System, controller: nn.Module, initial_states: Tensor) -> Verdict:
    """What a probe finds, remembered for as long as the controller's plain values stay the same."""
    key = (type(system), system.observation_shape, scalars(controller))
    known = _examined.setdefault(controller, {})
    if key not in known:
        known[key] = examine(system, controller, initial_states)
    return known[key]


def _check_states(system: System, controller: nn.Module, states: Tensor) -> None:
    checks.instance("controller", controller, nn.Module, "a torch.nn.Module")
    check_batch("initial_states", states, system.state_shape)
    if not states.shape[0]:
        raise ValueError(f"initial_states must hold at least one state; got shape {tuple(states.shape)}.")
    trainable = [p for p in controller.parameters() if p.requires_grad]
    if not trainable:
        raise ValueError(f"controller {type(controller).__name__} has no parameter that requires a gradient.")
    dtype, device = trainable[0].dtype, trainable[0].device
    if states.dtype != dtype or states.device != device:
        raise ValueError(
            f"initial_states must be {dtype} on {device} like the controller; got {states.dtype} on {states.device}."
        )
