"""Batches in torch tensors are the same episodes as Gymnasium's, with gradients where they are asked for."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from cliff import Cliff
from gymnasium.error import ResetNeeded
from torch.testing import assert_close

import bptt_envs
from bptt_envs import TorchVectorEnv, make_env, make_torch
from bptt_envs.systems import CartPole, Integrator

MODES = ("NextStep", "SameStep")


def same_episodes(ours, theirs, steps, seed=3):
    """Step a batch in torch and Gymnasium's of the same system alike, and compare all that they return."""
    theirs.action_space.seed(0)
    assert_close(ours.reset(seed=seed)[0], torch.from_numpy(theirs.reset(seed=seed)[0]), rtol=0, atol=0)
    ended = 0
    for _ in range(steps):
        actions = theirs.action_space.sample()
        observed, reward, terminated, truncated, info = ours.step(torch.from_numpy(actions))
        expected = theirs.step(actions)
        assert_close(observed, torch.from_numpy(expected[0]), rtol=0, atol=0)
        assert_close(reward.double(), torch.from_numpy(expected[1]), rtol=0, atol=0)
        assert (terminated.tolist(), truncated.tolist()) == (expected[2].tolist(), expected[3].tolist())
        if not terminated.any():
            assert "final_obs" not in info
            continue
        ended += 1
        final = expected[4]
        if "final_obs" in final:
            rows = torch.from_numpy(np.stack(list(final["final_obs"][expected[2]])))
            assert_close(info["final_obs"][terminated], rows, rtol=0, atol=0)
        else:
            assert_close(info["loss"][terminated].double(), torch.from_numpy(final["loss"][expected[2]]))
    assert ended


@pytest.mark.parametrize("mode", MODES)
def test_the_episodes_are_those_of_gymnasiums_batch(env_id, mode):
    options = {"num_envs": 2, "horizon": 2, "autoreset_mode": mode}
    same_episodes(make_torch(env_id, **options), gym.make_vec(env_id, **options), 5)


@pytest.mark.parametrize("mode", MODES)
def test_episodes_that_end_early_do_so_alike(mode):
    given = {"num_envs": 8, "autoreset_mode": mode}
    same_episodes(TorchVectorEnv(Cliff(), **given), bptt_envs.DifferentiableVectorEnv(Cliff(), **given), 30)


@pytest.mark.parametrize("mode", MODES)
def test_gradients_are_finite_where_others_have_ended_beyond_what_is_defined(mode):
    env = TorchVectorEnv(Cliff(), 4, differentiable=True, autoreset_mode=mode)
    env.reset(seed=0)
    actions = torch.zeros(8, 4, 1, requires_grad=True)
    total = sum(env.step(action)[1].sum() for action in actions)
    (slopes,) = torch.autograd.grad(total, actions)
    assert slopes.isfinite().all()
    assert slopes[:, 2].any()


class Root(Integrator):
    """A system whose physics has no slope at 0, where the episodes of the test below end."""

    def step(self, state, action):
        return state.clamp_min(0.0).sqrt() + action


@pytest.mark.parametrize("mode", MODES)
def test_gradients_are_finite_where_an_episode_has_ended_and_the_physics_has_no_slope(mode):
    env = TorchVectorEnv(Root(horizon=1), 2, differentiable=True, autoreset_mode=mode)
    env.reset(seed=0, options={"state": torch.ones(2, 1)})
    actions = torch.full((4, 2, 1), -1.0, requires_grad=True)
    total = sum(env.step(action)[1].sum() for action in actions)
    (slopes,) = torch.autograd.grad(total, actions)
    assert slopes.isfinite().all()
    assert slopes[0].all()


def episode(env, actions, start=None):
    """The sum of all rewards of an episode, (N,), and its last observation."""
    env.reset(seed=0, options={} if start is None else {"state": start})
    total = 0.0
    for action in actions:
        observed, reward, *_ = env.step(action)
        total = total + reward
    return total, observed


