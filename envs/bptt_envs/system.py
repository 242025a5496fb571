"""The contract between a physical system and everything that steps, trains or draws it."""

from __future__ import annotations

import copy
import functools
import inspect
import math
from abc import ABCMeta, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from bptt_envs.arguments import KnownArguments
from bptt_envs.canvas import Canvas
from bptt_envs.charts import Chart, Curves
from bptt_envs.checks import finite, nearest, one_of, positive, positive_integer, real_array, shown
from bptt_envs.surroundings import own_surroundings

if TYPE_CHECKING:
    from typing_extensions import Self


OBJECTIVES = ("final", "continuous")

ENV_OPTIONS: dict[str, tuple[Any, str]] = {
    "running_cost": (None, "in Python: a function of state, action and next_state in place of the system's cost"),
    "final_cost": (None, "in Python: a function of the last state in place of the system's cost"),
    "terminated": (None, "in Python: a function of a state, whether the episode ends in it"),
    "randomize": (None, "parameters drawn anew for each episode, uniformly: {name: (low, high)}"),
    "show_parameters": (False, "show the controller what randomize has drawn, from -1 to 1"),
    "observe_time": (False, "show the controller the share of the horizon that is over, too"),
}
"""Options of an environment of any system, with default and meaning: the arguments of `Task`.

A system's own option of a name counts instead.
"""

FUNCTIONS = ("running_cost", "final_cost", "terminated")
"""Those of them that are functions, which no command line can give."""

Bound = float | Sequence[float] | np.ndarray | Tensor | None
"""A bound of the actions as it is given: one number, or one for each component."""

Bounds = tuple[float | Tensor | None, float | Tensor | None]

FINAL = ("bound", "action_low", "action_high", "has_bounds", "action_range", "action_at")
"""What a subclass of System cannot override."""

Pullback = Callable[[slice, Tensor], tuple[Tensor, Tensor]]
"""From samples and vectors to their products with the Jacobians of a step, see `System.pullback`."""

ObservePullback = Callable[[slice, Tensor], Tensor]
"""From samples and vectors to their products with the Jacobian of what is observed, see `System.observe_pullback`."""

MADE_WITH = "_made_with"  # the attribute that holds the options with which a system was made

SMALL_CONSTANT = 256  # numbers of a constant whose content is looked at whenever it is used
DENSE_STATE_SIZE = 32  # numbers of a state up to which dense Jacobians are the faster way
FEW_PRODUCTS = 8  # the same where they are made of products: 4 at batch 8 take 0.7 of the time, 16 at 256 twice


class _InOwnSurroundings(ABCMeta):
    """Constructors make their constants as they are, whatever the caller has switched on.

    What a system is made with is kept, so that another one can be made that differs in some options.
    """

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        with own_surroundings():
            made = super().__call__(*args, **kwargs)
        vars(made)[MADE_WITH] = kwargs
        return made


