"""A quantum particle in a box, steered by the slope of its potential: DiffQuantumControl-v0."""

from __future__ import annotations

import functools
import math
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bptt_envs.canvas import ACTION, FAINT, INK, Canvas, Color, Point
from bptt_envs.charts import Chart, Curves, Field, NamedCurves
from bptt_envs.checks import in_memory, positive, positive_integer, share
from bptt_envs.system import Pullback, System, constant_like

MOST_CONDITION = 1e4  # of the eigenvectors of a step: its error in float64 grows with the square, to 1e-9 here
CHARTED = 5  # eigenstates whose populations a figure shows, at least

# Of a picture; heights in shares of the box length
FINER = 4  # strips between two points
DENSITY_HEIGHT = 0.12  # of a particle that is spread evenly
WALL_HEIGHT = 0.52


class Operator(NamedTuple):
    """What a step in one box needs, whatever the control: see `_operator`.

    Complex numbers are pairs of real ones, (Re, Im) of each point one after the other, 2N in all: what holds for
    real matrices, such as what torch compiles and transposes, then holds for these.
    """

    phi: Tensor  # (N, N) float64, the eigenstate phi_n of the empty box in row n - 1
    a: Tensor  # (2N,) float64, Re Lambda of each pair
    b: Tensor  # (2N,) float64, Im Lambda, -Im Lambda of each pair
    L_T: Tensor  # (2N, 2N) float64, rows of pairs times the transpose of L
    kL: Tensor  # (2N, 2N) float64, rows of pairs times 2 / (i tau) L


