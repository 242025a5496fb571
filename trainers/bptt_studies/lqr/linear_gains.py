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

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import jacrev

from bptt_envs.systems import LQR

CLOSED_FORMS = ("R", "M", "S")

NEWTON_STEPS = 100
SMALLEST_STEP = 1e-12  # Newton's steps are halved no further
REST = 1e-10  # a direction rests where no component is larger


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
        """The loss of gains for each step, (T, m, n), or of one for all steps, (m, n): a scalar."""
        P = self.Q_T
        for K in reversed(self._by_step(gains)):
            P = self._before(P, K, "R")
        return (P * self.moment).sum()

    def direction(self, gains: Tensor, rule: str) -> Tensor:
        """The direction of R, M or S by the gains, (T, m, n) or (m, n), in their shape."""
        A, B, R = self.A, self.B, self.R
        steps = self._by_step(gains)
        arriving = [self.Q_T]  # Y_{t+1}, the last step first
        for K in reversed(steps[1:]):
            arriving.append(self._before(arriving[-1], K, rule))
        Sigma = self.moment
        directions = []
        for K, Y in zip(steps, reversed(arriving), strict=True):
            directions.append(2.0 * ((R + B.mT @ Y @ B) @ K - B.mT @ Y @ A) @ Sigma)
            F = A - B @ K
            Sigma = F @ Sigma @ F.mT
        by_step = torch.stack(directions)
        return by_step if gains.ndim == 3 else by_step.sum(0)

    def slope(self, gains: Tensor, rule: str) -> Tensor:
        """The derivative of the direction by the N numbers of the gains, (N, N).

        A rest point is stable, for small enough steps, if all its eigenvalues have a real part above 0.
        """
        jacobian: Tensor = jacrev(lambda flat: self.direction(flat.view_as(gains), rule).flatten())(gains.flatten())
        return jacobian

    def resting_gains(self, rule: str) -> Tensor:
        """The gains for each step, (T, m, n), at which R, M or S rests.

        The bracket of D_t is 0 for one K_t alone, which Y_{t+1} gives and which gives Y_t, from the last step
        backwards. With Sigma_t > 0 in every step there are no others.
        """
        Y = self.Q_T
        gains = []
        for _ in range(self.horizon):
            gains.append(torch.linalg.solve(self.R + self.B.mT @ Y @ self.B, self.B.mT @ Y @ self.A))
            Y = self._before(Y, gains[-1], rule)
        return torch.stack(gains[::-1])

    def resting_gain(self, rule: str, guess: Tensor) -> Tensor:
        """One gain for all steps, (m, n), at which R, M or S rests: by Newton's method from a guess.

        Steps are halved until the direction shrinks.

        Raises:
            RuntimeError: if it comes to none.
        """
        K = guess
        for _ in range(NEWTON_STEPS):
            D = self.direction(K, rule)
            if float(D.abs().max()) < REST:
                return K
            step = torch.linalg.solve(self.slope(K, rule), D.flatten()).view_as(K)
            while not self.direction(K - step, rule).norm() < D.norm() and step.norm() > SMALLEST_STEP:
                step = step / 2.0
            K = K - step
        raise RuntimeError(
            f"Newton's method found no rest point of {rule} from {guess.tolist()}; it came to {K.tolist()}."
        )

    def _by_step(self, gains: Tensor) -> tuple[Tensor, ...]:
        """K_0 ... K_{T-1}."""
        return gains.unbind() if gains.ndim == 3 else (gains,) * self.horizon

    def _before(self, Y: Tensor, K: Tensor, rule: str) -> Tensor:
        """Y_t from Y_{t+1} and K_t."""
        F = self.A - self.B @ K
        if rule == "R":
            return self.Q + K.mT @ self.R @ K + F.mT @ Y @ F
        return self.Q + self.A.mT @ Y @ F if rule == "M" else self.Q
