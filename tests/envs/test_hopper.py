"""The hopper: Lagrange's equations, flight, contact, rest, friction, slopes, early ends, pictures, options."""

import itertools
import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from cliff import losses_one_by_one
from scipy.integrate import solve_ivp

from bptt_envs import check_system
from bptt_envs.canvas import CYCLE
from bptt_envs.rendering import picture
from bptt_envs.systems import Hopper
from bptt_envs.systems.hopper import HIP_GAINS, HIP_REACH, HIP_TORQUE, LEG_FORCE, LEG_GAINS, LEG_REACH, SLIP_SPEED
from bptt_envs.task import as_task
from bptt_trainers import TrainConfig, Trainer, policy_gradient

FORMS = ("planar", "vertical")
ACTUATIONS = ("torque", "position")
KINDS = list(itertools.product(FORMS, ACTUATIONS))


def random_batch(system, size=8, seed=0):
    """States in flight and on the ground, and actions, in float64."""
    generator = torch.Generator().manual_seed(seed)
    n = system.state_size // 2
    states = torch.randn(size, 2 * n, generator=generator, dtype=torch.float64)
    states[:, :n] *= 0.2
    states[:, n - 1] *= 0.1  # the foot near the ground, above and below
    states[:, 1 if n == 5 else 0] += 1.0
    return states, torch.randn(size, *system.action_shape, generator=generator, dtype=torch.float64)


def simulate(system, states, actions, steps):
    for _ in range(steps):
        states = system.step(states, actions)
    return states


def in_flight(system):
    """States that stay in the air for a while, the leg swinging and its spring stretched."""
    states, actions = random_batch(system)
    states[:, [1, 4] if system.planar else [0, 1]] += 5.0
    return states, actions


def masses(system):
    return torch.tensor([system.body_mass, system.foot_mass], dtype=torch.float64)


def places(system, states):
    """Of hip and foot, and their velocities, (B, 2, 2) each; x is 0 where there is none."""
    if system.planar:
        return states[:, [0, 1, 3, 4]].view(-1, 2, 2), states[:, [5, 6, 8, 9]].view(-1, 2, 2)
    still = torch.zeros_like(states[:, :2])
    return torch.stack([still, states[:, :2]], -1), torch.stack([still, states[:, 2:]], -1)


def momentum(system, states):
    """Along x and z, (B, 2)."""
    return (masses(system)[:, None] * places(system, states)[1]).sum(1)


def spin(system, states):
    """The angular momentum about the centre of mass, (B,)."""
    weights = masses(system)[:, None]
    (p, v), total = places(system, states), weights.sum()
    p, v = (one - (weights * one).sum(1, keepdim=True) / total for one in (p, v))
    return (weights[:, 0] * (p[..., 0] * v[..., 1] - p[..., 1] * v[..., 0])).sum(1) + system.inertia * states[:, 7]


def energy(system, states):
    """Kinetic, of height and of the leg's spring, (B,)."""
    p, v = places(system, states)
    stretch = (p[:, 0] - p[:, 1]).norm(dim=-1) - system.leg_length
    moving = (masses(system) * (0.5 * v.square().sum(-1) + system.gravity * p[..., 1])).sum(1)
    turning = 0.5 * system.inertia * states[:, 7].square() if system.planar else 0.0
    return moving + turning + 0.5 * system.leg_stiffness * stretch.square()


# Equations


