"""Guidance by repulsion: drivers herd evaders through the plane. DiffGuidance-v0."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from bptt_envs.canvas import ACTION, CYCLE, MUTED, SIZE, Canvas, Point, round_up
from bptt_envs.charts import Chart, Curves, NamedCurves, Paths
from bptt_envs.checks import finite_pair, in_memory, not_negative, one_of, positive, positive_integer
from bptt_envs.system import Pullback, System, broadcast, constant_like

EVASION = 15.0
FLOCKING = 0.2
FLOCKING_DISTANCE = 0.5  # the softened length at which flocking changes its sign
SPREADING = 0.2
DRIVER_FRICTION = 1.0  # 1/s
EVADER_FRICTION = 4.0  # 1/s

PAIRS_AT_ONCE = 2**16  # of agents, over all samples, so that what is computed for them stays in the cache

FLOCKINGS = ("as_published", "cohesive")


class Guidance(System):
    """Drive a herd to a target by keeping out of its comfort: evaders flee from drivers.

    State: (agents, 2, 2) by agent (drivers first), position and velocity, and coordinate; lengths have no unit.
    Observation: the state, flattened, (4 agents,).
    Action: the coefficients (c_j1, c_j2) of every driver j, (n_drivers, 2), in 1/s^2: its control is the
    acceleration c_j1 q_j + c_j2 q_j^perp with q_j = p_j - sum_e p_e. Integrator: explicit Euler.
    Loss "final": mean over evaders and coordinates of (p_e - target)^2 at step T, plus control_weight times
    the mean of c^2 over steps, drivers and components. Loss "continuous": the first term averaged over steps
    1..T, the second the same. Start, at rest: drivers uniform in angle and radius on 3 <= r <= 4, the centre
    of the herd on 1 <= r <= 2, evaders at the centre + U(-0.5, 0.5) in each coordinate.

    Equations, with what is odd about them: docs/environments/guidance.md. Source: arXiv 2405.02041.

    Args:
        objective: "final" or "continuous".
        n_drivers: number of drivers, 1 or more.
        n_evaders: number of evaders, 1 or more.
        control_weight: weight of the mean squared coefficients in the loss, 0 or more.
        target: where the evaders should be, (x, y).
        flocking: "as_published" (evaders repel one another from a softened length of 0.5 on, and attract
            one another within) or "cohesive" (the opposite).
        repulsion_floor: what is added to every distance, above 0.
        max_control: every coefficient is clamped to [-max_control, max_control]; None leaves it unbounded.
        horizon: steps of an episode.
        dt: duration of a step, in s.
    """

    parameters = ("control_weight", "repulsion_floor")
    nominal_action = 12.0  # the range in which PPO did best; docs/environments/guidance.md

    def __init__(
        self,
        *,
        objective: str = "continuous",
        n_drivers: int = 2,
        n_evaders: int = 4,
        control_weight: float = 0.1,
        target: tuple[float, float] = (0.0, 0.0),
        flocking: str = "as_published",
        repulsion_floor: float = 0.1,
        max_control: float | None = None,
        horizon: int = 60,
        dt: float = 4 / 60,
    ) -> None:
        max_control = None if max_control is None else positive("max_control", max_control)
        super().__init__(horizon=horizon, dt=dt, objective=objective, max_action=max_control)
        self.n_drivers = positive_integer("n_drivers", n_drivers)
        self.n_evaders = positive_integer("n_evaders", n_evaders)
        in_memory("n_drivers", self.n_drivers, 4 * self.n_drivers)  # forces between each two
        in_memory("n_evaders", self.n_evaders, 4 * self.n_evaders)
        self.control_weight = not_negative("control_weight", control_weight)
        self.target = finite_pair("target", target)
        self.flocking = one_of("flocking", flocking, FLOCKINGS)
        self.repulsion_floor = positive("repulsion_floor", repulsion_floor)
        self.n_agents = self.n_drivers + self.n_evaders
        self.state_shape = (self.n_agents, 2, 2)
        self.action_shape = (self.n_drivers, 2)
        drivers = [f"d{j}" for j in range(1, self.n_drivers + 1)]
        agents = [*drivers, *(f"e{e}" for e in range(1, self.n_evaders + 1))]
        self.state_labels = tuple(f"{name}_{agent}" for agent in agents for name in ("x", "y", "x'", "y'"))
        self.action_labels = tuple(f"{name}_{driver} [1/s^2]" for driver in drivers for name in ("c1", "c2"))
        self._target = torch.tensor(self.target, dtype=torch.float64)
        self._inverse_square, self._inverse, self._friction = self._strengths()
        itself, evaders = torch.eye(self.n_agents, dtype=torch.float64), slice(self.n_drivers, None)
        self._own = itself[:, : self.n_drivers].view(-1, 1, self.n_drivers, 1)
        self._herding = itself[: self.n_drivers].clone()  # slopes of q by positions
        self._herding[:, evaders] -= 1.0

    # Cost, start, observation

    def state_cost(self, state: Tensor) -> Tensor:
        return (state[:, self.n_drivers :, 0] - constant_like(self._target, state)).square().mean((1, 2))

    def running_cost(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        """The cost of the next state as the objective has it, and that of the control at every step, (B,)."""
        control = self.control_weight / self.horizon * action.square().mean((1, 2))
        return super().running_cost(state, action, next_state) + control

    def initial_states(self, batch: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        def uniform(agents: int) -> Tensor:
            return torch.rand(batch, agents, 2, generator=generator, device=generator.device, dtype=dtype)

        drivers = _on_annulus(uniform(self.n_drivers), 3.0, 4.0)
        centre = _on_annulus(uniform(1), 1.0, 2.0)
        positions = torch.cat([drivers, centre + uniform(self.n_evaders) - 0.5], dim=1)
        return torch.stack([positions, torch.zeros_like(positions)], dim=2)

    @property
    def observation_shape(self) -> tuple[int, ...]:
        return (self.state_size,)

    def observe(self, state: Tensor) -> Tensor:
        return state.flatten(1)

    # Pictures

    def draw(self, canvas: Canvas, state: Tensor, action: Tensor | None) -> None:
        state = state.double()
        p, v = state.unbind(1)
        aspect = SIZE[0] / SIZE[1]
        reach = ((p - state.new_tensor(self.target)).abs() / state.new_tensor([aspect, 1.0])).amax(-1).tolist()
        unit = round_up(max(1.0, *(one / 6.0 for one in reach[self.n_drivers :])))  # the view grows with the herd
        canvas.view(self.target[0], self.target[1] - 0.5 * unit, height=14.0 * unit)
        canvas.ruler(canvas.bottom + unit)
        canvas.circle(self.target, 0.4 * unit, MUTED, 2.5)
        control = [] if action is None else self._control(p.unsqueeze(0), action.double().unsqueeze(0))[0].tolist()
        for i, ((x, y), velocity) in enumerate(zip(p.tolist(), v.tolist(), strict=True)):
            color, radius = (CYCLE[0], 0.3 * unit) if i < self.n_drivers else (CYCLE[1], 0.2 * unit)
            share = 6.0 * unit / max(reach[i], 6.0 * unit)
            if share < 1.0:  # a driver that has run off: a ring at the edge
                edge = (self.target[0] + share * (x - self.target[0]), self.target[1] + share * (y - self.target[1]))
                canvas.circle(edge, radius, color, 2.5)
                continue
            canvas.line([(x, y), _tip((x, y), velocity, full=5.0, length=1.5 * unit)], MUTED, 2)
            if i < len(control):
                canvas.arrow((x, y), _tip((x, y), control[i], full=30.0, length=2.2 * unit), ACTION, 4)
            canvas.circle((x, y), radius, color)

    def charts(self, states: Tensor, actions: Tensor) -> list[Chart]:
        """Ways through the plane and coefficients in the first episode; how far the herd is from the target in each."""
        p, drivers = states[:, 0, :, 0], slice(self.n_drivers)
        distance = (states[..., 0, :] - constant_like(self._target, states)).norm(dim=-1)  # (T + 1, B, agents)
        near = max(8.0, 2.0 * float(distance[:, 0, self.n_drivers :].max()))
        seen = p.clone()
        seen[:, drivers][distance[:, 0, drivers] > near] = math.nan  # else the herd would be a dot beside their ways
        groups = [("drivers", self.n_drivers), ("evaders", self.n_evaders)]
        names = [f"driver {j}" for j in range(1, self.n_drivers + 1)]
        return [
            Paths(f"x, y (drivers within {near:.3g} of the target)", seen, groups, self.target),
            Curves("distance to target", distance[:, :, self.n_drivers :].mean(-1)),
            NamedCurves("c1 [1/s^2]", actions[:, 0, :, 0], names),
            NamedCurves("c2 [1/s^2]", actions[:, 0, :, 1], names),
        ]

    # Dynamics: p and v are positions and velocities of all agents, (B, agents, 2)

    def step(self, state: Tensor, action: Tensor) -> Tensor:
        p, v = state.unbind(2)
        r, length = _differences(p)
        d = broadcast(self.repulsion_floor, 2) + length
        strength = (constant_like(self._inverse_square, d) / d + constant_like(self._inverse, d)) / d
        acc = (strength.unsqueeze(1) * r).sum(-1).mT - constant_like(self._friction, d) * v
        acc = torch.cat([acc[:, : self.n_drivers] + self._control(p, action), acc[:, self.n_drivers :]], dim=1)
        return torch.add(state, torch.stack([v, acc], dim=2), alpha=self.dt)

    def _strengths(self) -> tuple[Tensor, Tensor, Tensor]:
        """What acts on whom: agent i feels (a_ik / d^2 + b_ik / d) (p_k - p_i) from every agent k.

        Returns:
            a and b, (agents, agents), and the friction of each agent, (agents, 1); in float64.
        """
        drivers, evaders = slice(self.n_drivers), slice(self.n_drivers, None)
        sign = 1.0 if self.flocking == "as_published" else -1.0
        a = torch.zeros(self.n_agents, self.n_agents, dtype=torch.float64)
        a[evaders, drivers] = -EVASION
        a[evaders, evaders] = sign * FLOCKING * FLOCKING_DISTANCE
        a[drivers, drivers] = -SPREADING
        b = torch.zeros_like(a)
        b[evaders, evaders] = -sign * FLOCKING
        friction = torch.full((self.n_agents, 1), EVADER_FRICTION, dtype=torch.float64)
        friction[drivers] = DRIVER_FRICTION
        return a, b, friction

    def _control(self, p: Tensor, action: Tensor) -> Tensor:
        """Accelerations of the drivers by their coefficients, (B, n_drivers, 2)."""
        q, q_perp = self._control_directions(p)
        return action[..., :1] * q + action[..., 1:] * q_perp

    def _control_directions(self, p: Tensor) -> tuple[Tensor, Tensor]:
        """q_j = p_j - sum_e p_e, and q_j turned by 90 degrees, (B, n_drivers, 2) each."""
        q = p[:, : self.n_drivers] - p[:, self.n_drivers :].sum(1, keepdim=True)
        return q, _turned(q)

    # Slopes: p' = p + dt v and v' = (1 - dt friction) v + dt F(p, c), so that only those of F are to be found

    @property
    def dense_jacobians(self) -> bool:
        return False  # the products below are about as fast for the fewest agents, and faster for more or large batches

    @property
    def slope_numbers(self) -> int:
        return 2 * self.n_agents * (2 * self.n_agents + self.action_size)

    def pullback(self, state: Tensor, action: Tensor) -> Pullback:
        kept = 1.0 - self.dt * constant_like(self._friction, state)
        first, last, slopes = 0, -1, state.new_empty(0)  # slopes of samples [first, last), none yet

        def slopes_of(start: int, stop: int) -> Tensor:
            """Slopes of some samples; with them are computed those before, which will be asked for next."""
            nonlocal first, last, slopes
            if not first <= start <= stop <= last:
                samples = max(1, stop - start)
                first, last = max(0, stop - samples * max(1, self._samples_at_once // samples)), stop
                slopes = self.for_samples(slice(first, last))._force_slopes(state[first:last], action[first:last])
            return slopes[start - first : stop - first]

        @torch.no_grad()
        def pull(rows: slice, vectors: Tensor) -> tuple[Tensor, Tensor]:
            start, stop, _ = rows.indices(len(state))
            p, v = vectors.unflatten(-1, self.state_shape).unbind(-2)  # (P, R, agents, 2)
            pulled = (v.flatten(2).transpose(0, 1) @ slopes_of(start, stop)).transpose(0, 1)
            by_position, by_action = pulled.split([2 * self.n_agents, self.action_size], dim=-1)
            by_p = p + by_position.unflatten(-1, (2, self.n_agents)).mT
            by_v = self.dt * p + kept * v
            return torch.stack([by_p, by_v], dim=-2).flatten(2), by_action

        return pull

    @property
    def _samples_at_once(self) -> int:
        return max(1, PAIRS_AT_ONCE // self.n_agents**2)

    @torch.no_grad()
    def _force_slopes(self, state: Tensor, action: Tensor) -> Tensor:
        """Slopes of dt F, (N, 2 agents, 2 agents + m).

        A row is a coordinate of F, agent before coordinate; a column is one of the positions, coordinate before
        agent, or a component of the action.
        """
        starts = range(0, max(1, len(state)), self._samples_at_once)
        some = [slice(start, start + self._samples_at_once) for start in starts]
        slopes = [self.for_samples(rows)._some_slopes(state[rows, :, 0], action[rows]) for rows in some]
        return (slopes[0] if len(slopes) == 1 else torch.cat(slopes)).view(len(state), 2 * self.n_agents, -1)

    def _some_slopes(self, p: Tensor, action: Tensor) -> Tensor:
        """`_force_slopes` of some samples, (N, agents, 2 (2 agents + m)): rows of x, then rows of y.

        No result is written into parts of a larger one, which a compiler would do by way of copies of the whole.
        """
        drivers = slice(self.n_drivers)
        xx, xy, yy = self._pair_slopes(p)
        yx = xy.clone()
        herding = self.dt * constant_like(self._herding, p)
        c1_q, c2_q = herding * action[..., :1], herding * action[..., 1:]  # slopes of c_1 q, c_2 q by one coordinate
        xx[:, drivers] += c1_q
        xy[:, drivers] -= c2_q
        yx[:, drivers] += c2_q
        yy[:, drivers] += c1_q
        q = p - p[:, self.n_drivers :].sum(1, keepdim=True)
        own = self.dt * constant_like(self._own, p)
        by_action = (own * torch.stack([q, _turned(q)], dim=-1).unsqueeze(3)).flatten(3)  # (N, agents, 2, m)
        by_x, by_y = by_action.unbind(2)
        return torch.cat([xx, xy, by_x, yx, yy, by_y], dim=-1)

    def _pair_slopes(self, p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Slopes of dt times the forces between agents: of x by x, x by y (as y by x), y by y, (N, agents, agents)."""
        r, length = _differences(p)
        d = broadcast(self.repulsion_floor, 2) + length
        a, b = self.dt * constant_like(self._inverse_square, d), self.dt * constant_like(self._inverse, d)
        strength, strength_d = (a / d + b) / d, -(2 * a / d + b) / d.square()
        # By p_k: d (strength r) / dr = strength + strength_d r r^T / |r|
        along_x, along_y = (strength_d.unsqueeze(1) * r).unbind(1)
        x, y = (r / length.unsqueeze(1)).unbind(1)
        slopes = torch.addcmul(strength, along_x, x), along_x * y, torch.addcmul(strength, along_y, y)
        for one in slopes:
            one.diagonal(dim1=1, dim2=2).sub_(one.sum(-1))  # by p_i: r = p_k - p_i
        return slopes


