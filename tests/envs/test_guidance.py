"""Guidance by repulsion: published numbers, the equations one by one, symmetries, start states, pictures."""

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from bptt_envs import System
from bptt_envs.canvas import ACTION, CYCLE
from bptt_envs.charts import Curves, NamedCurves, Paths
from bptt_envs.rendering import picture
from bptt_envs.systems import Guidance, guidance

REFERENCE = Path(__file__).parent.parent / "reference" / "guidance_2_4.npz"
SIZES = [(2, 4), (1, 1), (3, 2), (1, 3), (4, 1)]
FAR = 1e9  # where nothing is felt


def random_batch(system, size=6, seed=0):
    """States of any place and velocity, and coefficients, in float64."""
    generator = torch.Generator().manual_seed(seed)
    states = 2.0 * torch.randn(size, *system.state_shape, generator=generator, dtype=torch.float64)
    return states, 3.0 * torch.randn(size, *system.action_shape, generator=generator, dtype=torch.float64)


def no_control(system, size):
    return torch.zeros(size, *system.action_shape, dtype=torch.float64)


def accelerations(system, states, actions):
    """The accelerations that a step applies, (B, agents, 2)."""
    return (system.step(states, actions) - states)[:, :, 1] / system.dt


def simulate(system, states, actions):
    """The states of an episode with constant actions, (T + 1, B, agents, 2, 2)."""
    trajectory = [states]
    for _ in range(system.horizon):
        trajectory.append(system.step(trajectory[-1], actions))
    return torch.stack(trajectory)


# Published numbers


