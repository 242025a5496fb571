"""The directions by definition: the rollout is unrolled, detached where a rule cuts, and differentiated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor, nn

from bptt_envs import System
from bptt_trainers.directions.augmented import acting, memory_size_of, with_noise
from bptt_trainers.directions.recursion import Mix
from bptt_trainers.directions.rollout import Trajectory, check_actions
from bptt_trainers.directions.rules import Directions, Feedback
from bptt_trainers.directions.snapshot import left_as_it_was


class AutogradEngine:
    """Backpropagation through time by torch's autograd, one backward pass for each `Feedback`.

    It serves every controller and keeps the activations of all steps in memory.

    Args:
        system: the physics.
        controller: from observations (B, *observation_shape) to actions (B, *action_shape).
    """

    name = "autograd"

    def __init__(self, system: System, controller: nn.Module) -> None:
        self.system = system
        self.controller = controller

    def __call__(
        self,
        initial_states: Tensor,
        passes: Sequence[Feedback],
        noise: Tensor | None = None,
        show: Callable[[Trajectory], object] | None = None,
        mixing: Callable[[Trajectory], Mix] | None = None,
    ) -> tuple[Tensor, dict[Feedback, Directions]]:
        """The loss of each episode, (B,), and the directions of every pass for their mean.

        Args:
            initial_states: (B, *state_shape).
            passes: which paths each backward pass takes.
            noise: that of all steps, (T, B, *noise_shape), for a controller that is handed any; None: zeros.
            show: is shown what the episodes of the first pass went through.
            mixing: from the episodes to what goes on backwards in place of the slopes by the actions; None: these.
        """
        parameters = {n: p for n, p in self.controller.named_parameters() if p.requires_grad}
        directions = {}
        for i, feedback in enumerate(passes):
            # A rule compares its passes, so all of them see the same random numbers and buffers
            with left_as_it_was(self.controller) if i + 1 < len(passes) else nullcontext():
                meet = partial(_met, show if i == 0 else None, mixing) if show or mixing else None
                losses = self.unrolled_losses(initial_states, feedback, noise, meet)
                gradients: Sequence[Tensor] = [torch.zeros_like(p) for p in parameters.values()]
                if losses.requires_grad:
                    gradients = torch.autograd.grad(
                        losses.mean(), list(parameters.values()), allow_unused=True, materialize_grads=True
                    )
            directions[feedback] = {name: one.detach() for name, one in zip(parameters, gradients, strict=True)}
        return losses.detach(), directions

    def unrolled_losses(
        self,
        initial_states: Tensor,
        feedback: Feedback,
        noise: Tensor | None = None,
        meet: Callable[[Trajectory, Sequence[Tensor]], object] | None = None,
    ) -> Tensor:
        """The loss of each episode, (B,), with a graph that carries exactly the paths of `feedback`.

        Args:
            initial_states: (B, *state_shape).
            feedback: which paths are left.
            noise: as that of a call.
            meet: is handed the trajectory, and the actions of T steps with their graph.
        """
        system, act = self.system, acting(self.system, self.controller)
        state, total = initial_states, initial_states.new_zeros(initial_states.shape[0])
        states: list[Tensor] = []
        actions: list[Tensor] = []
        for t in range(system.horizon):
            state = state if noise is None else with_noise(system, state, noise[t])
            paths = feedback.at(t)
            action = act(system.observe(_seen(system, state, paths)))
            if t == 0:
                check_actions(system, action, initial_states)
            if meet is not None:
                states.append(state.detach())
                actions.append(action)
            action = system.bound(action)
            next_state = system.step(fed_back(state, paths.physics), action)
            total = total + system.running_cost(state, action, next_state)
            state = next_state
        total = total + system.final_cost(state)
        if meet is not None:
            through = torch.stack([*states, state.detach()]), torch.stack(actions).detach()
            meet(Trajectory(*through), actions)
            for action in actions:  # reached by a slope of 0, where by none: what is put in its place is to count
                total = total + torch.where(torch.zeros_like(action, dtype=torch.bool), action, 0.0).flatten(1).sum(1)
        return total


def _met(
    show: Callable[[Trajectory], object] | None,
    mixing: Callable[[Trajectory], Mix] | None,
    trajectory: Trajectory,
    actions: Sequence[Tensor],
) -> None:
    """Show the trajectory; let hooks on the actions, which have their graph, change the slope that arrives at each."""
    if show is not None:
        show(trajectory)
    if mixing is not None:
        mix = mixing(trajectory)
        for t, action in enumerate(actions):
            action.register_hook(partial(_mixed, mix, t))


def _mixed(mix: Mix, step: int, slope: Tensor) -> Tensor:
    return mix.taken(step, slope.unsqueeze(0)).squeeze(0)


def fed_back(value: Tensor, factor: float) -> Tensor:
    """The value itself, with so much of its slope: factor value + (1 - factor) value.detach()."""
    if factor == 1.0:
        return value
    fixed = value.detach()
    return fixed.lerp(value, factor) if factor else fixed


def _seen(system: System, state: Tensor, feedback: Feedback) -> Tensor:
    """The state, with as much of its slope as a pass takes back through the controller."""
    memory = memory_size_of(system)
    if not memory:
        return fed_back(state, feedback.controller)
    before, remembered = state.split_with_sizes([state.shape[-1] - memory, memory], dim=-1)
    return torch.cat([fed_back(before, feedback.controller), fed_back(remembered, feedback.memory or 0.0)], dim=-1)
