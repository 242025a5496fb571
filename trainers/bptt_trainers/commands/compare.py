"""`bptt compare` and `bptt demo`."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import OmitArgPrefixes, UseAppendAction, arg

from bptt_envs import Task
from bptt_envs.checks import one_of, path, positive
from bptt_trainers.commands.environment import EnvOptions, Module, parse_options
from bptt_trainers.commands.exits import Interrupted, checking_arguments
from bptt_trainers.commands.output import aligned, file_list
from bptt_trainers.comparison.compare import Comparison, ComparisonConfig, compare
from bptt_trainers.comparison.methods import BPTT, RL, get_method, method_name
from bptt_trainers.comparison.runs import member_folder
from bptt_trainers.directions.rollout import rollout
from bptt_trainers.figures.animation import save_animation
from bptt_trainers.host.threads import available_cores
from bptt_trainers.presets.presets import SEEN, parse_overrides
from bptt_trainers.rl.view import RLView
from bptt_trainers.training.bptt import initial_controller
from bptt_trainers.training.run_folder import RunFolder
from bptt_trainers.training.start_states import held_out_states

FILES = {
    "methods.md": "the table, for readers",
    "methods.csv": "the table: a line a method",
    "runs.csv": "a line a run",
    "curves.csv": "the learning curves in numbers",
    "curves.png": "the learning curves",
    "curves.pdf": "the same for print",
    "runs": "a folder for each run",
}

Tuning = Annotated[Path | None, arg(metavar="FOLDER")]

Overrides = Annotated[tuple[str, ...], UseAppendAction, arg(metavar="METHOD.NAME=VALUE")]


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Compare update rules with reinforcement learning.

    Same objective, same held-out start states, same simulator steps. Leaves a
    table (Markdown, CSV) and learning curves. Run again, it computes only what is
    missing, also with more methods or seeds.

    example: bptt compare --methods C R PPO --env-option max_force=50 --seeds 0 1 2
    """

    module: Module = None
    """Module to import first: one that registers the environment, if that is your own."""

    comparison: OmitArgPrefixes[ComparisonConfig]

    env_option: EnvOptions = ()
    """An option of the environment, such as max_force=50 (N); 'none' for none. bptt envs ID lists them."""

    tuning: Tuning = None
    """A folder of bptt tune: every method that learns has the best row found there, whatever --preset is; what a row
    does not say is as the paper has it."""

    override: Overrides = ()
    """A setting of one method that is to differ from its default, such as PPO.num_envs=32 or C.clip=norm."""

    def run(self) -> None:
        """Compare."""
        with checking_arguments():
            options = parse_options(self.comparison.env, self.env_option)
            chosen = settings_of(self.comparison, self.tuning, self.override, options)
            config = replace(self.comparison, env_options=options, **chosen)
        announce_rows(self.tuning)
        comparison = compare_aloud(config)
        print(f"{table_for_terminal(comparison.table)}\n\n{file_list(config.out, FILES)}")


def settings_of(
    config: ComparisonConfig, tuning: Path | None, texts: Sequence[str], env_options: Mapping[str, Any]
) -> dict[str, Any]:
    """The `preset` and `overrides` of a comparison whose settings are those of a study and of the command line.

    What a row says of what its controller sees counts where `env_options` say nothing of it.

    Raises:
        ValueError: if an override is of another form or method, or the study is of another environment or has no row of
            a method.
        RunFolderError: as `best_rows`.
    """
    overrides = {method_name("--override", name): changes for name, changes in parse_overrides(texts).items()}
    for method in overrides:
        one_of("the method of --override", method, config.methods)
    if tuning is None:
        return {"overrides": overrides}
    from bptt_trainers.tuning.outcome import best_rows

    rows = best_rows(path("--tuning", tuning), config.env)
    learning = [method for method in config.methods if isinstance(get_method(method), (BPTT, RL))]
    missing = [method for method in learning if method not in rows]
    if missing:
        raise ValueError(f"{tuning} has no row of {', '.join(missing)}: it has those of {', '.join(rows) or 'none'}.")
    seen = [name for name in SEEN if name in env_options]
    left = {method: {name: one for name, one in rows[method].items() if name not in seen} for method in learning}
    return {
        "preset": "paper",  # all that differs from it is in a row
        "overrides": {method: row | overrides.get(method, {}) for method, row in left.items()},
    }


def announce_rows(tuning: Path | None) -> None:
    """Say what the rows of a study were tuned for."""
    if tuning is not None:
        from bptt_trainers.tuning.outcome import studied

        print(textwrap.fill(f"settings: the best rows of {tuning}, tuned for {studied(tuning)}", 80), flush=True)


@dataclass(frozen=True)
class DemoTask:
    """What the demo learns.

    Attributes:
        title: for readers.
        env: id of the environment.
        env_options: its options.
        steps: simulator steps of a run.
    """

    title: str
    env: str
    env_options: Mapping[str, Any]
    steps: int


