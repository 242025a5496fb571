"""`bptt check`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from bptt_envs import System
from bptt_envs.registration import build_system
from bptt_trainers.analysis.findings import summary
from bptt_trainers.analysis.gradient_check import GradientCheck, check_gradients
from bptt_trainers.commands.environment import EnvOptions, Module, known_system, parse_options
from bptt_trainers.commands.exits import Failed, checking_arguments
from bptt_trainers.commands.output import file_list
from bptt_trainers.controllers.defaults import ControllerName, default_controller
from bptt_trainers.host.user_code import split_id
from bptt_trainers.records.files import write_atomic

REPORT, STEPS, FIGURE = "check.txt", "steps.csv", "check.png"
FILES = {REPORT: "the report", STEPS: "feedback and singular values, a line a step", FIGURE: "the figure"}


@dataclass(frozen=True, kw_only=True)
class Check:
    """Check the gradients of an environment, and say in words what is wrong.

    What its class promises; slopes against finite differences in float64, also
    those in closed form; where they are no numbers; how feedback grows or fades on
    its way back through the horizon, under R and under M; states and actions
    without any influence; what an update costs. The controller is untrained.
    Takes some seconds; exit code 1 if something is wrong.

    example: bptt check DiffCartPole-v0 --env-option max_force=50
    """

    module: Module = None
    """Module to import first: one that registers environments of your own."""

    env: Annotated[Positional[str], arg(metavar="ID")]
    """Environment id, or MODULE:ID to import first the module that registers it."""

    env_option: EnvOptions = ()
    """An option of the environment, such as max_force=50 (N); 'none' for none. bptt envs ID lists them."""

    controller: ControllerName = "default"
    """The network whose episodes are looked at: default is the paper's for the system, an MLP unless there is one."""

    out: Path | None = None
    """Folder for the report, its numbers (CSV) and a figure. None: the report is printed, nothing is written."""

    def run(self) -> None:
        """Check, print and write.

        Raises:
            Failed: if something is wrong.
        """
        with checking_arguments():
            known_system(self.env)
            options = parse_options(self.env, self.env_option)
            env_id = split_id(self.env)[1]
            system = build_system(env_id, options, env_id)  # what an environment refuses is what is to be said here
            controller = None if self.controller == "default" else default_controller(system, kind=self.controller)
        check = check_gradients(system, controller)
        print(check.text())
        if self.out is not None:
            _write(check, system, env_id, self.out)
            print(f"\n{file_list(self.out, FILES)}")
        if check.failed:
            raise Failed(f"{env_id}: {summary(check.findings)}")


def _write(check: GradientCheck, system: System, env_id: str, out: Path) -> None:
    from bptt_trainers.analysis.gradient_figure import gradient_figure  # with it comes matplotlib
    from bptt_trainers.figures.style import plain_text, save_figure

    write_atomic(out / REPORT, f"{check.text()}\n".encode())
    write_atomic(out / STEPS, check.steps_csv().encode())
    save_figure(gradient_figure(check, system, plain_text(env_id)), out / FIGURE)
