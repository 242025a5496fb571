"""The Burgers equation: known solutions, measured orders, what is conserved, targets within reach, options."""

import itertools
import math

import gymnasium as gym
import pytest
import torch

from bptt_envs import check_system
from bptt_envs.canvas import ACTION, CYCLE, MUTED
from bptt_envs.charts import Curves, Field, NamedCurves
from bptt_envs.rendering import picture
from bptt_envs.systems import Burgers
from bptt_envs.systems.burgers import BOUNDARIES


def start(system, batch=4, seed=0):
    return system.initial_states(batch, torch.Generator().manual_seed(seed), torch.float64)


def goal(n_cells):
    """A target that takes no part, for flows alone."""
    return [0.0] * n_cells


def rest(system, batch):
    return torch.zeros(batch, *system.action_shape, dtype=torch.float64)


# Manufactured solutions: u and the force that makes it one, at x and t


def travelling(x, t, viscosity):
    """1 + sin(q (x - t)) / 2 on the ring."""
    q = 2 * math.pi
    s, c = torch.sin(q * (x - t)), torch.cos(q * (x - t))
    u = 1.0 + 0.5 * s
    return u, q * 0.5 * c * (u - 1.0) + viscosity * q * q * 0.5 * s


def swelling(x, t, viscosity):
    """(1 + t) sin(pi x) + sin(2 pi x) / 2 between walls."""
    p = math.pi
    u = (1 + t) * torch.sin(p * x) + 0.5 * torch.sin(2 * p * x)
    u_x = (1 + t) * p * torch.cos(p * x) + p * torch.cos(2 * p * x)
    u_xx = -(1 + t) * p * p * torch.sin(p * x) - 2 * p * p * torch.sin(2 * p * x)
    return u, torch.sin(p * x) + u * u_x - viscosity * u_xx


SOLUTIONS = {"periodic": travelling, "walled": swelling}


def error_of(boundary, *, n_cells, dt, substeps, duration=0.24):
    """How far the scheme is from the manufactured solution, root mean square, forced as in the middle of each step."""
    system = Burgers(
        boundary=boundary,
        n_cells=n_cells,
        n_actuators=None,
        target=goal(n_cells),
        viscosity=0.05,
        dt=dt,
        substeps=substeps,
    )
    x, solution = system.line.x, SOLUTIONS[boundary]
    u = solution(x, 0.0, 0.05)[0].unsqueeze(0)
    steps = round(duration / dt)
    for t in range(steps):
        u = system.step(u, solution(x, (t + 0.5) * dt, 0.05)[1].unsqueeze(0))
    return float((u - solution(x, steps * dt, 0.05)[0]).square().mean().sqrt())


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_a_manufactured_solution_is_met_to_second_order_in_space(boundary):
    errors = [error_of(boundary, n_cells=n, dt=0.001, substeps=1) for n in (16, 32, 64)]
    orders = [math.log2(one / other) for one, other in itertools.pairwise(errors)]
    assert 1.8 < orders[-1] < 2.5
    assert errors[-1] < 1e-3


def test_the_error_falls_with_the_square_of_the_substep():
    u = travelling(Burgers().line.x, 0.0, 0.0)[0].unsqueeze(0)

    def after(substeps):
        system = Burgers(target=goal(32), dt=0.12, substeps=substeps)
        return system.step(u, torch.ones(1, 8, dtype=torch.float64))

    exact = after(1024)
    errors = [float((after(substeps) - exact).square().mean().sqrt()) for substeps in (16, 32, 64)]
    assert [math.log2(one / other) for one, other in itertools.pairwise(errors)] == pytest.approx([2.0, 2.0], abs=0.25)


def test_a_shock_moves_at_the_mean_of_its_two_sides():
    n_cells = 200
    system = Burgers(n_cells=n_cells, target=goal(n_cells), viscosity=1e-6, dt=0.3, substeps=240)
    u = torch.where((system.line.x > 0.1) & (system.line.x < 0.3), 1.5, 0.5).unsqueeze(0)
    after = system.step(u.double(), rest(system, 1))[0]
    falls = system.line.x[(after[:-1] - after[1:]).argmax()]
    assert float(falls) == pytest.approx(0.3 + 0.3 * (1.5 + 0.5) / 2, abs=0.01)
    assert 0.5 - 1e-3 < after.min() < after.max() < 1.5 + 1e-3, "without wiggles beside it"


@pytest.mark.parametrize("n_cells", [32, 64])
def test_the_ring_keeps_its_mass_and_loses_energy(n_cells):
    system = Burgers(n_cells=n_cells)
    states = start(system)
    mass, energy = states[:, :n_cells].sum(-1), states[:, :n_cells].square().sum(-1)
    for _ in range(system.horizon):
        states = system.step(states, rest(system, 4))
        u = states[:, :n_cells]
        torch.testing.assert_close(u.sum(-1), mass, rtol=1e-12, atol=1e-12)
        assert (u.square().sum(-1) < energy).all()
        energy = u.square().sum(-1)


def test_no_speed_grows_without_a_force():
    for boundary in BOUNDARIES:
        system = Burgers(boundary=boundary)
        states = start(system, 64)
        least, most = states[:, :32].amin(), states[:, :32].amax()
        if boundary == "walled":
            least, most = least.clamp(max=0.0), most.clamp(min=0.0)
        for _ in range(system.horizon):
            states = system.step(states, rest(system, 64))
        assert states[:, :32].amin() > least - 0.02
        assert states[:, :32].amax() < most + 0.02


