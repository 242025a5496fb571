"""A stranger's folder is safe to open: it runs no code, writes nothing elsewhere, never hangs; errors are in words."""

import contextlib
import json
import math
import os
import pickle
import random
import re
import resource
import shutil
import socket
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bptt_envs.systems import Integrator
from bptt_trainers import NonFiniteError, RunFolder, RunFolderError, TrainConfig, Trainer
from bptt_trainers.analysis.diagnostics import read_diagnostics
from bptt_trainers.analysis.run_fields import FieldsConfig, RunFields
from bptt_trainers.records.curve import read_curve
from bptt_trainers.records.files import TEXT_LIMIT, read_bytes, read_json, read_text
from bptt_trainers.rl.sb3 import RLConfig, load_rl, train_rl

LONG = bool(os.environ.get("BPTT_TEST_LONG"))
TINY = TrainConfig(
    epochs=2, batch_size=4, train_states=8, test_states=4, hidden=(4,), record=("tensorboard",), keep_every=1
)


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    import gymnasium as gym

    folder = tmp_path_factory.mktemp("honest") / "run"
    Trainer(gym.make("DiffIntegrator-v0"), None, replace(TINY, out=folder)).fit()
    return folder


@pytest.fixture
def run(honest, tmp_path):
    return Path(shutil.copytree(honest, tmp_path / "run"))


