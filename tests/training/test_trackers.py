"""Trackers of experiments are told what a run does, go on with it, and never stop it. None is sent anything here."""

import json
import os
import socket
import sqlite3
import sys
import time
import types
from contextlib import closing
from dataclasses import replace

import pytest

from bptt_envs.systems import Integrator
from bptt_trainers import Callback, Ensemble, TrainConfig, Trainer, variations
from bptt_trainers.cli import main
from bptt_trainers.training.metrics import scalars
from bptt_trainers.training.trackers import CHECKPOINTS, PROJECT, Tracker
from bptt_trainers.training.wandb import _configured

TINY = TrainConfig(epochs=3, batch_size=4, train_states=8, test_states=4, hidden=(4,), record=())
NAMES = ("wandb", "mlflow", "trackio")
FIGURES = {"learning_curve", "trajectories"}

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")  # within MLflow


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Where trackers keep what they are told in this file: a new database of MLflow takes seconds."""
    folder = tmp_path_factory.mktemp("trackers")
    os.environ["TRACKIO_DIR"] = str(folder / "trackio")  # read once, when it is imported
    yield folder
    del os.environ["TRACKIO_DIR"]


@pytest.fixture
def nothing_said(stores, tmp_path, monkeypatch):
    """A user who has told the trackers nothing, in an empty working directory."""
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_", "NETRC"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(stores))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{stores / 'mlflow.db'}")
    monkeypatch.chdir(tmp_path)
    connect = socket.socket.connect

    def connect_here(one, address):
        if one.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise ConnectionError(f"nothing was said, and yet {address} is connected to")
        return connect(one, address)

    monkeypatch.setattr(socket.socket, "connect", connect_here)


class Stop(Callback):
    """Ctrl-C in the second epoch."""

    def on_update_end(self, trainer, loss, direction_norm):
        if trainer.epoch == 1:
            raise KeyboardInterrupt


def trainer(folder, *record, callbacks=()):
    return Trainer(Integrator(), config=replace(TINY, out=folder, record=record), callbacks=callbacks)


# Of a run, what is in the store of each: its status, its rule, the epochs in order, names of files


def held_by_wandb(folder):
    from wandb.proto.wandb_internal_pb2 import Record

    kept = sorted((folder / "wandb").glob("offline-run-*/*.wandb"))
    assert len({path.name for path in kept}) == 1  # of one id
    for _ in range(200):  # it is written by a process of its own
        records = [Record.FromString(data) for data in written_records(kept[-1].read_bytes())]
        if records and records[-1].HasField("exit"):
            break
        time.sleep(0.05)
    told, files = [], set()
    for record in records:
        items = {"/".join(item.nested_key): item.value_json for item in record.history.item}
        numbers = {tag: float(value) for tag, value in items.items() if tag.startswith(("loss/", "train/"))}
        told += [(int(items["_step"]), numbers)] if numbers else []
        files |= FIGURES & {tag.partition("/")[0] for tag in items}
        files |= {entry.path for entry in record.artifact.manifest.contents}
    (settings,) = {one.value_json for record in records for one in record.config.update if one.key == "training"}
    return ["finished", "interrupted"][records[-1].exit.exit_code], json.loads(settings)["rule"], told, files


def written_records(data):
    """The records in a file of W&B: in blocks of 32 KiB, parts of CRC, length and kind (whole, first, middle, last)."""
    at, whole, parts = 7, [], b""
    while at + 7 <= len(data):
        left = 2**15 - at % 2**15
        if left < 7:
            at += left
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):
            whole.append(parts)
            parts = b""
    return whole


def held_by_mlflow(folder):
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name(PROJECT).experiment_id
    (run,) = [one for one in client.search_runs([experiment]) if one.info.run_name == title(folder)]
    told = {}
    for tag in run.data.metrics:
        for metric in client.get_metric_history(run.info.run_id, tag):
            assert tag not in told.setdefault(metric.step, {})
            told[metric.step][tag] = metric.value
    files = {file.path for place in ("controller", "figures") for file in client.list_artifacts(run.info.run_id, place)}
    names = {path.split("/")[1].removesuffix(".png") for path in files}
    status = {"FINISHED": "finished", "KILLED": "interrupted"}[run.info.status]
    return status, run.data.params["training.rule"], sorted(told.items()), names


def held_by_trackio(folder):
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    (run,) = [one for one in trackio.Api().runs(PROJECT) if one.name.startswith(title(folder))]
    told, files = [], set()
    for row in SQLiteStorage.get_logs(PROJECT, run.name):
        numbers = {tag: value for tag, value in row.items() if "/" in tag}
        told += [(row["step"], numbers)] if numbers else []
        files |= FIGURES & row.keys()
    artifact = SQLiteStorage.get_artifact_manifest(PROJECT, f"controller-{run.id}", "latest")
    files |= set() if artifact is None else {entry["path"] for entry in artifact["manifest"]}
    return None, SQLiteStorage.get_run_config(PROJECT, run.name)["training"]["rule"], told, files


HELD = {"wandb": held_by_wandb, "mlflow": held_by_mlflow, "trackio": held_by_trackio}


def title(folder):
    return f"{folder.parent.name}-{folder.name}"


# All of a run


@pytest.mark.parametrize("name", NAMES)
def test_a_tracker_is_told_all_of_a_run_and_goes_on_with_it(nothing_said, tmp_path, name):
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "run", name, callbacks=[Stop()]).fit()
    status, _, told, _ = HELD[name](tmp_path / "run")
    assert status in ("interrupted", None)  # trackio keeps none
    assert [epoch for epoch, _ in told] == [0, 1]
    history = trainer(tmp_path / "run", name, "pictures").fit()  # pictures are drawn before they are handed on
    status, rule, told, files = HELD[name](tmp_path / "run")
    assert status in ("finished", None)
    assert rule == "C"
    assert told == [(row.epoch, scalars(row)) for row in history]
    assert files == FIGURES | set(CHECKPOINTS)


@pytest.mark.parametrize("name", NAMES)
def test_members_of_an_ensemble_have_a_run_each(nothing_said, tmp_path, name):
    configs = variations(replace(TINY, epochs=1, record=(name,), out=tmp_path / "many"), rules=("R", "M"), seeds=(0,))
    ensemble = Ensemble(Integrator(), configs)
    for member, history in zip(ensemble.members, ensemble.fit(), strict=True):
        _, rule, told, _ = HELD[name](member.folder.path)
        assert rule == member.rule.name
        assert told == [(row.epoch, scalars(row)) for row in history]


# None of them stops a run


class Moody(Tracker):
    """Keeps what it is told in memory, and fails at the epochs in `bad`."""

    name = "json"  # a package that is there
    bad = ()

    def begin(self, identity, config):
        self.told = []
        return identity or "one", True

    def log(self, epoch, values):
        if epoch in self.bad:
            raise ConnectionError("the network is gone\nand more")
        self.told.append(epoch)

    def keep(self, epoch, figures, checkpoints):
        self.told.append("files")

    def end(self, finished):
        self.told.append(finished)


def moody(folder):
    run = trainer(folder)
    tracker = Moody(run)
    run.callbacks.append(tracker)
    return run, tracker


def test_what_a_tracker_raises_is_one_warning_and_the_next_fit_tells_it_the_rest(tmp_path):
    run, tracker = moody(tmp_path)
    tracker.bad = (2, 3)
    words = "json is told no more of this fit: ConnectionError: the network is gone$"
    with pytest.warns(UserWarning, match=words) as warned:
        assert run.fit()[-1].epoch == 3
    assert len(warned) == 1
    assert tracker.told == [0, 1]
    assert json.loads((tmp_path / "json.json").read_text()) == {"run": "one", "epoch": 1}
    run, tracker = moody(tmp_path)
    run.fit()
    assert tracker.told == [2, 3, "files", True]


def test_a_server_that_does_not_answer_is_a_warning(nothing_said, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.warns(UserWarning, match="mlflow is told no more of this fit: MlflowException"):
        assert trainer(tmp_path / "run", "mlflow").fit()[-1].epoch == 3
    assert not (tmp_path / "run" / "mlflow.json").exists()


def test_one_process_at_a_time_makes_the_file_of_mlflow(nothing_said, stores, tmp_path, monkeypatch):
    import mlflow
    from filelock import FileLock, Timeout

    path, make = stores / "mlflow.db", mlflow.MlflowClient

    def alone(*arguments, **options):
        with pytest.raises(Timeout):
            FileLock(f"{path}.lock", timeout=0.0).acquire()
        return make(*arguments, **options)

    monkeypatch.setattr(mlflow, "MlflowClient", alone)
    trainer(tmp_path / "run", "mlflow").fit()
    assert (tmp_path / "run" / "mlflow.json").exists()
    FileLock(f"{path}.lock", timeout=0.0).acquire().lock.release()


def tables(path):
    with closing(sqlite3.connect(path)) as database:
        return {name for (name,) in database.execute("SELECT name FROM sqlite_master")} if path.exists() else set()


def made_by(monkeypatch, meanwhile=lambda: None):
    """MLflow makes its file, of two tables; between them `meanwhile` happens."""
    import mlflow

    def make(tracking_uri=None):
        if tracking_uri is None:
            raise ConnectionError("it is made")
        with closing(sqlite3.connect(tracking_uri.removeprefix("sqlite:///"))) as database:
            database.execute("CREATE TABLE first (a)")
            meanwhile()
            database.execute("CREATE TABLE second (a)")

    monkeypatch.setattr(mlflow, "MlflowClient", make)


@pytest.mark.parametrize("there", [False, True])  # an empty file, as one that was stopped earlier may have left
def test_ctrl_c_while_mlflow_makes_its_file_leaves_none_that_is_half_made(
    nothing_said, tmp_path, monkeypatch, capsys, there
):
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    path = tmp_path / "mlflow.db"
    if there:
        path.touch()

    def stop():
        raise KeyboardInterrupt

    made_by(monkeypatch, stop)
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "run", "mlflow").fit()
    assert tables(path) == set()
    assert "MLflow makes mlflow.db, once" in capsys.readouterr().err
    made_by(monkeypatch)
    with pytest.warns(UserWarning, match="it is made"):
        trainer(tmp_path / "run", "mlflow").fit()
    assert tables(path) == {"first", "second"}


def test_a_file_of_mlflow_that_another_process_makes_meanwhile_is_left_as_it_is(nothing_said, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    path = tmp_path / "mlflow.db"

    def theirs():
        with closing(sqlite3.connect(path)) as database:
            database.execute("CREATE TABLE theirs (a)")

    made_by(monkeypatch, theirs)
    with pytest.warns(UserWarning, match="it is made"):
        trainer(tmp_path / "run", "mlflow").fit()
    assert tables(path) == {"theirs"}


def test_a_file_that_mlflow_cannot_use_is_named_as_the_one_to_delete(nothing_said, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    (tmp_path / "mlflow.db").write_text("half of a database" * 100)
    words = r"mlflow\.db cannot be used \(.*not a database.*\)\. If MLflow was stopped while .* delete it"
    with pytest.warns(UserWarning, match=words):
        assert trainer(tmp_path / "run", "mlflow").fit()[-1].epoch == 3


def test_a_tracker_that_had_not_begun_is_told_nothing_of_the_end(tmp_path):
    class Late(Moody):
        def begin(self, identity, config):
            raise KeyboardInterrupt

    run = trainer(tmp_path)
    run.callbacks += [Late(run), tracker := Moody(run)]
    with pytest.raises(KeyboardInterrupt):
        run.fit()
    assert not hasattr(tracker, "told")


@pytest.mark.parametrize("said", ['{"run": "../another", "epoch": 1}', '{"run": "one"}', "[]", "{"])
def test_a_damaged_or_hostile_note_of_the_trackers_run_is_a_warning(tmp_path, said):
    trainer(tmp_path).fit()
    (tmp_path / "json.json").write_text(said)
    run, tracker = moody(tmp_path)
    with pytest.warns(UserWarning, match=r"json is told no more of this fit: .*json\.json"):
        run.fit()
    assert not hasattr(tracker, "told")


def test_nothing_is_written_through_a_link_in_the_folder(nothing_said, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    trainer(tmp_path / "run").fit()
    (tmp_path / "run" / "wandb").symlink_to(tmp_path / "elsewhere")
    with pytest.warns(UserWarning, match="wandb is a link to another place"):
        trainer(tmp_path / "run", "wandb").fit()
    assert not list((tmp_path / "elsewhere").iterdir())


# Before a run


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("found", [None, types.ModuleType("a folder of that name")])
def test_a_package_that_is_not_installed_is_named_with_its_extra_before_the_run(
    tmp_path, monkeypatch, capsys, name, found
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, name, found)
    assert main(["train", "--env", "DiffIntegrator-v0", "--out", "run", "--record", name]) == 1
    words = f"record='{name}' needs the package {name}: pip install 'stable-bptt[{name}]'"
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_tracker_needs_a_run_folder():
    with pytest.raises(ValueError, match="record='wandb' writes into a run folder"):
        trainer(None, "wandb")


def test_wandb_is_offline_until_somebody_logs_in(nothing_said, tmp_path, monkeypatch):
    settings = types.SimpleNamespace(mode="online", api_key=None, base_url="https://wandb.example.org")
    assert not _configured(settings)
    (tmp_path / ".netrc").write_text("machine github.com login me password secret\n")
    assert not _configured(settings)
    (tmp_path / ".netrc").write_text("machine wandb.example.org login user password secret\n")
    assert _configured(settings)
    (tmp_path / ".netrc").unlink()
    assert _configured(types.SimpleNamespace(mode="disabled", api_key=None, base_url=""))
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert _configured(settings)
