"""Bouncing balls: closed forms of motion, gradient and optimum, conservation, the wall's edge, contact gradients."""

import math

import numpy as np
import pytest
import scipy.optimize
import torch

from bptt_envs import check_system
from bptt_envs.rendering import picture
from bptt_envs.systems import BouncingBall
from bptt_trainers import MLP
from bptt_trainers.directions.policy_gradient import policy_gradient

CONTACT_GRADIENTS = ("hard", "smooth", "from_distance")
BALLS = (1, 2)
LBFGS = {"max_iter": 40, "tolerance_grad": 1e-10, "tolerance_change": 1e-14, "line_search_fn": "strong_wolfe"}
OPEN = {"wall_height": 0.0, "gravity": 0.0, "restitution": 1.0}  # no wall, no gravity, no loss: the tasks of the paper


def doubles(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def crowded(n_balls, size=64, seed=0):
    """States near walls and each other, and strong forces: in a step of 0.1 s most balls meet something."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(size, 4 * n_balls, generator=generator, dtype=torch.float64)
    states[:, 0::4] *= 0.2
    states[:, 1::4] = 0.3 * states[:, 1::4].abs()
    return states, torch.randn(size, 2, generator=generator, dtype=torch.float64)


def fly(system, states, forces=None, steps=None):
    """States after some steps; forces (T, B, 2), none by default."""
    for t in range(steps or system.horizon):
        states = system.step(states, states.new_zeros(len(states), 2) if forces is None else forces[t])
    return states


def episode_loss(system, start, forces):
    """The loss of an episode under forces (T, 2), ()."""
    states, total = start, 0.0
    for force in forces.unsqueeze(1):
        following = system.step(states, force)
        total, states = total + system.running_cost(states, force, following), following
    return (total + system.final_cost(states)).sum()


def descend(system, start, forces):
    """Forces and loss where LBFGS ends that follows the gradient of the physics."""
    forces = forces.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([forces], **LBFGS)

    def closure():
        optimizer.zero_grad()
        loss = episode_loss(system, start, forces)
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        return forces.detach(), float(episode_loss(system, start, forces))


# Motion


@pytest.mark.parametrize("n_balls", BALLS)
def test_energy_is_kept_at_a_restitution_of_one(n_balls):
    system = BouncingBall(n_balls=n_balls, restitution=1.0, gravity=9.8)

    def energy(states):
        balls = states.unflatten(-1, (n_balls, 4))
        return (9.8 * balls[..., 1] + 0.5 * balls[..., 2:].square().sum(-1)).sum(-1)

    start, _ = crowded(n_balls)
    torch.testing.assert_close(energy(fly(system, start, steps=20)), energy(start), rtol=1e-12, atol=0.0)


def test_energy_is_lost_by_impacts_alone():
    system, (start, _) = BouncingBall(restitution=0.7, wall_height=0.0), crowded(1)
    start[:, 3] = -start[:, 3].abs()
    energy = 9.8 * start[:, 1] + 0.5 * start[:, 3] ** 2
    for steps, states in ((t, fly(system, start, steps=t)) for t in range(1, 20)):
        left = (9.8 * states[:, 1] + 0.5 * states[:, 3] ** 2) / energy
        bounces = (left.log() / math.log(0.7**2)).masked_fill(left == 0.0, 0.0)
        torch.testing.assert_close(bounces, bounces.round(), rtol=0.0, atol=1e-8, msg=f"after {steps} steps")


@pytest.mark.parametrize("restitution", [1.0, 0.6])
def test_momentum_is_kept_and_the_balls_part_at_the_restitution_times_the_speed_of_approach(restitution):
    system = BouncingBall(n_balls=2, wall_height=0.0, gravity=0.0, restitution=restitution)
    states, _ = crowded(2, size=256)
    states[:, 1::4] += 5.0  # far from the floor
    end = system.step(states, states.new_zeros(256, 2))
    changed = (end[:, 2:4] - states[:, 2:4]).norm(dim=1) > 1e-12
    assert 10 < changed.sum() < 250
    torch.testing.assert_close(end[:, 2:4] + end[:, 6:8], states[:, 2:4] + states[:, 6:8], rtol=1e-12, atol=1e-12)
    impulse = (end[:, 6:8] - states[:, 6:8])[changed]
    before, after = ((one[:, 6:8] - one[:, 2:4])[changed] for one in (states, end))
    normal = impulse / impulse.norm(dim=1, keepdim=True)
    torch.testing.assert_close((after * normal).sum(1), -restitution * (before * normal).sum(1), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("restitution", [1.0, 0.8, 0.3])
def test_one_long_step_is_many_short_ones(restitution):
    """Every bounce of a step is in closed form, so that the length of steps does not matter."""
    options = {"restitution": restitution, "wall_height": 0.0}
    start = doubles([-1.0, 0.5, 0.3, -1.0], [0.2, 0.0, 0.0, 0.0], [0.2, 0.0, 0.0, 2.0], [-0.4, 0.1, 0.5, 0.0])
    long = BouncingBall(dt=2.9, horizon=1, **options)
    short = BouncingBall(dt=0.05, horizon=58, **options)
    torch.testing.assert_close(fly(long, start), fly(short, start), rtol=0.0, atol=1e-4 if restitution == 1.0 else 1e-8)


def test_a_ball_whose_bounces_are_over_lies_on_the_floor_and_rolls_on():
    system = BouncingBall(restitution=0.5, wall_height=0.0, dt=0.1)
    states = doubles([-1.0, 0.0, 0.2, 0.4], [-1.0, 0.0, 0.2, 0.0])
    over = 2 * 0.4 / 9.8 / (1 - 0.5)  # s: the sum of all flights
    end = fly(system, states, steps=math.ceil(over / system.dt))
    assert (end[:, [1, 3]] == 0.0).all()
    torch.testing.assert_close(end[:, 0], -1.0 + 0.2 * 0.2 * torch.ones(2, dtype=torch.float64))
    up = system.step(end, doubles([0.0, 20.0], [0.0, 20.0]))
    assert (up[:, 1] > 0.0).all()


def test_the_wall_is_met_below_its_edge_alone():
    system = BouncingBall(gravity=0.0, restitution=0.8)
    states = doubles([-0.1, 0.9, 1.0, 0.5], [-0.1, 0.9, 1.0, 1.5], [0.1, 0.9, -1.0, 0.0], [0.1, 0.9, 1.0, 0.0])
    end = fly(system, states, steps=8)  # 0.2 s
    torch.testing.assert_close(end[:, 0], doubles(-0.08, 0.1, 0.08, 0.3))
    torch.testing.assert_close(end[:, 2], doubles(-0.8, 1.0, 0.8, 1.0))


@pytest.mark.parametrize("n_balls", BALLS)
def test_side_does_not_matter(n_balls):
    system, (states, forces) = BouncingBall(n_balls=n_balls, gravity=3.0, dt=0.1), crowded(n_balls)
    mirror = doubles(-1.0, 1.0, -1.0, 1.0).repeat(n_balls)
    there = system.step(mirror * states, mirror[:2] * forces)
    torch.testing.assert_close(there, mirror * system.step(states, forces), rtol=0.0, atol=1e-12)


# The gradient and the optimum are known


@pytest.mark.parametrize("restitution", [1.0, 0.5])
def test_height_after_a_bounce_has_the_gradient_of_the_closed_form(restitution):
    """Without gravity the way on is the way through the floor, times -e (task 1 of the paper)."""
    system = BouncingBall(**OPEN | {"restitution": restitution}, horizon=40)
    start = doubles([-0.5, 0.4, 0.0, -1.0]).requires_grad_()
    forces = torch.full((40, 1, 2), 0.1, dtype=torch.float64).requires_grad_()
    end = fly(system, start, forces)
    by_start, by_force = torch.autograd.grad(end[0, 1], [start, forces])

    duration = system.dt * 40
    lever = system.dt * (duration - system.dt * torch.arange(40, dtype=torch.float64))  # of each force on the height
    speeds = [start[0, 3]]
    states = start
    for force in forces[:-1]:
        states = system.step(states, force)
        speeds.append(states[0, 3])
    before = torch.stack(speeds) < 0.0
    sign = torch.where(before, -restitution, 1.0)
    torch.testing.assert_close(by_start[0], -restitution * doubles(0.0, 1.0, 0.0, duration), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(by_force[:, 0, 1], sign * lever, rtol=1e-12, atol=1e-12)
    assert 5 < before.sum() < 35


@pytest.mark.parametrize("steps", [1, 3, 20])
def test_derivatives_of_bounces_are_products_of_saltation_matrices(steps):
    g, e, height, speed, duration = 9.8, 0.7, 0.3, 0.5, 0.9
    expected, left, v, y = np.eye(2), duration, speed, height
    while True:
        arrival = -math.sqrt(v * v + 2 * g * y)
        flight = (v - arrival) / g
        if flight > left:
            break
        saltation = np.array([[-e, 0.0], [-(1 + e) * g / arrival, -e]])
        expected = saltation @ np.array([[1.0, flight], [0.0, 1.0]]) @ expected
        left, v, y = left - flight, -e * arrival, 0.0
    expected = np.array([[1.0, left], [0.0, 1.0]]) @ expected

    system = BouncingBall(restitution=e, wall_height=0.0, dt=duration / steps, horizon=steps)
    states, found = doubles([-1.0, height, 0.0, speed]), torch.eye(4, dtype=torch.float64)
    for _ in range(steps):
        A, _ = system.linearize(states, torch.zeros(1, 2, dtype=torch.float64))
        found, states = A[0] @ found, system.step(states, torch.zeros(1, 2, dtype=torch.float64))
    np.testing.assert_allclose(found[1::2, 1::2], expected, rtol=1e-9)


def test_the_gradient_leads_to_the_optimal_force_with_a_bounce():
    """By mirroring, the height at the end is linear in the forces before and after the bounce: least squares."""
    steps, dt, weight, height = 20, 0.05, 0.05, 0.8
    system = BouncingBall(**OPEN, horizon=steps, dt=dt, target=(-0.5, height), control_weight=weight)
    start = doubles([-0.5, 0.4, 0.0, -1.0])
    forces, loss = descend(system, start, torch.zeros(steps, 2, dtype=torch.float64))
    assert not forces[:, 0].any()

    def least_squares(bounce):
        """The optimal forces if so many of them act before the bounce, with their loss."""
        lever = dt * (dt * steps - dt * np.arange(steps))  # of each force on the height at the end
        slopes = np.where(np.arange(steps) < bounce, -lever, lever)
        rest = (dt * steps - 0.4) - height  # the height at the end without force, less that of the target
        optimum = -rest * slopes / (slopes @ slopes + weight / steps)
        return optimum, 0.5 * (rest + slopes @ optimum) ** 2 + 0.5 * weight / steps * optimum @ optimum

    fits = [k for k in range(1, steps) if np.abs(least_squares(k)[0] - forces[:, 1].numpy()).max() < 1e-6]
    assert len(fits) == 1
    down = [float(fly(system, start, forces.unsqueeze(1), k)[0, 3]) < 0.0 for k in range(1, steps)]
    assert 1 + sum(down) == fits[0], "as many act before the bounce"
    assert loss == pytest.approx(least_squares(fits[0])[1], rel=1e-9)


class TwoBalls:
    """Task 3 of the paper: a ball at rest is to hit another one that should be at the target after a second.

    With s the time and n the direction of the impact, the forces before must bring the first ball 2 r short of the
    second with the velocity V along n: as they are linear in the forces, the least sum of their squares is known, and
    the loss is quadratic in V. Two numbers are left. As forces are impulses, the optimum is one of each number of
    impulses before the impact; here of seven.
    """

    horizon, ball, target, impulses = 16, np.array([-1.0, 4.0]), np.array([0.0, 5.0]), 7

    def __init__(self):
        options = OPEN | {"radius": 0.2, "target": tuple(self.target), "control_weight": 0.01}
        self.system = BouncingBall(n_balls=2, horizon=self.horizon, dt=1.0 / self.horizon, **options)
        self.start = doubles([-1.0, 3.0, 0.0, 0.0, *self.ball, 0.0, 0.0])

    def solved(self, impact):
        """The least loss with the impact at a time and an angle, and its forces, (T, 2)."""
        (s, angle), dt, weight = impact, self.system.dt, self.system.control_weight
        normal, tangent = np.array([math.sin(angle), math.cos(angle)]), np.array([math.cos(angle), -math.sin(angle)])
        lever = s - dt * np.arange(self.impulses)  # how long each impulse acts before the impact
        way = self.ball - 2 * self.system.radius * normal - [-1.0, 3.0]
        gram = np.linalg.inv(dt * np.array([[lever @ lever, lever.sum()], [lever.sum(), self.impulses]]))
        short, left = self.ball - self.target, 1.0 - s
        V = -(short @ normal * left + weight * gram[0, 1] * (way @ normal)) / (left**2 + weight * gram[1, 1])
        along = gram @ [way @ normal, V]
        across = way @ tangent / (dt * lever @ lever)
        forces = np.zeros((self.horizon, 2))
        forces[: self.impulses] = np.outer(lever * along[0] + along[1], normal) + np.outer(lever * across, tangent)
        end = short + left * V * normal
        return 0.5 * end @ end + 0.5 * weight * dt * (forces**2).sum(), forces

    def optimum(self):
        bounds = [((self.impulses - 1) * self.system.dt, self.impulses * self.system.dt), (0.3, 1.0)]
        options = {"ftol": 1e-16, "gtol": 1e-10}
        impact = scipy.optimize.minimize(lambda x: self.solved(x)[0], [0.4, 0.7], bounds=bounds, options=options).x
        assert bounds[0][0] + 0.01 < impact[0] < bounds[0][1] - 0.01, "within a step"
        loss, forces = self.solved(impact)
        return loss, torch.from_numpy(forces)


def test_the_gradient_leads_to_the_optimal_force_of_two_balls():
    task = TwoBalls()
    best, optimum = task.optimum()
    forces, loss = descend(task.system, task.start, 0.97 * optimum)
    assert loss == pytest.approx(best, rel=1e-9)
    torch.testing.assert_close(forces, optimum, rtol=0.0, atol=1e-4)


# The wall's edge


def at_the_edge(contact_gradient, rises, **options):
    """Losses of balls thrown at the wall at some rises, and their slopes by these; no gravity."""
    system = BouncingBall(contact_gradient=contact_gradient, gravity=0.0, **options)
    rises = rises.clone().requires_grad_()
    rest = [torch.full_like(rises, value) for value in (-0.6, 0.5, 1.0)]
    losses = system.final_cost(fly(system, torch.stack([*rest, rises], dim=1)))
    return losses.detach(), torch.autograd.grad(losses.sum(), rises)[0]


def test_over_the_wall_or_not_is_a_jump_that_the_hard_gradient_does_not_see():
    edge = 0.5 / 0.6  # m/s: the rise that meets the wall at its edge
    rises = torch.linspace(edge - 0.2, edge + 0.2, 41, dtype=torch.float64)[::2]
    losses, slopes = at_the_edge("hard", rises)
    _, near = at_the_edge("hard", rises + 1e-6)
    below, above = losses[rises < edge], losses[rises > edge]
    assert (below - above.max() > 0.5).all()
    ahead, behind = (at_the_edge("hard", rises + shift)[0] for shift in (1e-6, -1e-6))
    away = (rises - edge).abs() > 1e-5
    torch.testing.assert_close(slopes[away], ((ahead - behind) / 2e-6)[away], rtol=1e-6, atol=1e-6)
    assert (near - slopes).abs().max() < 1e-4


@pytest.mark.parametrize("width", [0.02, 0.05])
def test_the_smooth_gradient_adds_up_to_the_jump(width):
    edge = 0.5 / 0.6
    rises = torch.linspace(edge - 0.8, edge + 0.8, 1600, dtype=torch.float64)
    losses, slopes = at_the_edge("smooth", rises, contact_width=width)
    gained = torch.trapezoid(slopes, rises)
    assert float(gained) == pytest.approx(float(losses[-1] - losses[0]), rel=0.02)
    _, hard = at_the_edge("hard", rises)
    far = (rises - edge).abs() > 20 * width / 0.6
    torch.testing.assert_close(slopes[far], hard[far], rtol=0.0, atol=1e-6)


def test_contacts_from_a_distance_have_a_gradient_where_balls_miss_each_other():
    start = doubles([-1.2, 1.3, 1.0, 0.3, -0.5, 1.3, 0.0, 0.0])  # above the other one by more than two radii
    slopes = {}
    for contact_gradient in CONTACT_GRADIENTS:
        system = BouncingBall(n_balls=2, contact_gradient=contact_gradient, contact_width=0.1)
        forces = torch.zeros(60, 1, 2, dtype=torch.float64, requires_grad=True)
        (slopes[contact_gradient],) = torch.autograd.grad(system.final_cost(fly(system, start, forces)).sum(), forces)
    assert not slopes["hard"].any()
    assert not slopes["smooth"].any()
    assert slopes["from_distance"][:20, 0, 1].sum() > 0.0, "descent brings the first ball down to the second"


# Contact gradients


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("n_balls", BALLS)
def test_the_motion_is_the_same_bit_for_bit_whatever_the_contact_gradient(n_balls, grad):
    states, forces = crowded(n_balls)
    ends = []
    for contact_gradient in CONTACT_GRADIENTS:
        with torch.set_grad_enabled(grad):
            system = BouncingBall(n_balls=n_balls, contact_gradient=contact_gradient, dt=0.1)
            ends.append(system.step(states.clone().requires_grad_(grad), forces).detach().numpy().tobytes())
    assert ends[0] == ends[1] == ends[2]


@pytest.mark.parametrize("contact_gradient", CONTACT_GRADIENTS)
@pytest.mark.parametrize("n_balls", BALLS)
def test_linearize_is_the_derivative_by_functorch(n_balls, contact_gradient):
    system = BouncingBall(n_balls=n_balls, contact_gradient=contact_gradient, dt=0.1)
    states, forces = crowded(n_balls)

    def step(state, force):
        return system.step(state.unsqueeze(0), force.unsqueeze(0)).squeeze(0)

    with torch.no_grad():
        expected = torch.func.vmap(torch.func.jacrev(step, argnums=(0, 1)))(states, forces)
        found = system.linearize(states, forces)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_without_a_wall_no_contact_gradient_sees_one():
    states, forces = crowded(1)
    slopes = [
        BouncingBall(contact_gradient=one, wall_height=0.0, dt=0.1).linearize(states, forces)[0]
        for one in CONTACT_GRADIENTS
    ]
    assert torch.equal(slopes[0], slopes[1])
    assert torch.equal(slopes[0], slopes[2])


@pytest.mark.parametrize("n_balls", BALLS)
def test_the_hard_derivative_is_that_of_the_motion(n_balls):
    system, (states, forces) = BouncingBall(n_balls=n_balls, gravity=9.8, dt=0.1), crowded(n_balls)
    by_state, by_force = system.linearize(states, forces)
    inputs, width = torch.cat([states, forces], dim=1), 1e-7
    units = width * torch.eye(inputs.shape[1], dtype=inputs.dtype)
    size = 4 * n_balls
    ends = [[system.step(*(inputs + sign * unit).split([size, 2], dim=1)) for unit in units] for sign in (1.0, -1.0)]
    expected = (torch.stack(ends[0], dim=-1) - torch.stack(ends[1], dim=-1)) / (2 * width)
    torch.testing.assert_close(torch.cat([by_state, by_force], dim=-1), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("contact_gradient", CONTACT_GRADIENTS)
@pytest.mark.parametrize("n_balls", BALLS)
def test_both_engines_give_the_same_directions(n_balls, contact_gradient):
    system = BouncingBall(n_balls=n_balls, contact_gradient=contact_gradient, horizon=12, dt=0.1)
    states = system.initial_states(4, torch.Generator().manual_seed(0), torch.float64)
    controller = MLP((4 * n_balls,), (2,), (8,), generator=torch.Generator().manual_seed(0)).double()
    found, expected = (
        policy_gradient(system, controller, states, "R", one).directions for one in ("adjoint", "autograd")
    )
    for name, direction in expected.items():
        torch.testing.assert_close(found[name], direction, rtol=0.0, atol=1e-10 * float(direction.norm()))


# What a system promises


@pytest.mark.parametrize("contact_gradient", CONTACT_GRADIENTS)
@pytest.mark.parametrize("n_balls", BALLS)
def test_it_keeps_the_contract_of_a_system(n_balls, contact_gradient):
    check_system(BouncingBall(n_balls=n_balls, contact_gradient=contact_gradient), dtype=torch.float64)


@pytest.mark.parametrize("n_balls", BALLS)
def test_slopes_are_finite_where_nothing_moves_and_all_touches(n_balls):
    for contact_gradient in CONTACT_GRADIENTS:
        for restitution in (1.0, 0.5):
            system = BouncingBall(
                n_balls=n_balls, contact_gradient=contact_gradient, restitution=restitution, gravity=9.8
            )
            states = torch.zeros(3, 4 * n_balls)
            for slopes in system.linearize(states, torch.zeros(3, 2)):
                assert slopes.isfinite().all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_balls": 3}, "n_balls must be 1 or 2; got 3"),
        ({"restitution": 1.5}, "restitution must be above 0 and at most 1; got 1.5"),
        ({"restitution": 0.0}, "restitution must"),
        ({"contact_gradient": "soft"}, "contact_gradient must be one of"),
        ({"contact_width": 0.0}, "contact_width must"),
    ],
)
def test_a_wrong_option_is_named(options, words):
    with pytest.raises(ValueError, match=words):
        BouncingBall(**options)


@pytest.mark.parametrize("n_balls", BALLS)
def test_the_picture_shows_every_ball(n_balls):
    system = BouncingBall(n_balls=n_balls)
    state = system.initial_states(1, torch.Generator().manual_seed(0))[0]
    moved = state.clone()
    moved[-4] += 0.5
    assert (picture(system, state) != picture(system, moved)).any()


@pytest.mark.parametrize("side", [-1.0, 1.0])
@pytest.mark.parametrize("contact_gradient", ["hard", "smooth", "from_distance"])
def test_a_ball_whose_step_ends_on_the_wall_stays_on_its_side(side, contact_gradient):
    system = BouncingBall(contact_gradient=contact_gradient)
    state = torch.tensor([[0.025 * side, 0.5, -side, 0.0]], dtype=torch.float64)
    for _ in range(3):
        state = system.step(state, state.new_zeros(1, 2))
    assert state[0, 0] * side > 0.0
    assert state[0, 2] * side > 0.0
