"""Optimizers of torch by their names, and such as users write, in the place of the built-in Adam."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bptt_envs.checks import nearest, shown
from bptt_trainers.records.files import first_line

Make = Callable[..., torch.optim.Optimizer]
"""From parameters, and the learning rate as `lr` if it has an argument of that name, to an optimizer of them."""

NAMES = tuple(
    name
    for name, kind in sorted(vars(torch.optim).items())
    if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
)
"""The optimizers that torch has."""

SET = {"params": "the controller's parameters", "lr": "learning_rate", "weight_decay": "weight_decay"}
"""What they take that is no option of theirs here, and where it comes from."""


def named_optimizer(name: str, options: Mapping[str, Any], weight_decay: float) -> Make:
    """The class of torch.optim of that name, with its options.

    Raises:
        ValueError: if there is none, it cannot be served, or it has not got such options.
    """
    if name not in NAMES:
        as_written = {one.lower(): one for one in NAMES}.get(name.lower(), name)
        raise ValueError(
            f"optimizer must be 'adam', the built-in one, or the name of a class of torch.optim, {', '.join(NAMES)}; "
            f"got {shown(name)}.{nearest(as_written, NAMES)}"
        )
    kind = getattr(torch.optim, name)
    _check_servable(kind)
    known = [one for one in _arguments(kind) if one not in SET]
    for option in options:
        if option in SET:
            raise ValueError(f"optimizer_options has {option!r}, which is set by {SET[option]}; leave it out.")
        if option not in known:
            raise ValueError(
                f"optimizer_options has {option!r}, which {name} does not take.{nearest(option, known)} "
                f"It takes {', '.join(known)}."
            )
    if "weight_decay" in _arguments(kind):
        return partial(kind, weight_decay=weight_decay, **options)
    if weight_decay:
        raise ValueError(f"weight_decay must be 0.0, as {name} of torch.optim has none; got {weight_decay}.")
    return partial(kind, **options)


class TorchOptimizer:
    """Lets an optimizer of torch step against directions, in the way of `Adam`.

    What it keeps must be where torch's own keep it, in `state` and in `param_groups`, and be tensors and plain values:
    then it can be saved and goes on bit for bit. It is tried when it is made, by a step that is taken back.

    Args:
        parameters: n numbers in all.
        learning_rate: step size.
        make: the class, or a callable from parameters to an instance.

    Attributes:
        learning_rate: of the next step, for all groups of parameters.
        steps: that were made, by parameter.
        name: of the optimizer's class.

    Raises:
        TypeError, ValueError: if it cannot be made, or cannot be served.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], learning_rate: float, make: Make) -> None:
        self.learning_rate = learning_rate
        self._make = make
        self._parameters = list(parameters)
        self._sizes = [parameter.numel() for parameter in self._parameters]
        self.steps = [0] * len(self._parameters)
        self._optimizer = self._made()
        self.name = type(self._optimizer).__name__
        with self._on_trial():
            with refusing(f"optimizer {self.name} cannot step"):
                self.step(torch.zeros_like(torch.cat([parameter.detach().flatten() for parameter in self._parameters])))
            _check_plain(self.state_dict(), f"optimizer {self.name} keeps in its state or param_groups")

    @torch.no_grad()
    def step(self, direction: Tensor) -> None:
        """Step against `direction`, (n,). The parameters' own `grad` stay what they are."""
        self.steps = [steps + 1 for steps in self.steps]
        for group in self._groups:
            group["lr"] = self.learning_rate
        before = [parameter.grad for parameter in self._parameters]
        try:
            for parameter, part in zip(self._parameters, direction.split(self._sizes), strict=True):
                parameter.grad = part.view(parameter.shape).to(parameter.dtype, copy=True)
            self._optimizer.step()
        finally:
            for parameter, grad in zip(self._parameters, before, strict=True):
                parameter.grad = grad

    def overflowing(self, direction: Tensor) -> list[int]:
        """Which parameters' state a step against `direction`, (n,), would leave not finite."""
        with self._on_trial():
            self.step(direction)
            return [i for i, one in enumerate(self._parameters) if not all(map(_is_finite, self._kept(one).values()))]

    @property
    def harmless(self) -> float:
        """A norm up to which no square of a direction overflows."""
        return math.sqrt(min(torch.finfo(parameter.dtype).max for parameter in self._parameters))

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes: what is kept of each parameter, and beside them."""
        state = {
            i: {"steps": self.steps[i], "kept": copy.deepcopy(self._kept(parameter))}
            for i, parameter in enumerate(self._parameters)
            if self.steps[i]
        }
        groups = [{name: one for name, one in group.items() if name != "params"} for group in self._groups]
        return {"state": state, "groups": copy.deepcopy(groups)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a copy of another one's state; a parameter of which it holds nothing starts anew."""
        known = dict(state["state"])
        self.steps = [known[i]["steps"] if i in known else 0 for i in range(len(self._parameters))]
        self._optimizer = self._made()
        fresh = self._optimizer.state_dict()
        groups = fresh["param_groups"]
        if len(state["groups"]) == len(groups):
            pairs = zip(groups, copy.deepcopy(state["groups"]), strict=True)
            groups = [{**own, **given, "params": own["params"]} for own, given in pairs]
        place = {id(one): at for at, one in enumerate(one for group in self._groups for one in group["params"])}
        kept = {place[id(self._parameters[i])]: copy.deepcopy(one["kept"]) for i, one in known.items()}
        self._optimizer.load_state_dict({"state": {**fresh["state"], **kept}, "param_groups": groups})
        for i, one in known.items():  # torch gives numbers the dtype of the parameter, which may round them
            own = self._kept(self._parameters[i])
            for name, value in one["kept"].items():
                if isinstance(value, Tensor) and isinstance(own.get(name), Tensor):
                    own[name] = value.to(own[name].device, copy=True)

    @property
    def _groups(self) -> list[dict[str, Any]]:
        return self._optimizer.param_groups

    def _kept(self, parameter: nn.Parameter) -> dict[str, Any]:
        kept: dict[str, Any] = self._optimizer.state.get(parameter, {})
        return kept

    def _made(self) -> torch.optim.Optimizer:
        rate = {"lr": self.learning_rate} if "lr" in _arguments(self._make) else {}
        with refusing(f"optimizer {_named(self._make)} cannot be made for these parameters"):
            made = self._make(list(self._parameters), **rate)
        if not isinstance(made, torch.optim.Optimizer):
            raise TypeError(f"optimizer must make a torch.optim.Optimizer from parameters; it made {shown(made)}.")
        _check_servable(type(made))
        taken = [id(one) for group in made.param_groups for one in group["params"]]
        if sorted(taken) != sorted(map(id, self._parameters)):
            raise ValueError(
                f"optimizer must train the {len(self._parameters)} parameters that it is handed, all of them and no "
                f"others; {type(made).__name__} was made of {len(taken)}. Freeze what is not to be trained."
            )
        if not all("lr" in group for group in made.param_groups):
            raise ValueError(
                f"optimizer must have its learning rate in param_groups, as 'lr', where each update sets it; "
                f"{type(made).__name__} has none there."
            )
        return made

    @contextmanager
    def _on_trial(self) -> Iterator[None]:
        """Within, steps are tried: parameters, state and random numbers of the CPU are afterwards what they were."""
        state, weights = self.state_dict(), [parameter.detach().clone() for parameter in self._parameters]
        with torch.random.fork_rng(devices=[]):
            try:
                yield
            finally:
                with torch.no_grad():
                    for parameter, before in zip(self._parameters, weights, strict=True):
                        parameter.copy_(before)
                self.load_state_dict(state)


