"""The directions by the adjoint recursion: no tape over time, all rules through one pass.

The rollout keeps the states and, of perceptrons, what their layers give. Then, backwards in segments of time steps,
everything but the recursion itself (`recursion.py`) is one batch over the steps and samples of the segment: the
controller runs again, unless what its layers gave was kept, and its Jacobian is taken, the physics are linearized, and
the vectors v_t of all passes, that is the slopes of the loss by the actions, meet the parameters in one product a
layer: direction = sum_t (dN/dtheta)^T v_t.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from bptt_envs import System
from bptt_envs.system import Pullback
from bptt_trainers.directions.augmented import AugmentedSystem, memory_size_of
from bptt_trainers.directions.controller_products import (
    ByAutograd,
    Chain,
    ControllerProducts,
    is_chain,
    overhead_of,
    takes_products,
)
from bptt_trainers.directions.controller_tape import ControllerTape, RowOrder
from bptt_trainers.directions.linear_layer import LinearLayer, is_linear
from bptt_trainers.directions.parameter_hooks import after_hooks, unhooked
from bptt_trainers.directions.perceptron import Activations, Perceptron, PerceptronTape, at, keeping
from bptt_trainers.directions.recursion import (
    ControllerPullback,
    Mix,
    SegmentSlopes,
    Sweep,
    any_fed_back,
    dense_sweep,
    first_felt,
    product_sweep,
    pullback_of,
    where_open,
)
from bptt_trainers.directions.rollout import Trajectory, losses, rollout
from bptt_trainers.directions.rules import Directions, Feedback
from bptt_trainers.directions.snapshot import left_as_it_was

# Samples (steps x batch) of a segment, and numbers in the slopes of its steps. At batch 1024 an update of cart-pole
# took the same time, within noise, from 2,000 to 8,000 samples and longer on either side.
SEGMENT_SAMPLES = 4096
SEGMENT_SLOPE_NUMBERS = 2**22


class AdjointEngine:
    """The adjoint form of backpropagation through time.

    It serves controllers that are functions of each observation alone, see `probe.py`.

    Args:
        system: the physics.
        controller: from observations (B, *observation_shape) to actions (B, *action_shape).
        by_layer: take the products with the parameters of `nn.Linear` layers from one backward pass that
            all rules share; where False, from one vector-Jacobian product for each rule.
        chained: take layers that are called one after the other for a chain, see `is_chain`.
        products: whether to take the slopes of the controller by products or by its Jacobian; None: by what is faster,
            see `takes_products`.
        segment_samples: samples (steps x batch) that are processed at once; bounds the memory.
        members: the batch holds so many equal parts, one after the other, and the loss is the sum of their
            means; for controllers that act on each part with parameters of its own (`stacked.py`).
        inference: roll out in torch's inference mode, see `rollout`.

    Attributes:
        deviation: of the last `backward`, by how much the actions of the controller's second run differ from those
            of the rollout, relative to the largest, (). Rounding, unless the controller is none that can be served.
    """

    name = "adjoint"

    def __init__(
        self,
        system: System,
        controller: nn.Module,
        *,
        by_layer: bool = True,
        chained: bool = True,
        products: bool | None = None,
        segment_samples: int = SEGMENT_SAMPLES,
        members: int = 1,
        inference: bool = False,
    ) -> None:
        self.system = system
        self.controller = controller
        self.by_layer = by_layer
        self.chained = chained
        self.products = products
        self.segment_samples = segment_samples
        self.members = members
        self.inference = inference
        self.deviation: Tensor
        self.activations = Activations()
        names = {p: n for n, p in controller.named_parameters() if p.requires_grad}
        self.names = list(names.values())
        self.layers = [LinearLayer.of(m, names) for m in controller.modules() if by_layer and is_linear(m)]
        in_layers = {name for layer in self.layers for name in (layer.weight, layer.bias)}
        self.others = [name for name in self.names if name not in in_layers]

    def __call__(
        self, initial_states: Tensor, passes: Sequence[Feedback], noise: Tensor | None = None
    ) -> tuple[Tensor, dict[Feedback, Directions]]:
        """The loss of each episode, (B,), and the directions of every pass for their mean.

        Args:
            initial_states: (B, *state_shape).
            passes: which paths each backward pass takes.
            noise: see `rollout`.
        """
        trajectory = self.rollout(initial_states, noise)
        return losses(self.system, trajectory), self.backward(trajectory, passes)

    @property
    def uncompiled(self) -> AdjointEngine:
        """The engine itself."""
        return self

    def rollout(self, initial_states: Tensor, noise: Tensor | None = None) -> Trajectory:
        """Run one episode from each of `initial_states`, (B, *state_shape), with noise (T, B, *noise_shape) if any."""
        perceptron, inference = self.perceptron, self.inference
        if perceptron is None:
            return rollout(self.system, self.controller, initial_states, noise=noise, inference=inference)
        buffers = self.activations.room(perceptron, self.system.horizon, initial_states, inference=inference)
        act = keeping(perceptron, buffers, inference=inference)
        trajectory = rollout(self.system, self.controller, initial_states, noise=noise, inference=inference, act=act)
        self.activations.settle(perceptron, trajectory)
        return trajectory

    @property
    def perceptron(self) -> Perceptron | None:
        """The controller as it is now in closed form, where that is known and nothing but its layers is trained."""
        # A Sequential does not flatten what it is given
        flat = len(self.system.observation_shape) == 1 or type(self.controller) is not nn.Sequential
        alone = self.by_layer and self.chained and not self.others and not isinstance(self.system, AugmentedSystem)
        found = Perceptron.of(self.controller) if alone and flat else None
        return None if found is None or (self.products and not found.is_chain) else found

    def tape(
        self,
        state: Tensor,
        order: RowOrder,
        perceptron: Perceptron | None = None,
        kept: Sequence[Tensor] | None = None,
    ) -> ControllerTape:
        """A run of the controller on states (N, *state_shape), by time; the rest as in `segment`."""
        if perceptron is None:
            return ControllerTape(self.controller, self.system, state, self.layers, order)
        return PerceptronTape(perceptron, self.system, state, self.layers, order, kept)

    def backward(
        self,
        trajectory: Trajectory,
        passes: Sequence[Feedback],
        watch: Callable[[Sweep], object] | None = None,
        mix: Mix | None = None,
    ) -> dict[Feedback, Directions]:
        """The directions of every pass for the mean loss of a trajectory of this controller.

        Args:
            trajectory: what `rollout` gave.
            passes: which paths each backward pass takes.
            watch: is shown the adjoints of every segment, the last segment first.
            mix: what is taken in place of the slopes by the actions, step by step.

        Raises:
            RuntimeError: within torch.inference_mode(), where slopes are not kept.
        """
        if torch.is_inference_mode_enabled():
            raise RuntimeError("directions cannot be taken within torch.inference_mode(); leave it, or use no_grad().")
        parameters = dict(self.controller.named_parameters())
        perceptron = self.perceptron
        totals = {n: parameters[n].new_zeros(len(passes), *parameters[n].shape) for n in self.names}
        adjoint = self.final_adjoint(trajectory.states[-1], len(passes))
        open_steps = where_open(passes, self.system.horizon, adjoint.device)
        deviations = []
        buffers = None if perceptron is None else self.activations.of(perceptron, trajectory)
        felt = 0 if watch is not None or mix is not None else self._felt_from(trajectory, passes)
        with unhooked(self.controller):
            for steps in self._segments(adjoint.shape[1], len(passes), felt):
                states, actions = trajectory.states[steps.start : steps.stop + 1], trajectory.actions[steps]
                if steps.stop <= felt and not (adjoint.any() or self._pays(states, actions)):
                    continue
                open_here = None if open_steps is None else open_steps[steps]
                later = None if mix is None else replace(mix, taken=partial(_shifted, mix, steps.start))
                kept = None if buffers is None else at(buffers, steps)
                sweep, products, deviation = self.segment(
                    states, actions, adjoint, passes, open_here, later, perceptron, kept
                )
                deviations.append(deviation)
                adjoint = sweep.start
                for name, product in products.items():
                    totals[name] += product
                if watch is not None:
                    watch(sweep)
        self.deviation = torch.stack(deviations).amax()
        return by_pass(self.restored(totals, perceptron), passes, parameters)

    def restored(self, products: Mapping[str, Tensor], perceptron: Perceptron | None) -> dict[str, Tensor]:
        """What `segment` adds to the directions by name, the weights of a perceptron as the parameters have them."""
        if perceptron is None:
            return dict(products)
        names = {layer.module: layer.weight for layer in self.layers}
        places = {names[module]: i for i, module in enumerate(perceptron.modules)}
        return {n: perceptron.restored(places[n], one) if n in places else one for n, one in products.items()}

    def final_adjoint(self, final_state: Tensor, passes: int) -> Tensor:
        """The slopes of the mean loss by the state at step T, (B, *state_shape) -> (P, B, n)."""
        (slope,) = _slopes(self.system.final_cost, final_state)
        slope = torch.zeros_like(final_state) if slope is None else slope
        return (self.members / final_state.shape[0] * slope.flatten(1)).expand(passes, -1, -1)

    def _felt_from(self, trajectory: Trajectory, passes: Sequence[Feedback]) -> int:
        """The first step that has slopes by what comes last; 0 unless that alone has a cost, as far as is known."""
        felt = first_felt(passes, self.system.horizon, memory_size_of(self.system))
        return 0 if felt and self._pays(trajectory.states[-2:], trajectory.actions[-1:]) else felt

    def _pays(self, states: Tensor, actions: Tensor) -> bool:
        """Whether steps have running costs with slopes, (S + 1, B, *state_shape) and (S, B, *action_shape)."""
        bounded = self.system.bound(actions.flatten(0, 1))
        cost = _slopes(self.system.running_cost, states[:-1].flatten(0, 1), bounded, states[1:].flatten(0, 1))
        return any(slope is not None for slope in cost)

    def _segments(self, batch: int, passes: int, felt: int) -> Iterator[slice]:
        """Slices of time steps, the last first, none of which has step `felt` in its midst."""
        length = self.segment_steps(batch, passes)
        for first, last in ((felt, self.system.horizon), (0, felt)):
            for stop in range(last, first, -length):
                yield slice(max(first, stop - length), stop)

    def segment_steps(self, batch: int, passes: int) -> int:
        """Steps of a segment, which bound its memory, for a batch and a number of passes."""
        numbers = self.system.slope_numbers * (passes if self.system.dense_jacobians else 1)
        samples = min(self.segment_samples, max(1, SEGMENT_SLOPE_NUMBERS // numbers))
        return max(1, samples // batch)

    def segment(
        self,
        states: Tensor,
        actions: Tensor,
        adjoint: Tensor,
        passes: Sequence[Feedback],
        open_steps: Tensor | None = None,
        mix: Mix | None = None,
        perceptron: Perceptron | None = None,
        kept: Sequence[Tensor] | None = None,
    ) -> tuple[Sweep, dict[str, Tensor], Tensor]:
        """Take the adjoints from the end of a segment of S steps to its start.

        Args:
            states: (S + 1, B, *state_shape).
            actions: (S, B, *action_shape).
            adjoint: at the end, (P, B, n).
            passes: which paths each backward pass takes.
            open_steps: whether each of them feeds back to the state at a step, (S, P); None: all do.
            mix: as that of `backward`, by the step of the segment.
            perceptron: the controller in closed form, if it is to be taken so.
            kept: what its layers gave at these steps; None: they run again.

        Returns:
            The adjoints, what the segment adds to the directions, (P, *shape) by name and as `restored` takes it, and
            its `deviation`.
        """
        system = self.system
        steps, batch = actions.shape[:2]
        state, next_state, action = states[:-1].flatten(0, 1), states[1:].flatten(0, 1), actions.flatten(0, 1)
        bounded, bound = bound_with_slope(system, action)
        by_state, by_action, by_next_state = (
            None if slope is None else self.members / batch * slope.flatten(1)
            for slope in _slopes(system.running_cost, state, bounded, next_state)
        )
        if by_action is not None and bound is not None:
            by_action = by_action * bound
        tape = self.tape(state, RowOrder(steps, self.members), perceptron, kept)
        memory = memory_size_of(system)
        met = self.slopes_of(tape, batch, passes)
        gain: Tensor | ControllerPullback | None = None
        if any_fed_back(passes, memory):
            gain = tape.jacobian if isinstance(met, ControllerTape) else met.pull
        slopes = SegmentSlopes(steps, by_state, by_action, by_next_state, bound, gain, memory, open_steps)
        if mix is None and system.dense_jacobians and (gain is None or isinstance(gain, Tensor)):
            sweep = dense_sweep(*system.linearize(state, bounded), slopes, adjoint, passes)
        else:
            blind = mix is not None and not (mix.looks or memory)
            pull = _nothing(system) if blind else pullback_of(system, state, bounded)
            sweep = product_sweep(pull, slopes, adjoint, passes, mix)
        return sweep, met.products(sweep.weights, self.others), deviation(tape.actions, action.flatten(1))

    def numbers_given(self, state: Tensor) -> int:
        """Numbers that the linear layers of the controller give for one state, (1, *state_shape)."""
        with left_as_it_was(self.controller):
            tape = ControllerTape(self.controller, self.system, state, self.layers)
        return sum(call.output.numel() for call in tape.calls)

    def slopes_of(
        self, tape: ControllerTape, batch: int, passes: Sequence[Feedback]
    ) -> ControllerTape | ControllerProducts:
        """What takes the slopes of the controller, by the Jacobian or by products, for steps of a batch.

        Args:
            tape: a run of the controller.
            batch: samples of a step.
            passes: which paths each backward pass takes.
        """
        chained, overhead = self.chained and is_chain(tape), 0
        if any_fed_back(passes, memory_size_of(self.system)):
            overhead = overhead_of(tape, chained=chained, dense=self.system.dense_jacobians)
        products = self.products
        if products is None:
            products = takes_products(self.system.action_size, len(passes), batch, overhead)
        if not products:
            return tape
        return Chain(tape) if chained else ByAutograd(tape)


def by_pass(
    totals: Mapping[str, Tensor], passes: Sequence[Feedback], parameters: Mapping[str, Tensor]
) -> dict[Feedback, Directions]:
    """Directions of P passes, (P, *shape) by name, apart, and as the hooks of the parameters change them."""
    return {
        feedback: after_hooks({name: total[i] for name, total in totals.items()}, parameters)
        for i, feedback in enumerate(passes)
    }


def _shifted(mix: Mix, start: int, step: int, weights: Tensor) -> Tensor:
    """What `mix` gives for a step of a segment that begins with step `start`."""
    return mix.taken(start + step, weights)


def _nothing(system: System) -> Pullback:
    """Zeros in place of products with the Jacobians of the physics."""
    return lambda rows, vectors: (torch.zeros_like(vectors), vectors.new_zeros(*vectors.shape[:2], system.action_size))


def deviation(again: Tensor, actions: Tensor) -> Tensor:
    """The largest difference between actions of a second run and the first, relative to the largest action, ()."""
    return (again - actions).abs().amax() / actions.abs().amax().clamp_min(torch.finfo(actions.dtype).tiny)


def bound_with_slope(system: System, action: Tensor) -> tuple[Tensor, Tensor | None]:
    """The bounded actions, and the slope of the bound, (N, m), None where there is no bound."""
    if not system.has_bounds:
        return action, None
    with torch.enable_grad():
        leaf = action.detach().requires_grad_()
        bounded = system.bound(leaf)
        (slope,) = torch.autograd.grad(bounded.sum(), leaf)
    return bounded.detach(), slope.flatten(1)


def _slopes(cost: Callable[..., Tensor], *arguments: Tensor) -> tuple[Tensor | None, ...]:
    """Slopes of a cost, (N,), by each of its arguments; None where it does not depend on one."""
    with torch.enable_grad():
        leaves = [argument.detach().requires_grad_() for argument in arguments]
        total = cost(*leaves).sum()
        if not total.requires_grad:
            return (None,) * len(leaves)
        return torch.autograd.grad(total, leaves, allow_unused=True)
