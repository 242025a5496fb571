"""The native batch behaves as a loop over single environments does under Gymnasium's own vectorizer."""

import pickle

import gymnasium as gym
import numpy as np
import pytest
import torch
from cliff import Cliff
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from recorded import Recorded

from bptt_envs import DifferentiableVectorEnv
from bptt_envs.systems import CartPole

HORIZON, NUM_ENVS = 5, 3


class StartsFrom(gym.Wrapper):
    """Starts every episode from `start`."""

    start = None

    def reset(self, *, seed=None, options=None):
        return self.env.reset(seed=seed, options={"state": self.start})


class Pair:
    """The native batch and Gymnasium's loop over single environments, fed alike and compared at every call."""

    def __init__(self, make, make_vec, mode):
        self.native = make_vec(num_envs=NUM_ENVS, horizon=HORIZON, autoreset_mode=mode)
        self.looped = SyncVectorEnv([lambda: StartsFrom(make(horizon=HORIZON))] * NUM_ENVS, autoreset_mode=mode)
        self.native.action_space.seed(0)

    def reset(self, mask=None):
        def options():
            return {} if mask is None else {"reset_mask": mask.copy()}

        result = self.native.reset(seed=None if mask is not None else 0, options=options())
        self._hand_over_start_states()
        return self._agreed(result, self.looped.reset(options=options()))

    def step(self):
        actions = self.native.action_space.sample()
        result = self.native.step(actions)
        self._hand_over_start_states()
        return self._agreed(result, self.looped.step(actions))

    def _hand_over_start_states(self):
        for env, state in zip(self.looped.envs, self.native.state, strict=True):
            env.start = state

    @staticmethod
    def _agreed(native, looped):
        for ours, theirs in zip(native, looped, strict=True):
            assert data_equivalence(ours, theirs), f"\n{ours}\n{theirs}"
        return native


def test_the_compared_loop_notices_differences(make, make_vec):
    pair = Pair(make, make_vec, AutoresetMode.NEXT_STEP)
    pair.reset()
    pair.looped.envs[1].unwrapped._state += 0.1
    with pytest.raises(AssertionError):
        pair.step()


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_autoreset_is_gymnasiums(make, make_vec, mode):
    pair = Pair(make, make_vec, mode)
    pair.reset()
    ended = np.zeros(NUM_ENVS, int)
    for t in range(3 * HORIZON + 2):
        if t == 2:
            pair.reset(np.array([False, True, False]))  # the episodes end at different times from here on
        _, _, terminated, _, infos = pair.step()
        ended += terminated
        assert ("final_obs" in infos) == (mode is AutoresetMode.SAME_STEP and bool(terminated.any()))
    assert (ended >= 2).all()


def test_disabled_autoreset_is_gymnasiums(make, make_vec):
    pair = Pair(make, make_vec, AutoresetMode.DISABLED)
    pair.reset()
    for t in range(3 * HORIZON):
        if t == 2:
            pair.reset(np.array([False, True, False]))
        _, _, terminated, _, _ = pair.step()
        if terminated.any():
            pair.reset(terminated)


def test_next_step_autoreset_starts_with_the_step_after_the_end(env_id):
    envs = gym.make_vec(env_id, num_envs=2, horizon=2, objective="continuous")
    envs.reset(seed=0)
    actions = np.full(envs.action_space.shape, 0.5, np.float32)
    ends, rewards = [], []
    for _ in range(7):
        _, reward, terminated, _, _ = envs.step(actions)
        ends.append(bool(terminated.all()))
        rewards.append(float(reward[0]))
    assert ends == [False, True, False] * 2 + [False]
    assert [reward == 0.0 for reward in rewards] == [False, False, True] * 2 + [False]