def lagranges_accelerations(system, state, action):
    """Accelerations (x'', z'', pitch'', foot x'', foot z'') in NumPy, from x, z, pitch, leg length and leg angle.

    M(q) q'' = Q - m J^T J' q' - gravity + J^T (friction, push), with J the Jacobian of the foot's place.
    """
    x, z, pitch, foot_x, foot_z, vx, vz, turning, foot_vx, foot_vz = state
    r, theta = math.hypot(x - foot_x, z - foot_z), math.atan2(foot_x - x, z - foot_z)
    s, c = math.sin(theta), math.cos(theta)
    along, across = np.array([s, -c]), np.array([c, s])  # of the foot, from the hip
    velocity = np.array([foot_vx - vx, foot_vz - vz])
    r_rate, theta_rate = velocity @ along, velocity @ across / r

    leg = system.leg_stiffness * (system.leg_length - r) - system.leg_damping * r_rate
    if system.actuation == "torque":
        leg, hip = leg + LEG_FORCE * action[0], HIP_TORQUE * action[1]
    else:
        leg += LEG_GAINS[0] * (system.leg_length + LEG_REACH * action[0] - r) - LEG_GAINS[1] * r_rate
        hip = HIP_GAINS[0] * (HIP_REACH * action[1] - (theta - pitch)) - HIP_GAINS[1] * (theta_rate - turning)
    depth = max(0.0, -foot_z)
    push = system.stiffness * depth * max(0.0, 1.0 - system.contact_damping * foot_vz)
    rub = -system.friction * push * foot_vx / math.hypot(foot_vx, SLIP_SPEED)

    J = np.zeros((2, 5))
    J[0, 0] = J[1, 1] = 1.0
    J[:, 3], J[:, 4] = along, r * across
    J_rate_q_rate = 2.0 * r_rate * theta_rate * across - r * theta_rate**2 * along
    M = np.diag([system.body_mass, system.body_mass, system.inertia, 0.0, 0.0]) + system.foot_mass * J.T @ J
    weight = np.array([0.0, -system.gravity])
    Q = np.array([0.0, -system.body_mass * system.gravity, -hip, leg, hip])
    Q += J.T @ (system.foot_mass * (weight - J_rate_q_rate) + np.array([rub, push]))
    q_acc = np.linalg.solve(M, Q)
    return np.concatenate([q_acc[:3], J @ q_acc + J_rate_q_rate])


@pytest.mark.parametrize("actuation", ACTUATIONS)
@pytest.mark.parametrize("stiffness", [1e3, 1e5])
def test_accelerations_in_the_plane_are_lagranges(actuation, stiffness):
    system = Hopper(actuation=actuation, stiffness=stiffness, friction=0.7, inertia=0.6, dt=1e-8, substeps=1)
    states, actions = random_batch(system)
    assert 0 < (states[:, 4] < 0).sum() < 8
    found = (system.step(states, actions) - states)[:, 5:] / system.dt
    expected = np.array(
        [lagranges_accelerations(system, *one) for one in zip(states.tolist(), actions.tolist(), strict=True)]
    )
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("actuation", ACTUATIONS)
def test_the_upright_form_is_the_plane_on_a_leg_that_stands(actuation):
    upright, planar = Hopper(form="vertical", actuation=actuation), Hopper(actuation=actuation)
    states, actions = random_batch(upright)
    still = torch.zeros_like(states)
    wide = torch.stack([still, states], -1).view(-1, 2, 2, 2)  # by position or velocity, hip or foot, coordinate
    wide = torch.cat([wide[:, :, 0], still.view(-1, 2, 2)[..., :1], wide[:, :, 1]], dim=-1).flatten(1)
    found = planar.step(wide, torch.cat([actions, torch.zeros_like(actions)], 1))
    torch.testing.assert_close(found[:, [1, 4, 6, 9]], upright.step(states, actions), rtol=1e-12, atol=1e-12)
    assert not found[:, [0, 2, 3, 5, 7, 8]].any()


