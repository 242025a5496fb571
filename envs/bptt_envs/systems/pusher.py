"""A pusher that moves a disk over a table to a target: DiffPusher-v0."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bptt_envs import checks
from bptt_envs.canvas import ACTION, CYCLE, FAINT, MUTED, Canvas
from bptt_envs.charts import Chart, Curves, NamedCurves, Paths
from bptt_envs.checks import finite_pair, not_negative, one_of, positive
from bptt_envs.system import System, broadcast

ACTUATIONS = ("force", "velocity")
GRAVITY = 9.8  # m/s^2
VELOCITY_GAIN = 10.0  # N s/m: force of the drive by what the velocity is short of its set point
SLIP = 0.05  # m/s: the speed at which friction is 1 / sqrt(2) of what it is at high speed
TINY = 1e-9  # m: a smaller distance of the centres has no direction

REDUCED_MASS = 0.25  # kg: of the two bodies by default; sets how many substeps a stiffness takes
ACCURATE = 0.5  # radians of the contact's oscillation in a substep, at most, where substeps are not given
UNSTABLE = 2.0  # from so many radians on the integrator diverges

STARTS = (  # least and largest x, y of the pusher and of the disk, in m; all is at rest
    [(-0.7, -0.4), (-0.3, 0.3)],
    [(-0.1, 0.1), (-0.2, 0.2)],
)


class Pusher(System):
    """Push a disk over a table to a target, by a round pusher that starts apart from it.

    The two meet by penalty contact: a spring and damper where they overlap, with friction. The table brakes the disk
    and not the pusher, which an arm holds; neither turns.

    State: x, y, x', y' of the pusher, then of the disk, (8,), in m and m/s. Action: (2,), the force on the pusher in N,
    or the velocity that its drive should bring it to, in m/s. Integrator: symplectic Euler in substeps, friction of the
    table implicitly.
    Loss "final": |disk - target|^2 + approach_weight gap^2 at step T, gap the distance between the two rims, 0 in
    contact, plus control_weight times the mean of action^2 over steps and components. Loss "continuous": the first part
    averaged over steps 1..T, the rest the same. Start: at rest, the disk within 0.1 and 0.2 m of (0, 0) in x and y, the
    pusher 0.4 to 0.7 m to the left and up to 0.3 m aside.

    Equations: docs/environments/pusher.md.

    Args:
        objective: "final" or "continuous".
        actuation: "force" or "velocity": what the action is.
        stiffness: of the contact, in N/m.
        contact_damping: d of the contact's force, stiffness * overlap * (1 + d * speed of approach), in s/m.
        contact_friction: coefficient of friction between pusher and disk.
        table_friction: coefficient of friction between table and disk.
        pusher_mass: in kg.
        disk_mass: in kg.
        pusher_radius: in m.
        disk_radius: in m.
        target: where the disk should be, (x, y), in m.
        approach_weight: weight of the squared gap in the loss.
        control_weight: weight of the mean squared action in the loss.
        max_action: each component is clamped to [-max_action, max_action]; None leaves it unbounded.
        horizon: steps of an episode.
        dt: duration of a step, in s.
        substeps: steps of the integrator in a step; None: as many as the stiffness and the drive need.
    """

    state_shape = (8,)
    action_shape = (2,)
    nominal_action = 5.0
    state_labels = tuple(
        f"{name}_{body} [{unit}]"
        for body in ("pusher", "disk")
        for name, unit in (("x", "m"), ("y", "m"), ("x'", "m/s"), ("y'", "m/s"))
    )
    parameters = ("disk_mass", "table_friction", "contact_friction", "control_weight")

    def __init__(
        self,
        *,
        objective: str = "final",
        actuation: str = "force",
        stiffness: float = 1000.0,
        contact_damping: float = 1.0,
        contact_friction: float = 0.2,
        table_friction: float = 0.3,
        pusher_mass: float = 0.5,
        disk_mass: float = 0.5,
        pusher_radius: float = 0.1,
        disk_radius: float = 0.15,
        target: tuple[float, float] = (1.0, 0.0),
        approach_weight: float = 0.1,
        control_weight: float = 1e-3,
        max_action: float | None = None,
        horizon: int = 50,
        dt: float = 0.04,
        substeps: int | None = None,
    ) -> None:
        super().__init__(horizon=horizon, dt=dt, objective=objective, max_action=max_action)
        self.actuation = one_of("actuation", actuation, ACTUATIONS)
        self.stiffness = positive("stiffness", stiffness)
        self.contact_damping = not_negative("contact_damping", contact_damping)
        self.contact_friction = not_negative("contact_friction", contact_friction)
        self.table_friction = not_negative("table_friction", table_friction)
        self.pusher_mass = positive("pusher_mass", pusher_mass)
        self.disk_mass = positive("disk_mass", disk_mass)
        self.pusher_radius = positive("pusher_radius", pusher_radius)
        self.disk_radius = positive("disk_radius", disk_radius)
        self.target = finite_pair("target", target)
        self.approach_weight = not_negative("approach_weight", approach_weight)
        self.control_weight = not_negative("control_weight", control_weight)
        drive = 0.0 if self.actuation == "force" else VELOCITY_GAIN / self.pusher_mass  # 1/s, how fast it acts
        needed = self.dt * max(math.sqrt(self.stiffness / REDUCED_MASS) / ACCURATE, drive)
        self.substeps = checks.substeps(
            substeps, needed, f"stiffness={self.stiffness:g}, dt={self.dt:g}, pusher_mass={self.pusher_mass:g}"
        )
        contact = math.sqrt(self.stiffness * (1 / self.pusher_mass + 1 / self.disk_mass))
        least, what = max((self.dt * contact / UNSTABLE, "contact"), (self.dt * drive / UNSTABLE, "drive"))
        if self.substeps <= least:
            raise ValueError(
                f"substeps must be more than {least:.1f} for stiffness={self.stiffness:g} N/m, dt={self.dt:g} s, "
                f"pusher_mass={self.pusher_mass:g} kg and disk_mass={self.disk_mass:g} kg, else the {what} diverges; "
                f"got {self.substeps}."
            )
        kind, unit = ("force", "N") if self.actuation == "force" else ("velocity", "m/s")
        self.action_labels = tuple(f"{kind} {axis} [{unit}]" for axis in "xy")

    # Cost, start

    def state_cost(self, state: Tensor) -> Tensor:
        x, y = self.target
        away = (state[:, 4] - x).square() + (state[:, 5] - y).square()
        apart = state[:, 4:6] - state[:, 0:2]
        gap = apart.square().sum(1).clamp_min(TINY**2).sqrt() - (self.pusher_radius + self.disk_radius)
        return away + self.approach_weight * gap.clamp_min(0.0).square()

    def running_cost(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        """The cost of the next state as the objective has it, and that of the action at every step, (B,)."""
        control = self.control_weight / self.horizon * action.square().mean(1)
        return super().running_cost(state, action, next_state) + control

    def initial_states(self, batch: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        share = torch.rand(batch, 2, 2, generator=generator, device=generator.device, dtype=dtype)
        low, high = share.new_tensor(STARTS).unbind(-1)
        places = low + (high - low) * share
        return torch.cat([places, torch.zeros_like(places)], dim=2).flatten(1)

    # Pictures

    def draw(self, canvas: Canvas, state: Tensor, action: Tensor | None) -> None:
        pusher, disk = state.view(2, 4).tolist()
        reach = max(1.0, *(max(abs(x - 0.3) / 1.1, abs(y) / 0.7) for x, y, _, _ in (pusher, disk)))
        canvas.view(0.3, -0.1 * reach, height=1.8 * reach)
        canvas.ruler(-0.8 * reach, "m")
        canvas.circle(self.target, self.disk_radius, MUTED, 2.5)
        for (x, y, vx, vy), radius, color in (
            (disk, self.disk_radius, CYCLE[1]),
            (pusher, self.pusher_radius, CYCLE[0]),
        ):
            canvas.circle((x, y), radius, color)
            canvas.line([(x, y), (x + 0.1 * vx, y + 0.1 * vy)], FAINT, 3)
        if action is not None:
            x, y = pusher[:2]
            ax, ay = (0.06 * float(one) for one in action)
            canvas.arrow((x, y), (x + ax, y + ay), ACTION)

    def charts(self, states: Tensor, actions: Tensor) -> list[Chart]:
        """Ways over the table and actions in the first episode; how far the disk is from the target in each."""
        places = states.unflatten(-1, (2, 4))[..., :2]
        label = "force [N]" if self.actuation == "force" else "set velocity [m/s]"
        return [
            Paths("x, y [m]", places[:, 0], [("pusher", 1), ("disk", 1)], self.target),
            Curves("distance to target [m]", (places[:, :, 1] - places.new_tensor(self.target)).norm(dim=-1)),
            NamedCurves(label, actions[:, 0], ("x", "y")),
        ]

    # Dynamics: p, v of the pusher and q, w of the disk are (B, 2)

    def step(self, state: Tensor, action: Tensor) -> Tensor:
        p, v, q, w = state.unflatten(-1, (4, 2)).unbind(1)
        h = self.dt / self.substeps
        for _ in range(self.substeps):
            contact = self._contact(q - p, w - v)
            v = v + (h / self.pusher_mass) * (self._drive(action, v) - contact.force)
            w = self._braked(w + (h / broadcast(self.disk_mass)) * contact.force)[0]
            p, q = torch.add(p, v, alpha=h), torch.add(q, w, alpha=h)
        return torch.stack([p, v, q, w], dim=1).flatten(1)

    def _drive(self, action: Tensor, v: Tensor) -> Tensor:
        """The force on the pusher by its drive, (..., 2), or derivatives of it."""
        return action if self.actuation == "force" else VELOCITY_GAIN * (action - v)

    def _braked(self, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The disk's velocity after the table's friction, (B, 2), and what that takes: the divisor and its root."""
        root = (w.square().sum(1, keepdim=True) + SLIP**2).sqrt()
        divisor = 1.0 + (self.dt / self.substeps * GRAVITY) * broadcast(self.table_friction) / root
        return w / divisor, divisor, root

    def _contact(self, apart: Tensor, drift: Tensor) -> _Contact:
        return _Contact(
            apart,
            drift,
            reach=self.pusher_radius + self.disk_radius,
            stiffness=self.stiffness,
            damping=self.contact_damping,
            friction=broadcast(self.contact_friction),
        )

    @torch.no_grad()
    def linearize(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        # The same substeps, with the derivatives by state and action as rows beside: (B, 10, 2)
        p, v, q, w = state.unflatten(-1, (4, 2)).unbind(1)
        h, count = self.dt / self.substeps, self.state_size + self.action_size
        seeds = torch.eye(count, dtype=state.dtype, device=state.device).unflatten(-1, (5, 2))
        dp, dv, dq, dw, by_action = seeds.expand(len(state), -1, -1, -1).unbind(2)
        light, heavy = h / self.pusher_mass, h / broadcast(self.disk_mass)
        for _ in range(self.substeps):
            contact = self._contact(q - p, w - v)
            by = contact.slopes(dq - dp, dw - dv)
            dv = dv + light * (self._drive(by_action, dv) - by)
            v = v + light * (self._drive(action, v) - contact.force)
            dw = dw + broadcast(heavy) * by
            pushed = w + heavy * contact.force
            w, divisor, root = self._braked(pushed)
            back = ((divisor - 1.0) / root.square() * w).unsqueeze(1)
            dw = torch.addcmul(dw, back, _dot(pushed.unsqueeze(1), dw)) / divisor.unsqueeze(1)
            p, q = torch.add(p, v, alpha=h), torch.add(q, w, alpha=h)
            dp, dq = torch.add(dp, dv, alpha=h), torch.add(dq, dw, alpha=h)
        slopes = torch.stack([dp, dv, dq, dw], dim=2).flatten(2).mT.contiguous()
        return slopes[..., : self.state_size], slopes[..., self.state_size :]

    @property
    def dense_jacobians(self) -> bool:
        return True  # `linearize` has a closed form


class _Contact:
    """The force between two disks that overlap, and its derivatives.

    Args:
        apart: from the centre of the first to that of the second, (B, 2), m.
        drift: the velocity of the second relative to the first, (B, 2), m/s.
        reach: sum of the radii, m.
        stiffness: N/m.
        damping: s/m.
        friction: its coefficient, a number or (B, 1).

    Attributes:
        force: on the second disk, (B, 2), N.
    """

    def __init__(
        self, apart: Tensor, drift: Tensor, *, reach: float, stiffness: float, damping: float, friction: Any
    ) -> None:
        self.drift, self.damping, self.stiffness = drift, damping, stiffness
        self.distance = _dot(apart, apart).clamp_min(TINY**2).sqrt()
        self.n = apart / self.distance
        self.press = (reach - self.distance).clamp_min(0.0) * stiffness
        self.opening = _dot(self.n, drift)
        self.yielding = (1.0 - damping * self.opening).clamp_min(0.0)
        self.slip = torch.addcmul(drift, self.n, self.opening, value=-1)
        self.square = _dot(self.slip, self.slip) + SLIP**2
        self.rub = friction / self.square.sqrt()
        self.along = torch.addcmul(self.n, self.rub, self.slip, value=-1)
        self.force = self.press * self.yielding * self.along

    def slopes(self, apart: Tensor, drift: Tensor) -> Tensor:
        """Derivatives of the force, (B, K, 2), from those of `apart` and `drift`, (B, K, 2) each."""
        n, along, slip, rub, press = (
            one.unsqueeze(1) for one in (self.n, self.along, self.slip, self.rub, self.press * self.yielding)
        )
        opening = self.opening.unsqueeze(1)
        closer = _dot(n, apart)
        by_n = torch.addcmul(apart, n, closer, value=-1) / self.distance.unsqueeze(1)
        by_opening = _dot(by_n, self.drift.unsqueeze(1)) + _dot(n, drift)
        stiff = (self.stiffness * (self.press > 0.0) * self.yielding).unsqueeze(1)
        soft = (self.damping * self.press * (self.yielding > 0.0)).unsqueeze(1)
        by_slip = drift - by_opening * n - opening * by_n
        turned = by_slip - slip * (_dot(slip, by_slip) / self.square.unsqueeze(1))
        return torch.addcmul(-(stiff * closer + soft * by_opening) * along, press, by_n - rub * turned)


def _dot(one: Tensor, other: Tensor) -> Tensor:
    """Scalar products along the last dimension, which stays."""
    return (one * other).sum(-1, keepdim=True)
