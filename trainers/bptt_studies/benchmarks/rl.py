"""Reinforcement learning with more and more environments: PPO's time for a simulator step, and the physics' of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch

from bptt_studies.benchmarks.config import BenchmarkConfig
from bptt_studies.benchmarks.timing import in_turns_within
from bptt_trainers.records.tables import Line, Row, markdown, number, percent, short

ENV = "DiffCartPole-v0"
ENVS = (8, 64, 256)
STEPS = 6400  # simulator steps of an update, whatever the number of environments
UPDATES = 1_000_000  # before which the learning rate has not fallen to 0: more than are timed


def cells(config: BenchmarkConfig) -> list[Row]:
    """One for each number of threads."""
    return [{"device": "cpu", "threads": threads, "env": ENV, "steps": STEPS} for threads in config.threads]


def measure(config: BenchmarkConfig, cell: Row) -> list[Row]:
    """An update of PPO, and stepping so often alone, with each number of environments, in turns."""
    from bptt_trainers.rl.learner import apart  # stable-baselines3 takes seconds to import

    torch.set_num_threads(int(cell["threads"]))
    with apart():
        programs = {count: (_update(count), _stepping(count)) for count in ENVS}
        each = {(count, i): run for count, runs in programs.items() for i, run in enumerate(runs)}
        timings, repeats = in_turns_within(each, config.seconds, config.repeats)
    rows: list[Row] = []
    for count in ENVS:
        update, stepping = timings[count, 0], timings[count, 1]
        micros = {name: short(1e6 * getattr(update, name) / STEPS) for name in ("median", "least", "largest")}
        rows.append(
            cell
            | {"envs": count, "repeats": repeats, "microseconds": micros.pop("median"), **micros}
            | {"stepping": short(1e6 * stepping.median / STEPS)}
        )
    return rows


def _update(count: int) -> Callable[[], object]:
    """An update of PPO with the paper's preset but for the steps of each environment, which all make `STEPS`."""
    from bptt_trainers.rl.config import RLConfig
    from bptt_trainers.rl.learner import SB3Learner

    overrides = {"num_envs": count, "n_steps": STEPS // count}
    config = RLConfig(
        env=ENV, steps=STEPS * UPDATES, evaluations=UPDATES, test_states=1, preset="paper", overrides=overrides
    )
    learner = SB3Learner(config)
    learner.begin()
    numbers = itertools.count()

    def run() -> None:
        for _ in learner.update(next(numbers)):
            pass

    run()
    return run


def _stepping(count: int) -> Callable[[], object]:
    """As many simulator steps of the environments that PPO learns from, with actions that were drawn before."""
    from bptt_trainers.rl.config import RLConfig
    from bptt_trainers.rl.sb3_env import SB3VecEnv

    env = SB3VecEnv(RLConfig(env=ENV, preset="paper").trained_system(), count)
    env.seed(0)
    env.reset()
    actions = np.random.default_rng(0).uniform(-1.0, 1.0, (count, *(env.action_space.shape or ()))).astype(np.float32)

    def run() -> None:
        for _ in range(STEPS // count):
            env.step(actions)

    run()
    return run


def to_markdown(lines: Sequence[Line]) -> str:
    """A line for each number of threads and environments."""
    return markdown(
        [
            {"threads": line["threads"], "environments": line["envs"]}
            | {"steps of each an update": int(line["steps"]) // int(line["envs"])}
            | {"PPO, us a step (least to largest)": _spread(line)}
            | {"stepping alone, us a step": number(line["stepping"])}
            | {"share of it": percent(str(float(line["stepping"]) / float(line["microseconds"])))}
            for line in lines
        ]
    )


def _spread(line: Line) -> str:
    return f"{number(line['microseconds'])} ({number(line['least'])} to {number(line['largest'])})"
