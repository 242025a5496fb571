"""What a task asks of a system: costs of one's own, parameters that differ from episode to episode, early ends."""

import copy
import math
import warnings

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3.common.env_checker as sb3
import torch
from cliff import ByProducts, Cliff, losses_one_by_one
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from recorded import Recorded

from bptt_envs import DifferentiableEnv, DifferentiableVectorEnv, System, Task, check_system
from bptt_envs.checks import positive
from bptt_envs.registration import ENTRIES, system_class
from bptt_envs.systems import LQR, CartPole, Integrator, MultiPole
from bptt_envs.task import as_task, ends_by_itself
from bptt_trainers import TrainConfig, Trainer, losses, rollout
from bptt_trainers.directions.system_of import system_of
from bptt_trainers.rl.sb3_env import SB3VecEnv
from bptt_trainers.rl.view import RLView

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


@pytest.mark.parametrize("env_id", [one for one in ENTRIES if not ends_by_itself(system_class(one)())])
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


@pytest.mark.parametrize("system", [*(system_class(one)() for one in ENTRIES), Swing(), Swing(friction=1)])
def test_declared_parameters_keep_the_contract_also_all_at_once(system):
    check_system(system)
    ranges = {name: (0.8 * getattr(system, name), 1.25 * getattr(system, name)) for name in system.parameter_names}
    check_system(Task(system, randomize=ranges, show_parameters=bool(ranges)), dtype=torch.float64)


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


def test_a_system_of_before_may_have_things_of_these_names():
    class Model(torch.nn.Linear):
        pass

    class Learned(System, Model):
        state_shape = (2,)
        action_shape = (1,)

        def __init__(self, *, gain=1.0):
            Model.__init__(self, 3, 2)
            super().__init__(horizon=3, dt=0.1)
            self.gain = gain

        def step(self, state, action):
            return state + self.dt * self.gain * Model.forward(self, torch.cat([state, action], dim=1))

        def initial_states(self, batch, generator, dtype=torch.float32):
            return torch.randn(batch, 2, generator=generator, dtype=dtype)

        def state_cost(self, state):
            return state.square().sum(-1)

    class Told(Integrator):
        def __init__(self, *, horizon=4):
            super().__init__(horizon=horizon)
            self.terminated, self.parameters = False, ["none"]

    learned = Learned()
    assert learned.parameter_names == ()
    assert len(list(learned.parameters())) == 2
    check_system(learned)
    assert as_task(Told()).parameter_names == ()
    assert DifferentiableEnv(Told()).reset(seed=0)[0].shape == (1,)


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


# Episodes that end early


def test_a_system_that_says_so_keeps_its_contract_where_it_is_not_a_number():
    for dtype in (torch.float32, torch.float64):
        check_system(Cliff(), dtype=dtype)
        check_system(ByProducts(), dtype=dtype)
        check_system(Task(Cliff(), randomize={"grip": (0.0, 0.3)}, observe_time=True), dtype=dtype)


