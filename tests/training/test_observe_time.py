"""observe_time=True in training: both engines, ensembles, runs, reinforcement learning and the command line."""

import json
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch

from bptt_envs import Task
from bptt_envs.registration import ENTRIES
from bptt_envs.systems import CartPole, Integrator
from bptt_trainers import (
    MLP,
    RULES,
    Ensemble,
    RunFolder,
    RunFolderError,
    TrainConfig,
    Trainer,
    default_controller,
    losses,
    policy_gradient,
    rollout,
)
from bptt_trainers.cli import main
from bptt_trainers.directions.policy_gradient import choose_engine
from bptt_trainers.directions.rules import PAPER_RULES
from bptt_trainers.rl.sb3 import RLConfig, load_rl, train_rl
from bptt_trainers.rl.sb3_env import SB3VecEnv
from bptt_trainers.rl.view import RLView

TINY = TrainConfig(epochs=2, batch_size=4, train_states=8, test_states=4, hidden=(4,), record=())
TINY_PPO = {"num_envs": 2, "n_steps": 8, "batch_size": 8, "n_epochs": 1, "hidden": (8,)}


def make(env_id="DiffCartPole-v0", **options):
    return gym.make(env_id, observe_time=True, **options).unwrapped


def start(system, batch=3, dtype=torch.float64):
    return system.initial_states(batch, torch.Generator().manual_seed(0), dtype)


@pytest.mark.parametrize("env_id", ENTRIES)
def test_the_fast_engine_serves_it_and_agrees_with_autograd(env_id):
    system = make(env_id, horizon=4).system
    controller = default_controller(system, hidden=(6,)).double()
    assert choose_engine(system, controller, start(system)).engine.name == "adjoint"
    for rule in PAPER_RULES:
        fast, defined = (
            policy_gradient(system, controller, start(system), rule, engine) for engine in ("adjoint", "autograd")
        )
        torch.testing.assert_close(fast.loss, defined.loss)
        for name, direction in defined.directions.items():
            torch.testing.assert_close(fast.directions[name], direction, rtol=1e-9, atol=1e-12)


def test_a_controller_that_looks_away_from_the_time_has_the_directions_without_it():
    system, timed = CartPole(horizon=10), make(horizon=10).system
    blind = MLP((4,), (1,), (6,), generator=torch.Generator().manual_seed(0)).double()
    seeing = MLP((5,), (1,), (6,)).double()
    first, *others = (dict(one.named_parameters()) for one in (seeing, blind))
    with torch.no_grad():
        for name, parameter in others[0].items():
            first[name].copy_(torch.nn.functional.pad(parameter, (0, first[name].shape[-1] - parameter.shape[-1])))
    for rule in RULES:
        expected = policy_gradient(system, blind, start(system), rule).directions
        found = policy_gradient(timed, seeing, start(timed), rule).directions
        for name, direction in expected.items():
            torch.testing.assert_close(found[name][..., : direction.shape[-1]], direction, rtol=1e-10, atol=1e-12)


def test_members_of_an_ensemble_are_their_single_runs():
    configs = [replace(TINY, rule="R"), replace(TINY, rule="C", seed=1)]
    controllers = [
        MLP((5,), (1,), (4,), generator=torch.Generator().manual_seed(config.seed)).double() for config in configs
    ]
    alone = [
        Trainer(make(horizon=10), controller, config) for controller, config in zip(controllers, configs, strict=True)
    ]
    copies = [MLP((5,), (1,), (4,)).double() for _ in configs]
    for twin, controller in zip(copies, controllers, strict=True):
        twin.load_state_dict(controller.state_dict())
    env = make(horizon=10)
    together = Ensemble(env, configs, controllers=copies)
    together.fit()
    for trainer, member in zip(alone, together.members, strict=True):
        for ours, theirs in zip(trainer.fit(), member.history, strict=True):
            assert ours.test_loss == pytest.approx(theirs.test_loss, rel=1e-9)
    assert env.horizon == 10  # and not that of the copy that is looked at first


# Runs


