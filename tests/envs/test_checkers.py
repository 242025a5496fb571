"""The checkers of Gymnasium and stable-baselines3 have nothing to say that a user would have to explain away."""

import warnings

import gymnasium as gym
import pytest
import stable_baselines3.common.env_checker as sb3
from gymnasium.utils.env_checker import check_env

NORMALISED_ACTIONS = "recommend"  # ... a symmetric and normalized action space: actions are forces, in newtons


def complaints(check, env):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check(env)
    return [str(warning.message) for warning in caught]


def in_newtons(env):
    return env.action_space.high.max() > 1.0


@pytest.mark.parametrize("check", [check_env, sb3.check_env], ids=["gymnasium", "stable-baselines3"])
def test_checker_passes(env_id, check):
    env = gym.make(env_id).unwrapped
    said = complaints(check, env)
    assert len(said) == (1 if in_newtons(env) else 0)
    assert all(NORMALISED_ACTIONS in message and "normalized" in message for message in said)


def test_checker_passes_with_every_option(make):
    assert all(NORMALISED_ACTIONS in message for message in complaints(sb3.check_env, make()))


def test_rescaled_actions_leave_nothing_to_say(env_id):
    env = gym.wrappers.RescaleAction(gym.make(env_id), -1, 1)
    assert complaints(sb3.check_env, env) == []
