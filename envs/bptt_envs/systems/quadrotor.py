"""A quadrotor in a vertical plane, through a gate or around obstacles: DiffQuadrotor-v0."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bptt_envs.canvas import CYCLE, FAINT, INK, MUTED, Canvas, Point
from bptt_envs.charts import Chart, Curves, NamedCurves, Paths
from bptt_envs.checks import finite_pair, not_negative, one_of, positive, positive_integer
from bptt_envs.system import System, constant_like

COURSES = ("free", "gate", "obstacles")
MOST_OBSTACLES = 5

START = (-2.0, 0.0)  # m: the middle of the start states
SPREADS = (0.5, 1.0, 0.3, 0.5, 0.5, 0.5)  # of them, in each component
SCALES = (1.0, 1.0, 0.0, 0.5, 0.5, 0.1)  # of deviations in the cost, m, m, -, s, s, s: the angle counts by its cosine
TILT = 0.5  # of 1 - cos theta among their squares

MARGIN = 0.25  # m that the middle of the quadrotor is to keep from what stands in its way
GATE = (0.0, 1.0)  # m: the middle of the opening
GATE_HALF = 0.5  # m: half of the opening's height
WALL_HALF = 0.15  # m: half of the wall's thickness
RADIUS = 0.4  # m, of an obstacle
WIDE, HIGH = 1.0, 0.4  # m: obstacles stand from -WIDE to WIDE, by turns HIGH above and below 0


class Quadrotor(System):
    """Fly to a target and hover there, by the thrusts of two rotors that can only push.

    The mass is in the two rotors, half in each, at the ends of a rod of 2 `arm_length`.

    State: x, y, theta, x', y', theta', in m, rad, m/s, rad/s; theta is the angle of the rod with the horizontal,
    counter-clockwise. Action: the thrusts of the left and the right rotor, across the rod, (2,), in N, clamped to
    [0, max_thrust]. Integrator: the rotation exactly, the way by Simpson's rule, of order 4, the thrusts constant over
    a step.
    Loss "final": sqrt(1 + z^2) - 1 at step T, with z^2 = |p - target|^2 + |p'|^2 / 4 + theta'^2 / 100 +
    (1 - cos theta) / 2 in m and s. Loss "continuous": the same, averaged over steps 1..T. Both add the means over
    steps of collision_weight times the depth in what stands in its way, from 0 to 1 for each, and of control_weight
    times the square of the thrusts' difference over the weight. Start: x ~ U(-2.5, -1.5), y ~ U(-1, 1), theta ~
    U(-0.3, 0.3), velocities ~ U(-0.5, 0.5).

    Equations, sources and the energy error: docs/environments/quadrotor.md.

    Args:
        objective: "final" or "continuous".
        course: "free", "gate" (a wall without end at x = 0, with an opening 1 m above the target) or "obstacles" (discs
            between start and target).
        n_obstacles: number of these, 1 to 5; only the course "obstacles" has any.
        target: where to hover, (x, y), in m.
        collision_weight: of what is hit, in the loss; 0 or more.
        control_weight: of turning, in the loss; 0 or more.
        mass: in kg.
        arm_length: from the middle to a rotor, in m.
        gravity: in m/s^2.
        max_thrust: the most of each rotor, in N; hovering takes mass * gravity / 2.
        horizon: steps of an episode.
        dt: duration of a step, in s.
    """

    state_shape = (6,)
    action_shape = (2,)
    state_labels = ("x [m]", "y [m]", "theta [rad]", "x' [m/s]", "y' [m/s]", "theta' [rad/s]")
    action_labels = ("left thrust [N]", "right thrust [N]")
    parameters = ("mass", "arm_length", "gravity", "collision_weight", "control_weight")

    def __init__(
        self,
        *,
        objective: str = "continuous",
        course: str = "gate",
        n_obstacles: int = 3,
        target: tuple[float, float] = (2.0, 0.0),
        collision_weight: float = 20.0,
        control_weight: float = 0.1,
        mass: float = 1.0,
        arm_length: float = 0.25,
        gravity: float = 9.81,
        max_thrust: float = 10.0,
        horizon: int = 50,
        dt: float = 0.04,
    ) -> None:
        self.max_thrust = positive("max_thrust", max_thrust)
        super().__init__(horizon=horizon, dt=dt, objective=objective, action_low=0.0, action_high=self.max_thrust)
        self.course = one_of("course", course, COURSES)
        self.n_obstacles = positive_integer("n_obstacles", n_obstacles)
        if self.n_obstacles > MOST_OBSTACLES:
            raise ValueError(f"n_obstacles must be an integer from 1 to {MOST_OBSTACLES}; got {self.n_obstacles}.")
        self.target = finite_pair("target", target)
        self.collision_weight = not_negative("collision_weight", collision_weight)
        self.control_weight = not_negative("control_weight", control_weight)
        self.mass = positive("mass", mass)
        self.arm_length = positive("arm_length", arm_length)
        self.gravity = positive("gravity", gravity)
        self._target = torch.tensor([*self.target, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64)
        self._scales = torch.tensor(SCALES, dtype=torch.float64)
        self._up = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
        self._obstacles = torch.tensor(self.obstacles, dtype=torch.float64).view(-1, 2)

    @property
    def obstacles(self) -> list[Point]:
        """The middles of the discs, in m; none but on the course "obstacles"."""
        if self.course != "obstacles":
            return []
        between = 2 * WIDE / (self.n_obstacles - 1) if self.n_obstacles > 1 else 0.0
        first = -WIDE if self.n_obstacles > 1 else 0.0
        return [(first + i * between, HIGH * (-1) ** i) for i in range(self.n_obstacles)]

    # Cost and start

    def state_cost(self, state: Tensor) -> Tensor:
        deviation = (state - constant_like(self._target, state)) * constant_like(self._scales, state)
        z2 = deviation.square().sum(1) + TILT * (1.0 - state[:, 2].cos())
        return (1.0 + z2).sqrt() - 1.0

    def running_cost(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        """The cost of the next state as the objective has it, that of what it hits, and that of turning, (B,)."""
        turning = ((action[:, 1] - action[:, 0]) / (self.mass * self.gravity)).square()
        paid = self.control_weight * turning
        if self.course != "free":
            paid = paid + self.collision_weight * self.depth(next_state)
        return super().running_cost(state, action, next_state) + paid / self.horizon

    def depth(self, state: Tensor) -> Tensor:
        """How deep it is in what stands in its way, margins included, (B,): 0 outside, 1 in the middle of each."""
        if self.course == "gate":
            thickness, opening = WALL_HALF + MARGIN, GATE_HALF - MARGIN
            in_wall = (1.0 - ((state[:, 0] - GATE[0]) / thickness).square()).relu().square()
            beside = (((state[:, 1] - GATE[1]).abs() - opening).relu() / MARGIN).square()
            return in_wall * beside / (1.0 + beside)
        away = (state[:, None, :2] - constant_like(self._obstacles, state)).square().sum(2)
        return (1.0 - away / (RADIUS + MARGIN) ** 2).relu().square().sum(1)

    def initial_states(self, batch: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        uniform = torch.rand(batch, 6, generator=generator, device=generator.device, dtype=dtype)
        middle = uniform.new_tensor([*START, 0.0, 0.0, 0.0, 0.0])
        return middle + uniform.new_tensor(SPREADS) * (2.0 * uniform - 1.0)

    # Pictures

    def draw(self, canvas: Canvas, state: Tensor, action: Tensor | None) -> None:
        x, y, theta = (float(one) for one in state[:3])
        canvas.view(x - max(-3.5, min(3.5, x)), y - max(-2.0, min(2.0, y)) + 0.3, height=5.6)
        canvas.ruler(canvas.bottom + 0.5, "m")
        if self.course == "gate":
            for end, side in ((canvas.bottom + 0.5, -1.0), (canvas.top, 1.0)):
                edge = GATE[1] + side * GATE_HALF
                if side * (end - edge) > 0.0:
                    canvas.rectangle((GATE[0], (end + edge) / 2), 2 * WALL_HALF, abs(end - edge), MUTED)
        for middle in self.obstacles:
            canvas.circle(middle, RADIUS, MUTED)
        canvas.circle(self.target, 0.15, CYCLE[2], 3)
        along, across = (math.cos(theta), math.sin(theta)), (-math.sin(theta), math.cos(theta))
        arm = float(self.arm_length)
        rotors = [_along((x, y), along, side * arm) for side in (-1.0, 1.0)]
        thrusts = [] if action is None else self.bound(action).tolist()
        for rotor, thrust in zip(rotors, thrusts, strict=False):
            canvas.arrow(rotor, _along(rotor, across, 0.8 * thrust / self.max_thrust))
        for rotor in rotors:
            canvas.line([_along(rotor, along, side * 0.5 * arm) for side in (-1.0, 1.0)], FAINT, 4)
        canvas.line(rotors, INK, 6)
        for rotor in rotors:
            canvas.circle(rotor, 0.05, CYCLE[0])

    def charts(self, states: Tensor, actions: Tensor) -> list[Chart]:
        """The way through the plane and the thrusts in the first episode; distance and angle in each."""
        distance = (states[..., :2] - constant_like(self._target[:2], states)).norm(dim=-1)
        return [
            Paths("x, y [m]", states[:, 0, None, :2], [("quadrotor", 1)], self.target),
            Curves("distance to target [m]", distance),
            Curves("theta [rad]", states[..., 2]),
            NamedCurves("thrust [N]", actions[:, 0], ["left", "right"]),
        ]

    # Dynamics. Inside, components come first and samples last, so that parameters (B,) meet them as they are

    def step(self, state: Tensor, action: Tensor) -> Tensor:
        h, rows = self.dt, state.mT
        theta, w = rows[2], rows[5]
        push, turn = self._accelerations(action)
        s, c = self._turned(theta, w, turn)
        e0, e1, e2 = torch.stack([-s, c], dim=1)  # across the rod
        g = self.gravity * constant_like(self._up, state)
        p = rows[:2] + h * rows[3:5] + h * h / 6 * (push * (e0 + 2 * e1) - 3 * g)
        v = rows[3:5] + h / 6 * (push * (e0 + 4 * e1 + e2) - 6 * g)
        return torch.cat([p, (theta + h * w + h * h / 2 * turn)[None], v, (w + h * turn)[None]]).mT

    def linearize(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        h, rows = self.dt, state.detach().mT
        push, turn = self._accelerations(action.detach())
        s, c = self._turned(rows[2], rows[5], turn)
        e0, e1, e2 = torch.stack([-s, c], dim=1)
        a0, a1, a2 = push * torch.stack([c, s], dim=1)  # slopes of push * e by angles, but for their sign
        none, one = torch.zeros_like(turn)[None], torch.ones_like(turn)[None]
        units = torch.eye(6, dtype=state.dtype, device=state.device)
        by_push = torch.cat([h * h / 6 * (e0 + 2 * e1), none, h / 6 * (e0 + 4 * e1 + e2), none])
        by_turn = torch.cat([-(h**4) / 24 * a1, h * h / 2 * one, -(h**3) / 12 * (a1 + a2), h * one])
        by_theta = torch.cat([-h * h / 6 * (a0 + 2 * a1), one, -h / 6 * (a0 + 4 * a1 + a2), none])
        by_w = torch.cat([-(h**3) / 6 * a1, h * one, -h * h / 6 * (2 * a1 + a2), one])
        by_p = units[:, :2, None].expand(-1, -1, len(state))
        by_v = (h * units[:, :2] + units[:, 3:5])[:, :, None].expand_as(by_p)
        by_state = torch.cat([by_p, by_theta[:, None], by_v, by_w[:, None]], dim=1)
        forward, around = by_push / self.mass, by_turn / (self.mass * self.arm_length)
        by_action = torch.stack([forward - around, forward + around], dim=1)
        return by_state.permute(2, 0, 1).contiguous(), by_action.permute(2, 0, 1).contiguous()

    def _accelerations(self, action: Tensor) -> tuple[Tensor, Tensor]:
        """Across the rod, in m/s^2, and of its angle, in rad/s^2, (B,) each."""
        left, right = action.unbind(1)
        return (left + right) / self.mass, (right - left) / (self.mass * self.arm_length)

    def _turned(self, theta: Tensor, w: Tensor, turn: Tensor) -> tuple[Tensor, Tensor]:
        """Sine and cosine of the angle at the beginning, in the middle and at the end of a step, (3, B) each."""
        h = self.dt
        angle = torch.stack([theta, theta + h / 2 * w + h * h / 8 * turn, theta + h * w + h * h / 2 * turn])
        return angle.sin(), angle.cos()


def _along(point: Point, direction: Point, length: float) -> Point:
    return point[0] + length * direction[0], point[1] + length * direction[1]
