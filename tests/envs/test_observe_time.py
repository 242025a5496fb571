"""What observe_time=True shows and leaves alone: the system's physics with the time in state and observation."""

import copy
import pickle
import warnings

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3.common.env_checker as sb3
import torch
from gymnasium.utils.env_checker import check_env

import bptt_envs
from bptt_envs import DifferentiableEnv, System, Task, check_system
from bptt_envs.registration import ENTRIES, build_system, system_class
from bptt_envs.system import ENV_OPTIONS
from bptt_envs.systems import LQR, CartPole, Integrator, QuantumControl
from bptt_envs.task import ends_by_itself

BATCH = 5


class Grid(System):
    """A state and an action of two dimensions each, in views of them, on bounds of its own."""

    state_shape = (2, 3)
    action_shape = (2, 1)
    nominal_action = 3.0
    time_unit = "min"

    def __init__(self, *, objective="final", horizon=4, dt=0.5, width=3):
        super().__init__(horizon=horizon, dt=dt, objective=objective, action_low=-1.0, action_high=[[2.0], [0.5]])
        self.width = width

    def step(self, state, action):
        return (state.view(-1).view(-1, 6) + self.dt * action.expand(-1, 2, 3).reshape(-1, 6).sin()).view(-1, 2, 3)

    def initial_states(self, batch, generator, dtype=torch.float32):
        return torch.randn(batch, 2, 3, generator=generator, dtype=dtype)

    def state_cost(self, state):
        return state.view(-1).view(-1, 6).square().sum(-1)


class Own(Integrator):
    """A system that had an option of this name before."""

    def __init__(self, *, observe_time="never", horizon=4):
        super().__init__(horizon=horizon)
        self.observe_time = observe_time


@pytest.fixture
def own_ids(monkeypatch):
    monkeypatch.setattr(gym.envs.registration, "registry", dict(gym.registry))
    monkeypatch.setattr("bptt_envs.registration.ENTRIES", dict(ENTRIES))
    bptt_envs.register("TestGrid-v0", f"{__name__}:Grid", "a grid")
    bptt_envs.register("TestTimed-v0", f"{__name__}:Grid", "a grid with the time", observe_time=True)
    bptt_envs.register("TestOwn-v0", f"{__name__}:Own", "an option of its own")


def states_and_actions(timed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    states = timed.initial_states(BATCH, generator, dtype)
    states[:, -1] = torch.arange(BATCH)  # steps done
    return states, torch.randn(BATCH, *timed.action_shape, generator=generator, dtype=dtype)


@pytest.fixture
def system(system):
    return system.system if isinstance(system, Task) else system


@pytest.fixture
def timed(system):
    return Task(system, observe_time=True)


def test_it_keeps_the_contract_of_a_system(timed):
    check_system(timed, dtype=torch.float64 if timed.objective == "final" else torch.float32)


@pytest.mark.parametrize("check", [check_env, sb3.check_env], ids=["gymnasium", "stable-baselines3"])
def test_the_checkers_find_no_more_to_say(env_id, check):
    said = []
    for options in ({}, {"observe_time": True}):
        env = gym.make(env_id, **options).unwrapped
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            check(env)
        said.append({str(warning.message) for warning in caught})
    assert said[1] <= said[0]


def test_physics_and_costs_are_the_systems(system, timed):
    states, actions = states_and_actions(timed)
    actions = timed.bound(actions)
    assert torch.equal(actions, system.bound(actions))
    inner, next_states = timed.inner(states), timed.step(states, actions)
    following = system.step(inner, actions)
    assert torch.equal(timed.inner(next_states), following)
    assert torch.equal(timed.state_cost(states), system.state_cost(inner))
    assert torch.equal(timed.running_cost(states, actions, next_states), system.running_cost(inner, actions, following))
    assert torch.equal(timed.final_cost(states), system.final_cost(inner))
    assert torch.equal(timed.observe(states)[:, :-1], system.observe(inner).flatten(1))


def test_the_time_is_counted_in_the_state_and_seen_as_the_share_that_is_over(timed):
    states, actions = states_and_actions(timed, torch.float32)
    assert timed.initial_states(2, torch.Generator())[:, -1].tolist() == [0.0, 0.0]
    assert timed.step(states, actions)[:, -1].tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]
    seen = timed.observe(states)
    assert seen.shape == (BATCH, *timed.observation_shape)
    torch.testing.assert_close(seen[:, -1], torch.arange(BATCH) / timed.horizon)


