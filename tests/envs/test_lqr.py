"""The linear quadratic regulator: its best controller is known, so losses have a floor to the last digit."""

import copy
import pickle

import gymnasium as gym
import numpy as np
import pytest
import torch

from bptt_envs import System
from bptt_envs.canvas import ACTION, CYCLE
from bptt_envs.rendering import picture
from bptt_envs.system import OBJECTIVES
from bptt_envs.systems import LQR


def random_system(objective="continuous", **options):
    """Three states, two actions, full matrices; without control it is unstable."""
    rng = np.random.default_rng(0)
    A, B = rng.normal(size=(3, 3)), rng.normal(size=(3, 2))
    roots = rng.normal(size=(3, 3)), rng.normal(size=(2, 2)), rng.normal(size=(3, 3))
    Q, R, Q_T = (root @ root.T for root in roots)
    return LQR(objective=objective, A=A, B=B, Q=Q, R=R, Q_T=Q_T, horizon=7, **options)


SYSTEMS = {"block": LQR, "random": random_system}


@pytest.fixture(params=[(name, objective) for name in SYSTEMS for objective in OBJECTIVES], ids="-".join)
def lqr(request):
    name, objective = request.param
    return SYSTEMS[name](objective=objective)


def start(system, batch=5, seed=0):
    return system.initial_states(batch, torch.Generator().manual_seed(seed), torch.float64)


def cost_of(system, gains, states):
    """The loss of u_t = -K_t x_t, (B,)."""
    total = torch.zeros(len(states), dtype=states.dtype)
    for K in gains:
        actions = -states[:, : K.shape[1]] @ K.T
        next_states = system.step(states, actions)
        total += system.running_cost(states, actions, next_states)
        states = next_states
    return total + system.final_cost(states)


# The solution


def test_the_optimal_gains_cost_what_is_said_to_be_optimal(lqr):
    states, gains = start(lqr), lqr.optimal_gains()
    assert gains.shape == (lqr.horizon, *lqr.action_shape, *lqr.state_shape)
    assert gains.dtype is torch.float64
    torch.testing.assert_close(cost_of(lqr, gains, states), lqr.optimal_cost(states), rtol=1e-10, atol=0.0)


def test_any_other_gains_cost_more(lqr):
    states, gains = start(lqr), lqr.optimal_gains()
    least = lqr.optimal_cost(states)
    generator = torch.Generator().manual_seed(1)
    for t in [*range(lqr.horizon), slice(None)]:  # in one step, and in all
        for size in (1e-3, 0.1):
            change = torch.zeros_like(gains)
            change[t] = size * torch.randn(gains[t].shape, generator=generator, dtype=gains.dtype)
            for sign in (1.0, -1.0):
                assert (cost_of(lqr, gains + sign * change, states) > least).all()


def stacked_problem(system, x_0):
    """Least cost over all (u_0, ..., u_{T-1}) at once and that u, by linear equations in NumPy; x_0: (n,)."""
    A, B, Q, R, Q_T = (matrix.numpy() for matrix in (system.A, system.B, system.Q, system.R, system.Q_T))
    if system.objective == "final":
        Q = np.zeros_like(Q)
    n, m = B.shape
    T = system.horizon
    free = np.vstack([np.linalg.matrix_power(A, t) for t in range(T + 1)])  # states = free x_0 + forced u
    forced = np.zeros(((T + 1) * n, T * m))
    for t in range(1, T + 1):
        for s in range(t):
            forced[t * n : (t + 1) * n, s * m : (s + 1) * m] = np.linalg.matrix_power(A, t - 1 - s) @ B
    state_weight, action_weight = np.kron(np.eye(T + 1), Q), np.kron(np.eye(T), R)
    state_weight[-n:, -n:] = Q_T
    u = -np.linalg.solve(action_weight + forced.T @ state_weight @ forced, forced.T @ state_weight @ free @ x_0)
    states = free @ x_0 + forced @ u
    return states @ state_weight @ states + u @ action_weight @ u, u.reshape(T, m)


