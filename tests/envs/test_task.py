"""What a task asks of a system: costs of one's own, parameters that differ from episode to episode."""

import copy
import math
import warnings

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3.common.env_checker as sb3
import torch
from gymnasium.utils.env_checker import check_env

from bptt_envs import DifferentiableEnv, System, Task, check_system
from bptt_envs.checks import positive
from bptt_envs.registration import ENTRIES
from bptt_envs.systems import LQR, CartPole, Integrator, MultiPole

BATCH = 5


def effort(state, action, next_state):
    return 0.01 * action.square().sum(-1) + next_state[:, 0].square()


def distance(state):
    return (state.flatten(1)[:, 0] - 1.0).square()


def drawn(system, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    states = system.initial_states(BATCH, generator, dtype)
    return states, torch.randn(BATCH, *system.action_shape, generator=generator, dtype=dtype)


# Nothing asked


@pytest.mark.parametrize("env_id", ENTRIES)
def test_a_task_that_asks_nothing_is_the_system_bit_for_bit(env_id):
    system = gym.make(env_id).unwrapped.system
    task = Task(system)
    states, actions = drawn(system)
    assert torch.equal(drawn(task)[0], states.flatten(1))
    flat, next_states = states.flatten(1), system.step(states, actions)
    assert torch.equal(task.step(flat, actions), next_states.flatten(1))
    assert torch.equal(task.observe(flat), system.observe(states))
    assert task.observation_shape == system.observation_shape
    running = task.running_cost(flat, actions, next_states.flatten(1))
    assert torch.equal(running, system.running_cost(states, actions, next_states))
    assert torch.equal(task.final_cost(flat), system.final_cost(states))
    assert task.asked == {}


# Costs


class Free(System):
    """A system that costs nothing by itself."""

    state_shape = (2, 2)
    action_shape = (2,)

    def __init__(self, *, horizon=3):
        super().__init__(horizon=horizon, dt=0.1)

    def step(self, state, action):
        return state + self.dt * action.unsqueeze(-1)

    def initial_states(self, batch, generator, dtype=torch.float32):
        return torch.randn(batch, 2, 2, generator=generator, device=generator.device, dtype=dtype)


def test_costs_of_ones_own_take_the_place_of_the_systems():
    system = CartPole(horizon=3)
    both = Task(system, running_cost=effort, final_cost=distance, observe_time=True)
    (states, actions), (inner, _) = drawn(both), drawn(system)
    next_states, following = both.step(states, actions), system.step(inner, actions)
    assert torch.equal(both.running_cost(states, actions, next_states), effort(inner, actions, following))
    assert torch.equal(both.final_cost(states), distance(inner))
    one = Task(system, running_cost=effort)
    assert torch.equal(one.final_cost(inner), system.final_cost(inner))


def test_costs_make_a_task_of_a_system_that_costs_nothing():
    for dtype in (torch.float32, torch.float64):
        check_system(Task(Free(), running_cost=lambda x, u, y: y[:, 0, 0].square()), dtype=dtype)
        check_system(Task(Free(), final_cost=distance, observe_time=True), dtype=dtype)
    with pytest.raises(ValueError, match="Free has no cost"):
        check_system(Task(Free(), observe_time=True))


@pytest.mark.parametrize(
    ("costs", "message"),
    [
        ({"final_cost": lambda x: x.mean()}, r"Task\.final_cost must return \(3,\)"),
        (
            {"running_cost": lambda x, u, y: u.sum(-1).detach()},
            r"Task\.running_cost depends on component 0 of its action",
        ),
        ({"running_cost": lambda x, u, y: y.square().mean().expand(3)}, r"Task\.running_cost must treat samples apart"),
        ({"final_cost": lambda x: 0 * x[:, 0], "running_cost": lambda x, u, y: 0 * x[:, 0]}, "Task has no cost"),
    ],
)
def test_costs_are_checked_as_those_of_a_system(costs, message):
    with pytest.raises(ValueError, match=message):
        check_system(Task(CartPole(), **costs))


def test_gymnasium_passes_costs_on():
    env = gym.make("DiffIntegrator-v0", horizon=2, final_cost=distance, running_cost=effort).unwrapped
    env.reset(options={"state": [0.0]})
    _, first, *_ = env.step([0.5])
    _, second, terminated, _, info = env.step([0.5])
    assert terminated
    assert first == pytest.approx(-(0.01 * 0.25 + 0.25))
    assert info["loss"] == pytest.approx(-first - second) == pytest.approx(0.0025 + 0.25 + 0.0025 + 1.0)


@pytest.mark.parametrize("name", ["running_cost", "final_cost"])
def test_what_is_no_function_is_refused(name):
    with pytest.raises(TypeError, match=f"{name} must be a function of states, or None"):
        Task(Integrator(), **{name: 3.0})
    with pytest.raises(TypeError, match=f"{name} must be a function of states, or None"):
        DifferentiableEnv("bptt_envs.systems:Integrator", **{name: "cost"})


# Parameters that differ from sample to sample


class Swing(System):
    """A damped swing whose options are read in each of its methods; what is wrong with a subclass is its own."""

    state_shape = (2,)
    action_shape = (1,)
    parameters = ("length", "friction")

    def __init__(self, *, length=0.5, friction=0.0, horizon=4):
        super().__init__(horizon=horizon, dt=0.1)
        self.length = positive("length", length)
        self.friction = friction

    def step(self, state, action):
        angle, speed = state[:, 0], state[:, 1]
        speed = speed + self.dt * (angle.sin() / self.length - self.friction * speed + action[:, 0])
        return torch.stack([angle + self.dt * speed, speed], dim=1)

    def initial_states(self, batch, generator, dtype=torch.float32):
        return torch.randn(batch, 2, generator=generator, device=generator.device, dtype=dtype)

    def state_cost(self, state):
        return self.length * (1.0 - state[:, 0].cos())

    def observe(self, state):
        return torch.stack([self.length * state[:, 0].sin(), state[:, 1]], dim=1)


class Derives(Swing):
    def __init__(self, *, length=0.5, friction=0.0, horizon=4):
        super().__init__(length=length, friction=friction, horizon=horizon)
        self._rate = 1.0 / self.length

    def step(self, state, action):
        angle, speed = state[:, 0], state[:, 1]
        speed = speed + self.dt * (angle.sin() * self._rate - self.friction * speed + action[:, 0])
        return torch.stack([angle + self.dt * speed, speed], dim=1)


class Mixes(Swing):
    def state_cost(self, state):
        length = self.length if isinstance(self.length, float) else self.length.flip(0)
        return length * (1.0 - state[:, 0].cos())


class Columns(Swing):
    def step(self, state, action):
        angle, speed = state[:, :1], state[:, 1:]
        speed = speed + self.dt * (angle.sin() / self.length - self.friction * speed + action)
        return torch.cat([angle + self.dt * speed, speed], dim=1)


class Slopes(Swing):
    def linearize(self, state, action):
        system = self.rebuilt()
        return System.linearize(system, state, action)


class Hidden(Swing):
    parameters = ("lengths",)


class Counts(Swing):
    parameters = ("name",)

    def __init__(self, *, name="swing", horizon=4):
        super().__init__(horizon=horizon)
        self.name = name


@pytest.mark.parametrize("system", [*(gym.make(one).unwrapped.system for one in ENTRIES), Swing(), Swing(friction=1)])
def test_declared_parameters_keep_the_contract_also_all_at_once(system):
    for dtype in (torch.float32, torch.float64):
        check_system(system, dtype=dtype)
        ranges = {name: (0.8 * getattr(system, name), 1.25 * getattr(system, name)) for name in system.parameter_names}
        check_system(Task(system, randomize=ranges, show_parameters=bool(ranges)), dtype=dtype)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Derives, r"Derives\.with_parameters\(length=\(B,\)\) does in step something else .* must become a property"),
        (Mixes, r"Mixes\.with_parameters\(length=\(B,\)\) does in final_cost .* must meet its own sample"),
        (
            Columns,
            r"Columns\.with_parameters\(length=\(B,\)\) fails .*self\.length is then a tensor with a value for each",
        ),
        (Slopes, r"Slopes\.with_parameters\(length=\(B,\)\) fails .*linearize differs from autograd"),
        (Hidden, r"Hidden\.parameters must name options whose values are numbers, kept as self\.lengths"),
        (Counts, r"Counts\.parameters must name options whose values are numbers.* got 'name'"),
    ],
)
def test_what_a_parameter_does_not_reach_is_said(kind, message):
    with pytest.raises(ValueError, match=message):
        check_system(kind())


