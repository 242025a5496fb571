"""The checkers of Gymnasium and stable-baselines3 have nothing to say that a user would have to explain away."""

import warnings

import gymnasium as gym
import pytest
import stable_baselines3.common.env_checker as sb3
from gymnasium.utils.env_checker import check_env

NORMALISED_ACTIONS = "symmetric and normalized"  # actions are forces, in newtons
UNBOUNDED = "infinity. This is probably too"  # observations, below and above: Gymnasium would rather have bounds
NOT_A_VECTOR = "unconventional shape"  # a wave function: points, real and imaginary part


def complaints(check, env):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check(env)
    return [str(warning.message) for warning in caught]


def to_be_said(env, check):
    """The remarks that an environment is right to cause."""
    looked_at = check is sb3.check_env or len(env.action_space.shape) == 1  # Gymnasium looks at vectors only
    in_newtons = looked_at and bool(env.action_space.high.max() > 1.0)
    neither_vector_nor_image = check is sb3.check_env and len(env.observation_space.shape) == 2
    said = [NORMALISED_ACTIONS] * in_newtons + [NOT_A_VECTOR] * neither_vector_nor_image
    return said + [UNBOUNDED] * 2 * (check is check_env)


def only(remarks, said):
    return len(said) == len(remarks) and all(any(remark in message for message in said) for remark in remarks)


@pytest.mark.parametrize("check", [check_env, sb3.check_env], ids=["gymnasium", "stable-baselines3"])
def test_checker_passes(env_id, check):
    env = gym.make(env_id).unwrapped
    assert only(to_be_said(env, check), complaints(check, env))


def test_checker_passes_with_every_option(make):
    env = make()
    assert only(to_be_said(env, sb3.check_env), complaints(sb3.check_env, env))


def test_rescaled_actions_leave_nothing_to_say_of_them(env_id):
    env = gym.wrappers.RescaleAction(gym.make(env_id), -1, 1)
    assert only(to_be_said(env, sb3.check_env), complaints(sb3.check_env, env))
