"""A pendulum of several links on a cart, each link hinged to the one before: DiffChainedPendulum-v0."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bptt_envs.canvas import BACKGROUND, CYCLE, FAINT, INK, Canvas
from bptt_envs.checks import not_negative, one_of, positive, positive_integer
from bptt_envs.systems.cart_pole import OnCart

MOST_LINKS = 6
TASKS = ("swing_up", "balance")
NEAR = 0.1  # m, m/s, rad and rad/s: how near to upright and at rest "balance" starts

Rows = list[Tensor]
"""Numbers of the links, from the cart on: (B,) each, or (columns, B)."""


class ChainedPendulum(OnCart):
    """Swing up a chain of links that hangs from a cart, or balance it, by a force on the cart.

    The links are massless rods of `link_length` with a point mass `link_mass` at their far ends.

    State: x, x', theta_1, theta_1', ..., in m, m/s, rad, rad/s, from the cart on; theta_i is the angle of link i
    with the vertical: 0 is upright, pi hangs down. Action: the force on the cart, (1,), in N. Integrator:
    classical Runge-Kutta of order 4, the force constant over a step.
    Loss "final": 1 - mean over links of cos theta_i at step T. Loss "continuous": the same, averaged over
    steps 1..T. Start, "swing_up": x, x', theta_i' ~ U(-1, 1), theta_i ~ pi + U(-pi/6, pi/6); "balance": all of
    them ~ U(-0.1, 0.1).

    Equations, their derivation and the energy error: docs/environments/chained-pendulum.md.

    Args:
        objective: "final" or "continuous".
        n_links: number of links, 1 to 6.
        task: "swing_up" or "balance": where episodes start.
        observation: "state", "cos_sin" (x, x', cos theta_i, sin theta_i, theta_i', link by link) or "positions" (x,
            cos theta_i, sin theta_i: no velocities, which a controller with memory can find out).
        link_length: of each link, in m.
        link_mass: the mass at the end of each link, in kg.
        cart_mass: mass of the cart, in kg.
        gravity: in m/s^2.
        joint_damping: viscous friction of each hinge, in N m s: the torque between two links (or link and cart) per
            difference of their angular velocities.
        max_force: the force is clamped to [-max_force, max_force], in N; None leaves it unbounded.
        horizon: steps of an episode.
        dt: duration of a step, in s.
        substeps: steps of the integrator in a step.
    """

    parameters = ("link_length", "link_mass", "cart_mass", "gravity", "joint_damping")

    def __init__(
        self,
        *,
        objective: str = "final",
        n_links: int = 2,
        task: str = "swing_up",
        observation: str = "state",
        link_length: float = 0.5,
        link_mass: float = 0.1,
        cart_mass: float = 1.0,
        gravity: float = 9.8,
        joint_damping: float = 0.0,
        max_force: float | None = None,
        horizon: int = 100,
        dt: float = 0.02,
        substeps: int = 2,
    ) -> None:
        self.n_links = positive_integer("n_links", n_links)
        if self.n_links > MOST_LINKS:
            raise ValueError(f"n_links must be an integer from 1 to {MOST_LINKS}; got {self.n_links}.")
        super().__init__(
            self.n_links, observation=observation, max_force=max_force, horizon=horizon, dt=dt, objective=objective
        )
        self.task = one_of("task", task, TASKS)
        self.link_length = positive("link_length", link_length)
        self.link_mass = positive("link_mass", link_mass)
        self.cart_mass = positive("cart_mass", cart_mass)
        self.gravity = not_negative("gravity", gravity)
        self.joint_damping = not_negative("joint_damping", joint_damping)
        self.substeps = positive_integer("substeps", substeps)

    def initial_states(self, batch: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        if self.task == "swing_up":
            return super().initial_states(batch, generator, dtype)
        state = torch.rand(batch, *self.state_shape, generator=generator, device=generator.device, dtype=dtype)
        return NEAR * (2.0 * state - 1.0)

    def draw(self, canvas: Canvas, state: Tensor, action: Tensor | None) -> None:
        x, length = float(state[0]), float(self.link_length)
        reach = self.n_links * length
        size = (reach + 0.5) / 1.5  # of the view, against that of poles
        slack = 1.2 * size  # m that the cart moves about the middle of the picture before the view follows it
        canvas.view(x - max(-slack, min(slack, x)), 0.05, height=3.1 * size)
        canvas.ruler(-1.2 * size, "m")
        canvas.line([(canvas.left, 0.0), (canvas.right, 0.0)], FAINT, 5)
        canvas.line([(x, 0.0), (x, reach)], FAINT, 3)  # where the chain is upright
        canvas.circle((x, reach), 0.07 * size, FAINT, 3)
        canvas.rectangle((x, 0.0), 0.5, 0.24, INK, rounding=0.06)
        hinges = [(x, 0.0)]
        for theta in state[2::2].tolist():
            across, up = hinges[-1]
            hinges.append((across + length * math.sin(theta), up + length * math.cos(theta)))
        for i in range(self.n_links):
            canvas.line(hinges[i : i + 2], CYCLE[i], 9)
        for i, mass in enumerate(hinges[1:]):
            canvas.circle(mass, 0.06 * size, CYCLE[i])
        canvas.circle(hinges[0], 0.04, BACKGROUND)
        if action is not None and abs(float(action[0])) >= 0.05:
            self._draw_force(canvas, x, float(action[0]))

    # Dynamics. Inside, components come first and samples last, so that parameters (B,) meet them as they are:
    # q = (x, theta_1, ...) and v = (x', theta_1', ...) are (1 + n, B).

    def step(self, state: Tensor, action: Tensor) -> Tensor:
        f = action[:, 0]
        q, v = self._advanced(
            state.mT[0::2], state.mT[1::2], lambda q, v: self._forces(q[1:], v[1:], f).accelerations()
        )
        return torch.stack([q, v], dim=1).flatten(0, 1).mT

    def accelerations(self, state: Tensor, action: Tensor) -> Tensor:
        """The accelerations x'', theta_1'', ..., (B, 1 + n), in m/s^2 and rad/s^2.

        Args:
            state: (B, 2 + 2n).
            action: (B, 1).
        """
        return self._forces(state.mT[2::2], state.mT[3::2], action[:, 0]).accelerations().mT

    @property
    def dense_jacobians(self) -> bool:
        return True  # `linearize` has a closed form

    def linearize(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        # The same steps of Runge-Kutta, with the derivatives by all that they start from in columns beside
        state, f = state.detach(), action.detach()[:, 0]
        size = self.state_size
        seeds = torch.eye(size + 1, dtype=state.dtype, device=state.device)  # by the state, then by f
        by_f = seeds[-1:].mT
        with_slopes = torch.cat([state.mT.unsqueeze(1), seeds[:-1].unsqueeze(-1).expand(-1, -1, len(state))], dim=1)

        def accelerations(q: Tensor, v: Tensor) -> Tensor:
            forces = self._forces(q[1:, 0], v[1:, 0], f)
            slopes = forces.slopes(q[1:, 1:], v[1:, 1:], by_f)
            return torch.cat([forces.accelerations().unsqueeze(1), slopes], dim=1)

        q, v = self._advanced(with_slopes[0::2], with_slopes[1::2], accelerations)
        slopes = torch.stack([q[:, 1:], v[:, 1:]], dim=1).flatten(0, 1).permute(2, 0, 1).contiguous()
        return slopes[..., :size], slopes[..., size:]

    def _advanced(
        self, q: Tensor, v: Tensor, accelerations: Callable[[Tensor, Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Positions and velocities after `dt`, by classical Runge-Kutta, (1 + n, ...) each."""
        h = self.dt / self.substeps
        for _ in range(self.substeps):
            a1 = accelerations(q, v)
            v2 = torch.add(v, a1, alpha=h / 2)
            a2 = accelerations(torch.add(q, v, alpha=h / 2), v2)
            v3 = torch.add(v, a2, alpha=h / 2)
            a3 = accelerations(torch.add(q, v2, alpha=h / 2), v3)
            v4 = torch.add(v, a3, alpha=h)
            a4 = accelerations(torch.add(q, v3, alpha=h), v4)
            q = torch.add(q, torch.add(v + v4, v2 + v3, alpha=2), alpha=h / 6)
            v = torch.add(v, torch.add(a1 + a4, a2 + a3, alpha=2), alpha=h / 6)
        return q, v

    def _forces(self, theta: Tensor, w: Tensor, f: Tensor) -> _Forces:
        """What acts in the chain. theta, w: (n, B), f: (B,)."""
        m, l, cart, b = self.link_mass, self.link_length, self.cart_mass, self.joint_damping
        friction = None if isinstance(b, float) and b == 0.0 else b / (m * l * l)
        return _Forces(
            theta, w, f, length=l, gravity=self.gravity / l, rho=m / cart, mobility=1 / (cart * l), friction=friction
        )


