"""Slopes of a controller by its Jacobian and by products, over actions, batch sizes and rules.

`takes_products` chooses between the two; the numbers that it goes by are read off this table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Generator, Tensor

from bptt_envs import System
from bptt_envs.system import Pullback, constant_like
from bptt_studies.benchmarks.config import BenchmarkConfig
from bptt_studies.benchmarks.timing import Timing, in_turns_within, waited_for
from bptt_trainers.controllers.networks import MLP
from bptt_trainers.directions.adjoint import AdjointEngine
from bptt_trainers.directions.autograd import AutogradEngine
from bptt_trainers.directions.controller_tape import ControllerTape
from bptt_trainers.directions.rules import PAPER_RULES, combined
from bptt_trainers.records.tables import Line, Row, chosen, markdown, number, short

CELLS = (16, 64)  # states: with dense Jacobians of the physics, and with products
BATCHES = (8, 64, 256)
ACTIONS = (1, 2, 4, 10, 32, 64)
RULES = ("R", "C")
FORMS = {"jacobian": False, "products": True}
AUTOGRAD = "autograd"
STEPS = 50

Key = tuple[int, str, str]  # actions, rule, way


class Advection(System):
    """A quantity on a ring of n cells that is carried along and spreads, and m actuators that add to it.

    x_i' = x_i + dt (x_{i-1} - x_i + sum_j b_ij u_j), upwind differences, with slopes in closed form: what takes time is
    the engine, and little else.

    Args:
        cells: n.
        actuators: m.
    """

    time_unit = ""

    def __init__(self, *, cells: int, actuators: int) -> None:
        super().__init__(horizon=STEPS, dt=0.1, objective="continuous")
        self.state_shape, self.action_shape = (cells,), (actuators,)
        apart = torch.arange(cells) / cells - torch.arange(actuators).unsqueeze(1) / actuators
        self._reach = torch.exp(-8.0 * apart.square()).double()  # (m, n)

    def step(self, state: Tensor, action: Tensor) -> Tensor:
        """state: (B, n), action: (B, m) -> (B, n)."""
        return self._carried(state, 1) + self.dt * (action @ constant_like(self._reach, state))

    def pullback(self, state: Tensor, action: Tensor) -> Pullback:
        """The transpose of the step, which is linear."""
        reach = self.dt * constant_like(self._reach, state).mT
        return lambda rows, vectors: (self._carried(vectors, -1), vectors @ reach)

    def _carried(self, x: Tensor, cells: int) -> Tensor:
        return x + self.dt * (x.roll(cells, -1) - x)

    def initial_states(self, batch: int, generator: Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """Draw (batch, n), each number standard normal."""
        return torch.randn(batch, *self.state_shape, generator=generator, dtype=dtype)

    def state_cost(self, state: Tensor) -> Tensor:
        """The mean square, (B,)."""
        return state.square().mean(-1)


def cells(config: BenchmarkConfig) -> list[Row]:
    """One for each number of states and batch size."""
    return [
        {"device": config.device, "threads": min(config.threads), "states": states, "batch": batch}
        for states in CELLS
        for batch in BATCHES
    ]


def measure(config: BenchmarkConfig, cell: Row) -> list[Row]:
    """Updates by either way and by autograd, for every number of actions and rule, in turns."""
    torch.set_num_threads(int(cell["threads"]))
    programs: dict[Key, Callable[[], object]] = {}
    taken: dict[Key, bool] = {}
    for actions in ACTIONS:
        system = Advection(cells=int(cell["states"]), actuators=actions)
        generator = Generator().manual_seed(0)
        states = system.initial_states(int(cell["batch"]), generator).to(config.device)
        controller = MLP(system.observation_shape, system.action_shape, generator=generator).to(config.device)
        for rule in RULES:
            engine = AdjointEngine(system, controller)
            tape = ControllerTape(controller, system, states, engine.layers)
            slopes = engine.slopes_of(tape, len(states), PAPER_RULES[rule].passes)
            by_products = not isinstance(slopes, ControllerTape)
            for way, products in FORMS.items():
                engine = AdjointEngine(system, controller, products=products, inference=True)
                programs[actions, rule, way] = partial(_update, engine, states, rule)
                taken[actions, rule, way] = products == by_products
            programs[actions, rule, AUTOGRAD] = partial(_update, AutogradEngine(system, controller), states, rule)
    programs = {key: waited_for(run, config.device) for key, run in programs.items()}
    for run in programs.values():
        run()
    timings, repeats = in_turns_within(programs, config.seconds, config.repeats)
    return [cell | _row(key, timing, repeats, taken.get(key)) for key, timing in timings.items()]


def _update(engine: AdjointEngine | AutogradEngine, states: Tensor, rule: str) -> object:
    losses, passes = engine(states, PAPER_RULES[rule].passes)
    return losses.mean(), combined(PAPER_RULES[rule], passes)


def _row(key: Key, timing: Timing, repeats: int, taken: bool | None) -> Row:
    row: Row = dict(zip(("actions", "rule", "way"), key, strict=True))
    row |= {"taken": "yes" if taken else "", "repeats": repeats}
    for name, seconds in (("milliseconds", timing.median), ("least", timing.least), ("largest", timing.largest)):
        row[name] = short(1e3 * seconds)
    return row


def to_markdown(lines: Sequence[Line]) -> str:
    """A line for each rule, number of states, batch size and number of actions."""
    return markdown([_shown(line, lines) for line in chosen(lines, way="jacobian")])


def _shown(line: Line, lines: Sequence[Line]) -> Row:
    shown: Row = {name: line[name] for name in ("threads", "rule", "states", "batch", "actions")}
    ways = {one["way"]: one for one in chosen(lines, device=line["device"], **shown)}
    took = {way: float(one["milliseconds"]) for way, one in ways.items()}
    ours = next(way for way in FORMS if ways[way]["taken"])
    shown |= {f"by {way}, ms": number(one["milliseconds"]) for way, one in ways.items()}
    shown |= {"taken": ours, "over the better": f"{took[ours] / min(took[way] for way in FORMS):.2f}"}
    return shown | {"over autograd": f"{took[ours] / took[AUTOGRAD]:.2f}"}
