"""The command `bptt`: which commands there are, and how they end.

Exit codes: 0 done, 1 failed, 2 misused, 130 stopped by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP. Errors go to stderr, in
words.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import shlex
import sys
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import tyro
from gymnasium.error import DependencyNotInstalled

import bptt_envs
from bptt_envs.checks import nearest
from bptt_envs.contract import ContractError
from bptt_envs.program import CompilerError
from bptt_trainers.commands.exits import Failed, Interrupted, Misuse, checking_arguments
from bptt_trainers.commands.hints import explained
from bptt_trainers.commands.shell import Ended, ended_in_order, safe_output, wide_enough
from bptt_trainers.host.user_code import raised_by_user, told
from bptt_trainers.records.files import RunFolderError
from bptt_trainers.training.ranks import LostRankError, launched
from bptt_trainers.training.run import NonFiniteError

IN_WORDS = (
    *(Failed, ContractError, RunFolderError, NonFiniteError, LostRankError),
    *(CompilerError, DependencyNotInstalled, OSError),
)
"""Errors whose message says all that a user needs."""


class Command(Protocol):
    """A dataclass whose fields are the options and whose docstring is the help text."""

    def run(self) -> None:
        """Do it."""


class Entry(NamedTuple):
    """One row: where a command is, imported when it is asked for, and what it does."""

    path: str
    summary: str


TOGETHER = ("train", "resume")
"""Commands that several processes, started by torchrun, do together."""

STUDIES = "bptt_studies"
"""The package of what was found out: in the repository, not in what is installed from a wheel."""

COMMANDS = {
    "demo": Entry("bptt_trainers.commands.compare:Demo", "rule C and PPO on one pole and two, in 3 minutes"),
    "train": Entry("bptt_trainers.commands.train:Train", "train a controller"),
    "resume": Entry("bptt_trainers.commands.train:Resume", "continue a training run"),
    "evaluate": Entry("bptt_trainers.commands.evaluate:Evaluate", "judge trained controllers on held-out start states"),
    "compare": Entry("bptt_trainers.commands.compare:Compare", "compare rules with reinforcement learning"),
    "sweep": Entry("bptt_trainers.commands.sweep:Sweep", "train methods over a grid of settings and options"),
    "plan": Entry("bptt_trainers.commands.plan:PlanCommand", "plan held-out episodes: the best that anyone knows"),
    "tune": Entry("bptt_trainers.commands.tune:Tune", "search for the settings of rules, PPO and SAC, all alike"),
    "render": Entry("bptt_trainers.commands.render:Render", "draw a trained controller: an animation or a picture"),
    "report": Entry("bptt_trainers.commands.report:Report", "tell of runs and comparisons in one HTML page"),
    "share": Entry("bptt_trainers.commands.share:Share", "write a trained controller as a model to share"),
    "diagnose": Entry("bptt_trainers.commands.diagnose:Diagnose", "draw how the rules differed in a training run"),
    "fields": Entry("bptt_trainers.commands.fields:Fields", "draw the fields of R, M and C around a run's checkpoints"),
    "envs": Entry("bptt_trainers.commands.envs:Envs", "list the environments and their options"),
    "check": Entry("bptt_trainers.commands.check:Check", "check the gradients of an environment, in words"),
    "toys": Entry("bptt_studies.toys.command:Toys", "draw the fields of R, M and C of the paper's two toy examples"),
    "reproduce": Entry("bptt_studies.paper.command:Reproduce", "rerun the paper's experiments, with statistics"),
    "scale": Entry("bptt_studies.scaling.command:Scale", "measure time, memory and loss as a task grows"),
    "optima": Entry("bptt_studies.optima.command:Optima", "plan each task, and compare what was tuned with the best"),
    "contact": Entry("bptt_studies.contact.command:Contact", "study the rules over the stiffness of contacts"),
    "estimators": Entry(
        "bptt_studies.estimators.command:Estimators", "measure variance and bias of gradient estimators"
    ),
    "benchmark": Entry("bptt_studies.benchmarks.command:Benchmark", "time updates, steps and starts, beside peers"),
}

USAGE = """usage: bptt COMMAND [OPTIONS]