def test_an_ended_episode_stays_where_it_is_and_costs_no_more():
    system = Cliff()
    task = Task(system, observe_time=True)
    state = task.initial_states(4, torch.Generator().manual_seed(0), torch.float64)
    assert state[:, 2].tolist() == [1.0, 1.0, 1.0, 0.0]
    actions = torch.randn(6, 4, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ended, costs = [task.episode_over(state).tolist()], []
    for action in actions:
        following = task.step(state, action)
        costs.append(task.running_cost(state, action, following))
        stays = task.episode_over(state)
        assert torch.equal(following[stays], state[stays])
        assert not (following[~stays, :2] == state[~stays, :2]).any()
        state = following
        ended.append(task.episode_over(state).tolist())
    assert [[row[i] for row in ended].index(True) if ended[-1][i] else None for i in range(4)] == [1, 3, None, 0]
    assert state[:, 3].tolist() == [1.0, 3.0, 6.0, 0.0]
    assert [int((cost != 0).sum()) for cost in torch.stack(costs, 1)] == [1, 3, 6, 0]
    assert torch.equal(task.final_cost(state), system.final_cost(state[:, :2]))
    assert torch.equal(task.terminated(state), task.episode_over(state))
    assert task.state_labels[2:] == ("alive", "steps")


@pytest.mark.parametrize("kind", [Cliff, ByProducts])
def test_the_loss_and_its_slopes_are_those_of_episodes_that_stop(kind):
    system = kind()
    task = as_task(system)
    weight = torch.tensor([[0.3, -0.2]], dtype=torch.float64, requires_grad=True)
    states = system.initial_states(4, torch.Generator().manual_seed(0), torch.float64)
    expected, steps = losses_one_by_one(system, lambda seen: seen @ weight.T, states)
    assert steps == [1, 3, 6, 0]
    state, losses = task.at_start(states), states.new_zeros(4)
    for _ in range(task.horizon):
        action = task.observe(state) @ weight.T
        following = task.step(state, action)
        losses, state = losses + task.running_cost(state, action, following), following
    losses = losses + task.final_cost(state)
    torch.testing.assert_close(losses, expected, rtol=1e-12, atol=1e-12)
    (found,), (wanted,) = (torch.autograd.grad(one.sum(), weight) for one in (losses, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [Cliff, ByProducts])
def test_slopes_of_an_ended_episode_are_those_of_staying(kind):
    task = Task(kind(), randomize={"grip": (0.0, 0.3)}, observe_time=True)
    state = task.initial_states(4, torch.Generator().manual_seed(0), torch.float64)
    action = torch.zeros(4, 1, dtype=torch.float64)
    n, units = task.state_size, torch.eye(task.state_size, dtype=torch.float64)
    units = units.unsqueeze(1).expand(n, 4, n)
    by_state, by_action = System.pullback(task, state, action)(slice(None), units)
    found = task.linearize(state, action)
    for one, slope in zip(found, (by_state, by_action), strict=True):
        torch.testing.assert_close(one.transpose(0, 1), slope, rtol=1e-12, atol=1e-12)
    assert torch.equal(found[0][3], torch.diag(torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0], dtype=torch.float64)))
    assert not found[1][3].any()
    for rows in (slice(None), slice(2, 4)):
        products = task.pullback(state, action)(rows, units[:, rows])
        for one, slope in zip(products, (by_state[:, rows], by_action[:, rows]), strict=True):
            torch.testing.assert_close(one, slope, rtol=1e-12, atol=1e-12)


def test_a_condition_of_ones_own_counts_in_the_place_of_the_systems():
    task = Task(Cliff(), terminated=lambda state: state[:, 0] > 0.8)
    states = task.initial_states(4, torch.Generator().manual_seed(0))
    assert task.episode_over(states).tolist() == [True, False, False, True]
    assert task.asked.keys() == {"terminated"}
    plain = Task(CartPole(), observe_time=True)
    assert plain.episode_over(plain.initial_states(2, torch.Generator())) is None


def test_a_system_with_an_end_is_a_task_wherever_it_is_taken():
    system = Cliff()
    assert type(as_task(system)) is type(DifferentiableEnv(system).system) is type(RLView(system).system) is Task
    assert type(DifferentiableVectorEnv(system, 2).system) is type(system_of(system)) is Task
    assert as_task(as_task(system)) is not as_task(CartPole())
    assert type(as_task(CartPole())) is CartPole
    states = system.initial_states(4, torch.Generator().manual_seed(0))
    trajectory = rollout(system, lambda seen: 0 * seen[:, :1], states)
    assert trajectory.states[0].tolist() == as_task(system).episode_start(states).tolist()
    expected, _ = losses_one_by_one(system, lambda seen: 0 * seen[:, :1], states)
    torch.testing.assert_close(losses(system, trajectory), expected)


class Sudden(Cliff):
    def terminated(self, state):
        return state[:, 0] > -100.0


class Talks(Cliff):
    def terminated(self, state):
        return (state[:, 0] > 1.0).to(state.dtype)


class Gathers(Cliff):
    def terminated(self, state):
        return (state[:, 0] > state[:, 0].mean()).logical_and(state[:, 0] > 0.9)


@pytest.mark.parametrize(
    ("system", "message"),
    [
        (Talks(), r"Talks\.terminated must return \(3,\), torch\.bool, for 3 samples; got \(3,\), torch\.float32"),
        (Gathers(), r"Gathers\.terminated must treat samples apart"),
        (Task(CartPole(), terminated=lambda state: False), r"Task\.terminated must return .*; got False"),
    ],
)
def test_conditions_are_checked(system, message):
    with pytest.raises(ValueError, match=message):
        check_system(system)
    with pytest.raises(ValueError, match=message):
        DifferentiableEnv(system)
    with pytest.raises(TypeError, match="terminated must be a function of states, or None"):
        gym.make("DiffCartPole-v0", terminated=True)


