"""What a figure of a trajectory shows, as data: a system says what, whoever draws it says how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Curves:
    """One quantity over time, a curve for each of B episodes.

    Attributes:
        label: what it is, with its unit, such as "theta [rad]".
        values: (T + 1, B) for what belongs to states, (T, B) for what belongs to steps.
    """

    label: str
    values: Tensor


@dataclass(frozen=True)
class NamedCurves:
    """Several quantities over time, of one episode.

    Attributes:
        label: what they are, with their unit.
        values: (T + 1, K) or (T, K).
        names: of each of the K quantities.
    """

    label: str
    values: Tensor
    names: Sequence[str]


@dataclass(frozen=True)
class Field:
    """A quantity over space and time, of one episode.

    Attributes:
        label: what it is, with its unit.
        values: (T + 1, K), at K points in space.
        space: what the space axis is, with its unit.
        low: coordinate of the first point.
        high: coordinate of the last point.
    """

    label: str
    values: Tensor
    space: str
    low: float
    high: float


@dataclass(frozen=True)
class Paths:
    """Ways of K bodies through the plane, of one episode.

    Attributes:
        label: what the two axes are, with their unit.
        values: (T + 1, K, 2).
        groups: the names of groups of bodies and how many each has, in order; a group has one color.
        target: where bodies should go, or None.
    """

    label: str
    values: Tensor
    groups: Sequence[tuple[str, int]]
    target: tuple[float, float] | None = None


Chart = Curves | NamedCurves | Field | Paths
