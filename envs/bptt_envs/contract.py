"""Check that a system keeps its contract."""

from __future__ import annotations

import contextlib
import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bptt_envs import checks
from bptt_envs.raised import METHODS, checked_by_us, raised, told_briefly
from bptt_envs.surroundings import own_surroundings
from bptt_envs.system import FINAL, System, replaced
from bptt_envs.task import Task, as_task

SAMPLES = 3
STEPS = 4  # of an episode, that are looked at first
MOST_STEPS = 4096  # of a long one, at most
MOST_COMPONENTS = 64  # of a state or action, whose slopes are compared with differences
STRONG = 10.0  # times the range of the actions, where they have no bounds, before a loss counts as flat
EXTREME = 1e6  # a number that is larger, or smaller than its inverse, is a likely cause of what is not finite

Function = Callable[..., Tensor]


class ContractError(ValueError):
    """A system does not keep its contract; the message names the method, what it does and what would be right."""


class MethodError(ContractError):
    """A method of a system raises an error; the message names both and the line, the cause is the error itself."""


def check_system(
    system: System, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", thorough: bool = True
) -> None:
    """Try a few samples of a system, and say in words what its class should do otherwise.

    Environments look at shapes, dtypes and values when they are made: samples that have an influence on one another,
    start states that do not come from the generator alone, arguments and earlier results that are changed in place,
    results that differ from call to call or are not finite, errors. A trainer checks all of it, in the dtype and on the
    device of its controller: also that next states, costs and observations depend differentiably on their arguments,
    that the loss depends on the actions, that `linearize` and `pullback` are the slopes of `step`, and that a system
    `with_parameters` does what one does that is built with them.

    Args:
        system: the system.
        dtype: that of the states and actions.
        device: where they are.
        thorough: look at slopes, too; without it, at values only, which takes about a millisecond.

    Raises:
        ContractError: naming the method, what it returned and what would be right; it is a ValueError. If the method
            raises an error, a MethodError, which names its line, too, and whose cause is that error.

    Warns:
        UserWarning: if an episode of constant actions of half the nominal size is not finite to its end.
    """
    checks.instance("system", system, System, "a System, such as env.unwrapped.system")
    with own_surroundings(dtype, device), torch.no_grad(), _naming_methods():
        for stage in _stages(system, dtype, torch.device(device), thorough):
            stage.check()


@dataclass(frozen=True)
class Promise:
    """What a system promises, and whether it was seen to keep it.

    Attributes:
        words: what is promised.
        breach: what is wrong and what would be right; None if nothing is.
        warned: what was warned of.
    """

    words: str
    breach: str | None = None
    warned: tuple[str, ...] = ()


