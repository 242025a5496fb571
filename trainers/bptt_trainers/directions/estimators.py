"""Estimators of the gradient of the expected loss of a stochastic controller; docs/estimators.md has the equations.

The action is drawn from a normal distribution with parameters zeta_t, its mean and the logarithm of its deviation (see
`sampled.py`). Every estimator is the recursion of rule R with something else in the place of v_t, the slope of the
loss by zeta_t of one episode:

    pathwise            v_t = dL/dzeta_t with the noise held, what rule R takes
    likelihood_ratio    v_t = (G_t - b_t) d log p(u_t; zeta_t) / dzeta_t, G_t the cost from step t on
    total_propagation   v_t = k_t (likelihood ratio) + (1 - k_t) (pathwise), by inverse variance (arXiv 1902.01240)
    alpha_order         alpha (direction by pathwise) + (1 - alpha) (by likelihood ratio)   (arXiv 2202.00817)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from bptt_envs import System, checks
from bptt_trainers.directions.chosen_engine import ChosenEngine, EngineName
from bptt_trainers.directions.controller_tape import NotServedError
from bptt_trainers.directions.parameter_hooks import after_hooks, hooked
from bptt_trainers.directions.recursion import Mix
from bptt_trainers.directions.rollout import Trajectory
from bptt_trainers.directions.rules import REGULAR, Directions, Feedback
from bptt_trainers.directions.sampled import Distribution, SampledSystem, gives_distribution
from bptt_trainers.directions.stacked import StackedEngine
from bptt_trainers.directions.surroundings import computing

EstimatorName = Literal["pathwise", "likelihood_ratio", "total_propagation", "alpha_order"]
ESTIMATORS = get_args(EstimatorName)

MEMORY_ONLY = Feedback(physics=False, controller=False, memory=True)
"""The paths of a likelihood ratio, which states are given to: those through what a controller remembers."""

CONFIDENCE = 0.95
"""With which the likelihood ratio is as near to the gradient as the bound on the bias takes it to be."""


def likelihood_ratio(system: SampledSystem, trajectory: Trajectory, scale: float, groups: int = 1) -> Tensor:
    """Slopes by the distribution of each action from the costs alone, (T, B, 2 m), for the mean loss.

    The baseline of an episode at a step is the mean cost from there on of the other episodes, which depends on none of
    its noise, so that it leaves the mean as it is. Of a reward for entropy, the slope with the action held is added.

    Args:
        system: of the trajectory.
        trajectory: B episodes, with distributions as actions.
        scale: one over the episodes of the mean loss.
        groups: the batch holds so many equal parts, one after the other, of at least two episodes, which know nothing
            of each other.
    """
    states, actions = trajectory.states, trajectory.actions
    steps, batch = actions.shape[:2]
    before = states[:-1].flatten(0, 1)
    costs = system.running_cost(before, actions.flatten(0, 1), states[1:].flatten(0, 1)).view(steps, batch)
    to_go = costs.flip(0).cumsum(0).flip(0) + system.final_cost(states[-1])
    parts, size = to_go.unflatten(1, (groups, -1)), batch // groups
    advantage = (parts - parts.mean(2, keepdim=True)).flatten(1) * (size / (size - 1))  # less the mean of the others
    _, log_deviation, noise, _ = system.parts(states[:-1], actions)
    score = torch.cat([noise * (-log_deviation).exp(), noise.square() - 1.0], dim=-1)
    slopes = advantage.unsqueeze(-1) * score
    if system.entropy:
        slopes[..., system.system.action_size :] -= system.entropy / system.horizon
    over = system.episode_over(before)
    if over is not None:
        slopes = slopes.masked_fill(over.view(steps, batch, 1), 0.0)
    scaled: Tensor = scale * slopes
    return scaled


def replaced(system: SampledSystem, trajectory: Trajectory, scale: float, groups: int = 1) -> Mix:
    """The likelihood ratio in the place of every slope."""
    by_ratio = likelihood_ratio(system, trajectory, scale, groups)

    def taken(step: int, slopes: Tensor) -> Tensor:
        memory = slopes[..., by_ratio.shape[-1] :]
        return torch.cat([by_ratio[step].expand(len(slopes), -1, -1), memory], dim=-1)

    return Mix(taken, looks=False)


def propagated(system: SampledSystem, trajectory: Trajectory, scale: float, groups: int = 1) -> Mix:
    """Total propagation: at each step the two kinds of slopes, weighed by the inverse of their variances.

    The variances are those over the episodes of a group, each slope in a unit in which the Fisher information of its
    parameter is 1: that by the mean times the deviation, that by the log deviation over the root of 2.
    """
    by_ratio = likelihood_ratio(system, trajectory, scale, groups)
    _, log_deviation, _, _ = system.parts(trajectory.states[:-1], trajectory.actions)
    units = torch.cat([log_deviation.exp(), torch.full_like(log_deviation, math.sqrt(0.5))], dim=-1)

    def taken(step: int, slopes: Tensor) -> Tensor:
        pathwise, memory = slopes.split_with_sizes([units.shape[-1], slopes.shape[-1] - units.shape[-1]], dim=-1)
        ratio = by_ratio[step].expand_as(pathwise)
        scattered = [variance((one * units[step]).unflatten(1, (groups, -1))) for one in (pathwise, ratio)]
        share = share_of_ratio(*scattered).repeat_interleave(pathwise.shape[1] // groups, dim=1).unsqueeze(-1)
        return torch.cat([mixture(share, ratio, pathwise), memory], dim=-1)

    return Mix(taken)


def variance(slopes: Tensor) -> Tensor:
    """The sum over components of the variance over samples, (..., B, m) -> (...), in float64."""
    return slopes.double().var(dim=-2).sum(-1)


def share_of_ratio(pathwise: Tensor, ratio: Tensor) -> Tensor:
    """The weight k of the likelihood ratio by inverse variance; 1 where the pathwise variance is not finite.

    Where both are 0, 0: the pathwise slopes are exact.
    """
    share = (pathwise / (pathwise + ratio)).masked_fill((pathwise == 0.0) & (ratio == 0.0), 0.0)
    return share.masked_fill(~pathwise.isfinite(), 1.0)


def mixture(share: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Share times one + (1 - share) times the other; at 0 and 1 exactly that, whatever the other is."""
    share = share.to(one.dtype)
    mixed = torch.where(share < 1.0, other + share * (one - other), one)
    return torch.where(share > 0.0, mixed, other)


