"""A ball thrown to a target over a wall, or at another ball that should get there: DiffBouncingBall-v0."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bptt_envs.canvas import ACTION, CYCLE, FAINT, INK, MUTED, Canvas
from bptt_envs.charts import Chart, Curves, NamedCurves, Paths
from bptt_envs.checks import finite_pair, not_negative, one_of, positive, positive_integer, shown
from bptt_envs.system import System, broadcast

GRAVITY = 9.8  # m/s^2, of one ball; two are on a table, seen from above
CONTACT_GRADIENTS = ("hard", "smooth", "from_distance")

STARTS = (  # least and largest x, y, x', y' of each ball, in m and m/s
    [(-1.2, -0.8), (0.5, 0.9), (1.5, 2.5), (1.5, 3.5)],
    [*[(-1.3, -1.1), (1.2, 1.4), (0.5, 1.0), (-0.1, 0.1)], *[(-0.6, -0.4), (1.2, 1.4), (0.0, 0.0), (0.0, 0.0)]],
)

AHEAD = 0.1  # share of an impulse that "from_distance" lets act before the contact
TINY = 1e-9  # m, m/s, m/s^2 or s: what is below is 0
NEARLY_ELASTIC = 2e-7  # below 1, in sums over bounces, that are 0 / 0 at a restitution of 1
AT_REST = 1e-6  # share of the time that all bounces of a ball take that is left when it lies on the floor


class BouncingBall(System):
    """Steer a thrown ball over a wall to a target, or make it hit another one that should get there.

    The balls have a mass of 1 kg. The floor is y = 0, the wall x = 0 up to `wall_height`, without thickness; they meet
    the centres of balls. Balls meet each other at a distance of two radii. Nothing rubs.

    State: x, y, x', y' of each ball, (4 n_balls,), in m and m/s. Action: the force on the first ball, (2,), in N, which
    acts as an impulse force * dt at the start of the step; within a step balls fly freely, in closed form.
    Loss "final": mean over both coordinates of (p - target)^2 at step T, p the place of the last ball, plus
    control_weight times the mean of force^2 over steps and components. Loss "continuous": the first term averaged over
    steps 1..T, the second the same. Start: see the page.

    Equations, and what each `contact_gradient` is: docs/environments/bouncing-ball.md. Source: arXiv 2207.05060.

    Args:
        objective: "final" or "continuous".
        n_balls: 1, or 2: the force acts on the first, the last one counts.
        contact_gradient: what is the derivative of a contact; the motion is the same. "hard": that of the motion,
            through the time of impact. "smooth": also that of whether the wall is met, over `contact_width` about its
            edge. "from_distance": also that of a force which acts before a contact, over `contact_width`.
        contact_width: in m.
        restitution: speed after an impact by that before, above 0 and at most 1.
        gravity: along -y, in m/s^2; None: 9.8 with one ball, 0 with two (a table seen from above).
        wall_height: in m; 0: no wall.
        radius: of the balls, for their meeting, in m.
        target: where the last ball should be, (x, y), in m.
        control_weight: weight of the mean squared force in the loss, in 1/N^2.
        max_force: each component is clamped to [-max_force, max_force], in N; None leaves it unbounded.
        horizon: steps of an episode.
        dt: duration of a step, in s.
    """

    action_shape = (2,)
    action_labels = ("force x [N]", "force y [N]")
    nominal_action = 10.0
    parameters = ("restitution", "gravity", "wall_height", "control_weight")

    def __init__(
        self,
        *,
        objective: str = "final",
        n_balls: int = 1,
        contact_gradient: str = "hard",
        contact_width: float = 0.05,
        restitution: float = 0.8,
        gravity: float | None = None,
        wall_height: float = 1.0,
        radius: float = 0.1,
        target: tuple[float, float] = (1.0, 1.0),
        control_weight: float = 1e-3,
        max_force: float | None = None,
        horizon: int = 60,
        dt: float = 0.025,
    ) -> None:
        max_force = None if max_force is None else positive("max_force", max_force)
        super().__init__(horizon=horizon, dt=dt, objective=objective, max_action=max_force)
        self.n_balls = positive_integer("n_balls", n_balls)
        if self.n_balls > len(STARTS):
            raise ValueError(f"n_balls must be 1 or 2; got {self.n_balls}.")
        self.contact_gradient = one_of("contact_gradient", contact_gradient, CONTACT_GRADIENTS)
        self.contact_width = positive("contact_width", contact_width)
        self.restitution = positive("restitution", restitution)
        if self.restitution > 1.0:
            raise ValueError(f"restitution must be above 0 and at most 1; got {shown(restitution)}.")
        if gravity is None:
            gravity = GRAVITY if self.n_balls == 1 else 0.0
        self.gravity = not_negative("gravity", gravity)
        self.wall_height = not_negative("wall_height", wall_height)
        self.radius = positive("radius", radius)
        self.target = finite_pair("target", target)
        self.control_weight = not_negative("control_weight", control_weight)
        self.state_shape = (4 * self.n_balls,)
        numbers = [""] if self.n_balls == 1 else [str(i) for i in range(1, self.n_balls + 1)]
        units = {"x": "m", "y": "m", "x'": "m/s", "y'": "m/s"}
        self.state_labels = tuple(f"{name}{i} [{unit}]" for i in numbers for name, unit in units.items())

    # Cost, start

    def state_cost(self, state: Tensor) -> Tensor:
        x, y = self.target
        return 0.5 * ((state[:, -4] - x).square() + (state[:, -3] - y).square())

    def running_cost(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        """The cost of the next state as the objective has it, and that of the force at every step, (B,)."""
        control = self.control_weight / self.horizon * action.square().mean(1)
        return super().running_cost(state, action, next_state) + control

    def initial_states(self, batch: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        share = torch.rand(batch, *self.state_shape, generator=generator, device=generator.device, dtype=dtype)
        low, high = share.new_tensor(STARTS[self.n_balls - 1]).unbind(1)
        return low + (high - low) * share

    # Pictures

    def draw(self, canvas: Canvas, state: Tensor, action: Tensor | None) -> None:
        balls = state.view(self.n_balls, 4).tolist()
        reach = max(1.0, *(max(abs(x) / 2.0, abs(y) / 2.0) for x, y, _, _ in balls))
        canvas.view(0.0, 0.95 * reach, height=2.4 * reach)
        canvas.ruler(0.0, "m")
        if float(self.wall_height) > 0.0:
            canvas.line([(0.0, 0.0), (0.0, float(self.wall_height))], INK, 6)
        canvas.circle(self.target, 0.12 * reach, MUTED, 2.5)
        for i, (x, y, vx, vy) in enumerate(balls):
            canvas.line([(x, y), (x + 0.1 * vx, y + 0.1 * vy)], FAINT, 3)
            canvas.circle((x, y), self.radius, CYCLE[i])
        if action is not None:
            x, y = balls[0][:2]
            fx, fy = (0.04 * float(force) for force in action)
            canvas.arrow((x, y), (x + fx, y + fy), ACTION)

    def charts(self, states: Tensor, actions: Tensor) -> list[Chart]:
        """Ways through the plane and forces in the first episode; how far the last ball is from the target in each."""
        places = states.unflatten(-1, (self.n_balls, 4))[..., :2]
        groups = [("ball", 1)] if self.n_balls == 1 else [("pushed", 1), ("counts", 1)]
        return [
            Paths("x, y [m]", places[:, 0], groups, self.target),
            Curves("distance to target [m]", (places[:, :, -1] - places.new_tensor(self.target)).norm(dim=-1)),
            NamedCurves("force [N]", actions[:, 0], ("x", "y")),
        ]

    @property
    def surrogate_gradient(self) -> bool:
        return self.contact_gradient != "hard"

    # Dynamics: x, y, vx, vy are those of all balls, (B, n_balls)

    def step(self, state: Tensor, action: Tensor) -> Tensor:
        x, y, vx, vy = state.unflatten(-1, (self.n_balls, 4)).unbind(-1)
        kick = self.dt * action
        if self.n_balls > 1:
            kick = torch.nn.functional.pad(kick.unsqueeze(1), (0, 0, 0, 1))
            vx, vy = vx + kick[..., 0], vy + kick[..., 1]
            until = self._time_of_meeting(x, y, vx, vy)
            x, y, vx, vy = self._flown(x, y, vx, vy, until.expand_as(x))
            vx, vy = self._collided(x, y, vx, vy, until < self.dt)
            x, y, vx, vy = self._flown(x, y, vx, vy, (self.dt - until).expand_as(x))
        else:
            x, y, vx, vy = self._flown(x, y, vx + kick[:, :1], vy + kick[:, 1:], torch.full_like(x, self.dt))
        if self.contact_gradient == "from_distance" and torch.is_grad_enabled():
            ahead_x, ahead_y = self._impulses_ahead(x, y, vx, vy)
            vx, vy = vx + (ahead_x - ahead_x.detach()), vy + (ahead_y - ahead_y.detach())
        return torch.stack([x, y, vx, vy], dim=-1).flatten(1)

    def _flown(self, x: Tensor, y: Tensor, vx: Tensor, vy: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        """Places and velocities after the time `t`, (B, n_balls), by the floor and the wall."""
        e = broadcast(self.restitution)
        x_free = torch.addcmul(x, vx, t)
        crosses = (x < 0.0) != (x_free < 0.0)
        share = x / torch.where(crosses, x - x_free, 1.0)  # of the time until x = 0
        (y, y_there), (vy, _) = self._fallen(y, vy, torch.stack([t, t * share]))
        height = broadcast(self.wall_height)
        below = height - y_there
        meets = crosses & (below > 0.0)
        back = torch.where((x < 0.0) & (x_free == 0.0), -e * x_free - TINY, -e * x_free)  # it stays on its side
        x, vx_after = torch.where(meets, back, x_free), torch.where(meets, -e * vx, vx)
        if self.contact_gradient == "smooth" and torch.is_grad_enabled():
            met = torch.where(crosses & (height > 0.0), (below / self.contact_width).sigmoid(), 0.0)
            change = (1.0 + e) * (met - met.detach())
            x, vx_after = x - change * x_free, vx_after - change * vx
        return x, y, vx_after, vy

    def _fallen(self, y: Tensor, v: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Height and its velocity after the time `t`, with every bounce on the floor, (..., B, n_balls).

        Flights between bounces are shorter by the factor e each time, so their durations add up in closed form; a ball
        whose infinitely many bounces are over lies on the floor.
        """
        g, e = broadcast(self.gravity), broadcast(self.restitution)
        w = torch.addcmul(2.0 * g * y, v, v).clamp_min(TINY**2).sqrt()  # speed at the floor
        g_safe = _at_least(g, TINY)
        first = torch.where(v > 0.0, (v + w) / g_safe, 2.0 * y / (w - v).clamp_min(TINY))
        after = t - first
        hit = after > 0.0

        flight = 2.0 * w / g_safe
        e_sum = _at_most(e, 1.0 - NEARLY_ELASTIC)
        log_e = e_sum.log() if isinstance(e_sum, Tensor) else math.log(e_sum)
        over = (after / flight).detach() * ((1.0 - e_sum) / e_sum)  # share of the time that all bounces take
        rests = hit & (over > 1.0 - AT_REST)
        bounces = (torch.log1p(-over.clamp(0.0, 1.0 - AT_REST)) / log_e).floor()  # after the first one
        since = after + flight * (e_sum / (1.0 - e_sum)) * torch.expm1(bounces * log_e)
        up = w * e ** (bounces + 1.0)

        y = torch.where(hit, since * (up - 0.5 * g * since), y + t * (v - 0.5 * g * t))
        v = torch.where(hit, up - g * since, v - g * t)
        return y.masked_fill(rests, 0.0).clamp_min(0.0), v.masked_fill(rests, 0.0)

    # Two balls

    def _time_of_meeting(self, x: Tensor, y: Tensor, vx: Tensor, vy: Tensor) -> Tensor:
        """When they are two radii apart and come nearer, (B, 1); `dt` if not in this step.

        Gravity is the same for both, so that their relative motion is uniform.
        """
        dx, dy, dvx, dvy = ((one[:, 1:] - one[:, :1]) for one in (x, y, vx, vy))
        a, b = dvx * dvx + dvy * dvy, dx * dvx + dy * dvy
        c = dx * dx + dy * dy - 4.0 * self.radius**2
        inside = b * b - a * c
        meets = (b < 0.0) & (inside > 0.0)
        root = torch.where(meets, inside, 1.0).sqrt()
        t = c / torch.where(meets, root - b, 1.0)
        return torch.where(meets & (t < self.dt), t.clamp_min(0.0), self.dt)

    def _collided(self, x: Tensor, y: Tensor, vx: Tensor, vy: Tensor, met: Tensor) -> tuple[Tensor, Tensor]:
        """Velocities after the impact of equal masses along the line of their centres."""
        nx, ny, _ = _direction(x[:, 1:] - x[:, :1], y[:, 1:] - y[:, :1])
        closing = -(nx * (vx[:, 1:] - vx[:, :1]) + ny * (vy[:, 1:] - vy[:, :1]))
        impulse = torch.where(met & (closing > 0.0), 0.5 * (1.0 + broadcast(self.restitution)) * closing, 0.0)
        away = torch.cat([-impulse, impulse], dim=1)
        return vx + away * nx, vy + away * ny

    # What "from_distance" adds

    def _impulses_ahead(self, x: Tensor, y: Tensor, vx: Tensor, vy: Tensor) -> tuple[Tensor, Tensor]:
        """Impulses in a step of what balls will meet, of which only derivatives are taken, (B, n_balls) each.

        With w the speed of approach and d the distance, AHEAD (1 + e) w^2 / width exp(-d / width) dt: on a way at
        constant speed from afar they add up to the share AHEAD of the impulse of the impact, (1 + e) w.
        """
        height = broadcast(self.wall_height)
        nx, ny, d = _direction(x, (y - height).clamp_min(0.0))  # from the nearest point of the wall
        strength = self._ahead(-(nx * vx + ny * vy), d) * (height > 0.0)
        ahead_x, ahead_y = strength * nx, strength * ny
        if self.n_balls > 1:
            nx, ny, d = _direction(x[:, 1:] - x[:, :1], y[:, 1:] - y[:, :1])
            closing = -(nx * (vx[:, 1:] - vx[:, :1]) + ny * (vy[:, 1:] - vy[:, :1]))
            strength = 0.5 * self._ahead(closing, d - 2.0 * self.radius)
            away = torch.cat([-strength, strength], dim=1)
            ahead_x, ahead_y = ahead_x + away * nx, ahead_y + away * ny
        return ahead_x, ahead_y

    def _ahead(self, closing: Tensor, distance: Tensor) -> Tensor:
        reach = (-distance.clamp_min(0.0) / self.contact_width).exp() * (self.dt / self.contact_width)
        impulse: Tensor = AHEAD * (1.0 + broadcast(self.restitution)) * closing.clamp_min(0.0).square() * reach
        return impulse


def _direction(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The unit vector along (x, y), and its length."""
    length = (x * x + y * y).clamp_min(TINY**2).sqrt()
    return x / length, y / length, length


def _at_least(value: Any, least: float) -> Any:
    return value.clamp_min(least) if isinstance(value, Tensor) else max(value, least)


def _at_most(value: Any, most: float) -> Any:
    return value.clamp_max(most) if isinstance(value, Tensor) else min(value, most)
