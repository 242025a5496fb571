"""How perturbations grow over the steps of an episode, and how feedback does on its way back."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from bptt_envs import System, Task
from bptt_trainers.directions.adjoint import AdjointEngine, bound_with_slope
from bptt_trainers.directions.controller_tape import ControllerTape
from bptt_trainers.directions.rollout import Trajectory
from bptt_trainers.directions.rules import MODIFIED, REGULAR, Directions, Feedback

GROWTH_SAMPLES = 4  # episodes over which growth is averaged
GROWTH_NUMBERS = 2**22  # of the products of Jacobians that are kept at once
POWER_ITERATIONS = 8
SINGULAR_WORK = 2**28  # cubes of the size of Jacobians whose singular values are taken, added up


def feedback(engine: AdjointEngine, trajectory: Trajectory) -> tuple[Tensor, dict[Feedback, Directions]]:
    """The slopes of the loss of an episode by its states, as R and as M feed them back, with the directions.

    Args:
        engine: of the controller that the trajectory is of.
        trajectory: T steps of B episodes.

    Returns:
        dL/dx_t at t = 1 .. T, (T, 2, B, n), L the loss of one episode; and the directions of both for their mean.
    """
    arriving: list[Tensor] = []
    passes = engine.backward(trajectory, (REGULAR, MODIFIED), lambda sweep: arriving.append(sweep.arriving))
    return trajectory.actions.shape[1] * torch.cat(arriving[::-1]), passes


@torch.no_grad()
def stretches(system: System, controller: nn.Module, trajectory: Trajectory) -> tuple[list[int], Tensor]:
    """By how much single steps stretch and squeeze perturbations: the ends of the singular values of their Jacobians.

    Args:
        system: the physics.
        controller: closes the loop.
        trajectory: T steps of B episodes, of which the first few are looked at.

    Returns:
        The steps t, K of them, all T unless the state is large, and (2, 2, K): of the physics alone, A_t, and of the
        closed loop, A_t + B_t K_t, the largest singular value and the smallest, the most extreme of the episodes; 0
        for what is no number.
    """
    horizon, batch = trajectory.actions.shape[:2]
    n = system.system.state_size if isinstance(system, Task) else system.state_size
    samples = min(GROWTH_SAMPLES, batch, max(1, GROWTH_NUMBERS // n**2))
    count = min(horizon, max(1, SINGULAR_WORK // (samples * n**3)))
    times = [round(i * (horizon - 1) / max(1, count - 1)) for i in range(count)]
    states, actions = trajectory.states[times][:, :samples], trajectory.actions[times][:, :samples]
    found = [one[..., :n, :n] for _, one in loop_jacobians(system, controller, states, actions)]
    values = torch.linalg.svdvals(torch.stack(found[::-1], dim=1).nan_to_num(0.0, 0.0, 0.0))  # (2, K, samples, n)
    return times, torch.stack([values[..., 0].amax(-1), values[..., -1].amin(-1)], dim=1)


@torch.no_grad()
def feedback_growth(system: System, controller: nn.Module, trajectory: Trajectory) -> tuple[list[int], Tensor]:
    """Log10 of the largest singular value of the products of Jacobians from step t to the end.

    Args:
        system: the physics.
        controller: closes the loop.
        trajectory: T steps of B episodes, of which the first few are looked at.

    Returns:
        The steps t, K of them, and (2, K): of the physics alone and of the closed loop, the mean over episodes.
    """
    horizon, batch = trajectory.actions.shape[:2]
    n = system.system.state_size if isinstance(system, Task) else system.state_size  # what a task holds does not grow
    room = max(1, GROWTH_NUMBERS // n**2)
    samples = min(GROWTH_SAMPLES, batch, room)
    count = min(horizon, max(1, room // samples))
    times = [round(i * (horizon - 1) / max(1, count - 1)) for i in range(count)]
    states, actions = trajectory.states[:-1, :samples], trajectory.actions[:, :samples]
    product = torch.eye(n, dtype=states.dtype, device=states.device).expand(2, samples, n, n)
    scale = states.new_zeros(2, samples)  # log10 of what the product was divided by: it would overflow
    products, scales = [], []
    for t, jacobians in loop_jacobians(system, controller, states, actions):
        product = product @ jacobians[..., :n, :n]
        size = product.flatten(2).norm(dim=-1).clamp_min(torch.finfo(product.dtype).tiny)
        product, scale = product / size[..., None, None], scale + size.log10()
        if t in times:
            products.append(product)
            scales.append(scale)
    growth = torch.stack(scales) + largest_singular_value(torch.stack(products)).log10()  # (K, 2, samples)
    return times, growth.mean(-1).flip(0).t()


def loop_jacobians(
    system: System, controller: nn.Module, states: Tensor, actions: Tensor
) -> Iterator[tuple[int, Tensor]]:
    """The steps, the last first, with A_t and A_t + B_t K_t, (2, samples, n, n)."""
    horizon, samples = actions.shape[:2]
    length = max(1, GROWTH_NUMBERS // (samples * system.state_size**2))
    for stop in range(horizon, 0, -length):
        steps = slice(max(0, stop - length), stop)
        state, action = states[steps].flatten(0, 1), actions[steps].flatten(0, 1)
        bounded, slope = bound_with_slope(system, action)
        by_state, by_action = system.linearize(state, bounded)
        by_action = by_action if slope is None else by_action * slope.unsqueeze(1)
        closed = by_state + by_action @ ControllerTape(controller, system, state).jacobian
        both = torch.stack([by_state, closed]).unflatten(1, (-1, samples))
        for t in range(steps.stop - 1, steps.start - 1, -1):
            yield t, both[:, t - steps.start]


def largest_singular_value(matrices: Tensor) -> Tensor:
    """Of (..., n, n), by power iterations from the row of the largest norm, which has a share in it."""
    longest = matrices.norm(dim=-1).argmax(-1)[..., None, None].expand(*matrices.shape[:-2], 1, matrices.shape[-1])
    vector = matrices.gather(-2, longest).mT
    tiny = torch.finfo(matrices.dtype).tiny
    for _ in range(POWER_ITERATIONS):
        vector = vector / vector.norm(dim=-2, keepdim=True).clamp_min(tiny)
        image = matrices @ vector
        vector = matrices.mT @ image
    largest: Tensor = image.norm(dim=-2).squeeze(-1)
    return largest
