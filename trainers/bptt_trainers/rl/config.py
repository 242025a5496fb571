"""The settings of a run of reinforcement learning."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from bptt_envs import System
from bptt_envs.arguments import KnownArguments
from bptt_envs.registration import ENTRIES, build_system, system_class
from bptt_envs.settings import Count, Seed, among, read
from bptt_trainers.presets.presets import PRESETS, Preset, PresetName, preset
from bptt_trainers.training.config import Record
from bptt_trainers.training.recorders import BY_DEFAULT


@dataclass(frozen=True)
class RLConfig(KnownArguments):
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

    record: Record = BY_DEFAULT
    """What to keep in the run folder beside metrics and checkpoints, see `TrainConfig.record`."""

    on_nonfinite: ClassVar[str] = "skip"  # a loss that is not finite is kept in the curve
    keep_every: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        read(self)
        self.judged_system()
        self.settings()

    def settings(self) -> Preset:
        """The settings of the method in full."""
        return preset(self.method, self.env, self.overrides, name=self.preset, options=self.env_options)

    @property
    def update_steps(self) -> int:
        """Simulator steps of an update."""
        settings = self.settings()
        return int(settings["num_envs"] * settings["train_freq" if "train_freq" in settings else "n_steps"])

    @property
    def whole_steps(self) -> int:
        """Simulator steps that it takes: `steps`, rounded up to whole updates."""
        return math.ceil(self.steps / self.update_steps) * self.update_steps

    @property
    def interval(self) -> int:
        """Simulator steps after which the controller is judged again, at the end of an update."""
        return max(1, self.steps // self.evaluations)

    @property
    def epochs(self) -> int:
        """How often it is judged in all, but for the untrained controller."""
        update = self.update_steps
        before_the_last = (self.steps - 1) // update  # updates, after each of which it may be judged once
        return 1 + min(before_the_last, before_the_last * update // self.interval)

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
