"""`bptt optima`."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path

from bptt_envs import checks, make_env
from bptt_studies.optima.tasks import SOUGHT, Sought
from bptt_trainers.commands.exits import checking_arguments
from bptt_trainers.planning.plan import plan_in_turn
from bptt_trainers.records.files import write_atomic
from bptt_trainers.records.tables import Line, Row, chosen, markdown, read_lines, short, to_csv
from bptt_trainers.training.start_states import held_out_states

SHOWN = ("C", "R", "PPO")  # whose tuned results stand beside the best plan
JUDGED = 256  # held-out states of the tuned results, of which the first are planned


@dataclass(frozen=True)
class Optima:
    """Plan the held-out episodes of each task: the best losses that are known.

    Keeps what is found in optima.csv, and prints a table with the tuned results
    beside it: how far they end above the best plan.

    example: bptt optima --tasks cart-pole-1 quantum-3 --states 16
    """

    tasks: tuple[str, ...] = ()
    """Tasks that are planned anew. None are named: all of which optima.csv holds nothing."""

    states: int = 64
    """Held-out start states of each, the first of those that all are judged by."""

    out: Path = Path("results")
    """Folder of the tuned results, where optima.csv is written."""

    def run(self) -> None:
        """Plan, write and print."""
        with checking_arguments():
            for task in self.tasks:
                checks.one_of("--tasks", task, SOUGHT)
            checks.positive_integer("--states", self.states)
        path = self.out / "optima.csv"
        done = {line["task"] for line in read_lines(path)}
        for name in self.tasks or [name for name in SOUGHT if name not in done]:
            others: list[Row] = [dict(line) for line in read_lines(path) if line["task"] != name]
            rows = [*others, *self._planned(SOUGHT[name])]
            rows.sort(key=lambda row: list(SOUGHT).index(str(row["task"])))
            write_atomic(path, to_csv(rows).encode())
        print(markdown(beside(read_lines(path), self.out)))

    def _planned(self, task: Sought) -> list[Row]:
        system = make_env(task.env_id, **task.options).system
        states = held_out_states(system, max(self.states, JUDGED))[: self.states]
        rows: list[Row] = []
        for method, found in plan_in_turn(system, states, task.methods).items():
            losses = found.losses.tolist()
            error = statistics.stdev(losses) / len(losses) ** 0.5 if len(losses) > 1 else 0.0
            row: Row = {"task": task.name, "env_id": task.env_id}
            row |= {"options": "; ".join(f"{name}={value}" for name, value in task.options.items())}
            row |= {"method": method, "states": len(losses), "mean": short(statistics.fmean(losses), 6)}
            row |= {"standard_error": short(error, 3), "median": short(statistics.median(losses), 6)}
            row |= {"largest": short(max(losses), 6), "iterations": found.iterations}
            rows.append(row | {"seconds": short(found.seconds, 3)})
        return rows


def beside(optima: list[Line], results: Path) -> list[Row]:
    """A row for each task: the mean of the best plans, and how far above it tuned methods end, median over seeds."""
    rows: list[Row] = []
    for name in dict.fromkeys(line["task"] for line in optima):
        best = min(chosen(optima, task=name), key=lambda line: float(line["mean"]))
        mean, error = float(best["mean"]), float(best["standard_error"])
        row: Row = {"task": name, "planner": best["method"], "states": best["states"]}
        row |= {"best plan": f"{mean:.4g}" + (f" ± {error:.2g}" if error else "")}
        runs = read_lines(results / f"{SOUGHT[name].study}-{name}.csv")
        for method in SHOWN:
            ends = [float(line["final_loss"]) for line in chosen(runs, method=method)]
            end = statistics.median(ends) if ends else None
            row |= {method: "–" if end is None else f"{end:.3g} (+{end - mean:.2g})"}
        rows.append(row)
    return rows
