"""Directions through somebody else's physics are those through the same physics written as a system of one's own."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gymnasium.error import DependencyNotInstalled
from torch import nn
from torch.testing import assert_close

from bptt_envs import DifferentiableEnv, Task, check_system
from bptt_envs.contract import ContractError
from bptt_envs.function_system import FunctionSystem
from bptt_envs.systems import CartPole
from bptt_trainers import MLP, TrainConfig, Trainer, check_gradients, policy_gradient
from bptt_trainers.planning.problem import Problem

POLE = CartPole(horizon=10)


def foreign(step, **options):
    """The cart-pole's task with another's step."""
    given = {"start": POLE.initial_states, "cost": POLE.state_cost, "state_shape": (4,), "action_shape": (1,)}
    return FunctionSystem(**given | {"step": step, "horizon": 10, "dt": POLE.dt} | options)


def directions(system, rule, engine, dtype):
    controller = MLP((4,), (1,), (8,), generator=torch.Generator().manual_seed(0)).to(dtype)
    states = POLE.initial_states(8, torch.Generator().manual_seed(1), dtype)
    return policy_gradient(system, controller, states, rule, engine).directions


@pytest.mark.parametrize("engine", ["autograd", "adjoint"])
@pytest.mark.parametrize("rule", ["R", "C"])
def test_a_torch_function_gives_the_systems_directions(rule, engine):
    ours = directions(foreign(POLE.step), rule, engine, torch.float64)
    assert_close(ours, directions(POLE, rule, engine, torch.float64), rtol=1e-10, atol=1e-12)


class WorldModel(nn.Module):
    """A network that says by how much a state changes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 4))

    def forward(self, state, action):
        return state + 0.1 * self.layers(torch.cat([state, action], dim=1))


@pytest.mark.parametrize("rule", ["R", "C"])
def test_a_world_model_is_trained_through_and_not_trained(rule):
    model = WorldModel()
    before = copy.deepcopy(model.state_dict())
    system = foreign(model, objective="continuous")
    controller = MLP((4,), (1,), (16,), generator=torch.Generator().manual_seed(0))
    config = TrainConfig(rule=rule, epochs=2, batch_size=8, train_states=16, test_states=16, learning_rate=1e-2)
    trainer = Trainer(system, controller, config)
    trainer.fit()
    assert trainer.history[-1].test_loss < trainer.history[0].test_loss
    assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert all(one.grad is None and one.requires_grad for one in model.parameters())


def test_a_loss_through_a_world_model_leaves_its_parameters_alone():
    model = WorldModel()
    system = foreign(model)
    action = torch.ones(2, 1, requires_grad=True)
    system.step(torch.ones(2, 4), action).sum().backward()
    assert action.grad.any()
    assert all(one.grad is None for one in model.parameters())


def test_a_world_model_that_learns_meanwhile_is_followed():
    model = WorldModel()
    system = foreign(model)
    first = directions(system, "R", "adjoint", torch.float32)
    with torch.no_grad():
        model.layers[0].weight.mul_(2.0)
    assert_close(
        directions(system, "R", "adjoint", torch.float32), directions(foreign(model), "R", "autograd", torch.float32)
    )
    assert not torch.equal(
        first["layers.0.weight"], directions(system, "R", "adjoint", torch.float32)["layers.0.weight"]
    )


@pytest.mark.parametrize("step", [lambda state, action: action.tolist(), lambda state, action: state + "1"])
def test_a_step_that_is_not_in_torch_is_refused_in_words(step):
    with pytest.raises(TypeError, match=r"^step (fails on|must give) .*of a function in JAX, jax_step"):
        directions(foreign(step), "R", "adjoint", torch.float32)


def test_a_world_model_computes_in_the_dtype_of_the_states():
    model = WorldModel()
    ours, theirs = foreign(model), foreign(copy.deepcopy(model).double())
    given = torch.ones(2, 4, dtype=torch.float64), torch.ones(2, 1, dtype=torch.float64)
    assert_close(ours.step(*given), theirs.step(*given), rtol=0, atol=0)
    assert not check_gradients(ours).failed
    assert model.layers[0].weight.dtype is torch.float32


def test_a_world_model_that_draws_is_refused_in_words():
    class Noisy(WorldModel):
        def forward(self, state, action):
            return super().forward(state, action) + torch.rand_like(state)

    with pytest.raises(ContractError, match=r"FunctionSystem\.step must be a function of its arguments"):
        check_system(foreign(Noisy()))


def test_it_is_an_environment_and_takes_a_task():
    env = DifferentiableEnv(foreign(POLE.step, max_action=50.0, objective="continuous"))
    own = DifferentiableEnv(CartPole(horizon=10, max_force=50.0, objective="continuous"))
    first, second = env.reset(seed=0)[0], own.reset(seed=0)[0]
    while True:
        assert_close(torch.from_numpy(first), torch.from_numpy(second), rtol=0, atol=0)
        first, reward, over, *_ = env.step([60.0])
        second, expected, *_ = own.step([60.0])
        assert reward == expected
        if over:
            break
    check_system(Task(foreign(POLE.step), observe_time=True))


