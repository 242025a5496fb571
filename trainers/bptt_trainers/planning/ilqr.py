"""Differential dynamic programming: Newton's method over all actions, by a Riccati recursion over time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from bptt_envs import checks
from bptt_envs.settings import Count, read
from bptt_trainers.directions.rollout import loss_of
from bptt_trainers.planning.problem import Problem, best_of

STEPS = tuple(2.0**-i for i in range(9))  # shares of a step that are tried at once
NEWTONS = 4  # projected Newton steps for the few actions of one time
PATIENCE = 8  # iterations in a row without a better plan, after which an episode is done
TOLERANCE = 1e-10  # of the loss: less is no better plan
FLOOR = 1e-12  # the least curvature by an action
LEAST_DAMPING = 1e-6  # of gains, as a share of the curvatures: where actions hardly matter they do not follow noise
LOST = 1e-6  # share of slopes that do not follow what they are linear in: they have none of their own
MATRICES = 6  # by state and action, of each step, that are held at once


@dataclass(frozen=True)
class ILQR:
    """Iterative LQR with the second derivatives of cost and physics, batched over episodes.

    Each iteration takes the quadratic model of the loss around the plan: the slopes of the physics by `linearize`, and
    the Hessian of the Hamiltonian running_cost + costate . step, which makes it Newton's method. Of a step that has
    first slopes alone, as one in JAX, its second derivatives are left out: what is left, those of the costs through
    the slopes, is iterative LQR in the narrower sense, or Gauss and Newton's method. The model is minimised
    backwards in time within the bounds of the actions (control-limited DDP: Y. Tassa, N. Mansard, E. Todorov, ICRA
    2014), once as it is, with curvatures by the actions made positive, and once with each Hessian projected to its
    positive part. Of steps of several lengths in both directions the best is taken; where none is better, the
    curvature is raised (Levenberg, Marquardt).

    Second derivatives take a backward pass for each component of state and action: for states of up to some 30 numbers.

    Args:
        iterations: at most so many.
    """

    iterations: Count = 100

    summary: ClassVar[str] = "differential dynamic programming (iterative LQR with full second derivatives)"

    def __post_init__(self) -> None:
        read(self)

    def improve(self, problem: Problem, actions: Tensor, generator: torch.Generator) -> tuple[Tensor, int]:
        """Better actions, (T, B, *action_shape), and the iterations taken."""
        joint = problem.system.state_size + problem.system.action_size
        checks.in_memory(
            "episodes times plans to start from of iLQR, which keeps matrices of all steps (GRAPE keeps none),",
            len(problem),
            2 * MATRICES * problem.system.horizon * joint**2,  # in float64
        )
        plan, lowest = actions.clone(), problem.losses(actions[None])[0]
        damping, stalled = torch.zeros_like(lowest), torch.zeros_like(lowest)
        for iteration in range(self.iterations):
            rows = (stalled < PATIENCE).nonzero()[:, 0]
            if not len(rows):
                return plan, iteration
            found, loss, scale = _iterate(problem.some(rows), plan[:, rows], damping[rows])
            better = loss < lowest[rows] - TOLERANCE * lowest[rows].abs() - TOLERANCE**1.5
            taken = loss < lowest[rows]
            plan[:, rows[taken]], lowest[rows[taken]] = found[:, taken], loss[taken]
            stalled[rows] = torch.where(better, 0.0, stalled[rows] + 1)
            raised, lowered = torch.maximum(10 * damping[rows], LEAST_DAMPING * scale), damping[rows] / 10
            lowered = torch.where(lowered < 1e-9 * scale, 0.0, lowered)
            damping[rows] = torch.where(better, lowered, raised)
        return plan, self.iterations

    def gains(self, problem: Problem, actions: Tensor) -> Tensor:
        """Feedback around a plan, (T, B, m, n): by how much better actions differ where states are off, see `Plan`."""
        with torch.no_grad():
            states = problem.trajectory(actions)
        model = _positive_model(_model(problem, states, actions))
        undamped = _policy(problem, model, actions, torch.zeros(len(problem)).to(actions))
        return _policy(problem, model, actions, LEAST_DAMPING * undamped.scale).feedback


class _Model(NamedTuple):
    """The quadratic model of the loss around a plan, of T steps."""

    slopes: Tensor  # (T, B, n, n + m), of the step by state and action
    cost: Tensor  # (T, B, n + m), slopes of the cost of a step
    curvature: Tensor  # (T, B, n + m, n + m), of the Hamiltonian
    final: Tensor  # (B, n)
    final_curvature: Tensor  # (B, n, n)


def _iterate(problem: Problem, actions: Tensor, damping: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The best plan one step from `actions`, its losses, (B,), and the size of curvatures by actions, (B,)."""
    with torch.no_grad():
        states = problem.trajectory(actions)
    model = _model(problem, states, actions)
    as_it_is = _policy(problem, model, actions, damping)
    directions = [as_it_is, _policy(problem, _positive_model(model), actions, damping)]
    tried = [_tried(problem, states, actions, one) for one in directions]
    candidates, losses = (torch.cat(one) for one in zip(*tried, strict=True))
    found, lowest = best_of(candidates, losses)
    return found, lowest, as_it_is.scale


