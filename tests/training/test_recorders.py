"""Recorders are named, made for each run, and keep to what the run has finished."""

import csv
import json
import sys
from dataclasses import replace

import pytest

from bptt_envs.systems import Integrator
from bptt_trainers import (
    Callback,
    Ensemble,
    RunFolder,
    RunFolderError,
    TrainConfig,
    Trainer,
    register_recorder,
    variations,
)
from bptt_trainers.cli import main
from bptt_trainers.training import recorders

TINY = TrainConfig(epochs=3, batch_size=4, train_states=12, test_states=4, hidden=(4,), record=("csv",))


def trainer(folder, callbacks=(), **changes):
    return Trainer(Integrator(), config=replace(TINY, out=folder, **changes), callbacks=callbacks)


def updates(folder):
    """The rows of updates.csv, without the seconds."""
    with (folder / "updates.csv").open() as file:
        return [{name: one for name, one in row.items() if name != "seconds"} for row in csv.DictReader(file)]


class Seen(Callback):
    """Keeps what it is told; raises after so many updates."""

    def __init__(self, stop_after=None):
        self.rows, self.stop_after = [], stop_after

    def on_update_end(self, trainer, loss, direction_norm):
        self.rows.append((loss, direction_norm))
        if len(self.rows) == self.stop_after:
            raise KeyboardInterrupt


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module of the user's in the working directory: recorders, and what is none."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "own_recorders", raising=False)
    (tmp_path / "own_recorders.py").write_text(
        "from pathlib import Path\n"
        "from bptt_trainers import Callback\n"
        "Path('imported').touch()\n"
        "class Log(Callback):\n"
        "    def __init__(self, run):\n"
        "        self.path = run.folder.path / 'log.txt'\n"
        "    def on_epoch_end(self, run, metrics):\n"
        "        with self.path.open('a') as file:\n"
        "            print(metrics.epoch, metrics.test_loss, file=file)\n"
        "NUMBER = 3\n"
        "def nothing(run): return None\n"
    )
    yield tmp_path
    recorders.RECORDERS.pop("log", None)


# csv


def test_updates_csv_has_a_line_for_each_update_with_its_loss_and_norm(tmp_path):
    seen = Seen()
    history = trainer(tmp_path, [seen]).fit()
    rows = updates(tmp_path)
    assert [(int(row["update"]), int(row["epoch"])) for row in rows] == [(i + 1, i // 3 + 1) for i in range(9)]
    assert [(float(row["loss"]), float(row["direction_norm"])) for row in rows] == seen.rows
    with (tmp_path / "updates.csv").open() as file:
        seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
    assert seconds == sorted(seconds)
    assert seconds[2::3] == [row.seconds for row in history[1:]]


@pytest.mark.parametrize("stop_after", [1, 4, 6])
def test_a_run_that_goes_on_has_the_updates_of_an_uninterrupted_one(tmp_path, stop_after):
    trainer(tmp_path / "whole").fit()
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "parts", [Seen(stop_after)]).fit()
    trainer(tmp_path / "parts").fit()
    assert updates(tmp_path / "parts") == updates(tmp_path / "whole")


def test_lines_that_a_kill_left_ahead_of_the_checkpoint_or_cut_short_are_dropped(tmp_path):
    trainer(tmp_path / "whole").fit()
    trainer(tmp_path / "parts", epochs=2).fit()
    with (tmp_path / "parts" / "updates.csv").open("a") as file:
        file.write("7,3,0.5,0.5,0.1\n8,3,0.")
    trainer(tmp_path / "parts").fit()
    assert updates(tmp_path / "parts") == updates(tmp_path / "whole")


def test_a_file_of_something_else_is_left_alone(tmp_path):
    trainer(tmp_path, epochs=1).fit()
    (tmp_path / "updates.csv").write_text("a,b\n1,2\n")
    with pytest.raises(RunFolderError, match=r"cannot read .*updates\.csv: its columns are"):
        trainer(tmp_path).fit()


# By name


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (("tensorbord",), r"record must be one of .*; got 'tensorbord'\. Did you mean 'tensorboard'"),
        (("csv", "csv"), "record must be at least one, each once"),
        ("csv", "record must be a list or a tuple of names; got 'csv'"),
        (("os:",), "record must be one of"),
        ((1,), "record must be one of"),
    ],
)
def test_unknown_names_are_refused_in_words(record, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(record=record)


def test_what_needs_a_folder_says_so_and_what_all_runs_have_by_default_is_left_away():
    with pytest.raises(ValueError, match="record='csv' writes into a run folder, and this run has none: set out"):
        trainer(None)
    assert trainer(None, record=TrainConfig().record).callbacks == []


def test_recorders_may_change_from_one_fit_to_the_next(tmp_path):
    trainer(tmp_path, epochs=1, record=("pictures",)).fit()
    assert not (tmp_path / "updates.csv").exists()
    trainer(tmp_path, epochs=2).fit()
    assert [row["epoch"] for row in updates(tmp_path)] == ["2"] * 3
    assert json.loads((tmp_path / "config.json").read_text())["training"]["record"] == ["csv"]
    trainer(tmp_path, record=()).fit()


@pytest.mark.usefixtures("drawn")
def test_pictures_are_drawn_when_a_run_is_done_and_only_then(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, [Seen(4)], record=("pictures",)).fit()
    assert not list(tmp_path.glob("*.png"))
    trainer(tmp_path, record=("pictures",)).fit()
    drawn = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.png")}
    assert sorted(drawn) == ["learning_curve.png", "trajectories.png"]
    trainer(tmp_path, record=("pictures",)).fit()  # nothing is new
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.png")} == drawn


def test_members_of_an_ensemble_have_recorders_of_their_own(tmp_path):
    configs = variations(replace(TINY, record=("csv", "tensorboard"), out=tmp_path / "many"), seeds=(0, 1))
    ensemble = Ensemble(Integrator(), configs)
    ensemble.fit()
    logs = [id(callback) for member in ensemble.members for callback in member.callbacks]
    assert len(set(logs)) == 4
    for seed in (0, 1):
        folder = tmp_path / "many" / f"seed{seed}"
        assert len(list(folder.glob("events.*"))) == 1
        trainer(tmp_path / str(seed), seed=seed).fit()
        found, alone = ([float(row["loss"]) for row in updates(one)] for one in (folder, tmp_path / str(seed)))
        assert found == pytest.approx(alone, rel=1e-4)


# Of one's own


def test_a_recorder_of_ones_own_is_named_by_its_path_or_registered(module):
    trainer(module / "one", record=("own_recorders:Log",)).fit()
    register_recorder("log", "own_recorders:Log")
    register_recorder("log", "own_recorders:Log")  # as a module that is imported twice would
    trainer(module / "two", record=("csv", "log")).fit()
    one, two = ((module / name / "log.txt").read_text() for name in ("one", "two"))
    assert one == two
    assert one.split()[::2] == ["1", "2", "3"]
    assert RunFolder(module / "two").train_config().record == ("csv", "log")


@pytest.mark.parametrize(
    ("name", "path", "message"),
    [
        ("csv", "own_recorders:Log", "name 'csv' is that of another recorder"),
        ("a:b", "own_recorders:Log", "name must be a word"),
        ("log", "own_recorders", "path must be MODULE:NAME"),
        ("log", 1, "path must be MODULE:NAME"),
    ],
)
def test_names_that_cannot_be_given_are_refused_in_words(module, name, path, message):
    with pytest.raises(ValueError, match=message):
        register_recorder(name, path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:Log", "there is no module 'no_such_module'"),
        ("own_recorders:Lag", "own_recorders has no such Lag"),
        ("own_recorders:NUMBER", "own_recorders has no such NUMBER"),
        ("own_recorders:nothing", "it gives None"),
    ],
)
def test_what_is_no_recorder_is_refused_before_anything_is_written(module, name, message):
    with pytest.raises(ValueError, match=message):
        trainer(module / "run", record=(name,))
    assert not (module / "run").exists()


