"""Every public function that takes a system takes an environment of it, and means the same."""

import inspect

import gymnasium as gym
import pytest
import torch
from gymnasium.wrappers import TransformReward

import bptt_trainers
from bptt_trainers import (
    RunFolder,
    RunFolderError,
    TrainConfig,
    Trainer,
    default_controller,
    diagnose,
    held_out_states,
    losses,
    policy_gradient,
    rollout,
    training_states,
)
from bptt_trainers.directions.policy_gradient import choose_engine
from bptt_trainers.figures.animation import save_animation
from bptt_trainers.figures.trajectory import trajectory_figure
from bptt_trainers.rl.sb3_env import SB3VecEnv
from bptt_trainers.rl.view import RLView
from bptt_trainers.training.start_states import validation_states

ENV = gym.make("DiffIntegrator-v0", horizon=3)
SYSTEM = ENV.unwrapped.system
STATES = held_out_states(SYSTEM, 2)
CONTROLLER = default_controller(SYSTEM, hidden=(2,))
TRAJECTORY = rollout(SYSTEM, CONTROLLER, STATES)


def run(folder):
    Trainer(ENV, config=TrainConfig(epochs=1, batch_size=2, train_states=2, hidden=(2,), record=(), out=folder)).fit()
    return RunFolder(folder)


def animated(system, folder):
    save_animation(system, TRAJECTORY, folder / "moments.png", width=300)
    return (folder / "moments.png").read_bytes()


#: What each makes of a system, as numbers or text to compare. Those that need a run folder get one.
TAKES = {
    "held_out_states": lambda system, _: held_out_states(system, 2),
    "training_states": lambda system, _: training_states(system, 2, 0),
    "validation_states": lambda system, _: validation_states(system, 2),
    "default_controller": lambda system, _: default_controller(system, hidden=(2,)).state_dict(),
    "rollout": lambda system, _: rollout(system, CONTROLLER, STATES).states,
    "losses": lambda system, _: losses(system, TRAJECTORY),
    "policy_gradient": lambda system, _: policy_gradient(system, CONTROLLER, STATES).loss,
    "choose_engine": lambda system, _: choose_engine(system, CONTROLLER, STATES).reason,
    "diagnose": lambda system, _: diagnose(system, CONTROLLER, STATES).norms,
    "Trainer": lambda system, _: Trainer(system, config=TrainConfig(hidden=(2,), record=())).test_states,
    "make_controller": lambda system, folder: run(folder / "run").make_controller(system).__class__.__name__,
    "load_controller": lambda system, folder: run(folder / "run").load_controller(system)[0].state_dict(),
    "RLView": lambda system, _: RLView(system).state_labels,
    "SB3VecEnv": lambda system, _: SB3VecEnv(system, 2).observation_space,
    "trajectory_figure": lambda system, _: (len(trajectory_figure(system, TRAJECTORY).axes),),
    "save_animation": animated,
}


@pytest.mark.parametrize("name", TAKES)
def test_an_environment_does_for_its_system(name, tmp_path):
    of_env, of_system = (TAKES[name](one, tmp_path) for one in (ENV, SYSTEM))
    if isinstance(of_system, (str, bytes, tuple, gym.Space)):
        assert of_env == of_system
    else:
        torch.testing.assert_close(of_env, of_system, rtol=0.0, atol=0.0)


def test_no_public_function_of_a_system_is_left_out():
    public = {name: getattr(bptt_trainers, name) for name in bptt_trainers.__all__}
    takes = {
        name
        for name, one in public.items()
        if inspect.isfunction(one) and "system" in inspect.signature(one).parameters
    }
    assert takes - {"plan"} <= TAKES.keys()  # whose tests are with its own


@pytest.mark.parametrize("name", TAKES)
def test_what_has_no_system_or_another_one_within_is_refused_in_words(name, tmp_path):
    run(tmp_path / "run")
    refused = (ValueError, RunFolderError)
    with pytest.raises(
        refused, match=r"must be a differentiable environment of bptt_envs or a System; got <.*CartPole"
    ):
        TAKES[name](gym.make("CartPole-v1"), tmp_path)
    with pytest.raises(refused, match="is wrapped in TransformReward, which backpropagation"):
        TAKES[name](TransformReward(ENV, abs), tmp_path)
