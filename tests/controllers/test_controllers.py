"""The controllers that settings name."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from bptt_envs import System
from bptt_envs.systems import CartPole, Integrator, QuantumControl
from bptt_trainers import MLP, ConvNet, Ensemble, RunFolder, RunFolderError, TrainConfig, Trainer, default_controller
from bptt_trainers.controllers.networks import Squash

TINY = TrainConfig(epochs=1, batch_size=4, train_states=8, test_states=6, hidden=(5, 4), record=("pictures",))


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
        (
            lambda: default_controller(CartPole(), kind="cnn"),
            "controller must be one of 'default', 'mlp', 'conv', 'gru'",
        ),
        (lambda: TrainConfig(controller="rnn"), "controller must be one of 'default', 'mlp', 'conv', 'gru', 'lstm'"),
    ],
)
def test_what_does_not_fit_is_said_in_words(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# Bounds by tanh


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("low", "high"), [(-0.1, 0.1), (0.1, 0.7), (-0.3, 0.7), ([-1.0, 2.0], [3.0, 2.5]), (-3, 1e6)])
def test_squash_bends_between_the_bounds_as_given_and_never_beyond(low, high, dtype):
    squash = Squash(low, high).to(dtype)
    least, most = torch.tensor(low, dtype=dtype), torch.tensor(high, dtype=dtype)
    far = (most - least).double().max() * torch.linspace(-50, 50, 201, dtype=torch.float64)
    bent = squash(far.to(dtype).unsqueeze(-1).expand(-1, 2))
    assert bent.dtype is dtype
    assert bool((bent >= least).all() and (bent <= most).all())
    rtol = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(bent[0], least.expand(2), rtol=rtol, atol=float(rtol * (most - least).max()))
    torch.testing.assert_close(bent[-1], most.expand(2), rtol=rtol, atol=float(rtol * (most - least).max()))


def test_squash_has_slope_one_in_the_middle_and_some_beyond_the_bounds():
    squash = Squash(1.0, 3.0).double()
    u = torch.tensor([2.0, 1.0, 3.0, 8.0, -4.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(squash, (u,))
    (slope,) = torch.autograd.grad(squash(u).sum(), u)
    assert slope[0] == 1.0
    assert bool((slope > 0).all())


@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_a_run_folder_rebuilds_a_bounded_controller_and_its_run_goes_on(tmp_path, kind):
    system = QuantumControl(n_points=8, horizon=3, max_control=2.0)
    config = replace(TINY, out=tmp_path, controller=kind, hidden=(5,), squash=True)
    trainer = Trainer(system, config=config)
    trainer.fit()
    loaded, _ = RunFolder(tmp_path).load_controller(system, "last")
    assert loaded.settings == trainer.controller.settings == {**loaded.settings, "squash": [[-2.0], [2.0]]}
    states = system.initial_states(4, torch.Generator().manual_seed(0))
    assert torch.equal(loaded(states), trainer.controller(states))
    assert len(Trainer(system, loaded, replace(config, epochs=2)).fit()) == 3
    with pytest.raises(RunFolderError, match=r"squash"):
        Trainer(system, config=replace(config, squash=False, epochs=2)).fit()


def test_a_controller_without_bounds_is_recorded_as_before_there_were_any(tmp_path):
    Trainer(CartPole(horizon=3), config=replace(TINY, out=tmp_path)).fit()
    said = RunFolder(tmp_path).read_config()["controller"]
    assert said["settings"] == {"hidden": [5, 4], "bias": True}
    controller = MLP((4,), (1,), (5, 4))
    assert "squash" not in vars(controller)  # of which the digest is made
    assert "squash" not in said["parts"]


def test_the_actions_of_an_odd_shape_have_bounds_each_of_its_own():
    low, high = [[-1.0, 0.0], [2.0, -5.0]], [[1.0, 4.0], [3.0, 5.0]]
    controller = MLP((3,), (2, 2), (4,), squash=(low, high))
    with torch.no_grad():
        controller.layers[-1].weight.mul_(100.0)  # far beyond
    actions = controller(torch.randn(50, 3, generator=torch.Generator().manual_seed(0)))
    assert actions.shape == (50, 2, 2)
    assert bool((actions >= torch.tensor(low)).all() and (actions <= torch.tensor(high)).all())


def test_squash_with_a_controller_of_ones_own_is_refused_unless_it_is_bounded():
    config, shapes = replace(TINY, squash=True), ((4,), (1,), (5, 4))
    with pytest.raises(ValueError, match="squash is for the controllers that TrainConfig names"):
        Trainer(CartPole(horizon=3), MLP(*shapes), config)
    Trainer(CartPole(horizon=3), MLP(*shapes, squash=(-1.0, 1.0)), config)


@pytest.mark.parametrize(
    ("squash", "said"),
    [
        (5, "must be two bounds"),
        ("ab", "must be two bounds"),
        ((1, 2, 3), "must be two bounds"),
        (("a", "b"), "numbers or one a component"),
        ((True, False), "numbers or one a component"),
        (((0, 0), (1, 1, 1)), "numbers or one a component"),
        ((2, 1), "the least below the largest"),
        ((1.0, 1.0 + 1e-12), "the least below the largest; got"),  # the same in float32
        ((-1e39, 1e39), "must be finite bounds"),
        ((-1.0, float("inf")), "must be finite bounds"),
        ((0, (1, 2, 3)), r"bounds of actions of shape \(2,\); got some of shape \(3,\)"),
    ],
)
def test_bounds_that_cannot_be_are_refused_in_words(squash, said):
    with pytest.raises(ValueError, match=f"squash must be .*{said}|squash {said}"):
        MLP((3,), (2,), squash=squash)


@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_bounded_controllers_are_served_by_every_engine_and_in_an_ensemble(kind):
    system = QuantumControl(n_points=8, horizon=3, max_control=0.5)
    config = replace(TINY, controller=kind, hidden=(5,), squash=True, learning_rate=0.1)
    last = [
        Trainer(system, config=replace(config, engine=engine)).fit()[-1].test_loss for engine in ("autograd", "adjoint")
    ]
    together = Ensemble(system, [config, replace(config, seed=1)])
    last.append(together.fit()[0][-1].test_loss)
    assert together.members[0].choice.engine.name == "adjoint"
    assert last == pytest.approx([last[0]] * 3, rel=1e-5)


def test_bounds_of_a_system_on_one_side_and_by_component_bound_the_network():
    class Pump(Integrator):
        state_shape = action_shape = (2,)

        def __init__(self):
            System.__init__(self, horizon=3, dt=0.1, action_low=torch.tensor([0.0, -1.0]), action_high=None)

        def step(self, state, action):
            return state + self.dt * action

        def state_cost(self, state):
            return state.square().sum(-1)

        def initial_states(self, batch, generator, dtype=torch.float32):
            return torch.rand(batch, 2, generator=generator, dtype=dtype)

    system = Pump()
    low, high = system.action_range
    trainer = Trainer(system, config=replace(TINY, squash=True))
    assert trainer.controller.settings["squash"] == [low.tolist(), high.tolist()]
    trainer.fit()
    with torch.no_grad():
        trainer.controller.layers[-1].weight.mul_(1e4)
        actions = trainer.controller(trainer.test_states)
    assert bool((actions >= low).all() and (actions <= high).all())
