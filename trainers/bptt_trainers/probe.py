"""Find out, on a copy of a controller, whether the adjoint engine can serve it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bptt_envs import System
from bptt_trainers.adjoint_engine import AdjointEngine
from bptt_trainers.autograd_engine import AutogradEngine
from bptt_trainers.controllers import forked_rng
from bptt_trainers.rollout import check_actions
from bptt_trainers.rules import MODIFIED, REGULAR, STOPPED

PROBE_SAMPLES = 6
PROBE_STEPS = 2
NOISE = 0.1  # of the probe's parameters and states: zeros and equal samples would hide what is looked for


@dataclass(frozen=True)
class Verdict:
    """What a probe found.

    Attributes:
        obstacle: why the adjoint engine cannot serve the controller; None if it can.
        by_layer: whether it may take the products with the parameters layer by layer.
    """

    obstacle: str | None
    by_layer: bool = False


def examine(system: System, controller: nn.Module, initial_states: Tensor) -> Verdict:
    """Judge a controller on a copy with slightly other weights, on states slightly other than the first few.

    The adjoint engine runs the controller a second time, on many steps at once. That is the same function
    only if the actions depend on each observation alone: no randomness, no state kept between calls, no
    mixing of the samples of a batch. Whether its directions are right is then compared with autograd over two
    steps, first with products taken layer by layer: they are wrong where the weight of a Linear layer is also
    used outside the layer, or its output is changed in place.

    Raises:
        ValueError: if the controller's actions have a wrong shape, or it changes its observations in place.
    """
    try:
        probe = copy.deepcopy(controller)
    except Exception as error:  # noqa: BLE001, whatever a stranger's __deepcopy__ raises
        return Verdict(f"it cannot be copied for a probe ({type(error).__name__}: {error})")
    with forked_rng(probe):
        torch.manual_seed(0)
        states = initial_states[torch.arange(PROBE_SAMPLES) % len(initial_states)]
        states = states + NOISE * torch.randn_like(states)
        with torch.no_grad():
            for parameter in probe.parameters():
                parameter.add_(NOISE * torch.randn_like(parameter))
            obstacle = _why_not_batched(system, probe, system.observe(states))
        if obstacle is not None:
            return Verdict(obstacle)
        for by_layer in (True, False):
            difference = _difference(system, probe, states, by_layer)
            if difference is None:
                return Verdict(None, by_layer)
    return Verdict(difference)


def scalars(controller: nn.Module) -> tuple[tuple[str, Any], ...]:
    """The plain values that a controller and its parts hold, such as the rate of a dropout."""
    return tuple(
        (name, value)
        for part in controller.modules()
        for name, value in vars(part).items()
        if isinstance(value, (bool, int, float, str, type(None)))
    )


def _why_not_batched(system: System, probe: nn.Module, observations: Tensor) -> str | None:
    """Why the actions do not depend on each observation alone; None if they do."""
    given = observations.clone()
    before, random_before = _held(probe), torch.get_rng_state()
    actions = probe(observations)
    if not torch.equal(observations, given):
        raise ValueError(
            f"the controller {type(probe).__name__} changes its observations in place, which would corrupt the states; "
            "let it work on a copy."
        )
    check_actions(system, actions, len(observations))
    if not torch.equal(torch.get_rng_state(), random_before):
        return "it draws random numbers"
    if not _same(before, _held(probe)):
        return "it keeps state between calls"
    if not torch.equal(actions, probe(observations)):
        return "it gives different actions for the same observations"
    half = len(observations) // 2
    apart = torch.cat([probe(observations[:half]), probe(observations[half:])])
    tolerance = _tolerance(actions)
    if not torch.allclose(actions, apart, rtol=tolerance, atol=tolerance * float(actions.abs().max())):
        return "an action depends on the other samples of the batch"
    return None


def _difference(system: System, probe: nn.Module, states: Tensor, by_layer: bool) -> str | None:
    """How the adjoint engine's directions differ from autograd's over a few steps; None if they agree."""
    short = copy.copy(system)
    short.horizon = PROBE_STEPS
    # A cost with no zero slopes: they would hide a difference
    short.final_cost = lambda state: (state.flatten(1) - NOISE).square().sum(1)  # type: ignore[method-assign]
    passes = (REGULAR, MODIFIED, STOPPED)
    _, defined = AutogradEngine(short, probe)(states, passes)
    try:
        _, found = AdjointEngine(short, probe, by_layer=by_layer)(states, passes)
    except RuntimeError as error:
        return f"its layers cannot be differentiated on their own ({str(error).splitlines()[0]})"
    for feedback, direction in defined.items():
        size = torch.cat([expected.flatten() for expected in direction.values()]).norm()
        if not size.isfinite():  # nothing to compare: take the way that fewer things can go wrong on
            return "its direction is not finite on a probe" if by_layer else None
        for name, expected in direction.items():
            if not (found[feedback][name] - expected).norm() <= _tolerance(states) * size:
                return f"its direction for {name} differs from autograd's on a probe"
    return None


def _tolerance(tensor: Tensor) -> float:
    return 1e-3 if tensor.dtype is torch.float32 else 1e-9


def _held(module: nn.Module) -> list[dict[str, Any]]:
    """Tensors (copied) and plain values held by the module and its parts."""
    return [
        {
            name: value.clone() if isinstance(value, Tensor) else value
            for name, value in {**vars(part), **part._buffers}.items()
            if isinstance(value, (Tensor, bool, int, float, str, type(None)))
        }
        for part in module.modules()
    ]


def _same(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> bool:
    def equal(first: Any, second: Any) -> bool:
        if isinstance(first, Tensor) and isinstance(second, Tensor):
            return first.shape == second.shape and torch.equal(first, second)
        return type(first) is type(second) and bool(first == second)

    return all(
        old.keys() == new.keys() and all(equal(old[name], new[name]) for name in old)
        for old, new in zip(before, after, strict=True)
    )
