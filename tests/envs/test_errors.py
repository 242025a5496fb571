"""Errors name the argument, the value it got and what would be right, before anything is done."""

import re

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded

from bptt_envs import DifferentiableEnv
from bptt_envs.registration import ENTRIES, system_class
from bptt_envs.systems import CartPole

NAN, INF = float("nan"), float("inf")
ONE_ACTION = [env_id for env_id in ENTRIES if system_class(env_id)().action_shape == (1,)]

BAD_OPTIONS = [
    ("DiffCartPole-v0", {"objective": "finale"}, r"objective .* 'final', 'continuous'; got 'finale'.*mean 'final'\?"),
    ("DiffCartPole-v0", {"objective": None}, "objective must be one of 'final', 'continuous'; got None"),
    ("DiffMultiPole-v0", {"dynamics": "exakt"}, r"dynamics .* 'paper', 'exact'; got 'exakt'. Did you mean 'exact'\?"),
    (
        "DiffCartPole-v0",
        {"observation": "sin_cos"},
        "observation must be one of 'state', 'cos_sin', 'positions'; got",
    ),
    ("DiffMultiPole-v0", {"n_poles": 0}, "n_poles must be an integer of at least 1; got 0"),
    ("DiffMultiPole-v0", {"n_poles": 1.5}, "n_poles must be an integer of at least 1; got 1.5"),
    ("DiffMultiPole-v0", {"n_poles": True}, "n_poles must be an integer of at least 1; got True"),
    ("DiffCartPole-v0", {"horizon": 0}, "horizon must be an integer of at least 1; got 0"),
    ("DiffCartPole-v0", {"horizon": "100"}, "horizon must be an integer of at least 1; got '100'"),
    ("DiffCartPole-v0", {"dt": 0.0}, "dt must be a finite number above 0; got 0.0"),
    ("DiffCartPole-v0", {"dt": -0.01}, "dt must be a finite number above 0; got -0.01"),
    ("DiffCartPole-v0", {"dt": NAN}, "dt must be a finite number above 0; got nan"),
    ("DiffCartPole-v0", {"max_force": 0}, "max_force must be a finite number above 0; got 0"),
    ("DiffCartPole-v0", {"max_force": -50}, "max_force must be a finite number above 0; got -50"),
    ("DiffCartPole-v0", {"max_force": INF}, "max_force must be a finite number above 0; got inf"),
    ("DiffIntegrator-v0", {"max_action": -1.0}, "max_action must be a finite number above 0; got -1.0"),
    ("DiffIntegrator-v0", {"target": NAN}, "target must be a finite number; got nan"),
    ("DiffQuantumControl-v0", {"target": 33}, "target must be an eigenstate from 1 to n_points = 32; got 33"),
    ("DiffQuantumControl-v0", {"target": 0}, "target must be an integer of at least 1; got 0"),
    ("DiffQuantumControl-v0", {"target": 3, "n_points": 2}, "an eigenstate from 1 to n_points = 2; got 3"),
    ("DiffQuantumControl-v0", {"n_points": 1}, "n_points must be at least 2, for the two eigenstates .*; got 1"),
    ("DiffQuantumControl-v0", {"box_length": 0.0}, "box_length must be a finite number above 0; got 0.0"),
    ("DiffQuantumControl-v0", {"weighting": 1.5}, "weighting must be a number from 0 to 1; got 1.5"),
    ("DiffQuantumControl-v0", {"weighting": "even"}, "weighting must be a number from 0 to 1; got 'even'"),
    ("DiffQuantumControl-v0", {"max_control": -1.0}, "max_control must be a finite number above 0; got -1.0"),
    (
        "DiffQuantumControl-v0",
        {"dt": 0.003},
        r"dt=0.003 .* n_points=32 and box_length=2 .* a larger dt or fewer points",
    ),
    ("DiffGuidance-v0", {"control_weight": -0.1}, "control_weight must be a finite number of at least 0; got -0.1"),
    ("DiffGuidance-v0", {"target": 1.0}, r"target must be a pair of finite numbers, such as \(0.0, 0.0\); got 1.0"),
    ("DiffGuidance-v0", {"target": (0.0, NAN)}, r"target must be a pair of finite numbers.*; got \(0.0, nan\)"),
    ("DiffGuidance-v0", {"target": [0.0, 0.0, 0.0]}, r"target must be a pair .*; got \[0.0, 0.0, 0.0\]"),
    ("DiffGuidance-v0", {"flocking": "published"}, r"'as_published', 'cohesive'; got .* Did you mean 'as_published'\?"),
    ("DiffGuidance-v0", {"repulsion_floor": 0}, "repulsion_floor must be a finite number above 0; got 0"),
    ("DiffGuidance-v0", {"n_drivers": 0}, "n_drivers must be an integer of at least 1; got 0"),
    ("DiffGuidance-v0", {"n_evaders": 2.5}, "n_evaders must be an integer of at least 1; got 2.5"),
    ("DiffGuidance-v0", {"max_control": 0.0}, "max_control must be a finite number above 0; got 0.0"),
    ("DiffCartPole-v0", {"max_forse": 5}, r"no option 'max_forse'. Did you mean 'max_force'\? Its options: objective,"),
    ("DiffCartPole-v0", {"n_poles": 2}, r"no option 'n_poles'.* Its options: .*horizon, dt, .*observe_time\."),
]