def promises(system: System, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> list[Promise]:
    """Go through the stages of `check_system`, and on after one that fails, as far as that makes sense.

    Args: as those of `check_system`.

    Returns:
        One for each stage. Where the values of a system are wrong, the stages after that are left out; where
        its slopes are, those whose failure would say the same.
    """
    found: list[Promise] = []
    with own_surroundings(dtype, device), torch.no_grad():
        stages = _stages(system, dtype, torch.device(device), thorough=True)
        broken = ""
        while True:
            try:
                with _naming_methods():
                    stage = next(stages, None)
            except (TypeError, ValueError) as error:  # there are no samples to go on with
                return [*found, Promise(START, _breach(error))]
            if stage is None:
                return found
            if stage.needs and broken:
                continue
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                try:
                    with _naming_methods():
                        stage.check()
                    breach = None
                except (TypeError, ValueError) as error:
                    breach = _breach(error)
            found.append(Promise(stage.words, breach, tuple(str(one.message) for one in caught)))
            if breach is not None:
                if not stage.slopes:
                    return found
                broken = breach


def check_at(system: System, states: Tensor, actions: Tensor, *, digits: torch.dtype | None = None) -> None:
    """Check at states of the caller's what does not hang on where they are from.

    Values, that samples are apart, that calls repeat, that `linearize` and `pullback` are the slopes of `step`.

    Args:
        system: the system.
        states: (B, *state_shape), of episodes that go on.
        actions: (B, *action_shape), bounded.
        digits: the dtype in which `step` computes inside, so many of whose digits slopes are compared in; None: that of
            the states.

    Raises:
        ContractError: as `check_system`.
    """
    with own_surroundings(states.dtype, states.device), torch.no_grad(), _naming_methods():
        probe = _Probe(system, states, actions, torch.Generator(states.device))
        _check_values(probe, len(states))
        _check_closed_forms(probe, digits)


@contextlib.contextmanager
def _naming_methods(what: str | None = None) -> Iterator[None]:
    """Turn an error that a method of a system raises into `MethodError`; checks of ours stay as they are.

    Args:
        what: whose error it is if it goes through no method.
    """
    try:
        yield
    except ContractError:
        raise
    except Exception as error:
        words = None if checked_by_us(error) else raised(error, what)
        if words is None:
            raise
        raise MethodError(words) from error


def _breach(error: Exception) -> str:
    """What is wrong, in words: those of a check of the contract, or with the method before them."""
    return str(error) if isinstance(error, ContractError) else raised(error) or str(error)


START = "start states come from the generator alone"


class _Stage(NamedTuple):
    """One of the checks of `check_system`."""

    words: str
    check: Callable[[], None]
    slopes: bool = False  # whether it is about slopes: what comes after it can be looked at though it fails
    needs: bool = False  # whether it makes sense only if the slopes before it are right


def _stages(system: System, dtype: torch.dtype, device: torch.device, thorough: bool) -> Iterator[_Stage]:
    """The stages of `check_system`; each must have been checked before the next is asked for.

    What is wrong with a system itself is said of that, before the task that it is in.
    """
    system = as_task(system)
    if isinstance(system, Task):
        yield from _stages_of(system.system, dtype, device, thorough, system)
    yield from _stages_of(system, dtype, device, thorough)


def _stages_of(
    system: System, dtype: torch.dtype, device: torch.device, thorough: bool, within: Task | None = None
) -> Iterator[_Stage]:
    """The stages for a system by itself or within a task."""
    yield _Stage("what the class says of itself is complete", lambda: _check_declarations(system))
    probe = _Probe.of(system, dtype, device)
    yield _Stage(
        "shapes and dtypes are right, samples are apart, calls repeat and leave their arguments",
        lambda: _check_values(probe, SAMPLES if thorough else 1),
    )
    if within is not None and within.ends_early:
        task = within
        yield _Stage("episodes end sample by sample", lambda: _check_ends(probe, task))
    yield _Stage("values are finite without any action", lambda: _check_rest(probe))
    later = _first_steps(probe)
    if not thorough:
        return
    yield _Stage("start states follow the dtype that is asked for", lambda: _check_start_dtypes(later))
    if not isinstance(system, Task) and not (within and within.ends_early):
        yield _Stage("episodes of constant actions stay finite", lambda: _warn_of_divergence(later))
    yield _Stage("autograd knows of what differences see, sample by sample", lambda: _check_slopes(later), slopes=True)
    if not (within and within.own_costs):
        yield _Stage("the loss depends on the actions", lambda: _check_loss(later), slopes=True, needs=True)
    yield _Stage("linearize and pullback are autograd's slopes of step", lambda: _check_closed_forms(later), True, True)
    yield _Stage("parameters do what options do", lambda: _check_parameters(later), slopes=True, needs=True)


def linear_backward(system: System, states: Tensor, actions: Tensor) -> str | None:
    """Why the slopes of a system are not linear maps backwards; None if they are.

    A backward function may do as it likes, such as clip what comes to it. Backpropagation through time then does so in
    each step, and whatever takes slopes apart from the vectors that meet them (`linearize`) does something else.

    Args:
        system: the system.
        states: (B, *state_shape).
        actions: (B, *action_shape), bounded.

    Returns:
        The method whose backward pass is not linear, and how it shows.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        functions = _functions(system, states.detach(), actions.detach())
    for method, (function, arguments) in functions.items():
        result, leaves = _with_graph(function, arguments)
        if not result.requires_grad:
            continue
        first, second = (torch.randn(result.shape, generator=generator).to(result) for _ in range(2))
        pull = _pull(result, leaves)
        one, other = pull(first), pull(second)
        for scale in (2.0**30, 2.0**-30):  # exact in every dtype that has the range
            if not _close(pull(scale * first), [scale * slope for slope in one]):
                return f"{method} goes back otherwise for a vector {'larger' if scale > 1 else 'smaller'} by 2^30"
        if not _close(pull(first + second), [a + b for a, b in zip(one, other, strict=True)]):
            return f"{method} goes back otherwise for a sum of vectors than for each of them"
    return None


@dataclass(frozen=True)
class _Probe:
    """Samples to look at a system with."""

    system: System
    states: Tensor  # (B, *state_shape), SAMPLES of them unless given
    actions: Tensor  # (B, *action_shape), bounded
    generator: torch.Generator

    @staticmethod
    def of(system: System, dtype: torch.dtype, device: torch.device) -> _Probe:
        name = type(system).__name__
        generator = torch.Generator(device)
        states = system.initial_states(SAMPLES, generator.manual_seed(0), dtype)
        _check_tensor(f"{name}.initial_states", states, (SAMPLES, *system.state_shape), dtype, device)
        kept = _Kept.of(states)
        again = system.initial_states(SAMPLES, generator.manual_seed(0), dtype)
        system.initial_states(SAMPLES, generator.manual_seed(1), dtype)
        kept.check(f"{name}.initial_states", states)
        if not _same(states, again):
            raise ContractError(
                f"{name}.initial_states must draw from its generator only; the same seed gave other states."
            )
        _check_finite(system, "initial_states", states)
        states = _going_on(system, states)
        probe = _Probe(system, states, states.new_empty(0), generator)
        return _Probe(system, states, probe.draw_actions(), generator)

    @property
    def name(self) -> str:
        return type(self.system).__name__

    def draw_actions(self) -> Tensor:
        """Random actions of half the nominal size, within the bounds."""
        shape = (SAMPLES, *self.system.action_shape)
        uniform = torch.rand(shape, generator=self.generator, dtype=self.states.dtype, device=self.states.device)
        return self.system.bound(self.system.nominal_action * (uniform - 0.5))

    def functions(self) -> dict[str, tuple[Function, list[Tensor]]]:
        return _functions(self.system, self.states, self.actions)


def _functions(system: System, states: Tensor, actions: Tensor) -> dict[str, tuple[Function, list[Tensor]]]:
    """What is asked of a system along an episode, by name, with arguments of its own for each."""
    next_states = system.step(states.clone(), actions.clone())
    return {
        "observe": (system.observe, [states.clone()]),
        "step": (system.step, [states.clone(), actions.clone()]),
        "running_cost": (system.running_cost, [states.clone(), actions.clone(), next_states]),
        "final_cost": (system.final_cost, [states.clone()]),
    }


# What it says of itself


def _check_declarations(system: System) -> None:
    name = type(system).__name__
    for attribute in ("horizon", "dt", "objective"):
        if not hasattr(system, attribute):
            raise ContractError(f"{name}.__init__ must call super().__init__(horizon=..., dt=..., objective=...).")
    for attribute in ("state_shape", "action_shape", "observation_shape"):
        shape = getattr(system, attribute, None)
        if not isinstance(shape, tuple) or not shape or not all(isinstance(n, Integral) and int(n) > 0 for n in shape):
            raise ContractError(
                f"{name}.{attribute} must be a tuple of positive integers, such as (2,); got {shape!r}."
            )
    for attribute in FINAL:
        if getattr(type(system), attribute) is not getattr(System, attribute):
            raise ContractError(replaced(system, attribute))
    for method, arguments in METHODS.items():
        _check_takes(system, method, arguments)
    for attribute in ("action_low", "action_high"):
        value = getattr(system, attribute)
        if isinstance(value, Tensor) and tuple(value.shape) != system.action_shape:
            raise ContractError(
                f"{attribute} must be a number or have {name}.action_shape, {system.action_shape}; got shape "
                f"{tuple(value.shape)}."
            )


def _check_takes(system: System, method: str, arguments: tuple[str, ...]) -> None:
    """Raise ContractError unless a method that a class writes, or a task is given, can be called as it is."""
    given = system.asked if isinstance(system, Task) else {}
    function = given.get(method, getattr(system, method))
    if not callable(function) or (method not in given and not _is_overridden(system, method)):
        return
    _check_call(f"{type(system).__name__}.{method}", function, arguments)


def _check_call(what: str, function: Callable[..., Any], arguments: Sequence[str]) -> None:
    """Raise ContractError unless a function can be called with so many arguments."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # one in C does not tell
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise ContractError(f"{what} must take ({', '.join(arguments)}); {error}.") from error


# Values


def _check_values(probe: _Probe, alone: int) -> None:
    """Raise ContractError unless methods are functions of each sample; the first `alone` are given by themselves."""
    system, states = probe.system, probe.states
    shapes = {"observe": system.observation_shape, "step": system.state_shape, "running_cost": (), "final_cost": ()}
    next_states = _called(probe, "step", system.step, [states.clone(), probe.actions.clone()])
    _check_tensor(f"{probe.name}.step", next_states, tuple(states.shape), states.dtype, states.device)
    elsewhere = next_states.clone() if next_states.isfinite().all() else states
    others = {"observe": [elsewhere], "step": [elsewhere, probe.actions.flip(0)], "final_cost": [elsewhere]}
    others["running_cost"] = [elsewhere, probe.actions.flip(0), states]
    for method, (function, arguments) in probe.functions().items():
        what = f"{probe.name}.{method}"
        copies = [argument.clone() for argument in arguments]
        result = _called(probe, method, function, arguments)
        if not all(map(_same, arguments, copies)):
            raise ContractError(f"{what} must not change its arguments in place; let it work on copies.")
        _check_tensor(what, result, (len(states), *shapes[method]), states.dtype, states.device)
        kept = _Kept.of(result)
        _check_finite(system, method, result, acting=True)
        again = function(*copies)  # a GPU may add up in another order
        if not torch.allclose(result, again, rtol=1e-5, atol=1e-6, equal_nan=True):
            raise ContractError(
                f"{what} must be a function of its arguments; the same ones gave another result in a second call. "
                "Random numbers belong into initial_states, what is remembered into the state."
            )
        try:
            singles = [function(*(one[i : i + 1].clone() for one in arguments)) for i in range(alone)]
        except Exception as error:
            if checked_by_us(error):
                raise
            raise MethodError(
                f"{what} must treat samples apart, and take one alone, too; there it raised {told_briefly(error)}. A "
                "model that takes statistics over its batch, as BatchNorm does, is to be in the mode that uses kept "
                "ones: model.eval()."
            ) from error
        for one in singles:
            _check_tensor(what, one, (1, *shapes[method]), states.dtype, states.device)
        if not torch.allclose(torch.cat(singles), result[:alone], rtol=1e-3, atol=1e-5, equal_nan=True):
            raise ContractError(
                f"{what} must treat samples apart; it gives a sample alone another result than in a batch."
            )
        function(*(argument.clone() for argument in others[method]))
        kept.check(what, result)


class _Kept(NamedTuple):
    """What a result was when it was given: whoever goes through an episode keeps it while the method is called again.

    A result may be an argument or a view of one, or a constant: neither is written to.
    """

    values: Tensor
    version: int  # counts what torch writes to a tensor; what NumPy writes is seen in the values alone

    @staticmethod
    def of(result: Tensor) -> _Kept:
        return _Kept(result.clone(), 0 if result.is_inference() else result._version)

    def check(self, what: str, result: Tensor) -> None:
        """Raise ContractError if a later call has written to it."""
        now = _Kept.of(result)
        if now.version != self.version or not _same(now.values, self.values):
            raise ContractError(
                f"{what} must return a tensor of its own in each call; a later call has written to what an earlier one "
                "gave, which is kept over an episode. Return a copy of a buffer: self.buffer.clone()."
            )


def _going_on(system: System, states: Tensor) -> Tensor:
    """Start states of episodes that go on, for their slopes: what is over has none.

    Where all are over at once, as they may be where start states of the user's own are to be used, they are revived.
    """
    over = system.episode_over(states)
    if over is None or not over.any():
        return states
    if over.all():
        return system.going_on(states) if isinstance(system, Task) else states
    return torch.where(over.unsqueeze(-1), states[~over][:1], states)


def _check_ends(probe: _Probe, task: Task) -> None:
    """Raise ContractError unless the condition of a task says of each sample by itself whether its episode is over."""
    what = "Task.terminated" if "terminated" in task.asked else f"{probe.name}.terminated"
    over = _called(probe, "terminated", task.condition, [probe.states.clone()])
    if not isinstance(over, Tensor) or (tuple(over.shape), over.dtype) != ((SAMPLES,), torch.bool):
        got = f"{tuple(over.shape)}, {over.dtype}" if isinstance(over, Tensor) else repr(over)
        raise ContractError(f"{what} must return ({SAMPLES},), torch.bool, for {SAMPLES} samples; got {got}.")
    kept = _Kept.of(over)
    alone = torch.cat([task.condition(probe.states[i : i + 1].clone()) for i in range(SAMPLES)])
    task.condition(probe.system.step(probe.states.clone(), probe.actions.clone()))
    kept.check(what, over)
    if not torch.equal(over, alone):
        raise ContractError(
            f"{what} must treat samples apart; it says of a sample alone something else than in a batch."
        )


def _called(probe: _Probe, method: str, function: Function, arguments: list[Tensor]) -> Tensor:
    try:
        return function(*arguments)
    except (ArithmeticError, RuntimeError) as error:
        blamed = _blamed(probe.system)
        if not blamed:
            raise
        raise ContractError(f"{probe.name}.{method} fails ({told_briefly(error)}){blamed}.") from error


def _check_tensor(what: str, value: object, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    if not isinstance(value, Tensor):
        got = repr(value)
    elif (tuple(value.shape), value.dtype) != (shape, dtype):
        got = f"{tuple(value.shape)}, {value.dtype}"
    elif value.device.type != device.type:
        got = f"a tensor on {value.device}"
    else:
        return
    samples = f"{shape[0]} {str(dtype).removeprefix('torch.')} sample{'' if shape[0] == 1 else 's'}"
    raise ContractError(f"{what} must return {shape}, {dtype}, for {samples} on {device}; got {got}.")


def _check_rest(probe: _Probe) -> None:
    """Raise ContractError unless everything is finite without any action."""
    system = probe.system
    rest = system.bound(torch.zeros_like(probe.actions))
    for method, (function, arguments) in _functions(system, probe.states, rest).items():
        _check_finite(system, method, function(*arguments))


def _check_finite(system: System, method: str, values: Tensor, *, acting: bool = False) -> None:
    """Raise ContractError unless values are finite; after actions, only if an option is to blame rather than they."""
    if values.isfinite().all():
        return
    blamed = _blamed(system)
    if blamed or not acting:
        raise ContractError(
            f"{type(system).__name__}.{method} gives values that are not finite in {values.dtype}, from its own start "
            f"states{blamed}."
        )


def _blamed(system: System) -> str:
    """The option that is likely to be to blame, in words."""
    found = []
    for name, default in type(system).options().items():
        value = getattr(system, name, None)
        sizes = [abs(math.log(size)) for size in _sizes(value) if size > 0.0]
        if sizes and max(sizes) > math.log(EXTREME):
            shown = value.tolist() if isinstance(value, Tensor) else value
            words = f"; {name}={shown!r} is too extreme for its physics, the default is {default!r}"
            found.append((isinstance(value, float), max(sizes), words))  # a tensor may have been made of numbers
    return max(found)[-1] if found else ""


def _sizes(value: Any) -> list[float]:
    if isinstance(value, Tensor):
        return [abs(one) for one in value.flatten().tolist()]
    if isinstance(value, (tuple, list)):
        return [size for one in value for size in _sizes(one)]
    return [abs(value)] if isinstance(value, float) else []


def _same(first: Tensor, second: Tensor) -> bool:
    return torch.equal(first, second) or torch.equal(first.nan_to_num(0.0), second.nan_to_num(0.0))


# An episode


def _check_start_dtypes(probe: _Probe) -> None:
    device = probe.states.device
    for dtype in (torch.float32, torch.float64):
        states = probe.system.initial_states(SAMPLES, probe.generator, dtype)
        shape = (SAMPLES, *probe.system.state_shape)
        _check_tensor(f"{probe.name}.initial_states(..., dtype={dtype})", states, shape, dtype, device)


def _first_steps(probe: _Probe) -> _Probe:
    """Samples some steps of random actions later, where what is at rest at the start moves."""
    for _ in range(min(STEPS, probe.system.horizon)):
        states, actions = probe.system.step(probe.states, probe.actions), probe.draw_actions()
        _check_finite(probe.system, "step", states, acting=True)
        over = probe.system.episode_over(states)
        if not states.isfinite().all() or (over is not None and over.any()):
            break
        probe = _Probe(probe.system, states, actions, probe.generator)
    return probe


def _warn_of_divergence(probe: _Probe) -> None:
    """Warn if an episode of constant actions overflows."""
    system, states = probe.system, probe.states
    for t in range(STEPS + 1, min(system.horizon, MOST_STEPS) + 1):
        states = system.step(states, probe.actions)
        if not states.isfinite().all():
            warnings.warn(
                f"{probe.name} is not finite from step {t} of {system.horizon} on, in {states.dtype} and with constant "
                f"actions of up to half its nominal size, {system.nominal_action:g}: fewer steps (horizon), a smaller "
                "dt or tighter bounds of the actions keep it finite.",
                stacklevel=4,
            )
            return


def _check_loss(probe: _Probe) -> None:
    """Raise ContractError unless there is a way from the actions of an episode through `step` to a cost.

    Where there is one and every slope is 0, as before a contact, training may find out: that is warned of.
    """
    system = probe.system
    steps, any_cost, any_way = min(STEPS, system.horizon), False, False
    while True:
        slopes, costs = _slopes_by_actions(probe, probe.draw_actions, steps)
        any_cost, any_way = any_cost or costs, any_way or bool(slopes)
        if any(bool(slope.any()) for slope in slopes):
            return
        if steps >= min(system.horizon, MOST_STEPS):
            break
        steps = min(4 * steps, system.horizon, MOST_STEPS)
    for push in _pushes(probe):
        with contextlib.suppress(RuntimeError, ValueError, ArithmeticError, AssertionError):  # too strong for it
            slopes, costs = _slopes_by_actions(probe, push.clone, steps)
            any_cost, any_way = any_cost or costs, any_way or bool(slopes)
            if any(bool(slope.nan_to_num(0.0).any()) for slope in slopes):
                return
    if not any_cost:
        raise ContractError(
            f"{probe.name} has no cost: its loss is 0 whatever happens, so that there is nothing to learn. Implement "
            "state_cost(state), or running_cost and final_cost."
        )
    blamed = _blamed(system)
    if any_way and not blamed:
        warnings.warn(
            f"{probe.name}'s loss has a slope of 0 by every action, over {steps} steps of random actions and of strong "
            "ones: no rule learns from such episodes. Start states from where the actions reach what costs something, "
            "a longer horizon or a cost that falls off slowly would give it slopes.",
            stacklevel=4,
        )
        return
    raise ContractError(
        f"{probe.name}'s loss does not depend differentiably on the actions, over {steps} steps: "
        f"every slope is 0{blamed}. There must be a way from the action through step to a cost, without "
        "detach, NumPy or item()."
    )


def _pushes(probe: _Probe) -> Iterator[Tensor]:
    """Strong actions, for what has a dead zone or is far from the start: to both ends of the range, and beyond."""
    system = probe.system
    for size in (1.0, STRONG):
        for sign in (1.0, -1.0):
            yield system.bound(size * system.action_at(torch.full_like(probe.actions, sign)))


def _slopes_by_actions(probe: _Probe, act: Callable[[], Tensor], steps: int) -> tuple[Sequence[Tensor], bool]:
    """Slopes of the loss of a few steps by those actions that it depends on, and whether any step costs."""
    system = probe.system
    with torch.enable_grad():
        actions = [act().requires_grad_() for _ in range(steps)]
        state = probe.states
        total = state.new_zeros(SAMPLES)
        any_cost = False
        for action in actions:
            next_state = system.step(state, action)
            cost = system.running_cost(state, action, next_state)
            any_cost = any_cost or bool(cost.detach().any())
            total, state = total + cost, next_state
        final = system.final_cost(state)
        any_cost = any_cost or bool(final.detach().any())
        total = (total + final).sum()
        if not total.requires_grad:
            return [], any_cost
        found = torch.autograd.grad(total, actions, allow_unused=True)
        return [slope for slope in found if slope is not None], any_cost


# Slopes


def _check_slopes(probe: _Probe) -> None:
    names = {
        "observe": ("state",),
        "step": ("state", "action"),
        "running_cost": ("state", "action", "next_state"),
        "final_cost": ("state",),
    }
    for method, (function, arguments) in probe.functions().items():
        what = f"{probe.name}.{method}"
        try:
            result, leaves = _with_graph(function, arguments)
            vectors = torch.zeros_like(result)
            vectors[0] = torch.randn(result[0].shape, generator=torch.Generator().manual_seed(0)).to(result)
            slopes = _pull(result, leaves)(vectors) if result.requires_grad else []
        except RuntimeError as error:
            raise ContractError(
                f"{what} cannot be differentiated ({told_briefly(error)}); it must be made of torch operations, "
                "without NumPy and not in place."
            ) from error
        if any(bool(slope[1:].nan_to_num(0.0).any()) for slope in slopes):
            raise ContractError(f"{what} must treat samples apart; the slopes of one sample reach others of its batch.")
        for i, name in enumerate(names[method]):
            inputs = math.prod(arguments[i].shape[1:])
            if isinstance(probe.system, Task) and name != "action":
                inputs = probe.system.system.state_size  # what a task holds beside is to have no gradient
            _check_path(what, name, function, arguments, i, inputs)


def _check_path(what: str, name: str, function: Function, arguments: list[Tensor], place: int, inputs: int) -> None:
    """Raise ContractError where differences see a dependence on an argument that autograd does not know of.

    Only slopes that are exactly 0, here and nearby, are compared: a backward function may be another one than the
    slope, which is how a straight-through estimator works, but not none at all.

    Args:
        what: the function, in words.
        name: of the argument.
        function: the function.
        arguments: all of them.
        place: of the argument among them.
        inputs: the first so many of its components are looked at.
    """
    outputs = math.prod(function(*arguments).shape[1:])
    rows, columns = _some(outputs), _some(inputs)
    try:
        hidden = _hidden(function, arguments, place, rows, columns)
        if hidden.any():  # or it was a point where the slope happens to be 0, or one with a jump to either side
            hidden &= _hidden(function, _moved(arguments), place, rows, columns)
    except (RuntimeError, ValueError, ArithmeticError, AssertionError):  # it refuses what is next to its own states
        return
    if hidden.any():
        row, column = (int(index) for index in hidden.nonzero()[0])
        raise ContractError(
            f"{what} depends on component {int(columns[column])} of its {name}, and its gradient does not: component "
            f"{int(rows[row])} of what it returns changes, while the slope is 0. It must be differentiable, without "
            "detach, NumPy or item() on the way."
        )


def _hidden(function: Function, arguments: list[Tensor], place: int, rows: Tensor, columns: Tensor) -> Tensor:
    """Where outputs change with components of an argument and their slopes are 0, (rows, columns)."""
    unknown = (_jacobian(function, arguments, place, rows)[..., columns] == 0.0).all(0)
    if not unknown.any():
        return unknown
    seen = _differences(function, arguments, place, columns)[..., rows].mT  # (samples, rows, columns)
    return unknown & (seen.sum(0) > SAMPLES // 2)


def _moved(arguments: list[Tensor]) -> list[Tensor]:
    """Arguments next to these in all components, beyond what `_differences` goes."""
    generator = torch.Generator().manual_seed(0)
    signs = [2 * torch.randint(0, 2, argument.shape, generator=generator).to(argument) - 1 for argument in arguments]
    return [argument + 3 * sign * _change(argument) for argument, sign in zip(arguments, signs, strict=True)]


def _change(argument: Tensor) -> Tensor:
    """How far differences go in each component."""
    share: float = 10 * torch.finfo(argument.dtype).eps ** (1 / 3)
    return share * argument.abs().clamp(min=1.0)


def _some(count: int) -> Tensor:
    """Up to MOST_COMPONENTS indices, fewer of very many: each is a copy of all of them."""
    most = min(count, MOST_COMPONENTS, max(2, 2**14 // count))
    return torch.arange(count) if most == count else torch.linspace(0, count - 1, most).long()


def _jacobian(function: Function, arguments: list[Tensor], place: int, rows: Tensor) -> Tensor:
    """Rows of the Jacobian of a function by an argument, (samples, rows, inputs)."""
    result, leaves = _with_graph(function, [one.repeat_interleave(len(rows), 0) for one in arguments])
    if not result.requires_grad:
        return arguments[place].new_zeros(SAMPLES, len(rows), leaves[place][0].numel())
    units = torch.nn.functional.one_hot(rows, result[0].numel()).to(result).repeat(SAMPLES, 1).view(result.shape)
    return _pull(result, leaves)(units)[place].view(SAMPLES, len(rows), -1)


def _differences(function: Function, arguments: list[Tensor], place: int, columns: Tensor) -> Tensor:
    """Whether outputs change with components of an argument, (samples, columns, outputs), beyond rounding.

    To both sides, and not alike: a kink, where one of its slopes is 0 or they cancel, is none.
    """
    copies = [one.repeat_interleave(len(columns), 0) for one in arguments]
    argument = copies[place]
    epsilon = torch.finfo(argument.dtype).eps
    units = torch.nn.functional.one_hot(columns, argument[0].numel()).to(argument).repeat(SAMPLES, 1)
    change = _change(argument) * units.view(argument.shape)
    below, at, above = (
        function(*copies[:place], argument + sign * change, *copies[place + 1 :]).reshape(SAMPLES, len(columns), -1)
        for sign in (-1.0, 0.0, 1.0)
    )
    rounding = 100 * epsilon * at.abs().amax(-1, keepdim=True)
    return ((above - below).abs() > rounding) & ((above - at).abs() > rounding) & ((at - below).abs() > rounding)


def _check_closed_forms(probe: _Probe, digits: torch.dtype | None = None) -> None:
    """Raise ContractError unless `linearize` and `pullback`, where they are overridden, are the slopes of `step`."""
    digits = digits or probe.states.dtype
    system, states, actions = probe.system, probe.states, probe.actions
    batch, n, m = len(states), system.state_size, system.action_size
    passes = 4
    signs = torch.randint(0, 2, (passes, batch, n), generator=torch.Generator().manual_seed(0))
    vectors = (2 * signs - 1).to(states)
    result, leaves = _with_graph(system.step, [states, actions])
    pull = _pull(result, leaves)
    pulled = [pull(vector.view(result.shape)) for vector in vectors]
    expected = [torch.stack([slope.flatten(1) for slope in slopes]) for slopes in zip(*pulled, strict=True)]
    by = ("A = d next/d state", "B = d next/d action")
    elsewhere = result.detach(), actions.flip(0)
    if _is_overridden(system, "linearize"):
        jacobians = _pair(f"{probe.name}.linearize", system.linearize(states.clone(), actions.clone()))
        kept = [_Kept.of(one) for one in jacobians]
        system.linearize(*elsewhere)
        for one, jacobian in zip(kept, jacobians, strict=True):
            one.check(f"{probe.name}.linearize", jacobian)
        for jacobian, label, size, right in zip(jacobians, by, (n, m), expected, strict=True):
            what = f"{label} of {name_of(system, 'linearize')}"
            _check_tensor(what, jacobian, (batch, n, size), states.dtype, states.device)
            _check_products(what, (vectors.transpose(0, 1) @ jacobian).transpose(0, 1), right, digits)
    if _is_overridden(system, "pullback"):
        pullback = system.pullback(states.clone(), actions.clone())
        if not callable(pullback):
            raise ContractError(f"{probe.name}.pullback must return a function of rows and vectors; got {pullback!r}.")
        system.pullback(*elsewhere)  # which must leave what the first one keeps as it is
        inner = f"the function of {probe.name}.pullback"
        _check_call(inner, pullback, ("rows", "vectors"))
        for rows in (slice(0, batch), slice(1, 2)):
            with _naming_methods(inner):
                products = _pair(inner, pullback(rows, vectors[:, rows]))
            for product, label, right in zip(products, by, expected, strict=True):
                what = f"the product with {label} of {name_of(system, 'pullback')}"
                if product.shape != right[:, rows].shape:
                    raise ContractError(
                        f"{what} must have shape {tuple(right[:, rows].shape)}; got {tuple(product.shape)}."
                    )
                _check_products(what, product, right[:, rows], digits)


def _check_parameters(probe: _Probe) -> None:
    """Raise ContractError unless each parameter does in `with_parameters` what it does as an option, by sample."""
    declared = vars(type(probe.system)).get("parameters", ())
    own = declared if isinstance(declared, tuple) else ()
    for name in dict.fromkeys([*own, *probe.system.parameter_names]):
        value = getattr(probe.system.rebuilt(), name, None)
        wrong = name not in probe.system.parameter_names or isinstance(value, bool)
        if wrong or not isinstance(value, (int, float)):
            raise ContractError(
                f"{probe.name}.parameters must name options whose values are numbers, kept as self.{name}; got "
                f"{name!r}, of which self.{name} is {checks.shown(value)}."
            )
        values = [value, *_others_taken(probe.system, name, float(value))]
        with own_surroundings(probe.states.dtype, probe.states.device):
            built = [probe.system.rebuilt(**{name: one}) for one in values]
            changed = probe.system.rebuilt().with_parameters(**{name: probe.states.new_tensor(values)})
        _check_parameter(probe, name, built, changed)


def _check_parameter(probe: _Probe, name: str, built: Sequence[System], changed: System) -> None:
    what = f"{probe.name}.with_parameters({name}=(B,))"
    try:
        found = {method: function(*arguments) for method, (function, arguments) in _asked_of(changed, probe).items()}
        _check_closed_forms(_Probe(changed, probe.states, probe.actions, probe.generator))
    except Exception as error:
        raise ContractError(
            f"{what} fails ({_breach(error).rstrip('.')}): self.{name} is then a tensor with a value for each sample, "
            "of the shape of a component of the state, state[:, 0]; bptt_envs.system.broadcast gives it further "
            "dimensions."
        ) from error
    for i, system in enumerate(built):
        for method, (function, arguments) in _asked_of(system, probe).items():
            expected = function(*arguments)
            sample = [one[i].reshape(1, -1) for one in (found[method], expected)]
            if found[method].shape != expected.shape or not _close(*([one] for one in sample)):
                raise ContractError(
                    f"{what} does in {method} something else than systems that are built with these values. What the "
                    f"constructor makes of {name} must become a property, and a value must meet its own sample alone."
                )


def _asked_of(system: System, probe: _Probe) -> dict[str, tuple[Function, list[Tensor]]]:
    """What `_functions` says, and when episodes end."""
    ends = (lambda states: system.terminated(states).to(states.dtype)), [probe.states]
    return {**_functions(system, probe.states, probe.actions), "terminated": ends}


def _others_taken(system: System, name: str, value: float) -> list[float]:
    """Two other values of an option that the constructor takes."""
    candidates = [1.25 * value, 0.8 * value, value + 0.1, value - 0.1, value + 1.0, value - 1.0, value / 2]
    taken: list[float] = []
    for candidate in candidates:
        with contextlib.suppress(ValueError):
            system.rebuilt(**{name: candidate})
            taken += [candidate] * (candidate != value)
        if len(taken) == SAMPLES - 1:
            return taken
    raise ContractError(f"{type(system).__name__}.parameters names {name}, which takes no value but {value!r} nearby.")


def _pair(what: str, values: Any) -> Sequence[Tensor]:
    if not isinstance(values, (tuple, list)) or len(values) != 2 or not all(isinstance(v, Tensor) for v in values):
        raise ContractError(
            f"{what} must return two tensors, for the state and for the action; got {checks.shown(values)}."
        )
    return values


def name_of(system: System, method: str) -> str:
    """A method in words, with the class that writes it: nobody has to look for what he has not written."""
    kind = type(system.system if isinstance(system, Task) else system)
    writer = next(one for one in kind.__mro__ if method in vars(one))
    inherited = "" if writer is kind else f", which {kind.__name__} inherits,"
    return f"{writer.__name__}.{method}{inherited}"


def _check_products(what: str, found: Tensor, expected: Tensor, digits: torch.dtype) -> None:
    if bool((expected.isfinite() & ~found.isfinite()).any()):
        raise ContractError(f"{what} is infinite or no number where autograd's slopes of step are finite.")
    if not _close([found], [expected], digits):
        error = float((found - expected).abs().max() / expected.abs().max())
        raise ContractError(
            f"{what} differs from autograd's slopes of step, by {error:.1e} of the largest; correct it, or leave the "
            "method out: the default, such as linearize = System.linearize, takes them from step."
        )


def _is_overridden(system: System, method: str) -> bool:
    return getattr(getattr(system, method), "__func__", None) is not getattr(System, method)


def _with_graph(function: Function, arguments: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """What a function returns, and the leaves that it was given."""
    with torch.enable_grad():
        leaves = [argument.detach().clone().requires_grad_() for argument in arguments]
        return function(*leaves), leaves


def _pull(result: Tensor, leaves: Sequence[Tensor]) -> Callable[[Tensor], list[Tensor]]:
    """Vector-Jacobian products of a result."""

    def pull(vectors: Tensor) -> list[Tensor]:
        with torch.enable_grad():
            total = (result * vectors).sum()  # for vectors apart from it torch would import sympy, a third of a second
        return list(torch.autograd.grad(total, leaves, retain_graph=True, allow_unused=True, materialize_grads=True))

    return pull


def _close(found: Sequence[Tensor], expected: Sequence[Tensor], digits: torch.dtype | None = None) -> bool:
    """Whether slopes agree to half the digits, sample by sample; those that are not finite agree with anything."""
    for one, other in zip(found, expected, strict=True):
        size = torch.finfo(digits or one.dtype).eps ** 0.5 / 3 * other.abs().flatten(1).amax(1)
        difference = (one - other).abs().flatten(1).amax(1)
        if bool((difference > size).any()):
            return False
    return True
