"""What a task asks of a system: costs of one's own."""

import copy

import gymnasium as gym
import pytest
import torch

from bptt_envs import DifferentiableEnv, System, Task, check_system
from bptt_envs.registration import ENTRIES
from bptt_envs.systems import CartPole, Integrator

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


def test_a_copy_has_settings_of_its_own():
    task = Task(Integrator(horizon=8), final_cost=distance)
    short = copy.copy(task)
    short.horizon = 2
    assert (task.horizon, task.system.horizon, short.system.horizon) == (8, 8, 2)
