"""One update of several controllers together, beside one of a single controller."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from bptt_studies.benchmarks.config import BenchmarkConfig
from bptt_studies.benchmarks.limit import controller_gflop, matrix_limit
from bptt_studies.benchmarks.peers import PEERS, LeftOut, Task
from bptt_studies.benchmarks.timing import in_turns_within, waited_for
from bptt_studies.benchmarks.updates import make_task, timed
from bptt_trainers.controllers.defaults import default_controller
from bptt_trainers.directions.rules import PAPER_RULES, combined
from bptt_trainers.directions.stacked import StackedEngine
from bptt_trainers.records.tables import Line, Row, markdown, number, percent, spread

BATCH = 8
RULE = PAPER_RULES["C"]
SINGLE = {"adjoint": False, "adjoint-compiled": True}  # whether it is compiled


def cells(config: BenchmarkConfig) -> list[Row]:
    """One."""
    env: Row = {"env": "DiffCartPole-v0", "options": ""}
    return [env | {"device": config.device, "threads": max(config.threads), "batch": BATCH}]


def measure(config: BenchmarkConfig, cell: Row) -> list[Row]:
    """One member by the adjoint engine, and all members as one batch, each eager and compiled, in turns."""
    torch.set_num_threads(int(cell["threads"]))
    limit = matrix_limit(config.device)
    task = make_task(config, cell)
    programs: dict[tuple[str, int], Callable[[], object]] = {}
    for engine, compiled in SINGLE.items():
        try:
            programs[engine, 1] = _one(task, engine)
        except LeftOut:
            continue
        programs[engine, config.members] = _together(task, config.members, compiled)
    programs = {key: waited_for(run, config.device) for key, run in programs.items()}
    for run in programs.values():
        run()
    timings, repeats = in_turns_within(programs, config.seconds, config.repeats)
    gflop = controller_gflop(task.system, task.controller, task.states, RULE.passes)
    return [
        cell | {"engine": engine, "members": members, "repeats": repeats} | timed(timing, members * gflop, limit)
        for (engine, members), timing in timings.items()
    ]


def _one(task: Task, engine: str) -> Callable[[], object]:
    update = PEERS[engine](task)
    return lambda: update(RULE.name)


def _together(task: Task, members: int, compiled: bool) -> Callable[[], object]:
    """An update of controllers with weights of their own, each on the same number of start states of its own."""
    system, device = task.system, task.states.device
    controllers = [dict(default_controller(system, seed).named_parameters()) for seed in range(members)]
    parameters = {name: torch.stack([one[name].detach() for one in controllers]).to(device) for name in controllers[0]}
    generator = torch.Generator().manual_seed(0)
    states = torch.stack([system.initial_states(len(task.states), generator) for _ in range(members)]).to(device)
    engine = StackedEngine(system, task.controller, compile=compiled)

    def run() -> object:
        losses, passes = engine(parameters, states, RULE.passes)
        return losses.mean(1), combined(RULE, passes)

    return run


def to_markdown(lines: Sequence[Line]) -> str:
    """A line for each engine and number of members, with the time over that of one member."""
    alone = {line["engine"]: float(line["milliseconds"]) for line in lines if line["members"] == "1"}
    return markdown(
        [
            {"threads": line["threads"], "batch": line["batch"], "engine": line["engine"], "members": line["members"]}
            | {"C ms (least to largest)": spread(line)}
            | {"over one member": f"{float(line['milliseconds']) / alone[line['engine']]:.2f}"}
            | {"ms a member": number(str(float(line["milliseconds"]) / int(line["members"])))}
            | {"share of the limit": percent(line["share"])}
            for line in lines
        ]
    )
