"""Path integrals: sampled plans, averaged by how little they cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bptt_envs import checks
from bptt_envs.settings import Count, Positive, read
from bptt_trainers.planning.problem import Problem, best_of

SMOOTH = 0.8  # correlation of the noise from step to step
LAST = 0.02  # share of the first noise that is left at the end


@dataclass(frozen=True)
class MPPI:
    """Model predictive path integral control, over the whole horizon at once; no gradients.

    Each iteration draws plans around the one it has, with noise that is correlated over time, and takes their mean with
    weights exp(-loss / temperature) (G. Williams et al., ICRA 2017); the noise falls geometrically from iteration to
    iteration. The best plan ever seen is kept.

    Args:
        iterations: so many.
        samples: plans that are drawn in each, of each episode.
        deviation: of the noise at first, as a share of half the actions' range.
        temperature: as a share of the losses' standard deviation.
    """

    iterations: Count = 100
    samples: Count = 128
    deviation: Positive = 0.5
    temperature: Positive = 0.1

    summary: ClassVar[str] = "path integrals (MPPI): sampled plans, without gradients"

    def __post_init__(self) -> None:
        read(self)

    def improve(self, problem: Problem, actions: Tensor, generator: torch.Generator) -> tuple[Tensor, int]:
        """Better actions, (T, B, *action_shape), and the iterations taken."""
        system = problem.system
        checks.in_memory(
            "samples", self.samples, problem.shape[0] * len(problem) * (system.state_size + 2 * system.action_size)
        )
        mean, best, lowest = actions, actions, problem.losses(actions[None])[0]
        low, high = (end.to(actions) for end in system.action_range)
        deviation = self.deviation * (high - low) / 2
        fall = LAST ** (1 / max(1, self.iterations - 1))
        for _ in range(self.iterations):
            noise = _smooth(torch.randn(self.samples, *problem.shape, generator=generator, dtype=actions.dtype))
            tried = problem.clamped(mean + deviation * noise.to(actions))
            tried[0] = mean
            losses = problem.losses(tried)
            finite = losses.isfinite()
            spread = torch.where(finite, losses, lowest).std(0).clamp(min=torch.finfo(losses.dtype).tiny)
            weights = torch.softmax(-(losses - losses.amin(0)) / (self.temperature * spread), dim=0)
            found, loss = best_of(tried, losses)
            better = loss < lowest
            best = torch.where(better.view(-1, *[1] * (best.dim() - 2)), found, best)
            lowest = torch.where(better, loss, lowest)
            mean = torch.einsum("kb,ktb...->tb...", weights.nan_to_num(0.0), tried)
            deviation = fall * deviation
        found, loss = best_of(torch.stack([best, mean]), problem.losses(torch.stack([best, mean])))
        return found, self.iterations


def _smooth(noise: Tensor) -> Tensor:
    """White noise, (K, T, ...), correlated over time, of the same variance."""
    steps = [noise[:, 0]]
    for white in noise.unbind(1)[1:]:
        steps.append(SMOOTH * steps[-1] + (1 - SMOOTH**2) ** 0.5 * white)
    return torch.stack(steps, dim=1)