Train neural controllers through differentiable physics, by stabilised
backpropagation through time (arXiv 2405.02041).

commands:
{commands}

studies, in a clone of the repository:
{studies}

bptt COMMAND --help shows the options of a command, bptt --version the version.
Exit codes: 0 done, 1 failed, 2 misused, 130 stopped by Ctrl-C, 143 by SIGTERM."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command in `argv`, by default that of the process; return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    with safe_output() as output, ended_in_order() as ended:
        code = _main(arguments, ended)
        sys.stdout.flush()
        if output is not None and output.lost is not None:
            return _end("bptt", f"cannot write the standard output: {output.lost.strerror}.", code or 1)
    return code


def _main(arguments: list[str], ended: Ended) -> int:
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:2], "--help"]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0
    if arguments[0] == "--version":
        print(f"bptt {bptt_envs.__version__}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        hint = nearest(name, COMMANDS)
        return _end("bptt", f"unknown command {name!r}.{hint} The commands: {', '.join(COMMANDS)}.", 2)
    return _run(name, rest, ended)


def _usage() -> str:
    width = 1 + max(map(len, COMMANDS))
    lines = {name: f"  {name:<{width}}{entry.summary}" for name, entry in COMMANDS.items()}
    studies = [name for name, entry in COMMANDS.items() if entry.path.startswith(STUDIES)]
    return USAGE.format(
        commands="\n".join(line for name, line in lines.items() if name not in studies),
        studies="\n".join(lines[name] for name in studies),
    )


def read_command(name: str, arguments: Sequence[str]) -> Command:
    """The command that `arguments` ask for, with its options checked.

    Raises:
        Misuse: if a setting is out of range.
        SystemExit: at --help, or if an option is unknown or cannot be read; what is to be said is said then.
    """
    module, _, class_name = COMMANDS[name].path.partition(":")
    command: type[Command] = getattr(importlib.import_module(module), class_name)
    choose = getattr(command, "chosen", None)  # some have other settings for what is asked for
    command = command if choose is None else choose(arguments)
    if not {"-h", "--help"}.isdisjoint(arguments):  # printed here, as tyro would join the lines and not wrap them
        print(inspect.getdoc(command), end="\n\n")
    with checking_arguments(), wide_enough(), explained(command, arguments):
        make_default = getattr(command, "with_defaults", None)  # some have defaults that hang on what is given
        default = None if make_default is None else make_default(arguments)
        given = {} if default is None else {"default": default}
        made: Command = tyro.cli(command, prog=f"bptt {name}", description="", args=arguments, **given)
        return made


def _run(name: str, arguments: list[str], ended: Ended) -> int:
    program = f"bptt {name}"
    if COMMANDS[name].path.startswith(STUDIES) and importlib.util.find_spec(STUDIES) is None:
        return _end(
            program,
            f"the studies, of which {name} is one, are not installed: they come with a clone of the repository and "
            "pip install -e . there.",
            1,
        )
    if launched() > 1 and name not in TOGETHER:
        several = f"torchrun has started {launched()} processes of it; those that they do together are"
        return _end(program, f"{name} is for one process, and {several} {' and '.join(TOGETHER)}.", 2)
    try:
        read_command(name, arguments).run()
    except Misuse as error:
        return _end(program, f"{error}\nFor help: {program} --help", 2)
    except Interrupted as error:
        again = shlex.join(["bptt", name, *arguments])
        return _end(program, f"{error}; to go on:\n  {error.resume or again}", ended.exit_code)
    except KeyboardInterrupt:
        return _end(program, "stopped", ended.exit_code)
    except (Exception, SystemExit) as error:
        if raised_by_user(error):
            return _end(program, told(error), 1)
        if isinstance(error, SystemExit):  # from tyro: --help, or a message about an option
            return error.code if isinstance(error.code, int) else 1
        if isinstance(error, IN_WORDS):
            return _end(program, str(error), 1)
        raise
    return 0


def _end(program: str, message: str, code: int) -> int:
    print(f"{program}: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
