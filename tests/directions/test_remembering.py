"""Controllers with memory: every pass of both engines is what its definition says, alone, stacked and compiled."""

import copy
import shutil

import pytest
import torch
from torch import nn

from bptt_envs import Task
from bptt_envs.program import CACHE_VARIABLE
from bptt_envs.systems import CartPole, Guidance, Integrator, QuantumControl
from bptt_trainers import GRU, LSTM, RULES, Controller, losses, policy_gradient, rollout
from bptt_trainers.directions.policy_gradient import choose_engine, stacked_engine
from bptt_trainers.directions.rules import MODIFIED, REGULAR, STOPPED, Feedback

FORGETFUL = RULES["M without memory"].passes[0]
PASSES = (REGULAR, MODIFIED, STOPPED, FORGETFUL, Feedback(physics=False, controller=False, memory=True))
SYSTEMS = {
    "pole": lambda: CartPole(horizon=6, max_force=0.4, objective="continuous"),
    "positions": lambda: CartPole(horizon=6, observation="positions"),
    "timed": lambda: Task(CartPole(horizon=5, objective="continuous"), observe_time=True),
    "guidance": lambda: Guidance(horizon=3, n_drivers=1, n_evaders=1),
    "quantum": lambda: QuantumControl(horizon=3, n_points=20),
}


class Own(nn.Module):
    """A module of a user's: its memory has two axes, and its actions hang on it."""

    memory_shape = (2, 3)

    def __init__(self, system, generator):
        super().__init__()
        size = system.observe(system.initial_states(1, generator)).numel()
        self.inner = nn.Linear(size + 6, 6)
        self.outer = nn.Linear(6, system.action_size)
        self.shape = system.action_shape
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3, generator=generator)

    def forward(self, observation, memory):
        memory = torch.tanh(self.inner(torch.cat([observation.flatten(1), memory.flatten(1)], 1)))
        return self.outer(memory).view(-1, *self.shape), memory.view(-1, 2, 3)


def made(kind, system):
    generator = torch.Generator().manual_seed(0)
    if kind == "own":
        return Own(system, generator).double()
    cells = {"gru": GRU, "lstm": LSTM}[kind]
    controller = cells(system.observation_shape, system.action_shape, (4, 3), generator=generator).double()
    with torch.no_grad():
        for parameter in controller.parameters():
            parameter.mul_(3.0)  # so that much is fed back
    return controller


def by_definition(system, controller, states, feedback):
    """The direction for the mean loss, unrolled, with detach where the pass has no path."""
    x, h = states, states.new_zeros(len(states), *controller.memory_shape)
    total = 0.0
    for _ in range(system.horizon):
        seen = system.observe(x if feedback.controller else x.detach())
        u, h = controller(seen, h if feedback.memory else h.detach())
        u = system.bound(u)
        following = system.step(x if feedback.physics else x.detach(), u)
        total = total + system.running_cost(x, u, following)
        x = following
    loss = (total + system.final_cost(x)).mean()
    return torch.autograd.grad(loss, list(controller.parameters()), materialize_grads=True, allow_unused=True)


def assert_same(found, expected, tolerance=1e-10):
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() <= tolerance * float(other.norm()) + 1e-14


@pytest.mark.parametrize("kind", ["gru", "lstm", "own"])
@pytest.mark.parametrize("name", SYSTEMS)
def test_both_engines_are_the_definition(name, kind):
    system = SYSTEMS[name]()
    controller = made(kind, system)
    states = system.initial_states(3, torch.Generator().manual_seed(1), torch.float64)
    for engine in ("autograd", "adjoint"):
        _, directions = choose_engine(system, controller, states, engine).engine(states, PASSES)
        for feedback in PASSES:
            assert_same(directions[feedback].values(), by_definition(system, controller, states, feedback))


def test_the_passes_are_unlike():
    system = CartPole(horizon=10, dt=0.05, objective="continuous")
    controller = made("gru", system)
    states = system.initial_states(3, torch.Generator().manual_seed(1), torch.float64)
    found = [torch.cat([one.flatten() for one in by_definition(system, controller, states, f)]) for f in PASSES]
    assert all((one - other).norm() > 1e-2 * one.norm() for i, one in enumerate(found) for other in found[:i])


