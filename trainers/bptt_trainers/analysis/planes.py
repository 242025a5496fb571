"""Planes in parameter space: an origin and two orthonormal directions, so that coordinates are distances.

Parameters are tensors by name, as `Directions` are; a stack of E parameter vectors is (E, *shape) each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bptt_trainers.directions.rules import Directions, flat

PARALLEL = 1e-6  # what a direction must keep, of a length of 1, beside the other one


@dataclass(frozen=True)
class Plane:
    """The points origin + a * axes[0] + b * axes[1].

    Attributes:
        origin: the parameters at (0, 0), (*shape) each.
        axes: two orthonormal directions, (*shape) each, in float64.
        labels: what the axes are, for figures.
    """

    origin: Directions
    axes: tuple[Directions, Directions]
    labels: tuple[str, str]

    def points(self, coordinates: Tensor) -> Directions:
        """The parameters at `coordinates`, (E, 2): by name, (E, *shape), in the origin's dtype."""
        first, second = self.axes
        a, b = coordinates.double().unbind(1)
        return {
            name: (origin.double() + _outer(a, first[name]) + _outer(b, second[name])).to(origin.dtype)
            for name, origin in self.origin.items()
        }

    def project(self, directions: Directions) -> Tensor:
        """The components along the axes, (E, 2), of directions (E, *shape)."""
        return torch.stack(
            [sum(_rows(d) @ axis[name].flatten() for name, d in directions.items()) for axis in self.axes],  # type: ignore[misc]
            dim=1,
        )

    def coordinates(self, parameters: Directions) -> Tensor:
        """Where the point of the plane lies that is nearest to `parameters`, (*shape) each: (2,)."""
        return self.project({name: (p.double() - self.origin[name]).unsqueeze(0) for name, p in parameters.items()})[0]

    def through(self, parameters: Directions) -> Plane:
        """The parallel plane that contains `parameters`; coordinates keep their meaning."""
        there = self.points(self.coordinates(parameters).unsqueeze(0))
        return replace(self, origin={name: p + self.origin[name] - there[name][0] for name, p in parameters.items()})


def natural_plane(origin: Directions, labels: tuple[str, str]) -> Plane:
    """The whole space of two parameters, with them as coordinates.

    Args:
        origin: two numbers in all; they give shapes and dtype, and are not used otherwise.
        labels: names of the two.
    """
    zero = {name: torch.zeros_like(p) for name, p in origin.items()}
    unit = torch.eye(2, dtype=torch.float64)
    return Plane(zero, (shaped(unit[0], zero), shaped(unit[1], zero)), labels)


def path_plane(path: Sequence[Directions]) -> Plane:
    """The plane that holds both ends of a path and as much of the rest as a plane through them can.

    a runs from the first to the last point; b is the principal component of what is left of the points in
    between once their part along a is taken off. (0, 0) is the first point.

    Args:
        path: points (*shape), at least three.

    Raises:
        ValueError: if it has fewer points, they lie on a line, or the last is the first.
    """
    if len(path) < 3:
        raise ValueError(f"a plane along the path needs at least 3 checkpoints; got {len(path)}.")
    steps = torch.stack([flat(point) for point in path]) - flat(path[0])
    length = steps[-1].norm()
    first = steps[-1] / length
    rest = steps - torch.outer(steps @ first, first)
    if not rest.norm() > PARALLEL * length > 0.0:  # also NaN
        raise ValueError("the checkpoints must be finite, the last one not the first, and not all on a line.")
    second = torch.linalg.svd(rest, full_matrices=False)[2][0]
    upwards = torch.where((rest @ second).sum() < 0, -1.0, 1.0)  # the sign of a component is arbitrary
    axes = _orthonormal(first, upwards * second, path[0])
    return Plane(path[0], axes, ("a: from the first to the last checkpoint", "b: principal component of the rest"))


def random_plane(at: Directions, generator: torch.Generator) -> Plane:
    """A plane through `at` along two random directions that are filter-normalised and made orthonormal.

    Filter normalisation (H. Li, Z. Xu, G. Taylor, C. Studer, T. Goldstein, "Visualizing the Loss Landscape of
    Neural Nets", NeurIPS 2018): each filter, here the weights of one output, has the norm that it has in
    `at`. A parameter of one dimension, such as a bias, counts as one filter.

    Args:
        at: the point, (*shape) each.
        generator: draws the directions.
    """
    first, second = (
        flat(filter_normalised({name: torch.randn(p.shape, generator=generator) for name, p in at.items()}, at))
        for _ in range(2)
    )
    axes = _orthonormal(first, second, at)
    return Plane(at, axes, ("a: random, filter-normalised", "b: random, filter-normalised"))


def rules_plane(at: Directions, regular: Directions, modified: Directions) -> Plane:
    """The plane through `at` that R and M span there: a along R, b along what M has beside it.

    Args:
        at: the point, (*shape) each.
        regular: R at it, (*shape) each.
        modified: M at it, likewise.

    Raises:
        ValueError: if one of them is zero or not finite, or they are parallel.
    """
    axes = _orthonormal(flat(regular), flat(modified), at)
    return Plane(at, axes, ("a: along R", "b: along M, its part beside R"))


def filter_normalised(direction: Directions, at: Directions) -> Directions:
    """Scale each filter of `direction` to the norm of the same filter in `at`."""
    result = {}
    for name, values in direction.items():
        filters, like = (p.double().flatten(1) if p.dim() > 1 else p.double().view(1, -1) for p in (values, at[name]))
        scale = like.norm(dim=1, keepdim=True) / filters.norm(dim=1, keepdim=True)
        result[name] = (scale * filters).view(values.shape)
    return result


def shaped(vector: Tensor, like: Directions) -> Directions:
    """The components of a vector under the names and in the shapes of `like`."""
    parts = vector.split([p.numel() for p in like.values()])
    return {name: part.view(p.shape) for (name, p), part in zip(like.items(), parts, strict=True)}


def _orthonormal(first: Tensor, second: Tensor, like: Directions) -> tuple[Directions, Directions]:
    """Gram and Schmidt, twice for the second direction, which leaves rounding only."""
    one = first / first.norm()
    two = second / second.norm()
    beside = two - (two @ one) * one
    if not beside.norm() > PARALLEL:  # also NaN: of a direction that is zero or not finite
        raise ValueError(
            "the two directions of a plane must be finite, not zero and not parallel; got lengths "
            f"{float(first.norm()):.3g} and {float(second.norm()):.3g}, the second {float(beside.norm()):.3g} of its "
            "length beside the first."
        )
    beside = beside - (beside @ one) * one
    return shaped(one, like), shaped(beside / beside.norm(), like)


def _rows(directions: Tensor) -> Tensor:
    return directions.double().flatten(1)


def _outer(factors: Tensor, axis: Tensor) -> Tensor:
    """(E,) times (*shape): (E, *shape)."""
    return factors.view(-1, *(1 for _ in axis.shape)) * axis
