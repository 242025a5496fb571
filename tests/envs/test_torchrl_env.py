"""TorchRL's own checker passes, its rollouts are Gymnasium's episodes, its gradients those of step_differentiable."""

import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from cliff import Cliff
from gymnasium.error import DependencyNotInstalled
from tensordict.nn import TensorDictModule
from torch import nn
from torch.testing import assert_close
from torchrl.envs import check_env_specs

from bptt_envs import DifferentiableVectorEnv, make_env
from bptt_envs.systems import CartPole
from bptt_envs.torchrl_env import TorchRLEnv


def policy(env, dtype=torch.float32):
    """A linear policy that TorchRL can roll out."""
    torch.manual_seed(0)
    return TensorDictModule(nn.Linear(4, 1, dtype=dtype), in_keys=["observation"], out_keys=["action"])


@pytest.mark.parametrize("batch_size", [(), (2,), (2, 3)])
def test_torchrls_checker_passes(batch_size):
    for given in ("DiffCartPole-v0", CartPole(horizon=2, max_force=5.0), Cliff()):
        check_env_specs(TorchRLEnv(given, batch_size, dtype=torch.float64), seed=0)


def test_torchrls_checker_passes_for_every_id(env_id):
    check_env_specs(TorchRLEnv(env_id, (2,), horizon=2), break_when_any_done="both", seed=0)


def test_specs_say_what_gymnasiums_spaces_say(env_id):
    env, spaces = TorchRLEnv(env_id, (3,)), gym.make(env_id)
    assert env.observation_spec["observation"].shape == (3, *spaces.observation_space.shape)
    assert type(env.observation_spec["observation"]).__name__.startswith("Unbounded")
    for ours, theirs in zip(env.action_spec.space, (spaces.action_space.low, spaces.action_space.high), strict=True):
        assert_close(ours, torch.from_numpy(theirs).expand(3, *theirs.shape), rtol=0, atol=0)


def test_a_rollout_is_the_episode_of_gymnasiums_environment():
    env = TorchRLEnv("DiffCartPole-v0", (2,), horizon=4, objective="continuous")
    act = policy(env)
    env.set_seed(5)
    with torch.no_grad():
        rollout = env.rollout(10, act)  # to the end of the episodes
    assert rollout.batch_size == (2, 4)
    for i in range(2):
        single = gym.make("DiffCartPole-v0", horizon=4, objective="continuous")
        observed, _ = single.reset(seed=5 + i)
        for step in rollout[i]:
            assert_close(step["observation"], torch.from_numpy(observed))
            observed, reward, terminated, truncated, _ = single.step(step["action"].numpy())
            assert_close(step["next", "observation"], torch.from_numpy(observed))
            assert_close(step["next", "reward"].item(), reward, rtol=1e-5, atol=1e-6)
            told = [step["next", name].item() for name in ("terminated", "truncated", "done")]
            assert told == [terminated, truncated, terminated]
    assert terminated


def test_episodes_that_have_ended_begin_anew_by_themselves():
    env, other = TorchRLEnv(Cliff(), (4,)), DifferentiableVectorEnv(Cliff(), 4, autoreset_mode="SameStep")
    env.set_seed(0)
    other.reset(seed=0)

    def still(tensordict):
        return tensordict.set("action", torch.zeros(4, 1))

    rollout = env.rollout(12, still, break_when_any_done=False)
    ends = [other.step(np.zeros((4, 1), np.float32))[2].tolist() for _ in range(12)]
    assert rollout["next", "terminated"].squeeze(-1).T.tolist() == ends
    assert rollout["observation"].isfinite().all()


def test_gradients_through_a_rollout_are_those_of_step_differentiable():
    options = {"horizon": 5, "objective": "continuous", "max_force": 50.0}
    env = TorchRLEnv("DiffCartPole-v0", (2,), dtype=torch.float64, differentiable=True, **options)
    act = policy(env, torch.float64)
    env.set_seed(0)
    rollout = env.rollout(5, act)
    ours = torch.autograd.grad(rollout["next", "reward"].sum(), list(act.parameters()))
    physics, state, total = make_env("DiffCartPole-v0", **options), rollout["observation"][:, 0].detach(), 0.0
    for _ in range(5):
        state, reward = physics.step_differentiable(state, act.module(state))
        total = total + reward.sum()
    total = total + physics.final_reward(state).sum()
    assert_close(rollout["next", "reward"].sum(), total)
    assert_close(ours, torch.autograd.grad(total, list(act.parameters())), rtol=1e-10, atol=1e-12)
    assert all(slope.any() for slope in ours)


def test_there_are_no_gradients_unless_asked_for():
    env = TorchRLEnv("DiffCartPole-v0", horizon=3)
    assert not env.rollout(3, policy(env))["next", "observation"].requires_grad


def test_a_reset_starts_where_it_is_told_to():
    env = TorchRLEnv("DiffCartPole-v0", (2, 3))
    states = torch.arange(24.0).reshape(2, 3, 4)
    assert_close(env.reset(state=states)["observation"], states)
    with pytest.raises(ValueError, match=r"state must be .*, one for each environment; got \(7,"):
        env.reset(state=states.flatten(0, -2)[:1].expand(7, -1))


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="batch_size must be an integer of at least 1; got 0"):
        TorchRLEnv("DiffCartPole-v0", (0,))
    with pytest.raises(ValueError, match=r"batch_size must be a shape, such as \(64,\); got 64"):
        TorchRLEnv("DiffCartPole-v0", 64)
    with pytest.raises(ValueError, match="has no option 'max_torque'"):
        TorchRLEnv("DiffCartPole-v0", max_torque=1.0)


def test_without_torchrl_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchrl.envs", None)
    monkeypatch.delitem(sys.modules, "bptt_envs.torchrl_env")
    with pytest.raises(DependencyNotInstalled, match=r'pip install "stable-bptt\[torchrl\]"'):
        import bptt_envs.torchrl_env  # noqa: F401