def test_a_run_comes_back_with_the_time(tmp_path):
    Trainer(make(horizon=5, max_force=3.0), config=replace(TINY, out=tmp_path)).fit()
    described = json.loads((tmp_path / "config.json").read_text())["environment"]
    assert described["options"] == {"horizon": 5, "max_force": 3.0, "observe_time": True}
    assert described["system"] == "CartPole"
    assert described["settings"].items() >= {"horizon": 5, "max_action": 3.0, "observe_time": True}.items()
    folder = RunFolder(tmp_path)
    env = folder.make_env()
    assert type(env.system) is Task
    controller, _ = folder.load_controller(env.system)
    assert controller(env.observe(env.initial_states(2))).shape == (2, 1)
    Trainer(make(horizon=5, max_force=3.0), config=replace(TINY, out=tmp_path, epochs=3)).fit()
    with pytest.raises(RunFolderError, match="observe_time"):
        Trainer(gym.make("DiffCartPole-v0", horizon=5, max_force=3.0), config=replace(TINY, out=tmp_path)).fit()


def test_a_folder_of_a_run_without_the_time_is_what_it_was(tmp_path):
    Trainer(gym.make("DiffIntegrator-v0"), config=replace(TINY, out=tmp_path)).fit()
    assert "observe_time" not in (tmp_path / "config.json").read_text()


def test_the_command_line_takes_it(tmp_path, capsys):
    options = "--env-option horizon=5 --env-option observe_time=true"
    tiny = "--epochs 1 --train-states 8 --test-states 4 --batch-size 4 --hidden 4 --record pictures"
    assert main(f"train {options} {tiny} --out {tmp_path / 'run'}".split()) == 0
    assert type(RunFolder(tmp_path / "run").make_env().system) is Task
    assert main(["evaluate", str(tmp_path / "run")]) == 0
    assert main(["envs", "DiffCartPole-v0"]) == 0
    assert "  observe_time: bool, default False\n      show the controller" in capsys.readouterr().out
    assert main(f"train --env-option observe_time=yes {tiny}".split()) == 2
    assert "observe_time must be of type bool; got 'yes'" in capsys.readouterr().err


# Reinforcement learning


@pytest.mark.parametrize("dense", [False, True])
def test_the_view_of_reinforcement_learning_shows_the_time_once(dense):
    system = CartPole(horizon=5)
    views = [RLView(system, dense=dense), RLView(Task(system, observe_time=True), dense=dense)]
    trajectories = [rollout(view, lambda seen: seen[:, -1:] - seen[:, :1], start(view)) for view in views]
    assert [view.observation_shape for view in views] == [(5,), (5,)]
    assert torch.equal(trajectories[0].states, trajectories[1].states)
    assert torch.equal(*(losses(view, one) for view, one in zip(views, trajectories, strict=True)))
    inner = [view.inner_trajectory(one) for view, one in zip(views, trajectories, strict=True)]
    assert torch.equal(inner[0].states, inner[1].states[..., :-1])
    assert inner[1].states[:, 0, -1].tolist() == [0, 1, 2, 3, 4, 5]


def test_it_learns_the_same_whether_or_not_the_environment_shows_the_time(tmp_path):
    def run(name, **options):
        config = RLConfig(
            env_options={"horizon": 4} | options, steps=32, evaluations=2, test_states=4, overrides=TINY_PPO
        )
        return train_rl(config, tmp_path / name, progress=False)

    plain, shown = run("plain"), run("shown", observe_time=True)
    assert [point.test_loss for point in shown.curve] == [point.test_loss for point in plain.curve]
    systems = [one.config.judged_system() for one in (plain, shown)]
    assert [type(system) for system in systems] == [CartPole, Task]
    expected = plain.controller.evaluate(systems[0], start(systems[0], dtype=torch.float32))
    loaded = load_rl(tmp_path / "shown").controller
    for controller in (shown.controller, plain.controller, loaded):
        states = start(systems[1], dtype=torch.float32)
        assert torch.equal(controller.evaluate(systems[1], states), expected)
        assert controller.rollout(systems[1], states).states.shape == (5, 3, 5)


def test_stable_baselines3_starts_from_states_of_the_environment():
    system = Integrator(horizon=4)
    for given, state in ((system, [0.5]), (Task(system, observe_time=True), [0.5, 0.0])):
        env = SB3VecEnv(given, 1)
        env.set_options([{"state": state}])
        assert np.array_equal(env.reset(), [[0.5, 0.0]])