def by_hand(physics, state, actions):
    """The same by `step_differentiable`."""
    total = 0.0
    for action in actions:
        state, reward = physics.step_differentiable(state, action)
        total = total + reward
    return total + physics.final_reward(state), physics.observe(state)


@pytest.mark.parametrize("env_id", ["DiffCartPole-v0", "DiffGuidance-v0", "DiffHopper-v0"])
def test_gradients_through_an_episode_are_those_of_step_differentiable(env_id):
    given = {"horizon": 4, "objective": "continuous", "observe_time": True}
    env = make_torch(env_id, 3, dtype=torch.float64, differentiable=True, autoreset_mode="Disabled", **given)
    start = env.initial_states(3, torch.Generator().manual_seed(1)).double().requires_grad_()
    shape = (4, 3, *env.system.action_shape)
    actions = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2), requires_grad=True)
    total, observed = episode(env, actions, start)
    expected, seen = by_hand(make_env(env_id, **given), start, actions)
    assert_close(total, expected, rtol=1e-12, atol=1e-14)
    assert_close(observed, seen, rtol=1e-12, atol=1e-14)
    ours = torch.autograd.grad(total.sum() + observed.sum(), [actions, start])
    assert_close(ours, torch.autograd.grad(expected.sum() + seen.sum(), [actions, start]), rtol=1e-10, atol=1e-12)
    assert all(one.abs().sum() > 0 for one in ours)


def test_detach_and_resets_cut_gradients_off():
    env = make_torch("DiffCartPole-v0", 2, horizon=3, differentiable=True, autoreset_mode="SameStep")
    env.reset(seed=0)
    first, second, third, fourth = (torch.ones(2, 1, requires_grad=True) for _ in range(4))
    env.step(first)
    env.detach()
    observed, *_ = env.step(second)
    assert torch.autograd.grad(observed.sum(), [first, second], allow_unused=True, retain_graph=True)[0] is None
    _, reward, terminated, _, info = env.step(third)
    assert terminated.all()
    assert torch.autograd.grad(reward.sum(), second, retain_graph=True)[0].abs().sum() > 0
    assert not info["loss"].requires_grad
    observed, *_ = env.step(fourth)
    by_third, by_fourth = torch.autograd.grad(observed.sum(), [third, fourth], allow_unused=True)
    assert by_third is None or not by_third.any()
    assert by_fourth.abs().sum() > 0


def test_there_are_no_gradients_unless_asked_for():
    action = torch.ones(1, 1, requires_grad=True)
    env = make_torch("DiffCartPole-v0")
    env.reset(seed=0)
    assert not any(one.requires_grad for one in env.step(action)[:2])
    env = make_torch("DiffCartPole-v0", differentiable=True)
    env.reset(seed=0)
    with torch.no_grad():
        assert not env.step(action)[0].requires_grad
    assert env.step(action)[0].requires_grad


def test_a_reset_of_some_leaves_the_others_and_their_gradients():
    env = make_torch("DiffCartPole-v0", 3, differentiable=True, autoreset_mode="Disabled", horizon=5)
    env.reset(seed=0)
    action = torch.ones(3, 1, requires_grad=True)
    before, *_ = env.step(action)
    after, _ = env.reset(options={"reset_mask": torch.tensor([False, True, False])})
    assert torch.equal(after[::2], before[::2])
    assert not torch.equal(after[1], before[1])
    (slope,) = torch.autograd.grad(after.sum(), action)
    assert slope[::2].all()
    assert not slope[1].any()


def test_everything_is_in_the_dtype_asked_for():
    env = make_torch("DiffCartPole-v0", 2, dtype=torch.float64, horizon=1)
    observed, _ = env.reset(seed=0)
    assert observed.dtype is env.state.dtype is torch.float64
    observed, reward, terminated, truncated, info = env.step(torch.zeros(2, 1))
    assert observed.dtype is reward.dtype is info["loss"].dtype is torch.float64
    assert terminated.dtype is truncated.dtype is torch.bool
    assert_close(reward, -info["loss"])


