"""Tasks in training: run folders, ensembles, terms of one's own, reinforcement learning, the command line."""

import json
from dataclasses import replace

import gymnasium as gym
import pytest
import torch
from cliff import STARTS, Cliff, losses_one_by_one

from bptt_envs import Task
from bptt_envs.systems import CartPole
from bptt_envs.task import as_task
from bptt_trainers import (
    Ensemble,
    RunFolder,
    RunFolderError,
    TrainConfig,
    Trainer,
    default_controller,
    diagnose,
    losses,
    policy_gradient,
    rollout,
)
from bptt_trainers.cli import main
from bptt_trainers.rl.sb3 import RLConfig, load_rl, train_rl
from bptt_trainers.training.loss_terms import with_extra_cost

TINY = TrainConfig(epochs=2, batch_size=4, train_states=8, test_states=4, hidden=(4,), record=())
RANGES = {"pole_length": (0.4, 0.6)}
ASKED = {"randomize": RANGES, "show_parameters": True, "observe_time": True}


def test_a_run_folder_holds_what_a_task_asks_and_builds_it_again(tmp_path):
    config = replace(TINY, out=tmp_path / "run")
    trained = Trainer(gym.make("DiffCartPole-v0", horizon=5, **ASKED), config=config)
    trained.fit()
    stored = json.loads((tmp_path / "run" / "config.json").read_text())["environment"]
    assert stored["options"]["randomize"] == {"pole_length": [0.4, 0.6]}
    assert (stored["system"], stored["settings"]["randomize"]) == ("CartPole", {"pole_length": [0.4, 0.6]})
    env = RunFolder(tmp_path / "run").make_env()
    assert env.system.asked == ASKED
    controller, _ = RunFolder(tmp_path / "run").load_controller(env.system, "last")
    assert float(losses(env.system, rollout(env.system, controller, trained.test_states)).mean()) == pytest.approx(
        trained.history[-1].test_loss
    )
    again = Trainer(gym.make("DiffCartPole-v0", horizon=5, **ASKED), config=replace(config, epochs=3))
    assert len(again.fit()) == 4
    for other in ({}, ASKED | {"randomize": {"pole_length": (0.4, 0.7)}}, ASKED | {"show_parameters": False}):
        with pytest.raises(RunFolderError, match=r"pole_length|show_parameters|randomize"):
            Trainer(gym.make("DiffCartPole-v0", horizon=5, **other), config=config).fit()


def test_costs_of_ones_own_are_in_the_folder_by_name_and_content(tmp_path):
    def ends_still(state):
        return state[:, 1].square()

    config = replace(TINY, out=tmp_path / "run")
    Trainer(Task(CartPole(horizon=5), final_cost=ends_still), config=config).fit()
    stored = json.loads((tmp_path / "run" / "config.json").read_text())["environment"]
    assert stored["settings"]["final_cost"]["object"].endswith("ends_still")
    with pytest.raises(RunFolderError):
        Trainer(CartPole(horizon=5), config=config).fit()


def test_a_folder_of_before_a_system_had_a_parameter_goes_on(tmp_path):
    config = replace(TINY, out=tmp_path / "run")
    Trainer(CartPole(horizon=5), config=config).fit()
    stored = json.loads((tmp_path / "run" / "config.json").read_text())["environment"]
    assert stored["settings"].keys().isdisjoint(CartPole.parameters)
    assert stored["content"].keys() == {"class", "state_shape", "state_labels"}
    with pytest.raises(RunFolderError):
        Trainer(CartPole(horizon=5, gravity=3.7), config=config).fit()


