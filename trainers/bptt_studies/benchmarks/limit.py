"""How fast the machine multiplies matrices, and how many products an update needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bptt_envs import System
from bptt_studies.benchmarks.config import BenchmarkConfig
from bptt_studies.benchmarks.timing import in_turns, waited_for
from bptt_trainers.directions.rules import Feedback
from bptt_trainers.host.machine import machine, versions
from bptt_trainers.records.tables import Line, Row, markdown, number, short

MEASURED_WITH = ("Python", "torch", "jax", "gymnasium", "numpy")  # and with its peers
SIZES = {"cpu": (128, 256, 512, 1024, 2048), "cuda": (1024, 2048, 4096, 8192)}
REPEATS = 5


def cells(config: BenchmarkConfig) -> list[Row]:
    """One for each number of threads."""
    return [{"device": config.device, "threads": threads} for threads in config.threads]


def measure(config: BenchmarkConfig, cell: Row) -> list[Row]:
    """GFLOP/s of float32 products of square matrices."""
    torch.set_num_threads(int(cell["threads"]))
    speeds = product_speeds(config.device)
    described: Row = {"machine": machine(config.device), "versions": versions(*MEASURED_WITH)}
    return [cell | {"size": size} | speed | described for size, speed in speeds.items()]


def product_speeds(device: str) -> dict[int, Row]:
    """GFLOP/s of float32 products of n x n matrices, by n, with the threads that torch has now."""

    def product(size: int) -> Callable[[], object]:
        generator = torch.Generator().manual_seed(0)
        first, second = (torch.rand(size, size, generator=generator).to(device) for _ in range(2))
        result = torch.empty_like(first)
        count = max(1, 512**3 // size**3)  # small ones many times: a single one is over too soon to be timed

        def run() -> None:
            for _ in range(count):
                torch.mm(first, second, out=result)

        return waited_for(run, device)

    timings = in_turns({size: product(size) for size in SIZES[device]}, REPEATS)
    speeds: dict[int, Row] = {}
    for size, timing in timings.items():
        gflop = 2e-9 * size**3 * max(1, 512**3 // size**3)
        times = {"gflops": timing.median, "least": timing.largest, "largest": timing.least}
        speeds[size] = {name: short(gflop / seconds) for name, seconds in times.items()}
    return speeds


def matrix_limit(device: str) -> float:
    """GFLOP/s at the size that is fastest: what no update can exceed."""
    return max(float(speed["gflops"]) for speed in product_speeds(device).values())


def controller_gflop(system: System, controller: nn.Module, states: Tensor, passes: Sequence[Feedback]) -> float:
    """The matrix products of a controller that an update needs, in GFLOP.

    One run of the controller at every step and sample, one way back through its layers, and one product with their
    weights for each pass. What an engine does beyond that, such as to run the controller again, and the products
    of the physics do not count.

    Args:
        system: the physics.
        controller: from observations to actions.
        states: (B, *state_shape).
        passes: which paths each backward pass takes.
    """
    observations = system.observe(states).detach()
    parameters = [p for p in controller.parameters() if p.requires_grad]

    def count(wanted: Sequence[Tensor], seen: Tensor) -> int:
        with FlopCounterMode(display=False) as counter:
            actions = controller(seen.clone())  # the counter takes no leaf for a module's input
            if wanted:
                torch.autograd.grad(actions.sum(), wanted)
        return int(counter.get_total_flops())

    leaf = observations.clone().requires_grad_()
    forward, by_input = count((), observations), count((leaf,), leaf)
    by_both, by_weights = count((leaf, *parameters), leaf), count(parameters, observations)
    first = by_both if any(feedback.controller for feedback in passes) else by_weights
    assert forward <= by_input <= by_both
    return 1e-9 * system.horizon * (first + (len(passes) - 1) * (by_both - by_input))


def share(gflop: float, limit: float, seconds: float) -> float:
    """Of the matrix-multiplication limit, in GFLOP/s, that a program attains."""
    return short(gflop / limit / seconds, 3)


def to_markdown(lines: Sequence[Line]) -> str:
    """The speeds by size, and the machine."""
    groups = dict.fromkeys((line["device"], line["threads"]) for line in lines)
    sizes = dict.fromkeys(line["size"] for line in lines)
    found = {(line["device"], line["threads"], line["size"]): line for line in lines}
    rows: list[Row] = []
    for device, count in groups:
        row: Row = {"device": device, "threads": count}
        rows.append(row | {f"{n} x {n}": number(found[device, count, n]["gflops"]) for n in sizes})
    described = dict.fromkeys(f"{line['machine']}; {line['versions']}." for line in lines)
    return "\n\n".join([f"GFLOP/s of float32 products:\n\n{markdown(rows)}", *described])