DEMO = {
    "one-pole": DemoTask("one pole", "DiffCartPole-v0", {"max_force": 50.0}, 320_000),
    "two-poles": DemoTask("two poles", "DiffMultiPole-v0", {"n_poles": 2, "max_force": 50.0}, 640_000),
}
"""By the name of its folder."""


@dataclass(frozen=True)
class Demo:
    """Rule C next to PPO, swinging up one pole and two: about 3 minutes on 2 cores.

    Both are tuned alike (docs/tuning.md), have forces up to 50 N, see cos theta
    and sin theta, and learn from the same number of simulator steps, with the same
    seeds, each run alone. Leaves for each task a table (Markdown, CSV), learning
    curves and an animation. It is bptt compare with settings chosen for you; run
    again, it computes only what is missing.

    example: bptt demo --out runs/demo
    """

    out: Path = Path("runs/demo")
    """Folder for everything, with one for each task."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds; each method runs once with each."""

    share: float = 1.0
    """Simulator steps of a run, as a share of the usual ones."""

    def run(self) -> None:
        """Compare, and draw."""
        with checking_arguments():
            positive("share", self.share)
            configs = {name: self._config(name, task) for name, task in DEMO.items()}
        said = []
        for name, config in configs.items():
            comparison = compare_aloud(config)
            animation = draw(config)
            files = file_list(config.out, {animation.name: ANIMATION} | FILES)
            said.append(f"{DEMO[name].title}\n\n{table_for_terminal(comparison.table)}\n\n{files}")
        print("\n\n".join(said))

    def _config(self, name: str, task: DemoTask) -> ComparisonConfig:
        return ComparisonConfig(
            env=task.env,
            env_options=task.env_options,
            methods=("C", "PPO", "zero"),
            seeds=self.seeds,
            steps=max(1, round(self.share * task.steps)),
            evaluations=50,
            together=False,
            jobs=len(available_cores()),
            out=self.out / name,
        )


ANIMATION = "an episode untrained, under rule C and under PPO"


def compare_aloud(config: ComparisonConfig) -> Comparison:
    """`compare`, with a line before it and a way on after Ctrl-C.

    Raises:
        Interrupted: at Ctrl-C.
    """
    print(
        f"{config.out}: {', '.join(config.methods)} on {config.env}, {seeds_each(config)};\n"
        f"{config.steps:,} simulator steps a run; what is finished is not computed again",
        flush=True,
    )
    for note in config.notes:
        print(textwrap.fill(note, 80), flush=True)
    try:
        return compare(config)
    except KeyboardInterrupt:
        raise Interrupted("stopped; what is finished is kept") from None


def seeds_each(config: ComparisonConfig) -> str:
    """How many runs a method has, in words."""
    return f"{len(config.seeds)} seed{'s' if len(config.seeds) > 1 else ''} each"


def draw(config: ComparisonConfig) -> Path:
    """Animate one held-out episode of the first seed: untrained, rule C, PPO. Returns the file."""
    from bptt_trainers.rl.sb3 import load_rl  # with it comes stable-baselines3

    C, PPO = (member_folder(config.out, method, config.seeds[0]) for method in ("C", "PPO"))
    run, ppo = RunFolder(C), load_rl(PPO)
    settings = run.train_config()
    system = run.make_env().system
    untrained = initial_controller(system, settings)
    start = held_out_states(system, config.test_states)[:1]
    trajectories = {
        "untrained": rollout(system, untrained, start),
        "rule C": rollout(system, run.load_controller(system, "last")[0], start),
    }
    judged = ppo.config.judged_system()
    if isinstance(system, Task) and system.observe_time:  # is drawn as the system that PPO is judged on
        within = RLView(judged).inner
        trajectories = {name: replace(one, states=within(one.states)) for name, one in trajectories.items()}
    system = judged
    start = held_out_states(system, config.test_states)[:1]
    trajectories["PPO"] = ppo.controller.rollout(system, start)
    out = config.out / "swing-up.gif"
    save_animation(system, trajectories, out, width=960)
    return out


def table_for_terminal(markdown: str, width: int = 80) -> str:
    """A Markdown table and the text below it for a narrow screen: a column a method, as many as fit at a time."""
    table, _, notes = markdown.strip().partition("\n\n")
    head, _, *methods = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines())

    def blocks(size: int) -> list[list[str]]:
        groups = (methods[i : i + size] for i in range(0, len(methods), size))
        return [aligned([list(row) for row in zip(head, *group, strict=True)], left=1) for group in groups]

    sizes = range(len(methods), 1, -1)
    fitting = next((size for size in sizes if max(len(line) for block in blocks(size) for line in block) <= width), 1)
    return "\n\n".join([*map("\n".join, blocks(fitting)), textwrap.fill(notes, width)])
