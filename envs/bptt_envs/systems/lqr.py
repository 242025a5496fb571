"""The linear quadratic regulator, whose best controller is known: DiffLQR-v0."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bptt_envs.canvas import CYCLE, FAINT, INK, MUTED, Canvas, round_up
from bptt_envs.checks import flag, in_memory, real_array, shown
from bptt_envs.system import Pullback, System, constant_like

Matrix = Sequence[Sequence[float]] | np.ndarray | Tensor

# Rounding that a weight may bring along, relative to its largest eigenvalue: products in float32 are taken
ROUNDING = 1e-6
# The smallest eigenvalue of R, relative to its largest: below it, R is as good as singular
SMALLEST = 1e-12


class LQR(System):
    """Bring a linear system to rest at 0 at little cost. The default system is a block on a track.

    State: x, (n,), then the number of steps done if there is a clock. Of the block: position and velocity, in m, m/s.
    Action: u, (m,). Of the block: the force, in N.
    Step: x_{t+1} = A x_t + B u_t. The block has a mass of 1 kg; its A and B are exact for a force that is
    constant over a step.
    Loss "continuous": sum over t = 0..T-1 of (x_t' Q x_t + u_t' R u_t), plus x_T' Q_T x_T.
    Loss "final": the same without Q.
    Start: every component of x ~ N(0, 1).

    In the symbols of Bertsekas, "Dynamic Programming and Optimal Control", volume 1; x' is the transpose of x.

    Args:
        objective: "continuous" or "final".
        A: (n, n); None: that of the block.
        B: (n, m); None: that of the block.
        Q: (n, n), weight of the state in every step, symmetric and positive semi-definite; None: dt times the
            identity.
        R: (m, m), weight of the action in every step, symmetric and positive definite; None: 0.1 dt times the
            identity.
        Q_T: (n, n), weight of the last state, symmetric and positive semi-definite; None: the identity.
        clock: append the number of steps done to the state, so that a controller may depend on time.
        max_action: every component of u is clamped to [-max_action, max_action]; None leaves it unbounded.
        horizon: steps of an episode.
        dt: duration of a step, in s. Given matrices stay as they are; it is in the defaults of A, B, Q, R.
    """

    nominal_action = 5.0

    def __init__(
        self,
        *,
        objective: str = "continuous",
        A: Matrix | None = None,
        B: Matrix | None = None,
        Q: Matrix | None = None,
        R: Matrix | None = None,
        Q_T: Matrix | None = None,
        clock: bool = False,
        max_action: float | None = None,
        horizon: int = 20,
        dt: float = 0.1,
    ) -> None:
        super().__init__(horizon=horizon, dt=dt, objective=objective, max_action=max_action)
        self.clock = flag("clock", clock)
        self.A = _matrix("A", [[1.0, self.dt], [0.0, 1.0]] if A is None else A)
        n = self.A.shape[0]
        if self.A.shape != (n, n):
            raise ValueError(f"A must be square; got shape {tuple(self.A.shape)}.")
        self.B = _matrix("B", [[self.dt**2 / 2], [self.dt]] if B is None else B)
        if self.B.shape[0] != n:
            default = ", the default" if B is None else ""
            raise ValueError(f"B must have {n} rows, as A has; got shape {tuple(self.B.shape)}{default}.")
        m = in_memory("columns of B", self.B.shape[1], 2 * self.B.shape[1])  # R is a matrix of them
        self.Q = _weight("Q", self.dt * np.eye(n) if Q is None else Q, n)
        self.R = _weight("R", 0.1 * self.dt * np.eye(m) if R is None else R, m, definite=True)
        self.Q_T = _weight("Q_T", np.eye(n) if Q_T is None else Q_T, n)
        self.state_shape, self.action_shape = (n + self.clock,), (m,)
        self.is_block = A is None and B is None
        labels = [f"x_{i + 1}" for i in range(n)], [f"u_{i + 1}" for i in range(m)]
        x, u = (["position [m]", "velocity [m/s]"], ["force [N]"]) if self.is_block else labels
        self.state_labels, self.action_labels = (*x, *["steps"] * self.clock), tuple(u)

    def step(self, state: Tensor, action: Tensor) -> Tensor:
        A, B = _like(state, self.A, self.B)
        x, steps = self._split(state)
        return torch.cat([x @ A.mT + action @ B.mT, steps + 1.0], dim=-1)

    def linearize(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        A, B = _like(state, self.A, self.B)
        clock = torch.eye(int(self.clock), dtype=state.dtype, device=state.device)  # no action moves it
        by_state, by_action = torch.block_diag(A, clock), torch.nn.functional.pad(B, (0, 0, 0, int(self.clock)))
        return by_state.expand(state.shape[0], -1, -1), by_action.expand(state.shape[0], -1, -1)

    def pullback(self, state: Tensor, action: Tensor) -> Pullback:
        A, B = _like(state, self.A, self.B)

        def pull(rows: slice, vectors: Tensor) -> tuple[Tensor, Tensor]:
            x, steps = self._split(vectors.detach())
            return torch.cat([x @ A, steps], dim=-1) if self.clock else x @ A, x @ B

        return pull

    def initial_states(self, batch: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        x = torch.randn(batch, self.A.shape[0], generator=generator, device=generator.device, dtype=dtype)
        return torch.nn.functional.pad(x, (0, int(self.clock)))

    def running_cost(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        cost = _quadratic(action, self.R)
        if self.objective == "final":
            return cost
        x, _ = self._split(state)
        return _quadratic(x, self.Q) + cost

    def final_cost(self, state: Tensor) -> Tensor:
        x, _ = self._split(state)
        return _quadratic(x, self.Q_T)

    # The solution

    def optimal_gains(self) -> Tensor:
        """Gains of the best controller, u_t = -K_t x_t: (T, m, n), in float64.

        Raises:
            ValueError: if `max_action` is set.
        """
        return self._riccati()[0]

    def optimal_cost(self, state: Tensor) -> Tensor:
        """The least loss of an episode from the start states `state`, (B, *state_shape) -> (B,): x' P_0 x.

        Raises:
            ValueError: if `max_action` is set.
        """
        x, _ = self._split(state)
        return _quadratic(x, self._riccati()[1])

    def _riccati(self) -> tuple[Tensor, Tensor]:
        """The gains K_t, (T, m, n), and P_0, (n, n), by the Riccati recursion from P_T = Q_T."""
        if self.max_action is not None:
            raise ValueError(
                "the optimum in closed form holds for unbounded actions, max_action=None; "
                f"this system has max_action={self.max_action:g}."
            )
        A, B, R, P = self.A, self.B, self.R, self.Q_T
        Q = self.Q if self.objective == "continuous" else torch.zeros_like(self.Q)
        gains = []
        for _ in range(self.horizon):
            K = torch.linalg.solve(R + B.mT @ P @ B, B.mT @ P @ A)
            P = Q + A.mT @ P @ (A - B @ K)
            gains.append(K)
        return torch.stack(gains[::-1]), P

    # The picture

    def draw(self, canvas: Canvas, state: Tensor, action: Tensor | None) -> None:
        if not self.is_block:
            super().draw(canvas, state, action)
            return
        x = float(state[0])
        unit = round_up(max(4.0, 1.25 * abs(x))) / 5  # the view is 10 units wide
        canvas.view(0.0, 0.0, height=6.25 * unit)
        canvas.ruler(-0.8 * unit, "m")
        canvas.line([(canvas.left, -0.3 * unit), (canvas.right, -0.3 * unit)], FAINT, 3)
        canvas.line([(0.0, -0.3 * unit), (0.0, unit)], MUTED, 2.5)
        canvas.text((0.0, 1.2 * unit), "target")
        canvas.rectangle((x, 0.0), unit, 0.6 * unit, CYCLE[0], rounding=0.08 * unit)
        if action is not None:
            self._draw_force(canvas, x, float(action[0]), unit)

    def _draw_force(self, canvas: Canvas, x: float, force: float, unit: float) -> None:
        full = self.nominal_action if self.max_action is None else self.max_action
        side = math.copysign(0.6 * unit, force)
        canvas.arrow((x + side, 0.0), (x + side + 2.0 * unit * math.tanh(force / full), 0.0))
        canvas.text((x, 0.5 * unit), f"{force:.3g} N", INK)

    def _split(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """The x of a state, (..., n), and its number of steps, (..., 1), or (..., 0) without a clock."""
        n = self.A.shape[0]
        return state[..., :n], state[..., n:]


def _like(tensor: Tensor, *matrices: Tensor) -> list[Tensor]:
    """The matrices in the dtype and on the device of `tensor`."""
    return [constant_like(matrix, tensor) for matrix in matrices]


def _quadratic(x: Tensor, weight: Tensor) -> Tensor:
    """The quadratic form x' W x of every sample, (B, n) -> (B,)."""
    (W,) = _like(x, weight)
    return ((x @ W) * x).sum(-1)


