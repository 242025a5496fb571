"""Controllers to share: what is loaded acts bit for bit as what was saved; a stranger's folder is safe to load."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import huggingface_hub
import numpy as np
import pytest
import safetensors.torch
import torch
from gymnasium.error import DependencyNotInstalled
from torch import nn

from bptt_envs import make_env
from bptt_envs.systems import CartPole
from bptt_trainers import (
    GRU,
    LSTM,
    MLP,
    Controller,
    ConvNet,
    Gaussian,
    RunFolderError,
    default_controller,
    load_pretrained,
    pretrained_env,
)
from bptt_trainers.controllers.normalized import Normalized

ROOT = Path(__file__).parents[2]
SHAPES = (4,), (1,)
CONTROLLERS = {
    "MLP": lambda: MLP(*SHAPES, (8,), squash=(-1.0, 0.3)),
    "MLP in float64": lambda: MLP(*SHAPES, (8,), squash=(-1.0, 0.3)).double(),
    "MLP without a bias": lambda: MLP(*SHAPES, (8,), bias=False),
    "ConvNet": lambda: ConvNet((9, 2), (1,), (3, 2)),
    "GRU": lambda: GRU(*SHAPES, (5, 4)),
    "LSTM": lambda: LSTM(*SHAPES, (5,), squash=(-1, 1)),
    "Gaussian": lambda: Gaussian(*SHAPES, (8,), deviation="state", initial_deviation=0.3),
    "Gaussian of a GRU": lambda: Gaussian(*SHAPES, network="gru", squash=[[-1.0], [2.0]]),
    "Normalized": lambda: Normalized(*SHAPES, (8,), kind="Gaussian", deviation="state"),
}


@pytest.fixture
def model(tmp_path):
    torch.manual_seed(0)
    folder = tmp_path / "model"
    default_controller(CartPole(), hidden=(4,)).save_pretrained(folder, gym.make("DiffCartPole-v0", max_force=50.0))
    return folder


def rewrite(folder, change):
    """Change what config.json says, as somebody who knows the format would."""
    path = folder / "config.json"
    description = json.loads(path.read_text())
    change(description)
    path.write_text(json.dumps(description))


def put_weights(folder, data):
    (folder / "model.safetensors").write_bytes(data)
    rewrite(folder, lambda d: d["weights"].update(sha256=hashlib.sha256(data).hexdigest()))


def acts(controller):
    """What a controller does with and without noise, over three steps."""
    generator, state, actions = np.random.default_rng(0), None, []
    for deterministic in (True, False, True):
        torch.manual_seed(1)
        observation = generator.normal(size=(5, *controller.observation_shape))
        action, state = controller.predict(observation, state, deterministic=deterministic)
        actions.append(action)
    return np.stack(actions)


# What comes back


@pytest.mark.parametrize("name", CONTROLLERS)
def test_what_is_loaded_acts_bit_for_bit_as_what_was_saved(name, tmp_path):
    torch.manual_seed(0)
    controller = CONTROLLERS[name]()
    if isinstance(controller, Normalized):
        controller.normalizer.gather(3.0 + torch.randn(64, 4))
    controller.save_pretrained(tmp_path / "model")
    loaded = load_pretrained(str(tmp_path / "model"))
    assert type(loaded) is type(controller)
    assert loaded.settings == controller.settings
    assert loaded.state_dict().keys() == controller.state_dict().keys()
    for key, tensor in controller.state_dict().items():
        assert loaded.state_dict()[key].dtype == tensor.dtype
        assert torch.equal(loaded.state_dict()[key], tensor)
    assert np.array_equal(acts(loaded), acts(controller))
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in controller.parameters()]


def test_it_is_loaded_by_a_process_that_has_only_what_a_wheel_holds(model, tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    for package in ("envs/bptt_envs", "trainers/bptt_trainers"):
        (site / Path(package).name).symlink_to(ROOT / package)
    code = (
        "import sys, importlib.util\n"
        f"sys.path.insert(0, {str(site)!r})\n"
        "import torch, bptt_trainers\n"
        "from bptt_trainers import load_pretrained, pretrained_env\n"
        f"assert bptt_trainers.__file__.startswith({str(site)!r})\n"
        f"controller, env = load_pretrained('model'), pretrained_env('model')\n"
        "print(controller.predict(env.reset(seed=0)[0])[0].item().hex(), env.system.max_action)\n"
        "assert 'bptt_studies' not in sys.modules\n"
    )
    hidden = {"PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, env=os.environ | hidden, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    controller, env = load_pretrained(model), pretrained_env(model)
    assert done.stdout.split() == [controller.predict(env.reset(seed=0)[0])[0].item().hex(), "50.0"]


def test_the_folder_says_which_environment_its_controller_is_for(model):
    env = pretrained_env(model)
    assert (env.spec.id, env.system.max_action, env.system.horizon) == ("DiffCartPole-v0", 50.0, 100)
    assert pretrained_env(model, horizon=7, max_force=None).system.horizon == 7
    with pytest.raises(ValueError, match="horizon must be an integer"):
        pretrained_env(model, horizon=0)


def test_a_folder_without_an_environment_says_so(tmp_path):
    MLP(*SHAPES, (4,)).save_pretrained(tmp_path / "model")
    with pytest.raises(RunFolderError, match="does not say which environment"):
        pretrained_env(tmp_path / "model")


def test_the_card_is_one_that_the_hub_reads(model):
    card = huggingface_hub.ModelCard.load(model / "README.md")
    assert card.data.library_name == "stable-bptt"
    assert {"DiffCartPole-v0", "reinforcement-learning"} <= set(card.data.tags)
    assert "max_force=50.0" in card.text
    assert "load_pretrained" in card.text


# What is not saved


def test_a_controller_of_ones_own_is_refused_in_words(tmp_path):
    class Mine(MLP):
        pass

    with pytest.raises(ValueError, match="a Mine is code of your own"):
        Mine(*SHAPES).save_pretrained(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("env", "said"),
    [
        (lambda: CartPole(), "env must be made by a registered id"),
        (lambda: make_env("DiffMultiPole-v0"), "its observation_shape is \\(6,\\), not \\(4,\\)"),
        (lambda: make_env("DiffCartPole-v0", final_cost=lambda s: s[:, 0]), "options that a file can hold"),
    ],
)
def test_an_environment_that_no_file_can_name_is_refused_in_words(env, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        MLP(*SHAPES, (4,)).save_pretrained(tmp_path / "model", env())
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_empty_is_left_alone(model):
    before = {path: path.read_bytes() for path in model.iterdir()}
    with pytest.raises(RunFolderError, match="is there and not empty"):
        MLP(*SHAPES, (4,)).save_pretrained(model)
    assert {path: path.read_bytes() for path in model.iterdir()} == before


def test_without_safetensors_an_error_names_the_extra(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    for use in (lambda: load_pretrained(model), lambda: MLP(*SHAPES).save_pretrained(tmp_path / "other")):
        with pytest.raises(DependencyNotInstalled, match=r"stable-bptt\[models\]"):
            use()


# The hub


class LocalHub:
    """What is used of `HfApi`, with folders in the place of repositories."""

    def __init__(self, place):
        self.place, self.made = place, []

    def __call__(self, token=None):
        self.token = token
        return self

    def create_repo(self, repo_id, *, private, exist_ok):
        self.made.append((repo_id, private, exist_ok))
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        shutil.copytree(folder_path, self.place / repo_id)


def test_what_is_pushed_to_the_hub_is_what_is_saved(model, tmp_path, monkeypatch):
    hub = LocalHub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", hub)
    controller = load_pretrained(model)
    address = controller.push_to_hub("someone/pole", pretrained_env(model), private=True, token="secret")
    assert address == "https://huggingface.co/someone/pole"
    assert (hub.made, hub.token) == ([("someone/pole", True, True)], "secret")
    there = tmp_path / "hub" / "someone" / "pole"
    assert {path.name: path.read_bytes() for path in there.iterdir()} == {
        path.name: path.read_bytes() for path in model.iterdir()
    }


def test_without_huggingface_hub_an_error_names_the_extra(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(DependencyNotInstalled, match=r"stable-bptt\[models\]"):
        load_pretrained(model).push_to_hub("someone/pole")


# A stranger's folder


class Loud:
    def __reduce__(self):
        return (pytest.fail, ("it was run",))


def weights(change):
    def apply(folder):
        tensors = safetensors.torch.load_file(folder / "model.safetensors")
        change(tensors)
        put_weights(folder, safetensors.torch.save(tensors))

    return apply


def config(change):
    return lambda folder: rewrite(folder, change)


def pickled(folder):
    torch.save({"layers.0.weight": Loud()}, folder / "pickle")
    put_weights(folder, (folder / "pickle").read_bytes())


FIRST = "layers.0.weight"
HOSTILE = {
    "weights of a wrong shape": (weights(lambda t: t.update({FIRST: torch.zeros(4, 5)})), "damaged or of another"),
    "a missing tensor": (weights(lambda t: t.pop(FIRST)), "damaged or of another"),
    "one tensor too many": (weights(lambda t: t.update(more=torch.zeros(1))), "damaged or of another"),
    "weights that are no numbers": (weights(lambda t: t.update({FIRST: torch.zeros(4, 4).bool()})), "damaged or of"),
    "weights cut short": (lambda f: put_weights(f, (f / "model.safetensors").read_bytes()[:-8]), "no safetensors file"),
    "a header that never ends": (lambda f: put_weights(f, b"\xff" * 64), "no safetensors file"),
    "a pickle": (pickled, "no safetensors file"),
    "other weights": (lambda f: (f / "model.safetensors").write_bytes(b"other"), "not the file that config.json"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "it has no model.safetensors"),
    "no description": (lambda f: (f / "config.json").unlink(), "it has no config.json"),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), "cannot read"),
    "a run's description": (lambda f: (f / "config.json").write_text('{"learner": "BPTT"}'), "made into one by bptt"),
    "a list": (lambda f: (f / "config.json").write_text("[]"), "not of a stable-bptt controller"),
    "an unknown architecture": (config(lambda d: d["controller"].update(type="Transformer")), "'Transformer', none of"),
    "code in the place of a name": (config(lambda d: d["controller"].update(type="os.system")), "none of MLP"),
    "a list in the place of a name": (config(lambda d: d["controller"].update(type=["MLP"])), "damaged or of another"),
    "a newer format": (config(lambda d: d.update(format_version=2)), "of format 2, of which this version"),
    "a format of no number": (config(lambda d: d.update(format_version="1")), "format_version is '1'"),
    "settings of another": (config(lambda d: d["controller"]["settings"].update(kernel=3)), "damaged or of another"),
    "widths of another": (config(lambda d: d["controller"]["settings"].update(hidden=[5])), "not of the same shapes"),
    "widths without end": (config(lambda d: d["controller"]["settings"].update(hidden=[4] * 2000)), "hidden layers is"),
    "a shape of no size": (config(lambda d: d["controller"].update(observation_shape=[0])), "observation_shape must"),
    "a shape without end": (config(lambda d: d["controller"].update(observation_shape=[2**60])), "observation_shape"),
    "no controller": (config(lambda d: d.pop("controller")), "damaged or of another"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_strangers_folder_is_an_error_in_words_and_runs_no_code(name, model):
    spoil, said = HOSTILE[name]
    spoil(model)
    with pytest.raises(RunFolderError, match=said):
        load_pretrained(model)


@pytest.mark.parametrize(
    "stored",
    [
        {"id": "DiffNone-v0", "options": {}},
        {"id": "CartPole-v1", "options": {}},
        {"id": "DiffCartPole-v0", "options": {"horizon": 2**40}},
        {"id": "DiffCartPole-v0", "options": {"system": "os:system"}},
        {"id": "DiffCartPole-v0", "options": 3},
        {"id": "DiffCartPole-v0"},
        {"id": ["DiffCartPole-v0"], "options": {}},
        {"options": {}},
        "DiffCartPole-v0",
    ],
)
def test_an_environment_of_a_strangers_is_an_error_in_words(stored, model):
    rewrite(model, lambda d: d.update(environment=stored))
    with pytest.raises(RunFolderError):
        pretrained_env(model)


@pytest.mark.parametrize("folder", [3, None, b"model", ""])
def test_a_folder_of_another_kind_is_refused_in_words(folder):
    for use in (load_pretrained, pretrained_env, MLP(*SHAPES, (4,)).save_pretrained):
        with pytest.raises(ValueError, match="folder must be a path"):
            use(folder)


def test_any_module_can_have_what_a_controller_has_but_not_be_saved_as_one(tmp_path):
    class Own(Controller):
        def __init__(self):
            super().__init__(*SHAPES)
            self.layer = nn.Linear(4, 1)

    with pytest.raises(ValueError, match="code of your own"):
        Own().save_pretrained(tmp_path / "model")
