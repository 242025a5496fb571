"""A sweep: every method at every point of a grid, what is finished never again."""

import csv
import shlex
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bptt_trainers import RunFolderError
from bptt_trainers.cli import main
from bptt_trainers.comparison.compare import ComparisonConfig, compare
from bptt_trainers.comparison.runs import Member
from bptt_trainers.comparison.sweep import SweepConfig, sweep

SMALL = {"train_states": 16, "batch_size": 8, "hidden": (8,)}


def small(out, **changes):
    settings = {
        "env": "DiffIntegrator-v0",
        "methods": ("R", "C"),
        "grid": {"learning_rate": (0.01, 0.1), "C.clip": ("none", "norm")},
        "env_grid": {"horizon": (4, 5)},
        "seeds": (0, 1),
        "steps": 256,
        "test_states": 8,
        "overrides": {"R": SMALL, "C": SMALL},
        "out": out,
    }
    return SweepConfig(**(settings | changes))


def numbers(made):
    return {key: [(p.simulator_steps, p.test_loss) for p in curve] for key, curve in made.curves.items()}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    config = small(tmp_path_factory.mktemp("sweep") / "all")
    return config, sweep(config, progress=False)


def test_the_table_has_medians_and_quartiles_of_every_method_at_every_point(made):
    config, done = made
    with (config.out / "cells.csv").open() as file:
        rows = list(csv.DictReader(file))
    points = [(one["method"], one["learning_rate"], one["clip"], one["horizon"]) for one in rows]
    expected = [
        (method, str(rate), clip, str(horizon))
        for horizon in (4, 5)
        for method, clips in (("R", [""]), ("C", ["none", "norm"]))
        for rate in (0.01, 0.1)
        for clip in clips
    ]
    assert points == expected
    for label, row in zip((cell.label for cell in config.cells), rows, strict=True):
        finals = [done.curves[label, seed][-1].test_loss for seed in config.seeds]
        assert float(row["final_loss"]) == statistics.median(finals)
        assert float(row["final_loss_low"]) == np.quantile(finals, 0.25)
        assert float(row["final_loss_high"]) == np.quantile(finals, 0.75)
    best = min(rows, key=lambda one: float(one["final_loss"]))
    assert f"that of: {best['method']}, " in done.table
    assert {"cells.md", "cells.png", "cells.pdf", "runs.csv", "curves.csv"} <= {
        one.name for one in config.out.iterdir()
    }


def test_a_cell_is_what_a_comparison_with_its_settings_is(made, tmp_path):
    _, done = made
    alone = ComparisonConfig(
        env="DiffIntegrator-v0",
        env_options={"horizon": 5},
        methods=("C",),
        seeds=(1,),
        steps=256,
        test_states=8,
        overrides={"C": SMALL | {"learning_rate": 0.1, "clip": "norm"}},
        record=(),
        out=tmp_path,
    )
    expected = compare(alone, progress=False).curves["C", 1]
    found = done.curves["C, clip=norm, horizon=5, learning_rate=0.1", 1]
    assert [p.test_loss for p in found] == pytest.approx([p.test_loss for p in expected], rel=1e-3)


def test_an_interrupted_sweep_goes_on_and_one_with_more_values_adds_them(tmp_path, monkeypatch):
    changes = {"methods": ("C",), "grid": {"learning_rate": (0.01, 0.1)}, "env_grid": {}, "seeds": (0,)}
    config = small(tmp_path / "broken", together=False, **(changes | {"overrides": {"C": SMALL}}))
    run, calls = Member.run, []

    def interrupted(member, progress):
        calls.append(str(member))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return run(member, progress)

    monkeypatch.setattr(Member, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sweep(config, progress=False)
    before = {path: path.stat().st_mtime_ns for path in config.out.rglob("metrics.csv")}
    assert len(before) == 1
    again = sweep(config, progress=False)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert numbers(again) == numbers(sweep(replace(config, out=tmp_path / "whole"), progress=False))
    more = sweep(replace(config, grid={"learning_rate": (0.03, 0.1)}), progress=False)
    assert [key for key, _ in more.curves] == ["C, learning_rate=0.03", "C, learning_rate=0.1"]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    for changed in ({"steps": 512}, {"overrides": {"C": SMALL | {"hidden": (4,)}}}, {"env_options": {"horizon": 3}}):
        with pytest.raises(RunFolderError, match="of another configuration"):
            sweep(replace(config, **changed), progress=False)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--methods R C", "name an axis of the grid"),
        ("--grid learning_rate", "--grid must be NAME=VALUE"),
        ("--grid learning_rate=", "--grid learning_rate, values with commas between them"),
        ("--grid learning_rat=1", "Did you mean 'learning_rate'?"),
        ("--grid learning_rate=1e-3,1e-3", "name each value once"),
        ("--grid M.learning_rate=1e-3", "the method of grid must be"),
        ("--grid clip=nor", "clip must be"),
        ("--grid-env horizons=3", "Did you mean 'horizon'?"),
        ("--grid-env horizon=few", "horizon must be of type int"),
    ],
)
def test_a_grid_that_cannot_be_is_refused_in_words(arguments, said, tmp_path, capsys):
    assert main(["sweep", *shlex.split(arguments), "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_command_reads_words_tuples_and_options_of_the_environment(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    line = "sweep --env DiffIntegrator-v0 --methods R --grid 'hidden=(4,),(8, 8)' clip=none --grid-env horizon=4 "
    line += "--seeds 0 --steps 64 --test-states 8 --override R.train_states=16 --override R.batch_size=8"
    assert main(shlex.split(line)) == 0
    said = capsys.readouterr().out
    assert "| R | (4,) | none | 4 | 1 |" in said
    assert "| R | (8, 8) | none | 4 | 1 |" in said
    assert Path("runs/sweep/cells.csv").exists()
    assert not Path("runs/sweep/cells.png").exists()  # no axis of numbers
    assert "cells.png" not in said
