"""Reinforcement learning on the same environments, by stable-baselines3: train, judge, save, load."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import stable_baselines3
import torch
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor, nn

import bptt_envs
from bptt_envs import System, checks
from bptt_envs.differentiable import start_states
from bptt_envs.registration import ENTRIES, build_system, system_class
from bptt_envs.settings import Count, Seed, among, read
from bptt_envs.surroundings import own_surroundings
from bptt_trainers.directions.rollout import Trajectory, losses, rollout
from bptt_trainers.presets.presets import PRESETS, Preset, PresetName, preset
from bptt_trainers.records.checkpoints import packed, unpacked
from bptt_trainers.records.claim import Claim, in_words, locked, same
from bptt_trainers.records.curve import Curve, CurvePoint, Report, curve_to_csv, read_curve
from bptt_trainers.records.files import RunFolderError, exists, read_bytes, understanding, write_atomic
from bptt_trainers.records.plain import objects_in, plain
from bptt_trainers.records.progress import progress_bar
from bptt_trainers.rl.sb3_env import SB3VecEnv
from bptt_trainers.rl.view import RLView
from bptt_trainers.training.start_states import TRAINING, held_out_states, stream_seed

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


@dataclass(frozen=True)
class RLConfig:
    """Settings of one run of reinforcement learning.

    Raises:
        ValueError: if a setting is unknown or out of range; the message names it.
    """

    method: Annotated[str, among(PRESETS)] = "PPO"
    """PPO or SAC."""

    env: str = "DiffCartPole-v0"
    """Environment id."""

    env_options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the environment; its objective is that which the controller is judged by."""

    steps: Count = 1_000_000
    """Simulator steps, rounded up to whole updates."""

    seed: Seed = 0
    """Seeds the weights, the exploration and the start states."""

    evaluations: Count = 50
    """How often the controller is judged while it learns."""

    test_states: Count = 256
    """Held-out start states, the same for every seed and method."""

    preset: PresetName = "tuned"
    """Whose settings the method has: those that were tuned, or the paper's."""

    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Entries of the preset that are to differ, by name."""

    def __post_init__(self) -> None:
        read(self)
        self.judged_system()
        self.settings()

    def settings(self) -> Preset:
        """The settings of the method in full."""
        return preset(self.method, self.env, self.overrides, name=self.preset, options=self.env_options)

    def judged_system(self) -> System:
        """The system on which the controller is judged, with the observation that it learns from."""
        return self._system({})

    def trained_system(self) -> System:
        """The system on which it learns; only the objective may differ."""
        objective = self.settings()["objective"]
        return self._system({} if objective == "same" else {"objective": objective})

    def _system(self, changes: dict[str, Any]) -> System:
        known, options = system_class(self.env).options(), dict(self.env_options) | changes
        if "observation" in known and "observation" not in ENTRIES[self.env].defaults | options:
            options["observation"] = self.settings()["observation"]
        return build_system(self.env, options, self.env)


class RLController:
    """A policy of stable-baselines3 with its normalisation, frozen: from observations of `RLView` to its actions.

    Deterministic. Actions are shares of the system's action range, in [-1, 1]; `rollout` gives back the
    system's own states and actions.

    Args:
        policy: the policy.
        mean: of each observation component while it learned, (observation_size + 1,).
        var: the variance likewise.
    """

    CLIP: ClassVar[float] = 10.0  # of normalised observations, and
    EPSILON: ClassVar[float] = 1e-8  # added to the variance: the defaults of VecNormalize

    def __init__(self, policy: BasePolicy, mean: np.ndarray, var: np.ndarray) -> None:
        self.policy = policy
        self.mean = mean
        self.var = var

    def __call__(self, observation: Tensor) -> Tensor:
        """Observations (B, observation_size + 1) -> actions (B, *action_shape)."""
        return torch.from_numpy(self.predict(observation.cpu().numpy())[0]).to(observation)

    def predict(
        self,
        observation: np.ndarray,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = True,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Actions for observations of an `SB3VecEnv`, with the signature of stable-baselines3's policies."""
        normal = (observation - self.mean) / np.sqrt(self.var + self.EPSILON)
        normal = np.clip(normal, -self.CLIP, self.CLIP).astype(np.float32)
        with own_surroundings():
            return self.policy.predict(normal, state, episode_start, deterministic)

    def rollout(self, system: System, initial_states: Tensor) -> Trajectory:
        """Run one episode from each of `initial_states`, (B, *state_shape), in the system's own units.

        `system` is one that `RLConfig.judged_system` gave, or one with the same observation.
        """
        view = RLView(system)
        return view.inner_trajectory(rollout(view, self, view.at_start(initial_states)))

    def evaluate(self, system: System, initial_states: Tensor) -> Tensor:
        """The loss of the episode from each of `initial_states`, (B,)."""
        return losses(system, self.rollout(system, initial_states))


@dataclass(frozen=True)
class RLRun:
    """A finished run."""

    config: RLConfig
    controller: RLController
    curve: Curve


