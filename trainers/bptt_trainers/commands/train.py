"""`bptt train` and `bptt resume`."""

from __future__ import annotations

import hashlib
import re
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import OmitArgPrefixes, Positional, arg

from bptt_trainers.callbacks import Callback, ProgressBar
from bptt_trainers.commands.environment import EnvOptions, Module, make_environment, parse_options, split_id
from bptt_trainers.commands.exits import Interrupted, checking_arguments
from bptt_trainers.config import OnNonfinite, TrainConfig
from bptt_trainers.run_folder import RunFolder
from bptt_trainers.trainer import NonFiniteError, Trainer


@dataclass(frozen=True)
class Train:
    """Train a controller by backpropagation through the physics, into a run folder.

    A folder that holds a run of the same settings is continued; one of other
    settings is refused. Ctrl-C loses at most the epoch in progress.

    example: bptt train --env DiffMultiPole-v0 --env-option n_poles=2 --epochs 100
    """

    training: OmitArgPrefixes[TrainConfig]

    env: str = "DiffCartPole-v0"
    """Environment id (bptt envs lists them), or MODULE:ID to import first the module that registers it."""

    env_option: EnvOptions = ()
    """An option of the environment, such as max_force=50 (N); 'none' for none. bptt envs ID lists them."""

    def run(self) -> None:
        """Train."""
        with checking_arguments():
            options = parse_options(self.env, self.env_option)
            env = make_environment(self.env, options)
            module, env_id = split_id(self.env)
            out = self.training.out or default_folder(env_id, options, self.training)
            trainer = Trainer(env, config=replace(self.training, out=out), callbacks=[Announce(), ProgressBar()])
        fit(trainer, out, module)


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

    on_nonfinite: OnNonfinite | None = None
    """At a non-finite loss or direction: stop the run, or skip the update and count it. None: as the run did."""

    keep_every: int | None = None
    """Keep the controller after every so many epochs. None: as the run did."""

    diagnostics: bool | None = None
    """Whether to measure after each epoch how the rules differ. None: as the run did."""

    tensorboard: bool | None = None
    """Whether to write TensorBoard events. None: as the run did."""

    module: Module = None
    """Module to import first: one that registers the environment of the run, if that is your own."""

    def run(self) -> None:
        """Go on."""
        named = ("epochs", "on_nonfinite", "keep_every", "diagnostics", "tensorboard")
        changes = {name: getattr(self, name) for name in named}
        folder = RunFolder(self.run_folder)
        with checking_arguments():
            config = folder.train_config(**{name: value for name, value in changes.items() if value is not None})
            env = folder.make_env()
            begun = folder.load("last") is not None
            controller = folder.load_controller(env.system, "last")[0] if begun else None
            trainer = Trainer(env, controller, config, callbacks=[Announce(), ProgressBar()])
        fit(trainer, self.run_folder, self.module)


class Announce(Callback):
    """Says where training starts."""

    def on_fit_start(self, trainer: Trainer) -> None:
        """Print one line."""
        done, epochs = trainer.epoch, trainer.config.epochs
        folder = "" if trainer.folder is None else trainer.folder.path
        if done == 0:
            print(f"{folder}: starting, {epochs} epochs of {trainer.updates_per_epoch} updates", flush=True)
        elif done < epochs:
            print(f"{folder}: continuing after epoch {done} of {epochs}", flush=True)
        else:
            print(f"{folder}: all {epochs} epochs are done; bptt resume with more --epochs goes further", flush=True)


def default_folder(env_id: str, options: dict[str, Any], config: TrainConfig) -> Path:
    """runs/<id>[_<option>=<value> ...]_<rule>_seed<seed>."""
    given = (f"{name}={_short(value)}" for name, value in options.items())
    parts = [env_id, *given, config.rule, f"seed{config.seed}"]
    return Path("runs") / re.sub(r"[^\w.=+-]", "-", "_".join(parts))


def _short(value: Any) -> str:
    """A value as part of a file name; of one that is not a number or a word, such as a matrix, a digest."""
    text = str(value)
    return text if re.fullmatch(r"[\w.+-]{1,20}", text) else hashlib.sha256(text.encode()).hexdigest()[:8]


def fit(trainer: Trainer, out: Path, module: str | None) -> None:
    """Train, and say what came of it and how to go on.

    Raises:
        Interrupted: at Ctrl-C.
        NonFiniteError: as `Trainer.fit`, with the command that goes on.
    """
    run = shlex.quote(str(out)) + ("" if module is None else f" --module {shlex.quote(module)}")
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
    print(summary(trainer, out, run))


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
        *([f"  bptt diagnose {run}"] if trainer.config.diagnostics else []),
        *([f"  bptt fields {run}"] if trainer.config.keep_every is not None else []),
    ]
    return "\n".join(lines)


_SHOWN = (".json", ".csv", ".npz", ".pt", ".png")
