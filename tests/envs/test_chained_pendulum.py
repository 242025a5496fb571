"""The chained pendulum: sympy's equations, energy and momentum, the cart-pole, slopes, pictures, options."""

import functools
import itertools
import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from bptt_envs import System, check_system
from bptt_envs.canvas import CYCLE
from bptt_envs.rendering import picture
from bptt_envs.systems import ChainedPendulum, MultiPole

LINKS = range(1, 7)
OTHER = {"link_length": 0.7, "link_mass": 0.3, "cart_mass": 1.7, "gravity": 5.0}


def random_batch(n_links, size=6, seed=0):
    """States of any angle and brisk velocities, and large forces, in float64."""
    generator = torch.Generator().manual_seed(seed)
    states = 3.0 * torch.randn(size, 2 + 2 * n_links, generator=generator, dtype=torch.float64)
    return states, 10.0 * torch.randn(size, 1, generator=generator, dtype=torch.float64)


def simulate(system, states, forces, duration):
    for _ in range(round(duration / system.dt)):
        states = system.step(states, forces)
    return states


def velocities_of_the_masses(system, states):
    """Across and up, (B, n) each."""
    theta, w = states[:, 2::2], states[:, 3::2]
    across = states[:, 1:2] + (system.link_length * theta.cos() * w).cumsum(1)
    return across, (-system.link_length * theta.sin() * w).cumsum(1)


def energy(system, states):
    across, up = velocities_of_the_masses(system, states)
    heights = (system.link_length * states[:, 2::2].cos()).cumsum(1)
    links = system.link_mass * (0.5 * (across**2 + up**2) + system.gravity * heights)
    return 0.5 * system.cart_mass * states[:, 1] ** 2 + links.sum(1)


def momentum(system, states):
    """Horizontal."""
    return system.cart_mass * states[:, 1] + system.link_mass * velocities_of_the_masses(system, states)[0].sum(1)


def rate(quantity, system, states, forces):
    """Time derivative of a quantity of the states, (B,), by the accelerations."""
    changes = torch.stack([states[:, 1::2], system.accelerations(states, forces)], dim=-1).flatten(1)
    states = states.clone().requires_grad_()
    (slopes,) = torch.autograd.grad(quantity(system, states).sum(), states)
    return (slopes * changes).sum(1)


# Equations


@functools.lru_cache
def sympys_equations(n_links):
    """M(q) and f(q, q', F, torques) of M q'' = f, by Kane's method; sympy's angles grow to the left."""
    import sympy
    from sympy.physics.mechanics import dynamicsymbols
    from sympy.physics.mechanics.models import n_link_pendulum_on_cart

    kane = n_link_pendulum_on_cart(n_links, cart_force=True, joint_torques=True)
    masses, lengths = sympy.symbols(f"m:{n_links + 1}"), sympy.symbols(f"l:{n_links}")
    force, torques = dynamicsymbols("F"), dynamicsymbols(f"T1:{n_links + 1}")
    arguments = [list(kane.q), list(kane.u), force, torques, masses, lengths, sympy.Symbol("g")]
    return sympy.lambdify(arguments, [kane.mass_matrix, kane.forcing], "numpy", cse=True)


def sympys_accelerations(system, states, forces):
    n, expected = system.n_links, []
    turn = np.array([1.0] + [-1.0] * n)
    for state, force in zip(states.numpy(), forces.numpy()[:, 0], strict=True):
        q, v = turn * state[0::2], turn * state[1::2]
        torques = -system.joint_damping * np.diff(v[1:], prepend=0.0)
        masses = [system.cart_mass, *[system.link_mass] * n]
        M, f = sympys_equations(n)(q, v, force, torques, masses, [system.link_length] * n, system.gravity)
        expected.append(turn * np.linalg.solve(M, np.ravel(f)))
    return np.stack(expected)


