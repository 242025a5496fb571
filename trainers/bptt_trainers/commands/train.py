"""`bptt train` and `bptt resume`."""

from __future__ import annotations

import argparse
import hashlib
import re
import shlex
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import OmitArgPrefixes, Positional, UseAppendAction, arg

from bptt_envs.program import cache_folder
from bptt_trainers.analysis.trained import by_reinforcement
from bptt_trainers.commands.environment import (
    EnvOptions,
    Module,
    make_environment,
    named_texts,
    parse_options,
    read_any,
)
from bptt_trainers.commands.exits import Interrupted, Misuse, checking_arguments
from bptt_trainers.commands.output import aligned
from bptt_trainers.directions.switching import Compile
from bptt_trainers.host.user_code import import_module, split_id
from bptt_trainers.presets.presets import PresetName, from_preset, row_name, rule_settings
from bptt_trainers.training.callbacks import Callback, ProgressBar
from bptt_trainers.training.config import COMPILE_OPTION, Clip, OnNonfinite, TrainConfig
from bptt_trainers.training.ensemble import CannotStackError, Ensemble, variations
from bptt_trainers.training.ranks import LostRankError, Ranks, join_ranks, launched
from bptt_trainers.training.run import NonFiniteError
from bptt_trainers.training.run_folder import CHANGEABLE, CONFIGS, RunFolder
from bptt_trainers.training.sapo_config import SAPOConfig
from bptt_trainers.training.shac_config import SHACConfig
from bptt_trainers.training.trainer import Trainer

LearnerName = Literal["BPTT", "SHAC", "SAPO"]  # those of `CONFIGS`

OptimizerOptions = Annotated[tuple[str, ...], UseAppendAction, arg(metavar="NAME=VALUE")]


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a controller by backpropagation through the physics, into a run folder.

    A folder that holds a run of the same settings is continued; one of other
    settings is refused. Ctrl-C loses at most the epoch in progress.

    The settings are those that were tuned for the rule and the environment; what
    you give counts before them. --preset paper has those of the paper.

    With several rules, clips, learning rates or seeds, every combination is a run
    in a folder of its own below --out, its other settings those of --rule. They
    are trained together, in less time than one after the other; what is finished
    is not computed again.

    --learner SHAC or SAPO trains in short windows with a critic; their options are
    those of bptt train --learner SHAC --help.

    Several processes train one run together, each on its share of the batches, by
    torchrun --nproc-per-node 2 -m bptt_trainers train ... (docs/scaling.md).

    example: bptt train --env DiffMultiPole-v0 --env-option n_poles=2 --epochs 100
    example: bptt train --rules R C --seeds 0 1 2 3 --epochs 100 --out runs/grid
    """

    module: Module = None
    """Module to import first: one that registers the environment, if that is your own."""

    training: OmitArgPrefixes[TrainConfig]
    """Settings of the run; the defaults shown are those of --preset, --rule, --env and its options."""

    learner: LearnerName = "BPTT"
    """What learns: BPTT, over whole episodes; SHAC or SAPO, in short windows with a critic (docs/shac.md)."""

    preset: PresetName = "tuned"
    """Where settings come from that are not given: tuned (docs/tuning.md), or the paper's."""

    env: str = "DiffCartPole-v0"
    """Environment id (bptt envs lists them), or MODULE:ID to import first the module that registers it."""

    env_option: EnvOptions = ()
    """An option of the environment, such as max_force=50 (N); 'none' for none. bptt envs ID lists them."""

    optimizer_option: OptimizerOptions = ()
    """An argument of an --optimizer of torch.optim, such as momentum=0.9."""

    rules: tuple[str, ...] = ()
    """Several update rules in place of --rule."""

    clips: tuple[Clip, ...] = ()
    """Several kinds of clipping in place of --clip."""

    learning_rates: tuple[float, ...] = ()
    """Several step sizes in place of --learning-rate."""

    seeds: tuple[int, ...] = ()
    """Several seeds in place of --seed."""

    @staticmethod
    def chosen(arguments: Sequence[str]) -> type[Train]:
        """The command whose settings are those of the learner that the arguments ask for."""
        reader = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
        reader.add_argument("--learner", default=Train.learner)
        try:
            return COMMANDS.get(reader.parse_known_args(arguments)[0].learner, Train)
        except (argparse.ArgumentError, SystemExit):  # what is wrong is said when all of them are read
            return Train

    @classmethod
    def with_defaults(cls, arguments: Sequence[str]) -> Train | None:
        """The command with the defaults that its arguments ask for: the preset's; None where they cannot be read."""
        config_class = CONFIGS[cls.learner]
        reader = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
        reader.add_argument("--env", default=cls.env)
        reader.add_argument("--module", type=import_module)
        reader.add_argument("--rule", default=config_class.rule)
        reader.add_argument("--preset", default=cls.preset)
        reader.add_argument("--env-option", "--env_option", action="append", default=[])
        reader.add_argument("--train-states", "--train_states", type=int, default=argparse.SUPPRESS)
        for name in ("optimizer", "estimator", "deviation"):
            reader.add_argument(f"--{name}", default=argparse.SUPPRESS)
        try:
            given, _ = reader.parse_known_args(arguments)
            options = parse_options(given.env, given.env_option)
            told = {name: value for name, value in vars(given).items() if name in TOLD}
            if "estimator" not in told:
                told.pop("deviation", None)
            _, config = from_preset(split_id(given.env)[1], given.rule, given.preset, options, cls.learner, **told)
        except (argparse.ArgumentError, ValueError, SystemExit):  # what is wrong is said when all of them are read
            return None
        return cls(training=config if "estimator" in told else replace(config, rule=config_class.rule))

    def run(self) -> None:
        """Train."""
        with checking_arguments():
            ranks = join_ranks(self.training.device)
            options = parse_options(self.env, self.env_option)
            module, env_id = split_id(self.env)
            learner, rule = self.training.learner, self.training.rule
            method = row_name(learner, rule, estimator=self.training.estimator)
            chosen = rule_settings(method, env_id, name=self.preset, options=options, learner=learner)
            env = make_environment(self.env, options | chosen.seen)
            module = module or self.module
            several = {name: values for name in VARIED if (values := getattr(self, name))}
            if several and ranks.count > 1:
                raise ValueError(
                    f"--{next(iter(several)).replace('_', '-')} is for one process: torchrun trains one run."
                )
            if several and self.training.out is not None and RunFolder(self.training.out).exists():
                raise ValueError(f"--out {self.training.out} holds a single run; several need another folder.")
            out = self.training.out or default_folder(env_id, options, self.training, several)
            texts = named_texts("--optimizer-option", self.optimizer_option, "momentum=0.9")
            optimizer_options = {name: read_any(text) for name, text in texts}
            config = replace(self.training, out=out, optimizer_options=optimizer_options)
            configs = variations(config, **several) if several else [config]
            ensemble = None
            with suppress(CannotStackError):  # they are trained one by one
                ensemble = Ensemble(env, configs, [ProgressBar()]) if several else None
            trainers = []
            if ensemble is None:
                trainers = [Trainer(env, config=one, callbacks=said(ranks), ranks=ranks) for one in configs]
        if ensemble is not None:
            fit_together(ensemble, out, module)
        for trainer in trainers:
            assert trainer.config.out is not None
            fit(trainer, trainer.config.out, module)


