"""Rule C by hand: a pole swung up with nothing but bptt_envs and torch, to be read from top to bottom.

    python scripts/by_hand.py --updates 800

A minute or so; `Trainer` does the same by a faster engine, with checkpoints, evaluation and resuming.
"""

from __future__ import annotations

import argparse
import itertools

import torch
from torch import Tensor, nn

import bptt_envs

env = bptt_envs.make_env("DiffCartPole-v0", max_force=50.0, observation="cos_sin", observe_time=True)


def loss_of(controller: nn.Module, states: Tensor, *, modified: bool) -> Tensor:
    """The mean loss of an episode from each state, (B, 4); `modified`: gradients flow back through the physics only."""
    total = torch.zeros(len(states))
    for _ in range(env.horizon):
        observations = env.observe(states)
        actions = controller(observations.detach() if modified else observations)
        states, rewards = env.step_differentiable(states, actions)
        total = total - rewards
    return (total - env.final_reward(states)).mean()


def direction_of(controller: nn.Module, states: Tensor) -> list[Tensor]:
    """Rule C: each component of M's direction where its sign is that of R's, else 0."""
    parameters = list(controller.parameters())
    regular = torch.autograd.grad(loss_of(controller, states, modified=False), parameters)
    modified = torch.autograd.grad(loss_of(controller, states, modified=True), parameters)
    return [m * (m.sign() == r.sign()) for r, m in zip(regular, modified, strict=True)]


def main(updates: int, batch: int) -> None:
    """Train a small network, and print the loss from states that it never saw."""
    torch.manual_seed(0)
    sizes = (env.observe(env.initial_states(1)).shape[1], 64, 64)
    layers = [part for n, m in itertools.pairwise(sizes) for part in (nn.Linear(n, m), nn.ReLU())]
    controller = nn.Sequential(*layers, nn.Linear(sizes[-1], 1))
    optimizer = torch.optim.Adam(controller.parameters(), lr=0.0125, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    held_out = env.initial_states(256)
    for update in range(updates + 1):
        if update % 50 == 0:
            with torch.no_grad():
                print(f"update {update}: held-out loss {loss_of(controller, held_out, modified=False):.4f}", flush=True)
        for parameter, direction in zip(
            controller.parameters(), direction_of(controller, env.initial_states(batch)), strict=True
        ):
            parameter.grad = direction
        nn.utils.clip_grad_norm_(controller.parameters(), 0.3)
        optimizer.step()
        schedule.step()


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--updates", type=int, default=800)
    options.add_argument("--batch", type=int, default=4, help="start states an update, new ones each time")
    main(**vars(options.parse_args()))
