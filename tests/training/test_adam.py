"""The optimizer is Adam, and goes on from what it saved."""

import math

import pytest
import torch
from torch import nn

from bptt_trainers.training.adam import Adam
from bptt_trainers.training.config import TrainConfig
from bptt_trainers.training.optimizer import Optimizer


def parameters():
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(3, 4, dtype=torch.float64).t())  # not contiguous
    return [
        weight,
        nn.Parameter(torch.randn(3, dtype=torch.float64)),
        nn.Parameter(torch.randn((), dtype=torch.float64)),
    ]


def directions(count):
    generator = torch.Generator().manual_seed(1)
    return [10.0 ** (3 - i) * torch.randn(16, generator=generator, dtype=torch.float64) for i in range(count)]


def descend(optimizer, own, steps):
    for direction in steps:
        if isinstance(optimizer, Adam):
            optimizer.step(direction)
        else:
            for parameter, part in zip(own, direction.split([p.numel() for p in own]), strict=True):
                parameter.grad = part.view(parameter.shape)
            optimizer.step()


BETAS = [(0.9, 0.999), (0.5, 0.9), (0.0, 0.0)]


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("betas", BETAS)
def test_it_steps_as_that_of_torch_does(betas, amsgrad):
    own, others = parameters(), parameters()
    descend(Adam(own, 0.1, 1e-7, betas, amsgrad), own, directions(8))
    descend(torch.optim.Adam(others, lr=0.1, eps=1e-7, betas=betas, amsgrad=amsgrad), others, directions(8))
    for first, second in zip(own, others, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-13, atol=1e-14)
        assert first.grad is None


@pytest.mark.parametrize("amsgrad", [False, True])
def test_with_weight_decay_it_steps_as_adamw_of_torch_does(amsgrad):
    own, others, plain = parameters(), parameters(), parameters()
    descend(Adam(own, 0.1, 1e-7, amsgrad=amsgrad, weight_decay=0.3), own, directions(8))
    descend(torch.optim.AdamW(others, lr=0.1, eps=1e-7, amsgrad=amsgrad, weight_decay=0.3), others, directions(8))
    descend(Adam(plain, 0.1, 1e-7, amsgrad=amsgrad), plain, directions(8))
    for first, second, third in zip(own, others, plain, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-13, atol=1e-14)
        assert not torch.allclose(first, third, rtol=1e-2)


def test_amsgrad_differs_from_adam_once_directions_shrink():
    plain, largest = parameters(), parameters()
    descend(Adam(plain, 0.1, 1e-7, (0.9, 0.9)), plain, directions(8))
    descend(Adam(largest, 0.1, 1e-7, (0.9, 0.9), True), largest, directions(8))
    assert not torch.allclose(plain[0], largest[0], rtol=1e-2)


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("done", [0, 3])
def test_it_goes_on_from_what_it_or_torchs_saved(done, amsgrad):
    betas = (0.9, 0.9)
    whole = parameters()
    descend(Adam(whole, 0.1, 1e-7, betas, amsgrad), whole, directions(8))
    for make in (Adam, torch.optim.Adam):
        parts = parameters()
        first = make(parts, 0.1, betas=betas, amsgrad=amsgrad, **{"epsilon" if make is Adam else "eps": 1e-7})
        descend(first, parts, directions(8)[:done])
        before = [parameter.detach().clone() for parameter in parts]
        second = Adam(parts, 0.1, 1e-7, betas, amsgrad)
        descend(second, parts, directions(1))  # what it knew before does not matter
        with torch.no_grad():
            for parameter, value in zip(parts, before, strict=True):
                parameter.copy_(value)
        second.load_state_dict(first.state_dict())
        descend(second, parts, directions(8)[done:])
        for one, other in zip(parts, whole, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-14)


def test_a_saved_state_does_not_change_as_training_goes_on():
    own = parameters()
    adam = Adam(own, 0.1, 1e-7)
    descend(adam, own, directions(1))
    saved = adam.state_dict()
    before = saved["state"][0]["exp_avg"].clone()
    descend(adam, own, directions(2))
    assert torch.equal(saved["state"][0]["exp_avg"], before)
    adam.load_state_dict(saved)
    descend(adam, own, directions(1))
    assert torch.equal(saved["state"][0]["exp_avg"], before)


