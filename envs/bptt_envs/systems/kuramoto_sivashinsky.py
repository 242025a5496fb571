"""The Kuramoto-Sivashinsky equation on a ring, chaotic, to be calmed by a few actuators: DiffKuramotoSivashinsky-v0."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bptt_envs.canvas import Canvas
from bptt_envs.charts import Chart, Curves
from bptt_envs.checks import in_memory, integer, not_negative, positive_integer
from bptt_envs.surroundings import own_surroundings
from bptt_envs.system import Pullback, System, constant_like
from bptt_envs.systems.line import Line

FEWEST_POINTS = 8
CONTOUR = 64  # points of the circle over which the coefficients of ETDRK4 are means
LEAST_DAMPED = math.sqrt(2.0)  # wave number that must be kept: it decays as e^(-2 t), and takes what unstable ones feed
MOST_DT = 2.0  # at 3 the flow still stays bounded at L = 22, at 5 every episode overflows

# Start states
KEPT = 64  # states of the attractor, of which a start is one, moved and maybe mirrored
SETTLING = 75.0  # how long they have run from random waves
SETTLING_DT = 0.25


class KuramotoSivashinsky(System):
    """Calm a chaotic flame front on a ring, by forces at a few places.

        u_t + u u_x + u_xx + u_xxxx = sum_i a_i exp(-(x - c_i)^2 / (2 s^2))

    State: u at n_points points of the ring, (n_points,). Action: the strengths a_i of the actuators, (m,), constant
    over a step; the mean of their push over the ring is taken off, so that u keeps its mean, 0. Units: none.
    Scheme: Fourier's, without the upper third of its waves (the 2/3 rule, so that u^2 has no aliases), and ETDRK4 in
    time, of order 4, one to a step.
    Loss "continuous": mean over steps 1..T of the mean of u^2 over the ring. Loss "final": that of step T. Both: plus
    control_weight times the mean square of the action over steps and actuators.
    Start: a state of the attractor, moved along the ring by a random distance and mirrored or not.

    The step, its derivation and its slopes: docs/environments/kuramoto-sivashinsky.md. Sources: A.-K. Kassam,
    L. N. Trefethen, SIAM J. Sci. Comput. 26 (2005), the integrator; M. A. Bucci et al., Proc. R. Soc. A 475 (2019),
    arXiv 1906.07672, the task.

    Args:
        objective: "final" or "continuous".
        n_points: N, 8 or more; less than 0.7 for each unit of length are refused, 3 resolve the flow well.
        length: of the ring, L. Chaotic from about 18 on.
        n_actuators: m; None: one at each point, which acts there alone.
        actuator_width: s; None: half of the distance of two neighbours.
        n_sensors: the controller sees u at so many points at equal distances, a divisor of n_points; None: at all.
        control_weight: weight of the action in the loss.
        max_action: every component of the action is clamped to [-max_action, max_action]; None leaves it unbounded.
        horizon: steps of an episode.
        dt: duration of a step.
    """

    nominal_action = 1.0
    time_unit = ""

    def __init__(
        self,
        *,
        objective: str = "continuous",
        n_points: int = 64,
        length: float = 22.0,
        n_actuators: int | None = 4,
        actuator_width: float | None = None,
        n_sensors: int | None = None,
        control_weight: float = 0.1,
        max_action: float | None = None,
        horizon: int = 200,
        dt: float = 0.25,
    ) -> None:
        super().__init__(horizon=horizon, dt=dt, objective=objective, max_action=max_action)
        self.n_points = integer("n_points", n_points, FEWEST_POINTS)
        in_memory("n_points", self.n_points, 16 * self.n_points)  # matrices in float64
        self.line = Line(
            n_cells=self.n_points, length=length, ring=True, n_actuators=n_actuators, actuator_width=actuator_width
        )
        self.length = self.line.length
        self.n_actuators, self.actuator_width = self.line.n_actuators, self.line.actuator_width
        least = 3 * math.ceil(LEAST_DAMPED * self.length / (2 * math.pi))
        if self.n_points < least:
            raise ValueError(f"n_points must be at least {least} to resolve length={length!r}; got {n_points!r}.")
        if self.dt > MOST_DT:
            raise ValueError(f"dt must be at most {MOST_DT:g}, or episodes overflow; got {dt!r}.")
        self.n_sensors = None if n_sensors is None else positive_integer("n_sensors", n_sensors)
        if self.n_sensors is not None and self.n_points % self.n_sensors:
            raise ValueError(f"n_sensors must divide n_points = {self.n_points}, or be None; got {n_sensors!r}.")
        self.control_weight = not_negative("control_weight", control_weight)
        self.state_shape, self.action_shape = (self.n_points,), (self.line.actuators.shape[1],)
        self.state_labels, self.action_labels = self.line.labels, self.line.action_labels
        self._operator = Operator.of(self.n_points, self.length, self.dt, self.line.actuators)

    # Cost, start, observation

    def state_cost(self, state: Tensor) -> Tensor:
        return state.square().mean(-1)

    def running_cost(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        """The cost of the next state as the objective has it, and that of the action at every step, (B,)."""
        control = self.control_weight / self.horizon * action.square().mean(-1)
        return super().running_cost(state, action, next_state) + control

    def initial_states(self, batch: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        device = generator.device
        which = torch.randint(KEPT, (batch,), generator=generator, device=device)
        drawn = torch.rand(batch, 2, 1, generator=generator, device=device, dtype=dtype)
        real, imaginary, cosine, sine = (
            constant_like(one, drawn) for one in _attractor(self.n_points, self.line.length)
        )
        turned = 2 * math.pi * drawn[:, 0] * torch.arange(real.shape[1], device=device, dtype=dtype)
        a, b = real[which], imaginary[which]
        a = torch.where(drawn[:, 1] < 0.5, -a, a)  # -u(-x) in place of u(x)
        return (a * turned.cos() - b * turned.sin()) @ cosine - (a * turned.sin() + b * turned.cos()) @ sine

    @property
    def observation_shape(self) -> tuple[int, ...]:
        return self.state_shape if self.n_sensors is None else (self.n_sensors,)

    def observe(self, state: Tensor) -> Tensor:
        if self.n_sensors is None:
            return state
        apart = self.n_points // self.n_sensors
        return state[..., apart // 2 :: apart]

    # Pictures

    def draw(self, canvas: Canvas, state: Tensor, action: Tensor | None) -> None:
        full = self.nominal_action if self.max_action is None else self.max_action
        self.line.draw(canvas, state, action, full=full, least=5.0, target=None)

    def charts(self, states: Tensor, actions: Tensor) -> list[Chart]:
        size = states.square().mean(-1).sqrt()
        return [*self.line.charts(states[:, 0], actions[:, 0]), Curves("root mean square of u", size)]

    # Dynamics

    def step(self, state: Tensor, action: Tensor) -> Tensor:
        *_, following = self._stages(state, action)
        return following

    def _stages(self, u: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The stages a, b, c of ETDRK4 and its end, (B, N) each."""
        within, last = (constant_like(one, u).mT for one in self._operator)

        def stage(u: Tensor, square: Tensor) -> Tensor:
            return torch.cat([u, square, action], dim=-1) @ within

        uu = u * u
        a = stage(u, uu)
        aa = a * a
        b = stage(u, aa)
        bb = b * b
        c = stage(a, torch.sub(2.0 * bb, uu))
        return a, b, c, torch.cat([u, uu, aa + bb, c * c, action], dim=-1) @ last

    @property
    def dense_jacobians(self) -> bool:
        return False  # a product takes four small ones, whatever the number of points

    def pullback(self, state: Tensor, action: Tensor) -> Pullback:
        n, m = self.n_points, self.action_size
        within, last = (constant_like(one, state) for one in self._operator)
        with torch.no_grad():
            twice = [2.0 * one for one in (state, *self._stages(state, action)[:3])]

        @torch.no_grad()
        def pull(rows: slice, vectors: Tensor) -> tuple[Tensor, Tensor]:
            u2, a2, b2, c2 = (one[rows] for one in twice)
            by_u, by_uu, by_both, by_cc, by_action = (vectors @ last).split([n, n, n, n, m], dim=-1)
            c_a, c_square, c_action = ((c2 * by_cc) @ within).split([n, n, m], dim=-1)
            b_u, b_square, b_action = ((b2 * torch.add(by_both, c_square, alpha=2.0)) @ within).split([n, n, m], dim=-1)
            by_a = torch.addcmul(c_a, a2, by_both + b_square)
            a_u, a_square, a_action = (by_a @ within).split([n, n, m], dim=-1)
            by_state = torch.addcmul(by_u + b_u + a_u, u2, by_uu + a_square - c_square)
            return by_state, by_action + c_action + b_action + a_action

        return pull


