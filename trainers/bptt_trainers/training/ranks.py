"""The processes that train one run together: start states are shared out, losses and directions are added up."""

from __future__ import annotations

import atexit
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from bptt_trainers.records.files import first_line
from bptt_trainers.training.config import device_name

Kind = TypeVar("Kind")

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun, or whoever starts processes as it does, tells each of them."""


class LostRankError(RuntimeError):
    """A process that trained the run, too, has ended before its time."""


class Ranks:
    """The processes that train one run together, of which this is one; without arguments it is alone.

    Each takes its share of a batch. What they add up, in one all-reduce an update, are the loss and the directions of
    the passes, R and M; rule C is formed after that, from those of the whole batch, as the signs of shares are others.
    So all have the same numbers and take the same step. The first of them keeps the books, and says what is to be said.

    Args:
        rank: which one this is, from 0 on.
        count: how many they are.
        device: where what they exchange lies, for more than one.
    """

    def __init__(self, rank: int = 0, count: int = 1, device: torch.device | None = None) -> None:
        self.rank = rank
        self.count = count
        self.device = device

    @property
    def first(self) -> bool:
        """Whether this is the one that keeps the books."""
        return self.rank == 0

    def share(self, batch: int) -> slice:
        """The samples that are this one's of a batch of so many; shares differ by one sample at most."""
        size, more = divmod(batch, self.count)
        begin = self.rank * size + min(self.rank, more)
        return slice(begin, begin + size + (self.rank < more))

    def joined(self, batch: int, losses: Tensor, passes: Mapping[Kind, Tensor]) -> tuple[Tensor, Mapping[Kind, Tensor]]:
        """Losses and directions of a whole batch, from those of this one's share: one all-reduce of one tensor.

        Args:
            batch: samples of all, B.
            losses: of its own samples, (1, b).
            passes: the direction of each pass for their mean, (1, n).

        Returns:
            The mean loss, (1, 1), or alone the losses, and the directions for the mean over all samples.
        """
        if self.count == 1:
            return losses, passes
        weight = losses.shape[1] / batch
        whole = torch.cat([losses.mean(1, keepdim=True), *passes.values()], dim=1) * weight
        self._add_up(whole)
        loss, *directions = whole.split([1, *(one.shape[1] for one in passes.values())], dim=1)
        return loss, dict(zip(passes, directions, strict=True))

    def mean(self, samples: Tensor, mean: Callable[[Tensor], float]) -> float:
        """The mean over samples, (B, ...), of something whose mean over some of them `mean` gives."""
        if self.count == 1:
            return mean(samples)
        mine = samples[self.share(len(samples))]
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        if len(mine):
            total += mean(mine) * len(mine) / len(samples)
        self._add_up(total)
        return float(total)

    def told(self, value: Kind) -> Kind:
        """What the first of them has here."""
        if self.count == 1:
            return value
        box = [value if self.first else None]
        with _in_words():
            dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]  # type: ignore[return-value]

    def all(self, answer: bool) -> bool:
        """Whether it holds in all of them."""
        against = torch.tensor(0.0 if answer else 1.0, device=self.device)
        if self.count > 1:
            self._add_up(against)
        return float(against) == 0.0

    def _add_up(self, numbers: Tensor) -> None:
        with _in_words():
            dist.all_reduce(numbers)


ALONE = Ranks()


def launched() -> int:
    """How many processes torchrun has started of this program; 1 if it was not started so."""
    return int(os.environ["WORLD_SIZE"]) if all(name in os.environ for name in VARIABLES) else 1


def join_ranks(device: str = "cpu") -> Ranks:
    """This process and those that torchrun started beside it; without torchrun it is alone.

    They talk by gloo on CPUs, and by NCCL on GPUs, of which each has one.

    Args:
        device: "cpu" or "cuda", as in `TrainConfig`.

    Raises:
        ValueError: if it is no such name, or there is not a GPU for each process on this machine.
        LostRankError: if the others cannot be reached.
    """
    place, count = torch.device(device_name("device", device)), launched()
    if count == 1:
        return ALONE
    if place.type == "cuda":
        local, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if place.index is not None or local >= there:
            raise ValueError(
                f"device must be 'cpu' or 'cuda', where each of the processes on a machine has a GPU of its own (torch "
                f"finds {there} here); got {device!r} for process {local}."
            )
        place = torch.device("cuda", local)
        torch.cuda.set_device(place)
    if not dist.is_initialized():  # once: what they have told each other to find each other cannot be told anew
        with _in_words():
            dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
        atexit.register(dist.destroy_process_group)
    return Ranks(dist.get_rank(), count, place)


@contextmanager
def _in_words() -> Iterator[None]:
    """Turn into words that another process cannot be reached."""
    try:
        yield
    except RuntimeError as error:
        reason = re.sub(r"\[/[^]]*\] ", "", first_line(error)).partition(". ")[0]  # without gloo's file and line
        raise LostRankError(
            f"a process that trains this run, too, has ended or cannot be reached ({reason})"
        ) from error
