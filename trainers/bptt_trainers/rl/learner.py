"""The methods of stable-baselines3 as learners of a run."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor, nn

from bptt_envs.surroundings import own_surroundings
from bptt_trainers.directions.rollout import Trajectory
from bptt_trainers.presets.presets import Preset
from bptt_trainers.rl.config import RLConfig
from bptt_trainers.rl.controller import RLController
from bptt_trainers.rl.sb3_env import SB3VecEnv
from bptt_trainers.training.books import Checkpoint
from bptt_trainers.training.learner import Learner, Update
from bptt_trainers.training.queries import Query
from bptt_trainers.training.start_states import TRAINING, held_out_states, stream_seed, training_states

ALGORITHMS: dict[str, type[BaseAlgorithm]] = {"PPO": PPO, "SAC": SAC}
ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}

# Entries of a preset that are used here; the others are arguments of the algorithm.
_OWN = (
    "num_envs",
    "max_steps",
    "objective",
    "dense",
    "observation",
    "normalize_reward",
    "hidden",
    "activation",
    "learning_rate",
    "final_learning_rate",
)

# What a model goes on from, beside its parameters and optimizers
_COUNTS = ("num_timesteps", "_episode_num", "_n_updates")
_ARRAYS = ("_last_obs", "_last_original_obs", "_last_episode_starts")
_REPLAYED = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


class SB3Learner(Learner):
    """Learns by a method of stable-baselines3; an update goes on to the next evaluation.

    Args:
        config: every setting.
        judged_states: start states, (N, *state_shape), by which it is judged in place of the held-out ones.

    Attributes:
        train_states: as many start states, drawn from the seed, over which the training loss is taken; nothing is
            trained on them.
    """

    updates_per_epoch = 1

    def __init__(self, config: RLConfig, judged_states: Tensor | None = None) -> None:
        self.config = config
        self.system = config.judged_system()
        held_out = held_out_states(self.system, config.test_states)
        self.test_states = held_out if judged_states is None else judged_states
        self.train_states = training_states(self.system, config.test_states, config.seed)

    @property
    def policy(self) -> RLController:
        """The policy as it is, with the normalisation as it is now."""
        statistics = _observed(self._normalize)
        return RLController(self._model.policy, statistics.mean.copy(), statistics.var.copy())

    def session(self) -> AbstractContextManager[None]:
        """Run stable-baselines3 apart from the caller's surroundings, and leave the random numbers that it seeds."""
        return apart()

    def begin(self) -> None:
        """Build the model, seeded, and start the first episodes."""
        settings = self.config.settings()
        self._env = SB3VecEnv(self.config.trained_system(), settings["num_envs"], dense=settings["dense"])
        self._normalize = VecNormalize(
            self._env,
            norm_reward=settings["normalize_reward"],
            gamma=settings["gamma"],
            clip_obs=RLController.CLIP,
            epsilon=RLController.EPSILON,
        )
        self._model = ALGORITHMS[self.config.method](
            "MlpPolicy",
            self._normalize,
            learning_rate=_learning_rate(settings),
            policy_kwargs=_policy_settings(settings),
            seed=stream_seed(TRAINING, self.config.seed) % 2**31,
            device="cpu",
            **{name: value for name, value in settings.items() if name not in _OWN},
        )
        self._model.set_logger(Logger(folder=None, output_formats=[]))  # its own would make a temporary folder
        self._learn(0)

    def update(self, number: int) -> Generator[Query, None, Update]:
        """Learn until evaluation `number` of the run, from 0 on, is due."""
        yield from ()
        before, begin = self._model.num_timesteps, time.perf_counter()
        self._learn(max((number + 1) * self.config.interval, before + 1))
        return Update(time.perf_counter() - begin, self._model.num_timesteps - before)

    def _learn(self, steps: int) -> None:
        """Go on learning up to the first rollout before which so many steps are done."""
        left = self.config.steps - self._model.num_timesteps  # in all, which the learning rate depends on
        with suppress(_DueError):
            self._model.learn(left, callback=_Until(steps), reset_num_timesteps=False)

    def trajectory(self, states: Tensor) -> Trajectory:
        """Episodes from `states`, (B, *state_shape), deterministic."""
        return self.policy.rollout(self.system, states)

    def state_dict(self) -> Checkpoint:
        """Policy, optimizers, entropy coefficient, normalisation, environments, replay buffer, counts."""
        model, acts = self._model, self.policy
        parameters: dict[str, Any] = copy.deepcopy(model.get_parameters())
        learner = {
            "optimizers": {name: one for name, one in parameters.items() if name != "policy"},
            "tensors": {name: getattr(model, name).detach().clone() for name in _tensors(model)},
            "counts": {name: getattr(model, name) for name in _COUNTS},
            "arrays": {name: _tensor(getattr(model, name)) for name in _ARRAYS},
            "env": self._env.state_dict(),
            "normalize": {name: _moments(one) for name, one in self._statistics().items()},
            "returns": _tensor(self._normalize.returns),
        }
        if isinstance(model, OffPolicyAlgorithm):
            learner["replay"] = _replayed(model)
        controller = {"policy": parameters["policy"], "mean": _tensor(acts.mean), "var": _tensor(acts.var)}
        return {"controller": controller, "learner": learner}

    def load_state_dict(self, state: Checkpoint) -> None:
        """Go on from a state; the parts that are not of its shape are an error."""
        model, learner = self._model, copy.deepcopy(state["learner"])
        model.set_parameters({"policy": state["controller"]["policy"], **learner["optimizers"]}, device="cpu")
        for name in _tensors(model):
            getattr(model, name).data.copy_(learner["tensors"][name])
        for name in _COUNTS:
            setattr(model, name, learner["counts"][name])
        for name in _ARRAYS:
            setattr(model, name, learner["arrays"][name].numpy())
        self._env.load_state_dict(learner["env"])
        for name, one in self._statistics().items():
            moments = learner["normalize"][name]
            one.mean, one.var, one.count = moments["mean"].numpy(), moments["var"].numpy(), moments["count"]
        self._normalize.returns = learner["returns"].numpy()
        if isinstance(model, OffPolicyAlgorithm):
            _replay(model, learner["replay"])

    def random_state(self) -> Checkpoint:
        """The states of torch's, NumPy's and the action space's random numbers."""
        kind, keys, *rest = np.random.get_state()  # noqa: NPY002, they are what stable-baselines3 draws
        actions = self._model.action_space.np_random.bit_generator.state
        numbers = {name: str(one) for name, one in actions["state"].items()}  # of 128 bits
        numpy_state = [kind, torch.from_numpy(np.array(keys, dtype=np.int64)), *rest]
        return super().random_state() | {"numpy_state": numpy_state, "action_state": {**actions, "state": numbers}}

    def set_random_state(self, state: Checkpoint) -> None:
        """Go on with random numbers from `state`."""
        super().set_random_state(state)
        kind, keys, *rest = state["numpy_state"]
        np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
        actions = state["action_state"]
        numbers = {name: int(one) for name, one in actions["state"].items()}
        self._model.action_space.np_random.bit_generator.state = {**actions, "state": numbers}

    def _statistics(self) -> dict[str, RunningMeanStd]:
        return {"observations": _observed(self._normalize), "returns": self._normalize.ret_rms}


