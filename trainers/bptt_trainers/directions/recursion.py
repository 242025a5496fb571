"""The adjoints of a segment of time steps, backwards, for several feedback rules at once.

With A_t, B_t the Jacobians of the physics and K_t that of the controller, a pass that takes the factors p of what is
fed back through the physics and k through the controller, each from 0 to 1, follows

    mu_{t+1}  = lambda_{t+1} + dl_t/dx_{t+1}
    v_t       = B_t^T mu_{t+1} + dl_t/du_t
    lambda_t  = dl_t/dx_t + p A_t^T mu_{t+1} + k K_t^T v_t

(section 2 of arXiv 2405.02041, with a running cost l_t(x_t, u_t, x_{t+1})). Where the last components of x are what a
controller remembers, k is its factor m (memory) in the columns of K that belong to them. Where a pass is cut, all of
them are 0.
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
    open: Tensor | None = None  # whether each pass feeds back to the state at a step, (S, P) of bool; None: all do


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

    # lambda_t = offset_t + F_t^T mu_{t+1} for every pass, stacked along the batch; where it is cut, dl_t/dx_t
    feeds_back = any_fed_back(passes, slopes.memory)
    open_rows = None if slopes.open is None else slopes.open.unsqueeze(2).expand(-1, -1, batch)  # (S, P, B)
    closed_loop = by_cost = None
    if feeds_back:
        assert isinstance(slopes.controller, Tensor)
        closed_loop = by_action @ slopes.controller
    if isinstance(slopes.controller, Tensor) and slopes.by_action is not None:
        by_cost = slopes.by_action.unsqueeze(1) @ slopes.controller
    transitions, offsets = [], []
    for i, feedback in enumerate(passes):
        transition = _taken([[feedback.physics]], [1], by_state).of(by_state)
        offset = slopes.by_state
        if closed_loop is not None and any(_fed_back(feedback, slopes.memory)):
            columns = _columns([feedback], slopes.memory, by_state)
            transition = transition + columns.of(closed_loop)
            if by_cost is not None:
                cost = columns.of(by_cost).squeeze(1)
                cost = cost if open_rows is None else torch.where(open_rows[:, i].reshape(-1, 1), cost, 0.0)
                offset = _sum(offset, cost)
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
        taken = None if open_rows is None else open_rows.flatten(1)[..., None, None]  # (S, P B, 1, 1)
        mus = [mu]
        for t in range(steps - 1, 0, -1):
            mu = torch.bmm(stacked[t], mu) if between is None else torch.baddbmm(between[t - 1], stacked[t], mu)
            mu = mu if taken is None else torch.where(taken[t], mu, 0.0 if between is None else between[t - 1])
            mus.append(mu)
        start = stacked[0] @ mu
        start = start if taken is None else torch.where(taken[0], start, 0.0)
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
    physics = _taken([[one.physics] for one in passes], [1], end)
    through = _through_controller(slopes, end, passes)
    open_steps = None if slopes.open is None else slopes.open[..., None, None]  # (S, P, 1, 1)
    arriving, weights = [], []
    adjoint = end
    for t in range(slopes.steps - 1, -1, -1):
        rows = slice(t * batch, (t + 1) * batch)
        mu = adjoint if slopes.by_next_state is None else adjoint + slopes.by_next_state[rows]
        adjoint, weight = pull(rows, mu)
        weight = weight if slopes.bound is None else weight * slopes.bound[rows]
        weight = weight if slopes.by_action is None else weight + slopes.by_action[rows]
        weight = weight if mix is None else mix.taken(t, weight)
        adjoint = through(rows, physics.of(adjoint), weight)
        adjoint = adjoint if open_steps is None else torch.where(open_steps[t], adjoint, 0.0)
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
        gains, vectors, columns = back, _ALL, _ALL
        if slopes.memory:
            columns = _columns(passes, slopes.memory, end)
        else:  # as much of all components
            vectors = _taken([[one.controller] for one in passes], [1], end)

        def through_jacobian(rows: slice, adjoint: Tensor, weight: Tensor) -> Tensor:
            gain = gains[rows]  # (B, m, n)
            fed = vectors.of(weight)
            if gain.shape[1] == 1:
                return torch.addcmul(adjoint, fed, gain[:, 0])
            return adjoint + columns.of((fed.transpose(0, 1) @ gain).transpose(0, 1))

        return through_jacobian

    some = [i for i, one in enumerate(fed_back) if any(one)]
    first, stop = some[0], some[-1] + 1  # those that are asked for, and what lies between
    columns = _columns(passes[first:stop], slopes.memory, end)

    def through_products(rows: slice, adjoint: Tensor, weight: Tensor) -> Tensor:
        product = columns.of(back(rows, weight, slice(first, stop)))
        if stop - first == len(passes):
            return adjoint + product
        return torch.cat([adjoint[:first], adjoint[first:stop] + product, adjoint[stop:]])

    return through_products


def any_fed_back(passes: Sequence[Feedback], memory: int) -> bool:
    """Whether any pass goes through the controller, that remembers so many components."""
    return any(any(_fed_back(feedback, memory)) for feedback in passes)


def _fed_back(feedback: Feedback, memory: int) -> tuple[float, float]:
    """How much a pass takes back through the controller to the state, and to so many components that it remembers."""
    return feedback.controller, (feedback.memory or 0.0) if memory else feedback.controller


@dataclass(frozen=True)
class _Taken:
    """How much P passes take of vectors, (P, ..., n).

    What is left out is left out by a choice, not by a factor of 0, which would make NaN of what is infinite.
    """

    factors: Tensor | None  # (P, 1, n) or (P, 1, 1); None where each is 0 or 1
    kept: Tensor | None  # of bool, likewise; None where nothing is left out

    def of(self, vectors: Tensor) -> Tensor:
        vectors = vectors if self.factors is None else vectors * self.factors
        return vectors if self.kept is None else torch.where(self.kept, vectors, 0.0)


_ALL = _Taken(None, None)


def _taken(factors: Sequence[Sequence[float]], sizes: Sequence[int], like: Tensor) -> _Taken:
    """How much each of P passes takes of each of some groups of components, which have these sizes."""

    def filled(dtype: torch.dtype) -> Tensor:
        rows = [
            torch.cat([like.new_full((count,), one, dtype=dtype) for count, one in zip(sizes, row, strict=True)])
            for row in factors
        ]
        return torch.stack(rows).unsqueeze(1)

    found = {factor for row in factors for factor in row}
    return _Taken(filled(like.dtype) if found - {0.0, 1.0} else None, filled(torch.bool) if 0.0 in found else None)


def _columns(passes: Sequence[Feedback], memory: int, like: Tensor) -> _Taken:
    """How much passes take of what the controller feeds back to states, of which so many components are a memory."""
    return _taken([_fed_back(one, memory) for one in passes], (like.shape[-1] - memory, memory), like)


def where_open(passes: Sequence[Feedback], horizon: int, device: torch.device) -> Tensor | None:
    """Whether each pass feeds back to the state at a step, (T, P) of bool; None if none is cut within the horizon."""
    if all(one.every is None or one.every >= horizon for one in passes):
        return None
    times = torch.arange(horizon, device=device)
    return torch.stack([times % (one.every or horizon) != 0 for one in passes], dim=1)


def first_felt(passes: Sequence[Feedback], horizon: int, memory: int) -> int:
    """The first step whose slopes have a share of what comes after the last one, by any of the passes."""

    def first(feedback: Feedback) -> int:
        if not (feedback.physics or any(_fed_back(feedback, memory))):
            return horizon - 1
        return 0 if feedback.every is None else (horizon - 1) // feedback.every * feedback.every

    return min(map(first, passes))


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
