"""What is wrong with gradients is named in words, and nothing is found where nothing is."""

import csv
import io
import re

import pytest
import torch
from torch import nn

from bptt_envs import DifferentiableEnv, DifferentiableVectorEnv, System, Task
from bptt_envs.registration import ENTRIES, build_system
from bptt_envs.systems import BouncingBall, CartPole, Integrator
from bptt_trainers import GRU, MLP, TrainConfig, Trainer, check_gradients, default_controller, rollout
from bptt_trainers.analysis.differences import compare_slopes
from bptt_trainers.analysis.gradient_figure import gradient_figure
from bptt_trainers.analysis.growth import feedback, stretches
from bptt_trainers.analysis.influence import influence
from bptt_trainers.analysis.update_cost import update_costs
from bptt_trainers.directions import perceptron
from bptt_trainers.directions.adjoint import AdjointEngine
from bptt_trainers.figures.style import save_figure


class Oscillator(System):
    """Two coupled components, pushed; smooth, with a cost of all that there is."""

    state_shape, action_shape = (2,), (1,)
    state_labels = ("place [m]", "speed [m/s]")
    action_labels = ("push [N]",)

    def __init__(self, *, horizon=6, dt=0.1, max_action=None):
        super().__init__(horizon=horizon, dt=dt, max_action=max_action)

    def step(self, state, action):
        place, speed = state[:, :1], state[:, 1:]
        return torch.cat([place + self.dt * speed, speed + self.dt * (action - place.sin())], dim=1)

    def initial_states(self, batch, generator, dtype=torch.float32):
        return torch.randn(batch, 2, generator=generator, dtype=dtype)

    def state_cost(self, state):
        return state.square().sum(1)


def changed(**methods):
    return type("Bad", (Oscillator,), methods)()


def found(system, level="error", controller=None):
    """The words of a level, on one line each."""
    return [one.words for one in check_gradients(system, controller).findings if one.level == level]


def test_nothing_is_wrong_with_what_is_right():
    check = check_gradients(Oscillator())
    assert not check.failed
    assert {one.level for one in check.findings} == {"ok"}
    assert check.text().endswith("\n\nNothing is wrong.")
    assert all(one.error < 1e-7 and one.compared == 1.0 for one in check.slopes)


@pytest.fixture
def untimed(monkeypatch):
    """Updates are not measured: that takes most of the time."""
    monkeypatch.setattr("bptt_trainers.analysis.gradient_check.update_costs", lambda *_: [])


@pytest.mark.usefixtures("untimed")
@pytest.mark.parametrize("env_id", ENTRIES)
def test_nothing_is_wrong_with_registered_systems(env_id):
    check = check_gradients(build_system(env_id, {"horizon": 4}, env_id))
    assert not check.failed, check.text()


# One defect each


