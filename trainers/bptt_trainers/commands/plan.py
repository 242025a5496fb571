"""`bptt plan`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from tyro.conf import Positional, UseAppendAction, arg

from bptt_envs import checks
from bptt_envs.registration import ENTRIES, system_class
from bptt_trainers.commands.environment import EnvOptions, Module, make_environment, parse_options
from bptt_trainers.commands.exits import Misuse, checking_arguments
from bptt_trainers.commands.output import aligned
from bptt_trainers.directions.rollout import losses, rollout
from bptt_trainers.host.user_code import split_id
from bptt_trainers.planning.plan import PLANNERS, plan_in_turn, planner_settings
from bptt_trainers.presets.presets import SEEN, parse_overrides
from bptt_trainers.records.claim import plain_differences
from bptt_trainers.records.files import write_atomic
from bptt_trainers.records.plain import plain
from bptt_trainers.records.tables import to_csv
from bptt_trainers.training.run_folder import RunFolder
from bptt_trainers.training.start_states import held_out_states

Settings = Annotated[tuple[str, ...], UseAppendAction, arg(metavar="METHOD.NAME=VALUE")]


@dataclass(frozen=True, kw_only=True)
class PlanCommand:
    """Plan held-out episodes, each by itself: the best losses that anyone knows.

    Planners learn nothing and know the physics. Each starts from the middle of the
    actions' range, from random plans and from the best plan of those named before
    it. Prints a line a method; leaves the loss of each start state as CSV.

    example: bptt plan DiffQuadrotor-v0 --methods MPPI iLQR --out plans.csv
    """

    env: Annotated[Positional[str], arg(metavar="ID", help_behavior_hint="(required)")]
    """Environment id (bptt envs lists them), or MODULE:ID to import first the module that registers it."""

    module: Module = None
    """Module to import first: one that registers the environment, if that is your own."""

    env_option: EnvOptions = ()
    """An option of the environment, such as max_force=50 (N); 'none' for none. bptt envs ID lists them."""

    methods: tuple[str, ...] = ("iLQR",)
    """Planners, in order: iLQR (up to some 30 numbers of state), MPPI (no gradients), GRAPE (any size)."""

    set: Settings = ()
    """A setting of a planner, such as iLQR.restarts=4 or MPPI.samples=256."""

    states: int = 64
    """Number of held-out start states: the first of the 256 that comparisons judge by."""

    seed: int = 0
    """Seed of random plans and of MPPI's noise."""

    run_folder: Annotated[Path | None, arg(metavar="RUN")] = None
    """A run on the same environment: its last controller is judged, too, and its actions are a plan to start from."""

    out: Path | None = None
    """CSV file: a line a start state, with its loss by each method."""

    def run(self) -> None:
        """Plan, print and write."""
        with checking_arguments():
            for method in self.methods:
                checks.one_of("--methods", method, PLANNERS)
            checks.each_once("--methods", self.methods)
            count = checks.positive_integer("--states", self.states)
            settings = parse_overrides(self.set)
            for method in settings:
                if method not in self.methods:
                    raise Misuse(f"--set is for {method}, which is not among the --methods.")
            for method in self.methods:
                planner_settings(method, settings.get(method, {}))
            checks.seed("--seed", self.seed)
            options = parse_options(self.env, self.env_option)
            system = make_environment(self.env, options).system
            states = held_out_states(system, max(count, 256))[:count]
            columns: dict[str, torch.Tensor] = {}
            table, actions = [["method", "mean", "median", "largest", "iterations", "seconds"]], None
            if self.run_folder is not None:
                actions, columns["run"] = _of_run(self.run_folder, split_id(self.env)[1], options, count)
                table.append(["run", *_numbers(columns["run"]), "–", "–"])
            methods = {method: settings.get(method, {}) for method in self.methods}
            plans = plan_in_turn(system, states, methods, actions=actions, seed=self.seed)
        for method, found in plans.items():
            columns[method] = found.losses
            table.append([method, *_numbers(found.losses), str(found.iterations), f"{found.seconds:.1f}"])
        print("\n".join(aligned(table, left=1)))
        if self.out is not None:
            rows = [
                {"state": i} | {name: f"{float(loss[i]):.9g}" for name, loss in columns.items()} for i in range(count)
            ]
            write_atomic(self.out, to_csv(rows).encode())
            print(f"\n{self.out}  a line a start state")


def _of_run(path: Path, env_id: str, options: Mapping[str, Any], count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What the last controller of a run does from the first held-out states, and its losses there.

    Raises:
        Misuse: if the run is of another environment than the one with `env_id` and `options`.
        RunFolderError: if it cannot be used.
    """
    folder = RunFolder(path)
    system = folder.make_env().system
    of_run = folder.read_config()["environment"]
    different = plain_differences(_asked(of_run["id"], of_run["options"]), _asked(env_id, options), "to plan for")
    if different:
        raise Misuse("--run-folder must be of the same environment and options:\n  " + "\n  ".join(different))
    controller, _ = folder.load_controller(system, "last")
    states = held_out_states(system, max(count, 256))[:count]
    trajectory = rollout(system, controller, states.to(next(controller.parameters())))
    return system.bound(trajectory.actions), losses(system, trajectory)


def _asked(env_id: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """An environment as JSON has it, but for what a controller sees of it."""
    all_options = system_class(env_id).env_options() | ENTRIES[env_id].defaults | dict(options)
    return {"id": env_id} | {name: plain(value) for name, value in all_options.items() if name not in SEEN}


def _numbers(losses: torch.Tensor) -> list[str]:
    return [f"{float(value):.4g}" for value in (losses.mean(), losses.median(), losses.max())]