def test_the_solution_is_that_of_all_steps_as_one_linear_problem(lqr):
    states, gains = start(lqr), lqr.optimal_gains()
    for x, cost in zip(states, lqr.optimal_cost(states), strict=True):
        expected, actions = stacked_problem(lqr, x.numpy())
        assert float(cost) == pytest.approx(expected, rel=1e-9)
        for K, action in zip(gains, actions, strict=True):
            np.testing.assert_allclose(-K @ x, action, rtol=1e-7, atol=1e-7 * np.abs(actions).max())
            x = lqr.step(x[None], -(K @ x)[None])[0]


def test_over_a_long_horizon_the_first_gain_of_a_scalar_system_solves_its_algebraic_equation():
    a, b, q, r = 1.3, 0.7, 2.0, 0.5
    system = LQR(A=[[a]], B=[[b]], Q=[[q]], R=[[r]], Q_T=[[0.0]], horizon=200)
    # p = q + a^2 p - a^2 b^2 p^2 / (r + b^2 p), its positive root
    c = r - a**2 * r - b**2 * q
    p = (-c + np.sqrt(c**2 + 4 * b**2 * q * r)) / (2 * b**2)
    gains = system.optimal_gains()
    assert float(gains[0]) == pytest.approx(a * b * p / (r + b**2 * p), rel=1e-12)
    assert float(system.optimal_cost(torch.ones(1, 1, dtype=torch.float64))) == pytest.approx(p, rel=1e-12)
    assert abs(a - b * float(gains[0])) < 1.0 < a, "the controller stabilises it"


def test_the_default_block_comes_to_rest_at_its_target():
    system = LQR(horizon=100)
    states = torch.tensor([[1.5, -0.5]], dtype=torch.float64)
    for K in system.optimal_gains():
        states = system.step(states, -states @ K.T)
    assert float(states.abs().max()) < 1e-3


def test_final_counts_no_state_before_the_last():
    with_q, without = LQR(objective="final", Q=[[9.0, 0.0], [0.0, 9.0]]), LQR(Q=[[0.0, 0.0], [0.0, 0.0]])
    assert torch.equal(with_q.optimal_gains(), without.optimal_gains())
    states = start(with_q)
    assert torch.equal(with_q.optimal_cost(states), without.optimal_cost(states))


def test_optimal_cost_keeps_the_dtype_of_the_states(lqr):
    states = start(lqr)
    single = lqr.optimal_cost(states.float())
    assert single.dtype is torch.float32
    torch.testing.assert_close(single.double(), lqr.optimal_cost(states), rtol=1e-5, atol=1e-5)


def test_a_bounded_system_has_no_solution_in_closed_form():
    system = LQR(max_action=3.0)
    message = r"holds for unbounded actions, max_action=None; this system has max_action=3\."
    with pytest.raises(ValueError, match=message):
        system.optimal_gains()
    with pytest.raises(ValueError, match=message):
        system.optimal_cost(start(system))


# The physics


def test_the_block_moves_as_newton_says():
    system, force, mass = LQR(dt=0.3), 2.5, 1.0
    states = torch.tensor([[0.4, -1.2]], dtype=torch.float64)
    for _ in range(10):
        states = system.step(states, torch.tensor([[force]], dtype=torch.float64))
    t = 10 * 0.3
    expected = [0.4 - 1.2 * t + force / mass * t**2 / 2, -1.2 + force / mass * t]
    assert states[0].tolist() == pytest.approx(expected, rel=1e-12)


