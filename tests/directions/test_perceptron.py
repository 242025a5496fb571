"""Perceptrons in closed form: the numbers of the module itself, and slopes that are autograd's."""

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
import torch
from torch import nn

from bptt_envs.systems import CartPole, MultiPole, QuantumControl
from bptt_trainers import MLP, ConvNet, Gaussian, policy_gradient
from bptt_trainers.controllers.normalized import Normalized
from bptt_trainers.directions import chosen_engine, perceptron
from bptt_trainers.directions.adjoint import AdjointEngine
from bptt_trainers.directions.autograd import AutogradEngine
from bptt_trainers.directions.convolutions import Convolutions
from bptt_trainers.directions.perceptron import Perceptron
from bptt_trainers.directions.policy_gradient import choose_engine
from bptt_trainers.directions.rollout import rollout
from bptt_trainers.directions.rules import MODIFIED, REGULAR, STOPPED, Feedback
from bptt_trainers.directions.stacked import StackedController, StackedEngine

PASSES = (REGULAR, MODIFIED)


def mlp(system, hidden=(7, 6), seed=0, **settings):
    generator = torch.Generator().manual_seed(seed)
    return MLP(system.observation_shape, system.action_shape, hidden, generator=generator, **settings)


def starts(system, batch=4, dtype=torch.float32):
    return system.initial_states(batch, torch.Generator().manual_seed(1), dtype)


def assert_same(found, expected, tolerance=1e-10):
    for feedback, directions in expected.items():
        for name, direction in directions.items():
            assert (found[feedback][name] - direction).norm() <= tolerance * direction.norm() + 1e-14