def test_same_step_autoreset_hands_out_the_last_observation(env_id):
    envs = gym.make_vec(env_id, num_envs=2, horizon=2, autoreset_mode=AutoresetMode.SAME_STEP)
    single = gym.make(env_id, horizon=2)
    actions = np.full(envs.action_space.shape, 0.5, np.float32)
    start, _ = envs.reset(seed=0)
    single.reset(seed=0)
    envs.step(actions)
    single.step(actions[0])
    observations, _, terminated, _, infos = envs.step(actions)
    last, _, _, _, info = single.step(actions[0])
    assert terminated.all()
    np.testing.assert_allclose(infos["final_obs"][0], last, rtol=1e-6)
    assert infos["_final_obs"].all()
    assert infos["final_info"]["loss"][0] == pytest.approx(info["loss"], rel=1e-6)
    assert not np.array_equal(observations, start), "the next episode is another one"
    assert (envs.step(actions)[2] == False).all()  # noqa: E712, an array


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_autoreset_works_after_a_start_from_given_states(env_id, mode):
    envs = gym.make_vec(env_id, num_envs=2, horizon=2, autoreset_mode=mode)
    given = np.zeros((2, *envs.system.state_shape), np.float32)
    envs.reset(options={"state": given})
    actions = np.zeros(envs.action_space.shape, np.float32)
    for _ in range(5):
        envs.step(actions)
    first = envs.state
    envs.reset(seed=1, options={"state": given})
    for _ in range(2 if mode is AutoresetMode.SAME_STEP else 3):
        envs.step(actions)
    second = envs.state
    envs.reset(seed=1, options={"state": given})
    for _ in range(2 if mode is AutoresetMode.SAME_STEP else 3):
        envs.step(actions)
    assert envs.state.tolist() == second.tolist() != first.tolist(), "the seed holds with a given state, too"


def test_disabled_autoreset_refuses_to_step_ended_episodes(env_id):
    envs = gym.make_vec(env_id, num_envs=3, horizon=2, autoreset_mode="Disabled")
    actions = np.zeros(envs.action_space.shape, np.float32)
    envs.reset(seed=0)
    envs.step(actions)
    envs.reset(options={"reset_mask": np.array([False, True, False])})
    assert envs.step(actions)[2].tolist() == [True, False, True]
    with pytest.raises(ResetNeeded, match=r"after the 2 steps of environments \[0, 2\].*reset_mask"):
        envs.step(actions)
    envs.reset(options={"reset_mask": np.array([True, False, True])})
    assert envs.step(actions)[2].tolist() == [False, True, False]


def test_reset_mask_leaves_the_others_as_they_are(make_vec):
    envs, twins = (make_vec(num_envs=4, autoreset_mode="Disabled", horizon=4) for _ in range(2))
    envs.action_space.seed(0)
    mask = np.array([True, False, True, False])
    for one in (envs, twins):
        one.reset(seed=0)
    actions = envs.action_space.sample()
    envs.step(actions)
    twins.step(actions)
    options = {"reset_mask": mask}
    observations, _ = envs.reset(seed=8, options=options)
    assert options == {"reset_mask": mask}, "the caller's options stay"
    np.testing.assert_array_equal(observations[mask], make_vec(num_envs=4, horizon=4).reset(seed=8)[0][mask])
    for _ in range(3):
        actions = envs.action_space.sample()
        ours, theirs = envs.step(actions), twins.step(actions)
        np.testing.assert_array_equal(ours[0][~mask], theirs[0][~mask])
        np.testing.assert_array_equal(ours[1][~mask], theirs[1][~mask])
    assert ours[2].tolist() == (~mask).tolist()
    assert ours[4]["loss"][1] == theirs[4]["loss"][1]


def test_reset_starts_from_given_states(env_id):
    envs = gym.make_vec(env_id, num_envs=3)
    states = np.random.default_rng(0).normal(size=(3, *envs.system.state_shape)).astype(np.float32)
    expected = states.copy()
    envs.reset(options={"state": states})
    states += 1.0
    np.testing.assert_array_equal(envs.state, expected)
    envs.reset(options={"state": states, "reset_mask": np.array([False, True, False])})
    np.testing.assert_array_equal(envs.state, [expected[0], states[1], expected[2]])


def test_returned_arrays_are_the_callers_own(env_id):
    for mode in AutoresetMode:
        envs = gym.make_vec(env_id, num_envs=2, horizon=3, autoreset_mode=mode)
        actions = np.zeros(envs.action_space.shape, np.float32)
        returned = [envs.reset(seed=0)[0]]
        for _ in range(3):
            returned += [array for array in envs.step(actions)[:4] if isinstance(array, np.ndarray)]
        kept = [array.copy() for array in returned]
        state = envs.state
        envs.state.fill_(5.0)
        for array in returned:
            array[:] = True
        assert envs.state.tolist() == state.tolist()
        envs.reset()
        assert all((array == 1).all() for array in returned)
        assert any((array != 1).any() for array in kept)


