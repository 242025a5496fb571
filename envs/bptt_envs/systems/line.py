"""A line of cells and the actuators along it: what the partial differential equations here share."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bptt_envs.canvas import ACTION, CYCLE, FAINT, MUTED, Canvas, round_up
from bptt_envs.charts import Chart, Field, NamedCurves
from bptt_envs.checks import in_memory, integer, positive, positive_integer

FEWEST_CELLS = 4  # of which the stencils here take five at most, two of them ghosts
NAMED = 8  # actuators whose actions are curves; those of more are a field


class Line:
    """A line from 0 to `length`, cut into equal cells, with Gaussian actuators at equal distances.

    Actuator i adds a_i exp(-(x - c_i)^2 / (2 s^2)), c_i = (i + 1/2) length / m, to the rate of change at x, which on a
    ring is the distance to the nearest of its images.

    Args:
        n_cells: N, 4 or more.
        length: of the line.
        ring: whether its ends meet.
        n_actuators: m; None: one for each cell, which acts on that cell alone.
        actuator_width: s; None: half of the distance of two neighbours.

    Attributes:
        x: centers of the cells, (N,), float64.
        actuators: the profile of each, (N, m), float64.
    """

    def __init__(
        self, *, n_cells: int, length: float, ring: bool, n_actuators: int | None, actuator_width: float | None
    ) -> None:
        self.n_cells = integer("n_cells", n_cells, FEWEST_CELLS)
        in_memory("n_cells", self.n_cells, 4 * self.n_cells)  # matrices
        self.length = positive("length", length)
        self.n_actuators = None if n_actuators is None else positive_integer("n_actuators", n_actuators)
        in_memory("n_actuators", self.n_actuators or 1, 4 * self.n_cells)
        self.actuator_width = None if actuator_width is None else positive("actuator_width", actuator_width)
        self.ring = ring
        self.x = (torch.arange(self.n_cells, dtype=torch.float64) + 0.5) * self.dx
        self.actuators = torch.eye(self.n_cells, dtype=torch.float64)
        if self.n_actuators is not None:
            distance = self.length / self.n_actuators
            centers = (torch.arange(self.n_actuators, dtype=torch.float64) + 0.5) * distance
            width = distance / 2 if self.actuator_width is None else self.actuator_width
            self.actuators = self.bumps(centers.unsqueeze(-1), torch.tensor(width, dtype=torch.float64)).mT.contiguous()

    @property
    def dx(self) -> float:
        """Width of a cell."""
        return self.length / self.n_cells

    @property
    def labels(self) -> tuple[str, ...]:
        """A label for each cell."""
        return tuple(f"u({x:.4g})" for x in self.x.tolist())

    @property
    def action_labels(self) -> tuple[str, ...]:
        """A label for each actuator."""
        return tuple(f"a_{i}" for i in range(1, self.actuators.shape[1] + 1))

    def bumps(self, centers: Tensor, widths: Tensor, heights: Tensor | None = None) -> Tensor:
        """Sums of K Gaussians of each sample, (B, K) to (B, N), of height 1 unless another one is given."""
        away = self.x.to(centers) - centers.unsqueeze(-1)  # (B, K, N)
        if self.ring:
            away = away - self.length * (away / self.length).round()
        each = (-0.5 * (away / widths.unsqueeze(-1)).square()).exp()
        return (each if heights is None else heights.unsqueeze(-1) * each).sum(-2)

    # Pictures

    def draw(
        self, canvas: Canvas, u: Tensor, action: Tensor | None, *, full: float, least: float, target: Tensor | None
    ) -> None:
        """Draw a profile u (N,), the actuators' push above it and a target, if there is one.

        Args:
            canvas: where.
            u: (N,).
            action: (m,), or None.
            full: an action that counts as large.
            least: the profile is drawn to this scale unless it is larger.
            target: (N,), or None.
        """
        length = self.length
        canvas.view(0.5 * length, 0.03 * length, height=0.66 * length)
        canvas.ruler(-0.26 * length)
        shown = [u] if target is None else [u, target]
        sizes = [abs(value) for one in shown for value in one.tolist() if math.isfinite(value)]
        reach = round_up(max([least, *sizes]))
        scale = 0.2 * length / reach
        canvas.line([(0.0, 0.0), (length, 0.0)], FAINT, 3)
        for value in (-reach, reach):
            canvas.line([(0.0, scale * value), (0.01 * length, scale * value)], MUTED, 1.5)
            canvas.text((-0.005 * length, scale * value), f"{value:g}")
        if not self.ring:
            for wall in (0.0, length):
                canvas.line([(wall, -0.22 * length), (wall, 0.22 * length)], MUTED, 4)
        x = self.x.tolist()
        if target is not None:
            canvas.line([(at, scale * value) for at, value in zip(x, target.tolist(), strict=True)], MUTED, 2)
        canvas.line([(at, scale * value) for at, value in zip(x, u.tolist(), strict=True)], CYCLE[0], 5)
        if action is not None:
            push = (self.actuators @ action.double().to(self.actuators.device)).tolist()
            base = 0.29 * length
            tips = [base + 0.05 * length * math.tanh(value / full) for value in push]
            canvas.polygon([(x[0], base), *zip(x, tips, strict=True), (x[-1], base)], ACTION)

    def charts(self, u: Tensor, actions: Tensor) -> list[Chart]:
        """Space and time of one episode: the profile, (T + 1, N), and the actions, (T, m)."""
        ends = self.x[0].item(), self.x[-1].item()
        profile = Field("u", u, "x", *ends)
        if len(self.action_labels) <= NAMED:
            return [profile, NamedCurves("action", actions, self.action_labels)]
        shown = actions @ self.actuators.to(actions).mT
        return [profile, Field("push", shown, "x", *ends)]
