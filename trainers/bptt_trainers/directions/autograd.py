"""The directions by definition: the rollout is unrolled, detached where a rule cuts, and differentiated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor, nn

from bptt_envs import System
from bptt_trainers.directions.augmented import AugmentedSystem, acting, with_noise
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
        mixing: Callable[[Trajectory], Mix] | None = None,
    ) -> tuple[Tensor, dict[Feedback, Directions]]:
        """The loss of each episode, (B,), and the directions of every pass for their mean.

        Args:
            initial_states: (B, *state_shape).
            passes: which paths each backward pass takes.
            noise: that of all steps, (T, B, *noise_shape), for a controller that is handed any; None: zeros.
            mixing: from the episodes to what goes on backwards in place of the slopes by the actions; None: these.
        """
        parameters = {n: p for n, p in self.controller.named_parameters() if p.requires_grad}
        directions = {}
        for i, feedback in enumerate(passes):
            # A rule compares its passes, so all of them see the same random numbers and buffers
            with left_as_it_was(self.controller) if i + 1 < len(passes) else nullcontext():
                if mixing is None:
                    losses = self.unrolled_losses(initial_states, feedback, noise)
                else:
                    losses = self._mixed_losses(initial_states, feedback, noise, mixing)
                gradients: Sequence[Tensor] = [torch.zeros_like(p) for p in parameters.values()]
                if losses.requires_grad:
                    gradients = torch.autograd.grad(
                        losses.mean(), list(parameters.values()), allow_unused=True, materialize_grads=True
                    )
            directions[feedback] = {name: one.detach() for name, one in zip(parameters, gradients, strict=True)}
        return losses.detach(), directions

    def unrolled_losses(self, initial_states: Tensor, feedback: Feedback, noise: Tensor | None = None) -> Tensor:
        """The loss of each episode, (B,), with a graph that carries exactly the paths of `feedback`."""
        return self._unrolled(initial_states, feedback, noise)[0]

    def _mixed_losses(
        self,
        initial_states: Tensor,
        feedback: Feedback,
        noise: Tensor | None,
        mixing: Callable[[Trajectory], Mix],
    ) -> Tensor:
        """The same, with hooks on the actions that change the slope which arrives at each."""
        losses, states, actions = self._unrolled(initial_states, feedback, noise)
        mix = mixing(Trajectory(torch.stack(states).detach(), torch.stack(actions).detach()))
        for t, action in enumerate(actions):
            action.register_hook(partial(_mixed, mix, t))
        return losses

    def _unrolled(
        self, initial_states: Tensor, feedback: Feedback, noise: Tensor | None
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Losses, (B,), the states of T + 1 steps and the actions of T, with their graph."""
        system, act = self.system, acting(self.system, self.controller)
        state, total = initial_states, initial_states.new_zeros(initial_states.shape[0])
        states, actions = [], []
        for t in range(system.horizon):
            state = state if noise is None else with_noise(system, state, noise[t])
            action = act(system.observe(_seen(system, state, feedback)))
            if t == 0:
                check_actions(system, action, initial_states)
            states.append(state)
            actions.append(action)
            action = system.bound(action)
            next_state = system.step(state if feedback.physics else state.detach(), action)
            total = total + system.running_cost(state, action, next_state)
            state = next_state
        return total + system.final_cost(state), [*states, state], actions


def _mixed(mix: Mix, step: int, slope: Tensor) -> Tensor:
    return mix.taken(step, slope.unsqueeze(0)).squeeze(0)


def _seen(system: System, state: Tensor, feedback: Feedback) -> Tensor:
    """The state, detached where a pass does not go back through the controller."""
    if isinstance(system, AugmentedSystem):
        return system.without_gradients(state, of_state=not feedback.controller, of_memory=not feedback.memory)
    return state if feedback.controller else state.detach()