def test_steps_converge_in_order_one_to_scipys_solution_over_a_landing():
    options = {"actuation": "position", "stiffness": 5e3, "friction": 0.2, "dt": 0.16}
    start = torch.tensor([[0.0, 1.03, 0.1, 0.05, 0.04, 0.5, -1.0, 0.0, 0.5, -1.0]], dtype=torch.float64)
    system, action = Hopper(**options, substeps=16), torch.tensor([[0.2, 0.1]], dtype=torch.float64)

    def rates(_, state):
        return np.concatenate([state[5:], lagranges_accelerations(system, state.tolist(), action[0].tolist())])

    solution = solve_ivp(rates, (0.0, 0.16), start[0].numpy(), rtol=1e-8, atol=1e-8, max_step=2e-3)
    assert solution.y[4].min() < -0.01, "it lands"
    expected = torch.from_numpy(solution.y[:, -1])
    found = [Hopper(**options, substeps=substeps).step(start, action)[0] for substeps in (128, 512, 2048)]
    errors = [float((one - expected).abs().max()) for one in found]
    assert errors[2] < 3e-3
    assert errors[0] > 2.0 * errors[1]
    assert 3.0 < errors[1] / errors[2] < 5.0, "a quarter of the time, a quarter of the error"


# Flight


@pytest.mark.parametrize(("form", "actuation"), KINDS)
def test_gravity_alone_changes_momentum_in_flight_whatever_the_motors_do(form, actuation):
    system = Hopper(form=form, actuation=actuation)
    states, actions = in_flight(system)
    end = simulate(system, states, actions, 5)
    fallen = torch.tensor([0.0, -float(masses(system).sum()) * system.gravity * 5 * system.dt], dtype=torch.float64)
    torch.testing.assert_close(momentum(system, end) - momentum(system, states), fallen.expand(8, 2))
    if system.planar:
        torch.testing.assert_close(spin(system, end), spin(system, states))


@pytest.mark.parametrize("form", FORMS)
def test_energy_is_kept_between_contacts_by_a_leg_without_losses(form):
    errors = []
    for substeps in (8, 16, 32):
        system = Hopper(form=form, actuation="torque", leg_damping=0.0, substeps=substeps)
        states, actions = in_flight(system)
        end = simulate(system, states, 0.0 * actions, 10)
        errors.append(float((energy(system, end) / energy(system, states) - 1.0).abs().mean()))
    assert errors[0] < 0.02
    assert errors[2] < 0.4 * errors[0]


def test_dampers_and_rubbing_take_energy():
    system = Hopper(actuation="torque", substeps=64)
    states, actions = random_batch(system)
    states[:, 4] = -0.01
    end = simulate(system, states, 0.0 * actions, 10)
    depth = [one[:, 4].clamp(max=0.0) for one in (states, end)]
    stored = [0.5 * system.stiffness * one.square() for one in depth]
    assert (energy(system, end) + stored[1] < energy(system, states) + stored[0]).all()


# Contact


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("stiffness", [2e3, 2e4, 2e5])
def test_at_contact_momentum_changes_by_the_push_and_within_the_cone_of_friction(form, stiffness):
    system = Hopper(form=form, stiffness=stiffness, friction=0.6, dt=1e-3, substeps=1)
    states, actions = random_batch(system, size=64)
    height, rate = (states[:, 4], states[:, 9]) if system.planar else (states[:, 1], states[:, 3])
    push = system.ground_push(height, rate)
    change = (momentum(system, system.step(states, actions)) - momentum(system, states)) / system.dt
    weight = float(masses(system).sum()) * system.gravity
    torch.testing.assert_close(change[:, 1], push - weight)
    assert (change[:, 0].abs() <= 0.6 * push * (1 + 1e-9) + 1e-9).all()
    assert ((push > 0) == (height < 0)).logical_or(1.0 - system.contact_damping * rate <= 0).all()
    if system.planar:
        assert (change[push > 0, 0] != 0).all()


@pytest.mark.parametrize("stiffness", [2e3, 2e5])
def test_friction_is_coulombs_on_a_fast_foot(stiffness):
    loose = {"actuation": "torque", "leg_stiffness": 1e-6, "leg_damping": 0.0}
    system = Hopper(stiffness=stiffness, friction=0.4, dt=1e-5, substeps=1, **loose)
    state = torch.tensor([[0.0, 1.0, 0.0, 0.0, -0.01, 0.0, 0.0, 0.0, 5.0, 0.0]], dtype=torch.float64)
    after = system.step(state, torch.zeros(1, 2, dtype=torch.float64))
    assert float(5.0 - after[0, 8]) / 1e-5 == pytest.approx(0.4 * stiffness * 0.01 / system.foot_mass, rel=1e-3)