def _differences(p: Tensor) -> tuple[Tensor, Tensor]:
    """p_k - p_i at [:, :, i, k], (B, 2, agents, agents), and its length, whose slope is 0 where the length is.

    Agents lie side by side in memory, so that there are enough of them for vector instructions. `stack` copies them
    to this order in compiled programs too, which read through a `contiguous` copy.
    """
    p = torch.stack(p.unbind(-1), dim=1)
    r = p.unsqueeze(2) - p.unsqueeze(3)
    x, y = r.unbind(1)
    return r, (x.square() + y.square() + torch.finfo(p.dtype).tiny).sqrt()


def _on_annulus(uniform: Tensor, inner: float, outer: float) -> Tensor:
    """Points between two radii, uniform in radius and angle, from numbers in [0, 1), (..., 2) each."""
    radius = inner + (outer - inner) * uniform[..., 0]
    angle = 2 * math.pi * uniform[..., 1]
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1)


def _turned(vectors: Tensor) -> Tensor:
    """Vectors (..., 2) turned by 90 degrees, counter-clockwise."""
    return torch.stack([-vectors[..., 1], vectors[..., 0]], dim=-1)


def _tip(tail: Point, vector: Sequence[float], full: float, length: float) -> Point:
    """Where an arrow for `vector` ends: it has most of its greatest `length` where the vector has the size `full`."""
    size = math.hypot(*vector)
    scale = length * math.tanh(size / full) / size if size > 0.0 else 0.0
    return tail[0] + scale * vector[0], tail[1] + scale * vector[1]