def test_walls_hold_the_flow_between_them():
    system = Burgers(boundary="walled", target=goal(32))
    u = torch.full((1, 32), 1.0, dtype=torch.float64)
    for _ in range(20):
        u = system.step(u, rest(system, 1))
    assert u[0, 0] < 0.1 < u[0, 20], "nothing comes out of the left wall"
    mirrored = torch.full((1, 32), -1.0, dtype=torch.float64)
    for _ in range(20):
        mirrored = system.step(mirrored, rest(system, 1))
    torch.testing.assert_close(mirrored, -u.flip(-1))


def test_the_forces_add_their_mass():
    system = Burgers()
    states, actions = start(system), torch.randn(4, 8, dtype=torch.float64)
    pushed = system.step(states, actions)[:, :32].sum(-1) - states[:, :32].sum(-1)
    torch.testing.assert_close(pushed, system.dt * (actions @ system.line.actuators.mT).sum(-1))


def test_a_target_is_within_reach_by_one_force_that_is_not_shown():
    system = Burgers(horizon=1, n_actuators=None)
    states, force = start(system), torch.zeros(4, 32, dtype=torch.float64)
    for _ in range(8):  # Newton's method
        following = system.step(states, force)
        short = (states[:, 32:] - following[:, :32]).unsqueeze(-1)
        force = force + torch.linalg.solve(system.linearize(states, force)[1][:, :32], short).squeeze(-1)
    assert system.state_cost(system.step(states, force)).max() < 1e-20
    center = system.line.x[force.abs().argmax(-1)]
    assert ((center > 0.35) & (center < 0.65)).all()
    assert force.abs().max() <= 1.6
    assert (force.sign() == force[:, :1].sign()).all(), "a Gaussian of one sign"


def test_starts_are_two_gaussians_that_meet():
    system = Burgers(target=goal(32), boundary="walled")
    states = start(system, 1024)
    assert states[:, :10].mean() > 0.2
    assert states[:, -10:].mean() < -0.2
    assert states.abs().max() < 3.0
    assert states[:, :10].amax(-1).std() > 0.5


def test_an_idle_controller_misses_the_target_and_the_target_stays():
    system = Burgers()
    first = states = start(system, 256)
    for _ in range(system.horizon):
        states = system.step(states, rest(system, 256))
    assert torch.equal(states[:, 32:], first[:, 32:])
    assert 0.2 < system.state_cost(states).mean() < 1.0


def test_a_given_target_is_no_part_of_the_state():
    target = torch.linspace(-1.0, 1.0, 8).tolist()
    system = Burgers(n_cells=8, target=target)
    states = torch.randn(3, 8, dtype=torch.float64)
    expected = (states - torch.tensor(target, dtype=torch.float64)).square().mean(-1)
    torch.testing.assert_close(system.state_cost(states), expected)
    assert system.state_shape == system.observation_shape == (8,)


def test_finer_lines_and_more_viscous_flows_keep_the_contract():
    for options in ({"n_cells": 256, "dt": 0.01}, {"n_cells": 5, "viscosity": 0.5}, {"boundary": "walled"}):
        check_system(Burgers(**{"n_cells": 8} | options, horizon=4))
    for n_cells in (32, 256, 1024):
        assert Burgers(n_cells=n_cells, horizon=1).substeps_taken >= 0.03 * 4.0 * n_cells


def test_slopes_are_autograds_for_parameters_that_differ():
    system = Burgers(n_cells=8).with_parameters(viscosity=torch.tensor([1e-3, 0.003, 0.02], dtype=torch.float64))
    states, actions = torch.randn(3, 16, dtype=torch.float64), torch.randn(3, 8, dtype=torch.float64)
    vectors = torch.randn(2, 2, 16, dtype=torch.float64)
    expected = super(Burgers, system).pullback(states, actions)(slice(1, 3), vectors)
    for found, defined in zip(system.pullback(states, actions)(slice(1, 3), vectors), expected, strict=True):
        torch.testing.assert_close(found, defined, rtol=1e-12, atol=1e-12)


def test_charts_and_picture_show_profile_target_and_push():
    system = Burgers()
    states = start(system).float()
    charts = system.charts(torch.stack([states, states]), torch.randn(1, 4, 8))
    assert [type(chart) for chart in charts] == [Field, NamedCurves, Curves]
    assert charts[0].values.shape == (2, 32)
    torch.testing.assert_close(charts[2].values[0], system.state_cost(states).sqrt())
    image = picture(system, states[0], torch.ones(8))
    for color in (CYCLE[0], ACTION, MUTED):
        assert (abs(image.astype(int) - color) <= 3).all(axis=-1).sum() > 50


BAD_OPTIONS = [
    ({"n_cells": 3}, r"n_cells must be an integer of at least 4; got 3\."),
    ({"boundary": "open"}, r"boundary must be one of 'periodic', 'walled'; got 'open'\."),
    ({"target": 3.0}, r"target must be 32 numbers, or None; got 3\.0\."),
    ({"target": [0.0, 1.0]}, r"target must be 32 numbers, one a cell; got 2\."),
    ({"viscosity": 0.0}, r"viscosity must be a finite number above 0; got 0\.0\."),
    ({"viscosity": 0.1}, r"viscosity=0\.1 needs substeps of at least 7 to be stable; got None, which are 4\."),
    ({"n_actuators": 0}, r"n_actuators must be an integer of at least 1; got 0\."),
    ({"substeps": 0}, r"substeps must be an integer of at least 1; got 0\."),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS, ids=[str(row[0]) for row in BAD_OPTIONS])
def test_bad_option(options, message):
    with pytest.raises(ValueError, match=message):
        gym.make("DiffBurgers-v0", **options)


@pytest.mark.parametrize("n_cells", [32, 64, 256])
def test_flow_and_diffusion_together_are_stable_at_any_resolution(n_cells):
    system = Burgers(n_cells=n_cells)
    states = system.initial_states(8, torch.Generator().manual_seed(0))
    assert states.abs().max() < 3.5
