"""Jacobians of a step: closed forms against autograd, and both against finite differences."""

import pytest
import torch

from bptt_envs import System
from bptt_envs.systems import CartPole, Integrator, MultiPole

SYSTEMS = [Integrator(), CartPole(dt=0.05)] + [
    MultiPole(n_poles=n_poles, dynamics=dynamics, dt=0.05) for dynamics in ("paper", "exact") for n_poles in range(1, 6)
]


class Rotator(System):
    """A state and an action with more than one dimension, and one action component that does nothing."""

    state_shape = (2, 3)
    action_shape = (2, 2)

    def __init__(self):
        super().__init__(horizon=3, dt=0.1)

    def step(self, state, action):
        first, second = state[:, 0], state[:, 1]
        turned = torch.stack([first + self.dt * second.sin(), second * first.cos()], dim=1)
        return turned + self.dt * torch.nn.functional.pad(action[:, :, :1], (0, 2)) * state

    def initial_states(self, batch, generator, dtype=torch.float32):
        return torch.randn(batch, 2, 3, generator=generator, dtype=dtype)


class Constant(Rotator):
    """A step on which only part of the state has an influence, and the action none."""

    def step(self, state, action):
        return torch.stack([state[:, 0].square(), torch.ones_like(state[:, 1])], dim=1)


def name(system):
    return "-".join([type(system).__name__, *(str(getattr(system, k, "")) for k in ("dynamics", "n_poles"))])


@pytest.fixture(params=[*SYSTEMS, Rotator(), Constant()], ids=name)
def system(request):
    return request.param


def random_batch(system, size=6):
    """States of any angle and velocity, and large actions."""
    generator = torch.Generator().manual_seed(0)
    states = 3.0 * torch.randn(size, *system.state_shape, generator=generator, dtype=torch.float64)
    return states, 10.0 * torch.randn(size, *system.action_shape, generator=generator, dtype=torch.float64)


def test_linearize_equals_the_autograd_default(system):
    states, actions = random_batch(system)
    for ours, defined in zip(system.linearize(states, actions), System.linearize(system, states, actions), strict=True):
        torch.testing.assert_close(ours, defined, rtol=1e-12, atol=1e-12)


def test_linearize_equals_finite_differences(system):
    states, actions = random_batch(system)

    def differences(function, x, width=1e-6):
        columns = []
        for i in range(x[0].numel()):
            shift = torch.zeros_like(x).flatten(1)
            shift[:, i] = width
            shift = shift.view_as(x)
            columns.append((function(x + shift) - function(x - shift)).flatten(1) / (2 * width))
        return torch.stack(columns, dim=-1)

    by_state, by_action = system.linearize(states, actions)
    expected = differences(lambda x: system.step(x, actions), states)
    torch.testing.assert_close(by_state, expected, rtol=1e-6, atol=1e-6)
    expected = differences(lambda u: system.step(states, u), actions)
    torch.testing.assert_close(by_action, expected, rtol=1e-6, atol=1e-6)


def test_linearize_leaves_no_graph_and_works_without_gradients(system):
    states, actions = random_batch(system)
    with_grad = system.linearize(states.requires_grad_(), actions)
    with torch.no_grad():
        without = system.linearize(states, actions)
    assert all(torch.equal(a, b) for a, b in zip(with_grad, without, strict=True))
    assert states.grad is None