def test_the_clock_counts_and_nothing_else_changes(lqr):
    matrices = {name: getattr(lqr, name) for name in ("A", "B", "Q", "R", "Q_T")}
    clocked = LQR(objective=lqr.objective, horizon=lqr.horizon, clock=True, **matrices)
    plain, states = start(lqr), start(clocked)
    assert states[:, -1].tolist() == [0.0] * 5
    assert torch.equal(states[:, :-1], plain)
    assert clocked.state_shape == (lqr.state_shape[0] + 1,)
    assert clocked.state_labels[-1] == "steps"
    assert torch.equal(clocked.optimal_gains(), lqr.optimal_gains())
    assert torch.equal(clocked.optimal_cost(states), lqr.optimal_cost(plain))
    for t, K in enumerate(lqr.optimal_gains()):
        assert states[:, -1].tolist() == [float(t)] * 5
        actions = -plain @ K.T
        following, plain_following = clocked.step(states, actions), lqr.step(plain, actions)
        assert torch.equal(following[:, :-1], plain_following)
        cost = clocked.running_cost(states, actions, following)
        assert torch.equal(cost, lqr.running_cost(plain, actions, plain_following))
        states, plain = following, plain_following
    assert torch.equal(clocked.final_cost(states), lqr.final_cost(plain))


@pytest.mark.parametrize("clock", [False, True])
@pytest.mark.parametrize("name", SYSTEMS)
def test_step_and_costs_pass_gradcheck(name, clock):
    system = SYSTEMS[name](clock=clock)
    states = start(system, batch=3).requires_grad_()
    actions = torch.randn(3, *system.action_shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(system.step, (states, actions))
    assert torch.autograd.gradcheck(system.running_cost, (states, actions, states))
    assert torch.autograd.gradcheck(system.final_cost, (states,))


@pytest.mark.parametrize("clock", [False, True])
@pytest.mark.parametrize("name", SYSTEMS)
def test_linearize_equals_the_autograd_default(name, clock):
    system = SYSTEMS[name](clock=clock)
    states, actions = start(system), torch.randn(5, *system.action_shape, dtype=torch.float64)
    expected = System.linearize(system, states, actions)
    for ours, defined in zip(system.linearize(states, actions), expected, strict=True):
        torch.testing.assert_close(ours, defined, rtol=1e-12, atol=1e-12)


def test_start_states_are_standard_normal():
    states = random_system(clock=True).initial_states(4096, torch.Generator().manual_seed(0))[:, :3]
    assert torch.allclose(states.mean(0), torch.zeros(3), atol=0.05)
    assert torch.allclose(states.T @ states / 4096, torch.eye(3), atol=0.07)


def test_labels_say_what_the_block_is_and_number_the_rest():
    assert LQR().state_labels == ("position [m]", "velocity [m/s]")
    assert LQR().action_labels == ("force [N]",)
    assert random_system(clock=True).state_labels == ("x_1", "x_2", "x_3", "steps")
    assert random_system().action_labels == ("u_1", "u_2")


def columns(image, color):
    """Columns of the pixels that have `color`, but for antialiasing."""
    return np.nonzero((np.abs(image.astype(int) - color) <= 3).all(axis=-1))[1]


def test_the_block_is_drawn_at_its_place_with_the_force_on_it():
    at_rest = picture(LQR(), torch.tensor([2.0, 0.0]))
    assert columns(at_rest, CYCLE[0]).mean() == pytest.approx(320 + 2.0 * 64, abs=1)  # 10 m are 640 pixels
    assert len(columns(at_rest, ACTION)) == 0
    for force, side in ((4.0, 1), (-4.0, -1)):
        arrow = columns(picture(LQR(), torch.tensor([0.0, 0.0]), torch.tensor([force])), ACTION)
        assert ((arrow - 320) * side > 32).all()
    far = picture(LQR(), torch.tensor([-3e38, 0.0]), torch.tensor([3e38]))
    assert len(columns(far, CYCLE[0])) == pytest.approx(len(columns(at_rest, CYCLE[0])), rel=0.1)
    others = picture(random_system(clock=True), torch.tensor([1.0, -2.0, 3.0, 4.0]), torch.tensor([1.0, 2.0]))
    assert len(columns(others, ACTION)) == 0, "bars: nothing is known of what it is"


# Options

MATRIX = [[1.0, 0.1], [0.0, 1.0]]


def test_matrices_may_be_sequences_arrays_and_tensors_and_stay_the_callers():
    array, tensor = np.array(MATRIX), torch.tensor(MATRIX)
    systems = [LQR(A=A) for A in (MATRIX, tuple(map(tuple, MATRIX)), array, tensor)]
    array += 1.0
    tensor += 1.0
    for system in systems:
        torch.testing.assert_close(system.A, torch.tensor(MATRIX, dtype=torch.float64), rtol=1e-7, atol=0.0)


def test_weights_with_the_rounding_of_float32_are_taken_as_symmetric():
    root = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)
    product = root @ np.diag([3.0, 2.0, 0.0]).astype(np.float32) @ root.T
    Q = LQR(A=np.eye(3), B=np.ones((3, 1)), Q=product, Q_T=product).Q
    assert torch.equal(Q, Q.mT)