def test_a_class_that_has_other_options_has_the_parameters_among_them():
    class Fixed(CartPole):
        def __init__(self, *, gravity=9.8):
            super().__init__(gravity=gravity, horizon=4)

    assert Fixed().parameter_names == ("gravity",)
    check_system(Fixed())


@pytest.mark.parametrize("system", [Swing(friction=0.1), CartPole(), MultiPole(n_poles=3, dynamics="exact")])
def test_each_sample_has_its_own_value_and_gradients_by_it(system):
    for name in system.parameter_names:
        values = getattr(system, name) * torch.linspace(0.5, 1.5, BATCH, dtype=torch.float64)
        states, actions = drawn(system)
        together = system.with_parameters(**{name: values}).step(states, actions)
        for i, value in enumerate(values.tolist()):
            alone = system.rebuilt(**{name: value}).step(states[i : i + 1], actions[i : i + 1])
            torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-12, atol=1e-12)

        def stepped(value, name=name, states=states, actions=actions):
            return system.with_parameters(**{name: value}).step(states, actions)

        assert torch.autograd.gradcheck(stepped, (values.requires_grad_(),))
        assert torch.autograd.gradcheck(stepped, (values[0].detach().requires_grad_(),))


def test_with_parameters_leaves_the_system_and_refuses_what_it_does_not_have():
    system = CartPole()
    changed = system.with_parameters(pole_length=0.7)
    assert (system.pole_length, changed.pole_length, type(changed)) == (0.5, 0.7, CartPole)
    with pytest.raises(ValueError, match=r"CartPole has no parameter 'pole_lenght'\. Did you mean 'pole_length'\?"):
        system.with_parameters(pole_lenght=0.7)
    with pytest.raises(ValueError, match=r"LQR has no parameter 'A'\. It declares none"):
        LQR().with_parameters(A=1.0)
    for value in (torch.ones(2, 1), torch.ones(2, dtype=torch.int64), "long", math.nan):
        with pytest.raises(ValueError, match="pole_length must be a"):
            system.with_parameters(pole_length=value)