def test_closed_forms_are_the_slopes_of_the_step(timed):
    states, actions = states_and_actions(timed)
    n = timed.state_size
    units = torch.eye(n, dtype=states.dtype).unsqueeze(1).expand(n, BATCH, n)
    by_state, by_action = System.pullback(timed, states, actions)(slice(None), units)
    expected = by_state.transpose(0, 1), by_action.transpose(0, 1)
    for found, slope in zip(timed.linearize(states, actions), expected, strict=True):
        torch.testing.assert_close(found, slope, rtol=1e-10, atol=1e-12)
    for rows in (slice(None), slice(1, 3)):
        products = timed.pullback(states, actions)(rows, units[:, rows])
        for found, slope in zip(products, (by_state[:, rows], by_action[:, rows]), strict=True):
            torch.testing.assert_close(found, slope, rtol=1e-10, atol=1e-12)


def test_what_it_declares_is_the_systems(system, timed):
    names = ["horizon", "dt", "objective", "max_action", "action_low", "action_high", "has_bounds", "nominal_action"]
    names += ["time_unit", "time_label", "action_shape", "action_labels", "step_weight", "dense_jacobians"]
    for name in [*names, "slope_numbers", "class_name"]:
        assert getattr(timed, name) == getattr(system, name)
    assert timed.state_labels == (*system.state_labels, *["alive"] * ends_by_itself(system), "steps")


def test_bounds_of_each_component_and_views_of_the_state_are_served():
    timed = Task(Grid(), observe_time=True)
    check_system(timed)
    assert timed.state_labels == (*(f"state {i}" for i in range(6)), "steps")
    assert timed.bound(torch.full((1, 2, 1), 9.0)).flatten().tolist() == [2.0, 0.5]
    assert timed.action_range[0].tolist() == [[-1.0], [-1.0]]
    timed.system.max_action = 0.25  # counts before the two
    assert timed.bound(torch.full((1, 2, 1), 9.0)).flatten().tolist() == [0.25, 0.25]
    assert Task(timed.system, observe_time=True).bound(torch.full((1, 2, 1), 9.0)).flatten().tolist() == [0.25, 0.25]
    timed.max_action = None
    assert timed.system.bound(torch.full((1, 2, 1), 9.0)).flatten().tolist() == [2.0, 0.5]


def test_settings_are_shared_but_for_those_of_a_copy():
    system = CartPole(objective="continuous")
    timed = Task(system, observe_time=True)
    timed.horizon, system.max_action = 20, 3.0
    assert (system.horizon, timed.step_weight, timed.max_action, timed.action_high) == (20, 1 / 20, 3.0, 3.0)
    short = copy.copy(timed)
    short.horizon = 5
    assert (short.horizon, short.step_weight, timed.horizon, system.horizon) == (5, 1 / 5, 20, 20)
    assert pickle.loads(pickle.dumps(timed)).horizon == 20
    with pytest.raises(ValueError, match="max_action must be"):
        timed.max_action = -1.0


def test_pictures_are_the_systems(env_id):
    frames = []
    for options in ({}, {"observe_time": True}):
        env = gym.make(env_id, render_mode="rgb_array", **options)
        env.reset(seed=0)
        env.step(np.full(env.action_space.shape, 0.5, np.float32))
        frames.append(env.render())
        system = env.unwrapped.system
        states = system.initial_states(3, torch.Generator().manual_seed(0)).expand(
            4, *[-1] * (len(system.state_shape) + 1)
        )
        charts = system.charts(states, torch.zeros(3, 3, *system.action_shape))
        frames.append([chart.values for chart in charts])
    assert np.array_equal(frames[0], frames[2])
    assert all(map(torch.equal, frames[1], frames[3]))


def test_episodes_are_those_without_it(env_id):
    plain, shown = gym.make(env_id, horizon=3), gym.make(env_id, horizon=3, observe_time=True)
    assert shown.observation_space.shape == (
        plain.observation_space.shape and np.prod(plain.observation_space.shape) + 1,
    )
    observation, seen = plain.reset(seed=0)[0], shown.reset(seed=0)[0]
    for step in range(4):
        assert np.array_equal(seen[:-1], observation.flatten())
        assert seen[-1] == np.float32(step / 3)
        if step < 3:
            action = plain.action_space.sample()
            (observation, *rest), (seen, *others) = plain.step(action), shown.step(action)
            assert rest == others