def _model(problem: Problem, states: Tensor, actions: Tensor) -> _Model:
    """The model around a plan; the second derivatives are those of cost and physics apart, by the chain rule."""
    system, n = problem.system, problem.system.state_size
    x, u = states[:-1].flatten(0, 1), actions.flatten(0, 1)
    count = actions.shape[:2]
    joint = torch.cat([x.flatten(1), u.flatten(1)], dim=1)
    sizes = (n, joint.shape[1] - n)

    def cost(at: Tensor) -> Tensor:
        state, action, following = at.split_with_sizes([*sizes, n], dim=1)
        return system.running_cost(state.reshape(x.shape), action.reshape(u.shape), following.reshape(x.shape))

    def step(at: Tensor) -> Tensor:
        state, action = at.split_with_sizes(sizes, dim=1)
        return system.step(state.reshape(x.shape), action.reshape(u.shape)).flatten(1)

    slopes = torch.cat(system.linearize(x, u), dim=2)

    def chained(by_all: Tensor) -> Tensor:  # by state and action, from by them and the next state apart
        return by_all[..., :-n] + torch.einsum("b...i,bij->b...j", by_all[..., -n:], slopes)

    by_all, curvature = _gradient_and_hessian(
        cost, torch.cat([joint, states[1:].flatten(0, 1).flatten(1)], dim=1), chained
    )
    costs = chained(by_all).unflatten(0, count)
    final, final_curvature = _gradient_and_hessian(
        lambda last: system.final_cost(last.reshape(states[-1].shape)), states[-1].flatten(1)
    )
    by_step = slopes.unflatten(0, count)
    costates = [final]  # what the loss to come changes by, per state
    for t in reversed(range(1, len(actions))):
        costates.append(costs[t, :, :n] + (costates[-1].unsqueeze(1) @ by_step[t, :, :, :n]).squeeze(1))
    by_following = by_all[:, -n:] + torch.stack(costates[::-1]).flatten(0, 1)
    curvature = (curvature + _step_curvature(step, joint, by_following)).unflatten(0, count)
    return _Model(by_step, costs, curvature, final, final_curvature)