@dataclass(frozen=True, kw_only=True)
class TrainSHAC(Train):
    """Train a controller in short windows with a critic, into a run folder.

    The short-horizon actor-critic (arXiv 2204.07137, docs/shac.md) by one of the
    update rules: --rule R is as published, M and C are those of this library.
    Everything else is as without --learner.

    example: bptt train --learner SHAC --rule C --window 16 --env DiffCartPole-v0
    """

    training: OmitArgPrefixes[SHACConfig]
    """Settings of the run; the defaults shown are those of --preset, --rule, --env and its options."""

    learner: LearnerName = "SHAC"
    """What learns: BPTT, over whole episodes; SHAC or SAPO, in short windows with a critic (docs/shac.md)."""


@dataclass(frozen=True, kw_only=True)
class TrainSAPO(Train):
    """Train a stochastic controller in short windows with soft values, into a run folder.

    Soft analytic policy optimisation (arXiv 2412.12089, docs/shac.md) by one of
    the update rules: --rule R is as published. Everything else is as without
    --learner.

    example: bptt train --learner SAPO --env DiffHopper-v0 --env-option max_action=1
    """

    training: OmitArgPrefixes[SAPOConfig]
    """Settings of the run; the defaults shown are those of --preset, --rule, --env and its options."""

    learner: LearnerName = "SAPO"
    """What learns: BPTT, over whole episodes; SHAC or SAPO, in short windows with a critic (docs/shac.md)."""


TOLD = ("train_states", "optimizer", "estimator", "deviation")
"""What defaults depend on, beside the environment and the rule."""

COMMANDS: dict[str, type[Train]] = {command.learner: command for command in (Train, TrainSHAC, TrainSAPO)}
"""The command for each learner."""

VARIED = ("rules", "clips", "learning_rates", "seeds")