class Operator(NamedTuple):
    """What a stage of ETDRK4 and its end are multiplied with, from the right of rows; their transposes go back.

    Each acts on u, its squares and the action side by side, as the equations of the page do, all in float64.
    """

    within: Tensor  # (N, 2N + m): of u, of u^2, of the action
    last: Tensor  # (N, 4N + m): of u, of u^2, of a^2 + b^2, of c^2, of the action

    @staticmethod
    def of(n_points: int, length: float, dt: float, actuators: Tensor) -> Operator:
        """The operator of a ring.

        Raises:
            ValueError: if it is not finite.
        """
        q = 2 * math.pi / length * np.arange(n_points // 2 + 1)
        kept = np.arange(n_points // 2 + 1) <= n_points / 3
        with np.errstate(all="ignore"):
            z = dt * (q**2 - q**4)
            around = z[:, None] + np.exp(2j * math.pi * (np.arange(CONTOUR) + 0.5) / CONTOUR)
            power = np.exp(around)
            e, half = np.exp(z), np.exp(z / 2)
            Q, f1, f2, f3 = (
                dt * mean.real.mean(-1)
                for mean in (
                    (np.exp(around / 2) - 1) / around,
                    (-4 - around + power * (4 - 3 * around + around**2)) / around**3,
                    (2 + around + power * (around - 2)) / around**3,
                    (-4 - 3 * around - around**2 + power * (4 - around)) / around**3,
                )
            )
            flow = -0.5j * q * kept  # u^2 to -u u_x
            blocks = [half, Q * flow], [e, f1 * flow, 2 * f2 * flow, f3 * flow]
        if not all(np.isfinite(one).all() for row in blocks for one in row):
            raise ValueError(
                f"length={length:g} and dt={dt:g} cannot be stepped with n_points={n_points}: they overflow."
            )
        pushed = kept & (q > 0.0)
        push = [_matrix(one * pushed, n_points) @ actuators.numpy() for one in (Q, f1 + 4 * f2 + f3)]
        return Operator(
            *(
                torch.from_numpy(np.concatenate([*(_matrix(one, n_points) for one in row), end], axis=1))
                for row, end in zip(blocks, push, strict=True)
            )
        )


def _matrix(multiplier: np.ndarray, n_points: int) -> np.ndarray:
    """The matrix (N, N) that multiplies wave k of a column by multiplier[k]."""
    waves = np.fft.rfft(np.eye(n_points), axis=0)
    return np.fft.irfft(multiplier[:, None] * waves, n=n_points, axis=0)


@functools.lru_cache(maxsize=32)
@torch.inference_mode(False)  # what is kept can take part in later gradients
def _attractor(n_points: int, length: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """States of the attractor as waves: real and imaginary parts, (KEPT, K), and cos q_k x and sin q_k x, (K, N).

    They come from random waves, which have forgotten their start after `SETTLING`.
    """
    with own_surroundings(), torch.no_grad():
        system = KuramotoSivashinsky(n_points=n_points, length=length, dt=SETTLING_DT)
        q = 2 * math.pi / length * torch.arange(n_points // 3 + 1, dtype=torch.float64)
        phase = q.unsqueeze(-1) * system.line.x
        cosine, sine = phase.cos(), phase.sin()
        strength = ((q > 0.0) & (q <= max(1.0, float(q[1])))).double()
        waves = torch.randn(2, KEPT, len(q), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        waves = waves * strength / strength.sum().sqrt()
        states = waves[0] @ cosine - waves[1] @ sine
        for _ in range(round(SETTLING / SETTLING_DT)):
            states = system.step(states, states.new_zeros(KEPT, system.action_size))
        weight = 2.0 / n_points * (q > 0.0)
        return states @ cosine.mT * weight, -(states @ sine.mT) * weight, cosine, sine