@pytest.mark.parametrize("damping", [0.0, 0.2])
@pytest.mark.parametrize("n_links", [1, 2, 3, 4])
def test_accelerations_are_those_of_sympys_equations(n_links, damping):
    for system in (
        ChainedPendulum(n_links=n_links, joint_damping=damping),
        ChainedPendulum(n_links=n_links, joint_damping=damping, **OTHER),
    ):
        states, forces = random_batch(n_links)
        found = system.accelerations(states, forces).numpy()
        np.testing.assert_allclose(found, sympys_accelerations(system, states, forces), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("n_links", LINKS)
def test_the_force_is_all_that_changes_momentum_and_energy(n_links):
    system, (states, forces) = ChainedPendulum(n_links=n_links, **OTHER), random_batch(n_links)
    torch.testing.assert_close(rate(momentum, system, states, forces), forces[:, 0], rtol=1e-9, atol=1e-9)
    power = forces[:, 0] * states[:, 1]
    torch.testing.assert_close(rate(energy, system, states, forces), power, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("n_links", LINKS)
def test_friction_takes_what_slips_in_the_hinges_and_no_momentum(n_links):
    system, (states, forces) = ChainedPendulum(n_links=n_links, joint_damping=0.3), random_batch(n_links)
    slips = states[:, 3::2].diff(dim=1, prepend=torch.zeros(len(states), 1, dtype=states.dtype))
    gained = forces[:, 0] * states[:, 1] - 0.3 * slips.square().sum(1)
    torch.testing.assert_close(rate(energy, system, states, forces), gained, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(rate(momentum, system, states, forces), forces[:, 0], rtol=1e-9, atol=1e-9)


def test_one_link_is_the_exact_cart_pole_of_the_same_inertia():
    """A rod of half-length 3/4 l and mass 4/3 m has the first and second moments of the mass m at l, and m / 3 more."""
    system = ChainedPendulum(n_links=1, **OTHER)
    rod = MultiPole(
        n_poles=1,
        dynamics="exact",
        pole_length=3 / 4 * system.link_length,
        pole_mass=4 / 3 * system.link_mass,
        cart_mass=system.cart_mass - system.link_mass / 3,
        gravity=system.gravity,
    )
    states, forces = random_batch(1)
    expected = (rod.step(states, forces)[:, 1::2] - states[:, 1::2]) / rod.dt
    torch.testing.assert_close(system.accelerations(states, forces), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("n_links", LINKS)
def test_neither_the_place_nor_the_side_matters(n_links):
    system, (states, forces) = ChainedPendulum(n_links=n_links, joint_damping=0.1), random_batch(n_links)
    end = system.step(states, forces)
    shift = torch.zeros(2 + 2 * n_links, dtype=states.dtype)
    shift[0] = 5.0
    torch.testing.assert_close(system.step(states + shift, forces), end + shift, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(system.step(-states, -forces), -end, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("theta", [0.0, math.pi])
@pytest.mark.parametrize("n_links", LINKS)
def test_a_chain_at_rest_upright_or_hanging_stays_there(n_links, theta):
    state = torch.tensor([[0.3, 0.0] + [theta, 0.0] * n_links], dtype=torch.float64)
    end = simulate(ChainedPendulum(n_links=n_links), state, torch.zeros(1, 1, dtype=torch.float64), duration=0.1)
    torch.testing.assert_close(end, state, rtol=0.0, atol=1e-10)


# The integrator


def orders(errors):
    return [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]


@pytest.mark.parametrize("n_links", [1, 2, 4])
def test_the_energy_error_without_force_falls_with_dt_at_fourth_order_at_least(n_links):
    start = ChainedPendulum(n_links=n_links).initial_states(8, torch.Generator().manual_seed(0), torch.float64)
    errors = []
    for dt in (0.02, 0.005):
        system = ChainedPendulum(n_links=n_links, dt=dt)
        end = simulate(system, start, torch.zeros(8, 1, dtype=torch.float64), duration=1.0)
        errors.append(float((energy(system, end) - energy(system, start)).abs().max()))
    assert orders(errors)[0] > 2 * 3.8, errors
    assert errors[0] < 1e-5 * 0.1 * 9.8 * 0.5, "of the energy of one link"


def test_trajectories_converge_at_fourth_order():
    states, forces = random_batch(3)
    systems = [ChainedPendulum(n_links=3, dt=dt) for dt in (0.01, 0.005, 0.0025, 0.0005)]
    *ends, best = [simulate(system, states / 3, forces / 3, duration=0.1) for system in systems]
    assert orders([float((end - best).abs().max()) for end in ends]) == pytest.approx([4.0, 4.0], abs=0.2)


@pytest.mark.parametrize("n_links", [1, 3])
def test_the_impulse_of_the_force_is_the_change_of_momentum(n_links):
    system, (states, forces) = ChainedPendulum(n_links=n_links, substeps=8), random_batch(n_links)
    states = states / 3
    end = simulate(system, states, forces, duration=0.2)
    change = momentum(system, end) - momentum(system, states)
    torch.testing.assert_close(change, 0.2 * forces[:, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("substeps", [1, 3])
def test_substeps_are_shorter_steps(substeps):
    states, forces = random_batch(2)
    once = ChainedPendulum(dt=0.03, substeps=substeps).step(states, forces)
    many = simulate(ChainedPendulum(dt=0.03 / substeps, substeps=1), states, forces, duration=0.03)
    torch.testing.assert_close(once, many, rtol=1e-12, atol=1e-12)


# Slopes, batches, parameters


@pytest.mark.parametrize("n_links", LINKS)
def test_linearize_equals_autograd_also_for_samples_that_differ(n_links):
    states, forces = random_batch(n_links)
    for damping in (0.0, 0.1):
        system = ChainedPendulum(n_links=n_links, joint_damping=damping)
        values = torch.linspace(0.8, 1.2, len(states), dtype=states.dtype)
        scaled = {name: getattr(system, name) * values for name in system.parameters}
        for one in (system, system.with_parameters(**scaled)):
            units = torch.eye(system.state_size, dtype=states.dtype)[:, None].expand(-1, len(states), -1)
            expected = System.pullback(one, states, forces)(slice(None), units)
            for found, rows in zip(one.linearize(states, forces), expected, strict=True):
                torch.testing.assert_close(found, rows.transpose(0, 1), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("n_links", LINKS)
def test_the_system_keeps_its_promises(n_links):
    dtype = torch.float64 if n_links % 2 else torch.float32
    check_system(ChainedPendulum(n_links=n_links, joint_damping=0.01), dtype=dtype)


def test_parameters_of_samples_are_those_of_systems_made_with_them():
    states, forces = random_batch(2, size=2)
    systems = (
        ChainedPendulum(link_length=0.4, link_mass=0.2, cart_mass=2.0, gravity=3.0, joint_damping=0.1),
        ChainedPendulum(),
    )
    both = {
        name: torch.tensor([getattr(system, name) for system in systems], dtype=states.dtype)
        for name in ChainedPendulum.parameters
    }
    found = systems[1].with_parameters(**both).step(states, forces)
    alone = [system.step(states[i : i + 1], forces[i : i + 1]) for i, system in enumerate(systems)]
    torch.testing.assert_close(found, torch.cat(alone), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("option", ["link_length", "link_mass", "cart_mass", "gravity", "joint_damping"])
def test_each_parameter_is_drawn_for_each_episode(option):
    low, high = {"joint_damping": (0.0, 0.1)}.get(option, (0.5, 1.5))
    envs = gym.make_vec("DiffChainedPendulum-v0", num_envs=3, randomize={option: (low, high)}, show_parameters=True)
    envs.reset(seed=0)
    for _ in range(2):
        observations, *_ = envs.step(np.full((3, 1), 20.0, np.float32))
    assert len(np.unique(observations[:, -1])) == 3
    assert np.abs(observations[:, -1]).max() <= 1.0


@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_a_step_traces_into_one_graph_and_writes_nothing_in_place(damping):
    system, (states, forces) = ChainedPendulum(n_links=3, joint_damping=damping), random_batch(3)
    for function in (lambda x, u: system.step(x, u), lambda x, u: system.linearize(x, u)):
        graph = make_fx(function)(states, forces)
        names = {str(node.target) for node in graph.graph.nodes if node.op == "call_function"}  # aten.add_.Tensor
        assert not {name for name in names if "_." in name}
        other = random_batch(3, seed=1)
        for found, expected in zip(graph(*other), function(*other), strict=True):
            assert torch.equal(found, expected)


@pytest.mark.parametrize("n_links", [1, 4])
def test_a_step_maps_over_samples(n_links):
    system, (states, forces) = ChainedPendulum(n_links=n_links, joint_damping=0.1), random_batch(n_links)
    alone = torch.func.vmap(lambda x, u: system.step(x[None], u[None])[0])(states, forces)
    torch.testing.assert_close(alone, system.step(states, forces), rtol=1e-12, atol=1e-12)


# Start, observation, options, picture


def test_the_tasks_start_hanging_or_near_upright():
    generator = torch.Generator().manual_seed(0)
    hanging = ChainedPendulum(n_links=3).initial_states(4096, generator)
    hanging[:, 2::2] = (hanging[:, 2::2] - math.pi) / (math.pi / 6)
    upright = ChainedPendulum(n_links=3, task="balance").initial_states(4096, generator) / 0.1
    for states in (hanging, upright):
        assert 0.99 < float(states.abs().max()) <= 1.0 + 1e-5
        assert torch.allclose(states.mean(0), torch.zeros(8), atol=0.05)
        assert torch.allclose(states.T @ states / 4096, torch.eye(8) / 3, atol=0.03)


def test_observations_go_link_by_link():
    states, _ = random_batch(2)
    x, v, a, a_dot, b, b_dot = states.unbind(1)
    seen = ChainedPendulum(observation="cos_sin").observe(states)
    expected = torch.stack([x, v, a.cos(), a.sin(), a_dot, b.cos(), b.sin(), b_dot], dim=1)
    torch.testing.assert_close(seen, expected)
    seen = ChainedPendulum(observation="positions").observe(states)
    torch.testing.assert_close(seen, torch.stack([x, a.cos(), a.sin(), b.cos(), b.sin()], dim=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_links": 0}, "n_links must be an integer of at least 1; got 0"),
        ({"n_links": 7}, "n_links must be an integer from 1 to 6; got 7"),
        ({"n_links": 2.0}, "n_links must be an integer of at least 1; got 2.0"),
        ({"task": "swingup"}, r"task must be one of 'swing_up', 'balance'; got 'swingup'. Did you mean 'swing_up'\?"),
        ({"observation": "angles"}, "observation must be one of 'state', 'cos_sin', 'positions'; got 'angles'"),
        ({"link_length": 0.0}, "link_length must be a finite number above 0; got 0.0"),
        ({"link_mass": -1.0}, "link_mass must be a finite number above 0; got -1.0"),
        ({"cart_mass": math.inf}, "cart_mass must be a finite number above 0; got inf"),
        ({"gravity": -9.8}, "gravity must be a finite number of at least 0; got -9.8"),
        ({"joint_damping": -0.1}, "joint_damping must be a finite number of at least 0; got -0.1"),
        ({"substeps": 0}, "substeps must be an integer of at least 1; got 0"),
        ({"max_force": 0}, "max_force must be a finite number above 0; got 0"),
        ({"n_poles": 2}, "has no option 'n_poles'"),
    ],
    ids=str,
)
def test_what_is_no_option_is_refused_in_words(options, message):
    with pytest.raises(ValueError, match=message):
        gym.make("DiffChainedPendulum-v0", **options)


@pytest.mark.parametrize("n_links", [1, 2, 6])
def test_a_picture_shows_every_link_in_its_color(n_links):
    pytest.importorskip("pygame")
    state = torch.zeros(2 + 2 * n_links)
    state[2::2] = torch.linspace(0.4, -1.2, n_links)
    image = picture(ChainedPendulum(n_links=n_links), state, torch.tensor([20.0]))
    for color in CYCLE[:n_links]:
        assert (np.abs(image.astype(int) - color).sum(-1) < 12).sum() > 30