@pytest.fixture(autouse=True)
def limited():
    """What would take a lot of memory fails instead."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 3 * 2**30, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def use(run, *, expected=True):
    """Everything that a folder is opened for; return the errors, which must be in words."""
    folder, errors = RunFolder(run), []

    def resume():
        config = folder.train_config(epochs=4)
        env = folder.make_env()
        begun = folder.load("last") is not None
        controller = folder.load_controller(env.system, "last")[0] if begun else None
        if config.train_states * config.batch_size > 10**6 or math.prod(config.hidden or (1,)) > 10**6:
            raise RunFolderError("honest, but large")
        Trainer(env, controller, replace(config, epochs=min(config.epochs, 4))).fit()

    for step in (
        folder.read_config,
        folder.kept,
        lambda: folder.load_controller(folder.make_env().system, "best"),
        lambda: read_curve(run / "metrics.csv"),
        resume,
    ):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of numbers that are not finite
                step()
        except (RunFolderError, NonFiniteError) as error:
            errors.append(str(error))
    assert all(len(error) < 3000 for error in errors)
    assert errors or not expected
    return errors


# Not a plain file


def fifo(path):
    os.mkfifo(path)


def unix_socket(path):
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(path.name)
    os.chdir(here)


def sparse(path):
    with path.open("wb") as file:
        file.truncate(2**40)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (fifo, "a FIFO, not a plain file"),
        (Path.mkdir, "a folder, not a plain file|Is a directory"),
        (lambda path: path.symlink_to("/dev/zero"), "a device, not a plain file"),
        (unix_socket, "cannot read .*: No such device|socket"),
        (lambda path: path.symlink_to(path.name), "Too many levels of symbolic links"),
        (sparse, "larger than|damaged"),
    ],
)
@pytest.mark.parametrize("name", ["config.json", "metrics.csv", "last.pt", "best.pt"])
def test_what_is_no_plain_file_is_refused_in_words(run, name, kind, said):
    (run / name).unlink()
    kind(run / name)
    assert any(re.search(said, error) and name in error for error in use(run))


def test_limits_hold_for_what_is_read(tmp_path):
    sparse(tmp_path / "big")
    for read in (read_json, read_text):
        with pytest.raises(RunFolderError, match=f"larger than the {TEXT_LIMIT:,} bytes"):
            read(tmp_path / "big")
    fifo(tmp_path / "fifo")
    with pytest.raises(RunFolderError, match="a FIFO"):
        read_diagnostics(tmp_path / "fifo")
    with pytest.raises(FileNotFoundError):
        read_bytes(tmp_path / "none")


# Links to somebody else's files


def planted(name):
    def plant(run, victim):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(victim / "file")

    return pytest.param(plant, id=name)


def hard_metrics(run, victim):
    os.link(run / "metrics.csv", victim / "metrics.csv")


@pytest.mark.parametrize(
    "plant",
    [
        *(planted(f".{name}.part") for name in ("config.json", "metrics.csv", "last.pt", "best.pt")),
        *(planted(name) for name in (".trajectories.png.part", ".learning_curve.png.part")),
        *(planted(name) for name in ("trajectories.png", "learning_curve.png", "diagnostics.csv", "diagnostics.npz")),
        *(planted(name) for name in ("checkpoints/epoch_000003.pt", "checkpoints/.epoch_000003.pt.part")),
        *(planted(name) for name in ("events.out.tfevents.1.stable-bptt", "checkpoints/.x.0123456789abcdef.part")),
        hard_metrics,
    ],
)
def test_training_writes_nothing_outside_the_folder(run, tmp_path, plant):
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("mine")
    plant(run, victim)
    before = {path.name: path.read_bytes() for path in victim.iterdir()}
    readable = not (run / "diagnostics.npz").is_symlink()
    config = RunFolder(run).train_config(epochs=3, record=("pictures", "diagnostics")[: 1 + readable])
    Trainer(RunFolder(run).make_env(), None, config).fit()
    assert {path.name: path.read_bytes() for path in victim.iterdir()} == before
    assert RunFolder(run).load("last")["epoch"] == 3


@pytest.mark.parametrize("name", ["metrics.csv", "last.pt", "config.json"])
def test_a_link_to_a_file_is_replaced_and_the_file_stays(run, tmp_path, name):
    (run / name).rename(tmp_path / name)
    (run / name).symlink_to(tmp_path / name)
    before = (tmp_path / name).read_bytes()
    Trainer(RunFolder(run).make_env(), None, RunFolder(run).train_config(epochs=3)).fit()
    assert (tmp_path / name).read_bytes() == before
    assert not (run / name).is_symlink()


def test_nothing_is_written_through_a_folder_that_is_a_link(run, tmp_path):
    (run / "checkpoints").rename(tmp_path / "victim")
    (run / "checkpoints").symlink_to(tmp_path / "victim")
    before = sorted(path.name for path in (tmp_path / "victim").iterdir())
    with pytest.raises(RunFolderError, match="checkpoints is a link to another place"):
        Trainer(RunFolder(run).make_env(), None, RunFolder(run).train_config(epochs=3)).fit()
    assert sorted(path.name for path in (tmp_path / "victim").iterdir()) == before
    (run / "fields").symlink_to(tmp_path / "victim")
    fields = RunFields(RunFolder(run), FieldsConfig(size=2, states=1, checkpoints=1))
    with pytest.raises(RunFolderError, match="fields is a link to another place"):
        fields.compute(run / "fields" / "path")


# config.json

WRONG = [None, True, -1, 0, 0.5, 10**12, 10**400, math.nan, math.inf, "", "x" * 9, [], [1], [[1]], {}, {"a": 1}]


def leaves(tree, path=()):
    if isinstance(tree, dict):
        for name, one in tree.items():
            yield (*path, name)
            yield from leaves(one, (*path, name))


def test_a_wrong_value_at_any_place_of_the_config_is_an_error_in_words_or_no_matter(honest, tmp_path):
    config = json.loads((honest / "config.json").read_text())
    cases = [(path, value) for path in leaves(config) if path[0] != "versions" for value in [*WRONG, KeyError]]
    random.Random(0).shuffle(cases)
    for i, (path, value) in enumerate(cases if LONG else cases[:12]):
        run = Path(shutil.copytree(honest, tmp_path / str(i)))
        edited = json.loads((honest / "config.json").read_text())
        part = edited
        for name in path[:-1]:
            part = part[name]
        if value is KeyError:
            del part[path[-1]]
        else:
            part[path[-1]] = value
        (run / "config.json").write_text(json.dumps(edited))
        use(run, expected=False)
        shutil.rmtree(run)


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "null", "3", "NaN", '"x"', "[" * 10**6, '{"a":' * 10**5, "1" * 10**5, "\0", "\ud800"),
        '{"environment": 1, "controller": 2, "training": 3}',
        '{"environment": {}, "controller": {}, "training": {}}',
        '{"environment": [], "controller": [], "training": []}',
    ],
)
def test_a_config_of_another_form_is_an_error_in_words(run, text):
    (run / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    assert use(run)


@pytest.mark.parametrize(
    "hidden",
    [
        *([10**12], [10**6, 10**6], [200_000, 200_000], [1] * 10**5, [10**400]),
        *([0], [-1], [1.5], ["a"], "ab", {"a": 1}),
    ],
)
def test_a_controller_of_any_size_is_refused_before_its_memory_is_taken(run, hidden):
    config = json.loads((run / "config.json").read_text())
    config["controller"]["settings"]["hidden"] = hidden
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(RunFolderError, match=r"cannot use .*config\.json"):
        RunFolder(run).load_controller(Integrator())


@pytest.mark.parametrize(
    ("env", "options"),
    [
        ("DiffMultiPole-v0", {"n_poles": 10**9}),
        ("DiffGuidance-v0", {"n_evaders": 10**6}),
        ("DiffQuantumControl-v0", {"n_points": 10**8}),
        ("DiffIntegrator-v0", {"horizon": 10**15}),
        ("DiffIntegrator-v0", {"horizon": [1]}),
        ("DiffIntegrator-v0", {"horizon": {"a": 1}}),
        ("DiffIntegrator-v0", {"target": "x"}),
        ("DiffIntegrator-v0", {"render_mode": "human"}),
        ("DiffIntegrator-v0", {"system": "os:system"}),
        ("DiffIntegrator-v0", {"dt": 10**400}),
        ("DiffLQR-v0", {"A": [[[[1.0]]]]}),
        ("DiffLQR-v0", {"A": [[1.0], [1.0, 2.0]]}),
        ("DiffLQR-v0", {"A": "x"}),
        (["DiffLQR-v0"], {}),
        ({}, {}),
        ("os:system", {}),
        ("DiffIntegrator-v0", ["horizon"]),
        ("DiffIntegrator-v0", "horizon"),
    ],
)
def test_options_of_any_kind_are_an_error_in_words(run, env, options):
    config = json.loads((run / "config.json").read_text())
    config["environment"] |= {"id": env, "options": options}
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(RunFolderError):
        RunFolder(run).make_env()


# Checkpoints


def go_on(run):
    RunFolder(run).load_controller(Integrator(), "last")
    Trainer(RunFolder(run).make_env(), None, RunFolder(run).train_config(epochs=3)).fit()


class Harmful:
    def __reduce__(self):
        return (os.mkdir, ("harm",))


def expanded(shape):
    return torch.zeros(1).expand(shape)


def test_a_checkpoint_of_another_form_is_an_error_in_words_and_runs_no_code(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    honest = torch.load(run / "last.pt")
    weights = honest["controller"]
    first, needed = next(iter(weights)), honest.keys() - {"config", "trained"}  # which earlier versions did not say
    bad = [
        *(None, 3, [], {}, "x", torch.zeros(3), Harmful(), {"epoch": 2}),
        *(honest | {"epoch": value} for value in (None, -1, 1.5, "2", math.nan, torch.tensor(2), 10**30, True)),
        *(honest | {"train_loss": value} for value in (None, "x", [1.0], torch.zeros(1))),
        *(honest | {"controller": value} for value in (None, {}, [], {"a": 1}, {1: torch.zeros(1)}, Harmful())),
        *(
            honest | {"controller": {**weights, first: value}}
            for value in (
                *(None, 1.0, "x", torch.zeros(3, 3), torch.zeros(4, 1, dtype=torch.complex64), torch.zeros(4, 1).int()),
                *(expanded((10**10, 1)), torch.zeros(4, 1).to_sparse(), torch.zeros(4, 1, device="meta"), Harmful()),
            )
        ),
        *({name: one for name, one in honest.items() if name != left} for left in needed),
        *(honest | {"config": value} for value in (3, "x", "[]", '{"training": 3}', "[" * 10**5)),
        *(honest | {"optimizer": value} for value in (None, {}, 3, {"steps": "x"})),
        *(honest | {"rng_state": value} for value in (None, torch.zeros(3), torch.zeros(3, dtype=torch.uint8))),
    ]
    for one in bad:
        torch.save(one, run / "last.pt")
        with pytest.raises(RunFolderError):
            go_on(run)
    for data in (b"", b"PK", b"PK\3\4" + b"x" * 999, pickle.dumps(Harmful()), os.urandom(1000)):
        (run / "last.pt").write_bytes(data)
        with pytest.raises(RunFolderError, match="damaged"):
            RunFolder(run).load("last")
    assert not (tmp_path / "harm").exists()


def test_a_checkpoint_that_would_unpack_to_more_than_it_is_is_refused(run, tmp_path):
    with zipfile.ZipFile(run / "last.pt") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(run / "last.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data + b"\0" * (10**8 if name.endswith("data/0") else 0))
    with pytest.raises(RunFolderError, match="damaged"):
        RunFolder(run).load("last")


# Metrics


def test_any_damage_of_the_metrics_is_an_error_in_words_or_no_matter(run):
    whole = (run / "metrics.csv").read_bytes()
    config, numbers = json.loads((run / "config.json").read_text()), random.Random(0)
    for _ in range(300 if LONG else 60):
        damaged = bytearray(whole)
        for _ in range(numbers.randint(1, 5)):
            damaged[numbers.randrange(len(damaged))] = numbers.choice(b'0,\n"x-.\0\xff\r')
        (run / "metrics.csv").write_bytes(damaged)
        with contextlib.suppress(RunFolderError):
            RunFolder(run).check(config)
        with contextlib.suppress(RunFolderError):
            read_curve(run / "metrics.csv")


# Reinforcement learning


def test_a_folder_of_reinforcement_learning_is_safe_too(tmp_path):
    small = {"num_envs": 2, "n_steps": 8, "batch_size": 8, "n_epochs": 1}
    config = RLConfig(env="DiffIntegrator-v0", steps=16, evaluations=1, test_states=2, overrides=small, record=())
    run = tmp_path / "run"
    expected = train_rl(config, run, progress=False).controller
    found = load_rl(run).controller
    rows = RunFolder(run).rewind_metrics(9)
    first = (rows[0].train_loss, rows[0].test_loss)
    observation = np.ones((1, 2), np.float32)
    assert found.predict(observation)[0] == expected.predict(observation)[0]
    stored, policy = json.loads((run / "config.json").read_text()), torch.load(run / "last.pt")
    names = ("method", "env", "env_options", "steps", "seed", "evaluations", "test_states", "overrides")
    for change in [{name: value} for name in names for value in (None, "x", [1], {"a": 1}, {"hidden": [10**9]})]:
        (run / "config.json").write_text(json.dumps(stored | change))
        with contextlib.suppress(RunFolderError):  # or it does not matter for what is loaded
            assert load_rl(run).controller.predict(observation)[0] == expected.predict(observation)[0]
    (run / "config.json").write_text(json.dumps(stored))
    acts = policy["controller"]
    others = [acts | {"mean": mean} for mean in (None, torch.zeros(9))] + [None, {}, acts | {"policy": {}}]
    for one in (None, {}, {"controller": {}}, *(policy | {"controller": other} for other in others)):
        torch.save(one, run / "last.pt")
        with pytest.raises(RunFolderError):
            load_rl(run)
    learner = policy["learner"]
    worse = [None, {}, *({name: one for name, one in learner.items() if name != left} for left in ("env", "counts"))]
    worse += [learner | {"counts": {}}, learner | {"arrays": dict.fromkeys(learner["arrays"])}]
    for one in worse:  # what goes on from it says so
        torch.save(
            policy | {"learner": one, "epoch": 0, "train_loss": first[0], "test_loss": first[1]}, run / "last.pt"
        )
        with pytest.raises(RunFolderError, match=r"last\.pt"):
            train_rl(config, run, progress=False)
    for name in ("config.json", "last.pt", "metrics.csv"):
        torch.save(policy, run / "last.pt")
        (run / name).rename(tmp_path / name)
        os.mkfifo(run / name)
        with pytest.raises(RunFolderError, match="a FIFO"):
            load_rl(run)
        (run / name).unlink()
        (tmp_path / name).rename(run / name)
