"""The heat equation with actuators, whose best controller is known: DiffHeat-v0."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bptt_envs.canvas import Canvas
from bptt_envs.charts import Chart, Curves
from bptt_envs.checks import one_of, positive, positive_integer
from bptt_envs.system import OBJECTIVES
from bptt_envs.systems.line import Line
from bptt_envs.systems.lqr import LQR

BOUNDARIES = ("insulated", "walled", "periodic")

# Starts: Gaussians anywhere on the line
BUMPS = 3
HEIGHT = 1.5  # standard deviation
WIDTHS = (0.05, 0.2)  # in shares of the line


class Heat(LQR):
    """Bring a rod to the temperature 0 everywhere, by a few heaters that cool, too.

        u_t = diffusivity u_xx + sum_i a_i exp(-(x - c_i)^2 / (2 s^2))

    A linear system with a quadratic cost: `optimal_gains` and `optimal_cost` are those of `LQR`.

    State: the means of u over the cells, (n_cells,). Action: the strengths a_i of the actuators, (m,), constant over a
    step. Units: none.
    Scheme: the three-point stencil, of order 2 in space, and its exact solution in time.
    Loss "continuous": mean over steps 0..T-1 of the mean of u^2 over the rod, plus that of step T as one more of them.
    Loss "final": the mean of u^2 at step T. Both: plus control_weight times the mean square of the action over steps
    and actuators.
    Start: three Gaussians of random height, width and place.

    The scheme and the optimum: docs/environments/heat.md.

    Args:
        objective: "final" or "continuous".
        n_cells: cells of the rod, 4 or more.
        boundary: "insulated" (nothing flows through the ends), "walled" (u = 0 at both) or "periodic" (they meet).
        n_actuators: m; None: one for each cell.
        actuator_width: s; None: half of the distance of two neighbours.
        control_weight: weight of the action in the loss, above 0.
        diffusivity: how fast heat spreads.
        length: of the rod.
        max_action: every component of the action is clamped to [-max_action, max_action]; None leaves it unbounded.
        horizon: steps of an episode.
        dt: duration of a step.
    """

    time_unit = ""

    def __init__(
        self,
        *,
        objective: str = "final",
        n_cells: int = 32,
        boundary: str = "insulated",
        n_actuators: int | None = 4,
        actuator_width: float | None = None,
        control_weight: float = 0.1,
        diffusivity: float = 0.02,
        length: float = 1.0,
        max_action: float | None = None,
        horizon: int = 40,
        dt: float = 0.05,
    ) -> None:
        self.boundary = one_of("boundary", boundary, BOUNDARIES)
        self.line = Line(
            n_cells=n_cells,
            length=length,
            ring=self.boundary == "periodic",
            n_actuators=n_actuators,
            actuator_width=actuator_width,
        )
        self.n_cells, self.length = self.line.n_cells, self.line.length
        self.n_actuators, self.actuator_width = self.line.n_actuators, self.line.actuator_width
        self.control_weight = positive("control_weight", control_weight)
        self.diffusivity = positive("diffusivity", diffusivity)
        objective = one_of("objective", objective, OBJECTIVES)
        horizon, dt = positive_integer("horizon", horizon), positive("dt", dt)
        A, push = self._solution(dt)
        m = self.line.actuators.shape[1]
        share = np.eye(self.n_cells) / self.n_cells
        super().__init__(
            objective=objective,
            A=A,
            B=push @ self.line.actuators.numpy(),
            Q=share / horizon,
            R=self.control_weight / (horizon * m) * np.eye(m),
            Q_T=share if objective == "final" else share / horizon,
            max_action=max_action,
            horizon=horizon,
            dt=dt,
        )
        self.state_labels, self.action_labels = self.line.labels, self.line.action_labels

    def _solution(self, dt: float) -> tuple[np.ndarray, np.ndarray]:
        """What a step makes of the temperatures and of a constant push, (N, N) each."""
        one = np.eye(self.n_cells)
        stencil = 2 * one - np.eye(self.n_cells, k=1) - np.eye(self.n_cells, k=-1)
        if self.boundary == "periodic":
            stencil[0, -1] = stencil[-1, 0] = -1.0
        else:  # ghosts are what their neighbours are, or minus that
            stencil[0, 0] = stencil[-1, -1] = 1.0 if self.boundary == "insulated" else 3.0
        squares, waves = np.linalg.eigh(stencil)
        squares[np.abs(squares) < 1e-12] = 0.0
        decay = dt * self.diffusivity / self.line.dx**2 * squares
        push = dt * np.divide(-np.expm1(-decay), decay, out=np.ones_like(decay), where=decay > 0.0)
        return waves * np.exp(-decay) @ waves.T, waves * push @ waves.T

    @property
    def dense_jacobians(self) -> bool:
        return False  # products with two constant matrices, whatever the number of cells

    def initial_states(self, batch: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        uniform = torch.rand(batch, 2, BUMPS, generator=generator, device=generator.device, dtype=dtype)
        normal = torch.randn(batch, BUMPS, generator=generator, device=generator.device, dtype=dtype)
        low, high = WIDTHS
        widths = self.length * (low + (high - low) * uniform[:, 1])
        return self.line.bumps(self.length * uniform[:, 0], widths, HEIGHT * normal)

    # Pictures

    def draw(self, canvas: Canvas, state: Tensor, action: Tensor | None) -> None:
        full = self.nominal_action if self.max_action is None else self.max_action
        self.line.draw(canvas, state, action, full=full, least=2.0, target=None)

    def charts(self, states: Tensor, actions: Tensor) -> list[Chart]:
        size = states.square().mean(-1).sqrt()
        return [*self.line.charts(states[:, 0], actions[:, 0]), Curves("root mean square of u", size)]