def test_a_run_on_a_system_that_ends_early_is_judged_by_episodes_that_stop():
    system = Cliff()
    trainer = Trainer(system, config=TINY)
    assert type(trainer.system) is Task
    trainer.fit()
    states = system.initial_states(4, torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected, steps = losses_one_by_one(system, trainer.controller, states)
    assert steps == [1, 3, 6, 0]
    assert trainer.evaluate(states) == pytest.approx(float(expected.mean()), rel=1e-5)
    own = Trainer(system, config=TINY, train_states=states, test_states=states)
    assert torch.equal(own.train_states, as_task(system).episode_start(states))


def test_members_of_an_ensemble_have_the_numbers_of_runs_alone():
    task = Task(Cliff(), randomize={"grip": (0.0, 0.3)}, show_parameters=True, observe_time=True)
    configs = [replace(TINY, seed=seed) for seed in range(3)]
    together = Ensemble(task, configs).fit()
    for config, history in zip(configs, together, strict=True):
        alone = Trainer(task, config=config).fit()
        assert history[-1].test_loss == pytest.approx(alone[-1].test_loss, rel=1e-4)


def test_states_that_are_drawn_start_with_parameters_of_their_own():
    task = Task(CartPole(horizon=5), randomize=RANGES)

    def draw(count, generator):
        return torch.randn(count, 4, generator=generator)

    first, second = (
        Trainer(task, config=replace(TINY, seed=seed), train_states=draw).train_states for seed in range(2)
    )
    assert first.shape == (8, 5)
    assert len(first[:, 4].unique()) == 8
    assert not torch.equal(first[:, 4], second[:, 4])


def test_an_extra_cost_counts_until_the_episode_ends():
    task = as_task(Cliff())

    def extra(state, action, next_state):
        return (1.0 - state[:, 0]).sqrt()  # not a number beyond the cliff

    states = task.initial_states(4, torch.Generator().manual_seed(0), torch.float64)
    extended = with_extra_cost(task, extra, states)
    controller = default_controller(task, hidden=(4,)).double()
    trajectory = rollout(task, controller, states)
    more = losses(extended, trajectory) - losses(task, trajectory)
    x = trajectory.states[..., 0]
    expected = [sum((1 - float(x[t, i])) ** 0.5 for t in range(steps)) for i, steps in enumerate((1, 3, 6, 0))]
    torch.testing.assert_close(more, torch.tensor(expected, dtype=torch.float64))
    fast, defined = (policy_gradient(extended, controller, states, "C", one) for one in ("adjoint", "autograd"))
    for name, direction in defined.directions.items():
        torch.testing.assert_close(fast.directions[name], direction, rtol=1e-10, atol=1e-12)


def test_diagnostics_take_a_system_that_ends_early():
    system = Cliff()
    controller = default_controller(system, hidden=(4,))
    assert diagnose(system, controller, system.initial_states(4, torch.Generator().manual_seed(0))).norms.all()


def test_reinforcement_learning_learns_judges_and_loads_on_a_task(tmp_path):
    settings = {"num_envs": 2, "n_steps": 8, "batch_size": 8, "n_epochs": 1, "hidden": (8,)}
    options = {"randomize": RANGES, "show_parameters": True, "horizon": 6}
    config = RLConfig("PPO", "DiffCartPole-v0", env_options=options, steps=32, test_states=3, overrides=settings)
    run = train_rl(config, tmp_path / "run", progress=False)
    again = load_rl(tmp_path / "run")
    assert again.config.judged_system().asked == {"randomize": RANGES, "show_parameters": True}
    states = config.judged_system().initial_states(3, torch.Generator().manual_seed(0))
    assert torch.equal(*(one.controller.evaluate(one.config.judged_system(), states) for one in (run, again)))


def test_the_command_line_takes_ranges(tmp_path, capsys):
    option = 'randomize={"pole_length": (0.4, 0.6)}'
    arguments = f"--epochs 1 --train-states 8 --test-states 4 --record --out {tmp_path / 'run'}"
    assert main(["train", *arguments.split(), "--env-option", option, "--env-option", "horizon=5"]) == 0
    assert RunFolder(tmp_path / "run").make_env().system.asked["randomize"] == RANGES
    assert main(["evaluate", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    assert main(["train", "--env-option", "randomize={'pole_lenght': (0.4, 0.6)}"]) != 0
    assert "Did you mean 'pole_length'?" in capsys.readouterr().err


def test_the_starts_of_the_cliff_are_as_the_tests_say():
    assert as_task(Cliff()).initial_states(4, torch.Generator())[:, 0].tolist() == pytest.approx(STARTS)
