"""The adjoint engine with its loops over time compiled: the same operations, recorded and made one program."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from bptt_envs.program import Order, Program, Tensors
from bptt_trainers.directions.adjoint import AdjointEngine, by_pass
from bptt_trainers.directions.augmented import with_noise
from bptt_trainers.directions.controller_tape import RowOrder
from bptt_trainers.directions.perceptron import Perceptron, at, is_kept, keeping
from bptt_trainers.directions.recursion import where_open
from bptt_trainers.directions.rollout import Trajectory, check_noise, losses, rollout
from bptt_trainers.directions.rules import Directions, Feedback

# Steps in a program, at most; on the way back also half a segment of the uncompiled engine, and numbers in the slopes.
# More steps make longer programs, which take longer to compile. Measured, way back: cart-pole at batch 8 takes with 25
# steps 0.7 times the time of 10; at batch 1024 with 2 (half a segment) 0.96 times that of 1, 0.93 of 5, 0.77 of 10 and
# 0.63 of 20. Large slopes gain nothing from more steps: guidance with 72 agents at batch 8 takes by rule C as long with
# 5 as with 10, by rule R up to half as long. The way there is as fast with 10 as with 25.
STEPS_THERE = 10
STEPS_BACK = 25
SLOPE_NUMBERS_BACK = 2**20


class CompiledEngine:
    """What `AdjointEngine` computes, by compiled programs of some steps each.

    The programs are made at the first call with start states of a shape, see `Program`; what a horizon has left
    over after whole programs runs step by step.

    Args:
        engine: what to compile. The programs hold what it, its controller and its system are at that time, but for
            the values of parameters and buffers; `ChosenEngine` makes another engine when that changes.

    Attributes:
        uncompiled: the engine.
        deviation: as that of `AdjointEngine`.
    """

    name = "adjoint"

    def __init__(self, engine: AdjointEngine) -> None:
        self.uncompiled = engine
        self.deviation: Tensor
        self._perceptron = engine.perceptron
        self._layers: dict[str, int] = {}  # of the perceptron, by the names of their weights
        if self._perceptron is not None:
            places = {id(module.weight): i for i, module in enumerate(self._perceptron.modules)}
            self._layers = {n: places[id(p)] for n, p in engine.controller.named_parameters() if id(p) in places}
        self._programs: dict[object, Program] = {}

    def __call__(
        self, initial_states: Tensor, passes: Sequence[Feedback], noise: Tensor | None = None
    ) -> tuple[Tensor, dict[Feedback, Directions]]:
        """The loss of each episode, (B,), and the directions of every pass for their mean.

        Args:
            initial_states: (B, *state_shape).
            passes: which paths each backward pass takes.
            noise: see `rollout`.

        Raises:
            CompilerError: if the programs cannot be compiled.
        """
        trajectory = self.rollout(initial_states, noise)
        return losses(self.uncompiled.system, trajectory), self.backward(trajectory, passes)

    @torch.no_grad()
    def rollout(self, initial_states: Tensor, noise: Tensor | None = None) -> Trajectory:
        """Run one episode from each of `initial_states`, (B, *state_shape), with noise (T, B, *noise_shape) if any."""
        system, horizon = self.uncompiled.system, self.uncompiled.system.horizon
        check_noise(system, noise, horizon, initial_states)
        initial_states = initial_states.contiguous()
        tensors, perceptron = self._held(), self._perceptron
        part = self._part_there(initial_states, noise)
        buffers: list[Tensor] = []
        if perceptron is not None:
            buffers = self.uncompiled.activations.room(perceptron, horizon, initial_states)
        length, program = part.steps, self._program(part)

        def drawn(start: int, steps: int) -> list[Tensor]:
            return [] if noise is None else [noise[start : start + steps].contiguous()]

        states, actions = [initial_states.unsqueeze(0)], []
        for i in range(horizon // length):
            run = program if i == 0 else program.again
            some_states, some_actions, *given = run(states[-1][-1], *drawn(i * length, length), *tensors)
            states.append(some_states)
            actions.append(some_actions)
            if given:
                torch._foreach_copy_([one[..., i * length : (i + 1) * length, :, :] for one in buffers], given)
        if horizon % length:
            steps = horizon % length
            left = None if noise is None else noise[-steps:]
            places = [one[..., -steps:, :, :] for one in buffers]
            act = None if perceptron is None else keeping(perceptron.anew(), places)
            rest = rollout(system, self.uncompiled.controller, states[-1][-1], steps, noise=left, act=act)
            states.append(rest.states[1:])
            actions.append(rest.actions)
        through = torch.cat(states)
        if noise is not None:  # a program gives back the states after its steps, the last of them without noise
            through = torch.cat([with_noise(system, through[:-1], noise), through[-1:]])
        trajectory = Trajectory(through, torch.cat(actions))
        if perceptron is not None:
            self.uncompiled.activations.settle(perceptron, trajectory)
        return trajectory

    @torch.no_grad()
    def backward(self, trajectory: Trajectory, passes: Sequence[Feedback]) -> dict[Feedback, Directions]:
        """The directions of every pass for the mean loss of a trajectory of this controller."""
        engine, horizon = self.uncompiled, self.uncompiled.system.horizon
        adjoint = engine.final_adjoint(trajectory.states[-1], len(passes)).contiguous()
        tensors, perceptron = self._held(), self._perceptron
        buffers = None if perceptron is None else engine.activations.of(perceptron, trajectory)
        open_steps = where_open(passes, horizon, adjoint.device)  # an input: where a pass is cut is no other program
        part = self._part_back(trajectory, adjoint, passes, open_steps)
        length = part.steps

        def open_from(start: int, steps: int) -> list[Tensor]:
            return [] if open_steps is None else [open_steps[start : start + steps]]

        def kept_from(start: int, steps: int) -> list[Tensor]:
            if perceptron is None or not part.module.keeps:
                return []
            if buffers is not None:
                return [one.contiguous() for one in at(buffers, slice(start, start + steps))]
            order = RowOrder(steps, engine.members)
            states = order.by_member(trajectory.states[start : start + steps].flatten(0, 1))
            return perceptron.anew().run(engine.system.observe(states))

        rest = horizon % length
        products: list[Tensor] = []
        deviations: list[Tensor] = []
        if rest:
            last = trajectory.states[-rest - 1 :], trajectory.actions[-rest:]
            open_here = next(iter(open_from(horizon - rest, rest)), None)
            now = None if perceptron is None else perceptron.anew()
            kept = kept_from(horizon - rest, rest) or None
            sweep, by_name, deviation = engine.segment(*last, adjoint, passes, open_here, None, now, kept)
            adjoint, products = sweep.start.contiguous(), [by_name[name] for name in engine.names]
            deviations.append(deviation)
        program = self._program(part)
        for i, start in enumerate(range(horizon - rest - length, -1, -length)):
            run = program if i < 2 else program.again  # the first adjoint comes from elsewhere
            states, actions = trajectory.states[start : start + length + 1], trajectory.actions[start : start + length]
            given = *open_from(start, length), *kept_from(start, length)
            adjoint, deviation, *more = run(states, actions, adjoint, *given, *tensors)
            deviations.append(deviation)
            if products:
                torch._foreach_add_(products, more)
            else:
                products = more
        self.deviation = torch.stack(deviations).amax()
        parameters = dict(engine.controller.named_parameters())
        totals = engine.restored(dict(zip(engine.names, products, strict=True)), perceptron)
        return by_pass(totals, passes, parameters)

    def orders(
        self, trajectory: Trajectory, passes: Sequence[Feedback], noise: Tensor | None = None
    ) -> dict[object, Order]:
        """The programs that calls with such states, passes and noise take, before they are compiled."""
        engine = self.uncompiled
        adjoint = engine.final_adjoint(trajectory.states[-1], len(passes)).contiguous()
        open_steps = where_open(passes, engine.system.horizon, adjoint.device)
        there = self._part_there(trajectory.states[0].contiguous(), noise)
        parts = (there, self._part_back(trajectory, adjoint, passes, open_steps))
        return {part.key: Order(part.module.function(), self._inputs(part)) for part in parts}

    def _part_there(self, initial_states: Tensor, noise: Tensor | None) -> _Part:
        length = _length(self.uncompiled.system.horizon, STEPS_THERE)
        key = ("there", length, noise is None, *_kind(initial_states))
        drawn = [] if noise is None else [noise[:length].contiguous()]
        keeps = self._keeps(len(initial_states))
        return _Part(key, _There(self.uncompiled, self._perceptron, keeps, length), [initial_states, *drawn], length)

    def _part_back(
        self, trajectory: Trajectory, adjoint: Tensor, passes: Sequence[Feedback], open_steps: Tensor | None
    ) -> _Part:
        engine, batch = self.uncompiled, trajectory.actions.shape[1]
        half_segment = engine.segment_steps(batch, len(passes)) // 2
        by_slopes = SLOPE_NUMBERS_BACK // (engine.system.slope_numbers * batch)
        length = _length(engine.system.horizon, max(1, min(STEPS_BACK, half_segment, by_slopes)))
        key = ("back", length, tuple(passes), *_kind(adjoint))
        cut = [] if open_steps is None else [open_steps[:length]]
        keeps, perceptron = self._keeps(batch), self._perceptron
        kept: list[Tensor] = []
        if perceptron is not None and keeps:
            rows = length * batch // math.prod(perceptron.members)
            kept = [adjoint.new_empty(*perceptron.members, rows, width) for width in perceptron.widths]
        inputs = [trajectory.states[: length + 1], trajectory.actions[:length], adjoint, *cut, *kept]
        return _Part(key, _Back(engine, perceptron, keeps, passes, is_cut=bool(cut)), inputs, length)

    def _keeps(self, batch: int) -> bool:
        """Whether what the layers give is kept for the way back."""
        perceptron, horizon = self._perceptron, self.uncompiled.system.horizon
        return perceptron is not None and is_kept(perceptron, horizon, batch)

    def _held(self) -> list[Tensor]:
        """What the controller holds, the weights of a perceptron in the order in which they are met."""
        tensors = _tensors(self.uncompiled.controller)
        if self._perceptron is not None:
            tensors |= {name: self._perceptron.weight_of(i) for name, i in self._layers.items()}
        return list(tensors.values())

    def _inputs(self, part: _Part) -> list[Tensor]:
        return [*part.inputs, *self._held()]

    def _program(self, part: _Part) -> Program:
        if part.key not in self._programs:
            self._programs[part.key] = Program(part.module.function(), self._inputs(part))
        return self._programs[part.key]


@dataclass(frozen=True)
class _Part:
    """Some steps of the engine's work, which one program does over and over."""

    key: object
    module: _Recorded
    inputs: list[Tensor]
    steps: int


