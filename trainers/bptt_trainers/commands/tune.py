"""`bptt tune`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

from tyro.conf import OmitArgPrefixes, UseAppendAction, arg

from bptt_trainers.commands.compare import Overrides
from bptt_trainers.commands.environment import EnvOptions, Module, parse_options
from bptt_trainers.commands.exits import Interrupted, checking_arguments
from bptt_trainers.commands.output import file_list
from bptt_trainers.presets.presets import parse_overrides
from bptt_trainers.tuning.config import TuneConfig
from bptt_trainers.tuning.outcome import ROWS, TABLE, Study, comparing, preset_line
from bptt_trainers.tuning.space import read_searches
from bptt_trainers.tuning.store import JOURNAL, need_optuna
from bptt_trainers.tuning.study import tune

FILES = {
    TABLE: "a line a trial",
    ROWS: "the best row of each method",
    JOURNAL: "the trials, as optuna keeps them",
}

Searches = Annotated[tuple[str, ...], UseAppendAction, arg(metavar="METHOD.NAME=LOW:HIGH[:log]|{A,B,...}")]


@dataclass(frozen=True, kw_only=True)
class Tune:
    """Search for the settings of update rules and of PPO and SAC, all alike.

    Every method gets the same number of trials, simulator steps and tuning seeds.
    A trial is judged on validation states, which are neither trained on nor those
    that tables are made with: by log10 of the loss, at the end and on average over
    the budget. Trials that fall behind are pruned. What is best is printed as a
    row of the presets.

    Several commands may share a folder, at once and one after the other; what is
    finished is not computed again. Needs: pip install 'stable-bptt[tune]'.

    example: bptt tune --env-option max_force=50 --methods C PPO --out tuning/pole
    """

    module: Module = None
    """Module to import first: one that registers the environment, if that is your own."""

    tuning: OmitArgPrefixes[TuneConfig]

    env_option: EnvOptions = ()
    """An option of the environment, such as max_force=50 (N); 'none' for none. bptt envs ID lists them."""

    fix: Overrides = ()
    """A setting of one method that is pinned in every trial, such as "C.hidden=(32, 32)"."""

    search: Searches = ()
    """What is searched of one method in place of the table's entry, such as C.learning_rate=1e-3:1e-1:log or
    PPO.num_envs={32,64}."""

    def run(self) -> None:
        """Search."""
        need_optuna()
        with checking_arguments():
            env = self.tuning.env if self.tuning.module is None else f"{self.tuning.module}:{self.tuning.env}"
            config = replace(
                self.tuning,
                module=self.tuning.module or self.module,
                env_options=parse_options(env, self.env_option),
                fix=parse_overrides(self.fix),
                search=read_searches(self.search),
            )
        print(
            f"{config.out}: {', '.join(config.methods)} on {config.env}, {config.trials} trials each;\n"
            f"{config.steps:,} simulator steps a run; what is finished is not computed again",
            flush=True,
        )
        try:
            study = tune(config)
        except KeyboardInterrupt:
            raise Interrupted("stopped; every finished trial is kept") from None
        print(f"{in_words(config, study)}\n\n{file_list(config.out, FILES)}")


def in_words(config: TuneConfig, study: Study) -> str:
    """The best row of each method, how to train with it, and how to compare them."""
    parts = []
    for method in config.methods:
        made = [one for one in study.trials if one["method"] == method]
        pruned = sum(one["state"] == "pruned" for one in made)
        failed = sum(one["state"] == "failed" for one in made)
        count = f"{method}: {len(made)} of {config.trials} trials, {pruned} pruned, {failed} failed"
        best = study.best.get(method)
        if best is None:
            parts.append(f"{count}; none has a score")
            continue
        again = "" if best.confirmed is None else f", {best.confirmed:.3f} with 10 further seeds"
        losses = f"losses of 10^{best.final:.2f} at the end, 10^{best.area:.2f} over the budget"
        parts.append(
            f"{count}\nbest is trial {best.trial}, score {best.score:.3f}{again}: {losses}\n"
            f"  {preset_line(config, best)}\n  {best.command}"
        )
    alone = [method for method, best in study.best.items() if best.confirmed is None]
    if alone:
        seeds = f"{config.seeds} tuning seed{'s' if config.seeds > 1 else ''}"
        parts.append(
            f"not run again with further seeds: {', '.join(alone)}. The best of several trials on\n"
            f"{seeds} is partly luck, and ends worse with others; --confirm 3 runs the best again"
        )
    if study.best:
        parts.append(f"on the held-out states:\n  {comparing(config, list(study.best))}")
    return "\n\n".join(parts)
