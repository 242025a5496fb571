"""The pusher: momentum and energy at contact, friction, known motion, slopes over stiffness, what leads to contact."""

import math

import pytest
import torch

from bptt_envs import System, check_system
from bptt_envs.rendering import picture
from bptt_envs.systems import Pusher

STIFFNESSES = (100.0, 1000.0, 10_000.0)
FREE = {"table_friction": 0.0, "contact_friction": 0.0, "contact_damping": 0.0}  # nothing takes energy


def doubles(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def touching(size=32, seed=0):
    """States about the contact, most of them in it, and actions."""
    generator = torch.Generator().manual_seed(seed)
    states, actions = (torch.randn(size, n, generator=generator, dtype=torch.float64) for n in (8, 2))
    away = torch.nn.functional.normalize(torch.randn(size, 2, generator=generator, dtype=torch.float64))
    states[:, 4:6] = states[:, 0:2] + away * (0.22 + 0.04 * torch.rand(size, 1, generator=generator))
    return states, actions


def simulate(system, states, steps, action=None):
    """All states, (steps + 1, B, 8); no action by default."""
    way = [states]
    for _ in range(steps):
        way.append(system.step(way[-1], states.new_zeros(len(states), 2) if action is None else action))
    return torch.stack(way)


def momentum(system, states):
    return system.pusher_mass * states[..., 2:4] + system.disk_mass * states[..., 6:8]


def energy(system, states):
    moving = system.pusher_mass * states[..., 2:4].square().sum(-1) + system.disk_mass * states[..., 6:8].square().sum(
        -1
    )
    distance = (states[..., 4:6] - states[..., 0:2]).norm(dim=-1)
    overlap = (system.pusher_radius + system.disk_radius - distance).clamp_min(0.0)
    return 0.5 * (moving + system.stiffness * overlap.square())


@pytest.mark.parametrize("stiffness", STIFFNESSES)
def test_contact_keeps_momentum(stiffness):
    system, (states, _) = Pusher(stiffness=stiffness, table_friction=0.0, disk_mass=1.3), touching()
    way = simulate(system, states, 5)
    torch.testing.assert_close(momentum(system, way[-1]), momentum(system, way[0]), rtol=1e-12, atol=1e-12)
    assert (way[-1, :, 6:8] != way[0, :, 6:8]).any()


@pytest.mark.parametrize("stiffness", STIFFNESSES)
def test_an_impact_loses_energy_to_damping_and_friction_and_none_without(stiffness):
    start, _ = touching()
    start[:, 0:2] -= 0.2 * torch.nn.functional.normalize(start[:, 4:6] - start[:, 0:2])  # apart, before the impact
    start[:, 2:4], start[:, 6:8] = 3.0 * (start[:, 4:6] - start[:, 0:2]), 0.3
    fine = {"dt": 0.01, "substeps": 20, "stiffness": stiffness}
    for options, least, most in ((FREE, 0.99, 1.01), ({"table_friction": 0.0}, 0.3, 0.95)):
        way = simulate(Pusher(**fine | options), start, 60)
        left = energy(Pusher(**fine), way[-1]) / energy(Pusher(**fine), way[0])
        assert (way[-1, :, 6:8] != start[:, 6:8]).any(1).all()
        assert least < left.min() <= left.max() < most


@pytest.mark.parametrize("stiffness", STIFFNESSES)
def test_an_elastic_impact_of_equal_masses_swaps_velocities(stiffness):
    system = Pusher(stiffness=stiffness, **FREE, dt=0.02, substeps=20)
    end = simulate(system, doubles([-0.4, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]), 40)[-1]
    torch.testing.assert_close(end[:, [2, 3, 6, 7]], doubles([0.0, 0.0, 1.0, 0.0]), rtol=0.0, atol=5e-3)


def test_with_all_losses_on_the_energy_never_rises_but_by_the_integrator():
    system, (states, _) = Pusher(), touching()
    course = energy(system, simulate(system, states, 30))
    assert (course.diff(dim=0) < 0.01 * course[0]).all()
    assert (course[-1] < course[0]).all()


def test_the_table_brakes_the_disk_by_coulombs_law():
    system = Pusher(dt=0.01, horizon=1)
    speed, braking = 2.0, 0.3 * 9.8
    way = simulate(system, doubles([-5.0, 0.0, 0.0, 0.0, 0.0, 0.0, speed * 0.6, speed * 0.8]), 100)
    speeds = way[:, 0, 6:8].norm(dim=-1)
    expected = (speed - braking * 0.01 * torch.arange(101)).clamp_min(0.0).double()
    torch.testing.assert_close(speeds, expected, rtol=0.0, atol=0.08)  # it is smooth near rest
    assert float(way[-1, 0, 4:6].norm()) == pytest.approx(speed**2 / 2 / braking, rel=0.02)
    assert float(speeds[-1]) < 1e-3


def test_pusher_at_rest_by_velocity_control_reaches_its_set_point():
    system = Pusher(actuation="velocity", dt=0.01, horizon=1)
    way = simulate(system, doubles([-5.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]), 100, doubles([0.5, -0.25]))
    rate = 10.0 / system.pusher_mass
    reached = 1.0 - torch.exp(-rate * 0.01 * torch.arange(101)).double()
    torch.testing.assert_close(way[:, 0, 2:4], reached.unsqueeze(1) * doubles(0.5, -0.25), rtol=0.0, atol=0.01)


def test_contact_force_is_a_spring_and_a_damper_along_the_line_of_centres_and_friction_across():
    system = Pusher(stiffness=500.0, contact_damping=2.0, contact_friction=0.5)
    apart, drift = doubles([0.24, 0.0]), doubles([-0.3, 4.0])
    force = system._contact(apart, drift).force
    press = 500.0 * 0.01 * (1 + 2.0 * 0.3)
    torch.testing.assert_close(force, doubles([press, -0.5 * press * 4.0 / math.hypot(4.0, 0.05)]))
    assert not system._contact(doubles([0.26, 0.0]), drift).force.any()
    assert not system._contact(apart, doubles([1.0, 0.0])).force.any(), "it does not pull"


@pytest.mark.parametrize("actuation", ["force", "velocity"])
@pytest.mark.parametrize("stiffness", STIFFNESSES)
def test_slopes_are_those_of_autograd_and_of_differences(stiffness, actuation):
    system, (states, actions) = Pusher(stiffness=stiffness, actuation=actuation), touching()
    found = system.linearize(states, actions)
    for one, other in zip(found, System.linearize(system, states, actions), strict=True):
        torch.testing.assert_close(one, other, rtol=0.0, atol=1e-10 * float(other.abs().max()))

    def step(inputs):
        return system.step(*inputs.split([8, 2], dim=1))

    inputs, width = torch.cat([states, actions], dim=1), 1e-7
    units = width * torch.eye(10, dtype=inputs.dtype)
    expected = torch.stack([(step(inputs + unit) - step(inputs - unit)) / (2 * width) for unit in units], dim=-1)
    torch.testing.assert_close(torch.cat(found, dim=-1), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("stiffness", STIFFNESSES)
def test_the_gradient_of_an_episode_with_contact_is_that_of_differences(stiffness):
    system = Pusher(stiffness=stiffness, horizon=20)
    start, action = doubles([-0.4, 0.03, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]), doubles([5.0, 0.2])

    def loss(action):
        return system.final_cost(simulate(system, start, 20, action)[-1]).sum()

    (slope,) = torch.autograd.grad(loss(action.requires_grad_()), action)
    with torch.no_grad():
        units = 1e-6 * torch.eye(2, dtype=torch.float64)
        expected = torch.stack([(loss(action + unit) - loss(action - unit)) / 2e-6 for unit in units])
        assert float(simulate(system, start, 20, action)[-1, 0, 4]) > 0.05, "the disk has been pushed"
    torch.testing.assert_close(slope[0], expected, rtol=1e-5, atol=1e-8)


def test_no_start_is_in_contact_and_the_loss_leads_to_it():
    system = Pusher()
    states = system.initial_states(256, torch.Generator().manual_seed(0))
    distance = (states[:, 4:6] - states[:, 0:2]).norm(dim=1)
    assert (distance > system.pusher_radius + system.disk_radius).all()
    actions = torch.zeros(system.horizon, 256, 2, requires_grad=True)
    way = states
    for action in actions:
        way = system.step(way, action)
    (slope,) = torch.autograd.grad(system.final_cost(way).sum(), actions)
    towards = -(slope.sum(0) * (states[:, 4:6] - states[:, 0:2])).sum(1)
    assert (towards > 0.0).all(), "descent moves the pusher to the disk"
    assert not torch.autograd.grad(Pusher(approach_weight=0.0).final_cost(way).sum(), way, allow_unused=True)[0][
        :, :2
    ].any()


def test_a_pusher_in_contact_costs_what_the_disk_does():
    system, state = Pusher(), doubles([0.7, 0.1, 0.0, 0.0, 0.9, 0.1, 0.0, 0.0])
    assert float(system.state_cost(state)) == pytest.approx(0.1**2 + 0.1**2)


def test_substeps_follow_the_stiffness_and_too_few_are_refused():
    assert Pusher(stiffness=1e5).substeps > 2 * Pusher(stiffness=1e4).substeps > 4 * Pusher(stiffness=1e3).substeps
    with pytest.raises(ValueError, match=r"substeps must be more than 12\.6 for stiffness=100000 N/m"):
        Pusher(stiffness=1e5, substeps=12)


@pytest.mark.parametrize("actuation", ["force", "velocity"])
def test_it_keeps_the_contract_of_a_system(actuation):
    check_system(Pusher(actuation=actuation), dtype=torch.float64)


def test_the_picture_shows_both_bodies():
    system = Pusher()
    state = system.initial_states(1, torch.Generator().manual_seed(0))[0]
    for place in (0, 4):
        moved = state.clone()
        moved[place] += 0.3
        assert (picture(system, state) != picture(system, moved)).any()


def test_substeps_are_those_that_the_drive_takes_too():
    assert Pusher(actuation="velocity", stiffness=20.0, pusher_mass=0.1).substeps == 4
    with pytest.raises(ValueError, match=r"substeps must be more than 10\.0 .* else the drive diverges; got 5"):
        Pusher(actuation="velocity", stiffness=20.0, pusher_mass=0.02, substeps=5)


@pytest.mark.parametrize("options", [{"stiffness": 1e14}, {"dt": 1e6}])
def test_more_substeps_than_can_be_waited_for_are_refused(options):
    with pytest.raises(ValueError, match=r"substeps must be at most 10000; got None, and stiffness=.* need"):
        Pusher(**options)
