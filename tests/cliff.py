"""A system that is not defined beyond the end of its episodes: what is not left out there is NaN."""

import torch

from bptt_envs import System

STARTS = (0.95, 0.5, -9.0, 1.5)  # ends with the first step, with the third, never, before it begins


class Cliff(System):
    """Roll towards a cliff at position 1, where the episode ends.

    State: position and speed. Beyond the cliff neither the step nor what it costs is a number.
    """

    state_shape = (2,)
    action_shape = (1,)
    parameters = ("grip",)

    def __init__(self, *, grip=0.1, horizon=6, max_action=None):
        super().__init__(horizon=horizon, dt=0.2, max_action=max_action)
        self.grip = grip

    def step(self, state, action):
        position, speed = state[:, 0], state[:, 1]
        speed = speed + self.dt * (0.1 * action[:, 0] - self.grip * (1.0 - position).sqrt())
        return torch.stack([position + self.dt * speed, speed], dim=1)

    def initial_states(self, batch, generator, dtype=torch.float32):
        positions = torch.tensor([STARTS[i % 4] for i in range(batch)], dtype=dtype, device=generator.device)
        speeds = 1.0 + 0.01 * torch.rand(batch, generator=generator, dtype=dtype, device=generator.device)
        return torch.stack([positions, speeds], dim=1)

    def terminated(self, state):
        return state[:, 0] > 1.0

    def running_cost(self, state, action, next_state):
        return 0.1 * action.square().sum(-1) + self.grip * (1.0 - state[:, 0]).log()

    def final_cost(self, state):
        return (state[:, 0] - 2.0).square() + state[:, 1].square()


class ByProducts(Cliff):
    """The same, large enough for products with its slopes to be the faster way."""

    dense_jacobians = False


def losses_one_by_one(system, act, states):
    """The loss of the episode from each of (B, 2) states, stepped alone until it ends, and its steps."""
    losses, steps = [], []
    for i in range(len(states)):
        state, loss, t = states[i : i + 1], states.new_zeros(1), 0
        while t < system.horizon and not system.terminated(state):
            action = system.bound(act(system.observe(state)))
            following = system.step(state, action)
            loss = loss + system.running_cost(state, action, following)
            state, t = following, t + 1
        losses.append(loss + system.final_cost(state))
        steps.append(t)
    return torch.cat(losses), steps
