"""What training asks of an engine: a trainer states its queries, an engine answers those of one run or of many."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bptt_trainers.directions.rules import (
    MODIFIED,
    REGULAR,
    Combine,
    Directions,
    Feedback,
    Rule,
    combined,
    cosine,
    sign_agreement,
)

_NAN = float("nan")


@dataclass(eq=False)
class DirectionQuery:
    """Asks for the direction of one update; whoever answers fills in the fields from `loss` on.

    Attributes:
        states: where the episodes start, (B, *state_shape).
        rule: whose direction it is.
        combine: the component that rule C keeps.
        compare: whether to measure how R and M differ, too.
        sizes: numbers in each parameter, n in all.
        generator: of the random places, if that is what C keeps.
        noise: that of all steps, (T, B, *noise_shape), for a controller that is handed any.
        loss: mean over the episodes.
        direction: (n,), every parameter's components, one parameter after the other.
        norm: of the direction.
        seconds: that the answer took.
        sign_agreement, cosine: of R and M, if `compare`.
    """

    states: Tensor
    rule: Rule
    combine: Combine
    compare: bool
    sizes: list[int]
    generator: torch.Generator | None
    noise: Tensor | None = None
    loss: float = _NAN
    direction: Tensor = field(init=False)
    norm: float = _NAN
    seconds: float = 0.0
    sign_agreement: float = _NAN
    cosine: float = _NAN


@dataclass(eq=False)
class LossQuery:
    """Asks for a loss; whoever answers fills it in.

    Attributes:
        states: where the episodes start, (N, *state_shape).
        loss: mean over the episodes, with the controller in eval mode.
    """

    states: Tensor
    loss: float = _NAN


Query = DirectionQuery | LossQuery


def flattened(passes: Mapping[Feedback, Directions], names: Iterable[str]) -> dict[Feedback, Tensor]:
    """Directions of E members, (E, *shape) for each name, as one tensor (E, n) for each pass."""
    names = list(names)
    return {
        feedback: torch.cat([directions[name].unsqueeze(1).flatten(1) for name in names], dim=1)
        for feedback, directions in passes.items()
    }


def answer_directions(
    queries: Sequence[DirectionQuery], losses: Tensor, passes: Mapping[Feedback, Tensor], begin: float
) -> None:
    """Give each query its direction.

    Args:
        queries: E of them.
        losses: of their episodes, (E, B).
        passes: the directions (E, n) of every pass that one of their rules is made of.
        begin: `time.perf_counter()` before the losses and passes were computed; the time is shared equally.
    """
    alike: dict[tuple[Rule, Combine], list[int]] = {}
    for i, query in enumerate(queries):
        alike.setdefault((query.rule, query.combine), []).append(i)
    if len(alike) == 1:
        directions = _combined(queries, passes)
    else:
        directions = torch.empty_like(next(iter(passes.values())))
        for (rule, _), rows in alike.items():
            some = {feedback: passes[feedback][rows] for feedback in rule.passes}
            directions[rows] = _combined([queries[i] for i in rows], some)
    norms = directions.double().norm(dim=1)  # in float64, so that large finite components do not overflow
    numbers = torch.stack([losses.mean(1).double(), norms], dim=1).tolist()  # all that leaves the device
    seconds = (time.perf_counter() - begin) / len(queries)
    for query, direction, (loss, norm) in zip(queries, directions, numbers, strict=True):
        query.direction, query.loss, query.norm, query.seconds = direction, loss, norm, seconds


def answer_comparisons(queries: Sequence[DirectionQuery], passes: Mapping[Feedback, Tensor]) -> None:
    """Measure, for each of E queries that asks for it, how R and M differ; passes: (E, n), R and M among them."""
    for i, query in enumerate(queries):
        if query.compare:
            regular, modified = ({"": passes[feedback][i]} for feedback in (REGULAR, MODIFIED))
            query.sign_agreement, query.cosine = sign_agreement(regular, modified), cosine(regular, modified)


def _combined(queries: Sequence[DirectionQuery], passes: Mapping[Feedback, Tensor]) -> Tensor:
    """The directions (E, n) of queries of one rule and kind of combining."""
    rule, combine = queries[0].rule, queries[0].combine
    if combine != "random":
        return combined(rule, {feedback: {"": direction} for feedback, direction in passes.items()}, combine)[""]
    rows = []
    for i, query in enumerate(queries):  # each draws its own places, for one parameter after the other
        parts = {feedback: dict(_numbered(direction[i], query.sizes)) for feedback, direction in passes.items()}
        rows.append(torch.cat(list(combined(rule, parts, combine, query.generator).values())))
    return torch.stack(rows)


def _numbered(direction: Tensor, sizes: list[int]) -> Iterator[tuple[str, Tensor]]:
    return ((str(i), part) for i, part in enumerate(direction.split(sizes)))
