"""A system as reinforcement learning should see it: with the time in its observation, actions in [-1, 1]."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bptt_envs import System, checks
from bptt_trainers.rollout import Trajectory


class RLView(System):
    """Another face of a system; the physics and the costs are the system's own.

    State: the system's, flattened, then the number of steps done, (state_size + 1,).
    Observation: the system's, flattened, then the share of the horizon that is over. With a finite horizon
    the value of a state depends on it.
    Action: the system's, as a share of its range (of `nominal_action` where it has no bounds), from -1 to 1.
    Loss: the system's. With `dense` the final cost is paid step by step, each step paying by how much it
    raised the cost of the state: the sum differs by the cost of the start state, which no action changes, so
    the best policy for the undiscounted return is the same (potential-based shaping: Ng, Harada, Russell,
    ICML 1999). With a discount it is not quite: what is paid early counts more.

    Args:
        system: the system to look at.
        dense: pay the final cost step by step.
    """

    def __init__(self, system: System, *, dense: bool = False) -> None:
        checks.instance("system", system, System, "a System, such as env.unwrapped.system")
        super().__init__(horizon=system.horizon, dt=system.dt, objective=system.objective, max_action=1.0)
        self.system = system
        self.dense = checks.flag("dense", dense)
        self.state_shape = (system.state_size + 1,)
        self.action_shape = system.action_shape
        self.state_labels = (*system.state_labels, "steps")
        low, high = system.action_range
        scales = ((high - low) / 2).flatten().tolist()
        self.action_labels = tuple(
            f"{label} / {scale:g}" for label, scale in zip(system.action_labels, scales, strict=False)
        )

    def step(self, state: Tensor, action: Tensor) -> Tensor:
        """Step the system and count the step."""
        next_state = self.system.step(self.inner(state), self.inner_action(action))
        return torch.cat([next_state.flatten(1), state[:, -1:] + 1], dim=-1)

    def running_cost(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        """The system's, (B,); with `dense`, plus the rise of its final cost."""
        before, after = self.inner(state), self.inner(next_state)
        cost = self.system.running_cost(before, self.inner_action(action), after)
        return cost + self.system.final_cost(after) - self.system.final_cost(before) if self.dense else cost

    def final_cost(self, state: Tensor) -> Tensor:
        """The system's, (B,); with `dense` it has been paid already."""
        return super().final_cost(state) if self.dense else self.system.final_cost(self.inner(state))

    def initial_states(self, batch: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """The system's, at step 0."""
        return self.at_start(self.system.initial_states(batch, generator, dtype))

    def observe(self, state: Tensor) -> Tensor:
        """The system's observation, flattened, and the share of the horizon that is over."""
        observation = self.system.observe(self.inner(state)).flatten(1)
        return torch.cat([observation, state[:, -1:] / self.horizon], dim=-1)

    @property
    def observation_shape(self) -> tuple[int, ...]:
        """(observation_size + 1,)."""
        return (math.prod(self.system.observation_shape) + 1,)

    def at_start(self, state: Tensor) -> Tensor:
        """The view's state at step 0 of the system's, (B, *state_shape) -> (B, state_size + 1)."""
        return torch.nn.functional.pad(state.flatten(1), (0, 1))

    def inner(self, state: Tensor) -> Tensor:
        """The system's state in the view's, (..., state_size + 1) -> (..., *state_shape)."""
        return state[..., :-1].reshape(*state.shape[:-1], *self.system.state_shape)

    def inner_action(self, action: Tensor) -> Tensor:
        """The system's action, in its units, (..., *action_shape)."""
        return self.system.bound(self.system.action_at(action))

    def inner_trajectory(self, trajectory: Trajectory) -> Trajectory:
        """The system's trajectory in the view's."""
        return Trajectory(self.inner(trajectory.states), self.inner_action(self.bound(trajectory.actions)))
