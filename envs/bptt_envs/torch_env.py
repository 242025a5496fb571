"""Many environments over one system in torch tensors, on any device, with gradients on request."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor

from bptt_envs.batch import Batch
from bptt_envs.checks import flag, shown
from bptt_envs.differentiable import HALF, PRECISIONS, check_batch, load_system, precision, start_states
from bptt_envs.differentiable_env import make_env
from bptt_envs.surroundings import own_surroundings
from bptt_envs.system import System


class TorchVectorEnv(Batch):
    """`num_envs` environments in one batch, which takes and gives torch tensors.

    Its episodes are those of `DifferentiableVectorEnv`: the same seeds start the same ones, rewards, ends and autoreset
    are the same. With `differentiable=True` gradients flow from what `step` returns to the actions of this and all
    earlier steps of the episode, until `detach` or a reset cuts them off, and to start states that are given. Nobody
    looks whether actions are finite: a GPU is waited for only where episodes end early.

    Args:
        system: a `System`, or the import path "module:Class" of one, which is built with `options`.
        num_envs: number of environments, N.
        device: where the tensors are; None: torch's default device.
        dtype: torch.float32 or torch.float64.
        differentiable: keep the graph of the steps, where the caller has gradients switched on.
        autoreset_mode: when an ended episode is followed by the next one, as in Gymnasium: "NextStep" (the action
            of the step after the end counts for nothing, its reward is 0), "SameStep" or "Disabled".
        options: options of the system, and those of every environment (see `Task`).

    Raises:
        ValueError: if an argument or an option is unknown or out of range.
    """

    def __init__(
        self,
        system: System | str,
        num_envs: int = 1,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        differentiable: bool = False,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        **options: Any,
    ) -> None:
        precision("dtype", dtype)
        with own_surroundings():
            built = load_system(system, options, owner=type(self).__name__)
        super().__init__(built, num_envs, autoreset_mode, dtype=dtype, device=_place(device))
        self.differentiable = flag("differentiable", differentiable)
        self._losses = torch.zeros(self.num_envs, dtype=dtype, device=self.device)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Start an episode in every environment, or in those of a mask.

        Args:
            seed: environment i starts like a single one with `reset(seed=seed + i)`; or a list of seeds.
            options: {"state": (N, *state_shape)} starts from those states, with a task also from its system's;
                {"reset_mask": (N,) bool} leaves the environments where it is False as they are.

        Returns:
            Observations, (N, *observation_shape), and an empty dict.

        Raises:
            ResetNeeded: if a mask leaves out an environment that was never started.
            ValueError: if an option is unknown, or a value is of a wrong shape, dtype or device.
        """
        with own_surroundings(self.dtype, self.device), self._gradients():
            mask = self._begin(seed, options)
            self._losses = self._losses.masked_fill(self._rows(mask, 1), 0.0)
            return self.observe(self._current_state()).clone(), {}  # a copy: it may be the state itself

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """Advance every environment by one step.

        Args:
            actions: (N, *action_shape), on the device; clamped to the bounds, if there are any.

        Returns:
            Observations, (N, *observation_shape), rewards (N,), terminations (N,) of bool, truncations, which are all
            False, and infos: "loss", (N,), what the trajectories have cost so far, without a gradient; with same-step
            autoreset, where an episode ended, "final_obs", the observations before the resets.

        Raises:
            ResetNeeded: before the first reset, and after an episode's end unless the next step begins anew.
            ValueError: if the actions have a wrong shape, dtype or device.
        """
        self._check_may_step()
        check_batch("actions", actions, self.system.action_shape, (*PRECISIONS, *HALF))
        if actions.shape[0] != self.num_envs or actions.device != self.device:
            raise ValueError(
                f"actions must hold one for each of the {self.num_envs} environments, on {self.device}; got "
                f"{actions.shape[0]} on {actions.device}."
            )
        with own_surroundings(self.dtype, self.device), self._gradients():
            observed, reward, terminated, ends = self._advance(actions.to(self.dtype))
            self._losses = self._losses - reward.detach()
            infos = {"loss": self._losses.clone()}
            if ends and self.autoreset_mode is AutoresetMode.SAME_STEP:
                infos["final_obs"] = observed
                self._restart(terminated)
                observed = self.observe(self._current_state())
            ended = self._rows(terminated, 1)
            return observed.clone(), reward, ended, torch.zeros_like(ended), infos

    def detach(self) -> None:
        """Cut the gradients off here: what comes after knows nothing of the steps before."""
        self._state = self._current_state().detach()

    def _gradients(self) -> torch.set_grad_enabled:
        return torch.set_grad_enabled(self.differentiable and torch.is_grad_enabled())

    def _given_states(self, states: Any, generator: torch.Generator) -> Tensor:
        name = "options['state']"
        begun = start_states(name, states, self.system, generator)
        if len(begun) != self.num_envs or begun.device != self.device or begun.dtype != self.dtype:
            raise ValueError(
                f"{name} must hold {self.num_envs} states, one for each environment, {self.dtype} on {self.device}; "
                f"got {len(begun)}, {begun.dtype} on {begun.device}."
            )
        return begun.clone() if self.differentiable else begun.detach().clone()

    def _restart(self, mask: Any, starts: Tensor | None = None) -> None:
        super()._restart(mask, starts)
        self._losses = self._losses.masked_fill(self._rows(mask, 1), 0.0)


def make_torch(
    env_id: str,
    num_envs: int = 1,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    differentiable: bool = False,
    autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
    **options: Any,
) -> TorchVectorEnv:
    """Make `num_envs` environments of an id that take and give torch tensors.

    Args:
        env_id: one of this package's, or of yours that `register` registered.
        num_envs: how many, N.
        device: see `TorchVectorEnv`, as for the next three.
        dtype: of states, observations and rewards.
        differentiable: keep the graph of the steps.
        autoreset_mode: when an ended episode is followed by the next one.
        options: of the environment.

    Raises:
        gymnasium.error.Error: if there is no such id.
        TypeError: if it is none with a differentiable system.
        ValueError: if an argument or an option is unknown or out of range.
    """
    for name in {"compile", "render_mode"} & options.keys():
        raise ValueError(f"options must be those of the environment: in tensors it takes no {name}.")
    return TorchVectorEnv(
        make_env(env_id, **options).system,
        num_envs,
        device=device,
        dtype=dtype,
        differentiable=differentiable,
        autoreset_mode=autoreset_mode,
    )


def _place(device: torch.device | str | None) -> torch.device:
    """The device as tensors name it, with its number."""
    if device is None or isinstance(device, (str, torch.device)):
        with contextlib.suppress(RuntimeError, AssertionError):  # what torch raises for one that is not there
            return torch.empty(0, device=device).device
    raise ValueError(
        f"device must be one that torch finds here, such as 'cpu' or 'cuda', or None; got {shown(device)}."
    )
