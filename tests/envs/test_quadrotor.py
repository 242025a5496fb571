"""The planar quadrotor: scipy's solution, flight without thrust, hovering, mirror images, slopes, courses, options."""

import itertools
import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from bptt_envs import System, check_system
from bptt_envs.canvas import CYCLE
from bptt_envs.rendering import picture
from bptt_envs.systems import Quadrotor

OTHER = {"mass": 0.6, "arm_length": 0.4, "gravity": 5.0}
COURSES = ("free", "gate", "obstacles")


def random_batch(size=6, seed=0):
    """States of any angle and velocity, and thrusts, in float64."""
    generator = torch.Generator().manual_seed(seed)
    states = 3.0 * torch.randn(size, 6, generator=generator, dtype=torch.float64)
    return states, 10.0 * torch.rand(size, 2, generator=generator, dtype=torch.float64)


def simulate(system, states, thrusts, duration):
    for _ in range(round(duration / system.dt)):
        states = system.step(states, thrusts)
    return states


def mirrored(states):
    """Left and right changed, about x = 0."""
    return states * torch.tensor([-1.0, 1.0, -1.0, -1.0, 1.0, -1.0], dtype=states.dtype)


@pytest.mark.parametrize("options", [{}, OTHER], ids=["default", "other"])
def test_the_way_is_that_of_the_equations_as_scipy_solves_them(options):
    system, (states, thrusts) = Quadrotor(dt=0.002, **options), random_batch()
    end = simulate(system, states, thrusts, duration=0.5)
    for state, (left, right), found in zip(states.numpy(), thrusts.numpy(), end.numpy(), strict=True):

        def rates(t, z, left=left, right=right):
            push = (left + right) / system.mass
            turn = system.arm_length * (right - left) / (system.mass * system.arm_length**2)
            return [*z[3:], -push * math.sin(z[2]), push * math.cos(z[2]) - system.gravity, turn]

        solved = solve_ivp(rates, (0.0, 0.5), state, method="DOP853", rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(found, solved.y[:, -1], rtol=1e-7, atol=1e-7)


def test_trajectories_converge_at_fourth_order():
    states, thrusts = random_batch()
    *ends, best = [simulate(Quadrotor(dt=dt), states, thrusts, duration=0.4) for dt in (0.04, 0.02, 0.01, 0.0025)]
    errors = [float((end - best).abs().max()) for end in ends]
    assert [math.log2(a / b) for a, b in itertools.pairwise(errors)] == pytest.approx([4.0, 4.0], abs=0.3)


def test_without_thrust_energy_and_spin_are_kept_exactly():
    system, (states, _) = Quadrotor(**OTHER), random_batch()

    def energy(x):
        moving = 0.5 * system.mass * (x[:, 3] ** 2 + x[:, 4] ** 2 + (system.arm_length * x[:, 5]) ** 2)
        return moving + system.mass * system.gravity * x[:, 1]

    end = simulate(system, states, torch.zeros(6, 2, dtype=states.dtype), duration=2.0)
    torch.testing.assert_close(energy(end), energy(states), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(end[:, 5], states[:, 5], rtol=0.0, atol=0.0)


def test_the_energy_under_random_thrusts_is_that_of_fine_steps_within_what_the_page_says():
    """As a share of the weight times 1 m, after 1 s."""
    errors = []
    for dt in (0.04, 0.02):
        system = Quadrotor(dt=dt)
        generator = torch.Generator().manual_seed(0)
        states, fine = (system.initial_states(16, generator, torch.float64),) * 2
        for _ in range(25):
            thrusts = 10.0 * torch.rand(16, 2, generator=generator, dtype=torch.float64)
            states = simulate(system, states, thrusts, 0.04)
            fine = simulate(Quadrotor(dt=0.001), fine, thrusts, 0.04)
        energies = [0.5 * (x[:, 3] ** 2 + x[:, 4] ** 2) + 9.81 * x[:, 1] for x in (states, fine)]
        errors.append(float((energies[0] - energies[1]).abs().max() / 9.81))
    assert errors[0] < 1e-3
    assert errors[1] < errors[0] / 8


@pytest.mark.parametrize("options", [{}, OTHER], ids=["default", "other"])
def test_hovering_is_an_equilibrium_and_costs_nothing_at_the_target(options):
    system = Quadrotor(course="free", **options)
    state = torch.tensor([[*system.target, 0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    thrusts = torch.full((1, 2), system.mass * system.gravity / 2, dtype=torch.float64)
    end = simulate(system, state, thrusts, duration=2.0)
    torch.testing.assert_close(end, state, rtol=0.0, atol=1e-12)
    assert float(system.running_cost(state, thrusts, end)) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("course", COURSES)
def test_a_mirror_image_flies_and_pays_the_same(course):
    system, image = Quadrotor(course=course), Quadrotor(course=course, target=(-2.0, 0.0))
    states, thrusts = random_batch(64)
    end, other = system.step(states, thrusts), image.step(mirrored(states), thrusts.flip(1))
    torch.testing.assert_close(other, mirrored(end))
    found = image.running_cost(mirrored(states), thrusts.flip(1), other)
    torch.testing.assert_close(found, system.running_cost(states, thrusts, end))


def test_thrusts_push_only_and_not_more_than_they_can():
    system = Quadrotor(max_thrust=7.0)
    assert (system.action_low, system.action_high) == (0.0, 7.0)
    bounded = system.bound(torch.tensor([[-3.0, 9.0], [2.0, 7.0]]))
    assert bounded.tolist() == [[0.0, 7.0], [2.0, 7.0]]
    space = gym.make("DiffQuadrotor-v0").action_space
    assert (space.low.tolist(), space.high.tolist()) == ([0.0, 0.0], [10.0, 10.0])


def test_the_middle_of_the_thrusts_nearly_hovers():
    system = Quadrotor()
    middle = system.action_at(torch.zeros(1, 2))
    assert middle.sum().item() == pytest.approx(system.mass * system.gravity, rel=0.03)


def test_what_stands_in_the_way_is_deep_in_its_middle_and_nothing_outside():
    def depths(system, points):
        states = torch.zeros(len(points), 6)
        states[:, :2] = torch.tensor(points)
        return system.depth(states).tolist()

    wall, opening, below, before = depths(Quadrotor(), [(0.0, -3.0), (0.0, 1.0), (0.0, 0.5), (-0.45, 0.0)])
    assert (opening, before) == (0.0, 0.0)
    assert below == pytest.approx(0.5)
    assert 0.99 < wall < 1.0
    for n in range(1, 6):
        system = Quadrotor(course="obstacles", n_obstacles=n)
        assert len(system.obstacles) == n
        assert all(one >= 1.0 for one in depths(system, system.obstacles))
        assert depths(system, [(-2.0, 0.0), (2.0, 0.0), (0.0, 1.5)]) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("course", COURSES)
def test_the_system_keeps_its_promises(course):
    check_system(Quadrotor(course=course))
    check_system(Quadrotor(course=course), dtype=torch.float64)


def test_linearize_equals_autograd_also_for_samples_that_differ():
    states, thrusts = random_batch()
    scaled = {name: torch.linspace(0.8, 1.2, 6, dtype=states.dtype) for name in Quadrotor.parameters}
    system = Quadrotor().with_parameters(**scaled)
    units = torch.eye(6, dtype=states.dtype)[:, None].expand(-1, 6, -1)
    expected = System.pullback(system, states, thrusts)(slice(None), units)
    for found, rows in zip(system.linearize(states, thrusts), expected, strict=True):
        torch.testing.assert_close(found, rows.transpose(0, 1), rtol=1e-10, atol=1e-10)


def test_starts_fill_their_ranges():
    states = Quadrotor().initial_states(4096, torch.Generator().manual_seed(0), torch.float64)
    low = torch.tensor([-2.5, -1.0, -0.3, -0.5, -0.5, -0.5])
    high = torch.tensor([-1.5, 1.0, 0.3, 0.5, 0.5, 0.5])
    torch.testing.assert_close(states.amin(0).float(), low, rtol=0.0, atol=0.01)
    torch.testing.assert_close(states.amax(0).float(), high, rtol=0.0, atol=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"course": "gates"}, r"course must be one of 'free', 'gate', 'obstacles'; got 'gates'. Did you mean 'gate'\?"),
        ({"n_obstacles": 0}, "n_obstacles must be an integer of at least 1; got 0"),
        ({"n_obstacles": 6}, "n_obstacles must be an integer from 1 to 5; got 6"),
        ({"target": 2.0}, "target must be"),
        ({"collision_weight": -1.0}, "collision_weight must be a finite number of at least 0; got -1.0"),
        ({"control_weight": -1.0}, "control_weight must be a finite number of at least 0; got -1.0"),
        ({"mass": 0.0}, "mass must be a finite number above 0; got 0.0"),
        ({"arm_length": 0.0}, "arm_length must be a finite number above 0; got 0.0"),
        ({"gravity": 0.0}, "gravity must be a finite number above 0; got 0.0"),
        ({"max_thrust": None}, "max_thrust must be a finite number above 0; got None"),
        ({"max_force": 2.0}, "has no option 'max_force'"),
    ],
    ids=str,
)
def test_what_is_no_option_is_refused_in_words(options, message):
    with pytest.raises(ValueError, match=message):
        gym.make("DiffQuadrotor-v0", **options)


@pytest.mark.parametrize("course", COURSES)
def test_a_picture_shows_rotors_and_target(course):
    pytest.importorskip("pygame")
    image = picture(Quadrotor(course=course), torch.tensor([-2.0, 0.0, 0.3, 0.0, 0.0, 0.0]), torch.tensor([4.0, 6.0]))
    for color in (CYCLE[0], CYCLE[2]):
        assert (np.abs(image.astype(int) - color).sum(-1) < 12).sum() > 30