def test_a_batch_shows_the_time_of_each_episode():
    envs = gym.make_vec("DiffCartPole-v0", num_envs=2, horizon=2, observe_time=True, autoreset_mode="SameStep")
    assert envs.single_observation_space.shape == (5,)
    times = [envs.reset(seed=0)[0][:, -1]]
    times += [envs.step(np.zeros((2, 1)))[0][:, -1] for _ in range(3)]
    assert np.array_equal(times, [[0, 0], [0.5, 0.5], [0, 0], [0.5, 0.5]])


def test_a_state_handed_in_is_the_views():
    env = gym.make("DiffCartPole-v0", observe_time=True).unwrapped
    seen, _ = env.reset(options={"state": [0.1, 0.2, 0.3, 0.4, 25]})
    assert seen[-1] == 0.25
    assert env.state.tolist()[-1] == 25.0
    next_state, _ = env.step_differentiable(env.state.unsqueeze(0), torch.zeros(1, 1))
    assert next_state[0, -1] == 26.0
    with pytest.raises(ValueError, match=r"options\['state'\] must have shape \(5,\) or \(4,\); got shape \(3,\)"):
        env.reset(options={"state": [0.1, 0.2, 0.3]})
    seen, _ = env.reset(options={"state": [0.1, 0.2, 0.3, 0.4]})  # the system's, at step 0
    assert seen[-1] == 0.0


@pytest.mark.usefixtures("own_ids")
def test_every_registered_id_takes_it_also_as_a_default():
    for env_id in ("TestGrid-v0", *ENTRIES):
        system = gym.make(env_id, observe_time=True).unwrapped.system
        assert type(system) is Task
        assert type(system.system) is system_class(env_id)
        plain = gym.make(env_id, observe_time=False).unwrapped.system
        if ends_by_itself(plain):  # a task, which carries who is alive
            plain = plain.system
        assert type(plain) is system_class(env_id)
    assert type(gym.make("TestTimed-v0").unwrapped.system) is Task
    assert type(gym.make("TestTimed-v0", observe_time=False).unwrapped.system) is Grid
    env = gym.make("TestGrid-v0", observe_time=True, width=2)
    again = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json())).unwrapped.system
    assert (type(again), again.system.width) == (Task, 2)


@pytest.mark.usefixtures("own_ids")
def test_a_systems_own_option_of_the_name_counts():
    system = gym.make("TestOwn-v0", observe_time="always").unwrapped.system
    assert (type(system), system.observe_time) == (Own, "always")
    assert Own.env_options() == {**{name: default for name, (default, _) in ENV_OPTIONS.items()}, **Own.options()}
    assert Own.env_options()["observe_time"] == "never"


@pytest.mark.usefixtures("own_ids")
def test_build_system_takes_ids_with_their_defaults_and_import_paths():
    assert type(build_system("TestTimed-v0", {"width": 1}, "tests")) is Task
    assert type(build_system("TestTimed-v0", {"observe_time": False}, "tests")) is Grid
    assert build_system(f"{__name__}:Grid", {"width": 7}, "tests").width == 7
    with pytest.raises(ValueError, match=r"tests has no option 'widht'\. Did you mean 'width'.*observe_time"):
        build_system("TestGrid-v0", {"widht": 1}, "tests")


@pytest.mark.parametrize("value", ["yes", 1, None, 0.0])
def test_what_is_no_truth_value_is_refused(value):
    with pytest.raises(ValueError, match="observe_time must be True or False"):
        gym.make("DiffCartPole-v0", observe_time=value)


def test_the_time_is_shown_once():
    with pytest.raises(ValueError, match="system must be one without a task"):
        Task(Task(CartPole()))
    with pytest.raises(TypeError, match="system must be a System"):
        Task(3)


def test_what_is_wrong_with_a_system_is_said_of_it():
    class Broken(Grid):
        def step(self, state, action):
            return super().step(state, action).detach()

    with pytest.raises(ValueError, match=r"Broken\.step depends on component"):
        check_system(Task(Broken(), observe_time=True))
    with pytest.raises(ValueError, match=r"CartPole\.step .* not finite .*; dt=10000000000\.0 is too extreme"):
        DifferentiableEnv("bptt_envs.systems:CartPole", dt=1e10, observe_time=True)


@pytest.mark.parametrize("system", [LQR(clock=True), QuantumControl(n_points=32)], ids=["clock", "products"])
def test_a_system_with_a_clock_or_without_dense_jacobians_is_one_like_others(system):
    timed = Task(system, observe_time=True)
    check_system(timed)
    assert timed.dense_jacobians == system.dense_jacobians
