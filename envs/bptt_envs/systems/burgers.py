"""The forced viscous Burgers equation, brought to a target profile: DiffBurgers-v0."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bptt_envs import checks
from bptt_envs.canvas import Canvas
from bptt_envs.charts import Chart, Curves
from bptt_envs.checks import each, finite, not_negative, one_of, positive
from bptt_envs.system import Pullback, System, broadcast, constant_like
from bptt_envs.systems.line import Line

BOUNDARIES = ("periodic", "walled")

# What substeps are chosen for, unless they are given
SPEED = 3.5
VISCOSITY = 0.003
MOST_DIFFUSION = 0.5  # viscosity dt / substeps / dx^2, beyond which a substep is unstable

# Starts and targets, in shares of the line: Holl, Koltun, Thuerey (2020)
LEFT, RIGHT = (0.2, 0.4), (0.6, 0.8)
START_HEIGHT, START_WIDTH = 3.0, (0.05, 0.15)
PUSH_CENTER, PUSH_HEIGHT, PUSH_WIDTH = (0.4, 0.6), 1.6, (0.1, 0.4)


class Burgers(System):
    """Bring the velocity along a line to a target profile, by forces.

        u_t + u u_x = viscosity u_xx + sum_i a_i exp(-(x - c_i)^2 / (2 s^2))

    State: the means of u over the cells, then those of the target, (2 n_cells,); only the first unless targets differ.
    Action: the strengths a_i of the actuators, (m,), constant over a step. Units: none.
    Scheme: finite volumes with Godunov's flux between slopes by van Albada, of order 2 in space, and Heun's method of
    order 2, `substeps` to a step. Mass moves between cells only.
    Loss "continuous": mean over steps 1..T of the mean square of u - target. Loss "final": that of step T. Both:
    plus control_weight times the mean square of the action over steps and actuators.
    Start: two Gaussians, the left one moving right and the right one left. Target: where the start would be at the end
    of the episode under one force that is drawn and not shown, so that it can be reached.

    The scheme, its derivation and its slopes: docs/environments/burgers.md. Source of the task: P. Holl, V. Koltun,
    N. Thuerey, "Learning to Control PDEs with Differentiable Physics", ICLR 2020.

    Args:
        objective: "final" or "continuous".
        n_cells: cells of the line, 4 or more.
        boundary: "periodic" (the ends meet) or "walled" (u = 0 at both).
        target: n_cells numbers, the target of every episode; None: drawn for each.
        n_actuators: m; None: a force on each cell.
        actuator_width: s; None: half of the distance of two neighbours.
        control_weight: weight of the action in the loss.
        viscosity: of the fluid, above 0.
        length: of the line.
        max_action: every component of the action is clamped to [-max_action, max_action]; None leaves it unbounded.
        horizon: steps of an episode.
        dt: duration of a step.
        substeps: steps of the integrator in a step; None: as many as are stable for speeds up to 3.5 and viscosities
            up to 0.006. Speeds beyond dx substeps / dt make it unstable.
    """

    nominal_action = 2.0
    time_unit = ""
    parameters = ("viscosity",)

    def __init__(
        self,
        *,
        objective: str = "final",
        n_cells: int = 32,
        boundary: str = "periodic",
        target: Sequence[float] | np.ndarray | None = None,
        n_actuators: int | None = 8,
        actuator_width: float | None = None,
        control_weight: float = 0.01,
        viscosity: float = 0.003,
        length: float = 1.0,
        max_action: float | None = None,
        horizon: int = 32,
        dt: float = 0.03,
        substeps: int | None = None,
    ) -> None:
        super().__init__(horizon=horizon, dt=dt, objective=objective, max_action=max_action)
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
        self.control_weight = not_negative("control_weight", control_weight)
        self.viscosity = positive("viscosity", viscosity)
        dx = self.line.dx  # flow and diffusion both narrow what is stable
        needed = self.dt * (SPEED / dx + 2 * VISCOSITY / dx**2 / MOST_DIFFUSION)
        self.substeps_taken = checks.substeps(
            substeps, needed, f"dt={self.dt:g}, length={self.length:g}, n_cells={self.n_cells}"
        )
        self.substeps = None if substeps is None else self.substeps_taken
        diffusion = self.viscosity * self.dt / self.substeps_taken / self.line.dx**2
        if diffusion > MOST_DIFFUSION:
            raise ValueError(
                f"viscosity={self.viscosity:g} needs substeps of at least "
                f"{math.ceil(diffusion / MOST_DIFFUSION * self.substeps_taken)} to be stable; got {self.substeps}, "
                f"which are {self.substeps_taken}."
            )
        self.target = None if target is None else each("target", target, finite, f"{self.n_cells} numbers, or None")
        if self.target is not None and len(self.target) != self.n_cells:
            raise ValueError(f"target must be {self.n_cells} numbers, one a cell; got {len(self.target)}.")
        self._target = torch.tensor(self.target or (), dtype=torch.float64)
        self.action_shape = (self.line.actuators.shape[1],)
        self.state_shape = (self.n_cells * (2 if self.target is None else 1),)
        self.state_labels = self.line.labels
        if self.target is None:
            self.state_labels += tuple(f"target({x:.4g})" for x in self.line.x.tolist())
        self.action_labels = self.line.action_labels

    # Cost and start

    def state_cost(self, state: Tensor) -> Tensor:
        u, target = self._split(state)
        if target is None:
            target = constant_like(self._target, state)
        return (u - target).square().mean(-1)

    def running_cost(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        """The cost of the next state as the objective has it, and that of the action at every step, (B,)."""
        control = self.control_weight / self.horizon * action.square().mean(-1)
        return super().running_cost(state, action, next_state) + control

    def initial_states(self, batch: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        ranges = torch.tensor([LEFT, RIGHT, START_WIDTH, START_WIDTH, PUSH_CENTER, PUSH_WIDTH], dtype=dtype)
        low, high = ranges.to(generator.device).unbind(-1)
        drawn = torch.rand(batch, 9, generator=generator, device=generator.device, dtype=dtype)
        left, right, *widths, push_center, push_width = (self.length * (low + (high - low) * drawn[:, :6])).unbind(-1)
        heights = START_HEIGHT * drawn[:, 6:8] * drawn.new_tensor([1.0, -1.0])
        start = self.line.bumps(torch.stack([left, right], dim=-1), torch.stack(widths, dim=-1), heights)
        if self.target is not None:
            return start
        push_height = PUSH_HEIGHT * (2.0 * drawn[:, 8:] - 1.0)
        push = self.line.bumps(push_center.unsqueeze(-1), push_width.unsqueeze(-1), push_height)
        target = start
        with torch.no_grad():
            for _ in range(self.horizon):
                target = self._advanced(target, push)
        return torch.cat([start, target], dim=-1)

    # Pictures

    def draw(self, canvas: Canvas, state: Tensor, action: Tensor | None) -> None:
        u, target = self._split(state)
        full = self.nominal_action if self.max_action is None else self.max_action
        self.line.draw(canvas, u, action, full=full, least=2.0, target=self._target if target is None else target)

    def charts(self, states: Tensor, actions: Tensor) -> list[Chart]:
        u, _ = self._split(states[:, 0])
        distance = self.state_cost(states.flatten(0, 1)).sqrt().unflatten(0, states.shape[:2])
        return [*self.line.charts(u, actions[:, 0]), Curves("distance to target", distance)]

    # Dynamics

    def step(self, state: Tensor, action: Tensor) -> Tensor:
        u, target = self._split(state)
        following = self._advanced(u, action @ constant_like(self.line.actuators, action).mT)
        return following if target is None else torch.cat([following, target], dim=-1)

    def _split(self, state: Tensor) -> tuple[Tensor, Tensor | None]:
        """The velocities of a state, (..., N), and its target, if that is part of it."""
        if self.target is not None:
            return state, None
        return state[..., : self.n_cells], state[..., self.n_cells :]

    def _advanced(self, u: Tensor, force: Tensor) -> Tensor:
        """Velocities after `dt` under a constant force, (B, N) each, by Heun's method."""
        h = self.dt / self.substeps_taken
        pushed = h * force
        for _ in range(self.substeps_taken):
            first = torch.add(u + pushed, self._faces(u).inflow(), alpha=h)
            second = torch.add(first + pushed, self._faces(first).inflow(), alpha=h)
            u = torch.lerp(u, second, 0.5)
        return u

    def _faces(self, u: Tensor) -> _Faces:
        if self.boundary == "periodic":
            padded = torch.cat([u[..., -2:], u, u[..., :2]], dim=-1)
        else:  # mirrored with the other sign, so that u is 0 at the walls
            padded = torch.cat([-u[..., :2].flip(-1), u, -u[..., -2:].flip(-1)], dim=-1)
        return _Faces.of(padded, self.line.dx, broadcast(self.viscosity), (self.line.dx / self.length) ** 3)

    # Slopes. Each stage of a substep reaches two cells to either side, so its Jacobian is five numbers a cell

    @property
    def dense_jacobians(self) -> bool:
        return False  # products take the stages one by one, five numbers a cell each

    @property
    def slope_numbers(self) -> int:
        return 10 * self.substeps_taken * self.n_cells

    def pullback(self, state: Tensor, action: Tensor) -> Pullback:
        u, _ = self._split(state.detach())
        actuators, h = constant_like(self.line.actuators, state), self.dt / self.substeps_taken
        with torch.no_grad():
            stages = self._stages(u, action.detach() @ actuators.mT)

        @torch.no_grad()
        def pull(rows: slice, vectors: Tensor) -> tuple[Tensor, Tensor]:
            v, target = self._split(vectors)
            by_force = torch.zeros_like(v)
            for first, second in reversed(stages):  # of u' = (u + second(first(u))) / 2
                half = 0.5 * v
                by_first = self._through(second[rows], half)
                by_force = by_force + half + by_first
                v = half + self._through(first[rows], by_first)
            by_action = h * (by_force @ actuators)
            return (v if target is None else torch.cat([v, target], dim=-1)), by_action

        return pull

    def _stages(self, u: Tensor, force: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The slopes of both stages of each substep, (B, 5, N), transposed: by u_i of the cells i - 2 ... i + 2."""
        h = self.dt / self.substeps_taken
        pushed = h * force
        stages = []
        for _ in range(self.substeps_taken):
            at_start = self._faces(u)
            first = torch.add(u + pushed, at_start.inflow(), alpha=h)
            at_first = self._faces(first)
            second = torch.add(first + pushed, at_first.inflow(), alpha=h)
            stages.append((self._transposed(at_start.slopes(h)), self._transposed(at_first.slopes(h))))
            u = torch.lerp(u, second, 0.5)
        return stages

    def _transposed(self, by_neighbor: Sequence[Tensor]) -> Tensor:
        """From the slopes of each cell by the cells around it to those of the cells around it by each."""
        if self.boundary == "walled":
            by_neighbor = _folded(by_neighbor)
        away = range(2, -3, -1)
        return torch.stack([one.roll(k, -1) for k, one in zip(away, reversed(by_neighbor), strict=True)], dim=-2)

    def _through(self, bands: Tensor, v: Tensor) -> Tensor:
        """Products of vectors (P, R, N) with the slopes of a stage, (R, 5, N)."""
        around = torch.cat([v[..., -2:], v, v[..., :2]], dim=-1)  # across walls the slopes are 0
        return (bands * around.unfold(-1, self.n_cells, 1)).sum(-2)


class _Faces(NamedTuple):
    """What happens at the N + 1 faces of a line of cells, from the cells with two ghosts at either side.

    The velocity in a cell has the slope of van Albada, from the differences d_l and d_r to its neighbours:
    s = (d_l (d_r^2 + e) + d_r (d_l^2 + e)) / (d_l^2 + d_r^2 + 2 e), which is smooth. With u_l and u_r on the two sides
    of a face, m = max(u_l, -u_r, 0) is the speed of what comes to it, and m^2 / 2 is Godunov's flux.
    """

    d: Tensor  # differences of neighbours, (..., N + 3)
    q: Tensor  # d^2 + e
    s: Tensor  # slopes in the cells, but for the outermost ghosts, (..., N + 2), times dx
    left: Tensor  # velocities on the left of the faces, (..., N + 1)
    right: Tensor
    m: Tensor
    dx: float
    viscosity: float | Tensor

    @staticmethod
    def of(padded: Tensor, dx: float, viscosity: float | Tensor, smooth: float) -> _Faces:
        """From velocities with ghosts, (..., N + 4), and e."""
        d = padded[..., 1:] - padded[..., :-1]
        q = d.square() + smooth
        d_l, d_r, q_l, q_r = d[..., :-1], d[..., 1:], q[..., :-1], q[..., 1:]
        s = torch.addcmul(d_l * q_r, d_r, q_l) / (q_l + q_r)
        left = torch.add(padded[..., 1:-2], s[..., :-1], alpha=0.5)
        right = torch.sub(padded[..., 2:-1], s[..., 1:], alpha=0.5)
        return _Faces(d, q, s, left, right, torch.maximum(left, -right).relu(), dx, viscosity)

    def inflow(self) -> Tensor:
        """The rate of change of the N cells."""
        diffusion = self.d[..., 1:-1] * (-self.viscosity / self.dx**2)
        flux = torch.addcmul(diffusion, self.m, self.m, value=0.5 / self.dx)
        return flux[..., :-1] - flux[..., 1:]

    def slopes(self, h: float) -> list[Tensor]:
        """Slopes of u + h inflow in each cell j by the padded cells j - 2 ... j + 2, five of (..., N)."""
        d_l, d_r, q_l, q_r = self.d[..., :-1], self.d[..., 1:], self.q[..., :-1], self.q[..., 1:]
        total = 2.0 * (q_l + q_r)
        s_l = torch.addcmul(q_r, d_l, d_r - self.s, value=2.0) / total  # half the slope of s by d_l
        s_r = torch.addcmul(q_l, d_r, d_l - self.s, value=2.0) / total
        middle = s_l - s_r

        # Of h / dx times the flux through a face, by the two cells on each side
        half = self.m * (0.5 * h / self.dx)
        to_side = half * torch.sign(self.left + self.right)
        by_left, by_right = to_side + half, to_side - half
        diffusion = h * self.viscosity / self.dx**2
        far_left = -by_left * s_l[..., :-1]
        near_left = torch.addcmul(by_left, by_left, middle[..., :-1]) + by_right * s_l[..., 1:] + diffusion
        near_right = torch.addcmul(by_right, by_right, middle[..., 1:], value=-1) + by_left * s_r[..., :-1] - diffusion
        far_right = -by_right * s_r[..., 1:]
        l, r = (..., slice(None, -1)), (..., slice(1, None))
        return [
            far_left[l],
            near_left[l] - far_left[r],
            near_right[l] - near_left[r] + 1.0,
            far_right[l] - near_right[r],
            -far_right[r],
        ]


def _folded(by_neighbor: Sequence[Tensor]) -> list[Tensor]:
    """Slopes by padded cells as slopes by cells: ghost cells -1 and -2 are minus the cells 0 and 1."""
    far_left, near_left, own, near_right, far_right = (one.clone() for one in by_neighbor)
    # Cell 0: -2 is minus 1, -1 is minus 0. Cell 1: -1 is minus 0
    near_right[..., 0] -= far_left[..., 0]
    own[..., 0] -= near_left[..., 0]
    near_left[..., 1] -= far_left[..., 1]
    far_left[..., :2], near_left[..., 0] = 0.0, 0.0
    near_left[..., -1] -= far_right[..., -1]
    own[..., -1] -= near_right[..., -1]
    near_right[..., -2] -= far_right[..., -2]
    far_right[..., -2:], near_right[..., -1] = 0.0, 0.0
    return [far_left, near_left, own, near_right, far_right]