def test_what_is_returned_is_the_callers_own():
    env = make_torch("DiffCartPole-v0", 2)
    observed, _ = env.reset(seed=0)
    before = env.state
    observed.fill_(7.0)
    assert torch.equal(env.state, before)
    start = torch.zeros(2, 4)
    env.reset(options={"state": start})
    start.fill_(7.0)
    assert not env.state.any()
    env.step(torch.zeros(2, 1))[-1]["loss"].fill_(7.0)
    assert not env.step(torch.zeros(2, 1))[-1]["loss"].any()


def test_the_callers_surroundings_change_nothing():
    env = make_torch("DiffCartPole-v0", 2)
    expected = [env.reset(seed=0)[0], *env.step(torch.ones(2, 1))[:2]]
    with torch.inference_mode(), torch.autocast("cpu"):
        env = make_torch("DiffCartPole-v0", 2)
        assert_close([env.reset(seed=0)[0], *env.step(torch.ones(2, 1))[:2]], expected, rtol=0, atol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_seed_starts_the_same_episodes_on_a_gpu():
    here, there = (make_torch("DiffCartPole-v0", 4, horizon=3, device=one) for one in ("cpu", "cuda"))
    assert_close(there.reset(seed=0)[0].cpu(), here.reset(seed=0)[0], rtol=0, atol=0)
    for _ in range(5):
        ours = there.step(torch.ones(4, 1, device="cuda"))
        assert all(one.device.type == "cuda" for one in ours[:4])
        assert_close([one.cpu() for one in ours[:4]], list(here.step(torch.ones(4, 1))[:4]), rtol=1e-4, atol=1e-5)


def test_errors_name_the_argument_and_what_would_be_right():
    env = make_torch("DiffCartPole-v0", 2, autoreset_mode="Disabled", horizon=1)
    with pytest.raises(ResetNeeded, match="call reset first"):
        env.step(torch.zeros(2, 1))
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"actions must be a tensor of shape \(B, 1\)"):
        env.step(np.zeros((2, 1)))
    with pytest.raises(ValueError, match=r"actions must hold one for each of the 2 environments, on cpu; got 3 on cpu"):
        env.step(torch.zeros(3, 1))
    with pytest.raises(ValueError, match=r"actions must hold one for each .* got 2 on meta"):
        env.step(torch.zeros(2, 1, device="meta"))
    with pytest.raises(ValueError, match=r"options\['state'\] must hold 2 states, .* got 3, torch.float32"):
        env.reset(options={"state": torch.zeros(3, 4)})
    env.step(torch.zeros(2, 1))
    with pytest.raises(ResetNeeded, match=r"after the 1 steps of environments \[0, 1\]"):
        env.step(torch.zeros(2, 1))
    with pytest.raises(ValueError, match=r"dtype must be torch.float32 or torch.float64; got torch.float16"):
        make_torch("DiffCartPole-v0", dtype=torch.float16)
    with pytest.raises(
        ValueError, match="device must be one that torch finds here, such as 'cpu' or 'cuda', or None; got 'nowhere'"
    ):
        make_torch("DiffCartPole-v0", device="nowhere")
    with pytest.raises(ValueError, match="differentiable must be True or False; got 1"):
        make_torch("DiffCartPole-v0", differentiable=1)
    with pytest.raises(ValueError, match="has no option 'max_torque'"):
        make_torch("DiffCartPole-v0", max_torque=1.0)
    for name, value in (("compile", True), ("render_mode", "rgb_array")):
        with pytest.raises(
            ValueError, match=f"options must be those of the environment: in tensors it takes no {name}"
        ):
            make_torch("DiffCartPole-v0", **{name: value})
    with pytest.raises(gym.error.NameNotFound):
        make_torch("DiffCartPool-v0")


def test_a_built_system_will_do():
    assert TorchVectorEnv(CartPole(horizon=3), 2).horizon == 3