@dataclass(frozen=True)
class Resume:
    """Continue the run in a folder, bit for bit as if it had never stopped.

    The settings are those in its config.json; only those below may change.

    example: bptt resume runs/two --epochs 200
    """

    run_folder: Annotated[Positional[Path], arg(metavar="RUN")]
    """The run folder."""

    epochs: int | None = None
    """Epochs in all, those that are done included. None: as many as the run was to have."""

    compile: Annotated[Compile | None, COMPILE_OPTION] = None
    """Whether to compile the loops of the engine. None: as the run did."""

    device: str | None = None
    """Where to compute: cpu, cuda or one such as cuda:1. None: where the run did."""

    on_nonfinite: OnNonfinite | None = None
    """At a non-finite loss or direction: stop the run, or skip the update and count it. None: as the run did."""

    keep_every: int | None = None
    """Keep the controller after every so many epochs. None: as the run did."""

    record: tuple[str, ...] | None = None
    """What to keep beside metrics and checkpoints: tensorboard, csv, pictures, diagnostics, wandb, mlflow, trackio.
    None: as the run did."""

    module: Module = None
    """Module to import first: one that registers the environment of the run, if that is your own."""

    def run(self) -> None:
        """Go on."""
        changes = {name: getattr(self, name) for name in CHANGEABLE if name != "out"}
        if by_reinforcement(self.run_folder):
            if launched() > 1:
                raise Misuse(f"a run of reinforcement learning is trained by one process, not by {launched()}.")
            self._resume_rl([name for name, value in changes.items() if value is not None])
            return
        folder = RunFolder(self.run_folder)
        with checking_arguments():
            folder.check_complete(self.record)
            config = folder.train_config(**{name: value for name, value in changes.items() if value is not None})
            env = folder.make_env()
            begun = folder.load("last") is not None
            controller = folder.load_controller(env.system, "last")[0] if begun else None
            ranks = join_ranks(config.device)
            trainer = Trainer(env, controller, config, callbacks=said(ranks), ranks=ranks)
        fit(trainer, self.run_folder, self.module)

    def _resume_rl(self, given: list[str]) -> None:
        """Go on with a run of reinforcement learning, whose settings follow from how long it is."""
        from bptt_trainers.rl.sb3 import load_rl, train_rl  # slow to import, and not always needed

        config = load_rl(self.run_folder).config
        if given:
            named = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise Misuse(f"a run of {config.method} goes on as it began: leave out {named}.")
        try:
            run = train_rl(config, self.run_folder)
        except KeyboardInterrupt:
            command = f"bptt resume {shlex.quote(str(self.run_folder))}{with_module(self.module)}"
            raise Interrupted(f"stopped before {config.steps:,} steps were done", command) from None
        print(
            f"{self.run_folder}: {run.curve[-1].simulator_steps:,} steps, held-out loss {run.curve[-1].test_loss:.4g}"
        )


class Announce(Callback):
    """Says where training starts."""

    def on_fit_start(self, trainer: Trainer) -> None:
        """Print one line."""
        done, epochs = trainer.epoch, trainer.config.epochs
        folder = "" if trainer.folder is None else trainer.folder.path
        if done == 0:
            print(f"{folder}: starting, {epochs} epochs of {trainer.updates_per_epoch} updates", flush=True)
            announce_compiling(trainer.config)
        elif done < epochs:
            print(f"{folder}: continuing after epoch {done} of {epochs}", flush=True)
            announce_compiling(trainer.config)
        else:
            further = "; bptt resume with more --epochs goes further" if trainer.lengthens else ""
            print(f"{folder}: all {epochs} epochs are done{further}", flush=True)


def said(ranks: Ranks) -> list[Callback]:
    """What is said of a run as it goes, by the first of the processes that train it."""
    return [Announce(), ProgressBar()] if ranks.first else []


def announce_compiling(config: TrainConfig) -> None:
    """Say why nothing happens for a while."""
    if config.compile:
        where = " in a second process" if config.compile == "auto" else ""
        print(f"compiling{where} what {cache_folder()} does not hold: about 10 s a program", flush=True)


def default_folder(env_id: str, options: dict[str, Any], config: TrainConfig, several: Collection[str] = ()) -> Path:
    """runs/<id>[_<option>=<value> ...][_SHAC]_<rule>_seed<seed>; of several runs, what they differ in is left out."""
    given = (f"{name}={_short(value)}" for name, value in options.items())
    fixed = {"rules": config.rule, "seeds": f"seed{config.seed}"}
    learner = [] if config.learner == TrainConfig.learner else [config.learner]
    parts = [env_id, *given, *learner, *(part for name, part in fixed.items() if name not in several)]
    parts += ["by", *several] if several else []
    return Path("runs") / re.sub(r"[^\w.=+-]", "-", "_".join(parts))


def _short(value: Any) -> str:
    """A value as part of a file name; of one that is not a number or a word, such as a matrix, a digest."""
    text = str(value)
    if re.fullmatch(r"[\w.+-]{1,20}", text):
        return text
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:8]