def _matrix(name: str, value: Matrix) -> Tensor:
    """Return `value` as a matrix of its own in float64, else raise ValueError."""
    array = real_array(value)
    if array is None or array.ndim != 2 or array.size == 0 or not np.isfinite(array).all():
        raise ValueError(f"{name} must be a matrix of finite numbers, such as [[1, 0.1], [0, 1]]; got {shown(value)}.")
    return torch.from_numpy(np.array(array, dtype=np.float64))


def _weight(name: str, value: Matrix, size: int, *, definite: bool = False) -> Tensor:
    """Return `value` as a symmetric matrix that is positive semi-definite, or `definite`, else raise ValueError."""
    W = _matrix(name, value)
    if W.shape != (size, size):
        raise ValueError(f"{name} must have shape {(size, size)} to fit A and B; got shape {tuple(W.shape)}.")
    kind = "symmetric and positive definite" if definite else "symmetric and positive semi-definite"
    if not torch.allclose(W, W.mT, rtol=ROUNDING, atol=ROUNDING * float(W.abs().max())):
        raise ValueError(f"{name} must be {kind}; got {shown(W.tolist())}, which is not symmetric.")
    W = (W + W.mT) / 2
    eigenvalues = torch.linalg.eigvalsh(W)
    smallest, largest = float(eigenvalues.min()), float(eigenvalues.abs().max())
    if smallest < -ROUNDING * largest or (definite and smallest <= SMALLEST * largest):
        raise ValueError(f"{name} must be {kind}; got {shown(W.tolist())}, with the eigenvalue {smallest:.3g}.")
    return W