class Shifted(torch.autograd.Function):
    """A sine that says that its slope is 1.001 times what it is."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, slope):
        (x,) = ctx.saved_tensors
        return 1.001 * slope * x.cos()


def off(self, state, action):
    place, speed = state[:, :1], state[:, 1:]
    return torch.cat([place + self.dt * speed, speed + self.dt * (action - Shifted.apply(place))], dim=1)


def through_numpy(self, state, action):
    moved = state.detach().numpy() + self.dt * action.detach().numpy()
    return torch.from_numpy(moved)


def wrong_linearize(self, state, action):
    by_state, by_action = System.linearize(self, state, action)
    return by_state, -by_action


def wrong_pullback(self, state, action):
    right = System.pullback(self, state, action)

    def pull(rows, vectors):
        by_state, by_action = right(rows, vectors)
        return 2 * by_state, by_action

    return pull


ERRORS = {
    "linearize": (
        {"linearize": wrong_linearize},
        "B = d next/d action of Bad.linearize differs from autograd's slopes of step",
    ),
    "pullback": (
        {"pullback": wrong_pullback},
        "A = d next/d state of Bad.pullback differs from autograd's slopes of step",
    ),
    "detached": (
        {"step": lambda self, x, u: Oscillator.step(self, x, u).detach()},
        "Bad.step depends on component 0 of its state, and its gradient does not",
    ),
    "partly detached": (
        {"step": lambda self, x, u: Oscillator.step(self, x, u.detach())},
        "Bad.step depends on component 0 of its action, and its gradient does not",
    ),
    "numpy": ({"step": through_numpy}, "Bad.step depends on component 0 of its state.*without detach, NumPy or item"),
    "numpy without detach": (
        {"step": lambda self, x, u: torch.from_numpy(x.numpy() + u.numpy())},
        "Bad.step cannot be differentiated .*without NumPy",
    ),
    "detached cost": (
        {"state_cost": lambda self, x: x.detach().square().sum(1)},
        "Bad.final_cost depends on component 0 of its state, and its gradient does not",
    ),
    "no cost": ({"state_cost": System.state_cost}, "Bad has no cost: .*Implement state_cost"),
    "no way": (
        {"step": lambda self, x, u: 0.9 * x},
        "Bad's loss does not depend differentiably on the actions, over 6 steps",
    ),
    "mixing cost": (
        {"state_cost": lambda self, x: ((x - x.mean(0)) / (1 + x.var(0))).square().sum(1)},
        "Bad.final_cost must treat samples apart; it gives a sample alone another result than in a batch",
    ),
    "mixing observation": (
        {"observe": lambda self, x: (x - x.mean(0)) / (1 + x.std(0, correction=0))},
        "Bad.observe must treat samples apart",
    ),
    "mixing slopes": (
        {"state_cost": lambda self, x: x.square().sum(1) + (x.mean(0) - x.mean(0).detach()).sum()},
        "Bad.final_cost must treat samples apart; the slopes of one sample reach others",
    ),
    "another slope": (
        {"step": off},
        r"Bad.step: autograd's slope of component 1 \(speed \[m/s\]\) of next_state by component 0 \(place \[m\]\) of "
        r"state is -0\.\d+, central differences say -0\.\d+, off by .*surrogate_gradient = True",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_each_defect_is_an_error_in_words(name):
    methods, message = ERRORS[name]
    errors = found(changed(**methods))
    assert len(errors) == 1
    assert re.search(message, errors[0])


def test_an_error_along_an_episode_is_named_with_its_method_and_line():
    def step(self, state, action):
        if state.abs().max() > 50.0:
            raise ArithmeticError("too far")
        return 9.0 * state + action

    system = type("Far", (Oscillator,), {"step": step})(horizon=9)
    check = check_gradients(system)
    (error,) = [one.words for one in check.findings if one.level == "error"]
    assert re.match(r"Far.step raised ArithmeticError: too far \(.*test_gradient_check.py:\d+\). States come as", error)
    assert check.failed


MODEL = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 2))


def in_float32(base, **others):
    def step(self, state, action):
        return base.step(self, state.float(), action.float()).to(state.dtype)

    return type("Single", (base,), {"step": step, **others})


@pytest.mark.usefixtures("untimed")
@pytest.mark.parametrize(
    ("system", "method"),
    [
        (in_float32(Oscillator)(), "Single.step"),
        (in_float32(CartPole)(horizon=10), "Single.step"),  # whose linearize is in float64
        (
            changed(step=lambda self, x, u: x + self.dt * MODEL(torch.cat([x, u], dim=1).float()).to(x.dtype)),
            "Bad.step",
        ),
        (changed(state_cost=lambda self, x: x.float().square().sum(1).to(x.dtype)), "Bad.final_cost"),
    ],
)
def test_what_computes_in_float32_inside_is_said_to_and_has_no_wrong_gradient(system, method):
    check = check_gradients(system)
    assert not check.failed, check.text()
    warned = [one.words for one in check.findings if one.level == "warning"]
    assert len(warned) == 1
    assert warned[0].startswith(f"{method} computes in float32 inside, or to a tolerance like it")


def test_a_wrong_gradient_in_float32_is_one():
    def step(self, state, action):
        x, u = state.float(), action.float()
        return (x + self.dt * (1.1 * u - 0.1 * u.detach() - x.sin())).to(state.dtype)

    errors = found(type("Single", (Oscillator,), {"step": step})())
    assert "Single.step: autograd's slope of component" in errors[0]


def test_a_method_that_is_inherited_is_named_with_the_class_that_writes_it():
    twice = type("Twice", (CartPole,), {"step": lambda self, x, u: 2.0 * CartPole.step(self, x, u)})
    (error,) = found(twice())
    words = "of MultiPole.linearize, which Twice inherits, differs from autograd's slopes of step"
    assert words in error


@pytest.mark.usefixtures("untimed")
@pytest.mark.parametrize(
    ("change", "level", "share"),
    [
        (torch.round, "warning", r"100\.0%"),
        (lambda u: u.clamp(-0.01, 0.01), "warning", r"\d\d\.\d%"),
        (lambda u: u.clamp(-0.9, 0.9), "note", r"\d\.\d%"),
    ],
)
def test_actions_that_step_rounds_or_clamps_are_named_with_the_share_of_the_states(change, level, share):
    def running_cost(self, state, action, next_state):
        return 1e-3 * action.square().sum(1)

    system = changed(step=lambda self, x, u: Oscillator.step(self, x, change(u)), running_cost=running_cost)
    check = check_gradients(system)
    assert not check.failed
    words = [one.words for one in check.findings if one.level == level]
    assert len(words) == 1
    assert re.match(
        rf"next_state has slope 0 by component 0 \(push \[N\]\) of action at {share} of the states", words[0]
    )


@pytest.mark.parametrize("method", ["step", "observe", "state_cost"])
def test_a_branch_on_the_batch_is_named(method):
    right = getattr(Oscillator, method)

    def branching(self, state, *others):
        return right(self, state, *others) * (1.0 if state[:, 0].mean().item() > -1.5 else 0.5)

    (error,) = found(changed(**{method: branching}))
    assert re.search(r"Bad\.\w+ must treat samples apart; it gives a sample alone another result", error)


START_ERRORS = ("detached", "numpy", "numpy without detach", "no cost", "no way", "linearize")


@pytest.mark.parametrize("name", START_ERRORS)
def test_training_refuses_what_is_no_gradient_in_the_same_words(name):
    methods, message = ERRORS[name]
    config = TrainConfig(train_states=4, test_states=4, batch_size=4, epochs=1)
    with pytest.raises(ValueError, match=message):
        Trainer(changed(**methods), config=config)


@pytest.mark.usefixtures("untimed")
@pytest.mark.parametrize("contact_gradient", ["hard", "smooth", "from_distance"])
def test_what_a_ball_does_to_its_gradients_is_declared(contact_gradient):
    system = BouncingBall(contact_gradient=contact_gradient, horizon=40)
    assert not check_gradients(system).failed
    assert system.surrogate_gradient == (contact_gradient != "hard")


def test_a_surrogate_that_is_declared_is_a_note():
    for system in (changed(step=off, surrogate_gradient=True), Task(changed(step=off, surrogate_gradient=True))):
        check = check_gradients(system)
        assert not check.failed
        (note,) = [one.words for one in check.findings if one.level == "note"]
        assert re.search("Bad.step: autograd's slope .* declares that it is another one on purpose", note)


class Dipping(Oscillator):
    """A cost with a square root, whose argument is 0 in the middle of the horizon."""

    state_shape = (1,)

    def __init__(self):
        super().__init__(horizon=8, dt=1.0)

    def step(self, state, action):
        return state - 1.0 + 0.0 * action

    def initial_states(self, batch, generator, dtype=torch.float32):
        return torch.full((batch, 1), 3.0, dtype=dtype)

    def running_cost(self, state, action, next_state):
        return (next_state[:, 0].relu() + (state - 1.0).square().sqrt()[:, 0]) / 8 + 1e-3 * action[:, 0]

    def final_cost(self, state):
        return state[:, 0] * 1.0


def test_a_slope_that_is_no_number_is_named_with_its_step():
    error, *back = found(Dipping())
    assert "Dipping.running_cost: its slope by component 0 (place [m]) of state is infinite or no number" in error
    assert "at step 2 of 8 of episode 0, and at 12.5% of all" in error
    assert [re.search(r"under (.), .* or no number from step (\d+) of 8 back", one).groups() for one in back] == [
        ("R", "2"),
        ("M", "2"),
    ]


class Growing(Oscillator):
    """A slope by the state that is the same in every step."""

    def __init__(self, factor):
        super().__init__(horizon=21)
        self.factor = factor

    def step(self, state, action):
        return self.factor * state + 1e-3 * action

    def initial_states(self, batch, generator, dtype=torch.float32):
        return torch.zeros(batch, 2, dtype=dtype)

    def state_cost(self, state):
        return state.sum(1)


@pytest.mark.usefixtures("untimed")
@pytest.mark.parametrize(
    ("factor", "level", "words"),
    [
        (
            10.0**0.1,
            "ok",
            r"1.4 at step 21, 1.4e\+02 at step 1: on its way back it grows by a factor of 10 every 10 steps",
        ),
        (
            10.0**-0.2,
            "ok",
            r"1.4 at step 21, 0.00014 at step 1: on its way back it fades by a factor of 10 every 5 steps",
        ),
        (10.0, "warning", r"on its way back it explodes by a factor of 10 every 1 steps"),
        (0.1, "warning", r"on its way back it vanishes by a factor of 10 every 1 steps"),
        (1e4, "error", r"more than float32 holds \(3e\+38\) or no number from step 11 of 21 back"),
        (0.99, "ok", r"which is within a factor of 10"),
    ],
)
def test_how_feedback_goes_through_the_horizon_is_said(factor, level, words):
    (finding,) = [one for one in check_gradients(Growing(factor)).findings if "feedback under M" in one.words]
    assert finding.level == level
    assert re.search(words, finding.words)


class Bouncing(Growing):
    """Slopes of 1, but for a small one at step 10 and a large one at step 16."""

    def step(self, state, action):
        clock = state[:, 1:].detach()
        slope = torch.where(clock.round() == 10, 1 / self.factor, torch.where(clock.round() == 16, self.factor, 1.0))
        return torch.cat([slope * state[:, :1] + 1e-3 * action, state[:, 1:] + 1.0], dim=1)

    def state_cost(self, state):
        return state[:, 0]


@pytest.mark.usefixtures("untimed")
def test_where_feedback_jumps_is_said():
    words = [one.words for one in check_gradients(Bouncing(1e3)).findings if "feedback under M" in one.words]
    assert len(words) == 1
    assert "1 at step 21, 1 at step 1, 1e+03 at step 11 between them; by a factor of" in words[0]
    assert re.search(r"factor of (1e\+03 from step 17 to 16|0.001 from step 11 to 10) alone", words[0])


@pytest.mark.usefixtures("untimed")
def test_actions_and_states_without_influence_are_named():
    class Idle(Oscillator):
        state_shape, action_shape = (3,), (2,)
        state_labels = ("place [m]", "speed [m/s]", "idle [K]")
        action_labels = ("push [N]", "nothing [V]")

        def step(self, state, action):
            moved = Oscillator.step(self, state[:, :2], action[:, :1])
            return torch.cat([moved, 0.9 * state[:, 2:] + 0.1 * action[:, 1:]], dim=1)

        def initial_states(self, batch, generator, dtype=torch.float32):
            return torch.randn(batch, 3, generator=generator, dtype=dtype)

        def state_cost(self, state):
            return state[:, :2].square().sum(1)

        def observe(self, state):
            return torch.cat([state[:, :2], torch.ones_like(state[:, 2:])], dim=1)

    assert found(Idle(), "warning") == [
        "no influence on the loss, at any step of these episodes: component 1 (nothing [V]) of action. Nothing trains "
        "what gives it.",
        "no influence on the loss, nor does the controller act on it: component 2 (idle [K]) of state.",
        "the same in all states of these episodes: component 2 of observation.",
    ]
    seen = type("Seen", (Idle,), {"observe": System.observe})()
    assert found(seen, "note") == [
        "no influence on the loss but through the controller: component 2 (idle [K]) of state. M feeds nothing back by "
        "it."
    ]


class Strong(MLP):
    def forward(self, observation):
        return 100.0 * super().forward(observation) + 50.0


@pytest.mark.usefixtures("untimed")
def test_actions_beyond_their_bounds_are_warned_of():
    system = Oscillator(max_action=0.1)
    assert "the controller is beyond the bounds in 0% of the steps at most." in found(Oscillator(max_action=9.0), "ok")
    words = " ".join(found(system, "warning", Strong(system.observation_shape, system.action_shape)))
    assert "beyond the bounds in 50% of the steps or more, where no slope goes through: component 0 (push [N])" in words


def test_episodes_that_overflow_are_an_error():
    class Cubic(Oscillator):
        def step(self, state, action):
            return 1e3 * state.pow(3) + action

        def initial_states(self, batch, generator, dtype=torch.float32):
            return 0.035 + 0.001 * torch.rand(batch, 2, generator=generator, dtype=dtype)

    (error,) = found(Cubic(horizon=300))
    assert re.search(r"episodes of the controller are not finite from step \d+ of 300 on: fewer steps", error)


class Zone(Oscillator):
    def step(self, state, action):
        return state + torch.nn.functional.softshrink(action, 50.0)

    def final_cost(self, state):
        return (state[:, 0] - 1e3).relu() + 1.0


def test_slopes_of_0_with_a_way_are_warned_of_and_may_be_trained():
    warnings = found(Zone(), "warning")
    assert "Zone's loss has a slope of 0 by every action, over 6 steps" in warnings[0]
    config = TrainConfig(train_states=4, test_states=4, batch_size=4, epochs=1)
    with pytest.warns(UserWarning, match="Zone's loss has a slope of 0 by every action"):
        Trainer(Zone(), config=config)


# What is measured is what it says


def test_large_states_are_compared_along_random_directions():
    class Wide(Oscillator):
        state_shape = (40,)

        def step(self, state, action):
            return state + self.dt * (action - (Shifted.apply(state) if self.wrong else state.sin()))

        def initial_states(self, batch, generator, dtype=torch.float32):
            return torch.randn(batch, 40, generator=generator, dtype=dtype)

    for wrong in (False, True):
        system = Wide()
        system.wrong = wrong
        states = system.initial_states(3, torch.Generator().manual_seed(0), torch.float64)
        step = compare_slopes(system, states, torch.ones(3, 1, dtype=torch.float64))[0]
        assert (step.method, step.argument, step.component, step.right) == ("step", "state", None, not wrong)


def test_kinks_and_jumps_have_no_slope_and_are_left_out():
    class Floor(Oscillator):
        def step(self, state, action):
            return torch.stack([state[:, 0].relu() + action[:, 0], state[:, 1] + (state[:, 1] > 0.3)], dim=1)

    states = torch.tensor([[0.0, 0.3], [1.0, 0.5], [-1.0, 0.1]], dtype=torch.float64)
    step = compare_slopes(Floor(), states, torch.ones(3, 1, dtype=torch.float64))[0]
    assert step.right
    assert (step.points, step.left_out) == (12, 2)
    system = changed(step=lambda self, x, u: Oscillator.step(self, x, u) + x.round())
    assert re.search(r"of the largest; \d+ of \d+ points left out, at kinks or jumps", " ".join(found(system, "ok")))


def test_components_of_any_size_are_compared_alike():
    class Scaled(Oscillator):
        """A wrong slope by a component that is a millionth of the other."""

        def step(self, state, action):
            return torch.cat([state[:, :1], 1e-6 * Shifted.apply(1e6 * state[:, 1:]) + 1e-6 * action], dim=1)

    states = torch.tensor([[1.0, 1e-6], [3.0, 0.2e-6]], dtype=torch.float64)
    step = compare_slopes(Scaled(), states, torch.ones(2, 1, dtype=torch.float64))[0]
    assert (step.result, step.component, step.right) == (1, 1, False)
    assert step.slope / step.difference == pytest.approx(1.001, rel=1e-6)


@pytest.fixture
def episode():
    system = Oscillator()
    controller = MLP((2,), (1,), generator=torch.Generator().manual_seed(1)).double()
    return system, controller, rollout(system, controller, torch.randn(3, 2, dtype=torch.float64))


def test_influence_is_the_largest_slope_of_the_loss_by_the_physics_alone(episode):
    system, controller, trajectory = episode
    arriving, _ = feedback(AdjointEngine(system, controller), trajectory)
    by_state = influence(system, trajectory).by_state
    assert (by_state >= arriving[:, 1].abs().amax((0, 1)) - 1e-12).all()  # the start is one of its states
    shorter = trajectory.states[1], trajectory.actions[1:]
    system.horizon -= 1
    later = influence(system, type(trajectory)(trajectory.states[1:], shorter[1])).by_state
    torch.testing.assert_close(later, arriving[:, 1].abs().amax((0, 1)))


def test_stretches_are_singular_values_of_the_steps(episode):
    system, controller, trajectory = episode
    times, values = stretches(system, controller, trajectory)
    assert times == list(range(6))
    for t in times:
        ends = []
        for loop in (False, True):
            each = []
            for x, u in zip(trajectory.states[t], trajectory.actions[t], strict=True):

                def step(state, loop=loop, u=u):
                    action = controller(state[None]) if loop else u[None]
                    return system.step(state[None], action)[0]

                each.append(torch.linalg.svdvals(torch.autograd.functional.jacobian(step, x)))
            every = torch.stack(each)
            ends.append(torch.stack([every[:, 0].max(), every[:, 1].min()]))
        torch.testing.assert_close(values[:, :, t], torch.stack(ends))


def test_bytes_of_autograd_grow_with_the_horizon_and_those_of_the_adjoint_engine_to_a_bound(monkeypatch):
    monkeypatch.setattr(perceptron, "KEPT_NUMBERS", 1024 * 32 * 10)
    peaks = {}
    for horizon in (50, 100):
        system = Integrator(horizon=horizon)
        states = system.initial_states(1024, torch.Generator().manual_seed(0))
        for cost in update_costs(system, default_controller(system, hidden=(32,)), states):
            peaks[cost.engine, horizon] = cost.peak_bytes
            assert cost.seconds > 0.0
    kept = 4 * 1024 * 32 * 50  # the hidden layer's, at least
    assert peaks["autograd", 100] - peaks["autograd", 50] > kept
    assert peaks["adjoint", 100] - peaks["adjoint", 50] < kept / 4


# Who may ask, and what stays


@pytest.mark.usefixtures("untimed")
def test_environments_vector_environments_and_tasks_are_taken():
    system = Oscillator()
    expected = check_gradients(system).findings[:12]
    for env in (DifferentiableEnv(system), DifferentiableVectorEnv(system, num_envs=2)):
        assert check_gradients(env).findings[:12] == expected
    timed = check_gradients(Task(system, observe_time=True, terminated=lambda x: x[:, 0] > 1.0))
    assert not timed.failed, timed.text()
    drawn = Task(CartPole(horizon=5), randomize={"pole_length": (0.4, 0.6)}, show_parameters=True)
    assert not check_gradients(drawn).failed
    over = Task(system, terminated=lambda x: x[:, 0] < 1e9)
    assert "every episode is over at its start" in " ".join(found(over, "warning"))
    for env, controller in ((None, None), (system, lambda observation: observation)):
        with pytest.raises((TypeError, ValueError), match=r"(env|controller) must be a"):
            check_gradients(env, controller)
    with pytest.raises(ValueError, match="controller Flatten has no parameter that requires a gradient"):
        check_gradients(system, nn.Flatten())


class Noisy(nn.Module):
    """Draws random numbers, with which the adjoint engine cannot serve it."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, observation):
        return self.layer(observation) + 0.1 * torch.randn_like(observation[:, :1])