def train_rl(
    config: RLConfig,
    folder: Path | None = None,
    progress: bool = True,
    *,
    judged_states: Tensor | None = None,
    report: Report | None = None,
) -> RLRun:
    """Train a controller by reinforcement learning.

    With a folder, it holds config.json, curve.csv and policy.pt (the weights and the normalisation, as
    tensors) when the run is finished; a finished run is loaded, not computed again. An interrupted one
    starts again from its beginning.

    Args:
        config: every setting.
        folder: where the run is kept; None keeps it in memory.
        progress: whether to show a bar.
        judged_states: start states, (B, *state_shape), by which it is judged in place of the held-out ones.
        report: called at each evaluation; returns False to end training there.

    Raises:
        ValueError: if a folder is given with `judged_states` or `report`: it holds whole runs on the held-out states.
        RunFolderError: if the folder holds a run of another configuration, is in use, or cannot be written.
    """
    checks.instance("config", config, RLConfig, "a RLConfig")
    folder = None if folder is None else checks.path("folder", folder)
    if folder is not None and not (judged_states is None and report is None):
        raise ValueError(
            f"folder must be None with judged_states or report, as a folder holds a whole run judged on the held-out "
            f"states; got {folder}."
        )
    if judged_states is not None:
        judged_states = start_states("judged_states", judged_states, config.judged_system())
    with nullcontext() if folder is None else locked(folder):
        if folder is not None:
            _claim(folder).take(_describe(config))
            if exists(folder / "curve.csv"):  # written last
                return _load(folder, config)
        return _train(config, folder, progress, judged_states, report)


def _train(
    config: RLConfig, folder: Path | None, progress: bool, judged_states: Tensor | None, report: Report | None
) -> RLRun:
    with _apart():
        model, normalize = _build(config)
        model.set_logger(Logger(folder=None, output_formats=[]))  # its own would make a temporary folder
        evaluation = _Evaluation(config, normalize, progress, judged_states, report)
        try:
            model.learn(config.steps, callback=evaluation)
        finally:
            evaluation.bar.close()
    controller = _controller(model, normalize)
    if folder is not None:
        mean, var = map(torch.from_numpy, (controller.mean, controller.var))
        data, _ = packed({"policy": model.policy.state_dict(), "mean": mean, "var": var}, str(folder))
        write_atomic(folder / "policy.pt", data)
        write_atomic(folder / "curve.csv", curve_to_csv(evaluation.curve).encode())
    return RLRun(config, controller, evaluation.curve)


def load_rl(folder: Path) -> RLRun:
    """Load a finished run; nothing in its folder can run code.

    Raises:
        RunFolderError: if there is no finished run, or it cannot be read.
    """
    folder = checks.path("folder", folder)
    with understanding(folder / "config.json"):
        stored = _claim(folder).read()
        objects = objects_in(stored["env_options"])
        if objects:
            raise RunFolderError(
                f"{folder} was trained with {', '.join(objects)} among the options of its environment, which no file "
                "holds; call train_rl with the same configuration."
            )
        stored = _of_today(stored)
        config = RLConfig(**{name: stored[name] for name in _SETTINGS})
        if not same(plain(config.settings()), stored["settings"]):  # the presets have changed since
            config = replace(config, overrides=stored["settings"])
    return _load(folder, config)


def _load(folder: Path, config: RLConfig) -> RLRun:
    try:
        data = read_bytes(folder / "policy.pt")
    except FileNotFoundError as error:
        raise RunFolderError(f"{folder} holds no finished run: it has no policy.pt.") from error
    try:
        checkpoint = unpacked(data)
    except Exception as error:  # torch raises many kinds for a damaged or a hostile file
        raise RunFolderError(
            f"cannot read {folder / 'policy.pt'}: it is damaged, or no policy of this program."
        ) from error
    curve = read_curve(folder / "curve.csv")
    with understanding(folder / "policy.pt"):
        weights, mean, var = (checkpoint[name] for name in ("policy", "mean", "var"))
        widest = max(size for tensor in weights.values() for size in tensor.shape)
        if max(config.settings()["hidden"], default=1) > widest:
            raise ValueError("config.json has wider layers")
        with _apart():
            policy = _policy(config)
        policy.load_state_dict(weights)
        if not mean.shape == var.shape == RLView(config.judged_system()).observation_shape:
            raise ValueError(f"its normalisation is of shapes {tuple(mean.shape)}, {tuple(var.shape)}")
        controller = RLController(policy, mean.numpy(), var.numpy())
    return RLRun(config, controller, curve)


