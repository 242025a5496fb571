"""From the engine as it is to its compiled form, once the programs are made: a second process makes them meanwhile."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from torch import Tensor

from bptt_envs.checks import shown
from bptt_envs.maker import Maker
from bptt_envs.program import CompilerError
from bptt_envs.settings import By
from bptt_trainers.directions.adjoint import AdjointEngine
from bptt_trainers.directions.compiled import CompiledEngine
from bptt_trainers.directions.rollout import Trajectory
from bptt_trainers.directions.rules import Feedback


def compile_setting(name: str, value: Any) -> bool | Literal["auto"]:
    """Return `value` if it is True, False or "auto", else raise ValueError."""
    if isinstance(value, str) and value == "auto":
        return "auto"
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True, False or 'auto'; got {shown(value)}.")
    return value


Compile = Annotated[bool | Literal["auto"], By(compile_setting)]


class Switch:
    """Has the programs made that an engine would need, for the calls that it sees."""

    def __init__(self) -> None:
        self.failed = False
        self._maker = Maker()
        self._seen: set[object] = set()

    def watching(
        self,
        engine: AdjointEngine,
        passes: Sequence[Feedback],
        noise: Tensor | None,
        show: Callable[[Trajectory], object] | None,
    ) -> Callable[[Trajectory], object]:
        """What is to be shown the episodes of a call, before `show` is."""

        def see(trajectory: Trajectory) -> None:
            self._see(engine, passes, noise, trajectory)
            if show is not None:
                show(trajectory)

        return see

    def ready(self) -> bool:
        """Whether all programs are made that the calls so far need.

        Warns:
            UserWarning: once, if one cannot be made.
        """
        if self.failed or not self._seen:
            return False
        try:
            return self._maker.finished()
        except CompilerError as error:
            self._give_up(error)
            return False

    def close(self) -> None:
        """End the process that makes them. Calls that are seen later begin anew."""
        self._maker.close()
        self._seen.clear()

    def _see(
        self, engine: AdjointEngine, passes: Sequence[Feedback], noise: Tensor | None, trajectory: Trajectory
    ) -> None:
        call = (engine, tuple(passes), trajectory.states.shape, noise is None)
        if self.failed or call in self._seen:
            return
        self._seen.add(call)
        try:
            self._maker.make(list(CompiledEngine(engine).orders(trajectory, passes, noise).values()))
        except CompilerError as error:
            self._give_up(error)

    def _give_up(self, error: CompilerError) -> None:
        self.failed = True
        self.close()
        warnings.warn(f"compile='auto' goes on uncompiled: {error}", stacklevel=2)
