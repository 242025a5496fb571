"""What is registered, how it is made, and what importing it costs."""

import csv
import re
import statistics
import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

import bptt_envs
from bptt_envs import DifferentiableEnv, DifferentiableVectorEnv
from bptt_envs.registration import ENTRIES, THRESHOLDS, system_class

ROOT = Path(__file__).parents[2]


def run_in_fresh_process(code):
    """Run `code`, warnings as errors, and return what it prints."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_is_light():
    heavy = ["stable_baselines3", "matplotlib", "pygame", "tensorboard", "bptt_trainers", "pandas", "PIL"]
    heavy += ["torchrl", "tensordict", "jax"]
    code = f"import bptt_envs, sys; print([name for name in {heavy} if name in sys.modules])"
    assert run_in_fresh_process(code).strip() == "[]"


def test_module_prefix_needs_no_import():
    code = f"""
import gymnasium
for env_id in {list(ENTRIES)}:
    env = gymnasium.make("bptt_envs:" + env_id)
    env.reset(seed=0)
    env.step(env.action_space.sample())
    envs = gymnasium.make_vec("bptt_envs:" + env_id, num_envs=2)
    envs.reset(seed=0)
    envs.step(envs.action_space.sample())
    print(env_id)
"""
    assert run_in_fresh_process(code).split() == list(ENTRIES)


def test_the_promised_ids_are_registered():
    assert {"DiffCartPole-v0", "DiffMultiPole-v0", "DiffIntegrator-v0"} <= set(ENTRIES) & set(gym.registry)


def test_make_makes_the_single_environment(env_id):
    env = gym.make(env_id)
    assert isinstance(env.unwrapped, DifferentiableEnv)
    assert env.unwrapped.system.class_name == system_class(env_id).__name__


def test_make_vec_makes_the_native_batch(env_id):
    envs = gym.make_vec(env_id, num_envs=64)
    assert isinstance(envs, DifferentiableVectorEnv)
    assert envs.num_envs == 64
    observations, _ = envs.reset(seed=0)
    assert observations in envs.observation_space
    assert observations.shape == (64, *envs.single_observation_space.shape)


def test_gymnasiums_own_vectorizers_work(env_id):
    envs = gym.make_vec(env_id, num_envs=2, vectorization_mode="sync")
    observations, _ = envs.reset(seed=0)
    assert observations in envs.observation_space


def test_options_reach_the_system():
    system = gym.make("DiffMultiPole-v0", n_poles=3, objective="continuous", horizon=7, dt=0.02).unwrapped.system
    assert (system.n_poles, system.objective, system.horizon, system.dt) == (3, "continuous", 7, 0.02)
    envs = gym.make_vec("DiffMultiPole-v0", num_envs=2, n_poles=4, dynamics="exact", autoreset_mode="SameStep")
    assert (envs.system.n_poles, envs.system.dynamics) == (4, "exact")
    assert envs.metadata["autoreset_mode"] is gym.vector.AutoresetMode.SAME_STEP


def test_a_built_system_can_be_used_without_registration():
    system = bptt_envs.systems.CartPole(horizon=3)
    assert DifferentiableEnv(system).horizon == 3
    assert DifferentiableVectorEnv(system, num_envs=2).horizon == 3


def test_spec_makes_the_same_environment_again():
    env = gym.make("DiffMultiPole-v0", n_poles=3, max_force=7.0)
    again = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    assert vars(again.unwrapped.system) == vars(env.unwrapped.system)


def test_register_adds_a_system(monkeypatch):
    monkeypatch.setattr(gym.envs.registration, "registry", dict(gym.registry))
    monkeypatch.setattr("bptt_envs.registration.ENTRIES", dict(ENTRIES))
    bptt_envs.register("TestFive-v0", "bptt_envs.systems:MultiPole", "five poles", n_poles=5)
    assert gym.make("TestFive-v0").unwrapped.system.n_poles == 5
    assert gym.make("TestFive-v0", n_poles=2).unwrapped.system.n_poles == 2
    assert gym.make_vec("TestFive-v0", num_envs=2).system.n_poles == 5
    assert system_class("TestFive-v0") is bptt_envs.systems.MultiPole


def test_register_refuses_what_is_no_import_path():
    with pytest.raises(ValueError, match=r'system must be an import path "module:Class"; got \'Pendulum\''):
        bptt_envs.register("TestNothing-v0", "Pendulum", "no module")
    assert "TestNothing-v0" not in gym.registry


def make_system():
    return bptt_envs.systems.CartPole()


@pytest.mark.parametrize("name", ["make_system", "ROOT"])
def test_register_refuses_at_once_what_is_there_and_no_system(name):
    with pytest.raises(ValueError, match=f"import path of a System; {__name__}:{name}, which is no System, is "):
        bptt_envs.register("TestNothing-v0", f"{__name__}:{name}", "no class")
    assert "TestNothing-v0" not in gym.registry
    assert "TestNothing-v0" not in ENTRIES


def test_unknown_id_suggests_the_near_one():
    with pytest.raises(ValueError, match=r"'DiffCartPool-v0'\. Did you mean 'DiffCartPole-v0'\? Registered: Diff"):
        system_class("DiffCartPool-v0")
    with pytest.raises(gym.error.NameNotFound, match="Did you mean: `DiffCartPole`"):
        gym.make("DiffCartPool-v0")


def test_the_spec_says_how_long_an_episode_is(env_id):
    assert gym.make(env_id).spec.max_episode_steps == gym.make(env_id).unwrapped.horizon
    env = gym.make(env_id, horizon=7)
    assert env.spec.max_episode_steps == env.unwrapped.spec.max_episode_steps == 7
    envs = gym.make_vec(env_id, num_envs=2, horizon=7)
    assert envs.spec.max_episode_steps == 7
    assert gym.make_vec(envs.spec).horizon == 7


def test_the_horizon_does_not_truncate():
    env = gym.make("DiffIntegrator-v0", horizon=3)
    env.reset(seed=0)
    assert [env.step([0.1])[2:4] for _ in range(3)] == [(False, False), (False, False), (True, False)]


def test_a_limit_before_the_final_cost_is_warned_of():
    env = gym.make("DiffCartPole-v0", max_episode_steps=50)
    with pytest.warns(UserWarning, match=r"max_episode_steps=50 cuts an episode of 100 steps off.*horizon=50"):
        env.reset(seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env.reset(seed=0)  # once is enough
        gym.make("DiffCartPole-v0", max_episode_steps=100).reset(seed=0)
        gym.make("DiffCartPole-v0", horizon=50, max_episode_steps=50).reset(seed=0)
    message = "max_episode_steps must not be less than the horizon, 100, .*; got 50. Shorten episodes with horizon=50"
    with pytest.raises(ValueError, match=message):
        gym.make_vec("DiffCartPole-v0", num_envs=2, max_episode_steps=50)


def test_the_time_of_gymnasiums_wrapper_runs_to_the_horizon(env_id):
    env = gym.wrappers.TimeAwareObservation(gym.make(env_id, horizon=3))
    env.reset(seed=0)
    times = [env.step(env.action_space.sample())[0][-1] for _ in range(3)]
    assert times == [1, 2, 3]
    assert env.observation_space.high[-1] == 3


def test_the_ids_are_a_group_of_their_own_in_gymnasiums_list():
    (group,) = re.findall(r"===== differentiable_env =====\n([^=]*)", gym.pprint_registry(disable_print=True))
    assert set(THRESHOLDS) <= set(group.split())
    others = {one for one, spec in gym.registry.items() if "differentiable_env" not in str(spec.entry_point)}
    assert not others & set(group.split())


def final_losses(path, env_id, options, methods):
    """The final losses of the runs in a file of results, by method; they are of an id with those options."""
    with (ROOT / path).open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["method"] in methods]
    asked = {f"{name}={value!r}" for name, value in options.items()}
    usual = {f"{name}={value!r}" for name, value in system_class(env_id).options().items()}
    for row in rows:
        assert row["env_id"] == env_id
        assert set(filter(None, row["options"].split("; "))) <= asked | usual
    return {method: [float(row["final_loss"]) for row in rows if row["method"] == method] for method in methods}


@pytest.mark.parametrize("env_id", THRESHOLDS)
def test_who_is_said_to_reach_the_reward_threshold_does(env_id):
    threshold = THRESHOLDS[env_id]
    assert gym.spec(env_id).reward_threshold == gym.make(env_id).spec.reward_threshold == threshold.reward
    methods, _, path = threshold.source.partition(": ")
    if path.startswith("results/"):
        for losses in final_losses(path, env_id, threshold.options, methods.split(", ")).values():
            assert statistics.median(losses) <= -threshold.reward


def test_the_thresholds_that_follow_from_the_best_controller_do():
    lqr = gym.make("DiffLQR-v0").unwrapped.system
    states = lqr.initial_states(100_000, torch.Generator().manual_seed(0), torch.float64)
    least = lqr.optimal_cost(states).mean().item()
    assert least == pytest.approx(1.80, abs=0.02)
    assert 1.0 < -THRESHOLDS["DiffLQR-v0"].reward / least < 1.1
    integrator = gym.make("DiffIntegrator-v0").unwrapped.system
    assert integrator.final_cost(torch.tensor([[integrator.target + 0.1]])).item() == pytest.approx(0.005, rel=1e-4)


def test_a_task_made_another_by_its_options_has_no_reward_threshold():
    same = {"max_force": 50, "observation": "cos_sin", "observe_time": True, "render_mode": "rgb_array", "horizon": 100}
    assert gym.make("DiffCartPole-v0", **same).spec.reward_threshold == -0.01
    assert gym.make_vec("DiffCartPole-v0", num_envs=2, max_force=50.0).spec.reward_threshold == -0.01
    of_numpy = {
        "max_force": np.int64(50),
        "horizon": np.int32(100),
        "gravity": np.float32(9.8),
        "observe_time": np.True_,
    }
    assert gym.make("DiffCartPole-v0", **of_numpy).spec.reward_threshold == -0.01
    assert gym.make("DiffCartPole-v0", gravity=np.float32(9.7)).spec.reward_threshold is None
    target = system_class("DiffPusher-v0").options()["target"]
    assert gym.make("DiffPusher-v0", target=[*target]).spec.reward_threshold == -0.005
    assert gym.make("DiffPusher-v0", target=np.array(target)).spec.reward_threshold == -0.005
    for options in (
        {"objective": "continuous"},
        {"max_force": 1.0},
        {"gravity": 1.0},
        {"randomize": {"gravity": (9, 10)}},
    ):
        assert gym.make("DiffCartPole-v0", **options).spec.reward_threshold is None
    assert gym.make("DiffLQR-v0", A=np.eye(1), B=np.eye(1)).spec.reward_threshold is None


def test_an_id_of_ones_own_may_have_a_reward_threshold(monkeypatch):
    monkeypatch.setattr(gym.envs.registration, "registry", dict(gym.registry))
    monkeypatch.setattr("bptt_envs.registration.ENTRIES", dict(ENTRIES))
    bptt_envs.register("TestSix-v0", "bptt_envs.systems:MultiPole", "six poles", reward_threshold=-0.5, n_poles=6)
    assert gym.make("TestSix-v0").spec.reward_threshold == -0.5
    assert gym.make("TestSix-v0", n_poles=2).spec.reward_threshold is None
    bptt_envs.register("TestNine-v0", "bptt_envs.systems:MultiPole", "nine poles", n_poles=9)
    assert gym.make("TestNine-v0").spec.reward_threshold is None


def test_rescaling_observations_without_bounds_is_refused(env_id):
    with pytest.raises(ValueError, match="unbounded"):
        gym.wrappers.RescaleObservation(gym.make(env_id), -1.0, 1.0)
