"""Slopes of a controller by products, against its Jacobian and autograd; which of the two is taken when."""

import pytest
import torch
from recorded import Recorded
from torch import nn

from bptt_envs import System, Task
from bptt_envs.system import broadcast
from bptt_trainers import GRU, MLP, Gaussian
from bptt_trainers.directions import compiled
from bptt_trainers.directions.adjoint import AdjointEngine
from bptt_trainers.directions.augmented import augmented
from bptt_trainers.directions.autograd import AutogradEngine
from bptt_trainers.directions.compiled import CompiledEngine
from bptt_trainers.directions.controller_products import ByAutograd, Chain, is_chain
from bptt_trainers.directions.controller_tape import ControllerTape, RowOrder
from bptt_trainers.directions.linear_layer import LinearLayer, is_linear
from bptt_trainers.directions.policy_gradient import stacked_engine
from bptt_trainers.directions.probe import examine
from bptt_trainers.directions.rules import MODIFIED, MODIFIED_FORGETFUL, REGULAR, STOPPED, Feedback

PASSES = (STOPPED, REGULAR, MODIFIED, Feedback(physics=False, controller=True), MODIFIED_FORGETFUL)


class Advection(System):
    """A wave on a ring of n cells, which moves on and spreads, and m actuators."""

    parameters = ("speed",)

    def __init__(self, *, cells=6, actuators=4, speed=1.0, **settings):
        super().__init__(dt=0.1, **{"horizon": 5, "objective": "continuous", "max_action": 0.7} | settings)
        self.speed = speed
        self.state_shape, self.action_shape = (cells,), (actuators,)
        places = torch.arange(cells) / cells - torch.arange(actuators).unsqueeze(1) / actuators
        self.shapes = torch.exp(-8.0 * places.square()).double()

    def step(self, state, action):
        left, right = state.roll(1, -1), state.roll(-1, -1)
        return (
            state
            + self.dt * (broadcast(self.speed) * (left - state) + state * (right - 2 * state + left))
            + action @ self.shapes.to(state)
        )

    def initial_states(self, batch, generator, dtype=torch.float32):
        return torch.randn(batch, *self.state_shape, generator=generator, dtype=dtype)

    def state_cost(self, state):
        return state.square().mean(-1)

    def running_cost(self, state, action, next_state):
        return super().running_cost(state, action, next_state) + 0.01 * action.square().sum(-1)


class Sensors(Advection):
    """Sees some of the cells, and the product of two."""

    observation_shape = (3,)

    def observe(self, state):
        return torch.stack([state[:, 0], self.speed * state[:, 2], state[:, 0] * state[:, 3]], dim=-1)


SYSTEMS = {
    "dense": Advection(),
    "by pullback": Advection(cells=36),
    "sensors": Sensors(),
    "time": Task(Advection(cells=36), observe_time=True),
    "all of a task": Task(
        Sensors(),
        terminated=lambda state: state[:, 0] > 1.0,
        randomize={"speed": (0.5, 1.5)},
        show_parameters=True,
        observe_time=True,
    ),
}


def mlp(system, seed=0, kind=MLP, **settings):
    generator = torch.Generator().manual_seed(seed)
    return kind(system.observation_shape, system.action_shape, (5, 4), generator=generator, **settings).double()


def starts(system, batch=3, seed=1):
    return system.episode_start(system.initial_states(batch, torch.Generator().manual_seed(seed), torch.float64))


def assert_same(found, expected, tolerance=1e-10):
    for feedback, directions in expected.items():
        for name, direction in directions.items():
            assert (found[feedback][name] - direction).norm() <= tolerance * direction.norm() + 1e-14


@pytest.mark.parametrize("chained", [True, False])
@pytest.mark.parametrize("squash", [None, (-0.5, 0.6)])
@pytest.mark.parametrize("name", SYSTEMS)
def test_directions_by_products_are_those_of_autograd(name, squash, chained):
    system = SYSTEMS[name]
    controller, states = mlp(system, squash=squash), starts(system)
    _, expected = AutogradEngine(system, controller)(states, PASSES)
    for passes in (PASSES, (MODIFIED, STOPPED), (REGULAR,)):
        engine = AdjointEngine(system, controller, products=True, chained=chained, segment_samples=6)
        _, found = engine(states, passes)
        assert_same(found, {feedback: expected[feedback] for feedback in passes})


@pytest.mark.parametrize(("kind", "settings"), [(GRU, {}), (Gaussian, {}), (Gaussian, {"network": "gru"})])
def test_controllers_with_memory_and_noise_by_products(kind, settings):
    physics = SYSTEMS["dense"]
    controller = mlp(physics, kind=kind, **settings)
    system = augmented(physics, controller, entropy=0.1 if kind is Gaussian else 0.0)
    states, noise = system.episode_start(starts(physics)), None
    if controller.noise_shape:
        noise = torch.randn(5, 3, *controller.noise_shape, generator=torch.Generator().manual_seed(2)).double()
    _, expected = AutogradEngine(system, controller)(states, PASSES, noise)
    _, found = AdjointEngine(system, controller, products=True)(states, PASSES, noise)
    assert_same(found, expected)


def linear(inputs, outputs):
    return nn.Linear(inputs, outputs, dtype=torch.float64)


class Skip(nn.Module):
    """Adds to what a layer takes what the layer before it took."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = linear(6, 6), linear(6, 6), linear(6, 4)

    def forward(self, seen):
        once = self.first(seen).tanh()
        return self.last(once + self.second(once).tanh())


class Normed(nn.Module):
    """Shifts and scales what it sees, by constants."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(linear(6, 5), nn.Tanh(), linear(5, 4), nn.Sigmoid())

    def forward(self, seen):
        return 3.0 * self.inner((seen - 0.3) / 1.7) - 0.5


