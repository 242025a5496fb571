"""Timing several programs fairly on a noisy machine."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass
from typing import TypeVar

import torch

Key = TypeVar("Key")

WARM_UP = 2  # runs of each program before its time counts
LEAST_REPEATS = 3
BLOCK = 0.03  # s; a shorter program runs several times in a row, past the threads that the one before left spinning


@dataclass(frozen=True)
class Timing:
    """Seconds that one run took: the median of some, the least, the largest."""

    median: float
    least: float
    largest: float


def in_turns(programs: Mapping[Key, Callable[[], object]], repeats: int, warm_up: int = WARM_UP) -> dict[Key, Timing]:
    """Time programs one after the other, again and again.

    A slow moment of the machine meets all of them, so that the ratios of the medians hold. A program that hands
    back work to a device must wait for it.

    Args:
        programs: what to time.
        repeats: runs of each that count.
        warm_up: runs of each before that.
    """
    seconds: dict[Key, list[float]] = {key: [] for key in programs}
    for turn in range(warm_up + repeats):
        for key, run in programs.items():
            begin = time.perf_counter()
            run()
            if turn >= warm_up:
                seconds[key].append(time.perf_counter() - begin)
    return {key: Timing(statistics.median(taken), min(taken), max(taken)) for key, taken in seconds.items()}


def in_turns_within(
    programs: Mapping[Key, Callable[[], object]], seconds: float, most: int
) -> tuple[dict[Key, Timing], int]:
    """`in_turns`, as often as so many seconds allow; short programs several times in a row, which gives their mean.

    Args:
        programs: what to time; each has run before.
        seconds: for all of them together. Three repeats are made in any case.
        most: repeats that are enough.

    Returns:
        The timings of one run, and the repeats of which they are the median, the least and the largest.
    """
    estimates = in_turns(programs, repeats=1, warm_up=0)
    rows = {key: max(1, math.ceil(BLOCK / max(1e-9, timing.median))) for key, timing in estimates.items()}
    turn = sum(rows[key] * timing.median for key, timing in estimates.items())
    repeats = min(most, max(LEAST_REPEATS, int(seconds / max(turn, 1e-9))))
    timings = in_turns({key: _in_a_row(run, rows[key]) for key, run in programs.items()}, repeats, warm_up=1)
    each = {key: Timing(*(value / rows[key] for value in astuple(timing))) for key, timing in timings.items()}
    return each, repeats


def _in_a_row(run: Callable[[], object], count: int) -> Callable[[], object]:
    def block() -> None:
        for _ in range(count):
            run()

    return block


def waited_for(program: Callable[[], object], device: str) -> Callable[[], object]:
    """The program, and the end of what it left to a GPU."""
    if torch.device(device).type != "cuda":
        return program

    def run() -> None:
        program()
        torch.cuda.synchronize(device)

    return run