def _arguments(make: Make) -> list[str]:
    """The names of the arguments of a class or callable; none if it does not tell."""
    try:
        return list(inspect.signature(make).parameters)
    except ValueError:
        return []


def _named(make: Make) -> str:
    """A class or callable as messages name it, with the arguments that are given to it already."""
    if isinstance(make, partial):
        return f"{_named(make.func)}({', '.join(f'{name}={shown(one)}' for name, one in make.keywords.items())})"
    return str(getattr(make, "__name__", type(make).__name__))


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Turn any error into a ValueError that says `what` cannot be done; torch and users raise many kinds."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{what}: {first_line(error)}") from error


def _check_servable(kind: type[torch.optim.Optimizer]) -> None:
    closure = inspect.signature(kind.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(
            f"optimizer {kind.__name__} needs a closure that computes the loss anew within a step; an update has one "
            "direction, which is not the gradient of a loss. Choose another."
        )
    if issubclass(kind, torch.optim.SparseAdam):
        raise ValueError(f"optimizer {kind.__name__} needs sparse gradients; directions are dense. Choose another.")


def _check_plain(value: Any, where: str) -> None:
    if isinstance(value, Mapping):
        for name, one in value.items():
            _check_plain(one, f"{where}[{name!r}]")
    elif isinstance(value, (list, tuple)):
        for i, one in enumerate(value):
            _check_plain(one, f"{where}[{i}]")
    elif type(value) not in (Tensor, bool, int, float, str, type(None)):
        raise ValueError(f"{where} a {type(value).__name__}; checkpoints hold tensors and plain values only.")


def _is_finite(value: Any) -> bool:
    if isinstance(value, Tensor):
        return bool(value.isfinite().all())
    return not isinstance(value, float) or math.isfinite(value)
