"""Find out whether the adjoint engine can serve a controller."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from bptt_envs import System
from bptt_envs.contract import linear_backward
from bptt_envs.fingerprint import fingerprint
from bptt_trainers.directions.adjoint import AdjointEngine
from bptt_trainers.directions.agreement import disagreement, tolerance
from bptt_trainers.directions.augmented import Act, acting
from bptt_trainers.directions.controller_tape import NotServedError
from bptt_trainers.directions.parameter_hooks import unhooked
from bptt_trainers.directions.rollout import Trajectory, check_actions
from bptt_trainers.directions.rules import REGULAR
from bptt_trainers.directions.snapshot import left_as_it_was, random_state

PROBE_SAMPLES = 6
HALVES = (slice(None, PROBE_SAMPLES // 2), slice(PROBE_SAMPLES // 2, None))
NOISE = 0.1  # of the probe's parameters and states: zeros and equal samples would hide what is looked for
SCALE = 2.0**30  # of vectors, to see whether a backward function is linear; a power of two does not round


@dataclass(frozen=True)
class Verdict:
    """What a probe found.

    Attributes:
        obstacle: why the adjoint engine cannot serve the controller; None if it can.
        by_layer: whether it may take the products with the parameters layer by layer.
        chained: whether it may take layers that are called one after the other for a chain.
        inference: whether rollouts may run in torch's inference mode.
    """

    obstacle: str | None
    by_layer: bool = False
    chained: bool = False
    inference: bool = False


def examine(system: System, controller: nn.Module, initial_states: Tensor) -> Verdict:
    """Judge a controller, as it is and with slightly other weights, on states slightly other than the first few.

    The adjoint engine runs the controller a second time, on many steps at once. That is the same function
    only if the actions depend on each observation alone: no randomness, no state kept between calls, no
    mixing of the samples of a batch. It takes the slopes by parts and adds them up, which is what autograd does
    only if backward functions are linear and nothing hooks into gradients. Whether its products are right is then
    compared with autograd, first with those of `nn.Linear` taken layer by layer: they are wrong where the weight of a
    layer is also used outside the layer.

    The controller is left as it was.

    Raises:
        ValueError: if the controller cannot take the observations, its actions have a wrong shape, it changes its
            observations in place, or the states are not finite.
    """
    if not initial_states.isfinite().all():
        raise ValueError(
            f"start states of {system.class_name} must be finite; {int((~initial_states.isfinite()).sum())} of their "
            f"{initial_states.numel()} numbers are not."
        )
    hooked = _hooked(controller)
    if hooked is not None:
        return Verdict(hooked)
    generator = torch.Generator().manual_seed(0)
    with left_as_it_was(controller), unhooked(controller):
        torch.default_generator.manual_seed(0)  # for what draws; torch.manual_seed would reach for every device
        states = initial_states[torch.arange(PROBE_SAMPLES) % len(initial_states)]
        states = states + NOISE * _drawn_like(states, generator)
        verdict = _judge(system, controller, states)
        if verdict.obstacle is None:
            with _other_weights(controller, generator):
                other = _judge(system, controller, states, verdict)
            verdict = Verdict(other.obstacle, other.by_layer, other.chained, verdict.inference and other.inference)
    return verdict


EVERYTHING = Verdict(None, by_layer=True, chained=True)
"""What a probe looks for first."""


def _judge(system: System, controller: nn.Module, states: Tensor, at_most: Verdict = EVERYTHING) -> Verdict:
    with torch.no_grad():
        obstacle = _why_not_batched(system, controller, system.observe(states))
        if obstacle is not None:
            return Verdict(obstacle)
        actions = acting(system, controller)(system.observe(states))
        following = system.step(states, system.bound(actions))
        trajectory = Trajectory(torch.stack([states, following]), torch.stack([actions]))
    for by_layer, chained in ((True, True), (True, False), (False, False)):
        if by_layer > at_most.by_layer or chained > at_most.chained:
            continue
        obstacle = None
        try:
            for products in (False, True):
                engine = AdjointEngine(system, controller, by_layer=by_layer, chained=chained, products=products)
                obstacle = obstacle or disagreement(engine, trajectory, (REGULAR,), tolerance(states))
            obstacle = obstacle or _why_not_linear(system, controller, states)
            obstacle = obstacle or linear_backward(system, states, system.bound(actions))
            obstacle = obstacle or _why_not_apart(system, controller, states, system.bound(actions))
        except NotServedError as error:
            obstacle = str(error)
        except RuntimeError as error:
            obstacle = f"its layers cannot be differentiated on their own ({str(error).splitlines()[0]})"
        if obstacle is None:
            return Verdict(
                None, by_layer, chained, _same_in_inference_mode(system, controller, states, actions, following)
            )
    return Verdict(obstacle)


def _hooked(controller: nn.Module) -> str | None:
    """Which hook changes slopes within the controller; None if there is none."""
    if torch_module._global_backward_hooks or torch_module._global_backward_pre_hooks:
        return "all modules have a backward hook"
    for name, part in controller.named_modules():
        if part._backward_hooks or part._backward_pre_hooks:
            return f"its part {name or type(part).__name__} has a backward hook"
    return None


@contextmanager
def _other_weights(controller: nn.Module, generator: torch.Generator) -> Iterator[None]:
    """Give the parameters slightly other values for a while; not in place, which graphs of the caller would notice."""
    values = [(parameter, parameter.data) for parameter in controller.parameters()]
    try:
        for parameter, data in values:
            parameter.data = data + NOISE * _drawn_like(data, generator)
        yield
    finally:
        for parameter, data in values:
            parameter.data = data


def _drawn_like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype).to(tensor.device)


def _why_not_batched(system: System, controller: nn.Module, observations: Tensor) -> str | None:
    """Why the actions do not depend on each observation alone; None if they do."""
    given = observations.clone()
    before, random_before = fingerprint(controller, identity=False), random_state()
    act = acting(system, controller)
    try:
        actions = act(observations)
    except RuntimeError as error:
        if type(error) is not RuntimeError or not str(error):  # as torch says that shapes or dtypes do not fit
            raise
        shape = ", ".join(map(str, observations.shape[1:]))
        raise ValueError(
            f"the controller {type(controller).__name__} fails on observations of {system.class_name}, (B, {shape}) in "
            f"{observations.dtype}: {str(error).splitlines()[0]}"
        ) from error
    if not torch.equal(observations, given):
        raise ValueError(
            f"the controller {type(controller).__name__} changes its observations in place, which would corrupt the "
            "states; let it work on a copy."
        )
    check_actions(system, actions, observations)
    if random_state() != random_before:
        return "it draws random numbers"
    after = fingerprint(controller, identity=False)
    if after != before and after != _after_another_run(controller, act, observations):
        return "it keeps state between calls"
    act(2.0 * observations + 1.0)
    if not _same(actions, act(observations)):
        return "it gives different actions for the same observations"
    apart = torch.cat([act(observations[some]) for some in HALVES])
    allowed = tolerance(actions)
    if not torch.allclose(actions, apart, rtol=allowed, atol=allowed * float(actions.abs().max()), equal_nan=True):
        return "an action depends on the other samples of the batch"
    return None


def _after_another_run(controller: nn.Module, act: Act, observations: Tensor) -> object:
    """The fingerprint after one more run: what a first run fills, such as a cache, stays as it is in the next."""
    act(observations)
    return fingerprint(controller, identity=False)


def _why_not_linear(system: System, controller: nn.Module, states: Tensor) -> str | None:
    """Which backward function is not linear in the slopes that it is given; None if all are."""
    trained = [parameter for parameter in controller.parameters() if parameter.requires_grad]

    def pulling(states: Tensor) -> Callable[[Tensor], Tensor]:
        leaf = states.detach().requires_grad_()
        actions = acting(system, controller)(system.observe(leaf)).flatten(1)

        def pulled(vectors: Tensor) -> Tensor:
            total = (actions * vectors).sum()
            by_state, *found = torch.autograd.grad(
                total, [leaf, *trained], retain_graph=True, allow_unused=True, materialize_grads=True
            )
            return torch.cat([by_state.flatten(), *(one.flatten() for one in found)])

        return pulled

    with torch.enable_grad():
        pulled, allowed = pulling(states), tolerance(states)
        generator = torch.Generator().manual_seed(0)
        shape = states.new_empty(len(states), system.action_size)
        one, other = (_drawn_like(shape, generator) for _ in range(2))
        expected = pulled(one)
        for scale in (SCALE, 1 / SCALE):
            if not _near(pulled(scale * one) / scale, expected, allowed):
                return "a backward function of its own is not linear: it does other things with larger slopes"
        if not _near(pulled(one + other) - pulled(other), expected, allowed):
            return "a backward function of its own is not linear: it does not add up"
        first, second = (pulling(states[some])(one[some])[states[some].numel() :] for some in HALVES)
        if not _near(first + second, expected[states.numel() :], allowed):
            return "a backward function of its own depends on the other samples of the batch"
    return None


def _why_not_apart(system: System, controller: nn.Module, states: Tensor, actions: Tensor) -> str | None:
    """Which method of the system depends on what is trained; None if none does."""
    trained = [parameter for parameter in controller.parameters() if parameter.requires_grad]
    with torch.enable_grad():
        results = {
            "step": system.step(states, actions),
            "running_cost": system.running_cost(states, actions, states),
            "final_cost": system.final_cost(states),
        }
    for method, result in results.items():
        if result.requires_grad and any(
            slope is not None for slope in torch.autograd.grad(result.sum(), trained, allow_unused=True)
        ):
            return f"{system.class_name}.{method} depends on its parameters"
    return None


def _same_in_inference_mode(
    system: System, controller: nn.Module, states: Tensor, actions: Tensor, following: Tensor
) -> bool:
    """Whether the controller and the step do in torch's inference mode what they do without."""
    with torch.inference_mode():
        try:
            states = states.clone()
            again = acting(system, controller)(system.observe(states))
            return _same(again, actions) and _same(system.step(states, system.bound(again)), following)
        except RuntimeError:  # one of them takes gradients
            return False


def _near(found: Tensor, expected: Tensor, allowed: float) -> bool:
    """Equal within rounding, or not finite, which says nothing."""
    return not float((found - expected).norm()) > allowed * float(expected.norm())


def _same(found: Tensor, expected: Tensor) -> bool:
    return bool(((found == expected) | (found.isnan() & expected.isnan())).all())
