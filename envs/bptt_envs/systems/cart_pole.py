"""Cart-pole swing-up with any number of poles on one cart: DiffCartPole-v0 and DiffMultiPole-v0."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bptt_envs.canvas import BACKGROUND, CYCLE, FAINT, INK, Canvas
from bptt_envs.checks import in_memory, not_negative, one_of, positive, positive_integer
from bptt_envs.system import System, broadcast

GRAVITY = 9.8  # m/s^2
CART_MASS = 1.0  # kg
POLE_MASS = 0.1  # kg
HALF_LENGTH = 0.5  # m, from the hinge to the pole's centre of mass

DYNAMICS = ("paper", "exact")
OBSERVATIONS = ("state", "cos_sin", "positions")


class Slopes(NamedTuple):
    """Derivatives of the accelerations (x'', theta_1'', ...), each (B, 1 + n_poles, ...)."""

    by_position: Tensor  # (B, 1 + n, 1 + n), by x, theta_1, ...
    by_velocity: Tensor  # (B, 1 + n, 1 + n)
    by_force: Tensor  # (B, 1 + n)


class OnCart(System):
    """Bodies hang from a cart that a force pushes: their state, costs, start and observation, whatever joins them.

    State: x, x', theta_1, theta_1', ..., in m, m/s, rad, rad/s; theta = 0 is upright, pi hangs down.
    Action: the force on the cart, (1,), in N. Cost of a state: 1 - mean of cos theta_i.

    Args:
        count: number of angles.
        observation: one of `OBSERVATIONS`.
        max_force: the force is clamped to [-max_force, max_force], in N; None leaves it unbounded.
        horizon, dt, objective: as in `System`.
    """

    action_shape = (1,)
    action_labels = ("force [N]",)
    nominal_action = 50.0

    def __init__(
        self, count: int, *, observation: str, max_force: float | None, horizon: int, dt: float, objective: str
    ) -> None:
        max_force = None if max_force is None else positive("max_force", max_force)
        super().__init__(horizon=horizon, dt=dt, objective=objective, max_action=max_force)
        self.observation = one_of("observation", observation, OBSERVATIONS)
        self.state_shape = (2 + 2 * count,)
        angles = [""] if count == 1 else [f"_{i}" for i in range(1, count + 1)]
        self.state_labels = (
            "x [m]",
            "x' [m/s]",
            *(label for i in angles for label in (f"theta{i} [rad]", f"theta'{i} [rad/s]")),
        )

    # Cost, start, observation

    def state_cost(self, state: Tensor) -> Tensor:
        return 1.0 - state[:, 2::2].cos().mean(-1)

    def initial_states(self, batch: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        state = torch.rand(batch, *self.state_shape, generator=generator, device=generator.device, dtype=dtype)
        state = 2.0 * state - 1.0
        state[:, 2::2] = math.pi + math.pi / 6 * state[:, 2::2]
        return state

    @property
    def observation_shape(self) -> tuple[int, ...]:
        count = self.state_size // 2 - 1
        sizes = {"cos_sin": 2 + 3 * count, "positions": 1 + 2 * count}
        return self.state_shape if self.observation == "state" else (sizes[self.observation],)

    def observe(self, state: Tensor) -> Tensor:
        if self.observation == "state":
            return state
        theta, theta_dot = state[:, 2::2], state[:, 3::2]
        if self.observation == "positions":
            angles = torch.stack([theta.cos(), theta.sin()], dim=-1)
            return torch.cat([state[:, :1], angles.flatten(1)], dim=-1)
        angles = torch.stack([theta.cos(), theta.sin(), theta_dot], dim=-1)
        return torch.cat([state[:, :2], angles.flatten(1)], dim=-1)

    def _draw_force(self, canvas: Canvas, x: float, force: float) -> None:
        full = self.nominal_action if self.max_action is None else self.max_action
        sign = math.copysign(1.0, force)
        tail = x + 0.28 * sign
        canvas.arrow((tail, 0.0), (tail + 0.85 * math.tanh(1.5 * force / full), 0.0))
        number = f"{force:.1f}" if abs(force) < 1e4 else f"{force:.1e}"
        canvas.text((tail, 0.14), f"{number} N", INK, align="left" if force > 0 else "right")


class MultiPole(OnCart):
    """Swing up `n_poles` independent poles that hang from one cart, by a force on the cart.

    State: x, x', theta_1, theta_1', ..., in m, m/s, rad, rad/s; theta = 0 is upright, pi hangs down.
    Action: the force on the cart, (1,), in N. Integrator: semi-implicit Euler, velocities first.
    Loss "final": 1 - mean over poles of cos theta_i at step T. Loss "continuous": the same, averaged over
    steps 1..T. Start: x, x', theta_i' ~ U(-1, 1), theta_i ~ pi + U(-pi/6, pi/6).

    Equations and their derivation: docs/environments/multi-pole.md. Source of the paper's dynamics:
    arXiv 2405.02041; for one pole they are those of Barto, Sutton, Anderson (1983).

    Args:
        objective: "final" or "continuous".
        n_poles: number of poles, 1 or more.
        dynamics: "paper" (each pole feels the cart as if it were alone on it, total mass that of cart and
            one pole, 1.1 kg, whatever the number of poles) or "exact" (the Lagrangian of n poles on one cart of
            1 kg). For one pole the two are the same.
        observation: "state", "cos_sin" (x, x', cos theta_i, sin theta_i, theta_i', pole by pole) or "positions" (x,
            cos theta_i, sin theta_i: no velocities, which a controller with memory can find out).
        pole_length: from the hinge to a pole's centre of mass, half of the pole, in m: the l of the equations.
        pole_mass: mass of each pole, in kg.
        cart_mass: mass of the cart, in kg.
        gravity: in m/s^2.
        max_force: the force is clamped to [-max_force, max_force], in N; None leaves it unbounded.
        horizon: steps of an episode.
        dt: duration of a step, in s.
    """

    parameters = ("pole_length", "pole_mass", "cart_mass", "gravity")

    def __init__(
        self,
        *,
        objective: str = "final",
        n_poles: int = 2,
        dynamics: str = "paper",
        observation: str = "state",
        pole_length: float = HALF_LENGTH,
        pole_mass: float = POLE_MASS,
        cart_mass: float = CART_MASS,
        gravity: float = GRAVITY,
        max_force: float | None = None,
        horizon: int = 100,
        dt: float = 0.01,
    ) -> None:
        self.n_poles = positive_integer("n_poles", n_poles)
        in_memory("n_poles", self.n_poles, self.n_poles)  # the mass matrix
        super().__init__(
            self.n_poles, observation=observation, max_force=max_force, horizon=horizon, dt=dt, objective=objective
        )
        self.dynamics = one_of("dynamics", dynamics, DYNAMICS)
        self.pole_length = positive("pole_length", pole_length)
        self.pole_mass = positive("pole_mass", pole_mass)
        self.cart_mass = positive("cart_mass", cart_mass)
        self.gravity = not_negative("gravity", gravity)

    def draw(self, canvas: Canvas, state: Tensor, action: Tensor | None) -> None:
        x, thetas = float(state[0]), state[2::2].tolist()
        length = 2 * float(self.pole_length)
        slack = 1.2  # m that the cart moves about the middle of the picture before the view follows it
        canvas.view(x - max(-slack, min(slack, x)), 0.05, height=3.1)
        canvas.ruler(-1.2, "m")
        canvas.line([(canvas.left, 0.0), (canvas.right, 0.0)], FAINT, 5)
        canvas.line([(x, 0.0), (x, length)], FAINT, 3)  # where a pole is upright
        canvas.circle((x, length), 0.07, FAINT, 3)
        canvas.rectangle((x, 0.0), 0.5, 0.24, INK, rounding=0.06)
        for i, theta in enumerate(thetas):
            tip = (x + length * math.sin(theta), length * math.cos(theta))
            width = 15 - 10 * i / max(1, self.n_poles - 1)  # each narrower than those behind it: none is hidden
            canvas.line([(x, 0.0), tip], CYCLE[i % len(CYCLE)], width)
        canvas.circle((x, 0.0), 0.04, BACKGROUND)
        if action is not None and abs(float(action[0])) >= 0.05:
            self._draw_force(canvas, x, float(action[0]))

    # Dynamics: q = (x, theta_1, ...) and v = (x', theta_1', ...) interleave in the state

    def step(self, state: Tensor, action: Tensor) -> Tensor:
        # A row for each component, in memory too: so is all that the next step makes of it, without gaps
        q, v = state.mT.view(1 + self.n_poles, 2, len(state)).unbind(1)
        theta = q[1:]
        accelerations = self._paper if self.dynamics == "paper" else self._exact
        v = torch.add(v, accelerations(theta.sin(), theta.cos(), v[1:], action.mT), alpha=self.dt)
        q = torch.add(q, v, alpha=self.dt)
        return torch.stack([q, v], dim=1).flatten(0, 1).mT

    @property
    def dense_jacobians(self) -> bool:
        return True  # `linearize` has a closed form for any number of poles

    def linearize(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        theta, theta_dot = state[:, 2::2], state[:, 3::2]
        slopes_of = self._paper_slopes if self.dynamics == "paper" else self._exact_slopes
        a_q, a_v, a_f = slopes_of(theta.sin(), theta.cos(), theta_dot, action)
        identity = torch.eye(a_q.shape[-1], dtype=state.dtype, device=state.device)
        # v' = v + dt a(q, v, f), then q' = q + dt v'
        v_q, v_v, v_f = self.dt * a_q, identity + self.dt * a_v, self.dt * a_f
        q_row = torch.stack([identity + self.dt * v_q, self.dt * v_v], dim=-1)  # (B, 1 + n, 1 + n, 2)
        v_row = torch.stack([v_q, v_v], dim=-1)
        by_state = torch.stack([q_row, v_row], dim=2).flatten(3).flatten(1, 2)
        by_action = torch.stack([self.dt * v_f, v_f], dim=-1).flatten(1).unsqueeze(-1)
        return by_state, by_action

    # A rollout is some ten thousand small operations, so that their number is its time: products with constants
    # ride along in torch.add and torch.addcmul, and w * w is cheaper than w.square(). Constants are numbers or, where
    # they differ from sample to sample, (B,); for the slopes, whose components come last, (B, 1).

    def _constants(self) -> tuple[Any, Any, Any, Any]:
        """m, l, g and the mass of the cart, for the slopes."""
        m, l, g, cart = self.pole_mass, self.pole_length, self.gravity, self.cart_mass
        if type(m) is type(l) is type(g) is type(cart) is float:
            return m, l, g, cart
        return broadcast(m), broadcast(l), broadcast(g), broadcast(cart)

    def _paper(self, s: Tensor, c: Tensor, w: Tensor, f: Tensor) -> Tensor:
        """Accelerations (x'', theta_i''), (1 + n, B), of arXiv 2405.02041; s, c, w: (n, B), f: (1, B).

        With M the mass of cart and pole: A = (f + m l s w^2) / M, theta'' = (g s - c A) / (l (4/3 - m/M c^2)) and
        x'' = (f + m l sum_i (s_i w_i^2 - theta_i'' c_i)) / M.
        """
        m, l, g = self.pole_mass, self.pole_length, self.gravity
        M = self.cart_mass + m
        sww = w * w * s
        f = f * (1 / M)
        A = _plus(f, m * l / M, sww)
        inertia = _plus(4 / 3 * l, -(m * l / M), c * c)
        theta_acc = torch.addcmul(g * s, c, A, value=-1) / inertia
        pull = torch.addcmul(sww, theta_acc, c, value=-1)
        pull = pull if self.n_poles == 1 else pull.sum(0, keepdim=True)
        x_acc = _plus(f, m * l / M, pull)
        return torch.cat([x_acc, theta_acc])

    def _paper_slopes(self, s: Tensor, c: Tensor, w: Tensor, f: Tensor) -> Slopes:
        m, l, g, cart = self._constants()
        M = cart + m
        A = (f + m * l * s * w.square()) / M
        A_theta, A_w = m * l / M * c * w.square(), 2 * m * l / M * s * w
        D = l * (4 / 3 - m / M * c.square())
        D_theta = 2 * l * m / M * c * s
        theta_acc = (g * s - c * A) / D
        theta_acc_theta = (g * c + s * A - c * A_theta - theta_acc * D_theta) / D
        theta_acc_w = -c * A_w / D
        theta_acc_f = -c / (M * D)
        x_acc_theta = m * l / M * (c * w.square() - theta_acc_theta * c + theta_acc * s)
        x_acc_w = m * l / M * (2 * s * w - theta_acc_w * c)
        x_acc_f = (1 - m * l * (theta_acc_f * c).sum(-1, keepdim=True)) / M
        return Slopes(
            by_position=_with_cart_row(x_acc_theta, torch.diag_embed(theta_acc_theta)),
            by_velocity=_with_cart_row(x_acc_w, torch.diag_embed(theta_acc_w)),
            by_force=torch.cat([x_acc_f, theta_acc_f], dim=-1),
        )

    def _exact(self, s: Tensor, c: Tensor, w: Tensor, f: Tensor) -> Tensor:
        """Accelerations (x'', theta_i''), (1 + n, B), by Lagrange; s, c, w: (n, B), f: (1, B).

        The mass matrix is an arrow: eliminating theta_i'' = 3/(4l) (g s_i - c_i x'') leaves one equation
        in x'', so n poles cost O(n).
        """
        m, l, g = self.pole_mass, self.pole_length, self.gravity
        M = self.cart_mass + self.n_poles * m
        pull = s * _plus(w * w, -3 / 4 * g / l, c)  # that of a pole on the cart, over m l
        forces = _plus(f, m * l, pull.sum(0, keepdim=True))
        inertia = _plus(M, -(3 / 4 * m), (c * c).sum(0, keepdim=True))
        x_acc = forces / inertia
        theta_acc = 3 / (4 * l) * torch.addcmul(g * s, c, x_acc, value=-1)
        return torch.cat([x_acc, theta_acc])

    def _exact_slopes(self, s: Tensor, c: Tensor, w: Tensor, f: Tensor) -> Slopes:
        m, l, g, cart = self._constants()
        M = cart + self.n_poles * m
        forces = f + (m * l * s * w.square() - 3 / 4 * m * g * s * c).sum(-1, keepdim=True)
        inertia = M - 3 / 4 * m * c.square().sum(-1, keepdim=True)
        x_acc = forces / inertia
        forces_theta = m * l * c * w.square() - 3 / 4 * m * g * (c.square() - s.square())
        x_acc_theta = (forces_theta - x_acc * (3 / 2 * m * c * s)) / inertia
        x_acc_w = 2 * m * l * s * w / inertia
        x_acc_f = 1 / inertia
        k = 3 / (4 * l)
        c_column = c.unsqueeze(-1)
        theta_acc_theta = broadcast(k) * (torch.diag_embed(g * c + s * x_acc) - c_column * x_acc_theta.unsqueeze(-2))
        theta_acc_w = -broadcast(k) * c_column * x_acc_w.unsqueeze(-2)
        return Slopes(
            by_position=_with_cart_row(x_acc_theta, theta_acc_theta),
            by_velocity=_with_cart_row(x_acc_w, theta_acc_w),
            by_force=torch.cat([x_acc_f, -k * c * x_acc_f], dim=-1),
        )


class CartPole(MultiPole):
    """Swing up one pole on a cart: `MultiPole` with n_poles = 1, where its two dynamics are the same."""

    def __init__(
        self,
        *,
        objective: str = "final",
        observation: str = "state",
        pole_length: float = HALF_LENGTH,
        pole_mass: float = POLE_MASS,
        cart_mass: float = CART_MASS,
        gravity: float = GRAVITY,
        max_force: float | None = None,
        horizon: int = 100,
        dt: float = 0.01,
    ) -> None:
        super().__init__(
            objective=objective,
            n_poles=1,
            observation=observation,
            pole_length=pole_length,
            pole_mass=pole_mass,
            cart_mass=cart_mass,
            gravity=gravity,
            max_force=max_force,
            horizon=horizon,
            dt=dt,
        )


def _plus(a: Any, factor: Any, b: Tensor) -> Tensor:
    """The sum a + factor * b; a number as factor rides along."""
    if isinstance(factor, float):
        return torch.rsub(b, a, alpha=-factor) if isinstance(a, float) else torch.add(a, b, alpha=factor)
    summed: Tensor = a + factor * b
    return summed


def _with_cart_row(cart_row: Tensor, pole_rows: Tensor) -> Tensor:
    """Stack (B, n) above (B, n, n) and put the zero column of the cart, on which nothing depends, before it."""
    rows = torch.cat([cart_row.unsqueeze(-2), pole_rows], dim=-2)
    return torch.nn.functional.pad(rows, (1, 0))
