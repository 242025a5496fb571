"""A pusher that moves a disk over a table to a target: DiffPusher-v0."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bptt_envs.canvas import ACTION, CYCLE, FAINT, MUTED, Canvas
from bptt_envs.charts import Chart, Curves, NamedCurves, Paths
from bptt_envs.checks import finite_pair, not_negative, one_of, positive, positive_integer
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
        substeps: steps of the integrator in a step; None: as many as the stiffness needs.
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
        if substeps is None:
            substeps = math.ceil(self.dt * math.sqrt(self.stiffness / REDUCED_MASS) / ACCURATE)
        self.substeps = positive_integer("substeps", substeps)
        least = self.dt * math.sqrt(self.stiffness * (1 / self.pusher_mass + 1 / self.disk_mass)) / UNSTABLE
        if self.substeps <= least:
            raise ValueError(
                f"substeps must be more than {least:.1f} for stiffness={self.stiffness:g} N/m, dt={self.dt:g} s and "
                f"these masses, else the contact diverges; got {self.substeps}."
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
        h, table = self.dt / self.substeps, broadcast(self.table_friction) * GRAVITY
        for _ in range(self.substeps):
            drive = action if self.actuation == "force" else VELOCITY_GAIN * (action - v)
            contact = self._contact(q - p, w - v)
            v = v + (h / self.pusher_mass) * (drive - contact)
            w = w + (h / broadcast(self.disk_mass)) * contact
            w = w / (1.0 + h * table / (w.square().sum(1, keepdim=True) + SLIP**2).sqrt())
            p, q = torch.add(p, v, alpha=h), torch.add(q, w, alpha=h)
        return torch.stack([p, v, q, w], dim=1).flatten(1)

    def _contact(self, apart: Tensor, drift: Tensor) -> Tensor:
        """The force of the pusher on the disk, (B, 2), by their relative place and velocity, (B, 2) each."""
        distance = apart.square().sum(1, keepdim=True).clamp_min(TINY**2).sqrt()
        n = apart / distance
        overlap = (self.pusher_radius + self.disk_radius - distance).clamp_min(0.0)
        opening = (n * drift).sum(1, keepdim=True)
        press = self.stiffness * overlap * (1.0 - self.contact_damping * opening).clamp_min(0.0)
        slip = torch.addcmul(drift, n, opening, value=-1)
        rub = broadcast(self.contact_friction) / (slip.square().sum(1, keepdim=True) + SLIP**2).sqrt()
        return press * torch.addcmul(n, rub, slip, value=-1)
