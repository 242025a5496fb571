"""Controllers with memory and noise: every pass of each engine is by its definition, alone, stacked and compiled."""

import copy

import pytest
import torch
from recorded import Recorded
from torch import nn

from bptt_envs import Task
from bptt_envs.systems import CartPole, Guidance, Integrator, QuantumControl
from bptt_trainers import GRU, LSTM, RULES, Controller, Gaussian, draw_noise, losses, policy_gradient, rollout
from bptt_trainers.directions import compiled
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


ENTROPY = 0.3  # its weight in the loss

GAUSSIANS = {
    "constant": {"hidden": (5,), "squash": (-0.5, 0.5)},
    "state": {"hidden": (5,), "deviation": "state"},
    "with memory": {"hidden": (4,), "network": "gru", "deviation": "state", "squash": (-0.5, 0.5)},
}


class Own(nn.Module):
    """A module of a user's: its memory has two axes, as has its noise, and its actions hang on both."""

    memory_shape = (2, 3)
    noise_shape = (2, 3)

    def __init__(self, system, generator):
        super().__init__()
        size = system.observe(system.initial_states(1, generator)).numel()
        self.inner = nn.Linear(size + 6, 6)
        self.outer = nn.Linear(6, system.action_size)
        self.shape = system.action_shape
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3, generator=generator)

    def forward(self, observation, memory, noise):
        memory = torch.tanh(self.inner(torch.cat([observation.flatten(1), (memory * noise.cos()).flatten(1)], 1)))
        return self.outer(memory).view(-1, *self.shape), memory.view(-1, 2, 3)


def made(kind, system):
    generator = torch.Generator().manual_seed(0)
    if kind == "own":
        return Own(system, generator).double()
    shapes = system.observation_shape, system.action_shape
    if kind in GAUSSIANS:
        controller = Gaussian(*shapes, initial_deviation=0.3, generator=generator, **GAUSSIANS[kind]).double()
    else:
        controller = {"gru": GRU, "lstm": LSTM}[kind](*shapes, (4, 3), generator=generator).double()
    with torch.no_grad():
        for parameter in controller.parameters():
            parameter.mul_(3.0)  # so that much is fed back
    return controller


def noise_for(controller, system, states, seed=2):
    return draw_noise(controller, system.horizon, states, torch.Generator().manual_seed(seed))


def by_definition(system, controller, states, feedback, noise=None, entropy=0.0):
    """The direction for the mean loss, unrolled, with detach where the pass has no path."""
    x, h = states, [states.new_zeros(len(states), *controller.memory_shape)] if controller.memory_shape else []
    total = 0.0
    for t in range(system.horizon):
        seen = system.observe(x if feedback.controller else x.detach())
        handed = [one if feedback.memory else one.detach() for one in h] + ([] if noise is None else [noise[t]])
        answer = controller(seen, *handed)
        u, *rest = answer if isinstance(answer, tuple) else (answer,)
        h = rest[:1] if h else []
        u = system.bound(u)
        following = system.step(x if feedback.physics else x.detach(), u)
        total = total + system.running_cost(x, u, following)
        if entropy:
            total = total - entropy / system.horizon * rest[-1]
        x = following
    loss = (total + system.final_cost(x)).mean()
    return torch.autograd.grad(loss, list(controller.parameters()), materialize_grads=True, allow_unused=True)


def assert_same(found, expected, tolerance=1e-10):
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() <= tolerance * float(other.norm()) + 1e-14


@pytest.mark.parametrize("kind", ["gru", "lstm", "own", *GAUSSIANS])
@pytest.mark.parametrize("name", SYSTEMS)
def test_both_engines_are_the_definition(name, kind):
    system = SYSTEMS[name]()
    controller = made(kind, system)
    states = system.initial_states(3, torch.Generator().manual_seed(1), torch.float64)
    noise, entropy = noise_for(controller, system, states), ENTROPY if kind in GAUSSIANS else 0.0
    for weight in {0.0, entropy}:
        expected = {one: by_definition(system, controller, states, one, noise, weight) for one in PASSES}
        for engine in ("autograd", "adjoint"):
            chosen = choose_engine(system, controller, states, engine, entropy=weight).engine
            _, directions = chosen(states, PASSES, noise=noise)
            for feedback in PASSES:
                assert_same(directions[feedback].values(), expected[feedback])


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


@pytest.mark.parametrize("kind", ["gru", "own", *GAUSSIANS])
def test_a_stack_is_its_members(kind):
    system = SYSTEMS["positions"]()
    members = [made(kind, system) for _ in range(2)]
    with torch.no_grad():
        for parameter in members[1].parameters():
            parameter.add_(0.1)
    states = torch.stack([system.initial_states(3, torch.Generator().manual_seed(i), torch.float64) for i in (1, 2)])
    entropy = ENTROPY if kind in GAUSSIANS else 0.0
    engine = stacked_engine(system, members[0], states[0], "these", entropy=entropy)
    drawn = [
        noise_for(member, system, one, seed) for seed, (member, one) in enumerate(zip(members, states, strict=True))
    ]
    noise = None if drawn[0] is None else torch.stack(drawn, dim=1)
    parameters = {
        name: torch.stack([dict(member.named_parameters())[name].detach() for member in members])
        for name, _ in members[0].named_parameters()
    }
    found_losses, found = engine(parameters, states, (REGULAR, MODIFIED), noise=noise)
    for i, member in enumerate(members):
        alone = choose_engine(system, member, states[i], "autograd", entropy=entropy).engine
        expected_losses, expected = alone(states[i], (REGULAR, MODIFIED), noise=drawn[i])
        torch.testing.assert_close(found_losses[i], expected_losses)
        for feedback in (REGULAR, MODIFIED):
            assert_same([one[i] for one in found[feedback].values()], expected[feedback].values())


