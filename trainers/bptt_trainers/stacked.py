"""Many parameter vectors of one controller at once: each member of the stack is a controller of its own."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.func import functional_call, vmap

from bptt_envs import System
from bptt_trainers.adjoint_engine import AdjointEngine
from bptt_trainers.rules import Directions, Feedback


class StackedController(nn.Module):
    """E copies of a controller that differ in their parameters only, run as one batch.

    A batch holds E parts of B observations, one after the other, and each part meets one member's parameters;
    several such batches, as of several time steps, may follow one another.

    Args:
        controller: a module that acts on each observation alone.
        parameters: by the names of the controller's trainable parameters, (E, *shape) each.
        episodes: observations of each member in a batch, B.
    """

    def __init__(self, controller: nn.Module, parameters: Mapping[str, Tensor], episodes: int) -> None:
        super().__init__()
        self.members = len(next(iter(parameters.values())))
        self.episodes = episodes
        template = copy.deepcopy(controller)
        self._template = (template,)  # in a tuple: its own parameters are none of this module's
        self._names = list(parameters)
        self._stack = nn.ParameterList([nn.Parameter(parameters[name].detach().clone()) for name in self._names])

    def forward(self, observation: Tensor) -> Tensor:
        """Observations (S E B, ...) -> actions (S E B, ...)."""

        def act(values: tuple[Tensor, ...], seen: Tensor) -> Tensor:
            named = dict(zip(self._names, values, strict=True))
            actions: Tensor = functional_call(self._template[0], named, (seen,))
            return actions

        parts = observation.unflatten(0, (-1, self.members, self.episodes)).transpose(0, 1)  # (E, S, B, ...)
        by_member: Tensor = vmap(act)(tuple(self._stack), parts.flatten(1, 2))
        steps_first: Tensor = by_member.unflatten(1, (-1, self.episodes)).transpose(0, 1)
        return steps_first.flatten(0, 2)

    def by_name(self, stacked: Mapping[str, Tensor]) -> Directions:
        """Tensors by this module's parameter names, by the controller's instead."""
        return {name: stacked[f"_stack.{i}"] for i, name in enumerate(self._names)}


def stacked_directions(
    system: System,
    controller: nn.Module,
    parameters: Mapping[str, Tensor],
    initial_states: Tensor,
    passes: Sequence[Feedback],
) -> tuple[Tensor, dict[Feedback, Directions]]:
    """Losses and directions of E controllers on the same start states.

    Args:
        system: the physics.
        controller: a module that the adjoint engine can serve; its own parameters are not used.
        parameters: by name, (E, *shape) each.
        initial_states: (B, *state_shape).
        passes: which paths each backward pass takes.

    Returns:
        The mean loss of each member, (E,), and for each pass the directions by name, (E, *shape).
    """
    stack = StackedController(controller, parameters, len(initial_states))
    engine = AdjointEngine(system, stack, by_layer=False, members=stack.members)
    episode_losses, directions = engine(_repeated(initial_states, stack.members), passes)
    by_name = {feedback: stack.by_name(direction) for feedback, direction in directions.items()}
    return episode_losses.view(stack.members, -1).mean(1), by_name


def _repeated(states: Tensor, members: int) -> Tensor:
    return states.repeat(members, *(1 for _ in states.shape[1:]))