def test_costs_of_the_action_count_as_those_of_a_task():
    def effort(state, action, next_state):
        return 0.1 * action[:, 0].square() + next_state[:, 0] * state[:, 1]

    def far(state):
        return state[:, 0].square()

    states = POLE.initial_states(4, torch.Generator().manual_seed(0), torch.float64)
    actions = torch.linspace(-1, 1, 40, dtype=torch.float64).view(10, 4, 1)

    def cost(system):
        return Problem(system, states).loss(actions)

    for costs in ({"running_cost": effort}, {"final_cost": far}, {"running_cost": effort, "final_cost": far}):
        for objective in ("final", "continuous"):
            task = Task(foreign(POLE.step, objective=objective), **costs)
            assert_close(cost(foreign(POLE.step, objective=objective, **costs)), cost(task), rtol=0, atol=0)
    alone = foreign(POLE.step, cost=None, running_cost=effort)
    check_system(alone)
    assert_close(cost(alone), cost(foreign(POLE.step, running_cost=effort, final_cost=lambda state: 0 * state[:, 0])))


def test_errors_name_the_argument():
    with pytest.raises(TypeError, match="step must be a function of state, action; got 'physics'"):
        foreign("physics")
    with pytest.raises(ValueError, match="cost must be given, or running_cost or final_cost in its place"):
        foreign(POLE.step, cost=None)
    with pytest.raises(
        TypeError, match=r"cost .* of state; got one of \(state, action\). A cost of the action, too, is run"
    ):
        foreign(POLE.step, cost=lambda state, action: action[:, 0])
    with pytest.raises(
        TypeError, match=r"running_cost must be a function of state, action, next_state; got one of \(x, u"
    ):
        foreign(POLE.step, running_cost=lambda x, u: u[:, 0])
    with pytest.raises(TypeError, match=r"final_cost must be a function of state; got 3"):
        foreign(POLE.step, final_cost=3)
    with pytest.raises(ValueError, match=r"state_shape must be a shape, such as \(4,\); got 4"):
        foreign(POLE.step, state_shape=4)


JAX = """
import json, runpy, sys
import jax.numpy as jnp
import torch
from bptt_envs import check_system
from bptt_envs.jax_step import jax_step
from bptt_envs.program import CompilerError, Program
from bptt_envs.systems import cart_pole
from bptt_trainers.records.plain import digest
sys.path.insert(0, {here!r})
from test_foreign_physics import POLE, directions, foreign

G, L, M = cart_pole.GRAVITY, cart_pole.HALF_LENGTH, cart_pole.POLE_MASS
TOTAL = M + cart_pole.CART_MASS


def step(state, action):
    x, v, theta, omega = state
    s, c = jnp.sin(theta), jnp.cos(theta)
    a = (action[0] + M * L * s * omega**2) / TOTAL
    turn = (G * s - c * a) / (L * (4 / 3 - M * c**2 / TOTAL))
    v = v + POLE.dt * (a - M * L * turn * c / TOTAL)
    omega = omega + POLE.dt * turn
    return jnp.stack([x + POLE.dt * v, v, theta + POLE.dt * omega, omega])


system, found = foreign(jax_step(step)), {{}}
check_system(system)
for dtype, engine in ((torch.float32, "adjoint"), (torch.float64, "autograd")):
    for rule in ("R", "C"):
        ours, theirs = (directions(one, rule, engine, dtype) for one in (system, POLE))
        assert all(one.dtype is dtype for one in ours.values())
        apart = [float((ours[name] - one).norm() / one.norm()) for name, one in theirs.items()]
        found[f"{{rule}} {{dtype}}"] = max(apart)

state = torch.ones(2, 4)
following = system.step(state, torch.ones(2, 1))
kept = following.clone()
state.fill_(7.0)  # what JAX was given, and gives, is not shared with torch
following.fill_(7.0)
assert torch.equal(system.step(torch.ones(2, 4), torch.ones(2, 1)), kept)
batched = jax_step(lambda states, actions: states + actions, batched=True)
assert torch.equal(batched(state, state[:, :1]), 2 * state)
pair = jax_step(lambda state, action: (state, action))
try:
    pair(state, state[:, :1])
except TypeError as error:
    found["pair"] = str(error)
try:
    Program(lambda *given: (system.step(*given),), [torch.ones(2, 4), torch.ones(2, 1)])
except CompilerError as error:
    found["compiled"] = str(error)
runpy.run_path({script!r})["main"](epochs=1, rule="C", states=8)


def drifting(speed):
    held = jnp.full(4, speed)  # an array that the function holds
    return foreign(jax_step(lambda state, action: state + held * action))


assert digest(drifting(0.1)) == digest(drifting(0.1)) != digest(drifting(0.2))  # what run folders know it by
print(json.dumps(found))
"""


def test_a_jax_function_gives_the_systems_directions_and_exponax_is_trained_through(tmp_path):
    """In a process of its own: once imported, JAX warns whenever the process forks."""
    script = Path(__file__).parents[2] / "scripts" / "through_jax.py"
    code = JAX.format(here=str(Path(__file__).parent), script=str(script))
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    *said, last = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in said] == ["epoch 0", "epoch 1"]
    assert float(said[1].split()[-1]) < float(said[0].split()[-1])
    found = json.loads(last)
    assert "compile=True cannot record the operations" in found.pop("compiled")
    assert "function must give the next state, one JAX array; got (" in found.pop("pair")
    assert len(found) == 4
    assert {what: apart for what, apart in found.items() if apart > (1e-5 if "32" in what else 1e-12)} == {}


def test_without_jax_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax", None)
    with pytest.raises(DependencyNotInstalled, match=r'pip install "stable-bptt\[jax\]"'):
        import bptt_envs.jax_step  # noqa: F401
