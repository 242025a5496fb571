"""The equations of motion: published numbers, first principles, conservation laws, known solutions."""

import itertools
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

from bptt_envs.systems import CartPole, Integrator, MultiPole

REFERENCE = Path(__file__).parent.parent / "reference"
G, CART, POLE, HALF = 9.8, 1.0, 0.1, 0.5  # m/s^2, kg, kg, m: those of arXiv 2405.02041


def random_states(n_poles, size=8, seed=0):
    """Any angle, brisk velocities, (size, 2 + 2 n_poles) in float64."""
    generator = torch.Generator().manual_seed(seed)
    states = 2.0 * torch.randn(size, 2 + 2 * n_poles, generator=generator, dtype=torch.float64)
    states[:, 2::2] = torch.pi * (2.0 * torch.rand(size, n_poles, generator=generator, dtype=torch.float64) - 1.0)
    return states


def coordinates(states):
    """Positions q = (x, theta_1, ...) and velocities v, (B, 1 + n) each."""
    return states[..., 0::2], states[..., 1::2]


def accelerations(system, states, forces):
    """The accelerations that a step applies, (B, 1 + n)."""
    return (coordinates(system.step(states, forces))[1] - coordinates(states)[1]) / system.dt


def simulate(system, states, force, duration):
    with torch.no_grad():
        for _ in range(round(duration / system.dt)):
            states = system.step(states, torch.full((len(states), 1), force, dtype=states.dtype))
    return states


# First principles: a cart and thin uniform rods of mass m and length 2l, hinged on it, in the plane


def centers(q):
    """Centres of mass of the poles, (n,) across and (n,) up, from one q = (x, theta_1, ...)."""
    return q[0] + HALF * q[1:].sin(), HALF * q[1:].cos()


def kinetic_energy(q, v):
    across, up = (slopes @ v for slopes in torch.func.jacrev(centers)(q))
    inertia = POLE * (2 * HALF) ** 2 / 12  # of a thin rod about its centre
    return 0.5 * CART * v[0] ** 2 + (0.5 * POLE * (across**2 + up**2) + 0.5 * inertia * v[1:] ** 2).sum()


def potential_energy(q):
    return POLE * G * centers(q)[1].sum()


def energy(q, v):
    return kinetic_energy(q, v) + potential_energy(q)


def momentum(q, v):
    """Total horizontal momentum."""
    across, _ = torch.func.jacrev(centers)(q)
    return CART * v[0] + POLE * (across @ v).sum()


def lagrangian(q, v):
    return kinetic_energy(q, v) - potential_energy(q)


def lagrangian_accelerations(q, v, force):
    """d/dt dL/dv - dL/dq = (force, 0, ...), solved for the accelerations."""
    dl_dv = torch.func.grad(lagrangian, argnums=1)
    mass_matrix = torch.func.jacrev(dl_dv, argnums=1)(q, v)
    generalised = torch.cat([force, torch.zeros_like(q[1:])])
    rest = torch.func.grad(lagrangian)(q, v) - torch.func.jacrev(dl_dv)(q, v) @ v
    return torch.linalg.solve(mass_matrix, generalised + rest)


def rate(quantity, q, v, acc):
    """Time derivative of quantity(q, v), (B,)."""
    by_q, by_v = torch.func.vmap(torch.func.grad(quantity, argnums=(0, 1)))(q, v)
    return (by_q * v + by_v * acc).sum(-1)