class _Evaluation(BaseCallback):
    """Judges the controller as it learns, between updates, and keeps the bar."""

    def __init__(
        self,
        config: RLConfig,
        normalize: VecNormalize,
        progress: bool,
        judged_states: Tensor | None,
        report: Report | None,
    ) -> None:
        super().__init__()
        self.curve: list[CurvePoint] = []
        self._config = config
        self._normalize = normalize
        self._system = config.judged_system()
        held_out = held_out_states(self._system, config.test_states)
        self._states = held_out if judged_states is None else judged_states
        self._report = report
        self._goes_on = True
        self._interval = max(1, config.steps // config.evaluations)
        self._seconds = 0.0
        self.bar = progress_bar(
            f"{config.method} seed {config.seed}", config.steps, "step", unit_scale=True, disable=not progress
        )

    def _on_training_start(self) -> None:
        self._resumed = time.perf_counter()

    def _on_rollout_start(self) -> None:
        if self.num_timesteps >= len(self.curve) * self._interval:
            self._judge()

    def _on_step(self) -> bool:
        self.bar.update(min(self.num_timesteps, self._config.steps) - self.bar.n)
        return self._goes_on

    def _on_training_end(self) -> None:
        if not self.curve or self.curve[-1].simulator_steps < self.num_timesteps:
            self._judge()

    def _judge(self) -> None:
        self._seconds += time.perf_counter() - self._resumed
        controller = _controller(self.model, self._normalize)
        loss = float(controller.evaluate(self._system, self._states).mean())
        self.curve.append(CurvePoint(self.num_timesteps, self._seconds, loss))
        self.bar.set_postfix(test=f"{loss:.3g}", refresh=False)
        if self._report is not None:
            self._goes_on = self._report(self.curve[-1]) and self._goes_on
        self._resumed = time.perf_counter()


@contextmanager
def _apart() -> Iterator[None]:
    """Run stable-baselines3 apart from the caller's surroundings, and leave the random numbers that it seeds."""
    of_numpy, of_python = np.random.get_state(), random.getstate()  # noqa: NPY002, they are what is seeded
    try:
        with torch.random.fork_rng(), own_surroundings(), torch.enable_grad():
            yield
    finally:
        np.random.set_state(of_numpy)  # noqa: NPY002
        random.setstate(of_python)


def _build(config: RLConfig) -> tuple[BaseAlgorithm, VecNormalize]:
    settings = config.settings()
    env = SB3VecEnv(config.trained_system(), settings["num_envs"], dense=settings["dense"])
    normalize = VecNormalize(
        env,
        norm_reward=settings["normalize_reward"],
        gamma=settings["gamma"],
        clip_obs=RLController.CLIP,
        epsilon=RLController.EPSILON,
    )
    model = ALGORITHMS[config.method](
        "MlpPolicy",
        normalize,
        learning_rate=_learning_rate(settings),
        policy_kwargs=_policy_settings(settings),
        seed=stream_seed(TRAINING, config.seed) % 2**31,
        device="cpu",
        **{name: value for name, value in settings.items() if name not in _OWN},
    )
    return model, normalize


def _policy(config: RLConfig) -> BasePolicy:
    """The policy of `_build` without what trains it."""
    settings = config.settings()
    env = SB3VecEnv(config.judged_system(), 1)
    kind = ALGORITHMS[config.method].policy_aliases["MlpPolicy"]
    return kind(env.observation_space, env.action_space, _learning_rate(settings), **_policy_settings(settings))


def _policy_settings(settings: Preset) -> dict[str, Any]:
    return {"net_arch": list(settings["hidden"]), "activation_fn": ACTIVATIONS[settings["activation"]]}


def _learning_rate(settings: Preset) -> Callable[[float], float]:
    first, last = settings["learning_rate"], settings["final_learning_rate"]

    def learning_rate(remaining: float) -> float:
        return float(last + (first - last) * remaining)

    return learning_rate


def _controller(model: BaseAlgorithm, normalize: VecNormalize) -> RLController:
    """The policy as it is, with the normalisation as it is now."""
    statistics = normalize.obs_rms
    assert isinstance(statistics, RunningMeanStd)  # a dict for dict observations only
    return RLController(model.policy, statistics.mean.copy(), statistics.var.copy())


# config.json: the settings as given, then what they amount to

_SETTINGS = tuple(RLConfig.__dataclass_fields__)


def _describe(config: RLConfig) -> dict[str, Any]:
    versions = {module.__name__: module.__version__ for module in (bptt_envs, stable_baselines3, torch)}
    settings = {name: getattr(config, name) for name in _SETTINGS}
    described: dict[str, Any] = plain(settings | {"settings": config.settings(), "versions": versions})
    return described


def _of_today(stored: dict[str, Any]) -> dict[str, Any]:
    """What config.json says; an earlier version, which knew one preset, has under "preset" what it amounts to."""
    return stored if "settings" in stored else stored | {"preset": "paper", "settings": stored["preset"]}


def _claim(folder: Path) -> Claim:
    """config.json of a run of reinforcement learning; that of another configuration differs in one of these."""

    def differences(stored: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
        stored = _of_today(stored)
        named = [name for name in _SETTINGS if name not in ("preset", "overrides")]  # which amount to the settings
        pairs = [(name, stored.get(name), wanted[name]) for name in named]
        before, now = stored["settings"], wanted["settings"]
        pairs += [(name, before.get(name), now.get(name)) for name in dict.fromkeys([*before, *now])]
        return [in_words(name, old, new) for name, old, new in pairs if not same(old, new)]

    return Claim(folder / "config.json", "run", differences)
