"""Whether the parts of the fast engine are what torch's autograd says, at states of a trajectory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from bptt_envs.contract import name_of
from bptt_trainers.directions.adjoint import AdjointEngine, bound_with_slope, deviation
from bptt_trainers.directions.augmented import with_noise
from bptt_trainers.directions.compiled import CompiledEngine
from bptt_trainers.directions.controller_products import ControllerProducts
from bptt_trainers.directions.controller_tape import ControllerTape, NotServedError, RowOrder
from bptt_trainers.directions.parameter_hooks import unhooked
from bptt_trainers.directions.perceptron import Perceptron
from bptt_trainers.directions.recursion import Mix
from bptt_trainers.directions.rollout import Trajectory, losses
from bptt_trainers.directions.rules import Directions, Feedback

ROWS = 256  # samples (steps x batch) that are looked at, about
LOOK_EVERY = 32  # calls, unless who calls knows of epochs: how often parts are compared with autograd
SLACK = 10.0  # times the probe's tolerance: at states of a run, more than at those of a probe may be rounding
ROUNDING = {torch.float32: 1e-3, torch.float64: 1e-9}  # of parts that are zero but for rounding, to the largest part


def watched(
    engine: AdjointEngine | CompiledEngine,
    initial_states: Tensor,
    passes: Sequence[Feedback],
    look: bool,
    noise: Tensor | None = None,
    show: Callable[[Trajectory], object] | None = None,
    mixing: Callable[[Trajectory], Mix] | None = None,
) -> tuple[Tensor, dict[Feedback, Directions]]:
    """The losses and directions of an engine, if they can be trusted.

    The actions of the second run of the controller must be those of the rollout and, when there is a look, the engine's
    parts must be autograd's.

    Args:
        engine: the engine.
        initial_states: (B, *state_shape).
        passes: which paths each backward pass takes.
        look: whether to compare the parts, which takes as long as a fifth of a small update.
        noise: that of all steps, (T, B, *noise_shape), for a controller that is handed any; None: zeros.
        show: is shown what the episodes went through.
        mixing: from the episodes to what is taken in place of the slopes by the actions, of an engine that is not
            compiled.

    Raises:
        NotServedError: if they cannot be trusted.
    """
    allowed = SLACK * tolerance(initial_states)
    trajectory = engine.rollout(initial_states, noise)
    if look:
        different = disagreement(engine.uncompiled, trajectory, passes, allowed)
        if different is not None:
            raise NotServedError(different)
    if mixing is None:
        directions = engine.backward(trajectory, passes)
    else:
        directions = engine.uncompiled.backward(trajectory, passes, mix=mixing(trajectory))
    if float(engine.deviation) > allowed:
        raise NotServedError(SECOND_RUN)
    if show is not None:
        show(trajectory)
    return losses(engine.uncompiled.system, trajectory), directions


def tolerance(tensor: Tensor) -> float:
    """Differences up to this share are taken for rounding on the states of a probe."""
    return 1e-9 if tensor.dtype is torch.float64 else 1e-3


SECOND_RUN = "its actions differ when it is run again on the same observations"


def disagreement(
    engine: AdjointEngine, trajectory: Trajectory, passes: Sequence[Feedback], tolerance: float, rows: int = ROWS
) -> str | None:
    """In words, what the engine would compute otherwise than autograd; None if they agree.

    At some steps of the trajectory, by one backward pass of random vectors through the controller and one through
    the physics: the controller's actions and the products with its Jacobian and its parameters, the next states and
    the products with `System.linearize` or `System.pullback`. The vectors are random so that nothing hides what is
    looked for: no action at its bound, no slope of the loss that is zero, no sum that nearly is.

    Args:
        engine: the engine.
        trajectory: of its controller.
        passes: which paths the backward passes take, of which it depends in which way slopes are taken.
        tolerance: difference that is taken for rounding, relative to the norm of what is expected.
        rows: samples to look at, about.
    """
    system, batch = engine.system, trajectory.actions.shape[1]
    count = min(trajectory.horizon, max(1, rows // batch))
    times = torch.linspace(0, trajectory.horizon - 1, count).round().long().to(trajectory.states.device)
    state, next_state = (trajectory.states[some].flatten(0, 1) for some in (times, times + 1))
    action = trajectory.actions[times].flatten(0, 1)
    with unhooked(engine.controller):
        order = RowOrder(count, engine.members)
        recorded = ControllerTape(engine.controller, system, state, engine.layers, order)
        perceptron = engine.perceptron
        tape = recorded if perceptron is None else engine.tape(state, order, perceptron)
        found, expected = _controller_parts(engine, recorded, perceptron, engine.slopes_of(tape, batch, passes))
    if any(float(deviation(one.actions, action.flatten(1))) > tolerance for one in (recorded, tape)):
        return SECOND_RUN
    different = _different(found, expected, tolerance)
    if different is not None:
        return f"{different} differs from autograd's"
    found, expected = _physics_parts(engine, state, action)
    if float(deviation(expected.pop(STATES), with_noise(system, next_state, None).flatten(1))) > tolerance:
        return f"{system.class_name}.step gives other states when it is run again on the same states and actions"
    different = _different(found, expected, tolerance)
    if different is None:
        return None
    how = "linearize" if system.dense_jacobians else "pullback"
    return f"{name_of(system, how).rstrip(',')}: {different} differs from that of {system.class_name}.step"


STATES = "the next states"


def _controller_parts(
    engine: AdjointEngine,
    recorded: ControllerTape,
    perceptron: Perceptron | None,
    slopes: ControllerTape | ControllerProducts,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Products with the controller's Jacobian and parameters, by the engine and by autograd."""
    weights = _random(recorded.actions.shape, recorded.actions)
    if isinstance(slopes, ControllerTape):
        by_state = (weights.unsqueeze(1) @ slopes.jacobian).squeeze(1)
    else:
        by_state = slopes.pull(slice(None), weights.unsqueeze(0), slice(1)).squeeze(0)
    met = engine.restored(slopes.products(weights.unsqueeze(1), engine.others), perceptron)
    products = {name: one.squeeze(0) for name, one in met.items()}
    found = {BY_STATE: by_state, **_directions(products)}
    named = dict(engine.controller.named_parameters())
    targets = [recorded.state, *(named[name] for name in engine.names)]
    expected_by_state, *by_parameter = _gradients(recorded.given, targets, recorded.order.by_member(weights))
    expected_by_name = dict(zip(engine.names, by_parameter, strict=True))
    return found, {BY_STATE: recorded.order.by_time(expected_by_state.flatten(1)), **_directions(expected_by_name)}