class System(KnownArguments, metaclass=_InOwnSurroundings):
    """A differentiable physical system with a cost, start states and a picture.

    Tensors are batch-first: B samples that do not depend on one another. Methods are pure and keep the
    device and dtype of what they are given. The loss of a trajectory x_0, u_0, x_1, ..., x_T is

        L = sum_t running_cost(x_t, u_t, x_{t+1}) + final_cost(x_T),

    averaged over the batch. A subclass sets `state_shape` and `action_shape` and implements `step`,
    `initial_states` and `state_cost`, from which the two costs follow; the rest has defaults.

    Args:
        horizon: steps of an episode, T.
        dt: duration of a step, in `time_unit`.
        objective: "final" (the cost counts at step T only) or "continuous" (at every step).
        max_action: every action component is clamped to [-max_action, max_action]; None leaves it unbounded. It may
            be set later, too, and then counts before the two below.
        action_low: instead of `max_action`, the least value of every action component, or of each, in `action_shape`;
            None leaves this side unbounded.
        action_high: the same for the largest value.

    Raises:
        ValueError: if an argument is out of range; the message names it.
    """

    state_shape: tuple[int, ...]
    action_shape: tuple[int, ...]

    #: Half-width of the action space that is declared to RL libraries where the actions have no bounds. It tells
    #: them where to explore (they need finite bounds) and clamps nothing.
    nominal_action: ClassVar[float] = 1.0

    #: Names of options that may differ from sample to sample, see `with_parameters`; none unless a class says so.
    parameters: ClassVar[tuple[str, ...]]

    #: Unit of time, of `dt`; empty where time has none.
    time_unit: ClassVar[str] = "s"

    #: What each state component is, with its unit, in order; for tables and pictures.
    state_labels: tuple[str, ...] = ()
    #: The same for the action.
    action_labels: tuple[str, ...] = ()

    def __init__(
        self,
        *,
        horizon: int,
        dt: float,
        objective: str = "final",
        max_action: float | None = None,
        action_low: Bound = None,
        action_high: Bound = None,
    ) -> None:
        for name in FINAL:
            if getattr(type(self), name) is not getattr(System, name):
                raise ValueError(replaced(self, name))
        self.horizon = positive_integer("horizon", horizon)
        self.dt = positive("dt", dt)
        self.objective = one_of("objective", objective, OBJECTIVES)
        self.max_action = max_action
        if action_low is not None or action_high is not None:
            if max_action is not None:
                raise ValueError("max_action is for both bounds; give it alone, or action_low and action_high.")
            low, high = _bounds(action_low, action_high)
            vars(self).update(action_low=low, action_high=high)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in FINAL:
            raise ValueError(replaced(self, name))
        if name == "max_action" and value is not None:
            value = positive(name, value)
        super().__setattr__(name, value)

    @abstractmethod
    def step(self, state: Tensor, action: Tensor) -> Tensor:
        """Advance by `dt`. state: (B, *state_shape), action: (B, *action_shape) -> (B, *state_shape)."""

    @abstractmethod
    def initial_states(self, batch: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """Draw (batch, *state_shape) start states on the device of `generator`."""

    def state_cost(self, state: Tensor) -> Tensor:
        """Cost of being in `state`, (B,): what the objective counts at the last step or at every step."""
        return state.new_zeros(state.shape[0])

    @property
    def step_weight(self) -> float:
        """Weight of each step's `state_cost` with objective "continuous": by default that of their mean."""
        return 1.0 / self.horizon

    def running_cost(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        """Cost of one step, (B,). Scaled so that the sum over an episode is its part of the loss.

        The weighted `state_cost` of the next state with objective "continuous", 0 with "final".
        """
        if self.objective == "final":
            return next_state.new_zeros(next_state.shape[0])
        return self.step_weight * self.state_cost(next_state)

    def final_cost(self, state: Tensor) -> Tensor:
        """Cost of the state at step T, (B,): its `state_cost` with objective "final", 0 with "continuous"."""
        return self.state_cost(state) if self.objective == "final" else state.new_zeros(state.shape[0])

    def terminated(self, state: Tensor) -> Tensor:
        """Whether an episode ends in `state`, before its horizon, (B,) of bool: never unless overridden.

        The first state for which it is true is the last one of the episode: its `final_cost` is that of the episode,
        and no further running cost counts. Whoever steps a system that says so has it as a `Task`.
        """
        return torch.zeros(state.shape[0], dtype=torch.bool, device=state.device)

    def episode_over(self, state: Tensor) -> Tensor | None:
        """Whether the episode that a state belongs to is over, (B,) of bool; None where all have the whole horizon.

        States of the physics do not remember it, those of a `Task` do.
        """
        return None

    def observe(self, state: Tensor) -> Tensor:
        """What a controller sees of `state`, (B, *observation_shape): the state itself unless overridden."""
        return state

    def episode_start(self, state: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """States at the start of an episode, (B, *state_shape), from states of the physics: they are the same.

        See `Task.at_start`, whose states hold more. States that are at a start already stay as they are.
        """
        return state

    @property
    def observation_shape(self) -> tuple[int, ...]:
        """Shape of one observation."""
        return self.state_shape

    def draw(self, canvas: Canvas, state: Tensor, action: Tensor | None) -> None:
        """Draw one `state` (state_shape) and the `action` that led to it on `canvas`.

        The default is a bar for each state component.
        """
        canvas.bars([float(value) for value in state.flatten()], self.state_labels)

    def charts(self, states: Tensor, actions: Tensor) -> list[Chart]:
        """What a figure of B episodes shows; where a chart holds one episode, it is the first.

        The default is a panel of curves for each component of the state and of the action.

        Args:
            states: (T + 1, B, *state_shape).
            actions: (T, B, *action_shape), bounded.
        """
        named = [*_labelled(self.state_labels, "state", states), *_labelled(self.action_labels, "action", actions)]
        return [Curves(label, values) for label, values in named]

    # What follows is derived from the above.

    @property
    def class_name(self) -> str:
        """The name of the class that holds the equations, for messages and pictures."""
        return type(self).__name__

    @property
    def time_label(self) -> str:
        """What a time axis is called."""
        return f"time [{self.time_unit}]" if self.time_unit else "time"

    @property
    def state_size(self) -> int:
        """Number of state components."""
        return math.prod(self.state_shape)

    @property
    def action_size(self) -> int:
        """Number of action components."""
        return math.prod(self.action_shape)

    @property
    def action_low(self) -> float | Tensor | None:
        """Least value of every action component, or of each, (action_shape), float64; None where there is none."""
        return vars(self).get("action_low") if self.max_action is None else -self.max_action

    @property
    def action_high(self) -> float | Tensor | None:
        """Largest value of every action component, or of each, (action_shape), float64; None where there is none."""
        return vars(self).get("action_high") if self.max_action is None else self.max_action

    @property
    def has_bounds(self) -> bool:
        """Whether the actions are clamped at all."""
        return self.action_low is not None or self.action_high is not None

    def bound(self, action: Tensor) -> Tensor:
        """Clamp `action` to `action_low` and `action_high`; the same tensor if there are none.

        Whoever calls `step` bounds the action first, so that systems and their slopes need not. It cannot be
        overridden: its slopes are known to whoever calls it.
        """
        low, high = self.action_low, self.action_high
        if low is None and high is None:
            return action
        if isinstance(low, Tensor) and isinstance(high, Tensor):  # both or none
            return action.clamp(constant_like(low, action), constant_like(high, action))
        return action.clamp(low, high)  # type: ignore[arg-type]

    @property
    def action_range(self) -> tuple[Tensor, Tensor]:
        """The bounds, (action_shape) each, float64, with the nominal range in place of what has none.

        Where one side is unbounded, the range is at least as wide as `nominal_action`.
        """
        low, high = (
            torch.as_tensor(end if bound is None else bound, dtype=torch.float64).expand(self.action_shape)
            for bound, end in ((self.action_low, -math.inf), (self.action_high, math.inf))
        )
        nominal = self.nominal_action
        least = torch.where(high.isinf(), -nominal, torch.minimum(high - nominal, torch.tensor(-nominal)))
        most = torch.where(low.isinf(), nominal, torch.maximum(low + nominal, torch.tensor(nominal)))
        return torch.where(low.isinf(), least, low), torch.where(high.isinf(), most, high)

    def action_at(self, share: Tensor) -> Tensor:
        """The actions at shares of `action_range`, from -1 to 1, (..., *action_shape)."""
        if self.max_action is not None or not self.has_bounds:
            return (self.nominal_action if self.max_action is None else self.max_action) * share
        low, high = (end.to(share) for end in self.action_range)
        return (low + high) / 2 + (high - low) / 2 * share

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """Those of `parameters` that are options of this class: one derived from it may have others."""
        return _parameter_names(type(self))

    def with_parameters(self, **values: float | Tensor) -> Self:
        """A copy of the system with other parameters, which may differ from sample to sample.

        Gradients by them go through all that the system computes: so systems are identified from data.

        Args:
            values: by name, each a number, a tensor () for all samples, or (B,), with a value for each of the B samples
                that the system is then called with. They are not compared with what the option takes.

        Raises:
            ValueError: if the system declares no parameter of that name, or a value is of another shape or kind.
        """
        for name, value in values.items():
            if name not in self.parameter_names:
                raise ValueError(self.no_parameter(name))
            if not isinstance(value, Tensor):
                values[name] = finite(name, value)
            elif value.dim() > 1 or not value.is_floating_point():
                shape = f"{value.dtype}, {tuple(value.shape)}"
                raise ValueError(f"{name} must be a number or a tensor of floats, () or (B,); got {shape}.")
        twin = copy.copy(self)
        for name, value in values.items():
            setattr(twin, name, value)
        return twin

    def rebuilt(self, **changes: Any) -> Self:
        """A system of the same class, made anew with the same options but for `changes`."""
        return type(self)(**vars(self).get(MADE_WITH, {}) | changes)

    def no_parameter(self, name: str) -> str:
        """What is said to a name that is none of the parameters."""
        names = self.parameter_names
        words = f"Its parameters: {', '.join(names)}." if names else "It declares none, by a tuple `parameters`."
        return f"{self.class_name} has no parameter {name!r}.{nearest(name, names)} {words}"

    def for_samples(self, rows: slice) -> Self:
        """The system for some of the samples that its parameters are of."""
        own = ((name, getattr(self, name)) for name in self.parameter_names)
        some = {name: value[rows] for name, value in own if isinstance(value, Tensor) and value.dim()}
        return self.with_parameters(**some) if some else self

    @property
    def dense_jacobians(self) -> bool:
        """Whether the fast engine asks for `linearize` rather than for products with `pullback`.

        Dense Jacobians are n^2 numbers a sample, but a step of the recursion over time is then one product. Where only
        `pullback` is of the system's own, they take as many of it as there are state components.
        """
        kind = type(self)
        only_products = kind.pullback is not System.pullback and kind.linearize is System.linearize
        return self.state_size <= (FEW_PRODUCTS if only_products else DENSE_STATE_SIZE)

    @property
    def surrogate_gradient(self) -> bool:
        """Whether the backward pass of `step` is on purpose another one than its slope, as of a smoothed contact.

        It changes nothing: `bptt check` then notes by how much it differs from finite differences, which is an error
        otherwise. `linearize` and `pullback` are those of the backward pass either way.
        """
        return False

    @property
    def slope_numbers(self) -> int:
        """Numbers that the slopes of a step take for one sample, about: the fast engine bounds its memory by it."""
        return self.state_size**2 if self.dense_jacobians else 8 * self.state_size

    def pullback(self, state: Tensor, action: Tensor) -> Pullback:
        """Vector-Jacobian products of `step` at N samples.

        Args:
            state: (N, *state_shape).
            action: (N, *action_shape).

        Returns:
            A function of `rows`, a slice of the samples, and `vectors`, (P, R, n): P vectors for each of these
            R samples, by the components of the flattened next state. It returns their products with
            d next/d state, (P, R, n), and with d next/d action, (P, R, m). This default steps again and takes
            P backward passes; override it where a closed form is at hand.
        """

        def pull(rows: slice, vectors: Tensor) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                leaves = (state[rows].detach().requires_grad_(), action[rows].detach().requires_grad_())
                following = self.for_samples(rows).step(*leaves).flatten(1)
                products = [
                    torch.autograd.grad(  # of one number: for vectors apart from it torch would import sympy
                        (following * vector).sum(), leaves, retain_graph=True, materialize_grads=True, allow_unused=True
                    )
                    for vector in vectors
                ]
            by_state, by_action = (
                torch.stack([one.flatten(1) for one in part]) for part in zip(*products, strict=True)
            )
            return by_state, by_action

        return pull

    def observe_pullback(self, state: Tensor) -> ObservePullback | None:
        """Vector-Jacobian products of `observe` at N samples, (N, *state_shape); None where it gives the state itself.

        Returns:
            A function of `rows`, a slice of the samples, and `vectors`, (P, R, o), by the components of the flattened
            observation, to their products with d observation/d state, (P, R, n). This default observes again and takes
            P backward passes; override it where a closed form is at hand and a controller has many actions.
        """
        if self.observe(state) is state:
            return None

        def pull(rows: slice, vectors: Tensor) -> Tensor:
            with torch.enable_grad():
                leaf = state[rows].detach().requires_grad_()
                seen = self.for_samples(rows).observe(leaf).flatten(1)
                products = [
                    torch.autograd.grad(  # of one number, as in `pullback`
                        (seen * vector).sum(), leaf, retain_graph=True, materialize_grads=True, allow_unused=True
                    )[0]
                    for vector in vectors
                ]
            return torch.stack(products).flatten(2).detach()

        return pull

    def linearize(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Jacobians of `step`: A = d next/d state, (B, n, n), and B = d next/d action, (B, n, m).

        n and m count the flattened state and action. This default pulls back a unit vector for each state
        component; override it where a closed form is at hand, it is the larger part of a training step.
        """
        n = self.state_size
        units = torch.eye(n, dtype=state.dtype, device=state.device).unsqueeze(1).expand(n, state.shape[0], n)
        by_state, by_action = self.pullback(state, action)(slice(None), units)
        return by_state.transpose(0, 1), by_action.transpose(0, 1)

    @classmethod
    def options(cls) -> dict[str, Any]:
        """Options of the constructor with their defaults, in order."""
        parameters = inspect.signature(cls.__init__).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

    @classmethod
    def env_options(cls) -> dict[str, Any]:
        """Options of an environment of the system, with their defaults: the constructor's, then those of all."""
        own = cls.options()
        return own | {name: default for name, (default, _) in ENV_OPTIONS.items() if name not in own}

    @classmethod
    def check_options(cls, options: dict[str, Any], owner: str) -> None:
        """Raise ValueError if `options` holds a name that is no option of an environment of the system.

        Args:
            options: option values by name.
            owner: whose options these are, for the message.
        """
        known = cls.env_options()
        for name in options:
            if name not in known:
                raise ValueError(
                    f"{owner} has no option {name!r}.{nearest(name, known)} Its options: {', '.join(known)}."
                )


@functools.lru_cache(maxsize=256)
def _parameter_names(kind: type[System]) -> tuple[str, ...]:
    declared = getattr(kind, "parameters", ())  # of a system that is a torch module, too, they are a method
    return tuple(name for name in declared if name in kind.options()) if isinstance(declared, tuple) else ()


@functools.lru_cache(maxsize=256)
def _memory(constant: Tensor) -> np.ndarray | None:
    """What a small constant holds, now and later; None of a large one and of one on another device."""
    small = constant.device.type == "cpu" and constant.numel() <= SMALL_CONSTANT
    plain = constant.dtype in (torch.float32, torch.float64) and not constant.requires_grad
    return constant.numpy() if small and plain else None


@functools.lru_cache(maxsize=256)
def _moved(constant: Tensor, content: bytes | int, device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):  # what is kept can take part in later gradients
        return constant.to(device, dtype)


def constant_like(constant: Tensor, like: Tensor) -> Tensor:
    """A constant tensor of a system on the device and in the dtype of `like`.

    It is moved there once, and again when it has been changed in place; of more than 256 numbers that is seen if torch
    has changed them, not NumPy. A copy to a GPU in each step would make the host wait.
    """
    if torch.compiler.is_compiling():  # torch.compile cannot look into memory
        return constant.to(like.device, like.dtype)
    memory = _memory(constant)
    if memory is not None:
        return _moved(constant, memory.tobytes(), like.device, like.dtype)
    return _moved(constant, 0 if constant.is_inference() else constant._version, like.device, like.dtype)


def broadcast(parameter: float | Tensor, dims: int = 1) -> Any:
    """A parameter as it meets tensors (B, ...) with `dims` dimensions after the batch: a tensor (B,) as (B, 1, ...)."""
    return parameter[(..., *[None] * dims)] if isinstance(parameter, Tensor) else parameter


def replaced(system: System, name: str) -> str:
    """What is said to a system that replaces what is final."""
    return (
        f"{type(system).__name__} must not replace System.{name}: the engines know the slopes of bounds. Pass them to "
        "super().__init__, as action_low=0.0, action_high=1.0, or as max_action=1.0 for both."
    )


def _bounds(low: Bound, high: Bound) -> Bounds:
    """Bounds as two numbers or two tensors; a side without any is None, or infinite in a tensor."""
    low, high = _as_bound("action_low", low), _as_bound("action_high", high)
    if isinstance(low, Tensor) and isinstance(high, Tensor) and low.shape != high.shape:
        shapes = f"{tuple(low.shape)} and {tuple(high.shape)}"
        raise ValueError(f"action_low and action_high must have one shape; got {shapes}.")
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        shape = low.shape if isinstance(low, Tensor) else torch.as_tensor(high).shape
        low, high = (
            torch.as_tensor(empty if value is None else value, dtype=torch.float64).expand(shape).clone()
            for value, empty in ((low, -math.inf), (high, math.inf))
        )
    if low is not None and high is not None and not bool(torch.as_tensor(low < high).all()):
        raise ValueError(f"action_low must be below action_high; got {low} and {high}.")
    return low, high


def _as_bound(name: str, value: Bound) -> float | Tensor | None:
    if value is None or isinstance(value, (bool, int, float, np.generic)):
        return None if value is None else finite(name, value)
    bound = real_array(value)
    if bound is None or np.isnan(bound).any():
        raise ValueError(f"{name} must be None, a finite number or numbers of action_shape; got {shown(value)}.")
    return torch.from_numpy(bound.astype(np.float64)) if bound.ndim else finite(name, bound[()])


def _labelled(labels: Sequence[str], kind: str, values: Tensor) -> list[tuple[str, Tensor]]:
    """The components of (T, B, ...) with their labels; what has none is numbered."""
    components = values.flatten(2).unbind(-1)
    return [(labels[i] if i < len(labels) else f"{kind} {i}", one) for i, one in enumerate(components)]