class _Recorded(nn.Module):
    """A part of the engine as a function of tensors, those that the controller holds among them.

    Args:
        engine: of which it is a part.
        perceptron: its controller in closed form, if it is known.
        keeps: whether what its layers give is handed from the way there to the way back.
    """

    def __init__(self, engine: AdjointEngine, perceptron: Perceptron | None, keeps: bool) -> None:
        super().__init__()
        self.engine = engine
        self.controller = engine.controller
        self.perceptron = perceptron
        self.keeps = keeps

    def function(self) -> Callable[..., Tensors]:
        """From its inputs and what the controller holds to its outputs."""
        names = list(_tensors(self.controller))
        trained = set(self.engine.names)

        def function(*tensors: Tensor) -> Tensors:
            inputs, held = tensors[: -len(names)], tensors[-len(names) :]
            named = {
                f"controller.{name}": tensor.detach().requires_grad_(name in trained)
                for name, tensor in zip(names, held, strict=True)
            }
            outputs: Tensors = functional_call(self, named, inputs)
            return outputs

        return function


class _There(_Recorded):
    """Some steps of a rollout: (B, *state_shape), the noise of each -> the states after each, the actions.

    If it is kept, then what each layer gave, (*members, steps, B, width).
    """

    def __init__(self, engine: AdjointEngine, perceptron: Perceptron | None, keeps: bool, steps: int) -> None:
        super().__init__(engine, perceptron, keeps)
        self.steps = steps

    def forward(self, state: Tensor, noise: Tensor | None = None) -> Tensors:
        given: list[list[Tensor]] = []
        within = None if self.perceptron is None else self.perceptron.within_program()

        def act(observation: Tensor) -> Tensor:
            assert within is not None
            given.append(within.run(observation))
            return within.act(given[-1])

        known = None if within is None else act
        some = rollout(self.engine.system, self.controller, state, self.steps, noise=noise, act=known)
        kept: list[Tensor] = []
        if within is not None and self.keeps:
            for weight, one in zip(within.weights, zip(*given, strict=True), strict=True):
                rows = torch.cat([step.view(*within.members, -1, weight.shape[-2]) for step in one], -2)
                kept.append(rows.view(*within.members, self.steps, *one[0].shape[-2:]))
        return some.states[1:].clone(), some.actions, *kept