def test_copies_are_the_same_system(lqr):
    states, actions = start(lqr), torch.ones(5, *lqr.action_shape, dtype=torch.float64)
    for other in (copy.copy(lqr), copy.deepcopy(lqr), pickle.loads(pickle.dumps(lqr))):
        assert torch.equal(other.step(states, actions), lqr.step(states, actions))
        assert torch.equal(other.optimal_cost(states), lqr.optimal_cost(states))


BAD_OPTIONS = [
    ({"A": 3}, r"A must be a matrix of finite numbers, such as \[\[1, 0.1\], \[0, 1\]\]; got 3\."),
    ({"A": [1.0, 2.0]}, r"A must be a matrix of finite numbers, .*; got \[1.0, 2.0\]"),
    ({"A": [[1.0, 2.0], [3.0]]}, r"A must be a matrix of finite numbers"),
    ({"A": []}, r"A must be a matrix of finite numbers, .*; got \[\]"),
    ({"A": "identity"}, r"A must be a matrix of finite numbers, .*; got 'identity'"),
    ({"A": [[float("nan")]]}, r"A must be a matrix of finite numbers, .*; got \[\[nan\]\]"),
    ({"A": [[1.0, 2.0]]}, r"A must be square; got shape \(1, 2\)"),
    ({"B": [[1.0]]}, r"B must have 2 rows, as A has; got shape \(1, 1\)\."),
    ({"A": [[1.0]]}, r"B must have 1 rows, as A has; got shape \(2, 1\), the default\."),
    ({"Q": [[1.0]]}, r"Q must have shape \(2, 2\) to fit A and B; got shape \(1, 1\)"),
    ({"R": MATRIX}, r"R must have shape \(1, 1\) to fit A and B; got shape \(2, 2\)"),
    ({"Q_T": [[1.0, 2.0]]}, r"Q_T must have shape \(2, 2\) to fit A and B; got shape \(1, 2\)"),
    ({"Q": MATRIX}, r"Q must be symmetric and positive semi-definite; got \[\[1.0, 0.1\], .*which is not symmetric"),
    ({"Q": [[1.0, 2.0], [2.0, 1.0]]}, r"Q must be symmetric and positive semi-.*, with the eigenvalue -1\."),
    ({"Q_T": [[1.0, 0.0], [0.0, -0.5]]}, r"Q_T must be symmetric and positive semi-.*with the eigenvalue -0.5"),
    ({"R": [[0.0]]}, r"R must be symmetric and positive definite; got \[\[0.0\]\], with the eigenvalue 0\."),
    ({"B": np.eye(2), "R": np.ones((2, 2))}, r"R must be symmetric and positive definite; got \[\[1.0, 1.0\], \["),
    ({"clock": "yes"}, r"clock must be True or False; got 'yes'"),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS, ids=[str(row[0]) for row in BAD_OPTIONS])
def test_bad_option(options, message):
    with pytest.raises(ValueError, match=message):
        gym.make("DiffLQR-v0", **options)
