"""The same seed gives the same episode, singly and vectorised."""

import gymnasium as gym
import numpy as np
import pytest
import torch


def play(env, seed, episodes=1):
    """Observations and rewards of `episodes` episodes, the actions seeded too."""
    env.action_space.seed(1)
    seen = []
    for episode in range(episodes):
        seen.append(env.reset(seed=seed if episode == 0 else None)[0])
        for _ in range(env.unwrapped.horizon):
            observation, reward, *_ = env.step(env.action_space.sample())
            seen += [observation, reward]
    return seen


def same(first, second):
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_same_seed_gives_the_same_episode(make):
    assert same(play(make(horizon=5), 7, episodes=3), play(make(horizon=5), 7, episodes=3))


def test_same_seed_gives_the_same_episodes_in_a_batch(make_vec):
    first, second = (play(make_vec(num_envs=3, horizon=5), 7, episodes=2) for _ in range(2))
    assert same(first, second)


def test_same_seed_gives_the_same_autoreset(env_id):
    for mode in ("NextStep", "SameStep"):
        starts = []
        for _ in range(2):
            envs = gym.make_vec(env_id, num_envs=3, horizon=2, autoreset_mode=mode)
            envs.reset(seed=5)
            starts.append([envs.step(np.zeros(envs.action_space.shape, np.float32))[0] for _ in range(8)])
        assert same(*starts)


def test_different_seeds_differ(env_id):
    env, envs = gym.make(env_id), gym.make_vec(env_id, num_envs=2)
    assert not np.array_equal(env.reset(seed=0)[0], env.reset(seed=1)[0])
    assert not np.array_equal(envs.reset(seed=0)[0], envs.reset(seed=2)[0])


def test_reset_without_a_seed_continues_the_stream(env_id):
    env = gym.make(env_id)
    first = [env.reset(seed=4)[0], env.reset()[0], env.reset()[0]]
    second = [env.reset(seed=4)[0], env.reset()[0], env.reset()[0]]
    assert same(first, second)
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(first[1], first[2])


def test_reset_without_any_seed_is_random(env_id):
    assert not np.array_equal(gym.make(env_id).reset()[0], gym.make(env_id).reset()[0])
    batches = [gym.make_vec(env_id, num_envs=2).reset()[0] for _ in range(2)]
    assert not np.array_equal(*batches)


def test_environments_of_a_batch_differ(env_id):
    observations, _ = gym.make_vec(env_id, num_envs=16).reset(seed=0)
    assert len(np.unique(observations, axis=0)) == 16


def test_environment_i_starts_like_a_single_one_with_seed_plus_i(make, make_vec):
    envs, env = make_vec(num_envs=3), make()
    for seeds in (11, [11, 12, 13], np.int64(11)):
        observations, _ = envs.reset(seed=seeds)
        for i in range(3):
            np.testing.assert_array_equal(observations[i], env.reset(seed=11 + i)[0])


def test_native_batch_starts_like_gymnasiums_vectorizer(env_id):
    native, looped = (gym.make_vec(env_id, num_envs=3, vectorization_mode=m) for m in ("vector_entry_point", "sync"))
    np.testing.assert_array_equal(native.reset(seed=2)[0], looped.reset(seed=2)[0])


def test_a_list_of_seeds_must_have_one_for_each_environment(env_id):
    with pytest.raises(ValueError, match="seed must hold one seed for each of the 3 environments; got 2"):
        gym.make_vec(env_id, num_envs=3).reset(seed=[1, 2])


def test_start_states_come_from_the_generator_handed_in(env_id):
    env, envs = gym.make(env_id).unwrapped, gym.make_vec(env_id, num_envs=2)
    global_state = torch.get_rng_state()
    first, second = (env.initial_states(5, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
    for one in (env, envs):
        one.reset(seed=0)
        one.reset()
    assert torch.equal(torch.get_rng_state(), global_state), "torch's own generator is the user's"


def test_start_states_come_from_torchs_generator_if_none_is_handed_in(env_id):
    env = gym.make(env_id).unwrapped
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, second = env.initial_states(5), env.initial_states(5)
        torch.manual_seed(0)
        assert torch.equal(env.initial_states(5), first)
    assert not torch.equal(first, second)


def test_seed_is_reported(env_id):
    env, envs = gym.make(env_id), gym.make_vec(env_id, num_envs=2)
    env.reset(seed=9)
    envs.reset(seed=9)
    assert env.unwrapped.np_random_seed == envs.np_random_seed == 9
