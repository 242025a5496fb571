"""The smallest system: x' = x + u. The worked example of "a system is one file"."""

from __future__ import annotations

import torch
from torch import Tensor

from bptt_envs.canvas import CYCLE, FAINT, INK, MUTED, Canvas, round_up
from bptt_envs.checks import finite
from bptt_envs.system import System


class Integrator(System):
    """The toy simulator of arXiv 2405.02041: x' = x + u, to be brought to a target.

    State: x, (1,), without unit. Action: u, (1,), without unit.
    Loss "final": (x_T - target)^2 / 2. Loss "continuous": the same, averaged over steps 1..T.
    Start: x ~ U(-1, 1).

    Args:
        objective: "final" or "continuous".
        horizon: steps of an episode.
        dt: duration of a step; the toy has no rate, so it only labels the time axis.
        max_action: u is clamped to [-max_action, max_action]; None leaves it unbounded.
        target: where x should end.
    """

    state_shape = (1,)
    action_shape = (1,)
    state_labels = ("x",)
    action_labels = ("u",)
    time_unit = ""
    parameters = ("target",)

    def __init__(
        self,
        *,
        objective: str = "final",
        horizon: int = 4,
        dt: float = 1.0,
        max_action: float | None = None,
        target: float = 2.0,
    ) -> None:
        super().__init__(horizon=horizon, dt=dt, objective=objective, max_action=max_action)
        self.target = finite("target", target)

    def step(self, state: Tensor, action: Tensor) -> Tensor:
        return state + action

    def initial_states(self, batch: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        return 2.0 * torch.rand(batch, 1, generator=generator, device=generator.device, dtype=dtype) - 1.0

    def state_cost(self, state: Tensor) -> Tensor:
        return 0.5 * (state[:, 0] - self.target) ** 2

    def draw(self, canvas: Canvas, state: Tensor, action: Tensor | None) -> None:
        x = float(state[0])
        before = x if action is None else x - float(action[0])
        unit = round_up(max(2.0, abs(x), abs(before), abs(self.target))) / 2  # the view is 5 units wide
        canvas.view(0.0, 0.0, height=3.125 * unit)
        canvas.ruler(-0.5 * unit)
        canvas.line([(canvas.left, 0.0), (canvas.right, 0.0)], FAINT, 3)
        canvas.circle((self.target, 0.0), 0.12 * unit, MUTED, 2.5)
        canvas.text((self.target, 0.25 * unit), "target")
        canvas.arrow((before, 0.25 * unit), (x, 0.25 * unit))
        if action is not None:
            canvas.text(((before + x) / 2, 0.4 * unit), f"u = {float(action[0]):.3g}", INK)
        canvas.circle((x, 0.0), 0.08 * unit, CYCLE[0])