# Parameters with histories of their own


def trained_with_torch(steps, begin, freed):
    """torch.optim.Adam on parameters of which the last is added at step `begin` and the first taken out at `freed`."""
    own = parameters()
    adam = torch.optim.Adam(own[:2], lr=0.1, eps=1e-7, amsgrad=True)
    for i, direction in enumerate(steps):
        if i == begin:
            adam.add_param_group({"params": [own[2]]})
        parts = direction.split([p.numel() for p in own])
        for j, (parameter, part) in enumerate(zip(own, parts, strict=True)):
            skipped = (j == 2 and i < begin) or (j == 0 and i >= freed)
            parameter.grad = None if skipped else part.view(parameter.shape)
        adam.step()
    return own


def optimizer(named, **settings):
    return Optimizer(named, TrainConfig(learning_rate=0.1, adam_epsilon=1e-7, **settings), updates=100)


def trained_by_following(steps, begin, freed, resume_at=None):
    own = dict(zip("abc", parameters(), strict=True))
    followed = optimizer({name: own[name] for name in "ab"}, amsgrad=True)
    for i, direction in enumerate(steps):
        names = [name for name in "abc" if not ((name == "c" and i < begin) or (name == "a" and i >= freed))]
        followed.follow({name: own[name] for name in names})
        if i == resume_at:
            state = followed.state_dict()
            assert state["trained"] == names
            followed = optimizer({name: own[name] for name in reversed(names)}, amsgrad=True)
            followed.load_state_dict(state)
            followed.follow({name: own[name] for name in names})
        parts = dict(zip("abc", direction.split([p.numel() for p in own.values()]), strict=True))
        some = torch.cat([parts[name] for name in names])
        followed.step(i, some, float(some.norm()))
    return list(own.values())


@pytest.mark.parametrize("resume_at", [None, 2, 5])
def test_a_parameter_that_comes_later_has_moments_and_steps_of_its_own(resume_at):
    steps = directions(8)
    wanted = trained_with_torch(steps, begin=3, freed=6)
    for one, other in zip(trained_by_following(steps, 3, 6, resume_at), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-14)


def test_following_the_same_parameters_changes_no_bit():
    plain, followed = parameters(), parameters()
    first, second = (optimizer(dict(zip("abc", own, strict=True)), average=0.5) for own in (plain, followed))
    for i, direction in enumerate(directions(6)):
        for one in (first, second):
            with one.training():
                one.step(i, direction, float(direction.norm()))
        second.follow(dict(zip("cab", [followed[2], *followed[:2]], strict=True)))  # in another order and back
        second.follow(dict(zip("abc", followed, strict=True)))
    for one, other in zip(plain, followed, strict=True):
        assert torch.equal(one, other)


def test_another_parameter_of_the_same_name_and_shape_goes_on_and_one_of_another_shape_starts():
    own = {"a": nn.Parameter(torch.ones(2)), "b": nn.Parameter(torch.ones(2))}
    adam = optimizer(own)
    adam.step(0, torch.ones(4), 2.0)
    moved = {"a": nn.Parameter(torch.zeros(2)), "b": nn.Parameter(torch.zeros(3))}
    adam.follow(moved)
    state = adam.state_dict()["optimizer"]["state"]
    assert list(state) == [0]
    torch.testing.assert_close(state[0]["exp_avg"], torch.full((2,), 0.1))
    with torch.no_grad():
        moved["a"].data = torch.zeros(5)  # the same object
    adam.follow(moved)
    assert adam.state_dict()["optimizer"]["state"] == {}
    adam.step(1, torch.ones(8), 8**0.5)
    torch.testing.assert_close(moved["a"].detach(), torch.full((5,), -0.1))


@pytest.mark.parametrize("inside", [True, False])
def test_the_average_of_a_new_parameter_starts_where_it_is(inside):
    own = {"a": nn.Parameter(torch.zeros(1)), "b": nn.Parameter(torch.full((1,), 7.0))}
    adam = optimizer({"a": own["a"]}, average=0.9)
    one = torch.ones(1)
    with adam.training():
        adam.step(0, one, 1.0)
        adam.step(1, one, 1.0)
        if inside:
            adam.follow(own)
    before = own["a"].detach().clone()
    adam.follow(own)
    assert own["b"].item() == 7.0
    assert torch.equal(own["a"], before)
    with adam.training():
        assert own["a"].item() == pytest.approx(-0.2)
        adam.step(2, torch.ones(2), 2**0.5)
        trained = {name: parameter.item() for name, parameter in own.items()}
    assert own["b"].item() == pytest.approx(trained["b"])  # the mean over one step
    shares = torch.tensor([0.81, 0.9, 1.0])
    assert own["a"].item() == pytest.approx(float(shares @ torch.tensor([-0.1, -0.2, -0.3]) / shares.sum()))