@pytest.mark.parametrize("settings", [{}, {"bias": False}, {"squash": (-3.0, 4.0)}, {"hidden": ()}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("inference", [True, False])
def test_a_rollout_in_closed_form_is_the_modules_own_to_the_last_bit(settings, dtype, inference):
    system = MultiPole(horizon=5, observation="cos_sin")
    controller, states = mlp(system, **settings).to(dtype), starts(system, dtype=dtype)
    engine = AdjointEngine(system, controller, inference=inference)
    assert engine.perceptron is not None
    found, expected = engine.rollout(states), rollout(system, controller, states)
    assert torch.equal(found.states, expected.states)
    assert torch.equal(found.actions, expected.actions)


def test_a_rollout_of_many_perceptrons_is_their_modules_own():
    system = CartPole(horizon=4)
    parameters = {n: torch.stack([p, p + 0.1]).detach() for n, p in mlp(system).named_parameters()}
    stack, states = StackedController(mlp(system), parameters), starts(system, 6)
    engine = AdjointEngine(system, stack, members=2)
    assert engine.perceptron is not None
    torch.testing.assert_close(engine.rollout(states).states, rollout(system, stack, states).states)


@pytest.mark.parametrize("settings", [{}, {"bias": False}, {"squash": (-3.0, 4.0)}, {"hidden": ()}])
@pytest.mark.parametrize("observation", ["state", "cos_sin"])
def test_directions_from_what_was_kept_are_those_of_autograd_and_of_a_second_run(settings, observation, monkeypatch):
    system = MultiPole(horizon=6, observation=observation, objective="continuous")
    controller, states = mlp(system, **settings).double(), starts(system, dtype=torch.float64)
    _, expected = AutogradEngine(system, controller)(states, (*PASSES, STOPPED))
    engine = AdjointEngine(system, controller, segment_samples=8)
    assert_same(engine(states, (*PASSES, STOPPED))[1], expected)
    assert_same(engine.backward(rollout(system, controller, states), (*PASSES, STOPPED)), expected)
    monkeypatch.setattr(perceptron, "KEPT_NUMBERS", 1)
    assert_same(engine(states, (*PASSES, STOPPED))[1], expected)


@pytest.mark.parametrize("points", [16, 17])  # where the last position meets no patch, and where all do
@pytest.mark.parametrize("squash", [None, (-3.0, 4.0)])
def test_convolutions_in_closed_form_go_the_way_of_autograd_alone_and_stacked(points, squash):
    system, generator = QuantumControl(n_points=points, horizon=4), torch.Generator().manual_seed(0)
    controller = ConvNet((points, 2), (1,), (5, 4), squash=squash, generator=generator).double()
    states = starts(system, dtype=torch.float64)
    engine = AdjointEngine(system, controller)
    assert isinstance(engine.perceptron, Convolutions)
    losses, expected = AutogradEngine(system, controller)(states, PASSES)
    found, directions = engine(states, PASSES)
    torch.testing.assert_close(found, losses)
    assert_same(directions, expected)
    assert_same(engine.backward(rollout(system, controller, states), PASSES), expected)
    parameters = {n: torch.stack([p, p]).detach() for n, p in controller.named_parameters()}
    found, directions = StackedEngine(system, controller)(parameters, torch.stack([states, states]), PASSES)
    torch.testing.assert_close(found, torch.stack([losses, losses]))
    for member in range(2):
        assert_same({f: {n: one[member] for n, one in d.items()} for f, d in directions.items()}, expected)


def test_convolutions_with_several_actions_are_not_taken_in_closed_form():
    system = QuantumControl(n_points=16, horizon=2)
    assert AdjointEngine(system, ConvNet((16, 2), (1,)), products=True).perceptron is None
    assert Perceptron.of(ConvNet((16, 2), (2,))) is None


def test_what_was_kept_is_of_one_trajectory_and_one_set_of_weights():
    system = CartPole(horizon=5)
    controller, states = mlp(system).double(), starts(system, dtype=torch.float64)
    engine = AdjointEngine(system, controller)
    trajectory = engine.rollout(states)
    expected = engine.backward(trajectory, PASSES)
    engine.rollout(states + 0.5)  # writes over what was kept
    assert_same(engine.backward(trajectory, PASSES), expected)
    latest = engine.rollout(states)
    with torch.no_grad():
        controller.layers[0].weight.mul_(1.1)
    engine.backward(latest, PASSES)
    assert float(engine.deviation) > 1e-3  # the controller was run again, and is another one


def chain(system, kind):
    sizes = (*system.observation_shape, 6, 5)
    layers = [one for n, m in pairwise(sizes) for one in (nn.Linear(n, m), kind())]
    return nn.Sequential(*layers, nn.Linear(5, *system.action_shape))


def normalized(system):
    controller = Normalized(system.observation_shape, system.action_shape, (6, 5), squash=(-3.0, 4.0))
    controller.normalizer.gather(2.0 * system.observe(starts(system, 9)) + 0.3)
    return controller


@pytest.mark.parametrize("kind", ["tanh", "relu", "normalized"])
@pytest.mark.parametrize("products", [True, False])
def test_chains_of_torchs_layers_and_what_is_behind_a_normaliser_are_perceptrons_too(kind, products):
    system = MultiPole(horizon=5, observation="cos_sin", objective="continuous")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = {"tanh": lambda: chain(system, nn.Tanh), "relu": lambda: chain(system, nn.ReLU)}
        controller = made.get(kind, lambda: normalized(system))().double()
    states = starts(system, dtype=torch.float64)
    engine = AdjointEngine(system, controller, products=products)
    assert engine.perceptron is not None
    assert torch.equal(engine.rollout(states).states, rollout(system, controller, states).states)
    _, expected = AutogradEngine(system, controller)(states, (*PASSES, STOPPED))
    assert_same(engine(states, (*PASSES, STOPPED))[1], expected)


class Derived(MLP):
    def forward(self, observation):
        return 2.0 * super().forward(observation)


def test_what_may_do_something_else_is_run_as_it_is():
    system = CartPole()
    assert Perceptron.of(mlp(system)) is not None
    others = [mlp(system) for _ in range(4)]
    others[0].register_forward_hook(lambda *_: None)
    others[1].layers[1] = nn.Tanh()
    others[2].layers[0].register_forward_pre_hook(lambda *_: None)
    others[3].layers[2].forward = lambda x: x[:, :6]
    others.append(Derived(system.observation_shape, system.action_shape))
    others.append(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1)))
    others.append(nn.Sequential(nn.Linear(4, 1), nn.Tanh()))
    assert [Perceptron.of(one) for one in others] == [None] * len(others)
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert Perceptron.of(mlp(system)) is None
    finally:
        handle.remove()


FINAL = [(STOPPED,), (STOPPED, MODIFIED), (Feedback(physics=True, controller=True, every=4),), (REGULAR,)]


@pytest.mark.parametrize("passes", FINAL)
@pytest.mark.parametrize("objective", ["final", "continuous"])
def test_steps_that_no_slope_reaches_are_left_out_and_change_nothing(passes, objective):
    system = CartPole(horizon=11, objective=objective)
    controller, states = mlp(system).double(), starts(system, dtype=torch.float64)
    _, expected = AutogradEngine(system, controller)(states, passes)
    assert_same(AdjointEngine(system, controller, segment_samples=12)(states, passes)[1], expected)


