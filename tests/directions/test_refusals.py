"""What cannot be trained is refused in words that name the parameter or the argument, whichever door is used."""

import pytest
import torch
from torch import nn

from bptt_envs.systems import CartPole
from bptt_trainers import Callback, Ensemble, TrainConfig, Trainer, policy_gradient, rollout

SHORT = TrainConfig(epochs=2, train_states=8, test_states=4)


class Gain(nn.Module):
    """A controller of two parameters without dimension."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.k = nn.Parameter(torch.tensor(10.0, dtype=dtype))
        self.d = nn.Parameter(torch.tensor(1.0, dtype=dtype))

    def forward(self, x):
        u = self.k * x[:, 2:3] + self.d * x[:, 3:4]
        return u.real if u.is_complex() else u


class Double(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def forward(self, x):
        return self.layer(x).double()


def made_in_inference_mode():
    with torch.inference_mode():
        return nn.Linear(4, 1)


def frozen():
    return nn.Linear(4, 1).requires_grad_(False)


REFUSED = {
    "lazy": (lambda: nn.LazyLinear(1), "its parameter weight is not made yet: run the lazy module once"),
    "complex": (lambda: Gain(torch.complex64), "its parameter k is torch.complex64: hold a complex parameter as two"),
    "inference": (made_in_inference_mode, "its parameter weight was made in torch.inference_mode"),
    "float64 actions": (Double, "must give actions in torch.float32, as the states are; got torch.float64"),
    "frozen": (frozen, "has no parameter that requires a gradient|none has requires_grad"),
}

DOORS = {
    "policy_gradient": lambda system, make: policy_gradient(system, make(), torch.zeros(3, 4)),
    "policy_gradient by autograd": lambda system, make: policy_gradient(
        system, make(), torch.zeros(3, 4), "R", "autograd"
    ),
    "Trainer": lambda system, make: Trainer(system, make(), SHORT),
    "Ensemble": lambda system, make: Ensemble(system, [SHORT], (), [make()]),
}


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_trained(make, message, door):
    with pytest.raises(ValueError, match=message):
        door(CartPole(horizon=3), make)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused_before_training(dtype):
    with pytest.raises(ValueError, match=f"a parameter weight of {dtype}; train in float32 or float64"):
        Trainer(CartPole(horizon=3), nn.Linear(4, 1, dtype=dtype), SHORT)


def test_actions_of_another_dtype_are_refused_in_rollouts():
    with pytest.raises(ValueError, match=r"must give actions in torch.float32, .*got torch.int64"):
        rollout(CartPole(horizon=3), lambda x: torch.zeros(len(x), 1, dtype=torch.int64), torch.zeros(2, 4))


def trained_alone(engine):
    controller = Gain()
    config = TrainConfig(epochs=2, train_states=8, test_states=4, engine=engine)
    Trainer(CartPole(horizon=3), controller, config).fit()
    return controller


def trained_together():
    configs = [TrainConfig(epochs=2, train_states=8, test_states=4, seed=seed) for seed in (0, 1)]
    controllers = [Gain(), Gain()]
    Ensemble(CartPole(horizon=3), configs, (), controllers).fit()
    return controllers[0]


@pytest.mark.parametrize(
    "train",
    [lambda: trained_alone("auto"), lambda: trained_alone("autograd"), trained_together],
    ids=["adjoint", "autograd", "ensemble"],
)
def test_parameters_without_dimension_are_trained(train):
    controller = train()
    assert controller.k.shape == ()
    assert controller.k.detach() != 10.0


def test_another_dtype_midway_is_refused():
    class ToDouble(Callback):
        def on_epoch_end(self, trainer, metrics):
            trainer.controller.double()

    with pytest.raises(ValueError, match=r"is trained in torch.float32 on cpu; its parameters are torch.float64"):
        Trainer(CartPole(horizon=3), Gain(), SHORT, [ToDouble()]).fit()


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_hooks_of_all_modules_count():
    system = CartPole(horizon=3)
    torch.manual_seed(0)
    controller, states = nn.Linear(4, 1), torch.zeros(3, 4)
    assert policy_gradient(system, controller, states, "R").engine == "adjoint"
    handle = torch.nn.modules.module.register_module_full_backward_hook(lambda *_: None)
    try:
        with pytest.warns(UserWarning, match="all modules have a backward hook"):
            assert policy_gradient(system, controller, states, "R").engine == "autograd"
    finally:
        handle.remove()
    assert policy_gradient(system, controller, states, "R").engine == "adjoint"