BY_STATE = "the slope of its actions by the state"


def _directions(by_name: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"its direction for {name}": one for name, one in by_name.items()}


def _physics_parts(engine: AdjointEngine, state: Tensor, action: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Products with the Jacobians of the physics, by the system's own slopes and by autograd."""
    system = engine.system
    bounded, _ = bound_with_slope(system, action)
    with torch.enable_grad():
        leaves = [one.detach().requires_grad_() for one in (state, bounded)]
        following = system.step(*leaves).flatten(1)
        vectors = _random(following.shape, state)
        by_autograd = _gradients(following, leaves, vectors)
    if system.dense_jacobians:
        products = [(vectors.unsqueeze(1) @ one).squeeze(1) for one in system.linearize(state, bounded)]
    else:
        products = [one.squeeze(0) for one in system.pullback(state, bounded)(slice(None), vectors.unsqueeze(0))]
    names = ("the slope by the state", "the slope by the action")
    found = dict(zip(names, products, strict=True))
    expected = {name: one.flatten(1) for name, one in zip(names, by_autograd, strict=True)}
    return found, expected | {STATES: following.detach()}


def _gradients(outputs: Tensor, targets: Sequence[Tensor], vectors: Tensor) -> tuple[Tensor, ...]:
    with torch.enable_grad():
        total = (outputs * vectors).sum()
    gradients = torch.autograd.grad(total, targets, allow_unused=True, materialize_grads=True)
    return tuple(one.detach() for one in gradients)


def _random(shape: torch.Size, like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator, dtype=like.dtype).to(like.device)


def _different(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float) -> str | None:
    """The name of what is not as expected. Slopes that are not finite are the loss's business."""
    largest = max(float(one.norm()) for one in expected.values())
    for name, one in expected.items():
        difference = float((found[name] - one).norm())
        if difference > tolerance * (float(one.norm()) + ROUNDING.get(one.dtype, 1e-3) * largest):
            return name
    return None