@pytest.mark.parametrize("stiffness", [2e3, 2e5])
def test_friction_stops_a_foot_and_never_turns_it_round(stiffness):
    loose = {"actuation": "torque", "leg_stiffness": 1e-6, "leg_damping": 0.0}
    system = Hopper(stiffness=stiffness, friction=5.0, dt=2.5e-3, substeps=1, **loose)
    states = torch.zeros(3, 10, dtype=torch.float64)
    states[:, 1], states[:, 4] = 1.0, -0.05
    states[:, 8] = torch.tensor([-2.0, 1e-3, 3.0], dtype=torch.float64)
    after = system.step(states, torch.zeros(3, 2, dtype=torch.float64))[:, 8] / states[:, 8]
    assert (after < 1.0).all()
    assert (after > -1e-12).all()


@pytest.mark.parametrize("form", FORMS)
def test_at_rest_the_ground_gives_by_weight_over_stiffness(form):
    system = Hopper(form=form, actuation="torque", stiffness=8e3)
    depth = (system.body_mass + system.foot_mass) * system.gravity / system.stiffness
    hip = system.leg_length - system.body_mass * system.gravity / system.leg_stiffness - depth
    positions = [0.3, hip, 0.2, 0.3, -depth] if system.planar else [hip, -depth]
    state = torch.tensor([[*positions, *[0.0] * len(positions)]], dtype=torch.float64)
    action = torch.zeros(1, *system.action_shape, dtype=torch.float64)
    torch.testing.assert_close(system.step(state, action), state, rtol=0.0, atol=1e-12)
    if not system.planar:  # in the plane it falls over
        system.leg_damping = 200.0
        dropped = system.initial_states(1, torch.Generator().manual_seed(0), torch.float64)
        torch.testing.assert_close(simulate(system, dropped, action, 100), state, rtol=0.0, atol=1e-3)


def test_the_ground_pushes_only_and_harder_while_the_foot_goes_in():
    system = Hopper(stiffness=1e4, contact_damping=0.5)
    rates = torch.tensor([-1.0, 0.0, 1.0, 3.0])
    assert system.ground_push(torch.full((4,), -0.01), rates).tolist() == pytest.approx([150.0, 100.0, 50.0, 0.0])
    assert system.ground_push(torch.full((4,), 0.01), rates).tolist() == [0.0] * 4


def test_how_high_a_foot_bounces_does_not_depend_on_the_stiffness():
    """As Hunt and Crossley's force makes it: so stiffness can be studied by itself."""
    speeds = []
    for stiffness in (2e3, 2e4, 2e5):
        alone = {
            "actuation": "torque",
            "leg_stiffness": 1e-6,
            "leg_damping": 0.0,
            "gravity": 0.0,
            "dt": 0.2,
            "substeps": 2000,
        }
        system = Hopper(form="vertical", stiffness=stiffness, **alone)
        state = torch.tensor([[2.0, 0.0, 0.0, -1.0]], dtype=torch.float64)
        speeds.append(float(system.step(state, torch.zeros(1, 1, dtype=torch.float64))[0, 3]))
    assert 0.6 < speeds[0] < 0.9
    assert speeds == pytest.approx([speeds[0]] * 3, rel=0.02)


# Slopes


