"""The optimizer is Adam, and goes on from what it saved."""

import pytest
import torch
from torch import nn

from bptt_trainers.adam import Adam


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
