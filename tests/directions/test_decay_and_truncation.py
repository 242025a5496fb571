"""Feedback that decays or is cut: both engines against an unroll by hand, and what the limits must be."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from bptt_envs import Task, program
from bptt_envs.systems import CartPole, Guidance, Hopper, Integrator, MultiPole, QuantumControl
from bptt_trainers import GRU, MLP, RULES, Feedback, Gaussian, Rule, draw_noise, policy_gradient
from bptt_trainers.directions import compiled
from bptt_trainers.directions.adjoint import AdjointEngine
from bptt_trainers.directions.autograd import AutogradEngine
from bptt_trainers.directions.compiled import CompiledEngine
from bptt_trainers.directions.policy_gradient import choose_engine, stacked_engine
from bptt_trainers.directions.rules import MODIFIED, MODIFIED_FORGETFUL, REGULAR, STOPPED, base_of, faded, get_rule

PASSES = (
    *(REGULAR, MODIFIED),
    *faded(RULES["C"], decay=0.7).passes,
    *faded(RULES["C"], every=3).passes,
    *faded(RULES["C"], decay=0.8, every=2).passes,
    Feedback(physics=0.5, controller=0.9, memory=0.3),
    Feedback(physics=0.0, controller=0.4, memory=1.0, every=4),
)
SYSTEMS = {
    "pole": lambda: CartPole(horizon=7, dt=0.1, max_force=2.0, objective="continuous"),
    "poles": lambda: Task(MultiPole(n_poles=2, horizon=7, objective="continuous"), observe_time=True),
    "guidance": lambda: Guidance(horizon=5, n_drivers=2, n_evaders=7),  # by products of the physics and the controller
    "quantum": lambda: QuantumControl(horizon=5, n_points=20),  # by products of the physics
    "hopper": lambda: Task(Hopper(horizon=6, substeps=2, stiffness=2e3), terminated=lambda state: state[:, 1] < 1.1),
}
KINDS = {
    "mlp": lambda shapes, generator: MLP(*shapes, (6, 5), generator=generator),
    "gru": lambda shapes, generator: GRU(*shapes, (4,), generator=generator),
    "gaussian gru": lambda shapes, generator: Gaussian(
        *shapes, hidden=(4,), network="gru", deviation="state", squash=(-0.5, 0.5), generator=generator
    ),
}
ENTROPY = 0.3  # its weight in the loss


def made(kind, system, seed=0):
    shapes = system.observation_shape, system.action_shape
    controller = KINDS[kind](shapes, torch.Generator().manual_seed(seed)).double()
    with torch.no_grad():
        for parameter in controller.parameters():
            parameter.mul_(2.0)  # so that much is fed back
    return controller


def start(system, batch=3, seed=1):
    states = system.initial_states(batch, torch.Generator().manual_seed(seed), torch.float64)
    return system.episode_start(states)


def times(factor, value):
    return factor * value + (1.0 - factor) * value.detach()


def by_hand(system, controller, states, feedback, noise=None, entropy=0.0):
    """The direction for the mean loss, unrolled; what a pass takes back to x_t and h_t goes through `times`."""
    x, h = states, [states.new_zeros(len(states), *controller.memory_shape)] if controller.memory_shape else []
    total = 0.0
    for t in range(system.horizon):
        cut = t > 0 and feedback.every is not None and t % feedback.every == 0
        p, k, m = (0.0 if cut else one for one in (feedback.physics, feedback.controller, feedback.memory))
        answer = controller(
            system.observe(times(k, x)), *(times(m, one) for one in h), *([] if noise is None else [noise[t]])
        )
        u, *rest = answer if isinstance(answer, tuple) else (answer,)
        h, u = rest[:1] if h else [], system.bound(u)
        following = system.step(times(p, x), u)
        total = total + system.running_cost(x, u, following)
        if entropy:
            over = system.episode_over(x)
            total = total - entropy / system.horizon * (rest[-1] if over is None else rest[-1].masked_fill(over, 0.0))
        x = following
    loss = (total + system.final_cost(x)).mean()
    return torch.autograd.grad(loss, list(controller.parameters()), materialize_grads=True, allow_unused=True)


def vector(directions):
    return torch.cat([one.flatten() for one in directions])


def assert_same(found, expected, tolerance=1e-10):
    found, expected = vector(found), vector(expected)
    assert (found - expected).norm() <= tolerance * expected.norm() + 1e-14


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SYSTEMS)
def test_every_pass_of_both_engines_is_that_by_hand(name, kind):
    system = SYSTEMS[name]()
    controller, states = made(kind, system), start(system)
    noise, entropy = None, 0.0
    if kind.startswith("gaussian"):
        noise = draw_noise(controller, system.horizon, states, torch.Generator().manual_seed(2))
        entropy = ENTROPY
    expected = {one: by_hand(system, controller, states, one, noise, entropy) for one in PASSES}
    assert len({float(vector(one).norm()) for one in expected.values()}) >= len(PASSES) - 2  # they are unlike
    for engine in ("autograd", "adjoint"):
        chosen = choose_engine(system, controller, states, engine, entropy=entropy).engine
        _, directions = chosen(states, PASSES, noise=noise)
        for feedback in PASSES:
            assert_same(directions[feedback].values(), expected[feedback])


@pytest.mark.parametrize("products", [True, False])
@pytest.mark.parametrize("samples", [3, 6, 12])  # segments of 1, 2 and 4 steps: cuts at their ends and within
@pytest.mark.parametrize("name", ["pole", "guidance"])
def test_segments_do_not_matter_however_slopes_are_taken(name, samples, products):
    system = SYSTEMS[name]()
    controller, states = made("mlp", system), start(system)
    _, expected = AdjointEngine(system, controller)(states, PASSES)
    _, found = AdjointEngine(system, controller, products=products, segment_samples=samples)(states, PASSES)
    for feedback in PASSES:
        assert_same(found[feedback].values(), expected[feedback].values(), 1e-12)


def test_one_pass_alone_is_what_it_is_among_others():
    system = SYSTEMS["poles"]()
    controller, states = made("mlp", system), start(system)
    engine = AdjointEngine(system, controller)
    _, together = engine(states, PASSES)
    for feedback in PASSES:
        assert_same(engine(states, (feedback,))[1][feedback].values(), together[feedback].values(), 1e-12)


@pytest.mark.parametrize("kind", ["mlp", "gru"])
def test_members_of_a_stack_are_what_they_are_alone(kind):
    system = SYSTEMS["pole"]()
    members = [made(kind, system, seed) for seed in range(2)]
    states = torch.stack([start(system, seed=seed) for seed in range(2)])
    parameters = {
        name: torch.stack([one.get_parameter(name).detach() for one in members])
        for name, _ in members[0].named_parameters()
    }
    _, found = stacked_engine(system, members[0], states[0], "these")(parameters, states, PASSES)
    for feedback in PASSES:
        for i, member in enumerate(members):
            assert_same((one[i] for one in found[feedback].values()), by_hand(system, member, states[i], feedback))


class Recorded:
    """What a program records, run as it is: it is not compiled."""

    def __init__(self, function, inputs):
        self.order = program.Order(function, inputs)

    def __call__(self, *inputs):
        return self.order.graph(*inputs, *self.order.constants)

    again = __call__


def test_programs_hold_the_factors_and_are_told_the_window(monkeypatch):
    """tests/directions/test_compiled.py compiles them."""
    monkeypatch.setattr(compiled, "Program", Recorded)
    monkeypatch.setattr(compiled, "STEPS_BACK", 2)  # runs 3 times, and a step is left over
    system = SYSTEMS["pole"]()
    controller, states = made("mlp", system), start(system)
    engine = CompiledEngine(AdjointEngine(system, controller))
    trajectory = engine.uncompiled.rollout(states)
    for name in ("C decay 0.8 every 3", "C decay 0.8 every 4", "C decay 0.7 every 4"):
        passes = get_rule(name).passes
        found = engine.backward(trajectory, passes)
        for feedback in passes:
            assert_same(found[feedback].values(), by_hand(system, controller, states, feedback))
    first, second, third = (one.order.name for one in engine._programs.values())
    assert first == second != third


def exactly(engine, system, controller, states, one, other):
    return torch.equal(*(vector(engine(system, controller)(states, (p,))[1][p].values()) for p in (one, other)))


@pytest.mark.parametrize("engine", [AutogradEngine, AdjointEngine])
def test_nothing_decayed_and_nothing_cut_is_the_rule_itself_to_the_last_bit(engine):
    system = SYSTEMS["pole"]()
    controller, states = made("mlp", system), start(system)
    for name in ("R", "M"):
        (plain,) = RULES[name].passes
        assert get_rule(f"{name} decay 1").passes == (plain,)
        for window in (system.horizon, 10 * system.horizon):
            (windowed,) = get_rule(f"{name} every {window}").passes
            assert windowed != plain
            assert exactly(engine, system, controller, states, windowed, plain)
        assert not exactly(engine, system, controller, states, faded(RULES[name], 1.0, 6).passes[0], plain)


def test_everything_decayed_or_cut_is_the_stopped_rule():
    for name in ("R decay 0", "M decay 0", "R every 1", "M decay 0.9 every 1", "R decay 0 every 5"):
        assert get_rule(name).passes == (STOPPED,)
    assert get_rule("C every 1").passes == (STOPPED, STOPPED)
    system = SYSTEMS["pole"]()
    controller, states = made("mlp", system), start(system)
    stopped = policy_gradient(system, controller, states, "S")
    for name in ("C every 1", "R decay 0"):
        found = policy_gradient(system, controller, states, name)
        assert torch.equal(vector(found.directions.values()), vector(stopped.directions.values()))


class KinkAt(Integrator):
    """x' = x + u, of which a step at x = 2 has an infinite slope; the controller sees nothing of it."""

    def step(self, state, action):
        return state + action + 0.0 * (state - 2.0).abs().sqrt()

    def linearize(self, state, action):
        slope = torch.where(state == 2.0, math.inf, torch.ones_like(state))
        return slope.unsqueeze(-1), torch.ones_like(state).unsqueeze(-1)

    def pullback(self, state, action):
        slope = torch.where(state == 2.0, math.inf, torch.ones_like(state))
        return lambda rows, vectors: (vectors * slope[rows], vectors)


