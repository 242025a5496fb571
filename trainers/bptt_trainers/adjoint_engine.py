"""The directions by the adjoint recursion: no tape over time, all rules through one pass.

With A_t, B_t the Jacobians of the physics and K_t that of the controller, a pass with the feedback paths p
(physics) and k (controller), each 0 or 1, follows

    mu_{t+1}  = lambda_{t+1} + dl_t/dx_{t+1}
    v_t       = B_t^T mu_{t+1} + dl_t/du_t
    lambda_t  = dl_t/dx_t + p A_t^T mu_{t+1} + k K_t^T v_t
    direction = sum_t (dN/dtheta)^T v_t

(section 2 of arXiv 2405.02041, with a running cost l_t(x_t, u_t, x_{t+1})). The rollout keeps the states
only. Then, backwards in segments of time steps, everything but the recursion itself is one batch over the
steps and samples of the segment: the controller runs again and its Jacobian is taken, the physics are
linearized, and the vectors v of all passes meet the parameters in one product a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeGuard

import torch
from torch import Tensor, nn

from bptt_envs import System
from bptt_trainers.rollout import losses, rollout
from bptt_trainers.rules import Directions, Feedback

# Samples (steps x batch) of a segment, and numbers in its stacked Jacobians. At batch 1024 an update took the
# same time, within noise, from 2,000 to 8,000 samples and longer on either side.
SEGMENT_SAMPLES = 4096
SEGMENT_JACOBIAN_NUMBERS = 2**22


class AdjointEngine:
    """The adjoint form of backpropagation through time.

    It serves controllers that are functions of each observation alone, see `probe.py`.

    Args:
        system: the physics.
        controller: from observations (B, *observation_shape) to actions (B, *action_shape).
        by_layer: take the products with the parameters of `nn.Linear` layers from one backward pass that
            all rules share; where False, from one vector-Jacobian product for each rule.
        segment_samples: samples (steps x batch) that are processed at once; bounds the memory.
    """

    name = "adjoint"

    def __init__(
        self,
        system: System,
        controller: nn.Module,
        *,
        by_layer: bool = True,
        segment_samples: int = SEGMENT_SAMPLES,
    ) -> None:
        self.system = system
        self.controller = controller
        self.segment_samples = segment_samples
        self._parameters = {n: p for n, p in controller.named_parameters() if p.requires_grad}
        self._names = {p: n for n, p in self._parameters.items()}
        self._layers = [m for m in controller.modules() if by_layer and _is_plain_linear(m)]
        in_layers = {p for layer in self._layers for p in layer.parameters()}
        self._others = [p for p in self._parameters.values() if p not in in_layers]

    def __call__(self, initial_states: Tensor, passes: Sequence[Feedback]) -> tuple[Tensor, dict[Feedback, Directions]]:
        """The loss, (), of one batch and the directions of every pass.

        Args:
            initial_states: (B, *state_shape).
            passes: which paths each backward pass takes.
        """
        system = self.system
        trajectory = rollout(system, self.controller, initial_states)
        batch = initial_states.shape[0]
        final_state = trajectory.states[-1]
        (final_slope,) = _slopes(system.final_cost, final_state)
        if final_slope is None:
            final_slope = torch.zeros_like(final_state)
        adjoint = (final_slope.flatten(1) / batch).repeat(len(passes), 1)  # (P B, n)
        totals: dict[Tensor, Tensor] = {
            p: torch.zeros(len(passes), *p.shape, dtype=p.dtype, device=p.device) for p in self._names
        }
        for steps in self._segments(batch, len(passes)):
            adjoint = self._backward(
                trajectory.states[steps.start : steps.stop + 1],
                trajectory.actions[steps],
                adjoint,
                passes,
                totals,
            )
        directions = {
            feedback: {name: totals[p][i] for name, p in self._parameters.items()} for i, feedback in enumerate(passes)
        }
        return losses(system, trajectory).mean(), directions

    def _segments(self, batch: int, passes: int) -> Iterator[slice]:
        """Slices of time steps, the last first."""
        numbers = passes * self.system.state_size**2
        samples = min(self.segment_samples, max(1, SEGMENT_JACOBIAN_NUMBERS // numbers))
        length = max(1, samples // batch)
        for stop in range(self.system.horizon, 0, -length):
            yield slice(max(0, stop - length), stop)

    def _backward(
        self,
        states: Tensor,
        actions: Tensor,
        adjoint: Tensor,
        passes: Sequence[Feedback],
        totals: dict[Tensor, Tensor],
    ) -> Tensor:
        """Take the adjoints, (P B, n), from the end of a segment to its start; add its share to `totals`.

        states: (S + 1, B, *state_shape), actions: (S, B, *action_shape).
        """
        system = self.system
        steps, batch = actions.shape[:2]
        state, next_state, action = states[:-1].flatten(0, 1), states[1:].flatten(0, 1), actions.flatten(0, 1)

        bounded, open_ = _bound(system, action)
        by_state, by_action = system.linearize(state, bounded)  # A: (S B, n, n), B: (S B, n, m)
        by_action = by_action if open_ is None else by_action * open_.unsqueeze(1)
        cost_x, cost_u, cost_next = (
            None if slope is None else slope.flatten(1) / batch
            for slope in _slopes(system.running_cost, state, bounded, next_state)
        )
        if cost_u is not None and open_ is not None:
            cost_u = cost_u * open_

        tape = _ControllerTape(self.controller, system, state, self._layers)

        # lambda_t = offset_t + F_t^T mu_{t+1} for every pass, stacked along the batch
        closed_loop = by_action @ tape.jacobian if any(f.controller for f in passes) else None
        transitions, offsets = [], []
        for feedback in passes:
            transition = by_state if feedback.physics else torch.zeros_like(by_state)
            offset = cost_x
            if feedback.controller and closed_loop is not None:
                transition = transition + closed_loop
                if cost_u is not None:
                    offset = _sum(offset, (cost_u.unsqueeze(1) @ tape.jacobian).squeeze(1))
            transitions.append(transition.mT.unflatten(0, (steps, batch)))
            offsets.append(offset)
        stacked = torch.stack(transitions, dim=1).flatten(1, 2)  # (S, P B, n, n)
        offset_rows = _stack_rows(offsets, steps, batch, state.shape[0])
        next_rows = _stack_rows([cost_next] * len(passes), steps, batch, state.shape[0])

        mu = adjoint.unsqueeze(-1) if next_rows is None else adjoint.unsqueeze(-1) + next_rows[-1]
        between = None
        if offset_rows is not None or next_rows is not None:
            between = _sum(
                None if offset_rows is None else offset_rows[1:],
                None if next_rows is None else next_rows[:-1],
            )
        mus = [mu]
        for t in range(steps - 1, 0, -1):
            mu = stacked[t] @ mu if between is None else torch.baddbmm(between[t - 1], stacked[t], mu)
            mus.append(mu)
        start = stacked[0] @ mu
        start = start if offset_rows is None else start + offset_rows[0]

        mus.reverse()
        arriving = torch.stack(mus).view(steps, len(passes), batch, -1).permute(0, 2, 1, 3).flatten(0, 1)
        weights = arriving @ by_action  # v: (S B, P, m)
        if cost_u is not None:
            weights = weights + cost_u.unsqueeze(1)
        tape.add_products(weights, self._others, totals)
        return start.squeeze(-1)


class _ControllerTape:
    """One batched run of the controller, its Jacobian, and the products of vectors with its parameters.

    One backward pass for each action component gives the Jacobian (N, m, n) by the state and passes every
    Linear layer: with its input h and output slopes delta_j kept, any vectors c meet its weights as
    sum_j (c_j delta_j)^T h, without another backward pass.
    """

    def __init__(self, controller: nn.Module, system: System, state: Tensor, layers: Sequence[nn.Linear]) -> None:
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
        scaled = (weights.unsqueeze(1) * inputs.unsqueeze(2)).view(samples * inner, -1)
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


def _bound(system: System, action: Tensor) -> tuple[Tensor, Tensor | None]:
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


def _sum(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    return first + second


def _stack_rows(rows: Sequence[Tensor | None], steps: int, batch: int, samples: int) -> Tensor | None:
    """Stack P of (S B, n) to (S, P B, n, 1); None if all are None."""
    template = next((row for row in rows if row is not None), None)
    if template is None:
        return None
    filled = [torch.zeros_like(template) if row is None else row for row in rows]
    return torch.stack([row.view(steps, batch, -1) for row in filled], dim=1).flatten(1, 2).unsqueeze(-1)