@pytest.mark.parametrize("n_poles", range(1, 6))
def test_exact_accelerations_are_those_of_the_lagrangian(n_poles):
    states = random_states(n_poles)
    forces = 20.0 * torch.randn(8, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = torch.func.vmap(lagrangian_accelerations)(*coordinates(states), forces)
    got = accelerations(MultiPole(n_poles=n_poles, dynamics="exact"), states, forces)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("dynamics", "n_poles"), [("paper", 1), ("exact", 1), ("exact", 2), ("exact", 3), ("exact", 5)]
)
def test_the_force_is_all_that_changes_momentum_and_energy(dynamics, n_poles):
    states = random_states(n_poles)
    forces = 20.0 * torch.randn(8, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    q, v = coordinates(states)
    acc = accelerations(MultiPole(n_poles=n_poles, dynamics=dynamics), states, forces)
    torch.testing.assert_close(rate(momentum, q, v, acc), forces[:, 0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(rate(energy, q, v, acc), (forces * v[:, :1])[:, 0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("dynamics", "n_poles"), [("paper", 1), ("exact", 1), ("exact", 3)])
def test_other_lengths_masses_and_gravity_are_those_of_the_lagrangian_too(dynamics, n_poles, monkeypatch):
    for name, value in {"G": 3.7, "CART": 2.5, "POLE": 0.4, "HALF": 0.8}.items():
        monkeypatch.setattr(f"{__name__}.{name}", value)
    system = MultiPole(n_poles=n_poles, dynamics=dynamics, gravity=3.7, cart_mass=2.5, pole_mass=0.4, pole_length=0.8)
    states = random_states(n_poles)
    forces = 20.0 * torch.randn(8, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = torch.func.vmap(lagrangian_accelerations)(*coordinates(states), forces)
    torch.testing.assert_close(accelerations(system, states, forces), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("n_poles", [1, 2, 4])
def test_paper_cart_feels_its_poles_with_a_total_mass_of_1_1(n_poles):
    states = random_states(n_poles)
    forces = torch.linspace(-20.0, 20.0, 8, dtype=torch.float64).unsqueeze(1)
    acc = accelerations(MultiPole(n_poles=n_poles), states, forces)
    (_, theta), (_, theta_dot) = ((x[:, 0], x[:, 1:]) for x in coordinates(states))
    poles = (theta.sin() * theta_dot**2 - acc[:, 1:] * theta.cos()).sum(-1)
    torch.testing.assert_close(1.1 * acc[:, 0], forces[:, 0] + POLE * HALF * poles, rtol=1e-10, atol=1e-10)


def test_paper_poles_do_not_feel_one_another_and_exact_poles_do():
    states = random_states(3)
    moved = states.clone()
    moved[:, 4:] = random_states(3, seed=9)[:, 4:]  # poles 2 and 3
    forces = torch.ones(8, 1, dtype=torch.float64)
    for dynamics, feels in (("paper", False), ("exact", True)):
        system = MultiPole(n_poles=3, dynamics=dynamics)
        before, after = (accelerations(system, x, forces)[:, 1] for x in (states, moved))
        assert torch.equal(before, after) is not feels


# Conservation and convergence, over time

STEPS = [0.01, 0.005, 0.0025, 0.00125]


def orders(errors):
    """Observed orders of convergence between successive halvings of the step."""
    return [float(np.log2(a / b)) for a, b in itertools.pairwise(errors)]


@pytest.mark.parametrize("n_poles", [1, 2, 4])
def test_exact_energy_error_without_force_falls_with_dt_at_first_order(n_poles):
    states = random_states(n_poles)
    total = torch.func.vmap(energy)
    start = total(*coordinates(states))
    errors = []
    for dt in STEPS:
        end = simulate(MultiPole(n_poles=n_poles, dynamics="exact", dt=dt), states, 0.0, duration=0.5)
        errors.append(float((total(*coordinates(end)) - start).abs().mean()))
    assert orders(errors) == pytest.approx([1.0] * 3, abs=0.15), errors
    assert errors[-1] < 0.02 * float(start.abs().mean())


def test_paper_energy_is_not_kept_by_several_poles():
    states = random_states(2)
    total = torch.func.vmap(energy)
    start = total(*coordinates(states))
    ends = [simulate(MultiPole(dt=dt), states, 0.0, duration=0.5) for dt in STEPS]
    errors = [float((total(*coordinates(end)) - start).abs().mean()) for end in ends]
    assert errors[-1] > 0.5 * errors[0], "an approximation: the docs say so"


def dense_accelerations(state, force):
    """Newton and Euler for every body, as one linear system in numpy, from one (2 + 2n,) state."""
    theta, theta_dot = state[2::2], state[3::2]
    n = len(theta)
    mass = np.zeros((1 + n, 1 + n))
    mass[0, 0] = CART + n * POLE
    mass[0, 1:] = mass[1:, 0] = POLE * HALF * np.cos(theta)
    mass[1:, 1:] = np.eye(n) * (POLE * HALF**2 + POLE * (2 * HALF) ** 2 / 12)
    push = force + (POLE * HALF * theta_dot**2 * np.sin(theta)).sum()
    return np.linalg.solve(mass, np.concatenate([[push], POLE * G * HALF * np.sin(theta)]))


def runge_kutta(state, force, duration, steps):
    """Classical fourth-order Runge-Kutta."""

    def slope(state):
        result = np.empty_like(state)
        result[0::2], result[1::2] = state[1::2], dense_accelerations(state, force)
        return result

    h = duration / steps
    for _ in range(steps):
        k1 = slope(state)
        k2 = slope(state + h / 2 * k1)
        k3 = slope(state + h / 2 * k2)
        k4 = slope(state + h * k3)
        state = state + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return state


@pytest.mark.parametrize("n_poles", [1, 3])
def test_exact_trajectories_converge_to_an_independent_solution_at_first_order(n_poles):
    states, force, duration = random_states(n_poles, size=2), 3.0, 0.5
    solution = np.stack([runge_kutta(state, force, duration, 500) for state in states.numpy()])
    coarser = np.stack([runge_kutta(state, force, duration, 250) for state in states.numpy()])
    assert np.abs(solution - coarser).max() < 1e-8, "the reference itself has converged"
    systems = [MultiPole(n_poles=n_poles, dynamics="exact", dt=dt) for dt in STEPS]
    ends = [simulate(system, states, force, duration).numpy() for system in systems]
    assert orders([np.abs(end - solution).max() for end in ends]) == pytest.approx([1.0] * 3, abs=0.15)
    extrapolated = 2 * ends[-1] - ends[-2]
    assert np.abs(extrapolated - solution).max() < 1e-3, "without its first-order error, the integrator agrees"


# Known solutions


@pytest.mark.parametrize("n_poles", [1, 2])
def test_paper_step_gives_the_numbers_of_the_published_scripts(n_poles):
    numbers = np.load(REFERENCE / f"cart_pole_{n_poles}.npz")
    system = MultiPole(n_poles=n_poles, dt=float(numbers["dt"]))
    got = system.step(torch.from_numpy(numbers["states"]), torch.from_numpy(numbers["forces"]).unsqueeze(1))
    np.testing.assert_allclose(got, numbers["next_states"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("system", [CartPole(), MultiPole(n_poles=1), MultiPole(n_poles=1, dynamics="exact")])
def test_one_pole_is_gymnasiums_cart_pole(system):
    classic = gym.make("CartPole-v1").unwrapped
    classic.kinematics_integrator = "semi-implicit euler"
    classic.tau = system.dt
    states = random_states(1)
    for state, force in zip(states, torch.linspace(-30.0, 30.0, 8, dtype=torch.float64), strict=True):
        classic.reset()
        classic.state = state.numpy()
        classic.force_mag = abs(float(force))
        classic.step(1 if force > 0 else 0)
        got = system.step(state.unsqueeze(0), force.view(1, 1))[0]
        np.testing.assert_allclose(got, classic.state, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dynamics", ["paper", "exact"])
def test_poles_that_start_alike_move_alike(dynamics):
    one = random_states(1)
    states = torch.cat([one[:, :2], one[:, 2:].repeat(1, 4)], dim=1)
    end = simulate(MultiPole(n_poles=4, dynamics=dynamics), states, 2.0, duration=0.5)
    for i in range(1, 4):
        torch.testing.assert_close(end[:, 2 + 2 * i : 4 + 2 * i], end[:, 2:4], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dynamics", ["paper", "exact"])
def test_neither_the_order_of_poles_nor_the_place_nor_the_side_matters(dynamics):
    system, states = MultiPole(n_poles=3, dynamics=dynamics), random_states(3)
    force = torch.full((8, 1), 4.0, dtype=torch.float64)
    end = system.step(states, force)
    order = [0, 1, 6, 7, 2, 3, 4, 5]
    torch.testing.assert_close(system.step(states[:, order], force), end[:, order], rtol=1e-12, atol=1e-12)
    shift = torch.tensor([5.0] + [0.0] * 7, dtype=torch.float64)
    torch.testing.assert_close(system.step(states + shift, force), end + shift, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(system.step(-states, -force), -end, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dynamics", ["paper", "exact"])
@pytest.mark.parametrize("theta", [0.0, torch.pi])
def test_poles_at_rest_upright_or_hanging_stay_there(dynamics, theta):
    state = torch.tensor([[0.3, 0.0, theta, 0.0, theta, 0.0]], dtype=torch.float64)
    end = simulate(MultiPole(n_poles=2, dynamics=dynamics), state, 0.0, duration=0.1)
    torch.testing.assert_close(end, state, rtol=0.0, atol=1e-12)


def test_an_upright_pole_falls_and_a_hanging_one_swings_back():
    system = CartPole()
    for theta, falls in ((0.1, True), (torch.pi + 0.1, False)):
        state = torch.tensor([[0.0, 0.0, theta, 0.0]], dtype=torch.float64)
        theta_dot = float(system.step(state, torch.zeros(1, 1, dtype=torch.float64))[0, 3])
        assert (theta_dot > 0.0) is falls


def test_integrator_adds_its_actions():
    env = gym.make("DiffIntegrator-v0", target=1.5).unwrapped
    env.reset(options={"state": [-0.3]})
    rewards = [env.step([u])[1] for u in (0.5, -0.25, 2.0, 0.125)]
    assert float(env.state[0]) == pytest.approx(-0.3 + 2.375)
    assert -sum(rewards) == pytest.approx(0.5 * (-0.3 + 2.375 - 1.5) ** 2, rel=1e-5)


# Start states


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_poles_start_hanging_as_the_paper_has_it(dtype):
    states = MultiPole(n_poles=3).initial_states(4096, torch.Generator().manual_seed(0), dtype)
    offset = states.clone()
    offset[:, 2::2] = (offset[:, 2::2] - torch.pi) / (torch.pi / 6)
    assert_uniform(offset)


def test_integrator_starts_around_zero():
    assert_uniform(Integrator().initial_states(4096, torch.Generator().manual_seed(0)))


def assert_uniform(samples):
    """Columns of U(-1, 1), independent of one another."""
    assert float(samples.abs().max()) <= 1.0 + 1e-5
    assert torch.allclose(samples.mean(0), torch.zeros(samples.shape[1], dtype=samples.dtype), atol=0.05)
    covariance = samples.T @ samples / len(samples)
    assert torch.allclose(covariance, torch.eye(samples.shape[1], dtype=samples.dtype) / 3, atol=0.03)
    assert float(samples.quantile(0.99, dim=0).min()) > 0.95