@pytest.mark.parametrize("rule", RULES)
def test_the_default_engine_is_the_fast_one(rule):
    system = SYSTEMS["pole"]()
    controller = made("gru", system)
    states = system.initial_states(3, torch.Generator().manual_seed(1), torch.float64)
    found = policy_gradient(system, controller, states, rule)
    expected = policy_gradient(system, controller, states, rule, "autograd")
    assert found.engine == "adjoint"
    assert found.directions.keys() == dict(controller.named_parameters()).keys()
    torch.testing.assert_close(found.loss, expected.loss)
    assert_same(found.directions.values(), expected.directions.values())


@pytest.mark.parametrize("kind", ["gru", "own"])
def test_a_stack_is_its_members(kind):
    system = SYSTEMS["positions"]()
    members = [made(kind, system) for _ in range(2)]
    with torch.no_grad():
        for parameter in members[1].parameters():
            parameter.add_(0.1)
    states = torch.stack([system.initial_states(3, torch.Generator().manual_seed(i), torch.float64) for i in (1, 2)])
    engine = stacked_engine(system, members[0], states[0], "these")
    parameters = {
        name: torch.stack([dict(member.named_parameters())[name].detach() for member in members])
        for name, _ in members[0].named_parameters()
    }
    found_losses, found = engine(parameters, states, (REGULAR, MODIFIED))
    torch.testing.assert_close(engine.losses(parameters, states), found_losses)
    for i, member in enumerate(members):
        expected_losses, expected = choose_engine(system, member, states[i], "autograd").engine(
            states[i], (REGULAR, MODIFIED)
        )
        torch.testing.assert_close(found_losses[i], expected_losses)
        for feedback in (REGULAR, MODIFIED):
            assert_same([one[i] for one in found[feedback].values()], expected[feedback].values())


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_it_is_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    system = CartPole(horizon=2, max_force=0.4)
    controller = made("gru", system)
    states = system.initial_states(3, torch.Generator().manual_seed(1), torch.float64)
    expected = choose_engine(system, controller, states).engine(states, (REGULAR, MODIFIED))
    found = choose_engine(system, controller, states, compile=True).engine(states, (REGULAR, MODIFIED))
    torch.testing.assert_close(found[0], expected[0])
    for feedback, directions in expected[1].items():
        assert_same(found[1][feedback].values(), directions.values())


def test_a_rollout_keeps_what_was_remembered():
    system = SYSTEMS["pole"]()
    controller = made("own", system)
    states = system.initial_states(3, torch.Generator().manual_seed(1), torch.float64)
    trajectory = rollout(system, controller, states)
    x, h = states, torch.zeros(3, 2, 3, dtype=torch.float64)
    for t in range(system.horizon):
        torch.testing.assert_close((trajectory.states[t], trajectory.memories[t]), (x, h))
        u, h = controller(system.observe(x), h)
        torch.testing.assert_close(trajectory.actions[t], u)
        x = system.step(x, system.bound(u))
    assert losses(system, trajectory).shape == (3,)
    assert rollout(system, GRU((4,), (1,)), states.float(), 2).memories.shape == (3, 3, 32)


def test_settings_that_change_are_noticed():
    system = SYSTEMS["pole"]()
    controller = made("gru", system)
    states = system.initial_states(3, torch.Generator().manual_seed(1), torch.float64)
    engine = choose_engine(system, controller, states).engine
    for bound, horizon in ((0.4, 6), (0.01, 6), (None, 4)):
        system.max_action, system.horizon = bound, horizon
        _, directions = engine(states, (REGULAR,))
        assert engine.name == "adjoint"
        assert_same(directions[REGULAR].values(), by_definition(system, controller, states, REGULAR))


@pytest.mark.parametrize("engine", ["auto", "autograd"])
@pytest.mark.parametrize(
    ("forward", "got"),
    [
        (lambda self, o, h: self.layer(o), r"; got \([36], 1\) for B = [36]"),
        (lambda self, o, h: (self.layer(o), h[:, :2]), r"; got \([36], 1\) and \([36], 2\)"),
        (lambda self, o, h: (self.layer(o), h, h), r"; got \([36], 1\) and \([36], 4\) and \([36], 4\)"),
        (lambda self, o, h: (self.layer(o), None), r"; got \([36], 1\) and NoneType"),
        (lambda self, o, h: (self.layer(o), h.double()), "all of one dtype; got torch.float32 and torch.float64"),
        (lambda self, o: self.layer(o), r": forward\(observation, memory\) -> \(action, memory\)\. It takes no memory"),
    ],
)
def test_answers_of_other_shapes_are_refused_in_words(engine, forward, got):
    kind = type("Own", (nn.Module,), {"memory_shape": (4,), "forward": forward})
    controller = kind()
    controller.layer = nn.Linear(4, 1)
    message = r"Own has memory_shape \(4,\), so that it must map observations and memories .*" + got
    with pytest.raises(ValueError, match=message):
        policy_gradient(CartPole(horizon=2), controller, torch.zeros(3, 4), engine=engine)