def episode(env, start, actions):
    """Rewards and the loss of a single environment's episode, and how often it was stepped."""
    env.reset(options={"state": start})
    rewards, over, info = [], False, {}
    while not over:
        _, reward, over, truncated, info = env.step(actions[len(rewards)])
        assert not truncated
        rewards.append(reward)
    with pytest.raises(ResetNeeded, match=f"after the episode's {len(rewards)} steps"):
        env.step(actions[0])
    return rewards, info["loss"]


@pytest.mark.parametrize("options", [{}, {"randomize": {"grip": (0.1, 0.1)}, "observe_time": True}])
def test_an_environment_ends_with_its_episode_and_pays_the_final_cost_then(options):
    system = Cliff()
    env = DifferentiableEnv(Task(system, **options))
    states = system.initial_states(4, torch.Generator().manual_seed(0))
    expected, steps = losses_one_by_one(system, lambda seen: 0 * seen[:, :1] + 0.5, states)
    for i in range(4):
        rewards, loss = episode(env, states[i].numpy(), [[0.5]] * 6)
        assert len(rewards) == max(1, steps[i]), "one that begins at its end is over with its first step"
        assert -sum(rewards) == pytest.approx(loss) == pytest.approx(float(expected[i]), rel=1e-4)


@pytest.mark.parametrize(
    ("mode", "compile"),
    [*((mode, False) for mode in AutoresetMode), (AutoresetMode.NEXT_STEP, True)],
)
def test_a_batch_ends_each_episode_as_single_environments_do(mode, compile, monkeypatch):
    monkeypatch.setattr("bptt_envs.program.Program", Recorded)
    system = Cliff()
    envs = DifferentiableVectorEnv(system, 3, autoreset_mode=mode, compile=compile)
    states = system.initial_states(3, torch.Generator().manual_seed(0)).numpy()
    singles = [episode(DifferentiableEnv(system), state, [[0.5]] * 6) for state in states]
    envs.reset(seed=0, options={"state": states})
    over = np.zeros(3, bool)
    for t in range(6):
        if mode is AutoresetMode.DISABLED and over.any():
            with pytest.raises(ResetNeeded, match="reset_mask"):
                envs.step(np.zeros((3, 1), np.float32))
            envs.reset(options={"reset_mask": over})
        _, rewards, over, truncated, infos = envs.step(np.full((3, 1), 0.5, np.float32))
        assert not truncated.any()
        for i, (single, loss) in enumerate(singles):
            if t < len(single):
                assert rewards[i] == pytest.approx(single[t], rel=1e-4)
                assert over[i] == (t == len(single) - 1)
            if t == len(single) - 1:
                info = infos["final_info"] if mode is AutoresetMode.SAME_STEP else infos
                assert info["loss"][i] == pytest.approx(loss, rel=1e-4)
            if t == len(single) and mode is AutoresetMode.NEXT_STEP:
                assert rewards[i] == 0.0
                assert not over[i]


@pytest.mark.parametrize("dense", [False, True])
def test_learners_of_reinforcement_learning_see_the_end_of_an_episode(dense):
    system = Cliff(max_action=1.0)
    states = system.initial_states(3, torch.Generator().manual_seed(0))
    expected, steps = losses_one_by_one(system, lambda seen: 0 * seen[:, :1], states)
    envs = SB3VecEnv(system, 3, dense=dense)
    envs.set_options([{"state": state} for state in states])
    envs.reset()
    found = {}
    for t in range(6):
        _, _, dones, infos = envs.step(np.zeros((3, 1), np.float32))
        for i in np.flatnonzero(dones):
            if i not in found:
                found[i] = infos[i]["episode"]["r"], infos[i]["episode"]["l"]
                assert infos[i]["terminal_observation"][-1] == np.float32((t + 1) / 6)
                assert "TimeLimit.truncated" not in infos[i]
    shaped = system.final_cost(states) if dense else torch.zeros(3)
    for i in range(3):
        assert found[i][1] == steps[i]
        assert -found[i][0] == pytest.approx(float(expected[i] - shaped[i]), rel=1e-3)


def test_states_of_a_view_are_the_tasks():
    for system in (Cliff(), Task(Cliff(), observe_time=True)):
        view = RLView(system)
        states = as_task(Cliff()).initial_states(4, torch.Generator().manual_seed(0))
        begun = view.episode_start(states[:, :2])
        assert torch.equal(begun[:, :3], states)
        assert torch.equal(view.episode_start(begun), begun)
        assert torch.equal(view.inner(begun), view.system.episode_start(states[:, :2]))
        assert view.episode_over(begun).tolist() == [False, False, False, True]


