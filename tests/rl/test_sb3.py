"""Reinforcement learning sees the same physics, is judged by the same loss, and keeps what it has learnt."""

import math
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecCheckNan

from bptt_envs import DifferentiableEnv
from bptt_envs.systems import CartPole, Integrator, MultiPole
from bptt_trainers import RunFolderError, held_out_states, losses, rollout
from bptt_trainers.controllers.baselines import RandomController, ZeroController
from bptt_trainers.presets.presets import PRESETS, parse_overrides, preset
from bptt_trainers.rl.sb3 import RLConfig, RLController, load_rl, train_rl
from bptt_trainers.rl.sb3_env import SB3VecEnv
from bptt_trainers.rl.view import RLView

HORIZON = 7
TINY = {"num_envs": 8, "n_steps": 16, "batch_size": 64, "n_epochs": 2, "hidden": (16,)}


def start_states(system, count=3):
    return system.initial_states(count, torch.Generator().manual_seed(5))


def shares(count, horizon=HORIZON, size=1):
    return np.random.default_rng(0).uniform(-1, 1, (horizon, count, size)).astype(np.float32)


def episode(env, states, actions):
    """Observations, rewards, dones and infos of one episode from `states`."""
    env.set_options([{"state": state} for state in states])
    steps = [(env.reset(), None, None, None), *(env.step(action) for action in actions)]
    return [list(part) for part in zip(*steps, strict=True)]


# The environments of stable-baselines3


def test_adapter_takes_an_id_with_its_options():
    env = SB3VecEnv("DiffMultiPole-v0", num_envs=2, n_poles=3, horizon=HORIZON)
    assert env.view.system.n_poles == 3
    assert env.reset().shape == (2, 2 + 2 * 3 + 1)
    with pytest.raises(ValueError, match=r"has no option 'n_pole'\. Did you mean 'n_poles'"):
        SB3VecEnv("DiffMultiPole-v0", 2, n_pole=3)
    with pytest.raises(ValueError, match=r"options go with an id, .* got horizon beside <.*CartPole"):
        SB3VecEnv(CartPole(), 2, horizon=5)


@pytest.mark.parametrize("objective", ["final", "continuous"])
@pytest.mark.parametrize("max_force", [None, 10.0])
def test_adapter_runs_the_episodes_of_the_plain_environment(objective, max_force):
    system = MultiPole(n_poles=2, horizon=HORIZON, objective=objective, max_force=max_force, observation="cos_sin")
    states, actions = start_states(system), shares(3)
    observations, rewards, dones, infos = episode(SB3VecEnv(system, 3), states, actions)
    unit = 50.0 if max_force is None else max_force
    for i, state in enumerate(states):
        plain = DifferentiableEnv(system)
        expected, _ = plain.reset(options={"state": state})
        for t in range(HORIZON):
            np.testing.assert_allclose(observations[t][i], [*expected, t / HORIZON], rtol=1e-6)
            expected, reward, ended, _, info = plain.step(unit * actions[t, i])
            assert rewards[t + 1][i] == pytest.approx(reward, abs=1e-6)
            assert dones[t + 1][i] == ended == (t == HORIZON - 1)
        last = infos[-1][i]
        np.testing.assert_allclose(last["terminal_observation"], [*expected, 1.0], rtol=1e-6)
        assert last["episode"]["r"] == pytest.approx(-info["loss"], abs=1e-6)
        assert last["episode"]["l"] == HORIZON
    assert all("terminal_observation" not in info for step in infos[1:-1] for info in step)


def test_rewards_add_up_to_minus_the_loss_and_when_dense_to_the_fall_of_the_cost():
    system = CartPole(horizon=HORIZON)
    states, actions = start_states(system), shares(3)
    forces = torch.from_numpy(50.0 * actions)
    state = states
    for force in forces:
        state = system.step(state, force)
    loss, start = system.final_cost(state), system.final_cost(states)
    for dense, expected in ((False, -loss), (True, start - loss)):
        rewards = episode(SB3VecEnv(system, 3, dense=dense), states, actions)[1]
        np.testing.assert_allclose(np.sum(rewards[1:], axis=0), expected, atol=1e-5)


def test_an_ended_episode_is_followed_by_the_next_at_step_0():
    env = VecCheckNan(SB3VecEnv(CartPole(horizon=HORIZON), 4), raise_exception=True)
    env.seed(1)
    first = env.reset()
    for action in shares(4):
        observations, _, dones, _ = env.step(action)
    assert dones.all()
    assert observations[:, -1].tolist() == [0.0] * 4
    assert (np.abs(observations[:, 2] - np.pi) <= np.pi / 6).all()
    assert not np.isclose(observations, first)[:, :-1].any()
    assert not env.step(shares(4)[0])[2].any()


