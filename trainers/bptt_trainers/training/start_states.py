"""Start states: for training from a seed; for validation and held out, each the same for everybody."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from bptt_envs import System, checks
from bptt_envs.differentiable import start_states
from bptt_trainers.directions.system_of import Physics, given_system
from bptt_trainers.training.config import TrainConfig

WEIGHTS, TRAINING, HELD_OUT, MASKS, VALIDATION, FRESH, ORDER, NOISE = range(8)
"""Streams of random numbers that never meet."""

Draw = Callable[[int, torch.Generator], Tensor]
"""Draws (count, *state_shape) start states by a generator on the CPU."""


def stream_seed(stream: int, seed: int = 0, *parts: int) -> int:
    """A seed for torch, different for every stream, seed and numbered part of the stream."""
    return int(np.random.SeedSequence([stream, seed, *parts]).generate_state(1, np.uint64)[0] >> 1)


def training_states(system: Physics, count: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Draw (count, *state_shape) start states of a system, or of an environment of it, for training from `seed`.

    Raises:
        TypeError, ValueError: if an argument is not what it should be; the message names it.
    """
    return _drawn(system, count, stream_seed(TRAINING, checks.seed("seed", seed)), dtype)


def held_out_states(system: Physics, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The (count, *state_shape) held-out start states, on which every method and seed is judged.

    In float64 they are other ones; the same ones are `held_out_states(system, count).double()`.

    Raises:
        TypeError, ValueError: as `training_states`.
    """
    return _drawn(system, count, stream_seed(HELD_OUT), dtype)


def validation_states(system: Physics, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The (count, *state_shape) start states by which settings are chosen, none of them trained on or held out.

    Raises:
        TypeError, ValueError: as `training_states`.
    """
    return _drawn(system, count, stream_seed(VALIDATION), dtype)


class StartStates:
    """The start states that a run trains on.

    Args:
        system: the physics.
        config: how many an epoch visits and which, and the seed.
        given: the user's own: a set (config.train_states, *state_shape), or a function that draws them. None: the
            system's.
        like: what the states are to have the dtype and device of.

    Attributes:
        first: (config.train_states, *state_shape), over which the training loss is taken.

    Raises:
        TypeError, ValueError: if those given cannot be used; the message names what is wrong.
    """

    def __init__(self, system: System, config: TrainConfig, given: Tensor | Draw | None, like: Tensor) -> None:
        self._system = system
        self._config = config
        self._like = like
        if given is not None and not isinstance(given, Tensor) and not callable(given):
            raise TypeError(
                "train_states must be a tensor (N, *state_shape), a function of a count and a generator that draws "
                f"as many, or None; got {checks.shown(given)}."
            )
        self._draw: Draw = system.initial_states if given is None or isinstance(given, Tensor) else given
        if isinstance(given, Tensor):
            if config.start_states == "fresh":
                raise ValueError('start_states="fresh" draws new states; train_states must be a function, not a set.')
            self.first = checked_states("train_states", given, system, config.train_states).to(like)
        else:
            self.first = self._drawn(stream_seed(TRAINING, config.seed))

    def of_epoch(self, epoch: int) -> Tensor:
        """Those of an epoch, numbered from 0 through the run, as they are visited, (config.train_states, ...)."""
        if self._config.start_states == "fixed":
            return self.first
        if self._config.start_states == "fresh":
            return self._drawn(stream_seed(FRESH, self._config.seed, epoch))
        generator = torch.Generator().manual_seed(stream_seed(ORDER, self._config.seed, epoch))
        order = torch.randperm(len(self.first), generator=generator)
        return self.first[order.to(self.first.device)]

    def some(self, count: int, number: int) -> Tensor:
        """Start states of episodes that begin in update `number`, (count, ...): new ones, or any of the set."""
        generator = torch.Generator().manual_seed(stream_seed(FRESH, self._config.seed, number))
        if self._config.start_states != "fresh":
            return self.first[torch.randint(len(self.first), (count,), generator=generator).to(self.first.device)]
        drawn = self._draw(count, generator)
        return _finite_states("train_states", drawn, self._system, count, generator).to(self._like)

    def _drawn(self, seed: int) -> Tensor:
        count = checks.in_memory("train_states", self._config.train_states, self._system.state_size)
        generator = torch.Generator().manual_seed(seed)
        drawn = self._draw(count, generator)
        return checked_states("train_states", drawn, self._system, count, generator).to(self._like)


def checked_states(
    name: str,
    states: Tensor,
    system: System,
    count: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return `states` as start states, (N, *state_shape), finite and cut off from any graph.

    Those of the system within a task are taken at the start of an episode.

    Args:
        name: of the argument, for the message.
        states: what was given.
        system: the physics.
        count: how many there must be; None: at least one.
        generator: draws what a task draws for an episode; None: always the same.

    Raises:
        TypeError, ValueError: if they are anything else.
    """
    states = _finite_states(name, states, system, count, generator)
    over = system.episode_over(states)
    if over is not None and bool(over.all()):
        raise ValueError(f"{name}: terminated is true of all of them, so that no episode has a step.")
    return states


def _finite_states(
    name: str, states: Tensor, system: System, count: int | None, generator: torch.Generator | None
) -> Tensor:
    """The same, of which all episodes may be over at once, as a few that are drawn may be."""
    states = start_states(name, states, system, generator)
    if len(states) == 0 or not bool(states.isfinite().all()):
        raise ValueError(f"{name} must be one or more finite states; got {checks.shown(states)}.")
    if count is not None and len(states) != count:
        raise ValueError(f"{name} must be {count} start states, as many as TrainConfig says; got {len(states)}.")
    return states.detach()


def _drawn(system: Physics, count: int, seed: int, dtype: torch.dtype) -> Tensor:
    system = given_system(system)
    if dtype is not torch.float32 and dtype is not torch.float64:
        raise ValueError(f"dtype must be torch.float32 or torch.float64; got {checks.shown(dtype)}.")
    count = checks.in_memory("count", checks.positive_integer("count", count), system.state_size)
    return system.initial_states(count, torch.Generator().manual_seed(seed), dtype)
