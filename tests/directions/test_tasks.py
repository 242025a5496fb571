"""The fast engine on tasks is the definition's equal: alone, stacked, compiled, with and without memory."""

import shutil

import pytest
import torch
from cliff import ByProducts, Cliff

from bptt_envs import Task
from bptt_envs.systems import CartPole, Guidance, Integrator, MultiPole, QuantumControl
from bptt_envs.task import as_task
from bptt_trainers import GRU, MLP, Gaussian, draw_noise, losses, policy_gradient, rollout
from bptt_trainers.directions.policy_gradient import choose_engine, stacked_engine
from bptt_trainers.directions.rules import MODIFIED, REGULAR, STOPPED

BATCH = 4
PASSES = (REGULAR, MODIFIED, STOPPED)
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")


def effort(state, action, next_state):
    return 0.01 * action.flatten(1).square().sum(-1) + next_state.flatten(1)[:, 0].square()


def distance(state):
    return (state.flatten(1)[:, 1] - 1.0).square()


TASKS = {
    "costs": lambda: Task(CartPole(horizon=5), running_cost=effort, final_cost=distance),
    "costs and time": lambda: Task(MultiPole(horizon=4), running_cost=effort, observe_time=True),
    "by products": lambda: Task(QuantumControl(horizon=3, n_points=6), final_cost=distance, observe_time=True),
    "bounded": lambda: Task(Guidance(horizon=3, max_control=0.2), running_cost=effort, observe_time=True),
    "parameters hidden": lambda: Task(
        CartPole(horizon=5, objective="continuous"), randomize={"pole_length": (0.4, 0.6), "gravity": (8.0, 11.0)}
    ),
    "parameters shown": lambda: Task(
        MultiPole(horizon=4, dynamics="exact"), randomize={"cart_mass": (0.5, 2.0)}, show_parameters=True
    ),
    "parameters by products": lambda: Task(
        Guidance(horizon=3), randomize={"repulsion_floor": (0.1, 0.5), "control_weight": (0.0, 1.0)}
    ),
    "parameters by default slopes": lambda: Task(
        Integrator(horizon=4), randomize={"target": (-2.0, 2.0)}, show_parameters=True, observe_time=True
    ),
    "early ends": Cliff,
    "early ends by products": lambda: Task(ByProducts(max_action=0.1), observe_time=True),
    "early ends of poles": lambda: Task(
        CartPole(horizon=6, objective="continuous"), terminated=lambda state: state[:, 0].abs() > 0.5
    ),
    "all at once": lambda: Task(
        Cliff(),
        running_cost=lambda x, u, y: 0.1 * u.square().sum(-1) + (1.0 - x[:, 0]).sqrt(),
        final_cost=distance,
        terminated=lambda state: state[:, 0] > 0.99,
        randomize={"grip": (0.0, 0.3)},
        show_parameters=True,
        observe_time=True,
    ),
}


@pytest.fixture(params=TASKS)
def task(request):
    return TASKS[request.param]()