@pytest.mark.parametrize(("env_id", "options", "message"), BAD_OPTIONS, ids=[str(row[1]) for row in BAD_OPTIONS])
def test_bad_option(env_id, options, message):
    with pytest.raises(ValueError, match=message):
        gym.make(env_id, **options)
    with pytest.raises(ValueError, match=message):
        gym.make_vec(env_id, num_envs=2, **options)


def test_bad_number_of_environments(env_id):
    with pytest.raises(ValueError, match="num_envs must be an integer of at least 1; got 0"):
        gym.make_vec(env_id, num_envs=0)


def test_bad_autoreset_mode(env_id):
    with pytest.raises(ValueError, match=r"autoreset_mode .*'NextStep'.*; got 'samestep'. Did you mean 'SameStep'\?"):
        gym.make_vec(env_id, num_envs=2, autoreset_mode="samestep")


def test_options_with_a_built_system():
    with pytest.raises(ValueError, match=r"options \['dt'\] were given with a built system; pass them to CartPole"):
        DifferentiableEnv(CartPole(), dt=0.1)


def test_step_before_reset(env_id):
    env, envs = gym.make(env_id).unwrapped, gym.make_vec(env_id, num_envs=2)
    for one in (env, envs):
        with pytest.raises(ResetNeeded, match="no state yet; call reset first"):
            one.step(np.zeros(one.action_space.shape, np.float32))
        with pytest.raises(ResetNeeded, match="no state yet; call reset first"):
            _ = one.state


def test_step_after_the_end(env_id):
    env = gym.make(env_id, horizon=2)
    action = np.zeros(env.action_space.shape, np.float32)
    env.reset(seed=0)
    env.step(action)
    env.step(action)
    with pytest.raises(ResetNeeded, match="after the episode's 2 steps; call reset"):
        env.step(action)
    env.reset()
    env.step(action)


BAD_ACTIONS = [
    ([NAN], r"action must be finite; got \[nan\]"),
    ([-INF], r"action must be finite; got \[-inf\]"),
    ([1e300], r"action must be finite; got \[1e\+300\]"),
    (1.0, r"action must have shape \(1,\); got shape \(\)"),
    ([1.0, 2.0], r"action must have shape \(1,\); got shape \(2,\)"),
    ([[1.0]], r"action must have shape \(1,\); got shape \(1, 1\)"),
    (["left"], r"action must be numbers of shape \(1,\); got \['left'\]"),
    (None, r"action must have shape \(1,\); got shape \(\)"),
]


@pytest.mark.parametrize("env_id", ONE_ACTION)
@pytest.mark.parametrize(("action", "message"), BAD_ACTIONS, ids=[str(row[0]) for row in BAD_ACTIONS])
def test_bad_action(env_id, action, message):
    env = gym.make(env_id).unwrapped
    env.reset(seed=0)
    before = env.state
    with pytest.raises(ValueError, match=message):
        env.step(action)
    assert torch.equal(env.state, before), "a refused action changes nothing"
    assert env._steps == 0