@pytest.mark.parametrize("controller", [GRU((2,), (1,)), Noisy()])
def test_controllers_that_the_adjoint_engine_does_not_serve_are_checked_as_far_as_it_goes(controller):
    check = check_gradients(Oscillator(), controller)
    assert not check.failed
    assert any("feedback under R and M was not looked at" in one.words for one in check.findings)
    assert check.horizon is None
    assert len(check.steps_csv().splitlines()) == 1


def test_nothing_is_changed():
    controller = nn.Sequential(nn.BatchNorm1d(2), MLP((2,), (1,)))
    weights = [one.clone() for one in controller.state_dict().values()]
    random = torch.get_rng_state()
    first, second = (check_gradients(Oscillator(), controller) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), random)
    assert all(map(torch.equal, controller.state_dict().values(), weights))
    assert all(one.grad is None for one in controller.parameters())
    assert first.slopes == second.slopes
    assert first.steps_csv() == second.steps_csv()


@pytest.mark.usefixtures("drawn")
def test_the_figure_and_the_csv_show_every_step(tmp_path):
    system = Oscillator()
    check = check_gradients(system)
    save_figure(gradient_figure(check, system, "one"), tmp_path / "check.png")
    rows = list(csv.DictReader(io.StringIO(check.steps_csv())))
    assert [row["t"] for row in rows] == [str(t) for t in range(7)]
    assert float(rows[6]["feedback_R"]) == pytest.approx(check.horizon.feedback[0, -1], rel=1e-5)
    assert float(rows[0]["largest_A"]) == pytest.approx(check.horizon.stretches[0, 0, 0], rel=1e-5)
    broken = check_gradients(Dipping())
    save_figure(gradient_figure(broken, Dipping()), tmp_path / "broken.png")
