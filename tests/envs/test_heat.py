"""The heat equation: its solution, its optimum through the environment, its pictures, options."""

import math

import gymnasium as gym
import pytest
import torch

from bptt_envs import System
from bptt_envs.canvas import ACTION, CYCLE
from bptt_envs.charts import Curves, Field, NamedCurves
from bptt_envs.rendering import picture
from bptt_envs.system import OBJECTIVES
from bptt_envs.systems import Heat
from bptt_envs.systems.heat import BOUNDARIES

SMALL = {"n_cells": 6, "horizon": 5, "n_actuators": 3}


def start(system, batch=4, seed=0):
    return system.initial_states(batch, torch.Generator().manual_seed(seed), torch.float64)


def loss_of(system, gains, states):
    """The mean loss of u_t = -K_t x_t."""
    total = 0.0
    for K in gains:
        actions = -states @ K.mT
        following = system.step(states, actions)
        total, states = total + system.running_cost(states, actions, following), following
    return (total + system.final_cost(states)).mean()


WAVES = {
    "insulated": lambda x, n: torch.cos(n * math.pi * x),
    "walled": lambda x, n: torch.sin(n * math.pi * x),
    "periodic": lambda x, n: torch.cos(2 * n * math.pi * x),
}


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_waves_decay_at_their_rates_and_the_error_falls_with_the_square_of_the_cells(boundary):
    errors = []
    for n_cells in (16, 32):
        system = Heat(boundary=boundary, n_cells=n_cells, dt=0.3)
        states = torch.stack([WAVES[boundary](system.line.x, n) for n in (1, 2, 3)])
        factor = 2 * math.pi if boundary == "periodic" else math.pi
        rates = system.diffusivity * (factor * torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)) ** 2
        found = system.step(states, torch.zeros(3, 4, dtype=torch.float64))
        errors.append(float((found - states * (-rates * system.dt).exp()).abs().max()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_steps_of_any_duration_are_the_same_solution(boundary):
    once, thrice = Heat(boundary=boundary, dt=0.3), Heat(boundary=boundary, dt=0.1)
    states, actions = start(once), torch.randn(4, 4, dtype=torch.float64)
    expected = states
    for _ in range(3):
        expected = thrice.step(expected, actions)
    torch.testing.assert_close(once.step(states, actions), expected, rtol=1e-12, atol=1e-12)


def test_heat_stays_within_insulated_ends_and_leaves_through_cold_ones():
    for boundary, kept in (("insulated", True), ("periodic", True), ("walled", False)):
        system = Heat(boundary=boundary)
        states = start(system).abs()
        for _ in range(20):
            following = system.step(states, torch.zeros(4, 4, dtype=torch.float64))
            assert torch.allclose(following.sum(-1), states.sum(-1), rtol=1e-12) is kept
            assert (following.sum(-1) < states.sum(-1) + 1e-12).all()
            assert (following.square().sum(-1) < states.square().sum(-1)).all()
            states = following


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_gradient_through_the_environment_is_0_at_the_optimal_gains(objective):
    system = Heat(objective=objective, **SMALL)
    states, gains = start(system, 64), system.optimal_gains().requires_grad_()
    loss = loss_of(system, gains, states)
    torch.testing.assert_close(loss, system.optimal_cost(states).mean(), rtol=1e-10, atol=0.0)
    (slope,) = torch.autograd.grad(loss, gains)
    idle = torch.zeros_like(gains).requires_grad_()
    (scale,) = torch.autograd.grad(loss_of(system, idle, states), idle)
    assert slope.norm() < 1e-10 * scale.norm()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_other_gains_are_worse_and_none_at_all_far_worse(objective):
    system = Heat(objective=objective)
    states, gains = start(system, 64), system.optimal_gains()
    least = loss_of(system, gains, states)
    change = torch.randn(gains.shape, generator=torch.Generator().manual_seed(1), dtype=gains.dtype)
    for size in (1e-3, 1e-2, -1e-3, -1e-2):
        assert loss_of(system, gains + size * change, states) > least
    idle = loss_of(system, torch.zeros_like(gains), states)
    assert 4 * least < idle
    assert 0.5 < idle < 2.0, "a loss of about 1"


@pytest.mark.parametrize("n_actuators", [3, None])
def test_closed_forms_are_autograds_slopes(n_actuators):
    system = Heat(**SMALL | {"n_actuators": n_actuators})
    states, actions = start(system), torch.randn(4, *system.action_shape, dtype=torch.float64)
    units = torch.eye(6, dtype=torch.float64).unsqueeze(1).expand(6, 4, 6)
    expected = System.pullback(system, states, actions)(slice(1, 3), units[:, 1:3])
    found = system.pullback(states, actions)(slice(1, 3), units[:, 1:3])
    dense = [one[1:3].transpose(0, 1) for one in system.linearize(states, actions)]
    for one, closed, defined in zip(found, dense, expected, strict=True):
        torch.testing.assert_close(one, defined, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(closed, defined, rtol=1e-12, atol=1e-12)


# What a line of cells has, whatever flows along it


def test_actuators_are_gaussians_at_equal_distances():
    line = Heat(n_cells=40, n_actuators=4, length=2.0).line
    assert line.actuators.shape == (40, 4)
    peaks = line.x[line.actuators.argmax(0)]
    assert peaks.tolist() == pytest.approx([0.25, 0.75, 1.25, 1.75], abs=line.dx)
    center, width = 0.75, 0.25  # half of their distance
    torch.testing.assert_close(line.actuators[:, 1], (-((line.x - center) ** 2) / (2 * width**2)).exp())
    narrow = Heat(n_cells=40, n_actuators=4, length=2.0, actuator_width=0.05).line
    assert narrow.actuators.sum() < 0.3 * line.actuators.sum()


def test_actuators_of_a_ring_reach_around_it():
    line = Heat(boundary="periodic", n_cells=12, n_actuators=3).line
    for k in (1, 2):
        torch.testing.assert_close(line.actuators[:, k], line.actuators[:, 0].roll(4 * k, 0))


def test_without_actuators_each_cell_has_its_own():
    system = Heat(n_cells=5, n_actuators=None)
    assert torch.equal(system.line.actuators, torch.eye(5, dtype=torch.float64))
    assert system.action_labels == ("a_1", "a_2", "a_3", "a_4", "a_5")
    assert system.state_labels[0] == "u(0.1)"


def test_charts_show_space_and_time():
    for n_actuators, kind in ((3, NamedCurves), (None, Field)):
        system = Heat(n_cells=10, n_actuators=n_actuators)
        charts = system.charts(torch.randn(4, 2, 10), torch.randn(3, 2, *system.action_shape))
        assert [type(chart) for chart in charts] == [Field, kind, Curves]
        assert charts[0].values.shape == (4, 10)
        assert charts[2].values.shape == (4, 2)
        assert (charts[0].low, charts[0].high) == pytest.approx((0.05, 0.95))


def pixels(image, color):
    """Rows of the pixels that have `color`, but for antialiasing."""
    return [int(row) for row in (abs(image.astype(int) - color) <= 3).all(axis=-1).nonzero()[0]]


def test_the_picture_has_the_profile_at_its_height_and_the_push_above_it():
    system, rest = Heat(), torch.zeros(32)
    middle = sum(pixels(picture(system, rest), CYCLE[0])) / len(pixels(picture(system, rest), CYCLE[0]))
    warm, cold = (pixels(picture(system, rest + height), CYCLE[0]) for height in (1.0, -1.0))
    assert max(warm) < middle < min(cold)
    assert not pixels(picture(system, rest), ACTION)
    up, down = (pixels(picture(system, rest, torch.full((4,), push)), ACTION) for push in (5.0, -5.0))
    assert max(up) - 2 <= min(down)
    picture(system, torch.tensor([math.nan, math.inf, 3e38] + 29 * [0.0]), torch.full((4,), 3e38))


BAD_OPTIONS = [
    ({"n_cells": 3}, r"n_cells must be an integer of at least 4; got 3\."),
    ({"boundary": "cold"}, r"boundary must be one of 'insulated', 'walled', 'periodic'; got 'cold'\."),
    ({"n_actuators": 0}, r"n_actuators must be an integer of at least 1; got 0\."),
    ({"actuator_width": 0.0}, r"actuator_width must be a finite number above 0; got 0\.0\."),
    ({"control_weight": 0.0}, r"control_weight must be a finite number above 0; got 0\.0\."),
    ({"diffusivity": -1.0}, r"diffusivity must be a finite number above 0; got -1\.0\."),
    ({"A": [[1.0]]}, r"has no option 'A'\."),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS, ids=[str(row[0]) for row in BAD_OPTIONS])
def test_bad_option(options, message):
    with pytest.raises(ValueError, match=message):
        gym.make("DiffHeat-v0", **options)