def _step_curvature(step: Callable[[Tensor], Tensor], at: Tensor, weights: Tensor) -> Tensor:
    """Second derivatives of weights . step, (N, d, d), at `at`, (N, d), weights (N, n); 0 where the step has none.

    A backward pass that cannot be differentiated (`once_differentiable`, as that of a step in JAX) gives constants
    without a word. Slopes are linear in the weights: where they do not follow these, they do not follow the state.
    """
    with torch.enable_grad():
        at, weights = at.detach().requires_grad_(), weights.detach().requires_grad_()
        try:
            slopes = _gradient(lambda one: (weights * step(one)).sum(1), at)
            squared = slopes.detach().square().sum(1)
            (by_weight,) = torch.autograd.grad(
                (slopes * slopes.detach()).sum(), weights, retain_graph=True, materialize_grads=True, allow_unused=True
            )
            lost = ((weights * by_weight).sum(1) - squared).abs() > LOST * squared
            hessian = _hessian(slopes, at)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # an operation that says so; that the step has first slopes, `linearize` has shown
            return at.new_zeros(*at.shape, at.shape[1])
    return ((hessian + hessian.mT) / 2).masked_fill(lost.view(-1, 1, 1), 0.0)


def _gradient(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """Slopes of a function of samples, (N, d) -> (N,), at a leaf, (N, d), with their graph."""
    value = function(at).sum()
    if not value.requires_grad:
        return torch.zeros_like(at)
    (slopes,) = torch.autograd.grad(value, at, create_graph=True, materialize_grads=True, allow_unused=True)
    return slopes


def _gradient_and_hessian(
    function: Callable[[Tensor], Tensor], at: Tensor, chained: Callable[[Tensor], Tensor] = lambda rows: rows
) -> tuple[Tensor, Tensor]:
    """Slopes, (N, d), and second derivatives, (N, d, d) or by what `chained` makes of them, (..., d) -> (..., k)."""
    with torch.enable_grad():
        at = at.detach().requires_grad_()
        slopes = _gradient(function, at)
        hessian = chained(_hessian(slopes, at, chained).mT)
    return slopes.detach(), (hessian + hessian.mT) / 2


def _hessian(slopes: Tensor, at: Tensor, chained: Callable[[Tensor], Tensor] = lambda rows: rows) -> Tensor:
    """Second derivatives at `at`, (N, d), by row, from slopes with their graph, (N, d)."""
    if not slopes.requires_grad:
        return chained(at.new_zeros(*at.shape, at.shape[1]))
    rows = [
        torch.autograd.grad(column.sum(), at, retain_graph=True, materialize_grads=True, allow_unused=True)[0]
        for column in slopes.unbind(1)
    ]
    return torch.stack([chained(row) for row in rows], dim=1).detach()


def _positive_model(model: _Model) -> _Model:
    """The model with each Hessian projected to its positive part."""
    return model._replace(curvature=_positive(model.curvature), final_curvature=_positive(model.final_curvature))


def _positive(curvature: Tensor) -> Tensor:
    """Symmetric matrices without what is negative in them."""
    values, vectors = torch.linalg.eigh(curvature.nan_to_num(0.0, 0.0, 0.0))
    positive: Tensor = (vectors * values.clamp(min=0.0).unsqueeze(-2)) @ vectors.mT
    return positive


class _Policy(NamedTuple):
    """How to change a plan."""

    change: Tensor  # (T, B, m), of the actions
    feedback: Tensor  # (T, B, m, n), by how far states are off
    scale: Tensor  # (B,), the mean size of curvatures by actions


@torch.no_grad()
def _policy(problem: Problem, model: _Model, actions: Tensor, damping: Tensor) -> _Policy:
    """The minimum of the model within the bounds, backwards in time."""
    n = problem.system.state_size
    low, high = (
        (bound - actions).flatten(2) if bool(bound.isfinite().any()) else None for bound in (problem.low, problem.high)
    )
    value, curvature = model.final, model.final_curvature  # of the loss to come, by the state
    changes, feedbacks, sizes = [], [], []
    for t in reversed(range(len(actions))):
        slopes = model.slopes[t]
        q = model.cost[t] + (value.unsqueeze(1) @ slopes).squeeze(1)
        Q = model.curvature[t] + slopes.mT @ curvature @ slopes
        q_u, Q_uu, Q_ux = q[:, n:], Q[:, n:, n:], Q[:, n:, :n]
        values, vectors = torch.linalg.eigh(Q_uu.nan_to_num(0.0, 0.0, 0.0))
        sizes.append(values.abs().mean(1))
        raised = values.abs().clamp(min=FLOOR) + damping.unsqueeze(1)
        Q_uu = (vectors * raised.unsqueeze(-2)) @ vectors.mT
        bounds = (None if low is None else low[t], None if high is None else high[t])
        change, free = _minimum(Q_uu, q_u, *bounds)
        feedback = -_solved(Q_uu, Q_ux, free)
        by_feedback = Q_uu @ feedback + Q_ux
        value = q[:, :n] + (by_feedback.mT @ change.unsqueeze(2) + feedback.mT @ q_u.unsqueeze(2)).squeeze(2)
        curvature = Q[:, :n, :n] + feedback.mT @ by_feedback + Q_ux.mT @ feedback
        curvature = (curvature + curvature.mT) / 2
        changes.append(change)
        feedbacks.append(feedback)
    return _Policy(torch.stack(changes[::-1]), torch.stack(feedbacks[::-1]), torch.stack(sizes).mean(0))


def _minimum(Q: Tensor, q: Tensor, low: Tensor | None, high: Tensor | None) -> tuple[Tensor, Tensor]:
    """The minimum of k.Q k / 2 + q.k within bounds, (N, m), and which of its components are free.

    By projected Newton steps (D. Bertsekas, 1982).
    """
    k, free = torch.zeros_like(q), torch.ones_like(q)
    if low is None and high is None:
        return -_solved(Q, q.unsqueeze(2), free).squeeze(2), free
    low = torch.full_like(q, -math.inf) if low is None else low
    high = torch.full_like(q, math.inf) if high is None else high
    slope = q
    for _ in range(NEWTONS):
        free = (((k > low) | (slope <= 0)) & ((k < high) | (slope >= 0))).to(q)
        k = (k - _solved(Q, slope.unsqueeze(2), free).squeeze(2)).clamp(low, high)
        slope = (Q @ k.unsqueeze(2)).squeeze(2) + q
    return k, (((k > low) | (slope <= 0)) & ((k < high) | (slope >= 0))).to(q)


def _solved(Q: Tensor, right: Tensor, free: Tensor) -> Tensor:
    """Q^-1 right over free components, 0 in those that are held: (N, m, m), (N, m, k), (N, m) -> (N, m, k)."""
    rows = free.unsqueeze(2)
    alone = Q * rows * rows.mT + torch.diag_embed(1.0 - free)
    solved: Tensor = torch.linalg.solve_ex(alone, right * rows)[0]
    return solved


@torch.no_grad()
def _tried(problem: Problem, states: Tensor, actions: Tensor, policy: _Policy) -> tuple[Tensor, Tensor]:
    """Plans at shares of a step, (K, T, B, *action_shape), and their losses, (K, B)."""
    system, count = problem.system, len(problem)
    shares = torch.tensor(STEPS).to(actions).view(-1, 1, 1)
    state = problem.states.repeat(len(STEPS), *[1] * (problem.states.dim() - 1))
    found, seen = [], [state]
    for t, action in enumerate(actions):
        off = (state.flatten(1).view(len(STEPS), count, -1) - states[t].flatten(1)).unsqueeze(3)
        change = shares * policy.change[t] + (policy.feedback[t] @ off).squeeze(3)
        taken = problem.clamped(action + change.view(-1, *action.shape)).flatten(0, 1)
        state = system.step(state, taken)
        found.append(taken)
        seen.append(state)
    together = torch.stack(found)
    losses = loss_of(system, torch.stack(seen), together).view(len(STEPS), count)
    candidates = together.unflatten(1, (len(STEPS), count)).transpose(0, 1)
    return candidates, losses.nan_to_num(math.inf, math.inf, math.inf)
