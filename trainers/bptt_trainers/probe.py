"""Find out, on a copy of a controller, whether the adjoint engine can serve it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from bptt_envs import System
from bptt_trainers.adjoint_engine import AdjointEngine
from bptt_trainers.autograd_engine import AutogradEngine
from bptt_trainers.rollout import check_actions
from bptt_trainers.rules import MODIFIED, REGULAR, STOPPED

PROBE_SAMPLES = 4


def why_not_adjoint(system: System, controller: nn.Module, initial_states: Tensor) -> str | None:
    """Say why the adjoint engine cannot serve `controller`; None if it can.

    The adjoint engine runs the controller a second time, on many steps at once. That is the same function
    only if the actions depend on each observation alone: no randomness, no state kept between calls, no
    mixing of the samples of a batch.

    Raises:
        ValueError: if the controller's actions have a wrong shape.
    """
    observations = system.observe(initial_states[:PROBE_SAMPLES])
    observations = torch.cat([observations, observations + 0.1])  # mixing does not show on equal samples
    try:
        probe = copy.deepcopy(controller)
    except Exception as error:  # noqa: BLE001, whatever a stranger's __deepcopy__ raises
        return f"it cannot be copied for a probe ({type(error).__name__}: {error})"
    with torch.no_grad(), torch.random.fork_rng():
        before, random_before = _snapshot(probe), torch.get_rng_state()
        actions = probe(observations)
        check_actions(system, actions, len(observations))
        if not torch.equal(torch.get_rng_state(), random_before):
            return "it draws random numbers"
        if not _same(before, _snapshot(probe)):
            return "it keeps state between calls"
        if not torch.equal(actions, probe(observations)):
            return "it gives different actions for the same observations"
        half = len(observations) // 2
        apart = torch.cat([probe(observations[:half]), probe(observations[half:])])
    tolerance = 1e-3 if actions.dtype is torch.float32 else 1e-9
    if not torch.allclose(actions, apart, rtol=tolerance, atol=tolerance * float(actions.abs().max())):
        return "an action depends on the other samples of the batch"
    return None


def layers_can_be_shared(system: System, controller: nn.Module, initial_states: Tensor) -> bool:
    """Whether taking parameter products layer by layer gives what vector-Jacobian products give.

    It does not where a Linear layer's weight is used outside the layer, or its output is changed in place.
    Compared on a copy, over one step from a few states.
    """
    probe = copy.deepcopy(controller)
    one_step = copy.copy(system)
    one_step.horizon = 1
    # zero slopes would hide a difference, so the probe's cost is the sum of squares of the next state
    one_step.final_cost = lambda state: state.flatten(1).square().sum(1)  # type: ignore[method-assign]
    states = initial_states[:PROBE_SAMPLES]
    passes = (REGULAR, MODIFIED, STOPPED)
    _, by_layer = AdjointEngine(one_step, probe)(states, passes)
    _, defined = AutogradEngine(one_step, probe)(states, passes)
    tolerance = 1e-3 if initial_states.dtype is torch.float32 else 1e-9
    for feedback, direction in defined.items():
        for name, expected in direction.items():
            error = (by_layer[feedback][name] - expected).norm()
            if not error <= tolerance * expected.norm() + 1e-12:
                return False
    return True


def _snapshot(module: nn.Module) -> list[dict[str, Any]]:
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