def fit(trainer: Trainer, out: Path, module: str | None) -> None:
    """Train, and say what came of it and how to go on; of several processes the first says it.

    Raises:
        Interrupted: at Ctrl-C.
        NonFiniteError, LostRankError: as `Trainer.fit`, with the command that goes on.
        SystemExit: in another process than the first, where that one says why.
    """
    if not trainer.ranks.first:
        try:
            trainer.fit()
        except (KeyboardInterrupt, NonFiniteError, LostRankError) as error:
            raise SystemExit(1) from error
        return
    run = shlex.quote(str(out)) + with_module(module)
    try:
        trainer.fit()
    except KeyboardInterrupt:
        if not RunFolder(out).exists():
            raise
        raise Interrupted(
            f"stopped after epoch {trainer.epoch} of {trainer.config.epochs}", f"bptt resume {run}"
        ) from None
    except NonFiniteError as error:
        raise NonFiniteError(f"{error} To skip such updates:\n  bptt resume {run} --on-nonfinite skip") from error
    except LostRankError as error:
        raise LostRankError(f"{error}; to go on from epoch {trainer.epoch}:\n  bptt resume {run}") from error
    print(summary(trainer, out, run))


def with_module(module: str | None) -> str:
    """The option by which a command that reads a run folder knows an environment of the user's own."""
    return "" if module is None else f" --module {shlex.quote(module)}"


def summary(trainer: Trainer, out: Path, run: str) -> str:
    """What came of a run, where it lies, what to do next."""
    untrained, last = trainer.history[0], trainer.history[-1]
    best = min(trainer.history, key=lambda row: row.train_loss)
    skipped = sum(row.skipped for row in trainer.history)
    lines = [
        f"loss over the {len(trainer.test_states)} held-out states:",
        f"  untrained     {untrained.test_loss:.4g}",
        f"  epoch {last.epoch:<6}  {last.test_loss:<9.4g} last.pt",
        f"  epoch {best.epoch:<6}  {best.test_loss:<9.4g} best.pt, the best epoch on the training states",
        *([f"skipped {skipped} updates whose loss or direction was not finite"] if skipped else []),
        f"training took {last.seconds:.1f} s, evaluation not counted",
        f"engine: {trainer.choice.engine.name} ({trainer.choice.reason})",
        f"files: {out}/ ({', '.join(sorted(path.name for path in out.iterdir() if path.suffix in _SHOWN))})",
        "next:",
        f"  bptt evaluate {run}",
        f"  bptt render {run} --out {shlex.quote(str(out / 'animation.gif'))}",
        *([f"  bptt diagnose {run}"] if "diagnostics" in trainer.config.record else []),
        *([f"  bptt fields {run}"] if trainer.config.keep_every is not None else []),
    ]
    return "\n".join(lines)


def fit_together(ensemble: Ensemble, out: Path, module: str | None) -> None:
    """Train several runs in folders below `out`, and say what came of them and how to go on.

    Raises:
        Interrupted: at Ctrl-C.
        NonFiniteError: if runs dropped out, with what they said.
    """
    names = [str(member.folder.path.relative_to(out)) for member in ensemble.members if member.folder is not None]
    print(f"{out}: {len(names)} runs of {ensemble.members[0].config.epochs} epochs, trained together", flush=True)
    announce_compiling(ensemble.members[0].config)
    try:
        ensemble.fit()
    except KeyboardInterrupt:
        raise Interrupted("stopped; each run stands at its last finished epoch") from None
    print(summary_of_all(ensemble, out, names, module))
    if ensemble.errors:
        lost = [f"  {names[i]}: {error}" for i, error in ensemble.errors.items()]
        raise NonFiniteError("\n".join([f"{len(lost)} of {len(names)} runs ended early:", *lost]))


def summary_of_all(ensemble: Ensemble, out: Path, names: list[str], module: str | None) -> str:
    """A line a run, where they lie, what to do next."""
    rows = [["run", "status", "epoch", "untrained", "last", "best"]]
    for i, (name, member) in enumerate(zip(names, ensemble.members, strict=True)):
        untrained, last = member.history[0], member.history[-1]
        best = min(member.history, key=lambda row: row.train_loss)
        skipped = sum(row.skipped for row in member.history)
        status = "not finite" if i in ensemble.errors else "done" + (f", {skipped} skipped" if skipped else "")
        rows.append([name, status, str(last.epoch), *(f"{row.test_loss:.4g}" for row in (untrained, last, best))])
    seconds = sum(member.history[-1].seconds for member in ensemble.members)
    lines = [
        f"loss over the {len(ensemble.members[0].test_states)} held-out states:",
        *(f"  {line}" for line in aligned(rows, left=2)),
        "best: in the best epoch on the training states",
        f"training took {seconds:.1f} s in all, evaluation not counted",
        "next:",
        f"  bptt evaluate {shlex.quote(str(out))}/*{with_module(module)}",
    ]
    return "\n".join(lines)


_SHOWN = (".json", ".csv", ".npz", ".pt", ".png")