# Drawn for each episode


RANGES = {"pole_length": (0.4, 0.6), "cart_mass": (0.5, 2.0)}


def test_parameters_are_drawn_uniformly_after_the_states_and_held():
    system = CartPole(horizon=3)
    task = Task(system, randomize=RANGES, observe_time=True)
    states = task.initial_states(2000, torch.Generator().manual_seed(0))
    assert torch.equal(task.inner(states), system.initial_states(2000, torch.Generator().manual_seed(0)))
    for name, values in task.parameters_of(states).items():
        low, high = RANGES[name]
        assert low <= float(values.min()) < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < float(values.max()) <= high
        assert float(values.mean()) == pytest.approx((low + high) / 2, abs=0.02 * (high - low))
    later = task.step(states, torch.ones(2000, 1))
    assert torch.equal(later[:, 4:6], states[:, 4:6])
    assert torch.equal(later[:, 6], torch.ones(2000))


@pytest.mark.parametrize("system", [CartPole(objective="continuous"), MultiPole(n_poles=2, dynamics="exact"), Swing()])
def test_each_episode_is_that_of_the_system_with_its_parameters(system):
    ranges = {name: (0.5 * getattr(system, name), 0.1 + getattr(system, name)) for name in system.parameter_names}
    task = Task(system, randomize=ranges)
    states, actions = drawn(task)
    next_states = task.step(states, actions)
    for i in range(BATCH):
        row = slice(i, i + 1)
        own = system.rebuilt(**{name: float(values[i]) for name, values in task.parameters_of(states).items()})
        x, u, y = task.inner(states)[row], actions[row], task.inner(next_states)[row]
        torch.testing.assert_close(y, own.step(x, u), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(task.observe(states)[row], own.observe(x), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(task.final_cost(states)[row], own.final_cost(x), rtol=1e-12, atol=1e-12)
        running = task.running_cost(states, actions, next_states)[row]
        torch.testing.assert_close(running, own.running_cost(x, u, y), rtol=1e-12, atol=1e-12)
        for found, slope in zip(task.linearize(states, actions), own.linearize(x, u), strict=True):
            n = system.state_size
            torch.testing.assert_close(found[row, :n, : slope.shape[-1]], slope, rtol=1e-10, atol=1e-12)
    held = task.linearize(states, actions)[0][:, system.state_size :]
    assert torch.equal(held, torch.eye(task.state_size, dtype=states.dtype)[system.state_size :].expand_as(held))


def test_parameters_are_shown_or_hidden():
    hidden = Task(CartPole(), randomize=RANGES)
    shown = Task(CartPole(), randomize=RANGES, show_parameters=True, observe_time=True)
    states, _ = drawn(shown)
    assert torch.equal(hidden.observe(states[:, :-1]), states[:, :4])
    seen = shown.observe(states)
    assert (hidden.observation_shape, shown.observation_shape) == ((4,), (7,))
    assert torch.equal(seen[:, :4], states[:, :4])
    for i, (name, values) in enumerate(shown.parameters_of(states).items()):
        low, high = RANGES[name]
        torch.testing.assert_close(seen[:, 4 + i], 2 * (values - low) / (high - low) - 1)
    assert shown.state_labels[4:] == ("pole_length (of its range)", "cart_mass (of its range)", "steps")


def test_states_of_the_system_start_with_parameters_drawn_or_given():
    task = Task(CartPole(), randomize=RANGES, observe_time=True)
    inner = CartPole().initial_states(3, torch.Generator().manual_seed(1))
    assert torch.equal(task.at_start(inner), task.at_start(inner))
    other = task.at_start(inner, torch.Generator().manual_seed(1))
    assert not torch.equal(task.at_start(inner), other)
    assert torch.equal(task.at_start(other), other)
    given = task.at_start(inner, pole_length=0.9, cart_mass=torch.tensor([1.0, 1.5, 3.0]))
    torch.testing.assert_close(task.parameters_of(given)["pole_length"], torch.full((3,), 0.9))
    torch.testing.assert_close(task.parameters_of(given)["cart_mass"], torch.tensor([1.0, 1.5, 3.0]))
    with pytest.raises(ValueError, match=r"randomize has no 'cart_mas'\. Did you mean 'cart_mass'"):
        task.at_start(inner, cart_mas=1.0)
    with pytest.raises(ValueError, match="cart_mass is drawn for each episode"):
        task.with_parameters(cart_mass=1.0)
    heavier = task.with_parameters(gravity=20.0)
    assert (heavier.system.gravity, task.system.gravity, heavier.randomize) == (20.0, 9.8, RANGES)


def test_a_range_may_be_a_point():
    task = Task(CartPole(), randomize={"gravity": (3.7, 3.7)}, show_parameters=True)
    states, actions = drawn(task)
    expected = CartPole(gravity=3.7).step(states[:, :4], actions)
    torch.testing.assert_close(task.step(states, actions)[:, :4], expected, rtol=1e-12, atol=1e-12)
    check_system(task)
    with pytest.raises(ValueError, match=r"gravity is 3\.7 in all episodes"):
        task.at_start(states[:, :4], gravity=1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"randomize": {"pole_lenght": (0.4, 0.6)}},
            r"randomize: CartPole has no parameter .*Did you mean 'pole_length'",
        ),
        (
            {"randomize": {"pole_length": (0.6, 0.4)}},
            r"randomize\['pole_length'\] must be \(low, high\) with low <= high",
        ),
        ({"randomize": {"pole_length": (-0.1, 0.4)}}, r"reaches to what the system does not take: pole_length must be"),
        ({"randomize": {"pole_length": 0.4}}, r"randomize\['pole_length'\] must be a pair of finite numbers"),
        ({"randomize": ["pole_length"]}, "randomize must be a dict from names to values"),
        ({"randomize": {"observe_time": (0.0, 1.0)}}, "has no parameter 'observe_time'"),
        ({"show_parameters": True}, "show_parameters shows what randomize draws"),
        ({"show_parameters": 1, "randomize": RANGES}, "show_parameters must be True or False"),
    ],
)
def test_ranges_are_checked_before_any_work(options, message):
    with pytest.raises(ValueError, match=message):
        gym.make("DiffCartPole-v0", **options)


