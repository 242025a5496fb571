"""A stack of controllers does what each of its members does alone."""

import pytest
import torch

from bptt_envs.systems import CartPole, Integrator, MultiPole
from bptt_trainers import MLP, ConvNet, policy_gradient
from bptt_trainers.rules import MODIFIED, REGULAR, STOPPED
from bptt_trainers.stacked import stacked_directions

PASSES = (REGULAR, MODIFIED, STOPPED)
SYSTEMS = [
    Integrator(objective="continuous"),
    CartPole(horizon=20, max_force=2.0),
    MultiPole(n_poles=3, objective="continuous", horizon=10),
]


def members(make, count):
    """Controllers of different weights, and their parameters stacked."""
    controllers = [make(torch.Generator().manual_seed(seed)).double() for seed in range(count)]
    names = [name for name, _ in controllers[0].named_parameters()]
    return controllers, {n: torch.stack([dict(c.named_parameters())[n] for c in controllers]) for n in names}


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: type(system).__name__)
def test_each_member_has_the_loss_and_directions_that_it_has_alone(system):
    controllers, stacked = members(
        lambda g: MLP(system.observation_shape, system.action_shape, (12, 7), generator=g), 4
    )
    states = system.initial_states(5, torch.Generator().manual_seed(0), torch.float64)
    losses, directions = stacked_directions(system, controllers[0], stacked, states, PASSES)
    for i, controller in enumerate(controllers):
        for rule, feedback in zip("RMS", PASSES, strict=True):
            alone = policy_gradient(system, controller, states, rule, "autograd")
            assert float(losses[i]) == pytest.approx(float(alone.loss), rel=1e-12)
            for name, expected in alone.directions.items():
                torch.testing.assert_close(directions[feedback][name][i], expected, rtol=1e-10, atol=1e-12)


def test_a_stack_of_one_is_the_controller():
    system = CartPole(horizon=5)
    controllers, stacked = members(lambda g: MLP((4,), (1,), (8,), generator=g), 1)
    states = system.initial_states(3, torch.Generator().manual_seed(0), torch.float64)
    _, directions = stacked_directions(system, controllers[0], stacked, states, (REGULAR,))
    alone = policy_gradient(system, controllers[0], states, "R").directions
    assert all(torch.allclose(directions[REGULAR][name][0], alone[name], rtol=1e-10) for name in alone)


def test_neither_the_controller_nor_the_given_parameters_are_changed():
    system = Integrator()
    controllers, stacked = members(lambda g: MLP((1,), (1,), (4,), generator=g), 2)
    before = {name: value.clone() for name, value in stacked.items()}
    own = {name: value.clone() for name, value in controllers[0].named_parameters()}
    stacked_directions(system, controllers[0], stacked, torch.zeros(2, 1, dtype=torch.float64), (REGULAR,))
    assert all(torch.equal(stacked[name], value) for name, value in before.items())
    for name, value in controllers[0].named_parameters():
        assert torch.equal(value, own[name])
        assert value.grad is None


def test_convolutions_stack():
    system = Convolved()
    controllers, stacked = members(lambda g: ConvNet((9, 2), (1,), (4, 3), generator=g), 3)
    states = system.initial_states(4, torch.Generator().manual_seed(0), torch.float64)
    _, directions = stacked_directions(system, controllers[0], stacked, states, (MODIFIED,))
    for i, controller in enumerate(controllers):
        for name, expected in policy_gradient(system, controller, states, "M", "autograd").directions.items():
            torch.testing.assert_close(directions[MODIFIED][name][i], expected, rtol=1e-10, atol=1e-12)


class Convolved(Integrator):
    """The integrator, seen on a line of 9 points with two channels."""

    observation_shape = (9, 2)

    def observe(self, state):
        points = torch.linspace(-1.0, 1.0, 9, dtype=state.dtype)
        return torch.stack([(state - points).cos(), (state - points).sin()], dim=-1)