class QuantumControl(System):
    """Bring a quantum particle in a box into an eigenstate of the box, by the slope of its potential.

    State: the wave function psi at N interior points, real and imaginary part, (N, 2); sum |psi_j|^2 = 1.
    Action: the slope u of the potential u x, (1,). Units: hbar = 1, mass 1/2, so H(u) = -d^2/dx^2 + u x.
    Integrator: Crank-Nicolson on the three-point stencil, which keeps the norm:
    (1 + i dt/2 H(u)) psi' = (1 - i dt/2 H(u)) psi.
    Loss "continuous": sum over steps 1..T of 1 - |<phi_target|psi_t>|^2. Loss "final": that of step T only.
    Start: c_1 phi_1 + c_2 phi_2, with uniform phases and |c_1| : |c_2| those of two standard normals.

    The step, its derivation and its slopes: docs/environments/quantum-control.md. Source of the task:
    arXiv 2405.02041.

    Args:
        objective: "final" or "continuous".
        target: the eigenstate to end in, counted from 1, the ground state, to n_points. The paper has 3, 4, 5.
        n_points: interior points of the grid, N, 2 or more.
        box_length: distance of the walls.
        weighting: the population |c_1|^2 of phi_1 at the start, from 0 to 1; None draws it.
        max_control: the slope is clamped to [-max_control, max_control]; None leaves it unbounded.
        horizon: steps of an episode.
        dt: duration of a step.
    """

    action_shape = (1,)
    action_labels = ("u",)
    nominal_action = 30.0
    time_unit = ""

    def __init__(
        self,
        *,
        objective: str = "continuous",
        target: int = 3,
        n_points: int = 32,
        box_length: float = 2.0,
        weighting: float | None = None,
        max_control: float | None = None,
        horizon: int = 128,
        dt: float = 0.0625,
    ) -> None:
        max_control = None if max_control is None else positive("max_control", max_control)
        super().__init__(horizon=horizon, dt=dt, objective=objective, max_action=max_control)
        self.n_points = positive_integer("n_points", n_points)
        if self.n_points < 2:
            raise ValueError(f"n_points must be at least 2, for the two eigenstates of the start; got {n_points!r}.")
        in_memory("n_points", self.n_points, 4 * self.n_points)  # a complex matrix in float64
        self.target = positive_integer("target", target)
        if self.target > self.n_points:
            raise ValueError(f"target must be an eigenstate from 1 to n_points = {self.n_points}; got {target!r}.")
        self.box_length = positive("box_length", box_length)
        self.weighting = None if weighting is None else share("weighting", weighting)
        self.state_shape = (self.n_points, 2)
        self.state_labels = tuple(f"{part} psi_{j}" for j in range(1, self.n_points + 1) for part in ("Re", "Im"))
        self._operator(torch.device("cpu"))  # refuses what cannot be stepped

    @property
    def dx(self) -> float:
        """Distance of neighbouring points, and of the first and last one to the walls."""
        return self.box_length / (self.n_points + 1)

    # Cost and start

    @property
    def step_weight(self) -> float:
        return 1.0  # the paper's loss is the sum over steps

    def state_cost(self, state: Tensor) -> Tensor:
        phi = constant_like(self._operator(state.device).phi, state)[self.target - 1]
        return 1.0 - (phi @ state).square().sum(-1)

    def initial_states(self, batch: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        if self.weighting is None:
            c = torch.randn(batch, 2, generator=generator, device=generator.device, dtype=dtype)
            c = torch.nn.functional.normalize(c, dim=1)
        else:
            populations = [self.weighting, 1.0 - self.weighting]
            c = torch.tensor([populations], device=generator.device, dtype=dtype).sqrt()
        phase = 2 * math.pi * torch.rand(batch, 2, generator=generator, device=generator.device, dtype=dtype)
        coefficients = torch.stack([c * phase.cos(), c * phase.sin()], dim=-1)  # (batch, 2, 2)
        return self._operator(generator.device).phi[:2].to(dtype).T @ coefficients

    # Pictures

    def charts(self, states: Tensor, actions: Tensor) -> list[Chart]:
        first = states[:, 0]
        density = torch.nn.functional.pad(first.square().sum(-1) / self.dx, (1, 1))  # 0 at the walls
        count = min(self.n_points, max(CHARTED, self.target))
        phi = self._operator(states.device).phi[:count].to(states.dtype)
        names = [f"phi_{n}" + (" (target)" if n == self.target else "") for n in range(1, count + 1)]
        return [
            Field("density", density, "x", 0.0, self.box_length),
            Curves("control u", actions[..., 0]),
            NamedCurves("population", (phi @ first).square().sum(-1), names),
        ]

    def draw(self, canvas: Canvas, state: Tensor, action: Tensor | None) -> None:
        length = self.box_length
        canvas.view(0.5 * length, 0.25 * length, height=0.75 * length)
        canvas.ruler(0.0)
        for wall in (canvas.left, canvas.right):
            edge = 0.0 if wall < 0.0 else length
            center = (0.5 * (wall + edge), 0.5 * WALL_HEIGHT * length)
            canvas.rectangle(center, abs(wall - edge), WALL_HEIGHT * length, FAINT)

        share = torch.linspace(0.0, 1.0, FINER * (self.n_points + 1) + 1, dtype=torch.float64)  # of the way across
        n = torch.arange(1, self.n_points + 1, dtype=torch.float64)
        phi = math.sqrt(2.0) * torch.sin(math.pi * torch.outer(share, n))
        coefficients = self._operator(state.device).phi @ state.double()
        psi = torch.view_as_complex(phi @ coefficients)  # the sum of sines that goes through the points

        def curve(density: Tensor) -> list[Point]:
            heights = (DENSITY_HEIGHT * length * density).clamp(max=WALL_HEIGHT * length)
            return list(zip((length * share).tolist(), heights.tolist(), strict=True))

        phases = (psi[:-1] + psi[1:]).angle().tolist()
        for (start, end), phase in zip(pairwise(curve(psi.abs().square())), phases, strict=True):
            canvas.polygon([(start[0], 0.0), start, end, (end[0], 0.0)], _phase_color(phase))
        canvas.line(curve(phi[:, self.target - 1].square()), INK, 1.5)
        peak = length * (1.0 - 0.5 / self.target)
        canvas.text((peak, (2.0 * DENSITY_HEIGHT + 0.03) * length), "target", INK)
        if action is not None:
            self._draw_potential(canvas, float(action[0]))

    def _draw_potential(self, canvas: Canvas, u: float) -> None:
        full = self.nominal_action if self.max_action is None else self.max_action
        left, right = 0.36, 0.36 + 0.18 * math.tanh(1.5 * u / full)
        canvas.line([(0.0, left * self.box_length), (self.box_length, right * self.box_length)], ACTION, 4)
        number = f"{u:.1f}" if abs(u) < 1e4 else f"{u:.1e}"
        canvas.text((0.02 * self.box_length, (left + 0.05) * self.box_length), f"u = {number}", INK, align="left")

    # Dynamics, in double precision also for float32 states: the rounding errors of L, the same in every step,
    # would else move the norm by some 1e-4 in 10,000 steps.

    def step(self, state: Tensor, action: Tensor) -> Tensor:
        _, a, b, L_T, kL = self._operator(state.device)
        psi = state.flatten(1).double()
        next_psi = torch.addmm(psi, _divided(psi @ L_T, a + action, b), kL, beta=-1)  # 2 A(u)^-1 psi - psi
        return next_psi.to(state.dtype).view(state.shape)

    @property
    def dense_jacobians(self) -> bool:
        return False  # `pullback` is two small products, whatever the number of points

    def pullback(self, state: Tensor, action: Tensor) -> Pullback:
        _, a, b, L_T, kL = self._operator(state.device)
        a_u = a + action.detach()  # Re (Lambda + u)
        by_action = _divided(_divided(state.detach().flatten(1).double() @ L_T, a_u, b), a_u, b) @ -kL  # d psi'/du
        slope = by_action.to(state.dtype)
        square = torch.addcmul(b.square(), a_u, a_u)
        along, across = a_u / square, -b / square  # of the transpose of the division

        def pull(rows: slice, vectors: Tensor) -> tuple[Tensor, Tensor]:
            vectors = vectors.detach()
            g = vectors.double()  # (P, R, 2N)
            y = g @ kL.mT
            by_state = torch.addcmul(y * along[rows], _swapped(y), across[rows]) @ L_T.mT - g
            return by_state.to(state.dtype), (vectors * slope[rows]).sum(-1, keepdim=True)

        return pull

    def _operator(self, device: torch.device) -> Operator:
        return _operator(self.n_points, self.box_length, self.dt, device)


def _phase_color(phase: float) -> Color:
    red, green, blue = (round(160 + 75 * math.cos(phase - 2 * math.pi * i / 3)) for i in range(3))
    return red, green, blue


def _divided(z: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The complex division of pairs z by a + i b: (x + i y) / (a + i b) = (x a + y b + i (y a - x b)) / (a^2 + b^2).

    z: (..., 2N), a: likewise or (2N,), b: (2N,), with the sign of the second of each pair changed.
    """
    return torch.addcmul(z * a, _swapped(z), b) / torch.addcmul(b * b, a, a)


def _swapped(z: Tensor) -> Tensor:
    """The two of each pair in the other order."""
    swapped: Tensor = z.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return swapped


def _as_pairs(matrix: np.ndarray) -> np.ndarray:
    """The real matrix (2N, 2N) by which rows of pairs are multiplied for rows of complex numbers by `matrix`."""
    real_part = np.stack([matrix.real, matrix.imag], axis=-1)  # what comes of Re
    imaginary_part = np.stack([-matrix.imag, matrix.real], axis=-1)
    return np.stack([real_part, imaginary_part], axis=1).reshape(2 * len(matrix), -1)


@functools.lru_cache(maxsize=32)
@torch.inference_mode(False)  # what is kept can take part in later gradients
def _operator(n_points: int, box_length: float, dt: float, device: torch.device) -> Operator:
    """Diagonalise A(u) = 1 + i tau H(u), tau = dt/2, for all u at once.

    With X = diag(x) and T the stencil of -d^2/dx^2, A(u) = i tau X^1/2 (u + G) X^1/2, where
    G = X^-1/2 (T + 1/(i tau)) X^-1/2 is complex symmetric, so G = V Lambda V^T with V^T V = 1. Then
    A(u)^-1 = L^T (Lambda + u)^-1 L / (i tau) with L = V^T X^-1/2.

    Raises:
        ValueError: if the eigenvectors are so far from orthogonal that a step would lose its digits.
    """
    tau = dt / 2
    dx = box_length / (n_points + 1)
    if not 0.0 < dx * dx < math.inf:
        raise ValueError(
            f"box_length={box_length:g} cannot be stepped: the square of a distance of points is {dx * dx:g}."
        )
    j = np.arange(1, n_points + 1)
    one = np.eye(n_points)
    with np.errstate(over="ignore"):
        T = (2 * one - np.eye(n_points, k=1) - np.eye(n_points, k=-1)) / dx**2
    x_root = np.sqrt(dx * j)
    G = (T + one / (1j * tau)) / np.outer(x_root, x_root)
    if not np.isfinite(G).all():
        raise ValueError(f"box_length={box_length:g} and dt={dt:g} cannot be stepped: they overflow.")
    Lambda, V = np.linalg.eig(G)
    V = V / np.sqrt((V * V).sum(0))
    V = V @ (1.5 * one - 0.5 * V.T @ V)  # a Newton step towards V^T V = 1: a tenth of the error
    condition = np.linalg.norm(V, 2) ** 2
    if not condition <= MOST_CONDITION:
        raise ValueError(
            f"dt={dt:g} is in a range in which n_points={n_points} and box_length={box_length:g} cannot be stepped "
            f"accurately (eigenvectors of condition {condition:.1e}, at most {MOST_CONDITION:g}); "
            "a larger dt or fewer points would be right."
        )
    L = V.T / x_root
    phi = math.sqrt(2 / (n_points + 1)) * np.sin(np.pi / (n_points + 1) * np.outer(j, j))
    a, b = np.repeat(Lambda.real, 2), np.stack([Lambda.imag, -Lambda.imag], axis=-1).ravel()
    arrays = (phi, a, b, _as_pairs(L.T), _as_pairs(2 / (1j * tau) * L))
    return Operator(*(torch.from_numpy(array).to(device) for array in arrays))