@pytest.mark.parametrize(("form", "actuation"), KINDS)
@pytest.mark.parametrize("stiffness", [2e3, 2e4, 1e5])
def test_slopes_are_finite_differences_at_any_stiffness(form, actuation, stiffness):
    system = Hopper(form=form, actuation=actuation, stiffness=stiffness, substeps=4, dt=0.01)
    states, actions = (one.requires_grad_() for one in random_batch(system, size=3, seed=1))
    assert torch.autograd.gradcheck(system.step, (states, actions), rtol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_it_keeps_the_contract_by_itself_and_as_a_task(form):
    for dtype in (torch.float32, torch.float64):
        check_system(Hopper(form=form, substeps=2), dtype=dtype)
        check_system(as_task(Hopper(form=form, substeps=2)), dtype=dtype)


@pytest.mark.parametrize("rule", ["R", "M", "C"])
def test_the_fast_engine_gives_the_directions_of_the_plain_one_past_falls(rule):
    system, controller, states = falling()
    controller = controller.double()
    found, expected = (
        policy_gradient(system, controller, states.double(), rule, engine).directions
        for engine in ("adjoint", "autograd")
    )
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-10)


# Early ends


def falling():
    """A hopper, a controller and start states some of which fall within the horizon."""
    system = Hopper(horizon=8, dt=0.05, substeps=4, stiffness=5e3)
    controller = torch.nn.Linear(9, 2)
    with torch.no_grad():
        controller.weight.copy_(0.1 * torch.randn(2, 9, generator=torch.Generator().manual_seed(0)))
        controller.bias.zero_()
    states = system.initial_states(6, torch.Generator().manual_seed(1))
    states[:, 7] = torch.linspace(-8.0, 0.0, 6)  # it pitches
    return system, controller, states


def test_a_fall_ends_the_episode_alike_singly_in_a_batch_and_in_training():
    system, controller, states = falling()
    with torch.no_grad():
        expected, steps = losses_one_by_one(system, controller, states)
    assert min(steps) < system.horizon
    assert max(steps) == system.horizon

    options = {"horizon": 8, "dt": 0.05, "substeps": 4, "stiffness": 5e3}
    env, found = gym.make("DiffHopper-v0", **options), []
    for state, count in zip(states, steps, strict=True):
        observation, _ = env.reset(options={"state": state.numpy()})
        for step in range(count):
            with torch.no_grad():
                action = controller(torch.from_numpy(observation))
            observation, _, terminated, truncated, info = env.unwrapped.step(action.numpy())
            assert (terminated, truncated) == (step == count - 1, False)
        found.append(info["loss"])
    assert found == pytest.approx(expected.tolist(), rel=1e-5)

    envs = gym.make_vec("DiffHopper-v0", num_envs=6, **options)
    observations, _ = envs.reset(options={"state": states.numpy()})
    ended, returns = np.zeros(6, dtype=bool), np.zeros(6)
    for step in range(system.horizon):
        with torch.no_grad():
            actions = controller(torch.from_numpy(observations)).numpy()
        observations, rewards, terminated, _, _ = envs.step(actions)
        returns += np.where(ended, 0.0, rewards)
        assert [bool(one) for one in terminated[~ended]] == [steps[i] == step + 1 for i in np.flatnonzero(~ended)]
        ended |= terminated
    assert (-returns).tolist() == pytest.approx(expected.tolist(), rel=1e-5)

    config = TrainConfig(epochs=1, batch_size=4, train_states=8, test_states=4, record=())
    trainer = Trainer(system, controller, config)
    assert trainer.evaluate(states) == pytest.approx(float(expected.mean()), rel=1e-5)


def test_a_step_that_a_fall_takes_away_costs_the_most_that_a_step_can():
    system, controller, states = falling()
    system.control_weight = 0.0
    with torch.no_grad():
        losses, steps = losses_one_by_one(system, controller, states)
    expected = []
    for state, count in zip(states.split(1), steps, strict=True):
        costs = torch.ones(system.horizon)
        for step in range(count):
            with torch.no_grad():
                state = system.step(state, controller(system.observe(state)))
            costs[step] = system.state_cost(state)
        assert (costs <= 1.0).all()
        expected.append(float(costs.mean()))
    assert losses.tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_with_the_cost_of_the_last_state_a_fall_costs_more_than_any_state(form):
    system = Hopper(form=form, objective="final")
    states, _ = random_batch(system, size=64)
    states[:32, 1 if system.planar else 0] -= 0.8
    fallen = system.terminated(states)
    assert fallen[:16].any()
    assert not fallen.all()
    assert system.final_cost(states)[fallen].min() >= 1.0 > system.final_cost(states)[~fallen].max()


