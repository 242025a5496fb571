"""Controllers behind a normaliser see running mean and deviation of what it was shown."""

import pytest
import torch

from bptt_envs.systems import CartPole
from bptt_trainers import MLP, default_controller
from bptt_trainers.controllers.normalized import SMALLEST, Normalized, Normalizer


def test_a_normalizer_has_mean_and_deviation_of_all_that_it_was_shown():
    samples = 3.0 + 2.0 * torch.randn(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    normalizer = Normalizer((4,)).double()
    torch.testing.assert_close(normalizer(samples), samples)
    for some in samples.split([1, 30, 19]):
        normalizer.gather(some)
    torch.testing.assert_close(normalizer.mean.data, samples.mean(0))
    torch.testing.assert_close(normalizer.deviation.data, (samples.var(0, correction=0) + SMALLEST).sqrt())
    assert int(normalizer.count) == 50
    assert not any(one.requires_grad for one in normalizer.parameters())


def test_a_normalized_controller_is_the_controller_of_normalised_observations():
    generator = torch.Generator().manual_seed(0)
    acts = Normalized((4,), (1,), (8,), generator=generator)
    acts.normalizer.gather(1.0 + torch.rand(20, 4, generator=generator))
    seen = torch.rand(3, 4, generator=generator)
    shifted = (seen - acts.normalizer.mean) / acts.normalizer.deviation
    torch.testing.assert_close(acts(seen), acts.controller(shifted))
    assert type(acts.controller) is MLP
    action, _ = acts.predict(seen.numpy())
    torch.testing.assert_close(torch.from_numpy(action), acts(seen).detach())


@pytest.mark.parametrize("deviation", ["none", "state"])
def test_its_settings_build_it_again(deviation):
    made = default_controller(CartPole(), 1, (4,), squash=True, deviation=deviation, normalize=True)
    again = Normalized((4,), (1,), **made.settings)
    again.load_state_dict(made.state_dict())
    assert again.settings == made.settings
    assert again.noise_shape == made.noise_shape == (() if deviation == "none" else (1,))
    assert again.squash is not None
    with pytest.raises(ValueError, match="kind must be one of"):
        Normalized((4,), (1,), kind="Net")
