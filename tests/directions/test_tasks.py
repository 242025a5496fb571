"""The fast engine on tasks is the definition's equal: alone, stacked, compiled, with and without memory."""

import shutil

import pytest
import torch
from torch import nn

from bptt_envs import Task
from bptt_envs.program import CACHE_VARIABLE
from bptt_envs.systems import CartPole, Guidance, Integrator, MultiPole, QuantumControl
from bptt_trainers import GRU, MLP, policy_gradient
from bptt_trainers.directions.adjoint import AdjointEngine
from bptt_trainers.directions.augmented import augmented
from bptt_trainers.directions.compiled import CompiledEngine
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
}


@pytest.fixture(params=TASKS)
def task(request):
    return TASKS[request.param]()


def mlp(task, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return MLP(task.observation_shape, task.action_shape, (6, 5), generator=generator).double()


def gru(task, seed=0):
    return GRU(task.observation_shape, task.action_shape, (5,), generator=torch.Generator().manual_seed(seed)).double()


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
    losses, directions = engine(parameters, start(task).expand(3, *start(task).shape), PASSES)
    for i, controller in enumerate(controllers):
        alone, passes = choose_engine(task, controller, start(task), "autograd").engine(start(task), PASSES)
        torch.testing.assert_close(losses[i], alone, rtol=1e-12, atol=1e-12)
        for feedback in PASSES:
            close({name: of[i] for name, of in directions[feedback].items()}, passes[feedback])


@needs_compiler
@pytest.mark.parametrize(("name", "make"), [("parameters shown", gru)])
def test_compiled_directions_are_those_of_the_fast_engine(name, make, tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setattr("bptt_trainers.directions.compiled.STEPS_THERE", 2)
    monkeypatch.setattr("bptt_trainers.directions.compiled.STEPS_BACK", 2)
    task = TASKS[name]()
    controller: nn.Module = make(task)
    system = augmented(task, controller)
    states = start(task) if system is task else system.at_start(start(task))
    engine = AdjointEngine(system, controller)
    losses, directions = engine(states, PASSES)
    found_losses, found = CompiledEngine(engine)(states, PASSES)
    torch.testing.assert_close(found_losses, losses, rtol=1e-10, atol=1e-12)
    for feedback in PASSES:
        close(found[feedback], directions[feedback])
