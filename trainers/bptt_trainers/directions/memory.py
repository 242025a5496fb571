"""Whether a controller remembers what it saw before, with nobody to make it forget between episodes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bptt_envs import System
from bptt_envs.fingerprint import fingerprint
from bptt_trainers.directions.augmented import Act, acting, augmented
from bptt_trainers.directions.snapshot import evaluating, forked_rng

CALLS = 8  # before the one that is looked at: a memory may answer late


def refuse_memory(system: System, controller: nn.Module, states: Tensor) -> None:
    """Raise ValueError if, in eval mode, the actions depend on what the controller was called with before.

    Statistics that are gathered in training mode only, as normalisers do, are no memory. The controller is left as it
    was.

    Args:
        system: the physics.
        controller: from observations to actions.
        states: (B, *state_shape), B >= 1.
    """
    with torch.no_grad():
        system = augmented(system, controller)
        act, states = acting(system, controller), system.episode_start(states)
        seen = system.observe(states)
        others = [system.observe(states + shift) for shift in (0.5, -0.5)]
        alone = _acts(controller, act, [seen])
        with evaluating(controller):
            before = fingerprint(controller)
            act(seen)
            after = fingerprint(controller)
        first, second = (_acts(controller, act, [*[other] * CALLS, seen]) for other in others)
    counts = before != after and not torch.equal(first, alone)  # such as one that counts its calls
    if counts or not torch.equal(first, second):
        raise ValueError(
            f"controller {type(controller).__name__} keeps state between calls, in eval mode too: its actions depend "
            "on what it was called with before, and nothing resets that between episodes. What it is to remember goes "
            "through its arguments: with an attribute memory_shape it gets the memory beside the observation and "
            "returns the next one beside the actions, forward(observation, memory) -> (action, memory). Statistics "
            "that a normaliser gathers may change while self.training only."
        )


def _acts(controller: nn.Module, act: Act, observations: list[Tensor]) -> Tensor:
    """The actions for the last of the observations, met one after the other; each with the same random numbers."""
    with evaluating(controller):
        for observation in observations:
            with forked_rng(controller):
                actions: Tensor = act(observation)
    return actions.nan_to_num()
