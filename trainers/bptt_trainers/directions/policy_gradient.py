"""Update directions of a controller by rule and engine: the front door to both engines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import torch
from torch import Generator, Tensor, nn

from bptt_envs import System, checks
from bptt_envs.differentiable import check_batch
from bptt_envs.fingerprint import fingerprint
from bptt_envs.task import as_task
from bptt_trainers.directions.adjoint import AdjointEngine
from bptt_trainers.directions.augmented import (
    EntropyWeight,
    augmented,
    draw_noise,
    memory_shape_of,
    noise_shape_of,
)
from bptt_trainers.directions.chosen_engine import ChosenEngine, EngineName, judgement
from bptt_trainers.directions.estimators import ESTIMATORS, EstimatorEngine, EstimatorName
from bptt_trainers.directions.probe import Verdict
from bptt_trainers.directions.rollout import refuse_samples
from bptt_trainers.directions.rules import (
    COMBINE,
    REGULAR,
    Combine,
    Directions,
    Feedback,
    Rule,
    combined,
    get_rule,
)
from bptt_trainers.directions.stacked import StackedEngine
from bptt_trainers.directions.surroundings import computing
from bptt_trainers.directions.switching import Compile, compile_setting
from bptt_trainers.directions.system_of import Physics, given_system, system_of

ENGINES = get_args(EngineName)


@dataclass(frozen=True)
class Choice:
    """An engine that was chosen."""

    engine: ChosenEngine

    @property
    def reason(self) -> str:
        """Why the engine that is in use."""
        return self.engine.reason


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
    env: Physics,
    controller: nn.Module,
    initial_states: Tensor,
    rule: str | Rule = "C",
    engine: EngineName = "auto",
    *,
    combine: Combine = "modified",
    entropy: float = 0.0,
    noise: Tensor | None = None,
    estimator: EstimatorName = "pathwise",
    bias_bound: float | None = None,
    generator: Generator | None = None,
) -> PolicyGradient:
    """Loss and update direction of `controller` for one batch of episodes.

    Nothing is changed: no `.grad` is written, the environment's state stays. Only a module that keeps state or
    draws random numbers does so here too, once for each step of the rollout, and combine="random" draws. Nor does
    what the caller has switched on change anything: grad mode, inference mode, autocast, torch's defaults.

    Args:
        env: an environment of this package, or its system.
        controller: any torch module from observations (B, *observation_shape) to actions (B, *action_shape); with a
            `memory_shape`, from those and memories (B, *memory_shape) to both; with a `noise_shape`, from those and
            noise (B, *noise_shape).
        initial_states: (B, *state_shape), in the dtype and on the device of the controller.
        rule: a name, such as "R", "M", "S", "C", "R decay 0.9" or "C every 16" (see `get_rule`), or a `Rule`.
        engine: "autograd" (the definition), "adjoint" (fast) or "auto" (adjoint where it can serve the
            controller; warns once where it cannot).
        combine: the component that rule C keeps where signs agree, "modified" or "regular"; "random": that of M,
            at as many random places of each parameter; "turned": that of M everywhere, with the sign of R's.
        entropy: weight of the entropy of a stochastic controller's actions, the mean over steps and episodes of which
            is subtracted from the loss.
        noise: that of all steps, (T, B, *noise_shape), for a controller with a `noise_shape`; the same for every pass.
            None: drawn.
        estimator: for rule "R" and a controller that gives its distribution, such as a `Gaussian`: how the gradient is
            estimated, a name of `ESTIMATORS`; but for "pathwise", from at least 2 episodes.
        bias_bound: of "alpha_order", in the unit of the direction's norm; None: no bound.
        generator: on the CPU, of all that is drawn: parameters of a `Task` for states of its system, noise, the random
            places. None: torch's random numbers.

    Raises:
        ValueError: if a name is unknown, a shape is wrong, nothing is trainable, engine="adjoint" cannot
            serve the controller, or an estimator does not go with rule or controller.
    """
    system = system_of(env)
    rule = get_rule(rule)
    checks.one_of("combine", combine, COMBINE)
    checks.generator("generator", generator)
    checks.one_of("estimator", estimator, ESTIMATORS)
    if estimator != "pathwise" and rule.passes != (REGULAR,):
        raise ValueError(f"estimator {estimator!r} estimates the gradient: rule must be 'R'; got {rule.name!r}.")
    if bias_bound is not None and estimator != "alpha_order":
        raise ValueError(f"bias_bound is for estimator 'alpha_order'; got {bias_bound!r} for {estimator!r}.")
    if isinstance(initial_states, Tensor) and initial_states.dim():
        initial_states = system.episode_start(
            initial_states, torch.default_generator if generator is None else generator
        )
    if estimator == "pathwise":
        used: ChosenEngine | EstimatorEngine = choose_engine(
            system, controller, initial_states, engine, entropy=entropy
        ).engine
    else:
        checks.one_of("engine", engine, ENGINES)
        _check_states(system, controller, initial_states)
        used = EstimatorEngine(
            system, controller, estimator, engine, checks.not_negative("entropy", entropy), bias_bound
        )
    if noise is None:
        with computing(initial_states):
            noise = draw_noise(controller, system.horizon, initial_states, generator)
    if isinstance(used, ChosenEngine):
        losses, passes = used(initial_states, rule.passes, noise=noise)
    else:
        losses, estimate = used(initial_states, noise=noise)
        passes = {REGULAR: estimate}
    with computing(initial_states):
        directions = combined(rule, passes, combine, generator)
        return PolicyGradient(losses.mean(), directions, passes, used.name, used.reason)


def choose_engine(
    system: Physics,
    controller: nn.Module,
    initial_states: Tensor,
    engine: EngineName = "auto",
    *,
    compile: Compile = False,
    entropy: float | EntropyWeight = 0.0,
) -> Choice:
    """The engine of that name for `controller`, see `ChosenEngine`.

    Args:
        system: the physics, or an environment of it.
        controller: from observations (B, *observation_shape) to actions (B, *action_shape).
        initial_states: (B, *state_shape), in the dtype and on the device of the controller.
        engine: as in `policy_gradient`.
        compile: compile the loops of the adjoint engine at its first call, see `CompiledEngine`; keep the engine,
            as each one reads its programs from the disk again. They are made anew when anything changes. "auto": a
            second process makes them while the engine works uncompiled, until `ChosenEngine.switch` takes them; on a
            GPU, where they are made in no time, as True.
        entropy: as in `policy_gradient`, or what a step's is worth in each state.

    Raises:
        ValueError: as `policy_gradient`, and if `compile` is asked for and the adjoint engine is not the choice.
    """
    system = given_system(system)
    checks.one_of("engine", engine, ENGINES)
    compile = compile_setting("compile", compile)
    entropy = entropy if callable(entropy) else checks.not_negative("entropy", entropy)
    _check_states(system, controller, initial_states)
    if compile == "auto" and initial_states.is_cuda:
        compile = True
    if engine == "autograd" and compile:
        raise ValueError(
            f"compile={compile!r} compiles the adjoint engine; engine must be 'adjoint' or 'auto', not 'autograd'."
        )
    chosen = ChosenEngine(system, controller, engine, compile, entropy)
    chosen.choose(initial_states)
    return Choice(chosen)


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
    if memory_shape_of(controller) or noise_shape_of(controller):
        raise ValueError(f"{purpose} need a controller without memory and noise; got a {type(controller).__name__}.")
    system = as_task(system)
    verdict = _served(system, controller, initial_states, purpose)
    return AdjointEngine(
        system, controller, by_layer=verdict.by_layer, chained=verdict.chained, inference=verdict.inference
    )


def stacked_engine(
    system: System,
    controller: nn.Module,
    initial_states: Tensor,
    purpose: str,
    *,
    compile: bool = False,
    entropy: float = 0.0,
) -> StackedEngine:
    """The adjoint engine for many parameter vectors of `controller` at once.

    Args:
        system: the physics.
        controller: from observations to actions.
        initial_states: (B, *state_shape).
        purpose: what needs it, for the message.
        compile: compile its loops, see `CompiledEngine`.
        entropy: as in `policy_gradient`.

    Raises:
        ValueError: if it cannot serve the controller.
    """
    verdict = _served(system, controller, initial_states, purpose, entropy)
    system = augmented(system, controller, entropy)
    return StackedEngine(
        system,
        controller,
        by_layer=verdict.by_layer,
        chained=verdict.chained,
        inference=verdict.inference,
        compile=compile,
    )


def _served(
    system: System, controller: nn.Module, initial_states: Tensor, purpose: str, entropy: float = 0.0
) -> Verdict:
    _check_states(system, controller, initial_states)
    system = augmented(system, controller, entropy)
    verdict = judgement(
        system, controller, system.episode_start(initial_states), fingerprint(controller, system)
    ).verdict
    if verdict.obstacle is not None:
        raise ValueError(
            f"{purpose} need the adjoint engine, which cannot serve this {type(controller).__name__}: "
            f"{verdict.obstacle}."
        )
    return verdict


def _check_states(system: System, controller: nn.Module, states: Tensor) -> None:
    checks.instance("controller", controller, nn.Module, "a torch.nn.Module")
    shape = tuple(states.shape) if isinstance(states, Tensor) else checks.shown(states)
    if not isinstance(shape, tuple) or shape[1:] != system.state_shape or shape[:1] in ((), (0,)):
        expected = ", ".join(map(str, system.state_shape))
        raise ValueError(f"initial_states must be a tensor (B, {expected}) with B >= 1; got {shape}.")
    check_batch("initial_states", states, system.state_shape)
    check_parameters(controller)
    refuse_samples(system)
    trainable = [p for p in controller.parameters() if p.requires_grad]
    if not trainable:
        raise ValueError(f"controller {type(controller).__name__} has no parameter that requires a gradient.")
    dtype, device = trainable[0].dtype, trainable[0].device
    if states.dtype != dtype or states.device != device:
        raise ValueError(
            f"initial_states must be {dtype} on {device} like the controller; got {states.dtype} on {states.device}."
        )


def check_parameters(controller: nn.Module) -> None:
    """Raise ValueError if the controller has parameters that cannot be trained.

    Those of lazy modules before their first run, complex ones, those made in torch's inference mode.
    """
    for name, parameter in controller.named_parameters():
        if isinstance(parameter, nn.UninitializedParameter):
            fault = "is not made yet: run the lazy module once on an observation, before it is trained"
        elif parameter.is_complex():
            fault = f"is {parameter.dtype}: hold a complex parameter as two real ones, its real and imaginary part"
        elif parameter.is_inference():
            fault = "was made in torch.inference_mode, so that it cannot be trained: make the controller outside"
        else:
            continue
        raise ValueError(f"controller {type(controller).__name__}: its parameter {name} {fault}.")