def test_a_folder_names_no_code_to_run(module, capsys):
    command = "train --env DiffIntegrator-v0 --preset paper --train-states 8 --test-states 4 --out run"
    assert main([*command.split(), "--epochs", "1", "--record", "csv", "own_recorders:Log"]) == 0
    del sys.modules["own_recorders"]
    (module / "imported").unlink()
    assert RunFolder(module / "run").train_config().record == ("csv",)
    assert main(["evaluate", "run"]) == 0
    assert main(["resume", "run", "--epochs", "2"]) == 1
    assert "--record csv own_recorders:Log" in capsys.readouterr().err
    assert not (module / "imported").exists()
    assert main(["resume", "run", "--epochs", "2", "--record", "own_recorders:Log"]) == 0
    assert [line.split()[0] for line in (module / "run" / "log.txt").read_text().splitlines()] == ["1", "2"]


# On the command line, and in folders of earlier versions


def test_a_module_of_ones_own_registers_names_for_the_command_line(module):
    with (module / "own_recorders.py").open("a") as file:
        file.write("import bptt_trainers; bptt_trainers.register_recorder('log', 'own_recorders:Log')\n")
    command = "train --module own_recorders --env DiffIntegrator-v0 --preset paper --train-states 8 --test-states 4"
    assert main([*command.split(), "--epochs", "1", "--out", "run", "--record", "log"]) == 0
    assert main(["resume", "run", "--epochs", "2"]) == 0
    assert len((module / "run" / "log.txt").read_text().splitlines()) == 2


def test_the_command_line_names_several(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = "train --env DiffIntegrator-v0 --preset paper --train-states 8 --test-states 4 --epochs 1 --out run"
    assert main([*command.split(), "--record", "tensorboard", "csv", "pictures", "diagnostics"]) == 0
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"updates.csv", "learning_curve.png", "diagnostics.npz"} <= names
    assert any(name.startswith("events.") for name in names)
    assert main(["resume", "run", "--epochs", "2", "--record", "csv"]) == 0
    assert RunFolder(tmp_path / "run").train_config().record == ("csv",)
    assert main([*command.split(), "--record", "cvs"]) == 2


def test_a_folder_of_an_earlier_version_with_a_flag_for_each_recorder_is_taken_up(tmp_path):
    trainer(tmp_path, epochs=1).fit()
    stored = json.loads((tmp_path / "config.json").read_text())
    del stored["training"]["record"]
    flags = {"tensorboard": False, "pictures": False, "diagnostics": True}
    stored["training"] |= flags
    (tmp_path / "config.json").write_text(json.dumps(stored))
    last = RunFolder(tmp_path).load("last")
    trained = json.loads(last["config"])
    del trained["training"]["record"]
    trained["training"] |= flags
    RunFolder(tmp_path).save("last", last | {"config": json.dumps(trained)})
    config = RunFolder(tmp_path).train_config(epochs=2)
    assert config == replace(TINY, record=("diagnostics",), epochs=2, out=tmp_path)
    assert Trainer(Integrator(), config=config).fit()[-1].epoch == 2