@pytest.mark.parametrize("env_id", ONE_ACTION)
def test_bad_actions_of_a_batch(env_id):
    envs = gym.make_vec(env_id, num_envs=3)
    envs.reset(seed=0)
    before = envs.state
    with pytest.raises(ValueError, match=r"action must have shape \(3, 1\); got shape \(1,\)"):
        envs.step([0.0])
    with pytest.raises(ValueError, match="action must be finite; got"):
        envs.step([[0.0], [NAN], [0.0]])
    assert torch.equal(envs.state, before)
    assert envs._steps.tolist() == [0, 0, 0]


@pytest.mark.parametrize("env_id", ONE_ACTION)
@pytest.mark.parametrize(
    "action",
    [
        [0.5],
        np.array([0.5]),
        np.broadcast_to(np.float32(0.5), (1,)),
        np.array([0.0, 0.5], np.float32)[::-1][:1],
        torch.tensor([0.5], requires_grad=True),
    ],
    ids=["list", "float64", "read-only", "reversed", "torch"],
)
def test_any_array_of_numbers_is_an_action(env_id, action):
    env, twin = gym.make(env_id).unwrapped, gym.make(env_id).unwrapped
    env.reset(seed=0)
    twin.reset(seed=0)
    np.testing.assert_array_equal(env.step(action)[0], twin.step(np.array([0.5], np.float32))[0])


def test_bad_reset_options(env_id):
    env, envs = gym.make(env_id), gym.make_vec(env_id, num_envs=2)
    shape = env.unwrapped.system.state_shape
    with pytest.raises(ValueError, match=r"reset has no option 'stat'. Did you mean 'state'\? Its options: state\."):
        env.reset(options={"stat": np.zeros(shape)})
    with pytest.raises(ValueError, match=r"no option 'mask'.* Its options: state, reset_mask\."):
        envs.reset(options={"mask": [True, False]})
    with pytest.raises(ValueError, match=r"options\['state'\] must have shape .*; got shape \(7,\)"):
        env.reset(options={"state": np.zeros(7)})
    with pytest.raises(ValueError, match=r"options\['state'\] must be finite; got"):
        env.reset(options={"state": np.full(shape, NAN)})
    with pytest.raises(ValueError, match=r"options\['state'\] must have shape \(2, .*; got shape"):
        envs.reset(options={"state": np.zeros(shape)})
    for mask in ([True], np.array([1, 0]), "all"):
        with pytest.raises(ValueError, match=r"options\['reset_mask'\] must be a bool array of shape \(2,\); got"):
            envs.reset(options={"reset_mask": mask})


def test_first_reset_must_start_every_environment(env_id):
    envs = gym.make_vec(env_id, num_envs=3)
    with pytest.raises(ResetNeeded, match=r"first reset must start every environment; .* leaves out \[0, 2\]"):
        envs.reset(options={"reset_mask": np.array([False, True, False])})


def test_bad_shapes_in_differentiable_calls(make):
    env = make().unwrapped
    state, action = torch.zeros(3, *env.system.state_shape), torch.zeros(3, *env.system.action_shape)
    longer_state, longer_action = (torch.zeros(*x.shape[:-1], x.shape[-1] + 1) for x in (state, action))

    def refused(name, wanted, got):
        shape = f"(B, {', '.join(map(str, wanted.shape[1:]))})"
        return re.escape(f"{name} must be a tensor of shape {shape}; got shape {tuple(got.shape)}")

    with pytest.raises(ValueError, match=refused("state", state, state[0])):
        env.step_differentiable(state[0], action)
    with pytest.raises(ValueError, match=refused("state", state, longer_state)):
        env.step_differentiable(longer_state, action)
    with pytest.raises(ValueError, match=refused("action", action, longer_action)):
        env.step_differentiable(state, longer_action)
    with pytest.raises(ValueError, match=refused("action", action, action[:, 0])):
        env.step_differentiable(state, action[:, 0])
    with pytest.raises(ValueError, match="same number of samples; got 3 and 2"):
        env.step_differentiable(state, action[:2])
    with pytest.raises(ValueError, match=r"state must be a tensor of shape \(B, .*\); got array"):
        env.step_differentiable(state.numpy(), action)
    for method in (env.final_reward, env.observe):
        with pytest.raises(ValueError, match=refused("state", state, state[0])):
            method(state[0])
    with pytest.raises(ValueError, match=r"Of a single sample, that is state\[None\]\."):
        env.observe(state[0])
