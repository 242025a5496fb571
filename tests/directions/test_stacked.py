"""A stack of controllers does what each of its members does alone."""

import pytest
import torch
from torch import nn

from bptt_envs.systems import CartPole, Integrator, MultiPole
from bptt_trainers import MLP, ConvNet, policy_gradient
from bptt_trainers.directions.policy_gradient import stacked_engine
from bptt_trainers.directions.rules import MODIFIED, REGULAR, STOPPED
from bptt_trainers.directions.stacked import StackedController, StackedEngine


def stacked_directions(system, controller, parameters, states, passes, **options):
    """Mean losses and directions of all members from the same start states."""
    members = len(next(iter(parameters.values())))
    engine = StackedEngine(system, controller, **options)
    losses, directions = engine(parameters, states.expand(members, *states.shape), passes)
    return losses.mean(1), directions


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


class Shared(nn.Module):
    """Uses the weight of a linear layer outside of the layer too."""

    def __init__(self, generator):
        super().__init__()
        self.inner = MLP((1,), (1,), (4,), generator=generator)

    def forward(self, observation):
        return self.inner(observation) + observation * self.inner.layers[0].weight.sum()


class Gain(nn.Module):
    """Has a parameter that no linear layer holds."""

    def __init__(self, generator):
        super().__init__()
        self.inner = MLP((1,), (1,), (4,), generator=generator)
        self.gain = nn.Parameter(torch.rand(1, generator=generator))

    def forward(self, observation):
        return self.gain * self.inner(observation)


@pytest.mark.parametrize("kind", [Shared, Gain])
def test_a_controller_that_is_more_than_linear_layers_runs_by_vmap(kind):
    system = Integrator(horizon=6)
    controllers, stacked = members(kind, 3)
    states = system.initial_states(4, torch.Generator().manual_seed(0), torch.float64)
    engine = stacked_engine(system, controllers[0], states, "tests")
    losses, directions = engine(stacked, states.expand(3, *states.shape), PASSES)
    for i, controller in enumerate(controllers):
        for rule, feedback in zip("RMS", PASSES, strict=True):
            alone = policy_gradient(system, controller, states, rule, "autograd")
            assert float(losses[i].mean()) == pytest.approx(float(alone.loss), rel=1e-12)
            for name, expected in alone.directions.items():
                torch.testing.assert_close(directions[feedback][name][i], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("by_layer", [True, False])
def test_each_member_meets_start_states_of_its_own(by_layer):
    system = CartPole(horizon=7)
    controllers, stacked = members(lambda g: MLP((4,), (1,), (8, 5), generator=g), 3)
    generator = torch.Generator().manual_seed(0)
    states = torch.stack([system.initial_states(4, generator, torch.float64) for _ in controllers])
    engine = StackedEngine(system, controllers[0], by_layer=by_layer)
    losses, directions = engine(stacked, states, (REGULAR,))
    torch.testing.assert_close(engine.losses(stacked, states), losses)
    for i, controller in enumerate(controllers):
        alone = policy_gradient(system, controller, states[i], "R")
        assert float(losses[i].mean()) == pytest.approx(float(alone.loss), rel=1e-12)
        for name, expected in alone.directions.items():
            torch.testing.assert_close(directions[REGULAR][name][i], expected, rtol=1e-10, atol=1e-12)


def test_an_engine_takes_other_parameters_and_another_number_of_members():
    system = CartPole(horizon=5)
    controllers, stacked = members(lambda g: MLP((4,), (1,), (8,), generator=g), 4)
    states = system.initial_states(3, torch.Generator().manual_seed(0), torch.float64)
    engine = StackedEngine(system, controllers[0])
    for chosen in ([0, 1, 2], [3, 0, 1], [2]):
        parameters = {name: value[chosen] for name, value in stacked.items()}
        losses, _ = engine(parameters, states.expand(len(chosen), *states.shape), (REGULAR,))
        for i, member in enumerate(chosen):
            alone = policy_gradient(system, controllers[member], states, "R")
            assert float(losses[i].mean()) == pytest.approx(float(alone.loss), rel=1e-12)


def test_plain_linear_layers_run_as_one():
    controllers, stacked = members(lambda g: MLP((4,), (1,), (8,), generator=g), 2)
    assert StackedController(controllers[0], stacked).by_layer
    for part in controllers[0].layers[0].parameters():
        part.requires_grad_(False)
    trained = {name: value for name, value in stacked.items() if not name.startswith("layers.0.")}
    stack = StackedController(controllers[0], trained)
    assert stack.by_layer
    observation = torch.randn(6, 4, dtype=torch.float64)
    for i, seen in enumerate(observation.chunk(2)):
        named = {name: value[i] for name, value in trained.items()}
        torch.testing.assert_close(
            stack(observation).chunk(2)[i], torch.func.functional_call(controllers[0], named, (seen,))
        )
