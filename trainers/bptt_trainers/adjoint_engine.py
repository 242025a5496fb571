"""The directions by the adjoint recursion: no tape over time, all rules through one pass.

The rollout keeps the states only. Then, backwards in segments of time steps, everything but the recursion
itself (`recursion.py`) is one batch over the steps and samples of the segment: the controller runs again and
its Jacobian is taken, the physics are linearized, and the vectors v_t of all passes, that is the slopes of
the loss by the actions, meet the parameters in one product a layer: direction = sum_t (dN/dtheta)^T v_t.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeGuard

import torch
from torch import Tensor, nn

from bptt_envs import System
from bptt_trainers.recursion import SegmentSlopes, Sweep, dense_sweep, product_sweep
from bptt_trainers.rollout import Trajectory, losses, rollout
from bptt_trainers.rules import Directions, Feedback

# Samples (steps x batch) of a segment, and numbers in the slopes of its steps. At batch 1024 an update of cart-pole
# took the same time, within noise, from 2,000 to 8,000 samples and longer on either side.
SEGMENT_SAMPLES = 4096
SEGMENT_SLOPE_NUMBERS = 2**22


class AdjointEngine:
    """The adjoint form of backpropagation through time.

    It serves controllers that are functions of each observation alone, see `probe.py`.

    Args:
        system: the physics.
        controller: from observations (B, *observation_shape) to actions (B, *action_shape).
        by_layer: take the products with the parameters of `nn.Linear` layers from one backward pass that
            all rules share; where False, from one vector-Jacobian product for each rule.
        segment_samples: samples (steps x batch) that are processed at once; bounds the memory.
        members: the batch holds so many equal parts, one after the other, and the loss is the sum of their
            means; for controllers that act on each part with parameters of its own (`stacked.py`).
    """

    name = "adjoint"

    def __init__(
        self,
        system: System,
        controller: nn.Module,
        *,
        by_layer: bool = True,
        segment_samples: int = SEGMENT_SAMPLES,
        members: int = 1,
    ) -> None:
        self.system = system
        self.controller = controller
        self.segment_samples = segment_samples
        self.members = members
        self._parameters = {n: p for n, p in controller.named_parameters() if p.requires_grad}
        self._names = {p: n for n, p in self._parameters.items()}
        self._layers = [m for m in controller.modules() if by_layer and _is_plain_linear(m)]
        in_layers = {p for layer in self._layers for p in layer.parameters()}
        self._others = [p for p in self._parameters.values() if p not in in_layers]

    def __call__(self, initial_states: Tensor, passes: Sequence[Feedback]) -> tuple[Tensor, dict[Feedback, Directions]]:
        """The loss of each episode, (B,), and the directions of every pass for their mean.

        Args:
            initial_states: (B, *state_shape).
            passes: which paths each backward pass takes.
        """
        trajectory = rollout(self.system, self.controller, initial_states)
        return losses(self.system, trajectory), self.backward(trajectory, passes)

    def backward(
        self, trajectory: Trajectory, passes: Sequence[Feedback], watch: Callable[[Sweep], object] | None = None
    ) -> dict[Feedback, Directions]:
        """The directions of every pass for the mean loss of a trajectory of this controller.

        Args:
            trajectory: what `rollout` gave.
            passes: which paths each backward pass takes.
            watch: is shown the adjoints of every segment, the last segment first.
        """
        totals: dict[Tensor, Tensor] = {
            p: torch.zeros(len(passes), *p.shape, dtype=p.dtype, device=p.device) for p in self._names
        }
        for sweep, tape in self._sweeps(trajectory, passes):
            tape.add_products(sweep.weights, self._others, totals)
            if watch is not None:
                watch(sweep)
        return {
            feedback: {name: totals[p][i] for name, p in self._parameters.items()} for i, feedback in enumerate(passes)
        }

    def _sweeps(self, trajectory: Trajectory, passes: Sequence[Feedback]) -> Iterator[tuple[Sweep, ControllerTape]]:
        """The adjoints of every segment, the last segment first, with the controller's slopes."""
        batch = trajectory.actions.shape[1]
        final_state = trajectory.states[-1]
        (slope,) = _slopes(self.system.final_cost, final_state)
        slope = torch.zeros_like(final_state) if slope is None else slope
        adjoint = (self.members / batch * slope.flatten(1)).expand(len(passes), -1, -1)  # (P, B, n)
        for steps in self._segments(batch, len(passes)):
            sweep, tape = self._sweep(
                trajectory.states[steps.start : steps.stop + 1], trajectory.actions[steps], adjoint, passes
            )
            adjoint = sweep.start
            yield sweep, tape

    def _segments(self, batch: int, passes: int) -> Iterator[slice]:
        """Slices of time steps, the last first."""
        numbers = self.system.slope_numbers * (passes if self.system.dense_jacobians else 1)
        samples = min(self.segment_samples, max(1, SEGMENT_SLOPE_NUMBERS // numbers))
        length = max(1, samples // batch)
        for stop in range(self.system.horizon, 0, -length):
            yield slice(max(0, stop - length), stop)

    def _sweep(
        self, states: Tensor, actions: Tensor, adjoint: Tensor, passes: Sequence[Feedback]
    ) -> tuple[Sweep, ControllerTape]:
        """Take the adjoints, (P, B, n), from the end of a segment to its start.

        states: (S + 1, B, *state_shape), actions: (S, B, *action_shape).
        """
        system = self.system
        steps, batch = actions.shape[:2]
        state, next_state, action = states[:-1].flatten(0, 1), states[1:].flatten(0, 1), actions.flatten(0, 1)
        bounded, bound = bound_with_slope(system, action)
        by_state, by_action, by_next_state = (
            None if slope is None else self.members / batch * slope.flatten(1)
            for slope in _slopes(system.running_cost, state, bounded, next_state)
        )
        if by_action is not None and bound is not None:
            by_action = by_action * bound
        tape = ControllerTape(self.controller, system, state, self._layers)
        slopes = SegmentSlopes(steps, by_state, by_action, by_next_state, bound, tape.jacobian)
        if system.dense_jacobians:
            return dense_sweep(*system.linearize(state, bounded), slopes, adjoint, passes), tape
        return product_sweep(system.pullback(state, bounded), slopes, adjoint, passes), tape


class ControllerTape:
    """One batched run of the controller, its Jacobian, and the products of vectors with its parameters.

    One backward pass for each action component gives the Jacobian (N, m, n) by the state and passes every
    Linear layer: with its input h and output slopes delta_j kept, any vectors c meet its weights as
    sum_j (c_j delta_j)^T h, without another backward pass.
    """

    def __init__(self, controller: nn.Module, system: System, state: Tensor, layers: Sequence[nn.Linear] = ()) -> None:
        with torch.enable_grad():
            leaf = state.detach().requires_grad_()
            with _recorded(layers) as calls:
                self._actions = controller(system.observe(leaf)).flatten(1)
            self._calls = calls
            targets = [leaf, *(output for _, _, output in calls)]
            slopes = [
                torch.autograd.grad(
                    self._actions[:, j].sum(),
                    targets,
                    retain_graph=True,
                    allow_unused=True,
                    materialize_grads=True,
                )
                for j in range(system.action_size)
            ]
        self.jacobian = torch.stack([row[0].flatten(1) for row in slopes], dim=1)
        self._output_slopes = [[row[1 + i] for row in slopes] for i in range(len(calls))]

    def add_products(self, weights: Tensor, others: Sequence[nn.Parameter], totals: dict[Tensor, Tensor]) -> None:
        """Add, for each of P passes, the product of the vectors `weights`, (N, P, m), with the parameters."""
        passes = weights.shape[1]
        for (layer, inputs, _), slopes in zip(self._calls, self._output_slopes, strict=True):
            _add_linear(layer, inputs, slopes, weights, totals)
        if others:
            for i in range(passes):
                products = torch.autograd.grad(
                    self._actions,
                    others,
                    weights[:, i],
                    retain_graph=i + 1 < passes,
                    allow_unused=True,
                    materialize_grads=True,
                )
                for parameter, product in zip(others, products, strict=True):
                    totals[parameter][i] += product


def _add_linear(
    layer: nn.Linear,
    inputs: Tensor,
    slopes: Sequence[Tensor],
    weights: Tensor,
    totals: dict[Tensor, Tensor],
) -> None:
    """Add the products of one call of a Linear layer; inputs: (N, ..., in), slopes: m of (N, ..., out)."""
    samples, passes, components = weights.shape
    inputs = inputs.detach().reshape(samples, -1, layer.in_features)
    inner = inputs.shape[1]
    if components == 1 and layer.in_features < layer.out_features:  # scale the narrower of the two factors
        slope = slopes[0].reshape(samples * inner, -1)
        scaled = (weights.unsqueeze(1) * inputs.unsqueeze(2)).reshape(samples * inner, -1)
        by_weight = (scaled.t() @ slope).view(passes, layer.in_features, layer.out_features).mT
        by_bias = weights.expand(-1, -1, inner).mT.reshape(samples * inner, passes).t() @ slope
    else:
        if components == 1:
            scaled = weights * slopes[0].reshape(samples, 1, -1)
        else:
            scaled = weights @ torch.stack([slope.reshape(samples, -1) for slope in slopes], dim=1)
        scaled = scaled.view(samples, passes, inner, -1).transpose(1, 2).reshape(samples * inner, -1)
        by_weight = (scaled.t() @ inputs.reshape(samples * inner, -1)).view(passes, *layer.weight.shape)
        by_bias = scaled.sum(0).view(passes, -1)
    if layer.weight in totals:
        totals[layer.weight] += by_weight
    if layer.bias is not None and layer.bias in totals:
        totals[layer.bias] += by_bias


@contextmanager
def _recorded(layers: Sequence[nn.Linear]) -> Iterator[list[tuple[nn.Linear, Tensor, Tensor]]]:
    """Collect (layer, input, output) of every call of `layers`."""
    calls: list[tuple[nn.Linear, Tensor, Tensor]] = []

    def keep(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(layer, nn.Linear)
        calls.append((layer, inputs[0], output))

    handles = [layer.register_forward_hook(keep) for layer in layers]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _is_plain_linear(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether the module is an nn.Linear that owns its weight: no subclass and no reparametrization."""
    return type(module) is nn.Linear and isinstance(module._parameters.get("weight"), nn.Parameter)


def bound_with_slope(system: System, action: Tensor) -> tuple[Tensor, Tensor | None]:
    """The bounded actions, and the slope of the bound, (N, m), None where there is no bound."""
    if system.max_action is None:
        return action, None
    with torch.enable_grad():
        leaf = action.detach().requires_grad_()
        bounded = system.bound(leaf)
        (slope,) = torch.autograd.grad(bounded.sum(), leaf)
    return bounded.detach(), slope.flatten(1)


def _slopes(cost: Callable[..., Tensor], *arguments: Tensor) -> tuple[Tensor | None, ...]:
    """Slopes of a cost, (N,), by each of its arguments; None where it does not depend on one."""
    with torch.enable_grad():
        leaves = [argument.detach().requires_grad_() for argument in arguments]
        total = cost(*leaves).sum()
        if not total.requires_grad:
            return (None,) * len(leaves)
        return torch.autograd.grad(total, leaves, allow_unused=True)