def alpha_of(pathwise: Tensor, ratio: Tensor, bias_bound: float | None = None) -> Tensor:
    """The weight alpha of the pathwise direction in the alpha-order estimator, () (arXiv 2202.00817).

    It minimises alpha^2 s1^2 + (1 - alpha)^2 s0^2, with s1^2 and s0^2 the empirical variances, subject to
    eps + alpha |pathwise - ratio| <= bias_bound, with eps the distance of the mean likelihood ratio from the gradient
    that is not exceeded with `CONFIDENCE`, by Chebyshev's inequality: s0 / sqrt(B (1 - CONFIDENCE)). Where eps alone
    exceeds the bound, alpha is 0.

    Args:
        pathwise: the direction of each episode, (B, n).
        ratio: likewise.
        bias_bound: gamma, in the unit of the direction's norm; None: no bound, inverse variance alone.
    """
    first, zeroth = variance(pathwise), variance(ratio)
    alpha = 1.0 - share_of_ratio(first, zeroth)
    if bias_bound is not None:
        eps = (zeroth / (len(ratio) * (1.0 - CONFIDENCE))).sqrt()
        gap = (pathwise.double().mean(0) - ratio.double().mean(0)).norm()
        allowed = ((bias_bound - eps) / gap).clamp_min(0.0)
        alpha = torch.where(alpha * gap <= bias_bound - eps, alpha, torch.minimum(alpha, allowed))
    return alpha


