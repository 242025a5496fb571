"""The rewards of an episode add up to minus the loss of its trajectory, and the loss is the paper's."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from bptt_envs import Task
from bptt_envs.systems import (
    LQR,
    BouncingBall,
    Burgers,
    ChainedPendulum,
    Guidance,
    Hopper,
    Integrator,
    KuramotoSivashinsky,
    MultiPole,
    Pusher,
    Quadrotor,
    QuantumControl,
)


@pytest.fixture
def variant(every_variant):
    return every_variant


def defined_loss(system, states, actions):
    """The loss of trajectories (T + 1, B, state) with actions (T, B, action), by its definition, (B,)."""
    states, actions = (np.asarray(x, dtype=np.float64) for x in (states, actions))
    if isinstance(system, Task):
        states = states[..., :-1].reshape(*states.shape[:-1], *system.system.state_shape)
        return defined_loss(system.system, states, actions)
    if isinstance(system, LQR):
        x, Q = states[..., : len(system.A)], system.Q if system.objective == "continuous" else 0.0 * system.Q
        running = np.einsum("tbi,ij,tbj->b", x[:-1], Q, x[:-1]) + np.einsum("tbi,ij,tbj->b", actions, system.R, actions)
        return running + np.einsum("bi,ij,bj->b", x[-1], system.Q_T, x[-1])
    if isinstance(system, (MultiPole, ChainedPendulum)):
        costs = 1.0 - np.cos(states[1:, :, 2::2]).mean(axis=-1)
    elif isinstance(system, QuantumControl):
        phi = np.sin(system.target * np.pi * np.arange(1, system.n_points + 1) / (system.n_points + 1))
        overlaps = (states[1:, ..., 0] + 1j * states[1:, ..., 1]) @ phi / np.linalg.norm(phi)
        costs = 1.0 - np.abs(overlaps) ** 2
        return costs[-1] if system.objective == "final" else costs.sum(axis=0)
    elif isinstance(system, Guidance):
        costs = ((states[1:, :, system.n_drivers :, 0] - system.target) ** 2).mean(axis=(-2, -1))
        control = system.control_weight * (actions**2).mean(axis=(0, -2, -1))
        return control + (costs[-1] if system.objective == "final" else costs.mean(axis=0))
    elif isinstance(system, Quadrotor):
        away = states[1:, :, :2] - system.target
        z2 = (away**2).sum(-1) + (states[1:, :, 3:5] ** 2).sum(-1) / 4 + states[1:, :, 5] ** 2 / 100
        costs = np.sqrt(1.0 + z2 + (1.0 - np.cos(states[1:, :, 2])) / 2) - 1.0
        thrusts = actions.clip(0.0, system.max_thrust)
        turning = ((thrusts[..., 1] - thrusts[..., 0]) / (system.mass * system.gravity)) ** 2
        depth = np.zeros_like(costs)
        if system.course == "gate":
            off = np.maximum(np.abs(states[1:, :, 1] - 1.0) - 0.25, 0.0) / 0.25
            depth = np.maximum(1.0 - (states[1:, :, 0] / 0.4) ** 2, 0.0) ** 2 * off**2 / (1.0 + off**2)
        for middle in system.obstacles:
            squares = ((states[1:, :, :2] - middle) ** 2).sum(-1)
            depth = depth + np.maximum(1.0 - squares / 0.65**2, 0.0) ** 2
        paid = (system.control_weight * turning + system.collision_weight * depth).mean(axis=0)
        return paid + (costs[-1] if system.objective == "final" else costs.mean(axis=0))
    elif isinstance(system, Hopper):  # over the whole horizon: with these actions it does not fall
        if system.form == "planar":
            errors = (states[1:, :, 5] / system.speed - 1.0) ** 2 + (states[1:, :, 2] / 0.5) ** 2
        else:
            errors = ((states[1:, :, 0] - system.height) / 0.5) ** 2
        costs = errors / (1.0 + errors)
        control = system.control_weight * (actions**2).mean(axis=(0, -1))
        return control + (costs[-1] if system.objective == "final" else costs.mean(axis=0))
    elif isinstance(system, (Burgers, KuramotoSivashinsky)):
        u, goal = states, 0.0
        if isinstance(system, Burgers):
            u, goal = np.split(states, 2, axis=-1) if system.target is None else (states, np.array(system.target))
        costs = ((u - goal)[1:] ** 2).mean(axis=-1)
        control = system.control_weight * (actions**2).mean(axis=(0, -1))
        return control + (costs[-1] if system.objective == "final" else costs.mean(axis=0))
    elif isinstance(system, BouncingBall):
        costs = ((states[1:, :, -4:-2] - system.target) ** 2).mean(axis=-1)
        control = system.control_weight * (actions**2).mean(axis=(0, -1))
        return control + (costs[-1] if system.objective == "final" else costs.mean(axis=0))
    elif isinstance(system, Pusher):
        pusher, disk = states[1:, :, 0:2], states[1:, :, 4:6]
        gap = np.linalg.norm(disk - pusher, axis=-1) - system.pusher_radius - system.disk_radius
        costs = ((disk - system.target) ** 2).sum(axis=-1) + system.approach_weight * np.maximum(gap, 0.0) ** 2
        control = system.control_weight * (actions**2).mean(axis=(0, -1))
        return control + (costs[-1] if system.objective == "final" else costs.mean(axis=0))
    elif isinstance(system, Integrator):
        costs = 0.5 * (states[1:, :, 0] - system.target) ** 2
    else:
        pytest.fail(f"write the loss of {type(system).__name__} here, by its definition")
    return costs[-1] if system.objective == "final" else costs.mean(axis=0)


def actions_for(env, batch, seed=0):
    """Actions for an episode, (T, batch, *action_shape)."""
    space = env.unwrapped.system.action_shape
    limit = float(getattr(env, "single_action_space", env.action_space).high.max())
    return np.random.default_rng(seed).uniform(-limit, limit, (env.unwrapped.horizon, batch, *space))


def test_single_environment(make):
    env = make()
    observation, _ = env.reset(seed=3)
    states, total = [env.unwrapped.state.numpy()[None]], 0.0
    actions = actions_for(env, 1)
    for t, action in enumerate(actions[:, 0]):
        observation, reward, terminated, truncated, info = env.step(action.astype(np.float32))
        states.append(env.unwrapped.state.numpy()[None])
        total += reward
        assert observation in env.observation_space
        assert isinstance(reward, float)
        assert terminated is (t == env.unwrapped.horizon - 1), "the episode ends at the horizon, by termination"
        assert truncated is False
        assert ("loss" in info) is terminated
    expected = defined_loss(env.unwrapped.system, np.stack(states), actions)[0]
    assert -total == pytest.approx(expected, rel=1e-5)
    assert info["loss"] == pytest.approx(expected, rel=1e-5)


def test_vector_environment(make_vec):
    envs = make_vec(num_envs=3)
    envs.reset(seed=3)
    states, total = [envs.state.numpy()], np.zeros(3)
    actions = actions_for(envs, 3)
    for t, action in enumerate(actions):
        _, rewards, terminated, truncated, infos = envs.step(action.astype(np.float32))
        states.append(envs.state.numpy())
        total += rewards
        assert terminated.tolist() == [t == envs.horizon - 1] * 3
        assert not truncated.any()
        assert ("loss" in infos) == terminated.all()
    expected = defined_loss(envs.system, np.stack(states), actions)
    np.testing.assert_allclose(-total, expected, rtol=1e-5)
    np.testing.assert_allclose(infos["loss"], expected, rtol=1e-5)


def test_differentiable_steps(make):
    env = make().unwrapped
    state = env.initial_states(4, torch.Generator().manual_seed(3)).double()
    states, total = [state], torch.zeros(4, dtype=torch.float64)
    actions = actions_for(env, 4)
    for action in actions:
        state, reward = env.step_differentiable(state, torch.from_numpy(action))
        states.append(state)
        total += reward
    total += env.final_reward(state)
    expected = defined_loss(env.system, torch.stack(states), actions)
    np.testing.assert_allclose(-total, expected, rtol=1e-12)


def test_final_objective_pays_at_the_end_only(env_id):
    env = gym.make(env_id, objective="final", horizon=10)
    env.reset(seed=0)
    rest = np.zeros(env.action_space.shape, np.float32)  # where actions cost something, they do so in every step
    rewards = [env.step(rest)[1] for _ in range(env.unwrapped.horizon)]
    assert rewards[:-1] == [0.0] * (env.unwrapped.horizon - 1)
    assert rewards[-1] < 0.0


def test_continuous_objective_pays_nothing_extra_at_the_end(env_id):
    env = gym.make(env_id, objective="continuous").unwrapped
    states = env.initial_states(4, torch.Generator().manual_seed(0))
    reward = env.step_differentiable(states, torch.zeros(4, *env.system.action_shape))[1]
    if env_id == "DiffHopper-v0":  # a step earns what one after a fall would cost, and the end takes that of all steps
        assert env.final_reward(states).tolist() == [-1.0] * 4
        reward = reward - 1.0 / env.horizon
    elif not isinstance(env.system, LQR):  # whose last state has a weight of its own
        assert env.final_reward(states).tolist() == [0.0] * 4
    assert (reward < 0.0).all()