def test_the_planar_hopper_falls_by_its_leg_or_its_pitch():
    states = torch.zeros(4, 10)
    states[:, 1] = torch.tensor([1.0, 0.49, 1.0, 1.0])
    states[:, 2] = torch.tensor([0.9, 0.0, 1.1, -1.1])
    assert Hopper().terminated(states).tolist() == [False, True, True, True]
    assert Hopper(form="vertical").terminated(states[:, [1, 4, 6, 9]]).tolist() == [False, True, False, False]


# Start, observation, options, picture


@pytest.mark.parametrize("form", FORMS)
def test_it_starts_at_rest_above_the_ground_on_a_leg_of_its_length(form):
    system = Hopper(form=form, leg_length=0.8)
    states = system.initial_states(512, torch.Generator().manual_seed(0))
    p, v = places(system, states)
    assert not v.any()
    torch.testing.assert_close((p[:, 0] - p[:, 1]).norm(dim=-1), torch.full((512,), 0.8, dtype=states.dtype))
    assert 0.1 <= p[:, 1, 1].min() < 0.11
    assert 0.29 < p[:, 1, 1].max() <= 0.3


def test_a_controller_in_the_plane_does_not_see_where_it_is():
    system = Hopper()
    states, _ = random_batch(system)
    moved = states.clone()
    moved[:, [0, 3]] += 7.0
    torch.testing.assert_close(system.observe(moved), system.observe(states))
    assert system.observe(states).shape == (8, *system.observation_shape)


@pytest.mark.parametrize("form", FORMS)
def test_stiffness_may_differ_from_sample_to_sample(form):
    system = Hopper(form=form)
    states, actions = random_batch(system, size=3)
    values = torch.tensor([5e3, 2e4, 8e4], dtype=torch.float64)
    together = system.with_parameters(stiffness=values).step(states, actions)
    for i, value in enumerate(values.tolist()):
        alone = Hopper(form=form, stiffness=value).step(states[i : i + 1], actions[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"form": "flat"}, "form"),
        ({"actuation": "muscle"}, "actuation"),
        ({"speed": 0.0}, "speed must not be 0"),
        ({"stiffness": 0.0}, "stiffness"),
        ({"stiffness": 1e6}, "substeps"),
        ({"substeps": 1}, r"substeps must be more than 1\.9 for the foot on the ground"),
        ({"foot_mass": 0.1}, r"substeps must be more than 9\.5 for the foot on the ground"),
        ({"leg_damping": 1000.0}, "for the foot on the ground"),
        ({"inertia": 0.01}, r"substeps must be more than \S+ for the hip"),
        ({"leg_length": 0.1}, "for the hip"),
        ({"substeps": 10**9}, "substeps must be at most 10000"),
        ({"friction": -0.1}, "friction"),
    ],
)
def test_an_option_that_is_out_of_range_is_refused_in_words(options, words):
    with pytest.raises(ValueError, match=words):
        gym.make("DiffHopper-v0", **options)


@pytest.mark.parametrize("form", FORMS)
def test_the_picture_shows_trunk_and_foot(form):
    pytest.importorskip("pygame")
    system = Hopper(form=form)
    state = system.initial_states(1, torch.Generator().manual_seed(0))[0]
    image = picture(system, state, torch.ones(system.action_shape))
    for color in CYCLE[:2]:
        assert (np.abs(image.astype(int) - color).sum(-1) < 12).sum() > 30