def test_step_gives_the_numbers_of_the_published_scripts():
    numbers = np.load(REFERENCE)
    system = Guidance(dt=float(numbers["dt"]))
    got = system.step(torch.from_numpy(numbers["states"]), torch.from_numpy(numbers["controls"]))
    np.testing.assert_allclose(got, numbers["next_states"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("objective", ["final", "continuous"])
def test_losses_are_those_of_the_published_scripts(objective):
    numbers = {key: torch.from_numpy(np.asarray(value)) for key, value in np.load(REFERENCE).items()}
    system = Guidance(objective=objective, control_weight=float(numbers["control_cost"]))
    assert system.horizon == int(numbers["horizon"])
    state, loss = numbers["initial_states"], 0.0
    for _ in range(system.horizon):
        hidden = torch.tanh(system.observe(state) @ numbers["W0"].T + numbers["b0"])
        hidden = torch.tanh(hidden @ numbers["W1"].T + numbers["b1"])
        action = (hidden @ numbers["W2"].T + numbers["b2"]).view(-1, 2, 2)
        next_state = system.step(state, action)
        loss = loss + system.running_cost(state, action, next_state)
        state = next_state
    loss = loss + system.final_cost(state)
    assert float(loss.mean()) == pytest.approx(float(numbers[f"loss_{objective}"]), rel=1e-5)


# The equations, one agent and one pair at a time


def defined_step(system, state, action):
    """One step of one sample by the formulas of the paper, in loops."""
    state, action = state.numpy(), action.numpy()
    drivers, evaders = range(system.n_drivers), range(system.n_drivers, system.n_agents)
    p, v = state[:, 0], state[:, 1]
    flock = 1.0 if system.flocking == "as_published" else -1.0

    def d(r):
        return system.repulsion_floor + np.linalg.norm(r)

    acc = np.zeros_like(p)
    for e in evaders:
        acc[e] = -4.0 * v[e]
        for j in drivers:
            acc[e] += -15.0 * d(p[j] - p[e]) ** -2 * (p[j] - p[e])
        for k in evaders:
            if k != e:
                length = d(p[k] - p[e])
                acc[e] += flock * 0.2 * (0.5 / length - 1.0) / length * (p[k] - p[e])
    for j in drivers:
        q = p[j] - sum(p[e] for e in evaders)
        acc[j] = action[j, 0] * q + action[j, 1] * np.array([-q[1], q[0]]) - v[j]
        for k in drivers:
            if k != j:
                acc[j] += 0.2 * d(p[j] - p[k]) ** -2 * (p[j] - p[k])
    return np.stack([p + system.dt * v, v + system.dt * acc], axis=1)


@pytest.mark.parametrize("options", [{}, {"flocking": "cohesive"}, {"repulsion_floor": 0.7, "dt": 0.01}], ids=str)
@pytest.mark.parametrize(("n_drivers", "n_evaders"), SIZES)
def test_a_step_is_that_of_the_formulas(n_drivers, n_evaders, options):
    system = Guidance(n_drivers=n_drivers, n_evaders=n_evaders, **options)
    states, actions = random_batch(system)
    expected = [defined_step(system, x, c) for x, c in zip(states, actions, strict=True)]
    np.testing.assert_allclose(system.step(states, actions), expected, rtol=1e-12, atol=1e-12)


def test_friction_alone_decays_velocities_by_the_factor_of_explicit_euler():
    system = Guidance(n_drivers=1, n_evaders=1)
    state = torch.zeros(1, 2, 2, 2, dtype=torch.float64)
    state[0, 0, 0, 0] = FAR
    state[0, :, 1] = torch.tensor([[1.0, -2.0], [3.0, 0.5]])
    velocities = simulate(system, state, no_control(system, 1))[:, 0, :, 1]
    times = torch.arange(61, dtype=torch.float64)[:, None, None]
    factors = torch.tensor([[1.0 - system.dt * 1.0], [1.0 - system.dt * 4.0]], dtype=torch.float64)
    torch.testing.assert_close(velocities, factors**times * state[0, :, 1], rtol=1e-9, atol=1e-6)


def test_evaders_flee_and_drivers_do_not_feel_them_without_control():
    system = Guidance(n_drivers=1, n_evaders=1)
    state = torch.zeros(1, 2, 2, 2, dtype=torch.float64)
    state[0, 0, 0, 0] = 2.0
    driver, evader = accelerations(system, state, no_control(system, 1))[0]
    assert driver.tolist() == [0.0, 0.0]
    assert evader.tolist() == pytest.approx([-15.0 * 2.0 / 2.1**2, 0.0])


@pytest.mark.parametrize(("flocking", "parts"), [("as_published", True), ("cohesive", False)])
def test_flocking_changes_its_sign_at_a_softened_length_of_one_half(flocking, parts):
    system = Guidance(n_drivers=1, n_evaders=2, flocking=flocking)
    for distance, beyond in ((0.3, False), (0.5, True), (3.0, True)):
        state = torch.zeros(1, 3, 2, 2, dtype=torch.float64)
        state[0, 0, 0, 1] = FAR
        state[0, 2, 0, 0] = distance
        _, left, right = accelerations(system, state, no_control(system, 1))[0, :, 0]
        assert (float(right - left) > 0.0) is (parts is beyond)


def test_cohesive_is_flocking_with_the_opposite_sign():
    published, cohesive = Guidance(), Guidance(flocking="cohesive")
    states, actions = random_batch(published)
    mean = (accelerations(published, states, actions) + accelerations(cohesive, states, actions)) / 2
    for e in range(2, 6):  # without the rest of the herd there is no flocking
        alone = Guidance(n_evaders=1)
        expected = accelerations(alone, states[:, [0, 1, e]], no_control(alone, 6))[:, 2]
        torch.testing.assert_close(mean[:, e], expected, rtol=1e-12, atol=1e-12)


# Symmetries


def turned(vectors, angle):
    c, s = np.cos(angle), np.sin(angle)
    return vectors @ torch.tensor([[c, s], [-s, c]], dtype=vectors.dtype)


def test_rotating_the_plane_with_its_target_rotates_the_trajectory():
    angle = 0.7
    target = torch.tensor([1.0, -0.5], dtype=torch.float64)
    system = Guidance(target=tuple(target.tolist()))
    other = Guidance(target=tuple(turned(target, angle).tolist()))
    states, actions = random_batch(system)
    actions = 0.1 * actions  # else the drivers run away
    ours, theirs = simulate(system, states, actions), simulate(other, turned(states, angle), actions)
    torch.testing.assert_close(theirs, turned(ours, angle), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(other.state_cost(theirs[-1]), system.state_cost(ours[-1]), rtol=1e-9, atol=1e-9)


def test_reflecting_the_plane_reflects_the_step_and_turns_c2_around():
    system = Guidance()
    states, actions = random_batch(system)
    mirror = torch.tensor([1.0, -1.0], dtype=torch.float64)
    expected = system.step(states, actions) * mirror
    torch.testing.assert_close(system.step(states * mirror, actions * mirror), expected, rtol=1e-12, atol=1e-12)


def test_the_order_of_evaders_and_of_drivers_with_their_controls_does_not_matter():
    system = Guidance(n_drivers=3)
    states, actions = random_batch(system)
    next_states = system.step(states, actions)
    evaders, drivers = [0, 1, 2, 5, 3, 6, 4], [2, 0, 1, 3, 4, 5, 6]
    for order, controls in ((evaders, actions), (drivers, actions[:, drivers[:3]])):
        torch.testing.assert_close(system.step(states[:, order], controls), next_states[:, order])
        torch.testing.assert_close(system.state_cost(states[:, order]), system.state_cost(states))


@pytest.mark.parametrize("n_evaders", [1, 2, 4])
def test_a_shift_of_the_plane_is_felt_by_the_control_only_whose_q_holds_the_sum_of_evaders(n_evaders):
    system = Guidance(n_evaders=n_evaders)
    states, actions = random_batch(system)
    shift = torch.tensor([0.6, -1.1], dtype=torch.float64)
    moved = states.clone()
    moved[:, :, 0] += shift
    for c in (torch.zeros_like(actions), actions):
        difference = accelerations(system, moved, c) - accelerations(system, states, c)
        q = (1 - n_evaders) * shift  # by this much q changes
        of_drivers = c[..., :1] * q + c[..., 1:] * torch.stack([-q[1], q[0]])
        expected = torch.cat([of_drivers, torch.zeros(6, n_evaders, 2, dtype=torch.float64)], dim=1)
        torch.testing.assert_close(difference, expected, rtol=1e-9, atol=1e-9)


# Slopes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_agents_on_the_same_spot_exert_nothing_and_have_finite_slopes(dtype):
    system = Guidance(n_drivers=2, n_evaders=3)
    states = torch.ones(1, 5, 2, 2, dtype=dtype, requires_grad=True)
    actions = torch.zeros(1, 2, 2, dtype=dtype, requires_grad=True)
    next_states = system.step(states, actions)
    kept = torch.tensor([1.0 - system.dt] * 2 + [1.0 - 4.0 * system.dt] * 3, dtype=dtype)
    torch.testing.assert_close(next_states[0, :, 1], kept.unsqueeze(1).expand(5, 2))
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(2, 1, system.state_size, generator=generator, dtype=dtype)
    rows = slice(None)
    ours, defined = (
        pullback(states, actions)(rows, vectors) for pullback in (system.pullback, defined_pullback(system))
    )
    for one, other in zip(ours, defined, strict=True):
        assert one.isfinite().all()
        torch.testing.assert_close(one, other)


def defined_pullback(system):
    return lambda states, actions: System.pullback(system, states, actions)


@pytest.mark.parametrize("pairs_at_once", [1, 100, 3 * 20**2, 2**16])
def test_products_for_many_agents_equal_the_autograd_default(pairs_at_once, monkeypatch):
    monkeypatch.setattr(guidance, "PAIRS_AT_ONCE", pairs_at_once)
    system = Guidance(n_drivers=3, n_evaders=17)
    states, actions = random_batch(system, size=7)
    vectors = torch.randn(2, 7, system.state_size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours, defined = system.pullback(states, actions), defined_pullback(system)(states, actions)
    for rows in (slice(5, 7), slice(3, 5), slice(1, 3), slice(0, 1), slice(2, 6), slice(None)):
        for one, other in zip(ours(rows, vectors[:, rows]), defined(rows, vectors[:, rows]), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def test_numbers_in_a_recorded_way_back_grow_as_its_steps(monkeypatch):
    """A compiler records a write into a part of a tensor as a copy of the whole: not one a step of all steps."""
    system = Guidance(n_drivers=2, n_evaders=8)
    monkeypatch.setattr(guidance, "PAIRS_AT_ONCE", 3 * system.n_agents**2)

    def numbers(steps):
        states, actions = random_batch(system, size=4 * steps)
        vectors = torch.zeros(1, 4, system.state_size, dtype=torch.float64)

        def back(states, actions):
            pull = system.pullback(states, actions)
            return [pull(slice(4 * t, 4 * t + 4), vectors) for t in range(steps - 1, -1, -1)]

        graph = make_fx(torch.func.functionalize(back, remove="mutations_and_views"))(states, actions).graph
        sizes = [node.meta["tensor_meta"].shape.numel() for node in graph.nodes if "tensor_meta" in node.meta]
        assert len(sizes) > 50
        return sum(sizes)

    assert numbers(8) < 5 * numbers(2)


# Start, observation, cost, actions


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_start_is_the_papers(dtype):
    system = Guidance()
    states = system.initial_states(4096, torch.Generator().manual_seed(0), dtype)
    assert states.dtype is dtype
    assert not states[:, :, 1].any(), "at rest"
    drivers, evaders = states[:, :2, 0], states[:, 2:, 0]
    assert_uniform_on_annulus(drivers.flatten(0, 1), 3.0, 4.0)
    assert abs(np.corrcoef(drivers[:, 0, 0], drivers[:, 1, 0])[0, 1]) < 0.05, "each on its own"
    spread = evaders - evaders.mean(1, keepdim=True)  # of 4 numbers of U(-0.5, 0.5) about their mean
    assert float(spread.square().mean()) == pytest.approx(3 / 4 / 12, rel=0.05)
    assert float((evaders - evaders[:, :1]).abs().max()) == pytest.approx(1.0, abs=0.05)
    assert float(evaders.norm(dim=-1).max()) <= 2.0 + 0.5**0.5
    many = Guidance(n_evaders=2000).initial_states(200, torch.Generator().manual_seed(0), dtype)
    assert_uniform_on_annulus(many[:, 2:, 0].mean(1), 1.0, 2.0, slack=0.05)


def assert_uniform_on_annulus(points, inner, outer, slack=1e-5):
    """Uniform in radius and in angle: for the area there are too many points inside."""
    radius, angle = points.norm(dim=-1), torch.atan2(points[:, 1], points[:, 0])
    assert inner - slack <= float(radius.min())
    assert float(radius.max()) <= outer + slack
    shares = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=points.dtype)
    tolerance = 3.0 / len(points) ** 0.5
    assert torch.allclose((radius.quantile(shares) - inner) / (outer - inner), shares, atol=tolerance)
    assert torch.allclose(angle.quantile(shares) / (2 * torch.pi) + 0.5, shares, atol=tolerance)


def test_the_observation_is_the_flattened_state():
    env = gym.make("DiffGuidance-v0").unwrapped
    observation, _ = env.reset(seed=0)
    assert observation.tolist() == env.state.flatten().tolist()
    assert env.observation_space.shape == (24,)
    names = [label for label, value in zip(env.system.state_labels, observation, strict=True) if value == 0.0]
    assert names == [f"{c}'_{agent}" for agent in ("d1", "d2", "e1", "e2", "e3", "e4") for c in "xy"], "at rest"


def test_the_control_is_paid_for_at_every_step_and_the_place_at_the_end():
    env = gym.make("DiffGuidance-v0", objective="final", control_weight=0.5).unwrapped
    env.reset(seed=0)
    coefficients = np.array([[0.1, -0.2], [0.3, 0.0]], np.float32)
    rewards = [env.step(coefficients)[1] for _ in range(60)]
    share = 0.5 * (0.01 + 0.04 + 0.09) / 4 / 60
    assert rewards[:-1] == pytest.approx([-share] * 59, rel=1e-5)
    evaders = env.state[2:, 0]
    assert rewards[-1] == pytest.approx(-share - float((evaders**2).mean()), rel=1e-5)


def test_actions_are_a_row_for_each_driver():
    env = gym.make("DiffGuidance-v0", n_drivers=3).unwrapped
    env.reset(seed=0)
    assert env.action_space == gym.spaces.Box(-12.0, 12.0, (3, 2), np.float32)
    assert env.system.action_labels[:3] == ("c1_d1 [1/s^2]", "c2_d1 [1/s^2]", "c1_d2 [1/s^2]")
    for wrong in (np.zeros(6), np.zeros((2, 3)), np.zeros((1, 3, 2))):
        with pytest.raises(ValueError, match=r"action must have shape \(3, 2\); got shape \("):
            env.step(wrong)
    with pytest.raises(ValueError, match="action must be finite; got"):
        env.step([[0.0, 0.0], [float("nan"), 0.0], [0.0, 0.0]])


def test_a_target_survives_the_way_through_a_written_specification():
    env = gym.make("DiffGuidance-v0", target=(1.0, -2.0))
    again = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    assert again.unwrapped.system.target == (1.0, -2.0)


# Pictures


def scene(driver, evader=(1.0, 0.0)):
    """The state of one driver and one evader, at rest."""
    return torch.tensor([[driver, (0.0, 0.0)], [evader, (0.0, 0.0)]])


def where(image, color):
    """Rows and columns of the pixels that have `color`; antialiasing rounds colors by up to 2."""
    return np.nonzero((np.abs(image.astype(int) - color) <= 3).all(axis=-1))


def test_bodies_are_where_their_positions_say():
    system = Guidance(n_drivers=1, n_evaders=1)
    for x, y in ((3.0, 0.0), (-3.0, 0.0), (0.0, 3.0), (0.0, -3.0)):
        rows, columns = where(picture(system, scene((x, y))), CYCLE[0])
        assert columns.mean() == pytest.approx(320 + x * 400 / 14, abs=1.5)
        assert rows.mean() == pytest.approx(200 - (y + 0.5) * 400 / 14, abs=1.5)


def test_the_arrow_shows_the_acceleration_of_the_control():
    system = Guidance(n_drivers=1, n_evaders=1)
    for c, (right, up) in {(1.0, 0.0): (1, 0), (-1.0, 0.0): (-1, 0), (0.0, 1.0): (0, 1), (0.0, -1.0): (0, -1)}.items():
        image = picture(system, scene((4.0, 0.0), (-4.0, 0.0)), torch.tensor([c]))  # q points to the right
        rows, columns = where(image, ACTION)
        assert np.sign(round(columns.mean() - 320 - 4 * 400 / 14, -1)) == right
        assert np.sign(round(200 - 0.5 * 400 / 14 - rows.mean(), -1)) == up
    assert len(where(picture(system, scene((4.0, 0.0)), torch.zeros(1, 2)), ACTION)[0]) == 0


def test_the_view_grows_with_the_herd_and_a_driver_that_has_run_off_is_a_ring_at_the_edge():
    system = Guidance(n_drivers=1, n_evaders=1)
    near, off = (picture(system, scene((x, 0.0))) for x in (3.0, 300.0))
    assert len(where(off, CYCLE[1])[0]) == len(where(near, CYCLE[1])[0]), "the herd keeps its place"
    assert 0 < len(where(off, CYCLE[0])[0]) < len(where(near, CYCLE[0])[0])
    assert where(off, CYCLE[0])[1].min() > 560
    fled = picture(system, scene((3.0, 0.0), (-200.0, 100.0)))
    rows, columns = where(fled, CYCLE[1])
    assert len(rows) > 50
    assert columns.mean() < 300
    assert rows.mean() < 190


@pytest.mark.parametrize("size", [-3e38, 1e20])
def test_states_beyond_the_precision_of_numbers_are_drawn_without_an_error(size):
    system = Guidance()
    state = torch.full(system.state_shape, size)
    assert picture(system, state, torch.full(system.action_shape, -size)).shape == (400, 640, 3)


def test_charts_show_the_ways_the_distance_and_the_coefficients():
    system = Guidance(n_drivers=2, n_evaders=3, target=(1.0, 2.0))
    states = torch.zeros(61, 5, *system.state_shape)
    states[:, :, 2:, 0] = torch.tensor([4.0, 6.0])  # 5 away from the target
    states[30:, 0, 1, 0] = 1000.0
    actions = torch.randn(60, 5, 2, 2, generator=torch.Generator().manual_seed(0))
    paths, distance, along, across = system.charts(states, actions)
    assert isinstance(paths, Paths)
    assert paths.groups == [("drivers", 2), ("evaders", 3)]
    assert paths.target == (1.0, 2.0)
    assert torch.equal(paths.values[:, [0, 2, 3, 4]], states[:, 0, [0, 2, 3, 4], 0])
    assert paths.values[30:, 1].isnan().all(), "a driver far away would leave no room for the herd"
    assert torch.equal(paths.values[:30, 1], states[:30, 0, 1, 0])
    assert isinstance(distance, Curves)
    torch.testing.assert_close(distance.values, torch.full((61, 5), 5.0))
    for chart, component in ((along, 0), (across, 1)):
        assert isinstance(chart, NamedCurves)
        assert torch.equal(chart.values, actions[:, 0, :, component])
        assert chart.names == ["driver 1", "driver 2"]
    assert float(states[30, 0, 1, 0, 0]) == 1000.0, "the caller's states stay"
