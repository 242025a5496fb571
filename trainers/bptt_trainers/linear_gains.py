"""Linear gains on a linear system with quadratic costs: R, M and S in closed form, and where they rest.

With u_t = -K_t x_t every adjoint is linear in the state, lambda_t = 2 Y_t x_t, and with F_t = A - B K_t

    Y_T = Q_T,    Y_t = Q + K_t' R K_t + F_t' Y_{t+1} F_t    under R: the cost to go under these gains
                  Y_t = Q + A' Y_{t+1} F_t                   under M
                  Y_t = Q                                    under S
    Sigma_{t+1} = F_t Sigma_t F_t',    Sigma_0 = E x_0 x_0'

so that the direction by K_t is D_t = 2 [(R + B' Y_{t+1} B) K_t - B' Y_{t+1} A] Sigma_t. It follows from the
recursion of `recursion.py`; the symbols are those of Bertsekas, "Dynamic Programming and Optimal Control",
volume 1, and x' is the transpose of x.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import jacfwd

from bptt_envs.systems import LQR

CLOSED_FORMS = ("R", "M", "S")

NEWTON_STEPS = 200
SMALLEST_STEP = 2.0**-30  # of Newton's, below which no step makes the direction smaller
REST = 1e-10  # a rest point is found to this, in the components of the direction


class TimeVaryingGains(nn.Module):
    """The controller u_t = -K_t x_t: a gain for each step, which it counts by the clock in the observation.

    Args:
        horizon: steps of an episode, T.
        actions: components of u, m.
        states: components of x, n; the observation is x and then the number of steps done.
    """

    def __init__(self, horizon: int, actions: int, states: int) -> None:
        super().__init__()
        self.gains = nn.Parameter(torch.zeros(horizon, actions, states, dtype=torch.float64))

    def forward(self, observation: Tensor) -> Tensor:
        """Observations (B, n + 1) -> actions (B, m)."""
        x, t = observation[:, :-1], observation[:, -1].long()
        return -(self.gains[t] * x.unsqueeze(1)).sum(-1)


@dataclass(frozen=True)
class LinearQuadratic:
    """A linear system over T steps from random start states, with the loss E[sum_t (x'Qx + u'Ru) + x_T'Q_T x_T].

    Attributes:
        A: (n, n).
        B: (n, m).
        Q: (n, n).
        R: (m, m).
        Q_T: (n, n).
        horizon: T.
        moment: Sigma_0 = E x_0 x_0', (n, n). No more of the start states counts.
    """

    A: Tensor
    B: Tensor
    Q: Tensor
    R: Tensor
    Q_T: Tensor
    horizon: int
    moment: Tensor

    @classmethod
    def of(cls, system: LQR) -> LinearQuadratic:
        """That of a system, from its own start states, N(0, I)."""
        Q = system.Q if system.objective == "continuous" else torch.zeros_like(system.Q)
        return cls(system.A, system.B, Q, system.R, system.Q_T, system.horizon, torch.eye(len(Q), dtype=Q.dtype))

    def loss(self, gains: Tensor) -> Tensor:
        """The loss of the gains, (T, m, n)."""
        P = self.Q_T
        for K in reversed(gains.unbind()):
            F = self.A - self.B @ K
            P = self.Q + K.mT @ self.R @ K + F.mT @ P @ F
        return (P * self.moment).sum()

    def directions(self, gains: Tensor, rule: str) -> Tensor:
        """The direction of R, M or S by each gain, (T, m, n) -> (T, m, n)."""
        A, B, Q, R = self.A, self.B, self.Q, self.R
        Y = self.Q_T
        arriving = [Y]  # Y_{t+1}, the last step first
        for K in reversed(gains[1:].unbind()):
            F = A - B @ K
            Y = {"R": Q + K.mT @ R @ K + F.mT @ Y @ F, "M": Q + A.mT @ Y @ F, "S": Q}[rule]
            arriving.append(Y)
        Sigma = self.moment
        directions = []
        for K, Y in zip(gains.unbind(), reversed(arriving), strict=True):
            directions.append(2.0 * ((R + B.mT @ Y @ B) @ K - B.mT @ Y @ A) @ Sigma)
            F = A - B @ K
            Sigma = F @ Sigma @ F.mT
        return torch.stack(directions)

    def constant(self, gain: Tensor) -> Tensor:
        """One gain in every step, (m, n) -> (T, m, n)."""
        return gain.expand(self.horizon, *gain.shape)

    def constant_direction(self, gain: Tensor, rule: str) -> Tensor:
        """The direction of R, M or S by one gain for all steps, (m, n) -> (m, n)."""
        return self.directions(self.constant(gain), rule).sum(0)


def rest_point(direction: Callable[[Tensor], Tensor], guess: Tensor) -> Tensor:
    """Where a direction is 0, by Newton's method with steps halved until the direction shrinks.

    Args:
        direction: of a tensor by itself, in the same shape.
        guess: where to start.

    Raises:
        RuntimeError: if it comes to none.
    """
    point = guess
    for _ in range(NEWTON_STEPS):
        here = direction(point)
        if float(here.abs().max()) < REST:
            return point
        step = torch.linalg.solve(slope(direction, point), here.flatten()).view_as(point)
        length = 1.0
        while length > SMALLEST_STEP and not direction(point - length * step).norm() < here.norm():
            length /= 2.0
        point = point - length * step
    raise RuntimeError(f"Newton's method found no rest point from {guess.tolist()}; it came to {point.tolist()}.")


def slope(direction: Callable[[Tensor], Tensor], point: Tensor) -> Tensor:
    """The derivative of a direction by its N numbers, (N, N). The rest point is stable if its eigenvalues are > 0."""
    jacobian: Tensor = jacfwd(lambda flat: direction(flat.view_as(point)).flatten())(point.flatten())
    return jacobian