class OneAStep(nn.Module):
    """Acts 1, whatever it sees."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, observation):
        return self.weight + 0.0 * observation


@pytest.mark.parametrize("dense", [True, False])
def test_what_a_cut_leaves_out_may_be_infinite(dense, monkeypatch):
    monkeypatch.setattr(KinkAt, "dense_jacobians", dense)
    system = KinkAt(horizon=4)  # at x_2 = 2 there is the kink
    states = torch.zeros(3, 1, dtype=torch.float64)

    def direction(feedback):
        return AdjointEngine(system, OneAStep(), products=False)(states, (feedback,))[1][feedback]["weight"]

    for every in (2, 3):  # by the second, what comes last is felt by one step only
        cut = Feedback(physics=True, controller=True, every=every)
        torch.testing.assert_close(direction(cut), AutogradEngine(system, OneAStep())(states, (cut,))[1][cut]["weight"])
    assert direction(Feedback(physics=False, controller=0.5)).isfinite().all()
    assert not direction(REGULAR).isfinite().all()


# Passes and rules by name


def test_flags_are_the_factors_one_and_zero():
    for kind in (bool, int, float, np.bool_):
        for constant, flags in ((REGULAR, (1, 1)), (MODIFIED, (1, 0)), (STOPPED, (0, 0))):
            made = Feedback(*map(kind, flags))
            assert (made, hash(made)) == (constant, hash(constant))
        assert Feedback(kind(1), kind(0), kind(0)) == MODIFIED_FORGETFUL
    assert REGULAR.memory == MODIFIED.memory == 1.0
    assert repr(Feedback(-0.0, 0)) == repr(STOPPED)
    assert Feedback(0.2, 0.7).memory == 0.7
    assert Feedback(1, 1, every=8) not in (REGULAR, Feedback(1, 1, every=4))
    assert Feedback(1, 0.5, every=1) == Feedback(0, 0, every=7) == STOPPED


@pytest.mark.parametrize(
    ("given", "name", "passes"),
    [
        ("R decay 0.9", "R decay 0.9", (Feedback(0.9, 0.9),)),
        ("R decay .90", "R decay 0.9", (Feedback(0.9, 0.9),)),
        ("C decay 1e-3", "C decay 0.001", (Feedback(1e-3, 1e-3), Feedback(1e-3, 0, 1e-3))),
        ("C every 16", "C every 16", (Feedback(1, 1, every=16), Feedback(1, 0, every=16))),
        ("M decay 0.5 every 08", "M decay 0.5 every 8", (Feedback(0.5, 0, 0.5, every=8),)),
        ("M without memory decay 0.5", "M without memory decay 0.5", (Feedback(0.5, 0, 0),)),
    ],
)
def test_any_factor_and_window_is_a_rule_by_its_name(given, name, passes):
    rule = get_rule(given)
    assert (rule.name, rule.passes) == (name, passes)
    assert get_rule(rule.name) == get_rule(rule) == rule
    assert base_of(name) in RULES
    assert rule.summary.startswith(RULES[base_of(name)].summary)


def test_the_rows_are_what_their_names_say():
    rows = [name for name in RULES if base_of(name) != name]
    assert rows == ["R decay 0.9", "C decay 0.9", "R every 16", "C every 16"]
    for name in rows:
        row = RULES[name]
        assert row.name == name
        factor, window = (0.9, None) if "decay" in name else (1.0, 16)
        assert row == faded(RULES[base_of(name)], None if factor == 1.0 else factor, window)


def test_a_rule_of_ones_own_is_decayed_by_its_name(monkeypatch):
    monkeypatch.setitem(RULES, "K", Rule("K", (Feedback(physics=False, controller=True),), "the other half of R"))
    assert get_rule("K decay 0.25 every 4").passes == (Feedback(0, 0.25, 0.25, every=4),)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("Q decay 0.9", r"rule must be one of 'R', 'M', 'S', 'C', .* such as 'R decay 0.9'.* got 'Q decay 0.9'"),
        ("R decay", "rule must be one of .* got 'R decay'. Did you mean 'R decay 0.9'"),
        ("R every 16 decay 0.9", "or a rule with a decay, a window or both, such as .*'M decay 0.9 every 16'; got"),
        ("R decay 0.9 decay 0.9", "rule must be one of"),
        ("R decay 1.5", "the decay of rule 'R decay 1.5' must be a number from 0 to 1; got 1.5"),
        ("R decay nan", "the decay of rule 'R decay nan' must be a number from 0 to 1; got nan"),
        ("C decay fast", "must be a number from 0 to 1; got 'fast'"),
        ("C every 0", "the window of rule 'C every 0' must be an integer of at least 1; got 0"),
        ("C every 2.5", "must be an integer of at least 1; got '2.5'"),
        ("S decay 0.9", "rule must be 'S' alone, which feeds nothing back to decay or cut; got 'S decay 0.9'"),
        (0.9, "rule must be one of .* got 0.9"),
    ],
)
def test_what_is_no_rule_is_refused_with_what_would_be_right(rule, message):
    with pytest.raises(ValueError, match=message):
        get_rule(rule)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"physics": 1.5}, "physics must be a number from 0 to 1, or True or False; got 1.5"),
        ({"controller": -0.1}, "controller must be a number from 0 to 1"),
        ({"memory": "all"}, "memory must be a number from 0 to 1"),
        ({"every": 0}, "every must be an integer of at least 1; got 0"),
        ({"every": 2.5}, "every must be an integer of at least 1; got 2.5"),
    ],
)
def test_factors_and_windows_that_are_none_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        Feedback(**({"physics": 1.0, "controller": 1.0} | given))