class _Back(_Recorded):
    """A segment: states, actions, the adjoint at its end and, if a pass is cut anywhere, which steps feed back.

    If it is kept, then what each layer gave, (*members, steps B, width). It gives the adjoint at its start, the
    deviation, and the products by name, see `AdjointEngine.segment`.
    """

    def __init__(
        self,
        engine: AdjointEngine,
        perceptron: Perceptron | None,
        keeps: bool,
        passes: Sequence[Feedback],
        *,
        is_cut: bool,
    ) -> None:
        super().__init__(engine, perceptron, keeps)
        self.passes = tuple(passes)
        self.is_cut = is_cut

    def forward(self, states: Tensor, actions: Tensor, adjoint: Tensor, *more: Tensor) -> Tensors:
        open_steps, kept = (more[0], more[1:]) if self.is_cut else (None, more)
        within = None if self.perceptron is None else self.perceptron.within_program()
        sweep, products, deviation = self.engine.segment(
            states, actions, adjoint, self.passes, open_steps, None, within, kept or None
        )
        return sweep.start, deviation, *(products[name] for name in self.engine.names)


def _tensors(controller: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers, by name: what may change between updates, so that no program may keep it."""
    return {name: one.detach() for name, one in (*controller.named_parameters(), *controller.named_buffers())}


def _length(horizon: int, longest: int) -> int:
    """Steps of a program: at most `longest`, at least half of it, that leave the fewest over."""
    longest = min(horizon, longest)
    return min(range(longest, (longest + 1) // 2 - 1, -1), key=lambda steps: horizon % steps)


def _kind(tensor: Tensor) -> tuple[object, ...]:
    return tensor.shape, tensor.dtype, tensor.device