def test_same_seed_gives_the_same_episodes():
    def observe(seed):
        env = SB3VecEnv(CartPole(horizon=2), 3)
        env.seed(seed)
        return np.concatenate([env.reset(), *(env.step(action)[0] for action in shares(3, 5))])

    np.testing.assert_array_equal(observe(1), observe(1))
    assert not np.isclose(observe(1), observe(2))[:, :-1].any()


def test_actions_beyond_the_range_are_clamped():
    system = CartPole(horizon=HORIZON)
    states, beyond = start_states(system), 3.0 * np.ones((HORIZON, 3, 1), np.float32)
    clamped, raw = (episode(SB3VecEnv(system, 3), states, actions)[0] for actions in (beyond / 3.0, beyond))
    np.testing.assert_array_equal(clamped[:-1], raw[:-1])  # the last are those of the next episode


def test_a_state_for_some_of_the_environments_is_an_error():
    env = SB3VecEnv(CartPole(), 3)
    env.set_options([{"state": torch.zeros(4)}, {}, {}])
    with pytest.raises(ValueError, match="state for each of the 3 environments; got 1"):
        env.reset()


def test_the_id_itself_serves_plain_stable_baselines3():
    model = PPO("MlpPolicy", "DiffCartPole-v0", n_steps=64, n_epochs=1, device="cpu")
    model.learn(64)
    assert np.isfinite(model.predict(np.zeros(4, np.float32))[0]).all()


# Judging


class LinearPolicy:
    """Acts on what it is given, without clipping: a policy whose actions are known."""

    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        return (observation[:, 3:4] - observation[:, -1:]).astype(np.float32), state