@pytest.mark.parametrize("seed", range(12))
def test_whatever_is_asked_losses_are_those_of_each_episode_by_itself(seed):
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    system = MultiPole(n_poles=1 + seed % 3, dynamics=("paper", "exact")[seed % 2], objective="continuous", horizon=8)
    chosen = [name for name in system.parameter_names if uniform(1) < 0.7] or ["gravity"]
    ranges = {}
    for name in chosen:
        low, high = sorted((getattr(system, name) * (0.3 + 2 * uniform(2))).tolist())
        ranges[name] = low, high
    limit = float(0.1 + uniform(1))

    def too_far(state):
        return state[:, 0].abs() > limit

    own = {"running_cost": effort} if seed % 4 < 2 else {}
    task = Task(system, randomize=ranges, terminated=too_far, observe_time=seed % 3 == 0, **own)
    states = task.initial_states(6, generator, torch.float64)
    weight = 20 * uniform(system.state_size, 1) - 10
    trajectory = rollout(task, lambda seen: seen[:, : system.state_size] @ weight, states)
    found, values = losses(task, trajectory), task.parameters_of(states)
    for i in range(6):
        built = system.rebuilt(**{name: float(value[i]) for name, value in values.items()})
        built.terminated = too_far
        built.running_cost = own.get("running_cost", built.running_cost)
        begin = task.inner(states)[i : i + 1]
        alone, _ = losses_one_by_one(built, lambda seen: seen @ weight, begin)
        torch.testing.assert_close(found[i : i + 1], alone, rtol=1e-9, atol=1e-12)


def test_a_copy_has_settings_of_its_own():
    task = Task(Integrator(horizon=8), final_cost=distance)
    short = copy.copy(task)
    short.horizon = 2
    assert (task.horizon, task.system.horizon, short.system.horizon) == (8, 8, 2)


def test_parameters_are_given_to_states_of_the_task_too():
    task = Task(CartPole(), randomize={"pole_length": (0.4, 0.6), "gravity": (9.0, 10.0)}, observe_time=True)
    states = task.initial_states(3, torch.Generator().manual_seed(0))
    given = task.at_start(states, pole_length=0.8)
    torch.testing.assert_close(task.parameters_of(given)["pole_length"], torch.full((3,), 0.8))
    torch.testing.assert_close(task.parameters_of(given)["gravity"], task.parameters_of(states)["gravity"])
    torch.testing.assert_close(task.inner(given), task.inner(states))
    with pytest.raises(ValueError, match="randomize has no 'pole_lenght'"):
        task.at_start(states, pole_lenght=0.8)
    with pytest.raises(ValueError, match=r"state must hold states of shape \(4,\) or \(7,\); got \(3, 9\)"):
        task.at_start(torch.zeros(3, 9), pole_length=0.8)
    with pytest.raises(ValueError, match=r"pole_length must be a number or of shape \(3,\)"):
        task.at_start(states, pole_length=torch.ones(2))


def test_names_that_a_system_has_for_itself_stay_its_own():
    class Own(Integrator):
        ended = False

        def at_start(self, state):
            return state[:, 0] == 0

    env = DifferentiableEnv(Own(horizon=3))
    env.reset(seed=0)
    assert [env.step([0.0])[2] for _ in range(3)] == [False, False, True]
    assert Own().ended is False


def test_start_states_may_lie_where_the_systems_own_do_not():
    balance = Task(CartPole(horizon=5), terminated=lambda state: state[:, 2].abs() > 0.21)
    upright = 0.01 * torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    check_system(balance)
    env = DifferentiableEnv(balance)
    env.reset(options={"state": upright[0].numpy()})
    assert env.step([0.0])[2] is False


def test_start_states_that_are_all_over_are_refused_where_they_are_trained_on():
    check_system(Sudden())
    with pytest.raises(ValueError, match="train_states: terminated is true of all of them"):
        Trainer(Sudden(), config=TrainConfig(epochs=1, train_states=4, batch_size=4, test_states=4))
    upright = 0.01 * torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    balance = Task(CartPole(horizon=5), terminated=lambda state: state[:, 2].abs() > 0.21)
    config = TrainConfig(epochs=1, batch_size=3, hidden=(4,))
    assert math.isfinite(Trainer(balance, config=config, train_states=upright, test_states=upright).fit()[-1].test_loss)
