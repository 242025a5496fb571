"""What a run asks of whatever learns in it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from bptt_envs import System
from bptt_trainers.directions.rollout import Trajectory, losses
from bptt_trainers.directions.surroundings import computing
from bptt_trainers.training.books import Checkpoint
from bptt_trainers.training.queries import DirectionQuery, Query

_NAN = float("nan")


@dataclass(frozen=True)
class Update:
    """What came of one update.

    Attributes:
        seconds: that it took.
        simulator_steps: steps of the physics that it took.
        loss: of its batch; NaN for none.
        direction_norm: norm of the direction before clipping; NaN for none.
        objection: why nothing was changed, in words, such as "the loss is nan"; None: the update was made.
        sign_agreement, cosine: of R and M, if the update measured them.
        own: numbers of the learner's own, by names of its `OWN`.
    """

    seconds: float
    simulator_steps: int
    loss: float = _NAN
    direction_norm: float = _NAN
    objection: str | None = None
    sign_agreement: float = _NAN
    cosine: float = _NAN
    own: Mapping[str, float] = field(default_factory=dict)


class Learner(ABC):
    """Keeps what is learnt and goes on learning, update by update; a `Run` keeps the books.

    Attributes:
        system: the physics, whose loss judges.
        train_states: start states over which the training loss is taken, (N, *state_shape).
        test_states: held-out start states, (M, *state_shape).
        OWN: names of the numbers of its own that updates give: a mean of each is kept with every epoch.
    """

    OWN: ClassVar[tuple[str, ...]] = ()

    system: System
    train_states: Tensor
    test_states: Tensor

    @property
    @abstractmethod
    def updates_per_epoch(self) -> int:
        """Updates of one epoch."""

    @property
    @abstractmethod
    def policy(self) -> Any:
        """What acts: a function of observations."""

    @abstractmethod
    def session(self) -> AbstractContextManager[None]:
        """Around all else but reading and `state_dict`: the caller's surroundings and random numbers stay his.

        Raises:
            ValueError: if what acts cannot be trained so.
        """

    @abstractmethod
    def begin(self) -> None:
        """Start from the seed, before the first update or `load_state_dict`."""

    def epoch(self, number: int) -> AbstractContextManager[None]:
        """Around the updates of the epoch after `number` others; what acts outside is what is judged."""
        return nullcontext()

    @abstractmethod
    def update(self, number: int) -> Generator[Query, None, Update]:
        """Make update `number` of the run, from 0 on; what is to be computed is yielded, and answered there."""

    def answer(self, query: DirectionQuery) -> None:
        """Compute what a query of `update` asks for; only a learner that yields some is asked."""
        raise NotImplementedError

    @abstractmethod
    def trajectory(self, states: Tensor) -> Trajectory:
        """Episodes from `states`, (B, *state_shape), as it is judged: without noise, learning nothing."""

    def evaluate(self, states: Tensor) -> float:
        """Mean loss over episodes from `states`, (B, *state_shape)."""
        with computing(states):
            return float(losses(self.system, self.trajectory(states)).mean())

    @abstractmethod
    def state_dict(self) -> Checkpoint:
        """Copies of all that it goes on from: tensors and plain values. "controller" holds what acts, by name."""

    @abstractmethod
    def load_state_dict(self, state: Checkpoint) -> None:
        """Go on from a state that `state_dict` gave."""

    def random_state(self) -> Checkpoint:
        """The state of the random numbers that it draws."""
        return {"rng_state": torch.get_rng_state()}

    def set_random_state(self, state: Checkpoint) -> None:
        """Go on with random numbers from `state`."""
        torch.set_rng_state(state["rng_state"])
