"""What a fingerprint sees, and what it leaves alone."""

import array
import time
import types
import weakref
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from bptt_envs.fingerprint import fingerprint
from bptt_envs.systems import CartPole
from bptt_trainers import TrainConfig, Trainer


class Slots:
    __slots__ = ("gain",)

    def __init__(self):
        self.gain = 1.0


class WithDict(Slots):
    pass


class Holder(nn.Linear):
    of_the_class: ClassVar = [1.0]

    def __init__(self, held=None):
        super().__init__(4, 1)
        self.held = held


def keyword_default(x, *, k=[1.0]):  # noqa: B006, it is what is changed
    return k


def closure():
    value = [1.0]
    return lambda: value


def setter(name):
    return lambda holder: setattr(holder.held, name, 2.0)


CHANGES = {
    "slots": (Slots, setter("gain")),
    "slots beside a dict": (WithDict, setter("gain")),
    "default of a keyword": (lambda: keyword_default, lambda h: h.held.__kwdefaults__["k"].append(2.0)),
    "attribute of a function": (closure, setter("gain")),
    "closure": (closure, lambda h: h.held().append(2.0)),
    "array.array": (lambda: array.array("d", [1.0]), lambda h: h.held.append(2.0)),
    "bytearray": (bytearray, lambda h: h.held.append(2)),
    "proxy of a dict": (
        lambda: types.MappingProxyType(keyword_default.__kwdefaults__),
        lambda h: h.held["k"].append(3),
    ),
    "array": (lambda: np.zeros(3), lambda h: h.held.__setitem__(0, 1.0)),
    "range": (lambda: range(3), lambda h: setattr(h, "held", range(4))),
    "class": (lambda: None, lambda h: Holder.of_the_class.append(2.0)),
    "unregistered module": (lambda: [nn.Linear(2, 2)], lambda h: h.held[0].weight.data.add_(1.0)),
    "mode": (lambda: None, lambda h: h.eval()),
}


@pytest.mark.parametrize(("make", "change"), CHANGES.values(), ids=CHANGES)
def test_a_change_is_seen(make, change):
    holder = Holder(make())
    before = fingerprint(holder)
    assert fingerprint(holder) == before
    change(holder)
    assert fingerprint(holder) != before


def test_a_hook_in_the_place_of_a_removed_one_is_seen():
    layer = nn.Linear(4, 1)
    seen = set()
    for factor in range(10):  # the memory of the last hook is free for the next
        handle = layer.register_forward_hook(lambda _, inputs, output, factor=factor: factor * output)
        seen.add(fingerprint(layer))
        handle.remove()
    assert len(seen) == 10


def test_values_of_trained_parameters_do_not_count():
    holder = Holder([1.0])
    holder.list_too = [holder, holder.weight]
    before, alike = fingerprint(holder), fingerprint(holder, identity=False)
    holder.weight.data.add_(1.0)
    assert fingerprint(holder) == before
    assert fingerprint(holder, identity=False) == alike
    holder.weight.requires_grad_(False)
    frozen = fingerprint(holder, identity=False)
    holder.weight.data.add_(1.0)
    assert fingerprint(holder, identity=False) != frozen


def test_what_is_large_costs_little():
    holder = Holder(np.zeros((1000, 1000)))
    fingerprint(holder)
    begin = time.perf_counter()
    for _ in range(20):
        fingerprint(holder)
    assert time.perf_counter() - begin < 20 * 2e-3  # its 8 MB alone take 6 ms to read


def test_a_controller_may_refer_to_its_trainer():
    controller = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    trainer = Trainer(CartPole(horizon=3), controller, TrainConfig(epochs=20, train_states=8, test_states=4))
    controller.trainer = trainer
    trainer.fit()  # fingerprints that hold earlier ones would double with each update
    assert trainer.choice.engine.name == "adjoint"


def test_a_weak_reference_is_followed():
    other = nn.Linear(1, 1)
    holder = Holder(weakref.ref(other))
    before = fingerprint(holder)
    other.weight.data.add_(1.0)
    assert fingerprint(holder) != before


COMPILED = {
    "traced": lambda: torch.jit.trace(nn.Linear(4, 1), torch.ones(2, 4)),
    "compiled": lambda: torch.compile(nn.Linear(4, 1), backend="eager"),
}


@pytest.mark.parametrize("make", COMPILED.values(), ids=COMPILED)
@pytest.mark.filterwarnings("ignore")
def test_modules_of_torchs_compilers_have_one(make):
    module = make()
    assert fingerprint(module) == fingerprint(module)
