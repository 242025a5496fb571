"""Slopes as autograd has them against central differences, at states of an episode."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bptt_envs import System, Task

Function = Callable[..., Tensor]

MOST_COMPONENTS = 32  # of an argument or a result, up to which each is looked at by itself
DIRECTIONS = 8  # random ones, of an argument or a result that has more
ACCURACY = 1e-5  # of the largest slope of the same result: a larger difference is none of rounding
ACCURACY_OF_SINGLE = 1e-2  # the same where a function computes in float32 inside
MINUTE = 1e-9  # of the size of a component: a change that float32 does not see
SETTLED = 1e-2  # of it: where differences to both sides, or of half the size, differ by more there is a kink
TINY = 1e-300  # in the place of a 0 to divide by
ROUNDING = 64.0  # units in the last place of a result, which its differences may be off by


@dataclass(frozen=True)
class Comparison:
    """How the slopes of one function by one of its arguments compare with central differences.

    Attributes:
        method: the function, such as "step".
        argument: "state", "action" or "next_state".
        right: whether the two agree wherever they could be compared, but for rounding.
        error: the largest difference, of the largest slope of the same result, or that which is largest beyond what
            rounding explains; NaN if no point could be compared.
        points: how many there are: samples times results times directions.
        left_out: how many of them could not be compared: at a kink or a jump, where a function has no slope, or next to
            states that the system refuses.
        result: the component of the result with the largest error; None: a random mixture of all.
        component: the component of the argument with the largest error; None: a random direction.
        sample: the sample with the largest error.
        slope: autograd's slope there.
        difference: that by central differences.
        single: whether the function computes in float32 inside, or as roughly: it does not see changes that it should
            in float64. Differences are then over steps that suit float32.
    """

    method: str
    argument: str
    right: bool
    error: float
    points: int
    left_out: int
    result: int | None
    component: int | None
    sample: int
    slope: float
    difference: float
    single: bool = False

    @property
    def compared(self) -> float:
        """The share of the points that could be compared."""
        return 1.0 - self.left_out / self.points


def compare_slopes(system: System, states: Tensor, actions: Tensor) -> list[Comparison]:
    """Compare the slopes of what a system is asked along an episode with central differences.

    Of large states and results, 8 random directions and mixtures are taken rather than all components.

    Args:
        system: the physics.
        states: (N, *state_shape), float64, of episodes that go on.
        actions: (N, *action_shape), bounded.

    Returns:
        One for each function and argument; of a `Task`, by the system's part of a state.
    """
    with torch.no_grad():
        following = system.step(states, actions)
    asked: dict[str, tuple[Function, dict[str, Tensor]]] = {
        "step": (system.step, {"state": states, "action": actions}),
        "observe": (system.observe, {"state": states}),
        "running_cost": (system.running_cost, {"state": states, "action": actions, "next_state": following}),
        "final_cost": (system.final_cost, {"state": states}),
    }
    n = system.system.state_size if isinstance(system, Task) else system.state_size
    return [
        _compare(system, method, function, arguments, name, n)
        for method, (function, arguments) in asked.items()
        for name in arguments
    ]


def _compare(
    system: System, method: str, function: Function, arguments: dict[str, Tensor], name: str, n: int
) -> Comparison:
    names, values = list(arguments), list(arguments.values())
    place, argument = names.index(name), arguments[name]
    inputs = system.action_size if name == "action" else n
    with torch.no_grad():
        here = function(*values).flatten(1) if method in ("step", "observe") else function(*values).unsqueeze(1)
    outputs = n if method == "step" else here.shape[1]
    generator = torch.Generator().manual_seed(0)
    mixtures, results = _directions(outputs, here.shape[1], generator, here)
    ways, components = _directions(inputs, argument[0].numel(), generator, here)
    ways = ways * _sizes(argument)
    slopes = _slopes(function, values, place, mixtures) @ ways.mT  # (N, P, D)
    double = torch.finfo(torch.float64).eps
    found = _judged(slopes, _along(function, values, place, ways, mixtures, double ** (1 / 3)), double, ACCURACY)
    doubtful = not found.right or found.left_out > slopes.numel() / 2
    single = doubtful and _is_coarse(function, values, place, ways, mixtures, slopes)
    if single:
        rough = torch.finfo(torch.float32).eps
        far = _along(function, values, place, ways, mixtures, rough ** (1 / 3))
        found = _judged(slopes, far, rough, ACCURACY_OF_SINGLE)
    sample, row, column = found.place
    scale = 1.0 if components is None else float(ways[column].abs().sum())
    return Comparison(
        method,
        name,
        found.right,
        found.error,
        slopes.numel(),
        found.left_out,
        None if results is None else results[row],
        None if components is None else components[column],
        sample,
        float(slopes[found.place]) / scale,
        found.difference / scale,
        single,
    )


class _Judged(NamedTuple):
    """What `Comparison` says, but for the names."""

    right: bool
    error: float
    left_out: int
    place: tuple[int, int, int]  # sample, result, direction
    difference: float


def _judged(slopes: Tensor, along: tuple[Tensor, ...], epsilon: float, accuracy: float) -> _Judged:
    """Compare slopes, (N, P, D), with what `_along` gives over steps of the third root of `epsilon`."""
    below, at, above, less, more = along
    step = epsilon ** (1 / 3)
    central, finer = (above - below) / (2 * step), (more - less) / step
    forward, backward = (above - at) / step, (at - below) / step
    noise = ROUNDING * epsilon * at.abs().amax((0, 2)).clamp_min(TINY) / step
    largest = torch.maximum(slopes.nan_to_num(0.0).abs(), finer.nan_to_num(0.0).abs()).amax((0, 2))  # (P,)
    allowed = (SETTLED * largest + noise).view(1, -1, 1)
    settled = ((central - finer).abs() <= allowed) & ((forward - backward).abs() <= 2 * allowed)
    doubt = noise.view(1, -1, 1) + 4 * (central - finer).abs()
    raw = torch.where(slopes.isfinite() & settled, (slopes - finer).abs(), math.inf)
    raw, doubt = (one / largest.clamp_min(TINY).view(1, -1, 1) for one in (raw, doubt))
    excess = torch.where(settled, raw - doubt, -math.inf)
    right = not bool((excess > accuracy).any())
    ranked = torch.where(settled, raw, -math.inf) if right else excess
    worst = int(ranked.argmax())
    sample, row, column = (int(i) for i in torch.unravel_index(torch.tensor(worst), ranked.shape))
    return _Judged(
        right,
        float(raw.flatten()[worst]) if bool(settled.any()) else math.nan,
        int((~settled).sum()),
        (sample, row, column),
        float(finer.flatten()[worst]),
    )


def _is_coarse(
    function: Function, values: Sequence[Tensor], place: int, ways: Tensor, mixtures: Tensor, slopes: Tensor
) -> bool:
    """Whether a function does not see minute changes of an argument as it sees larger ones, where it has a slope.

    One that computes in float32 stays the same over most of them, or but for a part of it.
    """
    _, at, _, less, more = _along(function, values, place, ways, mixtures, 2 * MINUTE)
    minute = (more - less) / (2 * MINUTE)
    step = torch.finfo(torch.float64).eps ** (1 / 3)
    _, _, _, less, more = _along(function, values, place, ways, mixtures, step)
    noise = ROUNDING * torch.finfo(torch.float64).eps * at.abs() / MINUTE
    counted = slopes.abs() > 1e-3 * slopes.abs().amax((0, 2), keepdim=True)
    coarse = ((more - less) / step - minute).abs() > SETTLED / 10 * slopes.abs() + noise
    return bool(counted.any()) and float(coarse[counted].double().mean()) > 0.5


def _directions(
    count: int, width: int, generator: torch.Generator, like: Tensor
) -> tuple[Tensor, Sequence[int] | None]:
    """Unit vectors of the first `count` of `width` components, or random ones, (D, width), and which ones."""
    if count <= MOST_COMPONENTS:
        return torch.eye(count, width, dtype=like.dtype, device=like.device), range(count)
    random = torch.randn(DIRECTIONS, count, generator=generator, dtype=like.dtype).to(like.device)
    random = random / count**0.5
    return torch.nn.functional.pad(random, (0, width - count)), None


def _sizes(argument: Tensor) -> Tensor:
    """How large the components of an argument are among its samples, (width,): steps go by it."""
    sizes = argument.flatten(1).abs().amax(0)
    whole = float(sizes.amax()) or 1.0
    return torch.where(sizes > 0.0, sizes.clamp_min(1e-9 * whole), 1e-2 * whole)


def _slopes(function: Function, values: Sequence[Tensor], place: int, mixtures: Tensor) -> Tensor:
    """Products of vectors with the Jacobian by an argument, (N, P, width), sample by sample."""
    with torch.enable_grad():
        leaves = [value.detach().clone().requires_grad_() for value in values]
        result = function(*leaves).view(len(values[0]), -1)
        if not result.requires_grad:
            return values[place].new_zeros(len(result), len(mixtures), values[place][0].numel())
        mixed = [(result * mixture).sum() for mixture in mixtures]
        rows = [
            torch.autograd.grad(one, leaves[place], retain_graph=True, allow_unused=True, materialize_grads=True)[0]
            for one in mixed
        ]
    return torch.stack([row.flatten(1) for row in rows], dim=1).detach()


@torch.no_grad()
def _along(
    function: Function, values: Sequence[Tensor], place: int, ways: Tensor, mixtures: Tensor, step: float
) -> tuple[Tensor, ...]:
    """What comes out below, at and above, and half as far below and above, (N, P, D) each; NaN where it is refused."""
    argument = values[place]
    copies = [value.repeat_interleave(len(ways), 0) for value in values]
    moves = step * ways.repeat(len(argument), 1).view(copies[place].shape)
    found = []
    for share in (-1.0, 0.0, 1.0, -0.5, 0.5):
        moved = [*copies[:place], copies[place] + share * moves, *copies[place + 1 :]]
        try:
            result = function(*moved).view(len(moves), -1) @ mixtures.mT
        except (RuntimeError, ValueError, ArithmeticError, AssertionError):  # it takes no states but its own
            result = argument.new_full((len(moves), len(mixtures)), math.nan)
        found.append(result.unflatten(0, (len(argument), len(ways))).transpose(1, 2))
    return tuple(found)