class EstimatorEngine:
    """Computes the loss and the direction of a stochastic controller by an estimator, by the fastest engine there is.

    Args:
        system: the physics.
        controller: one that gives its distribution, as a `Gaussian` does.
        estimator: a name of `ESTIMATORS`, but "pathwise", which is rule R.
        engine: as in `policy_gradient`.
        entropy: likewise.
        bias_bound: see `alpha_of`; for "alpha_order".

    Raises:
        ValueError: if the controller gives no distribution, a name is unknown, or the bound is not above 0.
    """

    def __init__(
        self,
        system: System,
        controller: nn.Module,
        estimator: EstimatorName,
        engine: EngineName = "auto",
        entropy: float = 0.0,
        bias_bound: float | None = None,
    ) -> None:
        if not gives_distribution(controller):
            raise ValueError(
                f"estimator {estimator!r} is for stochastic controllers that give the distribution of their actions, "
                f'as a Gaussian does (deviation="constant" or "state"); got a {type(controller).__name__}.'
            )
        self.system = SampledSystem(system, cast(Any, controller), entropy)
        self.estimator = checks.one_of("estimator", estimator, ESTIMATORS)
        self.bias_bound = None if bias_bound is None else checks.positive("bias_bound", bias_bound)
        self.chosen = ChosenEngine(self.system, Distribution(controller), engine, entropy=entropy)

    @property
    def name(self) -> str:
        """That of the engine in use."""
        return self.chosen.name

    @property
    def reason(self) -> str:
        """Why that engine."""
        return self.chosen.reason

    def __call__(
        self, initial_states: Tensor, *, noise: Tensor | None = None, look: bool | None = None
    ) -> tuple[Tensor, Directions]:
        """The loss of each episode, (B,), and the direction for their mean.

        Args:
            initial_states: (B, *state_shape), at least two.
            noise: that of all steps, (T, B, *noise_shape); None: zeros, of which no estimator can make anything.
            look: as that of `ChosenEngine`.

        Raises:
            ValueError: if there are fewer than two episodes, or no noise.
        """
        batch = len(initial_states)
        if batch < 2:
            raise ValueError(f"estimator {self.estimator!r} needs a batch of at least 2 episodes; got {batch}.")
        if noise is None:
            raise ValueError(f"estimator {self.estimator!r} needs the noise of the actions, see draw_noise; got None.")
        if self.estimator == "alpha_order":
            losses, by_name = self._by_alpha(initial_states, noise, look)
        else:
            losses, by_name = self._mixed(initial_states, noise, look)
        return losses, {name.removeprefix(PREFIX): one for name, one in by_name.items()}

    def _mixed(self, states: Tensor, noise: Tensor, look: bool | None) -> tuple[Tensor, Directions]:
        make, feedback = KINDS[self.estimator]
        mixing = partial(make, self.system, scale=1.0 / len(states))
        losses, passes = self.chosen(states, (feedback,), noise=noise, look=look, mixing=mixing)
        return losses, passes[feedback]

    def _by_alpha(self, states: Tensor, noise: Tensor, look: bool | None) -> tuple[Tensor, Directions]:
        losses, pathwise, ratio = self.by_episode(states, noise, look)
        with computing(states):
            one, other = (torch.cat([part.flatten(1) for part in found.values()], 1) for found in (pathwise, ratio))
            alpha = alpha_of(one, other, self.bias_bound)
            return losses, {name: mixture(alpha, pathwise[name].mean(0), ratio[name].mean(0)) for name in pathwise}

    def by_episode(
        self, states: Tensor, noise: Tensor, look: bool | None = None
    ) -> tuple[Tensor, Directions, Directions]:
        """The loss of each episode, (B,), and what each says, pathwise and by likelihood ratio, (B, *shape) by name.

        The means over the episodes are the directions. Of the likelihood ratio they have each other for baselines.

        Args:
            states: (B, *state_shape).
            noise: (T, B, *noise_shape).
            look: as that of `ChosenEngine`.
        """
        self.chosen.choose(states)
        engine = self.chosen.stacked()
        if engine is not None:
            try:
                return self._by_members(engine, states, noise, look)
            except NotServedError as error:
                self.chosen.step_aside(str(error))
        losses, pathwise = self._by_definition(REGULAR, None, states, noise)
        return losses, pathwise, self._by_definition(MEMORY_ONLY, replaced, states, noise)[1]

    def _by_members(
        self, engine: StackedEngine, states: Tensor, noise: Tensor, look: bool | None
    ) -> tuple[Tensor, Directions, Directions]:
        """Each episode is one of a member of its own, all of which have the same parameters."""
        parameters = {name: one for name, one in self.chosen.controller.named_parameters() if one.requires_grad}
        members = {name: one.detach().expand(len(states), *one.shape) for name, one in parameters.items()}
        with computing(states):
            losses, passes = engine(
                members,
                states.unsqueeze(1),
                (REGULAR, MEMORY_ONLY),
                noise=noise.unsqueeze(2),
                look=look,
                mixing=partial(_second_replaced, self.system),
            )
        if hooked(self.chosen.controller):
            for by_name in passes.values():
                rows = [
                    after_hooks({name: one[i] for name, one in by_name.items()}, parameters) for i in range(len(states))
                ]
                by_name |= {name: torch.stack([row[name] for row in rows]) for name in by_name}
        return losses.squeeze(1), passes[REGULAR], passes[MEMORY_ONLY]

    def _by_definition(
        self, feedback: Feedback, make: Callable[..., Mix] | None, states: Tensor, noise: Tensor
    ) -> tuple[Tensor, Directions]:
        """A backward pass for each episode, in which the slopes of the others are 0."""
        batch = len(states)
        rows: list[Directions] = []
        for episode in range(batch):
            mixing = partial(_only, episode, None if make is None else partial(make, self.system, scale=1.0 / batch))
            losses, passes = self.chosen(states, (feedback,), noise=noise, mixing=mixing)
            rows.append({name: batch * one for name, one in passes[feedback].items()})
        return losses, {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def _second_replaced(system: SampledSystem, trajectory: Trajectory) -> Mix:
    """Of two passes, the first as it is and the second by the likelihood ratio, episode by episode."""
    mix = replaced(system, trajectory, scale=1.0)
    return Mix(lambda step, slopes: torch.cat([slopes[:1], mix.taken(step, slopes[1:])]))


def _only(episode: int, make: Callable[[Trajectory], Mix] | None, trajectory: Trajectory) -> Mix:
    """The slopes of one episode, 0 in the place of the others'."""
    mix = None if make is None else make(trajectory)

    def kept(step: int, slopes: Tensor) -> Tensor:
        slopes = slopes if mix is None else mix.taken(step, slopes)
        chosen = torch.arange(slopes.shape[1], device=slopes.device) == episode
        return torch.where(chosen.view(1, -1, 1), slopes, 0.0)

    return Mix(kept)


PREFIX = "controller."
"""Of the names of a controller's parameters within a `Distribution`."""

KINDS: dict[str, tuple[Callable[..., Mix], Feedback]] = {
    "likelihood_ratio": (replaced, MEMORY_ONLY),
    "total_propagation": (propagated, REGULAR),
}
"""What goes step by step: what is put in the place of the slopes, and the paths of the backward pass."""
