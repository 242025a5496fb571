"""A one-legged hopper on springy, rough ground: DiffHopper-v0."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bptt_envs import checks
from bptt_envs.canvas import CYCLE, FAINT, INK, MUTED, Canvas
from bptt_envs.checks import finite, not_negative, one_of, positive
from bptt_envs.system import System

FORMS = ("planar", "vertical")
ACTUATIONS = ("position", "torque")

LEG_FORCE = 200.0  # N, of the leg's motor at action 1, actuation="torque"
HIP_TORQUE = 30.0  # N m, of the hip's
LEG_REACH = 0.2  # m, of the leg's set point from leg_length at action 1, actuation="position"
HIP_REACH = 0.6  # rad, of the hip's from 0
LEG_GAINS = 2000.0, 50.0  # N/m, N s/m
HIP_GAINS = 100.0, 10.0  # N m/rad, N m s/rad

SLIP_SPEED = 0.1  # m/s, above which friction is near its limit
HEIGHT_SCALE = 0.5  # m off the height that cost one half
PITCH_SCALE = 0.5  # rad, likewise
MOST_PITCH = 1.0  # rad, beyond which the hopper has fallen
DROP = 0.1, 0.3  # m, from and to which the foot starts above the ground

Rows = list[Tensor]
"""Positions, or their velocities, (B,) each: x and z of the hip, the pitch, x and z of the foot; vertical: both z."""


class Hopper(System):
    """Hop forward at a speed on one springy leg, or straight up to a height.

    A trunk is hinged at its centre of mass to a massless leg, which is a spring with a damper and a motor and ends in a
    foot, a point mass. The hip's motor turns the leg against the trunk. The ground pushes by its penetration (Hunt and
    Crossley) and rubs (Coulomb, regularised).

    State, `form="planar"`: x and z of the hip, pitch of the trunk, x and z of the foot, then their velocities, in m,
    rad, m/s, rad/s; z is up, angles grow counterclockwise. `form="vertical"`: z of the hip and of the foot, then their
    velocities. Observation: the state, with the foot's x from the hip's and without that.
    Action: leg, then hip (planar only), in shares of what the motors can. `actuation="torque"`: 200 N that push the leg
    apart, 30 N m that turn the foot forwards. `actuation="position"`: set points of PD controllers, 0.2 m longer than
    `leg_length`, 0.6 rad ahead of the trunk. Integrator: semi-implicit Euler in `substeps`.
    Cost of a state: e / (1 + e), with e = ((x' - speed) / speed)^2 + (pitch / 0.5)^2, vertical: ((z - height) / 0.5)^2.
    Loss "final": that of step T. Loss "continuous": its mean over steps 1..T.
    An episode ends early when the hopper falls: the hip is less than leg_length / 2 above the foot, or the trunk
    pitched by more than 1 rad. That costs 1 more, which no other states can cost in the rest of an episode.
    Start: a foot at rest below the hip, 0.1 to 0.3 m above the ground; planar: leg and trunk at U(-0.1, 0.1) rad.

    Equations: docs/environments/hopper.md.

    Args:
        objective: "continuous" or "final".
        form: "planar" or "vertical".
        actuation: "position" or "torque".
        speed: what x' of the hip should be, in m/s, not 0; planar.
        height: what z of the hip should be, in m; vertical.
        control_weight: weight of the mean squared action in the loss, 0 or more.
        stiffness: of the ground, in N/m; what takes more substeps is refused.
        contact_damping: of the ground, in s/m: by how much its force grows with the speed of penetration.
        friction: coefficient of friction.
        body_mass: of the trunk, in kg.
        inertia: of the trunk about the hip, in kg m^2.
        foot_mass: in kg.
        leg_length: of the leg's spring at rest, in m.
        leg_stiffness: of this spring, in N/m.
        leg_damping: of the leg's damper, in N s/m.
        gravity: in m/s^2.
        max_action: every action is clamped to [-max_action, max_action]; None leaves it unbounded.
        horizon: steps of an episode.
        dt: duration of a step, in s.
        substeps: steps of the integrator in a step.
    """

    parameters = (
        "stiffness",
        "contact_damping",
        "friction",
        "body_mass",
        "inertia",
        "foot_mass",
        "leg_stiffness",
        "leg_damping",
        "gravity",
    )

    def __init__(
        self,
        *,
        objective: str = "continuous",
        form: str = "planar",
        actuation: str = "position",
        speed: float = 1.0,
        height: float = 1.5,
        control_weight: float = 0.01,
        stiffness: float = 2e4,
        contact_damping: float = 0.5,
        friction: float = 0.9,
        body_mass: float = 10.0,
        inertia: float = 1.0,
        foot_mass: float = 1.0,
        leg_length: float = 1.0,
        leg_stiffness: float = 2000.0,
        leg_damping: float = 20.0,
        gravity: float = 9.8,
        max_action: float | None = None,
        horizon: int = 100,
        dt: float = 0.02,
        substeps: int = 8,
    ) -> None:
        super().__init__(horizon=horizon, dt=dt, objective=objective, max_action=max_action)
        self.form = one_of("form", form, FORMS)
        self.actuation = one_of("actuation", actuation, ACTUATIONS)
        self.speed = finite("speed", speed)
        if self.speed == 0.0:
            raise ValueError("speed must not be 0, by which its error is measured; got 0.")
        self.height = positive("height", height)
        self.control_weight = not_negative("control_weight", control_weight)
        self.stiffness = positive("stiffness", stiffness)
        self.contact_damping = not_negative("contact_damping", contact_damping)
        self.friction = not_negative("friction", friction)
        self.body_mass = positive("body_mass", body_mass)
        self.inertia = positive("inertia", inertia)
        self.foot_mass = positive("foot_mass", foot_mass)
        self.leg_length = positive("leg_length", leg_length)
        self.leg_stiffness = positive("leg_stiffness", leg_stiffness)
        self.leg_damping = not_negative("leg_damping", leg_damping)
        self.gravity = not_negative("gravity", gravity)
        self.substeps = checks.substeps(substeps, 1, "")
        self._check_substeps()
        self.planar = self.form == "planar"
        positions = ["x", "z", "pitch", "foot x", "foot z"] if self.planar else ["z", "foot z"]
        units = ["rad" if name == "pitch" else "m" for name in positions]
        self.state_labels = (
            *(f"{name} [{unit}]" for name, unit in zip(positions, units, strict=True)),
            *(f"{name}' [{unit}/s]" for name, unit in zip(positions, units, strict=True)),
        )
        self.state_shape = (len(self.state_labels),)
        self.action_labels = ("leg", "hip") if self.planar else ("leg",)
        self.action_shape = (len(self.action_labels),)

    def _check_substeps(self) -> None:
        """Raise ValueError if something swings or is damped too fast for the integrator.

        Semi-implicit Euler in steps of h keeps a' = v, v' = -k a - c v bounded if h^2 k + 2 h c < 4.
        """
        pd = self.actuation == "position"
        k, c = self.leg_stiffness + pd * LEG_GAINS[0], self.leg_damping + pd * LEG_GAINS[1]
        of_leg = ("leg_stiffness", "leg_damping", "foot_mass")
        swings: list[tuple[str, tuple[str, ...], float, float, float]] = [
            ("the foot on the ground", ("stiffness", *of_leg), self.stiffness + k, c, 1 / self.foot_mass),
            ("the leg", (*of_leg, "body_mass"), k, c, 1 / self.body_mass + 1 / self.foot_mass),
        ]
        if pd and self.form == "planar":
            mobility = 1 / self.inertia + 1 / (self.foot_mass * self.leg_length**2)
            swings.append(("the hip", ("inertia", "foot_mass", "leg_length"), *HIP_GAINS, mobility))
        for what, names, stiffness, damping, mobility in swings:
            a, b = stiffness * mobility, 2.0 * damping * mobility
            least = self.dt * (b + math.sqrt(b * b + 16.0 * a)) / 8.0  # dt / h where a h^2 + b h = 4
            if not self.substeps > least:
                values = ", ".join(f"{name}={getattr(self, name):g}" for name in ("dt", *names))
                raise ValueError(
                    f"substeps must be more than {least:.1f} for {what} with {values}, else the integrator is not "
                    f"stable; got {self.substeps}."
                )

    # Cost, end, start, observation

    def state_cost(self, state: Tensor) -> Tensor:
        if self.planar:
            error = (state[:, 5] / self.speed - 1.0).square() + (state[:, 2] / PITCH_SCALE).square()
        else:
            error = ((state[:, 0] - self.height) / HEIGHT_SCALE).square()
        return error / (1.0 + error)

    def running_cost(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        """What the action costs and, with "continuous", what the next state costs less than 1, (B,)."""
        control = self.control_weight / self.horizon * action.square().mean(1)
        if self.objective == "final":
            return control
        return control + self.step_weight * (self.state_cost(next_state) - 1.0)

    def final_cost(self, state: Tensor) -> Tensor:
        """With "final" the cost of the last state and 1 for a fall, else 1: that of a step for all steps, (B,)."""
        if self.objective == "final":
            return self.state_cost(state) + self.terminated(state).to(state.dtype)
        return state.new_ones(state.shape[0])

    def terminated(self, state: Tensor) -> Tensor:
        """Whether the hopper has fallen, (B,) of bool."""
        hip, foot = (1, 4) if self.planar else (0, 1)
        collapsed = state[:, hip] - state[:, foot] < self.leg_length / 2
        return collapsed | (state[:, 2].abs() > MOST_PITCH) if self.planar else collapsed

    def initial_states(self, batch: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        def uniform(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(batch, generator=generator, device=generator.device, dtype=dtype)

        foot, length = uniform(*DROP), self.leg_length
        still = torch.zeros_like(foot)
        if not self.planar:
            return torch.stack([foot + length, foot, still, still], dim=1)
        leg, pitch = uniform(-0.1, 0.1), uniform(-0.1, 0.1)
        positions = [still, foot + length * leg.cos(), pitch, length * leg.sin(), foot]
        return torch.stack([*positions, *[still] * 5], dim=1)

    @property
    def observation_shape(self) -> tuple[int, ...]:
        return (9,) if self.planar else self.state_shape

    def observe(self, state: Tensor) -> Tensor:
        if not self.planar:
            return state
        return torch.cat([state[:, 1:3], state[:, 3:4] - state[:, :1], state[:, 4:]], dim=1)

    # Dynamics

    def step(self, state: Tensor, action: Tensor) -> Tensor:
        h = self.dt / self.substeps
        rows, shares = state.unbind(1), action.unbind(1)
        positions, velocities = list(rows[: len(rows) // 2]), list(rows[len(rows) // 2 :])
        pushed = self._pushed_in_plane if self.planar else self._pushed_upright
        for _ in range(self.substeps):
            velocities = pushed(positions, velocities, shares, h)
            positions = [torch.add(q, v, alpha=h) for q, v in zip(positions, velocities, strict=True)]
        return torch.stack([*positions, *velocities], dim=1)

    def _pushed_upright(self, positions: Rows, velocities: Rows, shares: tuple[Tensor, ...], h: float) -> Rows:
        """Velocities after h, vertical."""
        (z, foot_z), (vz, foot_vz) = positions, velocities
        push = self._leg_push(z - foot_z, vz - foot_vz, shares[0])
        normal = self.ground_push(foot_z, foot_vz)
        fall = h * self.gravity
        return [vz + (h / self.body_mass) * push - fall, foot_vz + (h / self.foot_mass) * (normal - push) - fall]

    def _pushed_in_plane(self, positions: Rows, velocities: Rows, shares: tuple[Tensor, ...], h: float) -> Rows:
        """Velocities after h, planar."""
        x, z, pitch, foot_x, foot_z = positions
        vx, vz, turning, foot_vx, foot_vz = velocities
        dx, dz, wx, wz = x - foot_x, z - foot_z, vx - foot_vx, vz - foot_vz
        length = torch.hypot(dx, dz)
        per_length = 1.0 / length
        ex, ez = dx * per_length, dz * per_length  # along the leg, from foot to hip; (ez, -ex) is where the foot turns
        push = self._leg_push(length, torch.addcmul(ex * wx, ez, wz), shares[0])
        if self.actuation == "torque":
            torque = HIP_TORQUE * shares[1]
        else:
            angle = torch.atan2(-dx, dz) - pitch
            rate = torch.addcmul(ex * wz, ez, wx, value=-1) * per_length - turning
            torque = HIP_GAINS[0] * (HIP_REACH * shares[1] - angle) - HIP_GAINS[1] * rate
        across = torque * per_length
        fx, fz = torch.addcmul(push * ex, across, ez, value=-1), torch.addcmul(push * ez, across, ex)  # on the hip
        normal = self.ground_push(foot_z, foot_vz)
        by_foot, by_body, fall = h / self.foot_mass, h / self.body_mass, h * self.gravity
        return [
            vx + by_body * fx,
            vz + by_body * fz - fall,
            turning - (h / self.inertia) * torque,
            _rubbed(foot_vx - by_foot * fx, (by_foot * self.friction) * normal),
            foot_vz + by_foot * (normal - fz) - fall,
        ]

    def _leg_push(self, length: Tensor, rate: Tensor, share: Tensor) -> Tensor:
        """The force that pushes hip and foot apart, (B,), in N: spring, damper and motor."""
        if self.actuation == "torque":
            return self.leg_stiffness * (self.leg_length - length) - self.leg_damping * rate + LEG_FORCE * share
        stiffness, damping = LEG_GAINS
        spring = (self.leg_stiffness + stiffness) * (self.leg_length - length)
        return spring - (self.leg_damping + damping) * rate + (stiffness * LEG_REACH) * share

    def ground_push(self, height: Tensor, rate: Tensor) -> Tensor:
        """The force of the ground on a foot, upwards, (B,), in N: k d (1 + c d') where both factors are above 0.

        Args:
            height: of the foot, (B,), in m; the penetration d is minus it.
            rate: its velocity, (B,), in m/s.
        """
        spring: Tensor = -self.stiffness * height.clamp(max=0.0)
        return spring * (1.0 - self.contact_damping * rate).clamp(min=0.0)

    # Picture

    def draw(self, canvas: Canvas, state: Tensor, action: Tensor | None) -> None:
        rows = state.tolist()
        x, z, pitch, foot_x, foot_z = rows[:5] if self.planar else (0.0, rows[0], 0.0, 0.0, rows[1])
        length = float(self.leg_length)
        middle = x if self.planar else 0.0
        canvas.view(middle, 0.9 * length, height=max(2.4 * length, 1.4 * (z + 0.3 * length)))
        if self.planar:
            canvas.ruler(0.0, "m")
        else:
            canvas.line([(canvas.left, float(self.height)), (canvas.right, float(self.height))], FAINT, 3)
        canvas.line([(canvas.left, 0.0), (canvas.right, 0.0)], MUTED, 5)
        canvas.line(_zigzag((foot_x, foot_z), (x, z), 0.06 * length), INK, 4)
        c, s = math.cos(pitch), math.sin(pitch)
        corners = [(a * c - b * s, a * s + b * c) for a, b in ((-0.3, -0.1), (0.3, -0.1), (0.3, 0.1), (-0.3, 0.1))]
        canvas.polygon([(x + length * a, z + length * b) for a, b in corners], CYCLE[0])
        canvas.circle((foot_x, foot_z + 0.06 * length), 0.06 * length, CYCLE[1])
        if action is not None and self.planar:
            canvas.arrow((x, z), (x + 0.5 * length * math.tanh(float(action[1])), z))
        if action is not None:
            canvas.arrow((x, z), (x, z + 0.5 * length * math.tanh(float(action[0]))))


def _rubbed(speed: Tensor, most: Tensor) -> Tensor:
    """A speed along the ground after friction, (B,), in m/s.

    Args:
        speed: that without friction.
        most: by how much friction changes it at most, (B,), in m/s.
    """
    # What stands under the root beside the speeds keeps the foot from being turned round by a long substep
    return speed - most * speed * torch.rsqrt(speed * speed + most * most + SLIP_SPEED**2)


def _zigzag(start: tuple[float, float], end: tuple[float, float], width: float) -> list[tuple[float, float]]:
    """A spring between two points."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    size = math.hypot(dx, dy) or 1.0
    across = (-dy / size * width, dx / size * width)
    places = [(0.0, 0.0), (0.2, 0.0), *((0.2 + 0.1 * (i + 0.5), (-1.0) ** i) for i in range(6)), (0.8, 0.0), (1.0, 0.0)]
    return [(start[0] + a * dx + b * across[0], start[1] + a * dy + b * across[1]) for a, b in places]