@contextmanager
def apart() -> Iterator[None]:
    """Run stable-baselines3 apart from the caller's surroundings, and leave the random numbers that it seeds."""
    of_numpy, of_python = np.random.get_state(), random.getstate()  # noqa: NPY002, they are what is seeded
    try:
        with torch.random.fork_rng(), own_surroundings(), torch.enable_grad():
            yield
    finally:
        np.random.set_state(of_numpy)  # noqa: NPY002
        random.setstate(of_python)


def controller_of(config: RLConfig, state: Checkpoint) -> RLController:
    """The controller that the "controller" of a checkpoint holds, of a run of `config`.

    Raises:
        ValueError, RuntimeError, ...: of many kinds, if it is another's.
    """
    weights, mean, var = (state[name] for name in ("policy", "mean", "var"))
    widest = max(size for tensor in weights.values() for size in tensor.shape)
    if max(config.settings()["hidden"], default=1) > widest:  # a stranger's settings would fill the memory
        raise ValueError("config.json has wider layers")
    settings = config.settings()
    with apart():
        env = SB3VecEnv(config.judged_system(), 1)
        kind = ALGORITHMS[config.method].policy_aliases["MlpPolicy"]
        policy: BasePolicy = kind(
            env.observation_space, env.action_space, _learning_rate(settings), **_policy_settings(settings)
        )
    policy.load_state_dict(weights)
    if not mean.shape == var.shape == env.view.observation_shape:
        raise ValueError(f"its normalisation is of shapes {tuple(mean.shape)}, {tuple(var.shape)}")
    return RLController(policy, mean.numpy(), var.numpy())


class _DueError(Exception):
    """An evaluation is due."""


class _Until(BaseCallback):
    """Leaves `learn` before the first rollout at which so many steps are done: nothing is lost there."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self._steps = steps

    def _on_rollout_start(self) -> None:
        if self.model.num_timesteps >= self._steps:
            raise _DueError

    def _on_step(self) -> bool:
        return True


def _policy_settings(settings: Preset) -> dict[str, Any]:
    return {"net_arch": list(settings["hidden"]), "activation_fn": ACTIVATIONS[settings["activation"]]}


def _learning_rate(settings: Preset) -> Callable[[float], float]:
    first, last = settings["learning_rate"], settings["final_learning_rate"]

    def learning_rate(remaining: float) -> float:
        return float(last + (first - last) * remaining)

    return learning_rate


def _observed(normalize: VecNormalize) -> RunningMeanStd:
    statistics = normalize.obs_rms
    assert isinstance(statistics, RunningMeanStd)  # a dict for dict observations only
    return statistics


def _moments(one: RunningMeanStd) -> dict[str, Any]:
    return {"mean": _tensor(one.mean), "var": _tensor(one.var), "count": float(one.count)}


def _tensors(model: BaseAlgorithm) -> list[str]:
    """The names of tensors of a model that are of no module, such as SAC's entropy coefficient."""
    return list(model._get_torch_save_params()[1])


def _replayed(model: OffPolicyAlgorithm) -> dict[str, Any]:
    """What the replay buffer holds."""
    buffer = model.replay_buffer
    assert type(buffer) is ReplayBuffer
    arrays = {name: _tensor(getattr(buffer, name)[: buffer.size()]) for name in _REPLAYED}
    return {"pos": buffer.pos, "full": buffer.full, **arrays}


def _replay(model: OffPolicyAlgorithm, stored: dict[str, Any]) -> None:
    """Fill the replay buffer with what was stored."""
    buffer = model.replay_buffer
    assert type(buffer) is ReplayBuffer
    buffer.pos, buffer.full = stored["pos"], stored["full"]
    for name in _REPLAYED:
        getattr(buffer, name)[: buffer.size()] = stored[name].numpy()


def _tensor(array: Any) -> Tensor:
    """A copy of an array as a tensor, which is what a checkpoint may hold."""
    return torch.from_numpy(np.array(array))
