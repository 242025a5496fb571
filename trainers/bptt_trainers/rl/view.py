"""A system as reinforcement learning should see it: with the time in its observation, actions in [-1, 1]."""

from __future__ import annotations

import torch
from torch import Tensor

from bptt_envs import System, checks
from bptt_envs.task import with_time
from bptt_trainers.directions.rollout import Trajectory
from bptt_trainers.directions.system_of import Physics, system_of


class RLView(System):
    """Another face of a system; the physics and the costs are the system's own.

    State and observation: those of the system as a `Task` that shows the share of the horizon that is over; one that
    shows it already (`observe_time=True`) shows it once.
    Action: the system's, as a share of its range (of `nominal_action` where it has no bounds), from -1 to 1.
    Loss: the system's. With `dense` the final cost is paid step by step, each step paying by how much it
    raised the cost of the state: the sum differs by the cost of the start state, which no action changes, so
    the best policy for the undiscounted return is the same (potential-based shaping: Ng, Harada, Russell,
    ICML 1999). With a discount it is not quite: what is paid early counts more.

    Args:
        system: the system to look at, or an environment of it.
        dense: pay the final cost step by step.
    """

    def __init__(self, system: Physics, *, dense: bool = False) -> None:
        system = system_of(system, "system")
        super().__init__(horizon=system.horizon, dt=system.dt, objective=system.objective, max_action=1.0)
        self.system = system
        self.timed = with_time(system)
        self.dense = checks.flag("dense", dense)
        self.state_shape = self.timed.state_shape
        self.action_shape = system.action_shape
        self.state_labels = self.timed.state_labels
        low, high = system.action_range
        scales = ((high - low) / 2).flatten().tolist()
        self.action_labels = tuple(
            f"{label} / {scale:g}" for label, scale in zip(system.action_labels, scales, strict=False)
        )

    def step(self, state: Tensor, action: Tensor) -> Tensor:
        """Step the system and count the step."""
        return self.timed.step(state, self.inner_action(action))

    def running_cost(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        """The system's, (B,); with `dense`, plus the rise of its final cost."""
        cost = self.timed.running_cost(state, self.inner_action(action), next_state)
        return cost + self.timed.final_cost(next_state) - self.timed.final_cost(state) if self.dense else cost

    def final_cost(self, state: Tensor) -> Tensor:
        """The system's, (B,); with `dense` it has been paid already."""
        return super().final_cost(state) if self.dense else self.timed.final_cost(state)

    def episode_over(self, state: Tensor) -> Tensor | None:
        """Whether the system's episode is over."""
        return self.timed.episode_over(state)

    def initial_states(self, batch: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """The system's, at step 0."""
        return self.timed.initial_states(batch, generator, dtype)

    def observe(self, state: Tensor) -> Tensor:
        """The system's observation, flattened, and the share of the horizon that is over."""
        return self.timed.observe(state)

    @property
    def observation_shape(self) -> tuple[int, ...]:
        """(observation_size + 1,)."""
        return self.timed.observation_shape

    def episode_start(self, state: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The view's state at the start of an episode from the system's, (B, *state_shape) -> (B, state_size + 1)."""
        if state.shape[1:] == self.state_shape:
            return state
        state = self.system.episode_start(state, generator)
        return state if self.system is self.timed else torch.nn.functional.pad(state.flatten(1), (0, 1))

    def inner(self, state: Tensor) -> Tensor:
        """The system's state in the view's, (..., state_size + 1) -> (..., *state_shape)."""
        if self.system is self.timed:
            return state
        inner: Tensor = state[..., :-1].contiguous().unflatten(-1, self.system.state_shape)  # a system may take views
        return inner

    def inner_action(self, action: Tensor) -> Tensor:
        """The system's action, in its units, (..., *action_shape)."""
        return self.system.bound(self.system.action_at(action))

    def inner_trajectory(self, trajectory: Trajectory) -> Trajectory:
        """The system's trajectory in the view's."""
        return Trajectory(self.inner(trajectory.states), self.inner_action(self.bound(trajectory.actions)))
