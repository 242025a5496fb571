"""The adjoints of a segment of time steps, backwards, for several feedback rules at once.

With A_t, B_t the Jacobians of the physics and K_t that of the controller, a pass with the feedback paths p
(physics) and k (controller), each 0 or 1, follows

    mu_{t+1}  = lambda_{t+1} + dl_t/dx_{t+1}
    v_t       = B_t^T mu_{t+1} + dl_t/du_t
    lambda_t  = dl_t/dx_t + p A_t^T mu_{t+1} + k K_t^T v_t

(section 2 of arXiv 2405.02041, with a running cost l_t(x_t, u_t, x_{t+1})). Where the last components of x are what a
controller remembers, k is its flag m (memory) in the columns of K that belong to them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bptt_envs import System, Task
from bptt_envs.system import Pullback
from bptt_trainers.directions.rules import Feedback

ControllerPullback = Callable[[slice, Tensor, slice], Tensor]
"""From samples, vectors by the actions, (P, R, m), and which of the P are asked for, to their products with K."""


@dataclass(frozen=True)
class Mix:
    """What is taken in place of the slopes v_t, see `estimators.py`."""

    taken: Callable[[int, Tensor], Tensor]  # from a step and the slopes there, (P, B, m)
    looks: bool = True  # at them, but for those by a memory; else those of the physics need not be taken


@dataclass(frozen=True)
class SegmentSlopes:
    """What the recursion needs besides the physics, for S steps of B samples as N = S B rows, time first.

    None stands for zeros.
    """

    steps: int
    by_state: Tensor | None  # dl/dx, (N, n)
    by_action: Tensor | None  # dl/du, (N, m)
    by_next_state: Tensor | None  # dl/dx', (N, n)
    bound: Tensor | None  # slope of the bound on the action, (N, m)
    controller: Tensor | ControllerPullback | None  # K, (N, m, n), or products with it; None where no pass asks for it
    memory: int = 0  # components of the state, the last ones, that are what a controller remembers


@dataclass(frozen=True)
class Sweep:
    """The outcome of a segment for P passes."""

    start: Tensor  # lambda at the first step, (P, B, n)
    arriving: Tensor  # mu_{t+1} of every step, (S, P, B, n)
    weights: Tensor  # v_t of every step, (N, P, m)


def dense_sweep(
    by_state: Tensor, by_action: Tensor, slopes: SegmentSlopes, end: Tensor, passes: Sequence[Feedback]
) -> Sweep:
    """The recursion with dense Jacobians: one matrix product a step serves all passes.

    Args:
        by_state: A, (N, n, n).
        by_action: B, (N, n, m).
        slopes: the other slopes of the segment.
        end: lambda at the end of the segment, (P, B, n).
        passes: which paths each pass takes.
    """
    steps, batch = slopes.steps, end.shape[1]
    by_action = by_action if slopes.bound is None else by_action * slopes.bound.unsqueeze(1)

    # lambda_t = offset_t + F_t^T mu_{t+1} for every pass, stacked along the batch
    feeds_back = any_fed_back(passes, slopes.memory)
    closed_loop = by_cost = None
    if feeds_back:
        assert isinstance(slopes.controller, Tensor)
        closed_loop = by_action @ slopes.controller
    if isinstance(slopes.controller, Tensor) and slopes.by_action is not None:
        by_cost = (slopes.by_action.unsqueeze(1) @ slopes.controller).squeeze(1)
    transitions, offsets = [], []
    for feedback in passes:
        transition = by_state if feedback.physics else torch.zeros_like(by_state)
        offset = slopes.by_state
        if closed_loop is not None and _fed_back(feedback, slopes.memory) != (False, False):
            transition = transition + _columns(closed_loop, feedback, slopes.memory)
            offset = offset if by_cost is None else _sum(offset, _columns(by_cost, feedback, slopes.memory))
        transitions.append(transition.mT.unflatten(0, (steps, batch)))
        offsets.append(offset)
    offset_rows = _stack_rows(offsets, steps, batch, by_state.shape[0])
    next_rows = _stack_rows([slopes.by_next_state] * len(passes), steps, batch, by_state.shape[0])

    mu = end.flatten(0, 1).unsqueeze(-1)
    mu = mu if next_rows is None else mu + next_rows[-1]
    between = None
    if offset_rows is not None or next_rows is not None:
        between = _sum(
            None if offset_rows is None else offset_rows[1:],
            None if next_rows is None else next_rows[:-1],
        )
    if feeds_back or any(feedback.physics for feedback in passes):
        stacked = torch.stack(transitions, dim=1).flatten(1, 2)  # (S, P B, n, n)
        mus = [mu]
        for t in range(steps - 1, 0, -1):
            mu = stacked[t] @ mu if between is None else torch.baddbmm(between[t - 1], stacked[t], mu)
            mus.append(mu)
        start = stacked[0] @ mu
        mus.reverse()
        arriving = torch.stack(mus)
    else:  # nothing is fed back
        start = torch.zeros_like(mu)
        earlier = mu.new_zeros(steps - 1, *mu.shape) if between is None else between
        arriving = torch.cat([earlier, mu.unsqueeze(0)])
    start = start if offset_rows is None else start + offset_rows[0]
    arriving = arriving.view(steps, len(passes), batch, -1)
    weights = arriving.permute(0, 2, 1, 3).flatten(0, 1) @ by_action
    if slopes.by_action is not None:
        weights = weights + slopes.by_action.unsqueeze(1)
    return Sweep(start.view(end.shape), arriving, weights)


def product_sweep(
    pull: Pullback, slopes: SegmentSlopes, end: Tensor, passes: Sequence[Feedback], mix: Mix | None = None
) -> Sweep:
    """The recursion with products: the Jacobians of the physics are never formed.

    Args:
        pull: products of vectors with the Jacobians of the physics at the N rows.
        slopes: the other slopes of the segment.
        end: lambda at the end of the segment, (P, B, n).
        passes: which paths each pass takes.
        mix: what is taken in place of v_t, by the step of the segment.
    """
    batch = end.shape[1]
    physics = _mask([f.physics for f in passes], end)
    through = _through_controller(slopes, end, passes)
    arriving, weights = [], []
    adjoint = end
    for t in range(slopes.steps - 1, -1, -1):
        rows = slice(t * batch, (t + 1) * batch)
        mu = adjoint if slopes.by_next_state is None else adjoint + slopes.by_next_state[rows]
        adjoint, weight = pull(rows, mu)
        weight = weight if slopes.bound is None else weight * slopes.bound[rows]
        weight = weight if slopes.by_action is None else weight + slopes.by_action[rows]
        weight = weight if mix is None else mix.taken(t, weight)
        adjoint = adjoint if physics is None else adjoint * physics
        adjoint = through(rows, adjoint, weight)
        if slopes.by_state is not None:
            adjoint = adjoint + slopes.by_state[rows]
        arriving.append(mu)
        weights.append(weight)
    arriving.reverse()
    weights.reverse()
    return Sweep(adjoint, torch.stack(arriving), torch.stack(weights).transpose(1, 2).flatten(0, 1))


def pullback_of(system: System, state: Tensor, action: Tensor) -> Pullback:
    """Products of vectors with the Jacobians of a step.

    By the physics' own `pullback`, if it has one; else, of few states, by dense Jacobians, of all samples at once.
    """
    physics = system.system if isinstance(system, Task) else system
    if not system.dense_jacobians or type(physics).pullback is not System.pullback:
        return system.pullback(state, action)
    return _dense_pullback(*system.linearize(state, action))


def _dense_pullback(by_state: Tensor, by_action: Tensor) -> Pullback:
    """Products of vectors with A, (N, n, n), and B, (N, n, m)."""
    both, sizes = torch.cat([by_state, by_action], dim=-1), (by_state.shape[-1], by_action.shape[-1])

    def pull(rows: slice, vectors: Tensor) -> tuple[Tensor, Tensor]:
        by_states, by_actions = (vectors.transpose(0, 1) @ both[rows]).transpose(0, 1).split_with_sizes(sizes, -1)
        return by_states, by_actions

    return pull


def _through_controller(
    slopes: SegmentSlopes, end: Tensor, passes: Sequence[Feedback]
) -> Callable[[slice, Tensor, Tensor], Tensor]:
    """What adds to adjoints, (P, B, n), at some rows what the vectors v_t, (P, B, m), feed back there."""
    fed_back = [_fed_back(f, slopes.memory) for f in passes]
    back = slopes.controller
    if back is None:
        return lambda rows, adjoint, weight: adjoint
    if isinstance(back, Tensor):
        gains, controller = back, _mask([f.controller for f in passes], end)
        kept = _kept(fed_back, slopes.memory, end) if slopes.memory else None

        def through_jacobian(rows: slice, adjoint: Tensor, weight: Tensor) -> Tensor:
            gain = gains[rows]  # (B, m, n)
            fed = weight if controller is None or kept is not None else weight * controller
            if gain.shape[1] == 1:
                return torch.addcmul(adjoint, fed, gain[:, 0])
            product = (fed.transpose(0, 1) @ gain).transpose(0, 1)
            return adjoint + (product if kept is None else torch.where(kept, product, 0.0))

        return through_jacobian

    some = [i for i, one in enumerate(fed_back) if any(one)]
    first, stop = some[0], some[-1] + 1  # those that are asked for, and what lies between
    asked = fed_back[first:stop]
    kept = None if all(map(all, asked)) else _kept(asked, slopes.memory, end)

    def through_products(rows: slice, adjoint: Tensor, weight: Tensor) -> Tensor:
        product = back(rows, weight, slice(first, stop))
        product = product if kept is None else torch.where(kept, product, 0.0)
        if len(asked) == len(passes):
            return adjoint + product
        return torch.cat([adjoint[:first], adjoint[first:stop] + product, adjoint[stop:]])

    return through_products


def any_fed_back(passes: Sequence[Feedback], memory: int) -> bool:
    """Whether any pass goes through the controller, that remembers so many components."""
    return any(any(_fed_back(feedback, memory)) for feedback in passes)


def _fed_back(feedback: Feedback, memory: int) -> tuple[bool, bool]:
    """Whether a pass goes through the controller to the state, and to what it remembers, of so many components."""
    return feedback.controller, bool(feedback.memory) if memory else feedback.controller


def _columns(gain: Tensor, feedback: Feedback, memory: int) -> Tensor:
    """Those columns of a gain, (..., n), that a pass takes; zeros in the others."""
    fed_back = _fed_back(feedback, memory)
    return gain if all(fed_back) else torch.where(_kept([fed_back], memory, gain)[0], gain, 0.0)


def _kept(fed_back: Sequence[tuple[bool, bool]], memory: int, like: Tensor) -> Tensor:
    """Whether each of P passes feeds back to each of n components, (P, 1, n).

    What is left out is left out by a choice, not by a factor of 0, which would make NaN of what is infinite.
    """
    sizes = (like.shape[-1] - memory, memory)
    rows = [
        torch.cat([like.new_full((count,), taken, dtype=torch.bool) for count, taken in zip(sizes, one, strict=True)])
        for one in fed_back
    ]
    return torch.stack(rows).unsqueeze(1)


def _mask(taken: Sequence[bool], like: Tensor) -> Tensor | None:
    """1 for the passes that take a path, 0 for the others, (P, 1, 1); None if all take it."""
    return None if all(taken) else torch.cat([like.new_full((1, 1, 1), float(one)) for one in taken])


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
