"""Jacobians of a step and products with them: closed forms against autograd, and both against finite differences."""

import pytest
import torch

from bptt_envs import System
from bptt_envs.systems import (
    Burgers,
    CartPole,
    ChainedPendulum,
    Guidance,
    Integrator,
    KuramotoSivashinsky,
    MultiPole,
    Quadrotor,
    QuantumControl,
)

SYSTEMS = [Integrator(), CartPole(dt=0.05), QuantumControl(n_points=8), QuantumControl(n_points=16, target=1)] + [
    MultiPole(n_poles=n_poles, dynamics=dynamics, dt=0.05) for dynamics in ("paper", "exact") for n_poles in range(1, 6)
]
SYSTEMS += [ChainedPendulum(n_links=n_links, joint_damping=0.1 * (n_links % 2)) for n_links in range(1, 7)]
SYSTEMS += [Quadrotor()]
SYSTEMS += [Burgers(n_cells=6, boundary=boundary, n_actuators=None, substeps=2) for boundary in ("periodic", "walled")]
SYSTEMS += [KuramotoSivashinsky(n_points=9, length=5.0)]
SYSTEMS += [Guidance(), Guidance(n_drivers=1, n_evaders=1), Guidance(n_drivers=3, n_evaders=2, flocking="cohesive")]


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
    return "-".join([type(system).__name__, *(str(getattr(system, k, "")) for k in ("dynamics", "n_poles", "n_links"))])


@pytest.fixture(params=[*SYSTEMS, Rotator(), Constant()], ids=name)
def system(request):
    return request.param


def random_batch(system, size=6):
    """States of any angle and velocity, and large actions."""
    generator = torch.Generator().manual_seed(0)
    states = 3.0 * torch.randn(size, *system.state_shape, generator=generator, dtype=torch.float64)
    return states, 10.0 * torch.randn(size, *system.action_shape, generator=generator, dtype=torch.float64)


def assert_close(ours, defined):
    for one, other in zip(ours, defined, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_linearize_equals_the_autograd_default(system):
    states, actions = random_batch(system)
    n = system.state_size
    units = torch.eye(n, dtype=states.dtype).unsqueeze(1).expand(n, len(states), n)
    defined = System.pullback(system, states, actions)(slice(None), units)
    assert_close(system.linearize(states, actions), [rows.transpose(0, 1) for rows in defined])


@pytest.mark.parametrize("rows", [slice(None), slice(2, 5), slice(0, 1)], ids=["all", "some", "first"])
def test_pullback_equals_the_autograd_default(system, rows):
    states, actions = random_batch(system)
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(3, len(states[rows]), system.state_size, generator=generator, dtype=states.dtype)
    assert_close(
        system.pullback(states, actions)(rows, vectors), System.pullback(system, states, actions)(rows, vectors)
    )


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


def test_pullback_leaves_no_graph_and_works_without_gradients(system):
    states, actions = (x.requires_grad_() for x in random_batch(system))
    vectors = torch.ones(2, len(states), system.state_size, dtype=states.dtype)
    with_grad = system.pullback(states, actions)(slice(None), vectors)
    with torch.no_grad():
        without = system.pullback(states, actions)(slice(None), vectors)
    assert all(torch.equal(a, b) for a, b in zip(with_grad, without, strict=True))
    assert not any(x.requires_grad for x in with_grad)
    assert states.grad is actions.grad is None
