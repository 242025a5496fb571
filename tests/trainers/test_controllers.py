"""The controllers that settings name."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from bptt_envs.systems import CartPole, QuantumControl
from bptt_trainers import MLP, ConvNet, RunFolder, RunFolderError, TrainConfig, Trainer, default_controller

TINY = TrainConfig(epochs=1, batch_size=4, train_states=8, test_states=6, hidden=(5, 4), tensorboard=False)


def equivalent(controller):
    """The same network of nn.Conv1d layers."""
    layers = []
    for linear in controller.convolutions:
        channels = linear.in_features // 3
        layer = nn.Conv1d(channels, linear.out_features, 3, stride=2)
        layer.weight = nn.Parameter(linear.weight.detach().view(-1, channels, 3))
        layer.bias = nn.Parameter(linear.bias.detach())
        layers += [layer, nn.Tanh()]
    return nn.Sequential(*layers, nn.Flatten(), controller.head).double()


@pytest.mark.parametrize("length", [7, 8, 32, 33])
def test_a_conv_net_is_the_network_of_conv1d_layers_with_its_slopes(length):
    generator = torch.Generator().manual_seed(0)
    controller = ConvNet((length, 2), (1,), generator=generator).double()
    for bias in (linear.bias for linear in [*controller.convolutions, controller.head]):
        nn.init.normal_(bias, generator=generator)
    x = torch.randn(5, length, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    expected = equivalent(controller)(x.mT)
    torch.testing.assert_close(controller(x), expected, rtol=1e-12, atol=1e-12)
    (slope,) = torch.autograd.grad(controller(x).square().sum(), x)
    (defined,) = torch.autograd.grad(expected.square().sum(), x)
    torch.testing.assert_close(slope, defined, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(controller, (x,))


def test_the_papers_network_has_its_sizes_and_glorot_weights():
    controller = default_controller(QuantumControl())
    assert isinstance(controller, ConvNet)
    shapes = [tuple(p.shape) for p in controller.parameters()]
    assert shapes == [(60, 6), (60,), (60, 180), (60,), (1, 420), (1,)]
    fans = [(3 * 2, 3 * 60), (3 * 60, 3 * 60), (420, 1)]  # a convolution's fans count its kernel
    for linear, fan in zip([*controller.convolutions, controller.head], fans, strict=True):
        bound = (6 / sum(fan)) ** 0.5
        assert 0.9 * bound < float(linear.weight.detach().abs().max()) <= bound
        assert not linear.bias.any()


def test_each_system_has_its_own_default_and_any_kind_can_be_asked_for():
    assert type(default_controller(CartPole())) is MLP
    assert type(default_controller(QuantumControl())) is ConvNet
    assert type(default_controller(QuantumControl(), kind="mlp")) is MLP
    assert default_controller(QuantumControl(), hidden=(3,)).hidden == (3,)
    assert default_controller(QuantumControl(), kind="mlp").hidden == (100, 100)


@pytest.mark.parametrize("controller", ["default", "mlp"])
def test_a_run_folder_rebuilds_the_controller_of_its_run(tmp_path, controller):
    system = QuantumControl(n_points=8, horizon=3)
    trainer = Trainer(system, config=replace(TINY, out=tmp_path, controller=controller, hidden=(5,)))
    trainer.fit()
    loaded, _ = RunFolder(tmp_path).load_controller(system, "last")
    assert type(loaded) is type(trainer.controller)
    states = system.initial_states(4, torch.Generator().manual_seed(0))
    torch.testing.assert_close(loaded(states), trainer.controller(states))
    other = {"default": "mlp", "mlp": "default"}[controller]
    with pytest.raises(RunFolderError, match=r"controller\.type"):
        Trainer(system, config=replace(TINY, out=tmp_path, controller=other, hidden=(5,))).fit()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: default_controller(CartPole(), kind="conv"), r"observation_shape must be \(length, channels\)"),
        (lambda: ConvNet((6, 2), (1,)), "hidden must name fewer convolutions: 2 of kernel 3 .* length 6"),
        (lambda: default_controller(CartPole(), kind="cnn"), "controller must be one of 'default', 'mlp', 'conv'"),
        (lambda: TrainConfig(controller="lstm"), "controller must be one of 'default', 'mlp', 'conv'"),
    ],
)
def test_what_does_not_fit_is_said_in_words(make, message):
    with pytest.raises(ValueError, match=message):
        make()
