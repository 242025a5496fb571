"""Constructors say what may be meant by an argument that they do not have."""

import copy
import inspect
import pickle
from dataclasses import replace

import pytest
import torch

from bptt_envs.arguments import KnownArguments
from bptt_envs.function_system import FunctionSystem
from bptt_envs.systems import CartPole, Integrator
from bptt_trainers import SHACConfig, TrainConfig, Trainer


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TrainConfig(lr=0.1), "TrainConfig has no argument 'lr'. Did you mean 'learning_rate'"),
        (lambda: SHACConfig(n_epochs=3), "SHACConfig has no argument 'n_epochs'. Did you mean 'epochs'"),
        (lambda: replace(TrainConfig(), Epochs=3), "TrainConfig has no argument 'Epochs'. Did you mean 'epochs'"),
        (lambda: Trainer(Integrator(), rule="C"), r"'rule'. It is a setting: Trainer\(env, config=TrainConfig\(rule="),
        (lambda: Trainer(Integrator(), window=8), r"'window'. It is a setting: Trainer\(env, config=SHACConfig"),
        (lambda: Trainer(Integrator(), lr=0.1), "'lr'. Did you mean 'learning_rate'. Settings go into config"),
        (lambda: Trainer(Integrator(), callback=[]), "'callback'. Did you mean 'callbacks'"),
        (lambda: CartPole(max_forse=3.0), "CartPole has no argument 'max_forse'. Did you mean 'max_force'"),
        (lambda: Integrator(zzzz=3.0), "Integrator has no argument 'zzzz'. Its arguments: .*horizon"),
        (lambda: FunctionSystem(horizn=3), "FunctionSystem has no argument 'horizn'. Did you mean 'horizon'"),
    ],
)
def test_an_argument_that_there_is_none_of_is_answered_by_what_may_be_meant(make, words):
    with pytest.raises(TypeError, match=words):
        make()


def test_a_class_given_as_the_optimizers_name_is_told_where_classes_go():
    with pytest.raises(ValueError, match=r"optimizer must be 'adam' or the name .* goes to Trainer\(env, optimizer="):
        TrainConfig(optimizer=torch.optim.AdamW)


def test_a_constructor_that_takes_any_argument_is_given_any():
    class Open(KnownArguments):
        def __init__(self, **given):
            self.given = given

    assert Open(lr=1).given == {"lr": 1}


def test_what_is_known_is_copied_and_kept_as_ever():
    config = TrainConfig(epochs=3)
    assert pickle.loads(pickle.dumps(config)) == copy.copy(config) == config
    assert "epochs" in inspect.signature(TrainConfig).parameters
