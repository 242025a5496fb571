"""The step of environments as one compiled program, which follows the system as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bptt_envs.fingerprint import Watch
from bptt_envs.system import System

if TYPE_CHECKING:
    from bptt_envs.program import Program


def stepped(system: System, states: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """One step of environments.

    Args:
        system: the physics.
        states: (N, *state_shape).
        actions: (N, *action_shape).

    Returns:
        The next states, the rewards (N,), the observations and, of a system whose episodes end early, whether they
        do, (N,), else None.
    """
    actions = system.bound(actions)
    following = system.step(states, actions)
    rewards = -system.running_cost(states, actions, following)
    return following, rewards, system.observe(following), system.episode_over(following)


class CompiledStep:
    """One step of a number of environments as a compiled program.

    It is made anew when the system changes, or another one is handed in. What changes within a class, or in a tensor
    behind torch's back, is noticed by `refresh`, all else at once.

    Args:
        system: the physics.
        count: of the environments, N.

    Raises:
        CompilerError: if the step cannot be compiled.
    """

    def __init__(self, system: System, count: int) -> None:
        self.count = count
        self._system = system
        self._made: tuple[Watch, Program] | None = None
        self._last: Tensor | None = None  # the states that the program gave last: they are laid out as it wants them
        self.refresh(system)

    def __call__(self, system: System, states: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """What `stepped` gives, without gradients."""
        if self._made is None or system is not self._system or not self._made[0].unchanged():
            self.refresh(system)
            assert self._made is not None
        program = self._made[1]
        given = program.again(states, actions) if states is self._last else program(states, actions)
        self._last = given[0]
        return given[0], given[1], given[2], given[3] if len(given) == 4 else None

    def refresh(self, system: System) -> None:
        """Make the program anew if the system is not as it was."""
        if self._made is None or system is not self._system or not self._made[0].unchanged(thoroughly=True):
            from bptt_envs.program import Program  # costs as much to import as all else here besides torch

            states = system.initial_states(self.count, torch.Generator().manual_seed(0)).contiguous()
            actions = torch.zeros(self.count, *system.action_shape)
            self._made = Watch(system), Program(lambda *inputs: _recorded(system, *inputs), [states, actions])
            self._system, self._last = system, None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_made": None, "_last": None}  # a program is loaded anew where it is needed


def _recorded(system: System, states: Tensor, actions: Tensor) -> tuple[Tensor, ...]:
    """What `stepped` gives, in the layout that a program takes its states in, without what is None."""
    following, rewards, observations, over = stepped(system, states, actions)
    given = (following.contiguous(), rewards, observations)
    return given if over is None else (*given, over)
