"""Planners find optima that are known, keep to the bounds, and refuse in words."""

import math

import gymnasium as gym
import numpy as np
import pytest
import scipy.optimize
import torch
from torch.autograd.function import once_differentiable

from bptt_envs import Task, checks
from bptt_envs.function_system import FunctionSystem
from bptt_envs.systems import LQR, CartPole, Guidance, Integrator, MultiPole, Quadrotor, QuantumControl
from bptt_trainers import Trajectory, held_out_states, losses, plan
from bptt_trainers.planning import ilqr
from bptt_trainers.planning.plan import PLANNERS
from bptt_trainers.planning.problem import Problem


def starts(system, count=4):
    return held_out_states(system, count, torch.float64)


# Known optima


def test_ilqr_reaches_the_riccati_optimum_in_one_iteration():
    system = LQR()
    found = plan(system, starts(system), "iLQR", iterations=1, restarts=0)
    torch.testing.assert_close(found.losses, system.optimal_cost(starts(system)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("method", "tolerance"), [("GRAPE", 1e-8), ("MPPI", 0.02)])
def test_the_others_come_near_the_riccati_optimum(method, tolerance):
    system = LQR()
    found, best = plan(system, starts(system), method).losses, system.optimal_cost(starts(system))
    assert (found > best * (1 - 1e-9)).all()
    assert (found < best + tolerance).all()


@pytest.mark.parametrize("method", ["iLQR", "GRAPE"])
def test_a_bounded_double_integrator_is_planned_as_scipy_does(method):
    system = LQR(max_action=0.15, horizon=15)
    found = plan(system, starts(system), method, restarts=0)
    for i, state in enumerate(starts(system)):

        def loss_and_slopes(flat, state=state):
            actions = torch.tensor(flat, requires_grad=True)
            loss = Problem(system, state[None]).loss(actions.view(-1, 1, 1)).sum()
            return loss.item(), torch.autograd.grad(loss, actions)[0].numpy()

        best = scipy.optimize.minimize(
            loss_and_slopes, np.zeros(15), jac=True, method="L-BFGS-B", bounds=[(-0.15, 0.15)] * 15,
            options={"ftol": 1e-15, "gtol": 1e-10},
        )  # fmt: skip
        assert np.any(np.abs(best.x) == 0.15), "the bounds matter"
        assert float(found.losses[i]) == pytest.approx(best.fun, abs=1e-8)
        np.testing.assert_allclose(found.actions[:, i, 0], best.x, atol=1e-3)


def test_the_fastest_way_between_two_points_at_rest_is_bang_bang():
    """The block comes from 1 m as near to 0, at rest, as a force of 1 N allows: full force, then full brake."""
    system = LQR(objective="final", R=[[1e-9]], max_action=1.0, horizon=20, dt=0.1)
    state = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    found = plan(system, state, "iLQR")
    assert float(found.losses) < 1e-6, "20 steps of 0.1 s are just enough"
    assert found.actions[:, 0, 0].numpy() == pytest.approx([-1.0] * 10 + [1.0] * 10, abs=0.02)


def test_ilqr_swings_the_pole_up_from_every_held_out_state():
    system = CartPole(horizon=50, dt=0.02, max_force=50.0)
    found = plan(system, starts(system, 4), "iLQR", restarts=0, iterations=30)
    assert (found.losses < 1e-3).all()
    assert (found.actions.abs() <= 50.0).all()


def test_the_gains_of_ilqr_are_riccatis():
    system = LQR()
    found = plan(system, starts(system, 2), iterations=1, restarts=0)
    torch.testing.assert_close(found.gains[:, 1], -system.optimal_gains(), rtol=1e-5, atol=1e-6)
    assert plan(system, starts(system, 2), "MPPI", iterations=1).gains is None


def test_the_gains_of_ilqr_make_good_what_puts_an_episode_off_its_plan():
    system = CartPole(horizon=50, dt=0.02, max_force=50.0)
    states = starts(system)
    found = plan(system, states, restarts=0, iterations=20)
    reference = Problem(system, states).trajectory(found.actions)
    final = []
    for gains in (torch.zeros_like(found.gains), found.gains):
        state = states
        for t, action in enumerate(found.actions):
            change = (gains[t] @ (state - reference[t]).unsqueeze(2)).squeeze(2)
            state = system.step(state, system.bound(action + change)) + 0.1 * (t == 10)
        final.append(system.final_cost(state))
    open_loop, closed = final
    assert (closed < open_loop / 4).all(), final


def test_an_action_that_a_bound_holds_has_no_gains():
    system = LQR(max_action=0.5)
    found = plan(system, starts(system), restarts=0)
    held = found.actions[..., 0].abs() == 0.5
    assert 0 < held.sum() < held.numel()
    assert (found.gains.flatten(2).abs().amax(2) == 0.0).equal(held)


def test_gradient_descent_lowers_the_loss_of_quantum_control_step_by_step():
    system = QuantumControl(n_points=8, horizon=16)
    found = [plan(system, starts(system), "GRAPE", restarts=0, iterations=n).losses for n in (1, 2, 4, 8, 40)]
    nothing = Problem(system, starts(system)).losses(torch.zeros(1, 16, 4, *system.action_shape).double())[0]
    for before, after in zip([nothing, *found], found, strict=False):
        assert (after <= before).all()
    assert (found[0] < nothing).all()
    assert (found[-1] < 0.8 * nothing).all()


def test_the_methods_agree_on_an_optimum_that_none_of_them_knows():
    system = Integrator(objective="continuous", max_action=0.8)
    best = plan(system, starts(system), "iLQR").losses
    for method, tolerance in (("GRAPE", 1e-8), ("MPPI", 1e-3)):
        torch.testing.assert_close(plan(system, starts(system), method).losses, best, rtol=tolerance, atol=tolerance)


# The model of iLQR


@pytest.mark.parametrize(
    "system",
    [MultiPole(n_poles=2, horizon=4, objective="continuous"), Guidance(horizon=4), Quadrotor(horizon=4)],
    ids=lambda system: type(system).__name__,
)
def test_the_model_of_ilqr_is_the_loss_to_second_order(system):
    states = starts(system, 3)
    problem = Problem(system, states)
    generator = torch.Generator().manual_seed(0)
    actions, change = torch.rand(2, *problem.shape, generator=generator, dtype=torch.float64)
    model = ilqr._model(problem, problem.trajectory(actions), actions)

    def predicted(share):
        state, total = torch.zeros(3, system.state_size, dtype=torch.float64), 0.0
        for t, by_action in enumerate(share * change.flatten(2)):
            joint = torch.cat([state, by_action], dim=1)
            total = total + (model.cost[t] * joint).sum(1)
            total = total + 0.5 * torch.einsum("bi,bij,bj->b", joint, model.curvature[t], joint)
            state = torch.einsum("bij,bj->bi", model.slopes[t], joint)
        total = total + (model.final * state).sum(1)
        return total + 0.5 * torch.einsum("bi,bij,bj->b", state, model.final_curvature, state)

    errors = [
        (problem.loss(actions + share * change) - problem.loss(actions) - predicted(share)).abs() + 1e-14
        for share in (1e-2, 1e-3)
    ]
    assert ((errors[0] / errors[1]).log10() > 2.7).logical_or(errors[0] < 1e-10).all(), errors


class OnlyFirstSlopes(torch.autograd.Function):
    """A pendulum whose backward pass cannot be differentiated, as that of physics from outside of torch."""

    @staticmethod
    def forward(ctx, state, action):
        ctx.save_for_backward(state)
        return swing(state, action)

    @staticmethod
    @once_differentiable
    def backward(ctx, slope):
        (state,) = ctx.saved_tensors
        by_rate = slope[:, 1:] + 0.05 * slope[:, :1]
        by_angle = slope[:, :1] - 0.05 * 9.8 * state[:, :1].cos() * by_rate
        return torch.cat([by_angle, by_rate], dim=1), 0.05 * by_rate


class ThroughNumPy(OnlyFirstSlopes):
    """The same, whose backward pass raises an error where its own slopes are asked for."""

    @staticmethod
    def backward(ctx, slope):
        return OnlyFirstSlopes.backward(ctx, torch.from_numpy(slope.numpy()))


def swing(state, action):
    rate = state[:, 1:] + 0.05 * (action - 9.8 * state[:, :1].sin())
    return torch.cat([state[:, :1] + 0.05 * rate, rate], dim=1)


def pendulum(step, **options):
    return FunctionSystem(
        **{"step": step, "dt": 0.05, "horizon": 10, "state_shape": (2,), "action_shape": (1,), "max_action": 20.0}
        | {"start": lambda number, generator, dtype: torch.randn(number, 2, generator=generator, dtype=dtype)}
        | {"cost": lambda state: (1.0 + state[:, 0].cos()) ** 2 + 0.1 * state[:, 1].square()}
        | options
    )


@pytest.mark.parametrize(
    ("objective", "kind"),
    [
        ("final", OnlyFirstSlopes),
        ("continuous", OnlyFirstSlopes),
        ("continuous", ThroughNumPy),
        ("a task", OnlyFirstSlopes),
    ],
)
def test_a_step_without_second_slopes_is_planned_by_gauss_newton(objective, kind):
    """What is left out is the second derivative of the step, and nothing of the costs."""

    def system(step):
        if objective != "a task":
            return pendulum(step, objective=objective)
        return Task(pendulum(step), running_cost=lambda x, u, y: (y * y + x * u).square().sum(1) + 0.1 * u[:, 0] ** 2)

    problems = [Problem(system(step), starts(system(swing), 3)) for step in (swing, kind.apply)]
    actions = torch.rand(problems[0].shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    states = problems[0].trajectory(actions)
    whole, ours = (ilqr._model(problem, states, actions) for problem in problems)
    torch.testing.assert_close(ours._replace(curvature=whole.curvature), whole, rtol=1e-12, atol=1e-12)
    left_out = whole.curvature - ours.curvature
    assert left_out[:, :, 0, 0].abs().min() > 1e-6, "of the angle, by its sine"
    assert torch.count_nonzero(left_out.abs() > 1e-12) == torch.count_nonzero(left_out[:, :, 0, 0])
    best, found = (plan(problem.system, problem.states, iterations=12, restarts=0).losses for problem in problems)
    torch.testing.assert_close(found, best, rtol=0.02, atol=1e-3)


def test_actions_of_one_time_are_planned_within_their_bounds():
    generator = torch.Generator().manual_seed(0)
    root, q = (torch.randn(64, 2, *shape, generator=generator, dtype=torch.float64) for shape in ((2,), ()))
    Q, low, high = root @ root.mT + 0.1 * torch.eye(2), torch.full_like(q, -0.5), torch.full_like(q, 0.3)
    k, free = ilqr._minimum(Q, q, low, high)
    for i in range(64):
        best = scipy.optimize.minimize(
            lambda x, i=i: 0.5 * x @ Q[i].numpy() @ x + q[i].numpy() @ x,
            np.zeros(2),
            jac=lambda x, i=i: Q[i].numpy() @ x + q[i].numpy(),
            bounds=[(-0.5, 0.3)] * 2,
        )
        np.testing.assert_allclose(k[i], best.x, atol=1e-5)
    assert ((free == 0.0) == ((k == -0.5) | (k == 0.3))).all()


# What a plan is


@pytest.mark.parametrize("method", PLANNERS)
def test_a_plan_keeps_to_the_bounds_and_costs_what_it_says(method):
    system = Quadrotor(horizon=12)
    found = plan(system, starts(system), method, iterations=5, restarts=1)
    assert found.actions.shape == (12, 4, 2)
    assert (found.actions >= 0.0).all()
    assert (found.actions <= 10.0).all()
    problem = Problem(system, starts(system))
    trajectory = Trajectory(problem.trajectory(found.actions), found.actions)
    torch.testing.assert_close(losses(system, trajectory), found.losses, rtol=1e-12, atol=1e-12)
    hovering = problem.losses(torch.full((1, 12, 4, 2), 5.0, dtype=torch.float64))[0]
    assert (found.losses < hovering).all()


@pytest.mark.parametrize("method", PLANNERS)
def test_a_task_is_planned_as_its_system(method):
    system = MultiPole(n_poles=1, horizon=6, objective="continuous")
    given = {"iterations": 3, "restarts": 1}
    plain = plan(system, starts(system), method, **given)
    seen = plan(Task(system, observe_time=True), starts(system), method, **given)
    torch.testing.assert_close(seen.losses, plain.losses, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", PLANNERS)
def test_what_a_task_asks_is_what_is_planned(method):
    """Costs of its own, and an end at x = 1, where the last state is paid for."""
    task = Task(
        Integrator(horizon=6, max_action=0.5),
        running_cost=lambda state, action, next_state: 0.1 * action[:, 0] ** 2,
        final_cost=lambda state: (state[:, 0] - 1.2) ** 2,
        terminated=lambda state: state[:, 0] > 1.0,
    )
    states = torch.zeros(1, 1, dtype=torch.float64)
    found = plan(task, states, method)
    assert float(found.losses) < 0.3
    trajectory = Trajectory(Problem(task, task.episode_start(states)).trajectory(found.actions), found.actions)
    torch.testing.assert_close(losses(task, trajectory), found.losses)


@pytest.mark.parametrize("method", PLANNERS)
def test_a_plan_to_start_from_is_never_made_worse(method):
    system = CartPole(horizon=20, dt=0.05, max_force=50.0)
    good = plan(system, starts(system), "iLQR", iterations=8)
    after = plan(system, starts(system), method, actions=good.actions.float(), iterations=2, restarts=0)
    problem = Problem(system, starts(system))
    assert (after.losses <= problem.losses(good.actions.float().double()[None])[0]).all()


def test_an_environment_is_planned_as_its_system():
    env = gym.make("DiffIntegrator-v0", horizon=3, objective="continuous", observe_time=True)
    system = env.unwrapped.system
    found, ours = (plan(one, starts(system), restarts=0, iterations=3) for one in (env, system))
    assert torch.equal(found.actions, ours.actions)
    batch = gym.make_vec("DiffIntegrator-v0", num_envs=2, horizon=3, objective="continuous", observe_time=True)
    assert torch.equal(plan(batch, starts(system), restarts=0, iterations=3).losses, ours.losses)
    with pytest.raises(ValueError, match=r"system is wrapped in RescaleAction, which .* does not see"):
        plan(gym.wrappers.RescaleAction(env, np.float32(-1), np.float32(1)), starts(system))


def test_episodes_are_planned_apart():
    system = CartPole(horizon=8, dt=0.05, max_force=50.0, objective="continuous")
    together = plan(system, starts(system, 2), "iLQR", iterations=5, restarts=0).losses
    alone = [plan(system, state[None], "iLQR", iterations=5, restarts=0).losses for state in starts(system, 2)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-6, atol=1e-9)


def test_a_plan_that_blows_up_is_no_plan():
    problem = Problem(Integrator(), torch.zeros(1, 1, dtype=torch.float64))
    candidates = torch.stack(
        [torch.full(problem.shape, value, dtype=torch.float64) for value in (math.inf, 1e200, 0.5)]
    )
    assert problem.losses(candidates)[:, 0].tolist() == [math.inf, math.inf, 0.0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "iLQG"}, "method must be one of 'iLQR', 'MPPI', 'GRAPE'; got 'iLQG'. Did you mean 'iLQR'?"),
        ({"samples": 3}, r"iLQR has no setting 'samples'. Its settings: restarts, iterations."),
        ({"iterations": 0}, "iterations must be an integer of at least 1; got 0"),
        ({"restarts": -1}, "restarts must be an integer of at least 0; got -1"),
        ({"seed": -1}, "seed must be"),
        ({"method": "MPPI", "deviation": 0.0}, "deviation must be a finite number above 0; got 0.0"),
        ({"actions": torch.zeros(4, 2, 1)}, r"actions must be a tensor of \(4, 3, 1\) finite numbers"),
        ({"states": torch.full((3, 1), math.nan)}, "states must be one or more finite states"),
        ({"states": torch.zeros(3, 2)}, r"states must be a tensor of shape \(B, 1\)"),
        (
            {"system": "DiffIntegrator-v0"},
            "system must be a differentiable environment of bptt_envs or a System; got 'D",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_planned_is_refused_in_words(given, message):
    with pytest.raises(ValueError, match=message):
        plan(**{"system": Integrator(), "states": torch.zeros(3, 1)} | given)


def test_ilqr_refuses_matrices_that_no_memory_holds(monkeypatch):
    system = CartPole(horizon=10)
    monkeypatch.setattr(checks, "_memory", lambda: 3 * ilqr.MATRICES * 8 * 10 * 5**2)
    plan(system, starts(system, 3), iterations=1, restarts=0)
    with pytest.raises(ValueError, match=r"iLQR.*GRAPE.* must be at most 3, .*; got 4"):
        plan(system, starts(system, 4), iterations=1, restarts=0)


@pytest.mark.parametrize("of", [lambda system: system, Task], ids=["system", "task"])
def test_parameters_that_differ_from_sample_to_sample_are_refused(of):
    system = Quadrotor(horizon=2)
    with pytest.raises(ValueError, match="mass must be one number for all episodes"):
        plan(of(system.with_parameters(mass=torch.tensor([1.0, 2.0]))), starts(system, 2))
    plan(of(system.with_parameters(mass=torch.tensor(2.0))), starts(system, 2), iterations=1)
