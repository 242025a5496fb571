"""Both kinds of step run one pure, differentiable function of a batch of independent samples."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from bptt_envs import DifferentiableEnv


def batch_of(system, size=5, seed=0, dtype=torch.float64):
    """Random states, (size, *state_shape), and actions well within any bound."""
    generator = torch.Generator().manual_seed(seed)
    states = system.initial_states(size, generator, dtype)
    return states, 2.0 * torch.rand(size, *system.action_shape, generator=generator, dtype=dtype) - 1.0


def test_step_differentiable_is_differentiable_in_state_and_action(make):
    env = make().unwrapped
    states, actions = (x.requires_grad_() for x in batch_of(env.system, size=3))
    assert torch.autograd.gradcheck(env.step_differentiable, (states, actions))
    assert torch.autograd.gradcheck(env.final_reward, (states,))
    assert torch.autograd.gradcheck(env.observe, (states,))


def test_step_differentiable_changes_nothing_in_the_environment(make):
    env, twin = make().unwrapped, make().unwrapped
    env.action_space.seed(0)
    for one in (env, twin):
        one.reset(seed=0)
    for _ in range(3):
        states, actions = batch_of(env.system)
        kept = states.clone(), actions.clone()
        env.step_differentiable(states, actions)
        env.final_reward(states)
        env.observe(states)
        env.initial_states(2)
        assert torch.equal(states, kept[0])
        assert torch.equal(actions, kept[1])
        action = env.action_space.sample()
        ours, theirs = env.step(action), twin.step(action)
        assert ours[0].tolist() == theirs[0].tolist()
        assert ours[1:] == theirs[1:]


def test_step_runs_the_differentiable_step_on_a_batch_of_one(make):
    env = make(horizon=4).unwrapped
    env.action_space.seed(0)
    env.reset(seed=0)
    for _ in range(4):
        state, action = env.state.unsqueeze(0), env.action_space.sample()
        next_state, reward = env.step_differentiable(state, torch.from_numpy(action).unsqueeze(0))
        observation, got, terminated, _, _ = env.step(action)
        assert torch.equal(env.state, next_state[0])
        assert observation.tolist() == env.observe(next_state)[0].tolist()
        assert got == float(reward + env.final_reward(next_state) if terminated else reward)


def test_vector_step_is_the_single_step_of_each(make, make_vec):
    envs, singles = make_vec(num_envs=3, horizon=20), [make(horizon=20) for _ in range(3)]
    envs.reset(seed=0)
    envs.action_space.seed(0)
    for i, env in enumerate(singles):
        env.reset(seed=i)
    for _ in range(envs.horizon):  # all of them: at the last one the episodes end
        actions = envs.action_space.sample()
        observations, rewards, terminated, *_ = envs.step(actions)
        results = [env.step(action) for env, action in zip(singles, actions, strict=True)]
        np.testing.assert_allclose(observations, [r[0] for r in results], rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(rewards, [r[1] for r in results], rtol=1e-3, atol=1e-5)
        assert terminated.tolist() == [r[2] for r in results]


def test_a_batch_equals_its_samples_one_by_one(system):
    states, actions = batch_of(system, size=7)
    next_states = system.step(states, actions)

    def agrees(function, *batches):
        alone = [function(*(x[i : i + 1] for x in batches)) for i in range(7)]
        torch.testing.assert_close(function(*batches), torch.cat(alone), rtol=1e-13, atol=1e-13)

    agrees(system.step, states, actions)
    agrees(system.running_cost, states, actions, next_states)
    agrees(system.final_cost, states)
    agrees(system.observe, states)
    for which in range(2):
        agrees(lambda x, u: system.linearize(x, u)[which], states, actions)  # noqa: B023, called at once


def test_an_empty_batch_is_a_batch(system):
    states, actions = batch_of(system, size=0)
    next_states = system.step(states, actions)
    assert next_states.shape == (0, *system.state_shape)
    assert system.running_cost(states, actions, next_states).shape == system.final_cost(states).shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_kept(system, dtype):
    states, actions = batch_of(system, dtype=dtype)
    next_states = system.step(states, actions)
    cost = system.running_cost(states, actions, next_states)
    results = [states, next_states, cost, system.final_cost(states), system.observe(states)]
    assert {x.dtype for x in [*results, *system.linearize(states, actions)]} == {dtype}


def test_device_is_kept(system):
    states, actions = (x.to("meta") for x in batch_of(system))  # the device that every machine has besides its CPU
    next_states = system.step(states, actions)
    results = [next_states, system.running_cost(states, actions, next_states), system.final_cost(states)]
    results += [system.observe(states), *system.linearize(states, actions)]
    assert {x.device.type for x in results} == {"meta"}


def test_shapes_are_those_of_the_contract(system):
    states, actions = batch_of(system, size=3)
    n, m = system.state_size, system.action_size
    next_states = system.step(states, actions)
    cost = system.running_cost(states, actions, next_states)
    assert states.shape == next_states.shape == (3, *system.state_shape)
    assert cost.shape == system.final_cost(states).shape == (3,)
    assert system.observe(states).shape == (3, *system.observation_shape)
    assert [x.shape for x in system.linearize(states, actions)] == [(3, n, n), (3, n, m)]
    assert len(system.state_labels) == n
    assert len(system.action_labels) == m


def test_float32_agrees_with_float64(system):
    states, actions = batch_of(system)
    expected = system.step(states, actions)
    torch.testing.assert_close(system.step(states.float(), actions.float()).double(), expected, rtol=1e-5, atol=1e-5)


def test_step_works_under_functional_transforms(system):
    states, actions = batch_of(system, size=3)
    batched = torch.func.vmap(lambda x, u: system.step(x.unsqueeze(0), u.unsqueeze(0))[0])(states, actions)
    torch.testing.assert_close(batched, system.step(states, actions), rtol=1e-12, atol=1e-12)


# Bounds and spaces


def test_without_max_force_nothing_is_clamped():
    env = gym.make("DiffCartPole-v0").unwrapped
    assert env.action_space == gym.spaces.Box(-50.0, 50.0, (1,), np.float32), "the nominal range"
    env.reset(seed=0)
    start = env.state.double().unsqueeze(0)
    env.step(np.array([500.0], np.float32))
    expected = env.system.step(start, torch.tensor([[500.0]], dtype=torch.float64))[0]
    torch.testing.assert_close(env.state.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("env_id", "option"),
    [
        ("DiffCartPole-v0", "max_force"),
        ("DiffMultiPole-v0", "max_force"),
        ("DiffIntegrator-v0", "max_action"),
        ("DiffQuantumControl-v0", "max_control"),
        ("DiffGuidance-v0", "max_control"),
    ],
)
def test_the_bound_clamps_both_kinds_of_step_and_bounds_the_space(env_id, option):
    free, bounded = gym.make(env_id).unwrapped, gym.make(env_id, **{option: 3.0}).unwrapped
    shape = free.system.action_shape
    assert bounded.action_space == gym.spaces.Box(-3.0, 3.0, shape, np.float32)
    batch = gym.make_vec(env_id, num_envs=2, **{option: 3.0})
    assert batch.single_action_space == bounded.action_space
    for action, clamped in ((7.0, 3.0), (-7.0, -3.0), (2.0, 2.0)):
        free.reset(seed=0)
        bounded.reset(seed=0)
        batch.reset(seed=[0, 0])
        expected = free.step(np.full(shape, clamped))[0]
        np.testing.assert_array_equal(bounded.step(np.full(shape, action))[0], expected)
        np.testing.assert_allclose(batch.step(np.full((2, *shape), action))[0], [expected] * 2, rtol=1e-6)
        start = free.initial_states(4, torch.Generator().manual_seed(0))
        ours, _ = bounded.step_differentiable(start, torch.full((4, *shape), action))
        theirs, _ = free.step_differentiable(start, torch.full((4, *shape), clamped))
        assert torch.equal(ours, theirs)


def test_start_states_in_float64_step_in_it_and_with_actions_of_it_only(make):
    env = make().unwrapped
    states = env.initial_states(2, torch.Generator().manual_seed(0), dtype=torch.float64)
    actions = torch.zeros(2, *env.system.action_shape)
    assert {one.dtype for one in env.step_differentiable(states, actions.double())} == {torch.float64}
    for one, other in ((states, actions), (states.float(), actions.double())):
        with pytest.raises(ValueError, match=rf"one dtype; got {one.dtype} and {other.dtype}. In float64 states"):
            env.step_differentiable(one, other)


def test_a_clamped_action_has_no_gradient():
    env = gym.make("DiffCartPole-v0", max_force=3.0).unwrapped
    actions = torch.tensor([[7.0], [2.0]], requires_grad=True)
    env.step_differentiable(env.initial_states(2), actions)[0].sum().backward()
    assert float(actions.grad[0]) == 0.0
    assert float(actions.grad[1]) != 0.0


def test_the_integrators_range_is_that_of_rl_libraries():
    assert gym.make("DiffIntegrator-v0").action_space == gym.spaces.Box(-1.0, 1.0, (1,), np.float32)


def test_every_finite_state_is_in_the_observation_space(make):
    env = make()
    assert (env.observation_space.low == -np.inf).all()  # no bound is pretended
    assert (env.observation_space.high == np.inf).all()
    assert env.observation_space.contains(env.observation_space.sample())
    for size in (-1e30, 1e30):
        observation, _ = env.reset(options={"state": np.full(env.unwrapped.system.state_shape, size, np.float32)})
        assert observation in env.observation_space


@pytest.mark.parametrize("n_poles", [1, 3])
def test_cos_sin_observation(n_poles):
    env = gym.make("DiffMultiPole-v0", n_poles=n_poles, observation="cos_sin").unwrapped
    x = env.initial_states(4, torch.Generator().manual_seed(0))
    columns = [x[:, 0], x[:, 1]]
    for i in range(n_poles):
        theta, theta_dot = x[:, 2 + 2 * i], x[:, 3 + 2 * i]
        columns += [theta.cos(), theta.sin(), theta_dot]
    assert torch.equal(env.observe(x), torch.stack(columns, dim=1))
    observation, _ = env.reset(options={"state": x[0]})
    assert observation in env.observation_space
    np.testing.assert_allclose(observation, torch.stack(columns, dim=1)[0], rtol=1e-6)
    plain = gym.make("DiffMultiPole-v0", n_poles=n_poles).unwrapped
    assert torch.equal(plain.observe(x), x)
    action = torch.ones(4, 1)
    assert torch.equal(env.step_differentiable(x, action)[0], plain.step_differentiable(x, action)[0])


@pytest.mark.parametrize("n_poles", [1, 3])
def test_positions_are_what_cos_sin_shows_without_velocities(n_poles):
    env, other = (
        gym.make("DiffMultiPole-v0", n_poles=n_poles, observation=observation).unwrapped
        for observation in ("positions", "cos_sin")
    )
    x = env.initial_states(4, torch.Generator().manual_seed(0))
    kept = [0, *(column for i in range(n_poles) for column in (2 + 3 * i, 3 + 3 * i))]
    assert torch.equal(env.observe(x), other.observe(x)[:, kept])
    observation, _ = env.reset(options={"state": x[0]})
    assert observation in env.observation_space


# The environment's own state


def test_state_is_a_copy(env_id):
    env = gym.make(env_id).unwrapped
    env.reset(seed=0)
    before = env.state
    env.state.fill_(9.0)
    assert torch.equal(env.state, before)
    assert env.state.shape == env.system.state_shape


def test_reset_starts_from_a_given_state(make):
    env = make().unwrapped
    state = np.random.default_rng(0).normal(size=env.system.state_shape)
    expected = torch.tensor(state, dtype=torch.float32)
    observation, _ = env.reset(options={"state": state})
    assert torch.equal(env.state, expected)
    assert observation.tolist() == env.observe(expected.unsqueeze(0))[0].tolist()
    given = expected.clone()
    env.reset(options={"state": given})
    given += 1.0
    assert torch.equal(env.state, expected), "the caller's tensor stays the caller's"


def test_the_action_stays_the_callers(env_id):
    env = gym.make(env_id).unwrapped
    env.reset(seed=0)
    action = np.full(env.action_space.shape, 0.5, np.float32)
    env.step(action)
    action += 1.0
    assert env._action.flatten().tolist() == [0.5] * env.system.action_size


def test_a_new_episode_starts_afresh(env_id):
    env = gym.make(env_id, horizon=3)
    losses = []
    for _ in range(2):
        env.reset(seed=0)
        losses += [env.step(np.zeros(env.action_space.shape, np.float32))[4].get("loss") for _ in range(3)]
    assert losses[:2] == losses[3:5] == [None, None]
    assert losses[2] == losses[5]
    env.reset(seed=0)
    env.step(np.zeros(env.action_space.shape, np.float32))
    env.reset(seed=0)  # in the middle of an episode
    ends = [env.step(np.zeros(env.action_space.shape, np.float32))[2] for _ in range(3)]
    assert ends == [False, False, True]


def test_horizon_is_that_of_the_system(env_id):
    assert gym.make(env_id, horizon=17).unwrapped.horizon == 17
    assert isinstance(gym.make(env_id).unwrapped, DifferentiableEnv)
    horizons = {"DiffIntegrator-v0": 4, "DiffLQR-v0": 20, "DiffQuantumControl-v0": 128, "DiffGuidance-v0": 60}
    horizons |= {"DiffQuadrotor-v0": 50, "DiffBouncingBall-v0": 60, "DiffPusher-v0": 50}
    horizons |= {"DiffHeat-v0": 40, "DiffBurgers-v0": 32, "DiffKuramotoSivashinsky-v0": 200}
    horizons |= {"DiffBouncingBall-v0": 60, "DiffPusher-v0": 50}
    assert gym.make(env_id).unwrapped.horizon == horizons.get(env_id, 100)