def test_a_batch_of_environments_draws_what_single_ones_draw():
    options = {"randomize": RANGES, "show_parameters": True, "horizon": 4}
    envs = gym.make_vec("DiffCartPole-v0", num_envs=3, **options)
    seen, _ = envs.reset(seed=5)
    for i in range(3):
        env = gym.make("DiffCartPole-v0", **options)
        observation, _ = env.reset(seed=5 + i)
        assert np.array_equal(observation, seen[i])
    for _ in range(5):
        later, *_ = envs.step(np.zeros((3, 1), np.float32))
    assert not np.any(later[:, 4:] == seen[:, 4:]), "the next episode has parameters of its own"


def test_the_picture_is_of_the_episodes_own_pole():
    env = gym.make("DiffCartPole-v0", randomize={"pole_length": (0.3, 0.9)}, render_mode="rgb_array")
    frames = []
    for share in (-1.0, 1.0):
        env.reset(options={"state": [0.0, 0.0, 3.0, 0.0, share]})
        frames.append(env.render())
    assert not np.array_equal(*frames)
    plain = gym.make("DiffCartPole-v0", pole_length=0.9, render_mode="rgb_array")
    plain.reset(options={"state": [0.0, 0.0, 3.0, 0.0]})
    assert np.array_equal(frames[1], plain.render())


@pytest.mark.parametrize("check", [check_env, sb3.check_env], ids=["gymnasium", "stable-baselines3"])
def test_the_checkers_find_no_more_to_say(check):
    said = []
    for options in ({}, {"randomize": RANGES, "show_parameters": True, "observe_time": True, "running_cost": effort}):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            check(gym.make("DiffCartPole-v0", **options).unwrapped)
        said.append({str(warning.message) for warning in caught})
    assert said[1] <= said[0]


def test_a_copy_has_settings_of_its_own():
    task = Task(Integrator(horizon=8), final_cost=distance)
    short = copy.copy(task)
    short.horizon = 2
    assert (task.horizon, task.system.horizon, short.system.horizon) == (8, 8, 2)