def test_auto_leaves_one_pass_over_a_large_batch_to_autograd_where_layers_would_run_again(monkeypatch):
    system = CartPole(horizon=3)
    states, noisy = starts(system), Gaussian(system.observation_shape, system.action_shape, (6, 5))

    def engines(controller, **settings):
        return [policy_gradient(system, controller, states, rule, **settings).engine for rule in "RMC"]

    assert engines(noisy) == ["adjoint"] * 3
    monkeypatch.setattr(chosen_engine, "MOST_RUN_AGAIN", 4 * 11)
    assert engines(noisy) == ["autograd", "autograd", "adjoint"]
    assert engines(noisy, engine="adjoint") == engines(mlp(system)) == ["adjoint"] * 3
    assert "one pass" in policy_gradient(system, noisy, states, "R").reason
    chosen = choose_engine(system, noisy, states).engine
    assert [(chosen(states, passes), chosen.name)[1] for passes in ((REGULAR,), PASSES)] == ["autograd", "adjoint"]
    monkeypatch.setattr(chosen_engine, "KEPT_NUMBERS", 3 * 4 * 11)  # what autograd may keep
    assert engines(noisy) == ["adjoint"] * 3


@pytest.mark.parametrize("part", ["head", "squash"])
def test_of_a_perceptron_with_parameters_beside_its_layers_the_directions_are_autograds(part):
    class Bent(nn.Module):
        def __init__(self):
            super().__init__()
            self.reach = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

        def forward(self, x):
            return self.reach * torch.tanh(x)

    system = CartPole(horizon=5)
    controller, states = mlp(system).double(), starts(system, dtype=torch.float64)
    controller.register_module(part, Bent())  # the one is not called, the other is
    _, expected = AutogradEngine(system, controller)(states, PASSES)
    assert_same(AdjointEngine(system, controller)(states, PASSES)[1], expected)


class Marked(CartPole):
    """A cost at the states of one step alone; none, not one of zeros, where no sample is at one of them."""

    marks = torch.zeros(0)

    def running_cost(self, state, action, next_state):
        near = torch.cdist(state, self.marks).amin(1) < 1e-6
        return torch.where(near, state.square().sum(1), 0.0) if near.any() else state.new_zeros(len(state))


def test_a_cost_that_some_steps_have_reaches_the_step_before_them():
    system = Marked(horizon=11, objective="final")
    controller, states = mlp(system).double(), starts(system, dtype=torch.float64)
    system.marks = rollout(CartPole(horizon=11), controller, states).states[7]  # the first of a segment of 3
    _, expected = AutogradEngine(system, controller)(states, (STOPPED,))
    assert_same(AdjointEngine(system, controller, segment_samples=12)(states, (STOPPED,))[1], expected)


def test_threads_on_one_engine_do_not_take_each_others_activations():
    turns = threading.Barrier(2)

    class InTurns(CartPole):
        """Of which two rollouts make every step together."""

        def observe(self, state):
            if len(state) == 4:  # that of a rollout
                turns.wait(60)
            return super().observe(state)

    system = InTurns(horizon=5)
    engine = AdjointEngine(system, mlp(system).double())
    states = starts(CartPole(), dtype=torch.float64)

    def directions(scale):
        return engine.backward(engine.rollout(scale * states), PASSES)

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(directions, (1.0, 1.5) * 20))
    plain = AutogradEngine(CartPole(horizon=5), engine.controller)
    expected = [plain(scale * states, PASSES)[1] for scale in (1.0, 1.5)]
    for one, wanted in zip(found, expected * 20, strict=True):
        assert_same(one, wanted)


def test_a_copy_of_an_engine_starts_without_activations():
    system = CartPole(horizon=4)
    engine, states = AdjointEngine(system, mlp(system)), starts(system)
    expected = engine(states, PASSES)[1]
    copy = pickle.loads(pickle.dumps(engine))
    assert len(pickle.dumps(engine.activations)) < 200
    assert_same(copy(states, PASSES)[1], expected)


def test_directions_within_inference_mode_are_refused():
    system = CartPole(horizon=4)
    with torch.inference_mode(), pytest.raises(RuntimeError, match="inference_mode"):
        AdjointEngine(system, mlp(system))(starts(system), PASSES)