def test_weights_assigned_between_epochs_are_trained_on_with_an_average_too():
    weight = nn.Parameter(torch.zeros(2))
    adam = optimizer({"a": weight}, average=0.9)
    with adam.training():
        for i in range(3):
            adam.step(i, torch.ones(2), 2**0.5)
    with torch.no_grad():
        weight[0] = 5.0
    with adam.training():
        torch.testing.assert_close(weight.detach(), torch.tensor([5.0, -0.3]))


def test_a_state_without_names_is_taken_in_order():
    first, second = (dict(zip("abc", parameters(), strict=True)) for _ in range(2))
    old = optimizer(first)
    old.step(0, directions(1)[0], 1.0)
    state = old.state_dict()
    del state["trained"]  # as checkpoints before had it
    new = optimizer(second)
    new.load_state_dict(state)
    for i, wanted in old.state_dict()["optimizer"]["state"].items():
        for name, value in new.state_dict()["optimizer"]["state"][i].items():
            assert torch.equal(value, wanted[name])


# Numbers that overflow


@pytest.mark.parametrize("size", [1e18, 5e20, 7e20, 1e30, 3e38])
@pytest.mark.parametrize("clip", ["none", "value", "norm"])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_a_step_that_is_not_objected_to_leaves_moments_finite_and_one_that_is_would_not(size, clip, amsgrad):
    own = {"small": nn.Parameter(torch.zeros(3)), "large": nn.Parameter(torch.zeros(200))}
    adam = optimizer(own, clip=clip, amsgrad=amsgrad)
    direction = torch.cat([torch.ones(3), torch.full((200,), size)])
    norm = float(direction.double().norm())
    objection = adam.objection(direction, norm)
    adam.step(0, direction, norm)
    moments = [value for one in adam.state_dict()["optimizer"]["state"].values() for value in one.values()]
    assert (objection is None) == all(bool(moment.isfinite().all()) for moment in moments)
    assert (objection is None) == (clip != "none" or size < 6e20)
    if objection is None:
        assert (own["large"] < 0).all()
    else:
        assert "the direction of large is too large" in objection


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_direction_that_is_not_finite_is_objected_to_by_name(value):
    adam = optimizer({"a": nn.Parameter(torch.zeros(3)), "b": nn.Parameter(torch.zeros(2))}, clip="value")
    direction = torch.tensor([0.0, 1.0, 2.0, 0.0, value])
    assert adam.objection(direction, float(direction.norm())) == "the direction of b is not finite"


def test_moments_that_are_large_already_count():
    adam = optimizer({"a": nn.Parameter(torch.zeros(1))}, adam_betas=(0.5, 0.5))
    for i in range(20):
        assert adam.objection(torch.tensor([1.8e19]), 1.8e19) is None
        adam.step(i, torch.tensor([1.8e19]), 1.8e19)
    assert adam.objection(torch.tensor([2.5e19]), 2.5e19) is not None
    fresh = optimizer({"a": nn.Parameter(torch.zeros(1))}, adam_betas=(0.5, 0.5))
    assert fresh.objection(torch.tensor([2.5e19]), 2.5e19) is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.complex64])
def test_parameters_of_half_precision_and_complex_ones_are_refused(dtype):
    with pytest.raises(ValueError, match=r"parameter w of torch\.\w+.*train in float32 or float64"):
        optimizer({"w": nn.Parameter(torch.zeros(2, dtype=dtype))})


def test_nothing_to_train_is_refused():
    with pytest.raises(ValueError, match="no parameters to train"):
        optimizer({})
    adam = optimizer({"w": nn.Parameter(torch.zeros(2))})
    with pytest.raises(ValueError, match="no parameters to train"):
        adam.follow({})
