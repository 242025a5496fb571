"""The study of estimators: what is measured, that it goes on, and `bptt estimators`."""

from dataclasses import replace

import pytest
import torch

import bptt_studies.estimators.run
from bptt_studies.estimators.config import TASKS, EstimatorsConfig, Task
from bptt_studies.estimators.run import NAMES, Estimates, Measured, _at, read_study, study, system_of
from bptt_trainers import policy_gradient
from bptt_trainers.cli import main
from bptt_trainers.directions.estimators import propagated, replaced
from bptt_trainers.directions.rules import MODIFIED, REGULAR
from bptt_trainers.records.files import RunFolderError

TINY = {"batch": 3, "estimates": 4, "truth": 1}


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(TASKS, "chained-pendulum", Task("DiffCartPole-v0", "horizon", "steps", (2.0, 4.0)))
    return EstimatorsConfig(task="chained-pendulum", **TINY)


def test_estimates_of_many_batches_at_once_are_those_of_each(tiny):
    estimates = Estimates(system_of(tiny, 4), tiny)
    states, noise = estimates.episodes(4)
    pathwise, ratio = estimates.of_episodes(states, noise)
    found = {
        ("R", "pathwise"): estimates.of_passes(states, noise, (REGULAR, MODIFIED))[0],
        ("M", "pathwise"): estimates.of_passes(states, noise, (REGULAR, MODIFIED))[1],
        ("R", "likelihood_ratio"): estimates.by_step(states, noise, replaced),
        ("R", "total_propagation"): estimates.by_step(states, noise, propagated),
    }
    torch.testing.assert_close(pathwise.mean(1), found["R", "pathwise"])
    torch.testing.assert_close(ratio.mean(1), found["R", "likelihood_ratio"])
    for (rule, estimator), rows in found.items():
        for i, row in enumerate(rows):
            alone = policy_gradient(
                estimates.system, estimates.controller, states[i], rule, noise=noise[:, i], estimator=estimator
            )
            torch.testing.assert_close(row, torch.cat([one.flatten() for one in alone.directions.values()]))


def test_what_is_without_bias_is_as_near_as_its_noise_lets_it_be(tiny):
    rows = {row.estimator: row for row in _at(4, replace(tiny, batch=8, estimates=64, truth=8))}
    assert tuple(rows) == NAMES
    for name in ("R", "LR"):
        assert 0.3 < rows[name].bias / rows[name].floor < 2.0
    assert rows["S"].bias > 3.0 * rows["S"].floor
    assert rows["R"].noise < rows["LR"].noise
    assert rows["R"].cosine > rows["LR"].cosine


def measured_at(value):
    return [Measured(value, name, 1.0, 0.1, "R", 0.5, 0.2, 0.1, 0.9) for name in NAMES]


def test_it_goes_on_where_it_stopped(monkeypatch, tmp_path):
    begun = []
    monkeypatch.setattr(
        bptt_studies.estimators.run, "_at", lambda value, config: begun.append(value) or measured_at(value)
    )
    config = EstimatorsConfig(values=(32,), out=tmp_path / "study", **TINY)
    study(config)
    rows = study(replace(config, values=(32, 16)))
    assert begun == [32, 16]
    assert [row.value for row in rows[:: len(NAMES)]] == [16, 32], "the least first"
    assert rows == read_study(config)
    with pytest.raises(RunFolderError, match="estimates"):
        study(replace(config, estimates=5))


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"task": "cart-pole"}, "task"), ({"batch": 1}, "batch must be at least 2"), ({"values": (-1,)}, "values")],
)
def test_settings_out_of_range_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        EstimatorsConfig(**settings)


@pytest.mark.usefixtures("drawn")
def test_the_command_leaves_tables_and_a_figure(tiny, tmp_path, capsys):
    settings = [part for name, value in TINY.items() for part in (f"--{name}", str(value))]
    out = tmp_path / "out"
    assert main(["estimators", "--task", "chained-pendulum", *settings, "--out", str(out)]) == 0
    assert "cosine of one estimate and the gradient" in capsys.readouterr().out
    assert "| horizon [steps] | R | M | S | LR | TP | AoBG | gradient |" in (out / "tables.md").read_text()
    assert (out / "estimators.pdf").stat().st_size > 1000
