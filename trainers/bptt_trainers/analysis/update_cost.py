"""What one update costs by each engine, in seconds and in bytes of tensors."""

from __future__ import annotations

import statistics
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bptt_envs import System
from bptt_trainers.directions.augmented import draw_noise
from bptt_trainers.directions.policy_gradient import choose_engine
from bptt_trainers.directions.rules import get_rule

ENGINES = ("adjoint", "autograd")
REPEATS = 3
ENOUGH = 1.0  # seconds after which no further update is begun
MOST_BYTES_SECONDS = 2.0  # of an update whose bytes are counted, which takes several times as long


@dataclass(frozen=True)
class UpdateCost:
    """What one update by rule C costs.

    Attributes:
        engine: its name.
        seconds: the median of a few updates after a first one, or the first where it takes long.
        peak_bytes: bytes of tensors that are alive at once, at most, those from before the update left out; what
            libraries take for themselves is not in it. None: not counted, as an update takes too long.
        obstacle: why the engine cannot serve; None if it can.
    """

    engine: str
    seconds: float
    peak_bytes: int | None
    obstacle: str | None = None

    @property
    def time(self) -> str:
        """The seconds in words."""
        return f"{1e3 * self.seconds:.3g} ms" if self.seconds < 1.0 else f"{self.seconds:.3g} s"

    @property
    def memory(self) -> str:
        """The bytes in words."""
        return "not counted" if self.peak_bytes is None else f"{self.peak_bytes / 1e6:.3g} MB"


def update_costs(system: System, controller: nn.Module, initial_states: Tensor) -> list[UpdateCost]:
    """Measure an update by rule C with each engine.

    Args:
        system: the physics.
        controller: any that can be trained.
        initial_states: (B, *state_shape), in the dtype and on the device of the controller.
    """
    return [_cost(system, controller, initial_states, engine) for engine in ENGINES]


def _cost(system: System, controller: nn.Module, states: Tensor, engine: Any) -> UpdateCost:
    try:
        chosen = choose_engine(system, controller, states, engine).engine
    except ValueError as error:
        return UpdateCost(engine, float("nan"), None, str(error))
    noise = draw_noise(controller, system.horizon, states, torch.Generator().manual_seed(0))
    passes = get_rule("C").passes

    def update() -> None:
        chosen(states, passes, noise=noise, look=False)
        if states.is_cuda:
            torch.cuda.synchronize(states.device)

    def timed() -> float:
        begin = time.perf_counter()
        update()
        return time.perf_counter() - begin

    seconds = [timed()]
    while len(seconds) <= REPEATS and sum(seconds) < ENOUGH:
        seconds.append(timed())
    middle = statistics.median(seconds[1:] or seconds)
    return UpdateCost(engine, middle, _peak_bytes(update) if middle < MOST_BYTES_SECONDS else None)


def _peak_bytes(program: Callable[[], object]) -> int:
    tensors = _LiveTensors()
    with tensors:
        program()
    return tensors.peak


class _LiveTensors(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make, as long as they are alive.

    Attributes:
        peak: bytes that were alive at once, at most.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._alive: dict[int, weakref.ref[Any]] = {}
        self._bytes = 0
        self.peak = 0

    def __torch_dispatch__(
        self,
        operation: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = operation(*args, **(kwargs or {}))
        taken = {one.untyped_storage()._cdata for one in args if isinstance(one, Tensor)}  # views make nothing
        for one in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(one, Tensor) and one.untyped_storage()._cdata not in taken:
                self._see(one.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return
        self._alive[key] = weakref.ref(storage, lambda _: self._gone(key, size))
        self._bytes += size
        self.peak = max(self.peak, self._bytes)

    def _gone(self, key: int, size: int) -> None:
        del self._alive[key]
        self._bytes -= size