@pytest.mark.parametrize("shape", [4, (0,), "4", (1.5,)])
def test_a_memory_shape_that_is_none_is_refused(shape):
    controller = nn.Linear(4, 1)
    controller.memory_shape = shape
    with pytest.raises(ValueError, match="memory_shape must be"):
        policy_gradient(CartPole(horizon=2), controller, torch.zeros(3, 4))


def test_a_controller_that_does_not_use_its_memory_is_one_without():
    system = Integrator(horizon=4)

    class Idle(Controller):
        memory_shape = (2,)

        def __init__(self):
            super().__init__((1,), (1,))
            self.layer = nn.Linear(1, 1, dtype=torch.float64)

        def forward(self, observation, memory):
            return self.layer(observation), memory

    idle = Idle()
    states = system.initial_states(3, torch.Generator().manual_seed(1), torch.float64)
    for rule in ("R", "M", "S", "C"):
        found = policy_gradient(system, idle, states, rule).directions
        expected = policy_gradient(system, copy.deepcopy(idle.layer), states, rule).directions
        assert_same(found.values(), expected.values())


def test_a_pair_without_a_memory_shape_is_refused_with_what_lacks():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 1)

        def forward(self, observation):
            return self.layer(observation), observation

    with pytest.raises(ValueError, match="One that gives a memory, too, has an attribute memory_shape"):
        policy_gradient(CartPole(horizon=2), Pair(), torch.zeros(3, 4), engine="autograd")


@pytest.mark.parametrize("system", [Guidance(horizon=3, n_drivers=2, n_evaders=7), CartPole(horizon=3)])
def test_passes_together_are_those_alone(system):
    """By dense Jacobians and, above 32 components, by products: every combination of the three paths."""
    controller = made("own", system)
    states = system.initial_states(3, torch.Generator().manual_seed(1), torch.float64)
    flags = (False, True)
    passes = tuple(Feedback(physics=p, controller=k, memory=m) for p in flags for k in flags for m in flags)
    _, together = choose_engine(system, controller, states, "adjoint").engine(states, passes)
    for feedback in passes:
        assert_same(together[feedback].values(), by_definition(system, controller, states, feedback))


@pytest.mark.parametrize("remembered", [0, 1])
def test_what_a_pass_leaves_out_may_be_infinite(remembered):
    """M does not go back through what is seen, here a root at zero."""
    system = Integrator(horizon=4)

    class Kinked(nn.Module):
        memory_shape = (1,) if remembered else ()

        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 1).double()

        def forward(self, observation, *memory):
            action = self.layer(torch.cat([observation, (observation - observation).abs().sqrt()], 1))
            return (action, 0.5 * memory[0]) if memory else action

    states = system.initial_states(3, torch.Generator().manual_seed(1), torch.float64)
    controller = Kinked()
    expected = policy_gradient(system, controller, states, "M", "autograd").directions
    assert all(one.isfinite().all() for one in expected.values())
    assert_same(policy_gradient(system, controller, states, "M", "adjoint").directions.values(), expected.values())


def test_large_memories_are_left_to_autograd_without_a_warning():
    system = CartPole(horizon=3)
    states = system.initial_states(3, torch.Generator().manual_seed(1))
    large, small = GRU((4,), (1,), (33,)), GRU((4,), (1,), (32,))
    found = policy_gradient(system, large, states)
    assert (found.engine, "remembers more than 32 numbers" in found.reason) == ("autograd", True)
    assert policy_gradient(system, large, states, engine="adjoint").engine == "adjoint"
    assert policy_gradient(system, small, states).engine == "adjoint"


def test_a_rollout_in_inference_mode_can_be_differentiated_through_later():
    system = CartPole(horizon=3)
    states = system.initial_states(3, torch.Generator().manual_seed(1))
    with torch.inference_mode():
        trajectory = rollout(system, GRU((4,), (1,)), states)
    assert not any(one.is_inference() for one in (trajectory.states, trajectory.actions, trajectory.memories))