@pytest.mark.parametrize("objective", ["final", "continuous"])
def test_judging_a_known_controller_equals_its_rollout_on_the_system(objective):
    system = MultiPole(n_poles=2, horizon=HORIZON, objective=objective, max_force=20.0)
    states = start_states(system, 5)
    mean, var = np.linspace(-1, 1, 7), np.linspace(0.5, 2, 7)
    controller = RLController(LinearPolicy(), mean, var)

    step = iter(range(HORIZON))

    def in_newtons(observation):
        full = torch.cat([observation, torch.full((5, 1), next(step) / HORIZON)], -1).double()
        normal = (full - torch.from_numpy(mean)) / torch.from_numpy(var + 1e-8).sqrt()
        return (20.0 * (normal[:, 3:4] - normal[:, -1:])).float()

    expected = rollout(system, in_newtons, states)
    trajectory = controller.rollout(system, states)
    torch.testing.assert_close(trajectory.states, expected.states, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(trajectory.actions, expected.actions.clamp(-20, 20), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(controller.evaluate(system, states), losses(system, expected), rtol=1e-5, atol=1e-6)


def test_the_judge_agrees_with_stable_baselines3():
    config = RLConfig(env_options={"horizon": HORIZON}, steps=256, evaluations=1, overrides=TINY)
    controller = train_rl(config, progress=False).controller
    system = config.judged_system()
    env = SB3VecEnv(system, 4)
    states = start_states(system, 4)
    env.set_options([{"state": state} for state in states])
    rewards, _ = evaluate_policy(controller, env, n_eval_episodes=4, return_episode_rewards=True)
    np.testing.assert_allclose(rewards, -controller.evaluate(system, states), atol=1e-5)


def test_the_view_steps_systems_of_any_shape():
    class Grid(Integrator):
        state_shape = (2, 3)
        action_shape = (2, 3)

        def initial_states(self, batch, generator, dtype=torch.float32):
            return torch.rand(batch, 2, 3, generator=generator, dtype=dtype)

    view = RLView(Grid())
    state = view.initial_states(4, torch.Generator().manual_seed(0))
    action = torch.full((4, 2, 3), 0.5)
    after = view.step(state, action)
    assert view.observe(after).shape == (4, 7) == (4, *view.observation_shape)
    torch.testing.assert_close(view.inner(after), view.inner(state) + 0.5)
    assert after[:, -1].tolist() == [1.0] * 4


def test_floors():
    system = CartPole(horizon=HORIZON, max_force=3.0)
    observations = torch.zeros(1000, 4)
    assert ZeroController(system)(observations).abs().max() == 0
    actions = RandomController(system, seed=1)(observations)
    assert actions.shape == (1000, 1)
    assert 2.9 < actions.abs().max() <= 3.0
    assert abs(actions.mean()) < 0.2
    torch.testing.assert_close(actions, RandomController(system, seed=1)(observations))
    assert RandomController(CartPole())(observations).abs().max() > 40.0  # the nominal range


# Presets


def test_a_preset_is_its_row_with_the_overrides():
    row = preset("PPO", "DiffCartPole-v0", {"num_envs": 128, "learning_rate": 1, "hidden": [32]}, name="paper")
    assert row == PRESETS["PPO"] | {"num_envs": 128, "learning_rate": 1.0, "hidden": (32,)}
    assert preset("SAC", "DiffCartPole-v0", {"ent_coef": 0.1})["ent_coef"] == 0.1
    assert PRESETS["PPO"]["num_envs"] == 64


@pytest.mark.parametrize(
    ("method", "overrides", "message"),
    [
        ("PP0", {}, "Did you mean 'PPO'"),
        ("PPO", {"num_env": 3}, "no setting 'num_env' to override. Did you mean 'num_envs'"),
        ("PPO", {"tau": 0.1}, "PPO has no setting 'tau'"),
        ("PPO", {"num_envs": 2.5}, "num_envs must be an integer of at least 1; got 2.5"),
        ("PPO", {"num_envs": True}, "num_envs must be an integer of at least 1; got True"),
        ("PPO", {"num_envs": 0}, "num_envs must be an integer of at least 1"),
        ("PPO", {"batch_size": 641}, r"batch_size must divide num_envs \* n_steps"),
        ("PPO", {"learning_rate": "fast"}, "learning_rate must be a finite number above 0; got 'fast'"),
        ("PPO", {"learning_rate": math.nan}, "learning_rate must be a finite number above 0"),
        ("PPO", {"gamma": 1.5}, "gamma must be a number from 0 to 1"),
        ("SAC", {"activation": "gelu"}, "activation must be one of 'relu', 'tanh'"),
        ("SAC", {"objective": "last"}, "objective must be one of"),
        ("SAC", {"hidden": (0,)}, "hidden must be an integer of at least 1"),
    ],
)
def test_wrong_settings_are_refused_in_words(method, overrides, message):
    with pytest.raises(ValueError, match=message):
        RLConfig(method=method, overrides=overrides)


def test_overrides_from_the_command_line():
    texts = ["PPO.num_envs=32", "PPO.hidden=(64, 64)", "SAC.ent_coef=auto_0.1", "PPO.dense=false", "C.clip=none"]
    texts += ["R decay 0.9.batch_size=4"]
    assert parse_overrides(texts) == {
        "PPO": {"num_envs": 32, "hidden": (64, 64), "dense": False},
        "SAC": {"ent_coef": "auto_0.1"},
        "C": {"clip": "none"},
        "R decay 0.9": {"batch_size": 4},
    }
    with pytest.raises(ValueError, match=r"METHOD\.NAME=VALUE"):
        parse_overrides(["num_envs=32"])


def test_cos_sin_is_chosen_where_the_system_has_it_unless_the_user_does():
    assert RLConfig().judged_system().observation_shape == (5,)
    assert RLConfig(overrides={"observation": "state"}).judged_system().observation_shape == (4,)
    assert RLConfig(env_options={"observation": "state"}).judged_system().observation_shape == (4,)
    assert RLConfig(env="DiffIntegrator-v0").judged_system().observation_shape == (1,)


def test_trained_on_one_objective_and_judged_by_another():
    config = RLConfig(overrides={"objective": "continuous"})
    assert config.trained_system().objective == "continuous"
    assert config.judged_system().objective == "final"


# Training

INTEGRATOR = {"env": "DiffIntegrator-v0", "evaluations": 4, "test_states": 64}


def test_ppo_learns():
    config = RLConfig(**INTEGRATOR, steps=8192, overrides=TINY | {"n_epochs": 8, "learning_rate": 3e-3})
    curve = train_rl(config, progress=False).curve
    assert curve[0].simulator_steps == 0
    assert curve[-1].simulator_steps == 8192
    assert [point.simulator_steps for point in curve] == sorted({point.simulator_steps for point in curve})
    assert curve[0].seconds < curve[-1].seconds
    assert curve[-1].test_loss < 0.05 < 0.5 < curve[0].test_loss


def test_sac_learns():
    overrides = {"num_envs": 8, "learning_starts": 128, "batch_size": 64, "gradient_steps": 2, "hidden": (32,)}
    config = RLConfig(**INTEGRATOR, method="SAC", steps=2048, overrides=overrides | {"learning_rate": 3e-3})
    curve = train_rl(config, progress=False).curve
    assert curve[-1].test_loss < 0.2 < 0.5 < curve[0].test_loss


def test_the_last_evaluation_is_that_of_the_controller_that_is_kept():
    config = RLConfig(**INTEGRATOR, steps=500, overrides=TINY)
    run = train_rl(config, progress=False)
    system = config.judged_system()
    loss = run.controller.evaluate(system, held_out_states(system, 64)).mean()
    assert run.curve[-1].test_loss == pytest.approx(float(loss), rel=1e-6)
    assert run.curve[-1].simulator_steps == 512  # whole updates


def test_same_seed_gives_the_same_run_and_leaves_torchs_generator_alone():
    def run(seed):
        config = RLConfig(**INTEGRATOR, steps=256, seed=seed, overrides=TINY)
        return [point.test_loss for point in train_rl(config, progress=False).curve]

    before = torch.get_rng_state()
    assert run(0) == run(0) != run(1)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_finished_run_is_loaded_and_not_computed_again(tmp_path):
    config = RLConfig(**INTEGRATOR, steps=256, overrides=TINY, record=())
    run = train_rl(config, tmp_path / "run", progress=False)
    files = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}
    assert sorted(files) == ["best.pt", "config.json", "last.pt", "metrics.csv"]
    again = train_rl(config, tmp_path / "run", progress=False)
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()} == files
    assert again.curve == run.curve
    system = config.judged_system()
    states = start_states(system, 20)
    for other in (again, load_rl(tmp_path / "run")):
        torch.testing.assert_close(
            other.controller.evaluate(system, states), run.controller.evaluate(system, states), rtol=0, atol=0
        )


