"""The environments for TorchRL: specs, tensordicts, gradients on request. An extra: "stable-bptt[torchrl]"."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from gymnasium.error import DependencyNotInstalled
from torch import Tensor

from bptt_envs.checks import each, integer
from bptt_envs.system import System
from bptt_envs.torch_env import TorchVectorEnv

try:
    from tensordict import TensorDict, TensorDictBase
    from torchrl.data import Binary, Bounded, Composite, Unbounded
    from torchrl.envs import EnvBase
except ImportError as error:
    raise DependencyNotInstalled('TorchRL is not installed; run pip install "stable-bptt[torchrl]".') from error


class TorchRLEnv(EnvBase):  # type: ignore[misc]
    """A batch of environments with TorchRL's interface.

    Observations have no bounds, and their spec says so; actions have theirs, or, without any, the nominal range in
    which RL libraries explore, as in Gymnasium. Episodes end at the horizon with "terminated"; what has ended is begun
    anew by "_reset", as `rollout` and collectors do. The episodes are those of `TorchVectorEnv`, which is `env.batch`:
    after `set_seed(s)` the next reset starts environment i as a single one's `reset(seed=s + i)`.

    With `differentiable=True` gradients flow through `step` and `rollout`, until a reset or `env.batch.detach()`.

    Args:
        system: a `System`, an id, or the import path "module:Class" of a system, which are built with `options`.
        batch_size: how many environments, in which shape; () for a single one.
        device: where the tensors are; None: torch's default device.
        dtype: torch.float32 or torch.float64.
        differentiable: keep the graph of the steps, where the caller has gradients switched on.
        options: options of the system, and those of every environment (see `Task`).

    Raises:
        DependencyNotInstalled: on import, without TorchRL.
        ValueError: if an argument or an option is unknown or out of range.
    """

    def __init__(
        self,
        system: System | str,
        batch_size: Sequence[int] = (),
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        differentiable: bool = False,
        **options: Any,
    ) -> None:
        shape = torch.Size(
            each("batch_size", batch_size, lambda name, one: integer(name, one, 1), "a shape, such as (64,)")
        )
        batch = TorchVectorEnv(
            system,
            math.prod(shape),
            device=device,
            dtype=dtype,
            differentiable=differentiable,
            autoreset_mode="Disabled",
            **options,
        )
        super().__init__(device=batch.device, batch_size=shape)
        self.batch = batch
        self._seed: int | None = None
        place = {"dtype": dtype, "device": batch.device}
        low, high = (
            end.to(batch.device, dtype).expand(*shape, *batch.system.action_shape) for end in batch.system.action_range
        )
        seen = Unbounded((*shape, *batch.system.observation_shape), **place)
        self.observation_spec = Composite(observation=seen, shape=shape, device=batch.device)
        self.action_spec = Bounded(low, high, shape=low.shape, **place)
        self.reward_spec = Unbounded((*shape, 1), **place)
        ends = {
            name: Binary(1, shape=(*shape, 1), dtype=torch.bool, device=batch.device)
            for name in ("done", "terminated", "truncated")
        }
        self.done_spec = Composite(**ends, shape=shape, device=batch.device)

    def _reset(self, tensordict: TensorDictBase | None = None, **options: Any) -> TensorDictBase:
        """Begin all episodes, or those of "_reset"; `state=` is where to, (*batch_size, *state_shape)."""
        mask = None if tensordict is None else tensordict.get("_reset", None)
        if mask is not None:
            options["reset_mask"] = mask.reshape(-1)
        if isinstance(options.get("state"), Tensor):
            states = options["state"]
            if states.shape[: len(self.batch_size)] != self.batch_size:
                wanted = (*self.batch_size, *self.batch.system.state_shape)
                raise ValueError(f"state must be {wanted}, one for each environment; got {tuple(states.shape)}.")
            options["state"] = states.reshape(self.batch.num_envs, *states.shape[len(self.batch_size) :])
        seed, self._seed = self._seed, None
        observed, _ = self.batch.reset(seed=seed, options=options)
        over = torch.zeros(self.batch.num_envs, dtype=torch.bool, device=self.batch.device)
        return self._told(observed, over)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        actions = tensordict["action"].reshape(-1, *self.batch.system.action_shape)
        observed, reward, terminated, _, _ = self.batch.step(actions)
        return self._told(observed, terminated, reward=reward)

    def _set_seed(self, seed: int | None) -> None:
        self._seed = seed

    def _told(self, observed: Tensor, terminated: Tensor, **others: Tensor) -> TensorDictBase:
        """What a step or a reset tells, in the shape of the batch."""
        numbers = others | {"done": terminated, "terminated": terminated, "truncated": torch.zeros_like(terminated)}
        shaped = {name: one.reshape(*self.batch_size, 1) for name, one in numbers.items()}
        seen = observed.reshape(*self.batch_size, *self.batch.system.observation_shape)
        return TensorDict({"observation": seen, **shaped}, batch_size=self.batch_size, device=self.device)
