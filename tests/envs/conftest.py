"""Every environment, in the variations that the tests of this folder run over."""

import functools

import gymnasium as gym
import pytest

from bptt_envs.registration import ENTRIES
from bptt_envs.system import OBJECTIVES

ROTATION = {"A": [[0.9, 0.2, 0.0], [-0.2, 0.9, 0.1], [0.0, 0.0, 1.1]], "B": [[0.0, 0.1], [0.3, 0.0], [0.0, 0.5]]}
VARIATIONS = {  # a new id is tested with its defaults; add a row to test its options
    "DiffCartPole-v0": [
        {},
        {"observation": "cos_sin"},
        {"observation": "positions"},
        {"max_force": 5.0},
        {"observe_time": True},
    ],
    "DiffMultiPole-v0": [{}, {"n_poles": 5}, {"n_poles": 1, "dynamics": "exact"}, {"n_poles": 3, "dynamics": "exact"}],
    "DiffChainedPendulum-v0": [
        {},
        {"n_links": 1, "task": "balance", "observation": "positions"},
        {"n_links": 3, "joint_damping": 0.01, "observation": "cos_sin", "max_force": 20.0, "substeps": 1},
    ],
    "DiffQuadrotor-v0": [
        {},
        {"course": "obstacles", "n_obstacles": 2, "max_thrust": 7.0, "horizon": 20},
        {"course": "free", "control_weight": 0.0, "target": (-1.0, 0.5), "horizon": 20},
    ],
    "DiffHopper-v0": [
        {"horizon": 10, "substeps": 4},
        {"horizon": 10, "substeps": 4, "form": "vertical", "actuation": "torque", "max_action": 1.0},
    ],
    "DiffBouncingBall-v0": [{}, {"contact_gradient": "smooth", "max_force": 5.0}, {"n_balls": 2, "gravity": 1.0}],
    "DiffPusher-v0": [{"substeps": 3}, {"actuation": "velocity", "stiffness": 200.0, "target": (0.5, 0.5)}],
    "DiffQuantumControl-v0": [{}, {"n_points": 8, "target": 5, "max_control": 5.0}, {"weighting": 0.25, "target": 1}],
    "DiffGuidance-v0": [
        {},
        {"n_drivers": 1, "n_evaders": 1, "control_weight": 0.0},
        {"n_drivers": 3, "n_evaders": 2, "flocking": "cohesive", "target": (0.5, -0.25), "max_control": 1.0},
        {"observe_time": True},
    ],
    "DiffHeat-v0": [{}, {"n_cells": 5, "boundary": "walled", "n_actuators": None, "max_action": 2.0, "horizon": 5}],
    "DiffBurgers-v0": [
        {"n_cells": 8, "horizon": 8},
        {
            "n_cells": 6,
            "boundary": "walled",
            "target": (0.1, 0.2, 0.0, 0.0, 0.0, -0.1),
            "n_actuators": None,
            "max_action": 2.0,
            "horizon": 5,
        },
    ],
    "DiffKuramotoSivashinsky-v0": [{"horizon": 8}, {"n_points": 16, "n_sensors": 4, "max_action": 2.0, "horizon": 5}],
    "DiffLQR-v0": [{}, {"clock": True}, {**ROTATION, "clock": True, "max_action": 2.0}],
}
EVERY_VARIANT = [
    (env_id, options | {"objective": objective})
    for env_id in ENTRIES
    for options in VARIATIONS.get(env_id, [{}])
    for objective in OBJECTIVES
]


def _alternately():
    """Every variation with one of the objectives, every id with each: only costs look at it (test_rewards.py)."""
    for env_id in ENTRIES:
        of_id = [variant for variant in EVERY_VARIANT if variant[0] == env_id]
        yield from of_id if len(of_id) == 2 else (one for i, one in enumerate(of_id) if i % 4 in (0, 3))


VARIANTS = [*_alternately()]


def _name(variant):
    env_id, options = variant
    return "-".join([env_id, *(str(value) for value in options.values())])


@pytest.fixture(params=ENTRIES)
def env_id(request):
    return request.param


@pytest.fixture(params=VARIANTS, ids=_name)
def variant(request):
    """An id and its options."""
    return request.param


@pytest.fixture(params=EVERY_VARIANT, ids=_name)
def every_variant(request):
    """The same, with each objective."""
    return request.param


@pytest.fixture
def make(variant):
    """`gym.make` of the variant."""
    env_id, options = variant
    return functools.partial(gym.make, env_id, **options)


@pytest.fixture
def make_vec(variant):
    """`gym.make_vec` of the variant."""
    env_id, options = variant
    return functools.partial(gym.make_vec, env_id, **options)


@pytest.fixture
def system(make):
    return make().unwrapped.system