def test_gymnasiums_episode_statistics_see_minus_the_loss(env_id):
    envs = gym.wrappers.vector.RecordEpisodeStatistics(gym.make_vec(env_id, num_envs=3, horizon=4))
    envs.reset(seed=0)
    envs.action_space.seed(0)
    finished = 0
    for _ in range(14):
        *_, terminated, _, infos = envs.step(envs.action_space.sample())
        if terminated.any():
            np.testing.assert_allclose(infos["episode"]["r"], -infos["loss"], rtol=1e-5)
            assert (infos["episode"]["l"] == 4).all()
            finished += 1
    assert finished == 3


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize(
    "env_id", ["DiffCartPole-v0", "DiffChainedPendulum-v0", "DiffQuantumControl-v0", "DiffGuidance-v0"]
)
def test_compiled_steps_are_those_of_the_batch(env_id, mode, monkeypatch):
    if (env_id, mode) != ("DiffGuidance-v0", AutoresetMode.NEXT_STEP):  # the one with the most kinds of operations
        monkeypatch.setattr("bptt_envs.program.Program", Recorded)
    options = {"num_envs": NUM_ENVS, "horizon": HORIZON, "autoreset_mode": mode}
    plain, compiled = gym.make_vec(env_id, **options), gym.make_vec(env_id, **options, compile=True)
    plain.action_space.seed(0)
    for ours, theirs in zip(compiled.reset(seed=0), plain.reset(seed=0), strict=True):
        assert data_equivalence(ours, theirs)
    for _ in range(HORIZON + 3):
        actions = plain.action_space.sample()
        ours, theirs = compiled.step(actions), plain.step(actions)
        for one, other in zip(ours[:4], theirs[:4], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
        assert ours[4].keys() == theirs[4].keys()
    again = pickle.loads(pickle.dumps(compiled))
    np.testing.assert_array_equal(again.reset(seed=0)[0], compiled.reset(seed=0)[0])
    np.testing.assert_array_equal(again.step(actions)[0], compiled.step(actions)[0])
    states = plain.state.requires_grad_()
    compiled.step_differentiable(states, torch.zeros(actions.shape))[0].sum().backward()
    assert states.grad.isfinite().all()


def test_compile_is_true_or_false(env_id):
    with pytest.raises(ValueError, match=r"compile must be True or False; got 1\."):
        gym.make_vec(env_id, num_envs=2, compile=1)


def test_batches_can_be_pickled(make_vec):
    envs = make_vec(num_envs=2)
    envs.reset(seed=0)
    again = pickle.loads(pickle.dumps(envs))
    actions = envs.action_space.sample()
    for ours, theirs in zip(again.step(actions)[:2], envs.step(actions)[:2], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(again.reset()[0], envs.reset()[0])


# Where episodes stand


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
@pytest.mark.parametrize("make", [lambda: CartPole(horizon=HORIZON), lambda: Cliff(horizon=HORIZON)])
@pytest.mark.parametrize("done", [1, 3, HORIZON])
def test_episodes_go_on_from_where_those_of_another_stood(make, mode, done):
    def steps(env, count, seed):
        actions = np.random.default_rng(seed).uniform(-1, 1, (count, NUM_ENVS, 1)).astype(np.float32)
        return [env.step(action)[:4] for action in actions]

    first, other = (DifferentiableVectorEnv(make(), NUM_ENVS, autoreset_mode=mode) for _ in range(2))
    with pytest.raises(ResetNeeded):
        first.state_dict()
    first.reset(seed=1)
    other.reset(seed=2)
    steps(first, done, 0)
    stored = first.state_dict()
    expected = steps(first, 2 * HORIZON, 1)  # over the ends of episodes
    other.load_state_dict(stored)
    for one, two in zip(expected, steps(other, 2 * HORIZON, 1), strict=True):
        assert all(np.array_equal(*pair) for pair in zip(one, two, strict=True))
    more = DifferentiableVectorEnv(make(), NUM_ENVS + 1)
    more.reset(seed=0)
    with pytest.raises(ValueError, match=r"stored must hold states \(4, .\); got \(3, .\)"):
        more.load_state_dict(stored)