def twice():
    layer = linear(6, 6)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.ReLU(), linear(6, 4))


CONTROLLERS = {  # whether their layers look like a chain, and whether they are one
    "a layer": (lambda: linear(6, 4), True, True),
    "constants around": (Normed, True, True),
    "one layer called twice": (twice, True, True),
    "trained activation": (lambda: nn.Sequential(linear(6, 5), nn.PReLU().double(), linear(5, 4)), False, False),
    "layer norm": (
        lambda: nn.Sequential(linear(6, 5), nn.LayerNorm(5, elementwise_affine=False), linear(5, 4)),
        True,
        False,
    ),
    "softmax": (lambda: nn.Sequential(linear(6, 5), nn.Softmax(-1), linear(5, 4)), True, False),
    "skip": (Skip, False, False),
    "in place": (lambda: nn.Sequential(linear(6, 5), nn.ReLU(inplace=True), linear(5, 4)), False, False),
}


@pytest.mark.parametrize("name", CONTROLLERS)
def test_what_is_no_chain_of_layers_is_not_taken_for_one(name):
    make, looks, is_one = CONTROLLERS[name]
    torch.manual_seed(0)
    system, controller = SYSTEMS["dense"], make()
    states = starts(system)
    verdict = examine(system, controller, states)
    assert verdict.obstacle is None
    if verdict.by_layer:
        layers = [LinearLayer.of(one, {}) for one in controller.modules() if is_linear(one)]
        assert is_chain(ControllerTape(controller, system, states, layers)) == looks
    assert (verdict.chained and looks) == is_one
    _, expected = AutogradEngine(system, controller)(states, PASSES)
    engine = AdjointEngine(system, controller, by_layer=verdict.by_layer, chained=verdict.chained, products=True)
    assert_same(engine(states, PASSES)[1], expected)


@pytest.mark.parametrize("name", ["dense", "time"])
def test_members_of_a_stack_by_products_are_what_they_are_alone(name):
    system = SYSTEMS[name]
    controllers = [mlp(system, seed) for seed in range(2)]
    parameters = {
        n: torch.stack([c.get_parameter(n).detach() for c in controllers]) for n, _ in controllers[0].named_parameters()
    }
    states = torch.stack([starts(system, 30, seed) for seed in range(2)])
    stack = stacked_engine(system, controllers[0], states[0], "tests")
    for passes in ((MODIFIED, STOPPED), PASSES):
        _, together = stack(parameters, states, passes)
    assert isinstance(chosen(stack._engine[1], states.flatten(0, 1), PASSES), Chain)
    for i, controller in enumerate(controllers):
        _, alone = AutogradEngine(system, controller)(states[i], PASSES)
        assert_same({f: {n: one[i] for n, one in found.items()} for f, found in together.items()}, alone)


@pytest.mark.parametrize(("name", "chained"), [("dense", False), ("time", True)])
def test_programs_take_slopes_by_products(name, chained, monkeypatch):
    monkeypatch.setattr(compiled, "Program", Recorded)
    monkeypatch.setattr(compiled, "STEPS_BACK", 2)  # leaves a step over
    system = SYSTEMS[name]
    controller, states = mlp(system, squash=(-0.5, 0.6)), starts(system)
    engine = CompiledEngine(AdjointEngine(system, controller, products=True, chained=chained))
    for _ in range(2):
        _, expected = AutogradEngine(system, controller)(states, PASSES)
        assert_same(engine(states, PASSES)[1], expected)
        with torch.no_grad():  # other weights, the same program
            for parameter in controller.parameters():
                parameter.add_(0.1)


def chosen(engine, states, passes):
    tape = ControllerTape(engine.controller, engine.system, states, engine.layers, RowOrder(1, engine.members))
    return engine.slopes_of(tape, len(states), passes)


@pytest.mark.parametrize(
    ("actions", "batch", "passes", "by_products"),
    [  # the physics with dense Jacobians, with products, with an observation, too
        (1, 1024, (REGULAR, MODIFIED), ""),
        (1, 1024, (MODIFIED,), ""),
        (2, 8, (REGULAR, MODIFIED), ""),
        (2, 8, (MODIFIED,), "dense products sensors"),  # no pass goes through the controller: no step costs more
        (2, 64, (REGULAR, MODIFIED), "dense products"),
        (4, 8, (REGULAR, MODIFIED), "products"),
        (10, 8, (REGULAR, MODIFIED), "dense products sensors"),
        (2, 64, PASSES, ""),
    ],
)
def test_slopes_are_taken_in_the_way_that_is_faster(actions, batch, passes, by_products):
    systems = {
        "dense": Advection(actuators=actions),
        "products": Advection(cells=36, actuators=actions),
        "sensors": Sensors(cells=36, actuators=actions),
    }
    found = [
        name
        for name, system in systems.items()
        if isinstance(chosen(AdjointEngine(system, mlp(system)), starts(system, batch), passes), Chain)
    ]
    assert found == by_products.split()


def test_controllers_that_are_no_chain_need_more_to_be_run_again_at_each_step():
    system = SYSTEMS["dense"]
    engine = AdjointEngine(system, Skip())
    small, large = (chosen(engine, starts(system, batch), (REGULAR,)) for batch in (64, 128))
    assert isinstance(small, ControllerTape)
    assert isinstance(large, ByAutograd)
