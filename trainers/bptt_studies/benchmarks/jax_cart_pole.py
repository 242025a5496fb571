"""DiffCartPole-v0 in JAX: the peer of the benchmark, as one would write it there (jit, scan, grad).

It is written for the benchmark and for nothing else: one pole, the paper's controller, the final loss, no bound.
The equations are those of `bptt_envs/systems/cart_pole.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax  # an extra: "stable-bptt[bench]"
import jax.numpy as jnp
import numpy as np
import torch
from jax import lax
from torch import Tensor

from bptt_envs.systems.cart_pole import CART_MASS, GRAVITY, HALF_LENGTH, POLE_MASS, CartPole
from bptt_trainers.controllers.networks import MLP
from bptt_trainers.directions.rules import PAPER_RULES, Directions, Feedback

Array = Any  # jax is no dependency: where it is missing, so are its types
Layers = list[tuple[Array, Array]]  # (weight, bias) of each, weight: (out, in)

UNROLL = 2  # steps in a body of the loop: of 1, 2, 4 and 8 it was the fastest, or as fast, from batch 8 to 1024


class JaxCartPole:
    """Loss and direction of an update of `DiffCartPole-v0` by each rule, in float32.

    Args:
        system: with the default objective, observation and no bound.
        controller: whose weights it takes.
        states: (B, 4).
    """

    def __init__(self, system: CartPole, controller: MLP, states: Tensor) -> None:
        self._names = [name.rpartition(".")[0] for name, _ in controller.named_parameters() if name.endswith("weight")]
        weights = {name: jnp.asarray(_numpy(value)) for name, value in controller.state_dict().items()}
        self._layers: Layers = [(weights[f"{name}.weight"], weights[f"{name}.bias"]) for name in self._names]
        self._states = jnp.asarray(_numpy(states))
        self._updates = {name: jax.jit(_update(rule.passes, system)) for name, rule in PAPER_RULES.items()}

    def __call__(self, rule: str) -> None:
        """Compute the update by a rule and wait for it."""
        jax.block_until_ready(self._run(rule))

    def directions(self, rule: str) -> tuple[float, Directions]:
        """The mean loss and the direction of a rule, by the controller's parameter names."""
        loss, layers = self._run(rule)
        named = zip(self._names, layers, strict=True)
        arrays = {f"{name}.{kind}": one for name, layer in named for kind, one in zip(_KINDS, layer, strict=True)}
        return float(loss), {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}

    def _run(self, rule: str) -> tuple[Array, Layers]:
        with jax.default_matmul_precision("highest"):  # as torch: no TF32 on a GPU
            loss, layers = self._updates[rule](self._layers, self._states)
        return loss, layers


_KINDS = ("weight", "bias")


def _update(passes: tuple[Feedback, ...], system: CartPole) -> Callable[[Layers, Array], tuple[Array, Layers]]:
    """From weights and start states to the mean loss and the direction, as `rules.combined` has it."""

    def update(layers: Layers, states: Array) -> tuple[Array, Layers]:
        found = [jax.value_and_grad(_loss)(layers, states, feedback, system) for feedback in passes]
        (loss, direction), *second = found
        if second:
            direction = jax.tree.map(_where_signs_agree, direction, second[0][1])
        return loss, direction

    return update


def _where_signs_agree(first: Array, second: Array) -> Array:
    return jnp.where(jnp.sign(first) == jnp.sign(second), second, 0.0)


def _loss(layers: Layers, states: Array, feedback: Feedback, system: CartPole) -> Array:
    """The mean loss, with the paths of `feedback` only."""

    def step(state: Array, _: None) -> tuple[Array, None]:
        seen = state if feedback.controller else lax.stop_gradient(state)
        moved = state if feedback.physics else lax.stop_gradient(state)
        return _step(moved, _act(layers, seen), system.dt), None

    final, _ = lax.scan(step, states, None, length=system.horizon, unroll=UNROLL)
    return (1.0 - jnp.cos(final[:, 2])).mean()


def _act(layers: Layers, state: Array) -> Array:
    """The controller: states (B, 4) -> forces (B,)."""
    hidden = state
    for weight, bias in layers[:-1]:
        hidden = jnp.tanh(hidden @ weight.T + bias)
    weight, bias = layers[-1]
    return (hidden @ weight.T + bias)[:, 0]


def _step(state: Array, f: Array, dt: float) -> Array:
    """One step of `dt`: states (B, 4), forces (B,) -> states."""
    m, l, g = POLE_MASS, HALF_LENGTH, GRAVITY  # noqa: E741  # the symbols of their source
    M = CART_MASS + POLE_MASS
    x, v, theta, w = (state[:, i] for i in range(4))
    s, c = jnp.sin(theta), jnp.cos(theta)
    A = (f + m * l * s * w**2) / M
    theta_acc = (g * s - c * A) / (l * (4 / 3 - m / M * c**2))
    x_acc = (f + m * l * (s * w**2 - theta_acc * c)) / M
    v, w = v + dt * x_acc, w + dt * theta_acc
    return jnp.stack([x + dt * v, v, theta + dt * w, w], axis=1)


def _numpy(values: Tensor) -> np.ndarray:
    array: np.ndarray = values.detach().cpu().numpy()
    return array