@pytest.mark.parametrize("kind", ["gru", "with memory"])  # the second one is compiled in test_tasks.py
def test_compiled_it_is_the_same(kind, monkeypatch):
    monkeypatch.setattr(compiled, "Program", Recorded)
    monkeypatch.setattr(compiled, "STEPS_THERE", 2)
    monkeypatch.setattr(compiled, "STEPS_BACK", 2)
    system = CartPole(horizon=5, max_force=0.4)  # two programs each way, and a step that is left over
    controller = made(kind, system)
    states = system.initial_states(3, torch.Generator().manual_seed(1), torch.float64)
    noise, entropy = noise_for(controller, system, states), ENTROPY if kind in GAUSSIANS else 0.0
    by = {one: choose_engine(system, controller, states, compile=one, entropy=entropy).engine for one in (False, True)}
    expected, found = (by[one](states, (REGULAR, MODIFIED), noise=noise) for one in (False, True))
    torch.testing.assert_close(found[0], expected[0])
    for feedback, directions in expected[1].items():
        assert_same(found[1][feedback].values(), directions.values())


@pytest.mark.parametrize("kind", ["own", "with memory"])
def test_a_rollout_keeps_what_was_remembered_and_the_noise(kind):
    system = SYSTEMS["pole"]()
    controller = made(kind, system)
    states = system.initial_states(3, torch.Generator().manual_seed(1), torch.float64)
    noise = noise_for(controller, system, states)
    trajectory = rollout(system, controller, states, noise=noise)
    assert trajectory.noise is noise
    x, h = states, torch.zeros(3, *controller.memory_shape, dtype=torch.float64)
    for t in range(system.horizon):
        torch.testing.assert_close((trajectory.states[t], trajectory.memories[t]), (x, h))
        u, h, *_ = controller(system.observe(x), h, noise[t])
        torch.testing.assert_close(trajectory.actions[t], u)
        x = system.step(x, system.bound(u))
    assert losses(system, trajectory).shape == (3,)
    assert rollout(system, GRU((4,), (1,)), states.float(), 2).memories.shape == (3, 3, 32)
    silent = rollout(system, controller, states)
    assert silent.noise is None
    torch.testing.assert_close(silent.states, rollout(system, controller, states, noise=0 * noise).states)


@pytest.mark.parametrize("engine", ["adjoint", "autograd"])
def test_noise_of_other_shapes_is_refused_in_words(engine):
    system = SYSTEMS["pole"]()
    controller = made("constant", system)
    states = system.initial_states(3, torch.Generator().manual_seed(1), torch.float64)
    noise = noise_for(controller, system, states)
    for wrong in (noise[1:], noise[:, 1:], noise.float(), noise.flatten(1), [0.0]):
        with pytest.raises(ValueError, match=r"noise must be a tensor of shape .*, here \(6, 3, 1\), torch\.float64"):
            policy_gradient(system, controller, states, engine=engine, noise=wrong)
        with pytest.raises(ValueError, match="noise must be a tensor of shape"):
            rollout(system, controller, states, noise=wrong)
    with pytest.raises(ValueError, match="noise must be None for a controller without a noise_shape"):
        policy_gradient(system, made("gru", system), states, engine=engine, noise=noise)


def test_noise_that_is_drawn_follows_the_generator():
    system = SYSTEMS["pole"]()
    controller = made("constant", system)
    states = system.initial_states(3, torch.Generator().manual_seed(1), torch.float64)

    def direction(seed, **given):
        found = policy_gradient(system, controller, states, "C", generator=torch.Generator().manual_seed(seed), **given)
        return torch.cat([one.flatten() for one in found.directions.values()])

    assert torch.equal(direction(2), direction(2, noise=noise_for(controller, system, states)))
    assert not torch.equal(direction(2), direction(3))
    with torch.inference_mode():
        assert torch.equal(direction(2), direction(2))
        assert direction(2, noise=noise_for(controller, system, states)).isfinite().all()


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
        (lambda self, o: self.layer(o), r"\. It does not take them\."),
    ],
)
def test_answers_of_other_shapes_are_refused_in_words(engine, forward, got):
    kind = type("Own", (nn.Module,), {"memory_shape": (4,), "forward": forward})
    controller = kind()
    controller.layer = nn.Linear(4, 1)
    message = (
        r"Own has memory_shape \(4,\), so that it must be a function forward\(observation, memory\) -> "
        r"\(action, memory\) with action \(B, 1\), memory \(B, 4\), .*" + got
    )
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
    noise = noise_for(controller, system, states)
    _, together = choose_engine(system, controller, states, "adjoint").engine(states, passes, noise=noise)
    for feedback in passes:
        assert_same(together[feedback].values(), by_definition(system, controller, states, feedback, noise))


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
