"""Many episodes of one system, stepped as one torch batch: what vector environments in NumPy and in torch share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode
from torch import Tensor

from bptt_envs.checks import as_array, in_memory, one_of, positive_integer, shown
from bptt_envs.compiled_step import CompiledStep, stepped
from bptt_envs.differentiable import Differentiable, check_reset_options, check_reset_seed, episode_generator
from bptt_envs.surroundings import own_surroundings
from bptt_envs.system import System
from bptt_envs.task import while_going_on


class Batch(Differentiable):
    """N episodes, where each stands, and when an ended one is followed by the next.

    Start states are drawn on the CPU, so that a seed starts the same episodes on every device.

    Args:
        system: the physics, or a task.
        num_envs: N.
        autoreset_mode: when an ended episode is followed by the next one, as in Gymnasium.
        dtype: that of the states.
        device: where they are.

    Raises:
        ValueError: if an argument is out of range.
    """

    _np_random: np.random.Generator | None = None  # as Gymnasium's VectorEnv has them
    _np_random_seed: int | None = None

    def __init__(
        self,
        system: System,
        num_envs: int,
        autoreset_mode: AutoresetMode | str,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> None:
        self.system = system
        self.num_envs = positive_integer("num_envs", num_envs)
        in_memory("num_envs", self.num_envs, self.system.state_size)
        if not isinstance(autoreset_mode, AutoresetMode):
            one_of("autoreset_mode", autoreset_mode, [mode.value for mode in AutoresetMode])
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.dtype = dtype
        self.device = torch.device("cpu") if device is None else device
        self._generator: torch.Generator | None = None
        self._state: Tensor | None = None
        self._steps = np.zeros(self.num_envs, dtype=np.int64)
        self._over = np.zeros(self.num_envs, dtype=np.bool_)
        self._compiled: CompiledStep | None = None

    @property
    def state(self) -> Tensor:
        """The current states, (N, *state_shape)."""
        return self._current_state().clone()

    def _begin(self, seed: int | list[int | None] | None, options: dict[str, Any] | None) -> np.ndarray:
        """Start the episodes of a reset; returns in which environments, (N,) of bool."""
        options = check_reset_options(options, known=["state", "reset_mask"])
        mask = self._reset_mask(options.get("reset_mask"))
        if self._state is None and not mask.all():
            raise ResetNeeded(
                "the first reset must start every environment; "
                f"options['reset_mask'] leaves out {np.flatnonzero(~mask).tolist()}."
            )
        if self._compiled is not None:
            self._compiled.refresh(self.system)
        states = self._seeded_states(seed)
        if "state" in options:
            assert self._generator is not None
            states = self._given_states(options["state"], self._generator)
        if self._state is not None and not mask.all():
            states = torch.where(self._rows(mask), states, self._state)
        self._state = states
        self._steps[mask] = 0
        self._over[mask] = False
        return mask

    def _given_states(self, states: Any, generator: torch.Generator) -> Tensor:
        """The reset option "state" as states at the start of episodes, (N, *state_shape), else ValueError."""
        raise NotImplementedError

    def _advance(self, actions: Tensor) -> tuple[Tensor, Tensor, np.ndarray, bool]:
        """Step every environment; with next-step autoreset, begin anew those that ended the step before.

        Args:
            actions: (N, *action_shape).

        Returns:
            Observations, rewards (N,), which environments end their episode (N,), and whether any does.
        """
        ended = self._over.copy()
        restarts = _any(ended)
        step = stepped if self._compiled is None else self._compiled
        before, starts = self._current_state(), None
        if restarts:  # next-step autoreset: this step is the reset of the episodes that ended before it, and what the
            assert self._generator is not None  # physics makes of them is dropped; an end may be where it has no slope
            starts = self._drawn(self.num_envs, self._generator)
            before = torch.where(self._rows(ended), starts, before)
        self._state, reward, observed, over = step(self.system, before, actions)
        self._steps += 1
        terminated = self._steps == self.horizon
        terminated = terminated if over is None else terminated | over.cpu().numpy()
        ends = _any(terminated)
        if ends:
            last = self._rows(terminated, 1)
            (paying,) = while_going_on(~last, self._state)  # no slope of the cost where it is not paid
            reward = torch.where(last, reward + self.final_reward(paying), reward)
        if restarts:
            self._restart(ended, starts)
            observed = self.observe(self._current_state())
            reward = reward.masked_fill(self._rows(ended, 1), 0.0)
            terminated[ended] = False
            ends = _any(terminated)
        self._over = terminated.copy()
        return observed, reward, terminated, ends

    def _check_may_step(self) -> None:
        """Raise ResetNeeded before the first reset, and where an episode is over that nobody begins anew."""
        self._current_state()
        if self.autoreset_mode is not AutoresetMode.NEXT_STEP and _any(self._over):
            steps = ", ".join(map(str, np.unique(self._steps[self._over])))
            raise ResetNeeded(
                f"step was called after the {steps} steps of environments {np.flatnonzero(self._over).tolist()}; "
                'reset them first, with reset(options={"reset_mask": ...}).'
            )

    def _restart(self, mask: np.ndarray, starts: Tensor | None = None) -> None:
        """Begin new episodes where a mask holds, from `starts`, (N, *state_shape); None: from states drawn now."""
        if starts is None:
            assert self._generator is not None
            starts = self._drawn(self.num_envs, self._generator)
        self._state = torch.where(self._rows(mask), starts, self._current_state())
        self._steps[mask] = 0
        self._over[mask] = False

    def _current_state(self) -> Tensor:
        if self._state is None:
            raise ResetNeeded("the environments have no state yet; call reset first.")
        return self._state

    def _rows(self, mask: np.ndarray, dims: int | None = None) -> Tensor:
        """A mask over environments, shaped to broadcast over states (or over `dims` dimensions)."""
        dims = 1 + len(self.system.state_shape) if dims is None else dims
        return torch.from_numpy(mask).reshape(-1, *[1] * (dims - 1)).to(self.device)

    def _drawn(self, count: int, generator: torch.Generator) -> Tensor:
        with own_surroundings(self.dtype):
            return self.system.initial_states(count, generator, self.dtype).to(self.device)

    def _seeded_states(self, seed: int | list[int | None] | None) -> Tensor:
        if seed is None and self._generator is not None:
            return self._drawn(self.num_envs, self._generator)
        seeds: list[int | None]
        if isinstance(seed, (list, tuple)) or (isinstance(seed, np.ndarray) and seed.ndim == 1):
            seeds = [check_reset_seed(one) for one in seed]
        else:
            first = check_reset_seed(seed)
            seeds = [None if first is None else first + i for i in range(self.num_envs)]
        if len(seeds) != self.num_envs:
            raise ValueError(f"seed must hold one seed for each of the {self.num_envs} environments; got {len(seeds)}.")
        self._np_random, self._np_random_seed = seeding.np_random(seeds[0])
        generators = [episode_generator(seeding.np_random(one)[0]) for one in seeds]
        self._generator = generators[0]
        return torch.cat([self._drawn(1, generator) for generator in generators])

    def _reset_mask(self, mask: Any) -> np.ndarray:
        if mask is None:
            return np.ones(self.num_envs, dtype=np.bool_)
        array = as_array(mask)
        if array is None or array.shape != (self.num_envs,) or array.dtype != np.bool_:
            got = shown(mask) if array is None else f"{array.dtype}, {array.shape}"
            raise ValueError(f"options['reset_mask'] must be a bool array of shape ({self.num_envs},); got {got}.")
        return np.array(array)


def _any(mask: np.ndarray) -> bool:
    """Whether a mask holds anywhere; `mask.any()` takes five times as long on a thousand."""
    return bool(np.count_nonzero(mask))