def mlp(task, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return MLP(task.observation_shape, task.action_shape, (6, 5), generator=generator).double()


def gru(task, seed=0):
    return GRU(task.observation_shape, task.action_shape, (5,), generator=torch.Generator().manual_seed(seed)).double()


def gaussian(task):
    """A controller with memory, and states and noise for it."""
    generator = torch.Generator().manual_seed(0)
    shapes = task.observation_shape, task.action_shape
    controller = Gaussian(*shapes, (5,), network="gru", generator=generator).double()
    states = as_task(task).episode_start(start(task))
    return controller, states, draw_noise(controller, task.horizon, states, torch.Generator().manual_seed(1))


def start(task):
    return task.initial_states(BATCH, torch.Generator().manual_seed(0), torch.float64)


def close(found, expected):
    for name, direction in expected.items():
        torch.testing.assert_close(found[name], direction, rtol=1e-10, atol=1e-10 * float(direction.abs().max() + 1e-2))


@pytest.mark.parametrize("make", [mlp, gru])
def test_the_fast_engine_agrees_with_autograd_by_every_rule(task, make):
    controller = make(task)
    for rule in ("R", "M", "S", "C"):
        fast, defined = (policy_gradient(task, controller, start(task), rule, one) for one in ("adjoint", "autograd"))
        torch.testing.assert_close(fast.loss, defined.loss, rtol=1e-12, atol=1e-12)
        close(fast.directions, defined.directions)


@pytest.mark.parametrize("make", [mlp, gru])
def test_stacked_controllers_have_the_directions_that_each_has_alone(task, make):
    controllers = [make(task, seed) for seed in range(3)]
    engine = stacked_engine(task, controllers[0], start(task), "tests")
    named = [dict(controller.named_parameters()) for controller in controllers]
    parameters = {name: torch.stack([one[name].detach() for one in named]) for name in named[0]}
    states = as_task(task).episode_start(start(task))
    losses, directions = engine(parameters, states.expand(3, *states.shape), PASSES)
    for i, controller in enumerate(controllers):
        alone, passes = choose_engine(task, controller, start(task), "autograd").engine(start(task), PASSES)
        torch.testing.assert_close(losses[i], alone, rtol=1e-12, atol=1e-12)
        for feedback in PASSES:
            close({name: of[i] for name, of in directions[feedback].items()}, passes[feedback])


@needs_compiler
def test_compiled_directions_are_those_of_the_fast_engine(monkeypatch):
    """Of all that a task may be asked for, with memory and noise."""
    monkeypatch.setattr("bptt_trainers.directions.compiled.STEPS_THERE", 2)
    monkeypatch.setattr("bptt_trainers.directions.compiled.STEPS_BACK", 2)
    task = TASKS["all at once"]()
    controller, states, noise = gaussian(task)
    (losses, directions), (found_losses, found) = (
        choose_engine(task, controller, states, compile=one, entropy=0.5).engine(states, PASSES[:2], noise=noise)
        for one in (False, True)
    )
    torch.testing.assert_close(found_losses, losses, rtol=1e-10, atol=1e-12)
    for feedback in PASSES[:2]:
        close(found[feedback], directions[feedback])


def test_noise_and_entropy_count_until_an_episode_ends(task):
    controller, states, noise = gaussian(task)
    by = {}
    for rule in ("R", "M", "S", "C"):
        for engine in ("adjoint", "autograd"):
            by[engine] = policy_gradient(task, controller, states, rule, engine, noise=noise, entropy=0.5)
        close(by["adjoint"].directions, by["autograd"].directions)
    with torch.no_grad():
        trajectory = rollout(task, controller, states, noise=noise)
        bonus = torch.zeros(BATCH, dtype=torch.float64)
        for t in range(task.horizon):
            observation = as_task(task).observe(trajectory.states[t])
            entropy = controller(observation, trajectory.memories[t], noise[t])[-1]
            over = as_task(task).episode_over(trajectory.states[t])
            bonus += 0.5 / task.horizon * (entropy if over is None else torch.where(over, 0.0, entropy))
        expected = (losses(task, trajectory) - bonus).mean()
    torch.testing.assert_close(by["adjoint"].loss, expected)
    torch.testing.assert_close(by["autograd"].loss, expected)


class Blind(CartPole):
    """Sees how far the end of the track is, a number on the track only: there an episode ends."""

    def observe(self, state):
        return torch.cat([state, (1.0 - state[:, :1].square()).sqrt()], 1)

    @property
    def observation_shape(self):
        return (5,)

    def terminated(self, state):
        return state[:, 0].abs() >= 1.0

    def initial_states(self, batch, generator, dtype=torch.float32):
        return 0.9 * super().initial_states(batch, generator, dtype)


@pytest.mark.parametrize("engine", ["adjoint", "autograd"])
def test_what_is_seen_beyond_an_end_reaches_no_gradient_be_it_nan(engine):
    system = as_task(Blind(horizon=40))
    states = system.initial_states(16, torch.Generator().manual_seed(0), torch.float64)
    trajectory = rollout(system, mlp(system), states)
    assert bool(system.episode_over(trajectory.states[-1]).any())
    assert trajectory.actions.isfinite().all()
    found = policy_gradient(system, mlp(system), states, "C", engine)
    assert all(bool(one.isfinite().all()) for one in found.directions.values())


def test_parameters_of_states_follow_the_generator_of_an_update():
    system = Task(CartPole(horizon=3), randomize={"pole_length": (0.1, 1.0)})
    states = system.system.initial_states(4, torch.Generator().manual_seed(0), torch.float64)

    def loss(seed):
        generator = torch.Generator().manual_seed(seed)
        return float(policy_gradient(system, mlp(system), states, "R", generator=generator).loss)

    assert loss(1) == loss(1)
    assert loss(1) != loss(2)


def test_a_value_for_each_sample_is_refused_where_samples_are_of_many_steps():
    system = CartPole(horizon=3).with_parameters(pole_length=torch.linspace(0.3, 0.8, BATCH, dtype=torch.float64))
    with pytest.raises(
        ValueError, match=r"pole_length has a value for each of 4 samples.*task\.at_start\(states, pole"
    ):
        policy_gradient(system, mlp(system), start(system))
    with pytest.raises(ValueError, match="pole_length has a value for each of 4 samples"):
        losses(system, rollout(system, mlp(system), start(system)))