def test_a_folder_without_its_last_checkpoint_is_an_error_in_words(tmp_path):
    config = RLConfig(**INTEGRATOR, steps=256, overrides=TINY, record=())
    train_rl(config, tmp_path, progress=False)
    (tmp_path / "last.pt").unlink()
    for go_on in (lambda: load_rl(tmp_path), lambda: train_rl(config, tmp_path, progress=False)):
        with pytest.raises(RunFolderError, match=r"no last\.pt"):
            go_on()


def test_a_folder_of_another_run_is_refused_with_the_difference(tmp_path):
    train_rl(RLConfig(**INTEGRATOR, steps=256, overrides=TINY, record=()), tmp_path, progress=False)
    with pytest.raises(RunFolderError, match="seed: 0 in the folder, 1 asked for"):
        train_rl(RLConfig(**INTEGRATOR, steps=256, seed=1, overrides=TINY), tmp_path, progress=False)
    changed = RLConfig(**INTEGRATOR, steps=256, overrides=TINY | {"gamma": 0.9})
    with pytest.raises(RunFolderError, match=r"gamma: 1\.0 in the folder, 0.9 asked for"):
        train_rl(changed, tmp_path, progress=False)


class Hostile:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code from a stranger ran')",))


def test_a_policy_from_a_stranger_runs_no_code(tmp_path):
    config = RLConfig(**INTEGRATOR, steps=256, overrides=TINY, record=())
    train_rl(config, tmp_path, progress=False)
    (tmp_path / "last.pt").write_bytes(pickle.dumps(Hostile()))
    for go_on in (lambda: load_rl(tmp_path), lambda: train_rl(config, tmp_path, progress=False)):
        with pytest.raises(RunFolderError, match=r"cannot read .*last\.pt"):
            go_on()


def test_stable_baselines3_is_imported_only_where_it_is_used():
    code = "import sys, bptt_trainers, bptt_trainers.comparison.compare; print('stable_baselines3' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_run_is_loaded_with_its_own_settings_when_the_presets_have_changed(tmp_path, monkeypatch):
    config = RLConfig(**INTEGRATOR, steps=256, overrides=TINY, record=())
    before = train_rl(config, tmp_path, progress=False)
    monkeypatch.setitem(PRESETS["PPO"], "activation", "tanh")
    loaded = load_rl(tmp_path)
    assert loaded.config.settings() == before.config.settings() | {"activation": "relu"}
    states = held_out_states(before.config.judged_system(), 4)
    system = before.config.judged_system()
    assert torch.equal(loaded.controller.evaluate(system, states), before.controller.evaluate(system, states))
