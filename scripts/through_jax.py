"""Train through somebody else's physics: a flow of Burgers' equation by exponax, which is written in JAX.

    pip install "stable-bptt[jax]" exponax
    python scripts/through_jax.py --epochs 20

Eight actuators bring the flow to rest. Controller, rule and trainer are torch's, and each step goes through JAX.
"""

from __future__ import annotations

import argparse
import math

import exponax
import jax.numpy as jnp
import torch
from torch import Tensor

from bptt_envs.function_system import FunctionSystem
from bptt_envs.jax_step import Array, jax_step
from bptt_trainers import MLP, TrainConfig, Trainer

POINTS, ACTUATORS, HORIZON, DT = 32, 8, 25, 0.02

flow = exponax.ForcedStepper(exponax.stepper.Burgers(1, 1.0, POINTS, DT, diffusivity=0.01))
places = jnp.arange(POINTS) / POINTS - (jnp.arange(ACTUATORS)[:, None] + 0.5) / ACTUATORS
shapes = jnp.exp(10.0 * (jnp.cos(2 * jnp.pi * places) - 1.0))  # (actuators, points), on a ring


def step(velocity: Array, strengths: Array) -> Array:
    """One step in JAX of one sample: (1, points) and (actuators) to (1, points)."""
    return flow(velocity, (strengths @ shapes)[None])


def start(number: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Two waves of random heights and places, (number, 1, points)."""
    draw = torch.rand(number, 2, 2, generator=generator, device=generator.device, dtype=dtype)
    x = torch.arange(POINTS, device=generator.device, dtype=dtype) / POINTS
    phases = torch.tensor([1.0, 2.0]).to(draw)[:, None] * x + draw[..., 1:]
    return (draw[..., :1] * (2 * math.pi * phases).sin()).sum(1, keepdim=True)


def kinetic_energy(velocity: Tensor) -> Tensor:
    """The mean square of the velocity, (B, 1, points) to (B,)."""
    return velocity.square().mean((1, 2))


def main(epochs: int, rule: str, states: int) -> None:
    """Train, and print the held-out loss."""
    system = FunctionSystem(
        step=jax_step(step),
        start=start,
        cost=kinetic_energy,
        state_shape=(1, POINTS),
        action_shape=(ACTUATORS,),
        horizon=HORIZON,
        dt=DT,
        objective="continuous",
        max_action=2.0,
    )
    controller = MLP(system.observation_shape, system.action_shape, (32,))
    config = TrainConfig(
        rule=rule, epochs=epochs, train_states=states, test_states=states, learning_rate=3e-3, clip="norm"
    )
    for metrics in Trainer(system, controller, config).fit():
        print(f"epoch {metrics.epoch}: held-out loss {metrics.test_loss:.4f}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20, help="passes over the start states")
    parser.add_argument("--rule", default="C", help="R, M, S, C, ...")
    parser.add_argument("--states", type=int, default=64, help="start states to train on, and as many to be judged by")
    main(**vars(parser.parse_args()))