class _Forces:
    """Tensions t_k of the links, over m l, and what they make of the chain: the equations of the page, in its symbols.

    Numbers of the links are rows, (B,) each, or (columns, B) where they are derivatives. C_k and S_k, the cosine and
    sine of theta_{k+1} - theta_k, are one fewer.

    Args:
        theta: (n, B), rad.
        w: theta', (n, B), rad/s.
        f: the force on the cart, (B,), N.
        length: l; a number or (B,), as all below.
        gravity: g / l.
        rho: m / M, of a link's mass to the cart's.
        mobility: 1 / (M l).
        friction: b / (m l^2), None if there is none.
    """

    def __init__(
        self, theta: Tensor, w: Tensor, f: Tensor, *, length: Any, gravity: Any, rho: Any, mobility: Any, friction: Any
    ) -> None:
        self.length, self.gravity, self.rho, self.mobility, self.friction = length, gravity, rho, mobility, friction
        s, c = theta.sin(), theta.cos()
        self.w, self.s1, self.c1 = w, s[0], c[0]
        self.C = torch.addcmul(c[1:] * c[:-1], s[1:], s[:-1]).unbind()
        S = torch.addcmul(s[1:] * c[:-1], c[1:], s[:-1], value=-1)
        self.S, self.minus_S = S.unbind(), (-S).unbind()
        self.sigma = self._friction(w.unbind())
        u = f * mobility

        along = list((w * w).unbind())
        along[0] = along[0] - gravity * self.c1 - u * self.s1
        self.G: list[Tensor] = [*self.C]
        self.d: list[Any] = [1.0 + rho * (self.s1 * self.s1), *[2.0] * len(self.C)]
        for k in reversed(range(len(self.C))):
            self.G[k] = self.C[k] / self.d[k + 1]
            self.d[k] = self.d[k] - self.C[k] * self.G[k]
        self.t = self._tensions(self._with_friction_along(along, self.sigma))

        self.pull = rho * self.s1  # of the tension of the first link on the cart
        self.A = torch.addcmul(u, self.pull, self.t[0])  # x'' / l
        if self.sigma is not None:
            self.A = self.A - rho * self.c1 * self.sigma[0]

    def accelerations(self) -> Tensor:
        """x'', theta_1'', ..., (1 + n, B)."""
        first = torch.addcmul(self.gravity * self.s1, self.c1, self.A, value=-1)
        return torch.stack([self.length * self.A, *self._across(first, self.t, self.sigma)])

    def slopes(self, theta: Tensor, w: Tensor, f: Tensor) -> Tensor:
        """Derivatives of the accelerations, (1 + n, columns, B).

        Args:
            theta: derivatives of the angles, (n, columns, B).
            w: of the velocities, likewise.
            f: of the force, (columns, 1).
        """
        s1, c1, rho, t, sigma = self.s1, self.c1, self.rho, self.t, self.sigma
        turned = (theta[1:] - theta[:-1]).unbind()
        sigma_slopes = self._friction(w.unbind())
        leaning = t[0] * c1 if sigma is None else t[0] * c1 + sigma[0] * s1

        # What the equations of the tensions are short of, at the same tensions, is what these change by
        along = list((2.0 * self.w.unsqueeze(1) * w).unbind())
        by_theta = self.gravity * s1 - c1 * self.A - self.pull * leaning
        along[0] = torch.addcmul(along[0], by_theta, theta[0]) - (s1 * self.mobility) * f
        for k, across in enumerate(turned):
            up, down = self._neighbours_across(k, t, sigma)
            along[k] = torch.addcmul(along[k], up, across, value=-1)
            along[k + 1] = torch.addcmul(along[k + 1], down, across)
        t_slopes = self._tensions(self._with_friction_along(along, sigma_slopes))

        A = torch.addcmul(torch.addcmul(self.mobility * f, self.pull, t_slopes[0]), rho * leaning, theta[0])
        if sigma_slopes is not None:
            A = A - rho * c1 * sigma_slopes[0]
        first = torch.addcmul((self.gravity * c1 + s1 * self.A) * theta[0], c1, A, value=-1)
        rows = self._across(first, t_slopes, sigma_slopes)
        for k, across in enumerate(turned):
            up, down = self.C[k] * t[k + 1], self.C[k] * t[k]
            if sigma is not None:
                up, down = up + self.S[k] * sigma[k + 1], down - self.S[k] * sigma[k]
            rows[k] = torch.addcmul(rows[k], up, across)
            rows[k + 1] = torch.addcmul(rows[k + 1], down, across, value=-1)
        return torch.stack([self.length * A, *rows])

    def _tensions(self, along: Rows) -> Rows:
        """Solve the tridiagonal equations of the tensions: from the last link to the first, and back."""
        rest = list(along)
        for k in reversed(range(len(self.G))):
            rest[k] = torch.addcmul(rest[k], self.G[k], rest[k + 1])
        t = [rest[0] / self.d[0]]
        for k, G in enumerate(self.G):
            t.append(torch.addcmul(rest[k + 1] / self.d[k + 1], G, t[k]))
        return t

    def _friction(self, w: Sequence[Tensor]) -> Rows | None:
        """sigma_k, the torque of the hinges on each link, over m l^2, from velocities or their derivatives."""
        if self.friction is None:
            return None
        slips = [w[0], *(w[k + 1] - w[k] for k in range(len(w) - 1))]  # of each hinge
        torques = [self.friction * slip for slip in slips]
        return [*(torques[k + 1] - torques[k] for k in range(len(w) - 1)), -torques[-1]]

    def _with_friction_along(self, along: Rows, sigma: Rows | None) -> Rows:
        """The right-hand sides of the tensions, with what friction adds."""
        if sigma is None:
            return along
        rows = list(along)
        rows[0] = rows[0] + self.rho * self.s1 * self.c1 * sigma[0]
        for k, S in enumerate(self.S):
            rows[k] = torch.addcmul(rows[k], S, sigma[k + 1])
            rows[k + 1] = torch.addcmul(rows[k + 1], S, sigma[k], value=-1)
        return rows

    def _across(self, first: Tensor, t: Rows, sigma: Rows | None) -> Rows:
        """Each theta_k'' by tensions and friction; `first` is what cart and gravity add to that of the first link."""
        rows = [first if sigma is None else first + sigma[0]]
        for k in range(len(self.S)):
            up, down = self._neighbours_across(k, t, sigma)
            rows[k] = rows[k] + up
            rows.append(down if sigma is None else torch.add(down, sigma[k + 1], alpha=2))
        return rows

    def _neighbours_across(self, k: int, t: Rows, sigma: Rows | None) -> tuple[Tensor, Tensor]:
        """What link k + 1 adds to theta_k'', and link k to theta_{k+1}''."""
        up, down = self.S[k] * t[k + 1], self.minus_S[k] * t[k]
        if sigma is None:
            return up, down
        return (
            torch.addcmul(up, self.C[k], sigma[k + 1], value=-1),
            torch.addcmul(down, self.C[k], sigma[k], value=-1),
        )
