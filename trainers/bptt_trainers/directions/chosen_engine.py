"""The engine that serves a controller as it is now: chosen by a probe, and again when anything changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar
from weakref import WeakKeyDictionary, WeakSet

from torch import Tensor, nn

from bptt_envs import System
from bptt_envs.fingerprint import Onlooker, Token, fingerprint
from bptt_envs.warned import warn
from bptt_trainers.directions.adjoint import AdjointEngine
from bptt_trainers.directions.agreement import LOOK_EVERY, watched
from bptt_trainers.directions.augmented import AugmentedSystem, EntropyWeight, augmented, memory_size_of
from bptt_trainers.directions.autograd import AutogradEngine
from bptt_trainers.directions.compiled import CompiledEngine
from bptt_trainers.directions.controller_tape import NotServedError
from bptt_trainers.directions.perceptron import KEPT_NUMBERS
from bptt_trainers.directions.probe import Verdict, examine
from bptt_trainers.directions.recursion import Mix
from bptt_trainers.directions.rollout import Trajectory, check_noise
from bptt_trainers.directions.rules import Directions, Feedback
from bptt_trainers.directions.stacked import StackedEngine
from bptt_trainers.directions.surroundings import computing
from bptt_trainers.directions.switching import Compile, Switch

EngineName = Literal["auto", "adjoint", "autograd"]

REMEMBERED = 16

# Numbers that a controller remembers, up to which "auto" takes the adjoint engine: they are components of its actions.
# Measured, cart-pole of 50 steps, rule C, over the time by autograd: a GRU of 16 at batch 8 and 64 0.24 and 0.80, one
# of 32 0.54 and 0.93, one of 64 0.72 and 1.6, one of 128 0.98 and 1.6.
MOST_REMEMBERED = 32

# Numbers that the layers of a controller that is not run in closed form give in a step of the batch, from which on
# "auto" takes autograd for a rule of one pass: the adjoint engine would run them a second time. docs/rules.md has what
# was measured.
MOST_RUN_AGAIN = 2**16

Key = TypeVar("Key")
Value = TypeVar("Value")


@dataclass
class Judgement:
    """A verdict, and how often the engine that it admits was used since."""

    verdict: Verdict
    calls: int = 0


_judgements: WeakKeyDictionary[nn.Module, dict[Token, Judgement]] = WeakKeyDictionary()
_warned: WeakSet[nn.Module] = WeakSet()


def judgement(system: System, controller: nn.Module, initial_states: Tensor, key: Token) -> Judgement:
    """What a probe finds, kept for each controller under the fingerprint `key` of it and of the system."""
    known = _judgements.setdefault(controller, {})
    found = known.get(key)
    if found is None:
        with computing(initial_states):
            found = Judgement(examine(system, controller, initial_states))
    remember(known, key, found)
    return found


def remember(known: dict[Key, Value], key: Key, value: Value) -> None:
    """Keep the latest few: what changes in every update, such as a schedule, does not come back."""
    known.pop(key, None)
    known[key] = value
    if len(known) > REMEMBERED:
        del known[next(iter(known))]


COMPILED = "; compiled"  # the end of a reason


class ChosenEngine(Onlooker):
    """Computes the loss and the directions of a controller by the fastest engine that serves it.

    The choice is made by a probe. It is made again as soon as anything changes that it depends on (parameters and
    buffers but for the parameters' values, attributes, modes, hooks, the system's settings), so that the directions are
    those of what the controller and the system are now. What a fingerprint cannot show is watched for: in every call
    the actions of the adjoint engine's second run of the controller must be those of the rollout, and now and then its
    parts must be autograd's. Where they are not, the autograd engine takes over, with a warning.

    Args:
        system: the physics.
        controller: from observations (B, *observation_shape) to actions (B, *action_shape).
        engine: "autograd", "adjoint" or "auto", as in `policy_gradient`.
        compile: compile the loops of the adjoint engine, see `CompiledEngine`; "auto": have a second process make the
            programs, until `switch` takes them.
        entropy: weight of the entropy of the controller's actions, which is subtracted from the loss, see
            `AugmentedSystem`.

    """

    def __init__(
        self,
        system: System,
        controller: nn.Module,
        engine: EngineName = "auto",
        compile: Compile = False,
        entropy: float | EntropyWeight = 0.0,
    ) -> None:
        self.system = augmented(system, controller, entropy)
        self.controller = controller
        self._reason = "asked for"
        self._aside = False  # whether the last call left it to autograd as what is faster there
        self._asked = engine
        self._compile = compile is True
        self._switch = Switch() if compile == "auto" else None
        self._autograd = AutogradEngine(self.system, controller)
        self._fast: AdjointEngine | CompiledEngine | None = None
        self._key: Token | None = None
        self._leaves: bool | None = None  # whether a run leaves something in the controller; None: not known yet
        self._given = 0  # numbers that the layers of the controller give for a sample
        self._form: Token | None = None  # what the engine in use was made for: the key but for the values of buffers
        self._judgement: Judgement | None = None
        self._stack: tuple[object, StackedEngine] | None = None  # and of which engine in use it is

    @property
    def name(self) -> str:
        """That of the engine in use."""
        return self._autograd.name if self._fast is None or self._aside else self._fast.name

    @property
    def reason(self) -> str:
        """Why the engine of the last call, or of `choose`."""
        return "autograd is faster for one pass over a batch of this size" if self._aside else self._reason

    def choose(self, initial_states: Tensor) -> None:
        """Look at the controller and the system as they are.

        Args:
            initial_states: (B, *state_shape), of which the probe takes some.

        Raises:
            ValueError: at the first time, if the adjoint engine or a compiled one is asked for and cannot serve the
                controller.
        """
        if self._asked == "auto" and not self._compile and memory_size_of(self.system) > MOST_REMEMBERED:
            self._reason = (
                f"the controller remembers more than {MOST_REMEMBERED} numbers, with which autograd is faster"
            )
            return
        first = self._key is None
        if self._asked == "autograd" or (not first and self._fast is None):
            return  # the autograd engine serves everything
        key = fingerprint(self.controller, self.system)
        if key == self._key:
            return
        self._key = key
        before = self._judgement
        self._judgement = judgement(self.system, self.controller, self.system.episode_start(initial_states), key)
        verdict = self._judgement.verdict
        if verdict.obstacle is None:
            form = fingerprint(self.controller, self.system, buffers=False)
            if before is not None and before.verdict == verdict and form == self._form:
                return
            self._form = form
            what = "observation and what is handed it" if isinstance(self.system, AugmentedSystem) else "observation"
            asked = "asked for" if self._asked == "adjoint" else f"the controller acts on each {what} alone"
            layers = "" if verdict.by_layer else "; its layers need a vector-Jacobian product for each rule"
            self._reason = f"{asked}{layers}{COMPILED if self._compile else ''}"
            adjoint = AdjointEngine(
                self.system,
                self.controller,
                by_layer=verdict.by_layer,
                chained=verdict.chained,
                inference=verdict.inference,
            )
            self._fast = CompiledEngine(adjoint) if self._compile else adjoint
            with computing(initial_states):
                self._given = adjoint.numbers_given(self.system.episode_start(initial_states[:1]))
            return
        if first and (self._asked == "adjoint" or self._compile):
            asked = "compile=True" if self._compile else "engine='adjoint'"
            raise ValueError(
                f"{asked} cannot serve this {type(self.controller).__name__}: {verdict.obstacle}. "
                f"Use engine='autograd' or 'auto'{', without compile' if self._compile else ''}."
            )
        self.step_aside(verdict.obstacle)

    def __call__(
        self,
        initial_states: Tensor,
        passes: tuple[Feedback, ...],
        *,
        noise: Tensor | None = None,
        look: bool | None = None,
        show: Callable[[Trajectory], object] | None = None,
        mixing: Callable[[Trajectory], Mix] | None = None,
        seldom: bool = False,
    ) -> tuple[Tensor, dict[Feedback, Directions]]:
        """The loss of each episode, (B,), and the directions of every pass for their mean.

        Args:
            initial_states: (B, *state_shape).
            passes: which paths each backward pass takes.
            noise: that of all steps, (T, B, *noise_shape), for a controller that is handed any; None: zeros.
            look: whether to compare the engine's parts with autograd's, as a trainer has it done once an epoch. None:
                in the first call and then in every 32nd.
            show: is shown what the episodes went through, as `system` has it: noise and memory in its states.
            mixing: from the episodes to what is taken in place of the slopes by the actions, see `estimators.py`.
            seldom: whether calls with these passes are too few to compile a program for them: this one is not compiled.
        """
        self.choose(initial_states)
        with computing(initial_states):
            if initial_states.is_inference():
                initial_states = initial_states.clone()
            initial_states = self.system.episode_start(initial_states)
            check_noise(self.system, noise, self.system.horizon, initial_states)
            if noise is not None and noise.is_inference():
                noise = noise.clone()
            self._aside = self._autograd_is_faster(initial_states, passes)
            fast = self._fast.uncompiled if seldom and self._fast is not None else self._fast
            if fast is not None and not self._aside:
                assert self._judgement is not None
                due = self._judgement.calls % LOOK_EVERY == 0 if look is None else look
                if self._switch is not None and not self._compile and not seldom:
                    show = self._switch.watching(fast.uncompiled, passes, noise, show)
                try:
                    answer = watched(fast, initial_states, passes, due, noise, show=show, mixing=mixing)
                except NotServedError as error:
                    self.step_aside(str(error))
                else:
                    self._judgement.calls += 1
                    self._settle()
                    return answer
            answer = self._autograd(initial_states, passes, noise, show=show, mixing=mixing)
            if self._aside:
                self._settle()
            return answer

    def _autograd_is_faster(self, initial_states: Tensor, passes: Sequence[Feedback]) -> bool:
        """Whether "auto" leaves an update that the adjoint engine could serve to autograd.

        It depends on nothing but the rule, the batch and the controller, so that every run and every machine does the
        same, and not where autograd would keep more numbers than the other engine may.
        """
        fast = self._fast
        if self._asked != "auto" or self._compile or self._switch is not None or len(passes) > 1 or fast is None:
            return False
        given = len(initial_states) * self._given
        kept = self.system.horizon * given <= KEPT_NUMBERS
        return given > MOST_RUN_AGAIN and kept and fast.uncompiled.perceptron is None

    def switch(self, *, wait: bool = False) -> bool:
        """From here on compute by the compiled programs that compile="auto" has made; return whether that is new.

        Programs for further shapes are then made when they are met, as with compile=True. Where it asks for nothing to
        be compiled, or the autograd engine is in use, nothing happens.

        Args:
            wait: if they are not made yet, make them when they are needed; otherwise there is no change yet.
        """
        if self._switch is None or self._compile or self._fast is None or not (wait or self._switch.ready()):
            return False
        self._switch.close()
        self._compile, self._fast = True, CompiledEngine(self._fast.uncompiled)
        self._reason += COMPILED
        return True

    def switch_back(self) -> None:
        """Compute uncompiled until the next `switch`, with compile="auto"."""
        if self._switch is not None and self._compile:
            self._compile, self._fast = False, None if self._fast is None else self._fast.uncompiled
            self._reason = self._reason.removesuffix(COMPILED)

    def close(self) -> None:
        """End the process that makes programs, if there is one; a further call begins it anew."""
        if self._switch is not None:
            self._switch.close()

    def stacked(self) -> StackedEngine | None:
        """An engine for many parameter vectors of the controller, if the adjoint engine serves it; else None."""
        if self._fast is None or self._judgement is None:
            return None
        if self._stack is None or self._stack[0] is not self._fast:
            verdict = self._judgement.verdict
            engine = StackedEngine(
                self.system,
                self.controller,
                by_layer=verdict.by_layer,
                chained=verdict.chained,
                inference=verdict.inference,
            )
            self._stack = self._fast, engine
        return self._stack[1]

    def _settle(self) -> None:
        """Take what a run itself leaves in the controller, such as a cache or its last action, for no change."""
        if self._leaves is not False:
            key = fingerprint(self.controller, self.system)
            self._leaves, self._key = key != self._key, key

    def step_aside(self, obstacle: str) -> None:
        """Leave the adjoint engine for good, which cannot serve the controller, for a reason in words."""
        self._fast = None
        self._reason = f"the adjoint engine cannot serve the controller: {obstacle}"
        if self._judgement is not None:
            self._judgement.verdict = Verdict(obstacle)
        if self.controller not in _warned:
            _warned.add(self.controller)
            warn(
                f"engine={self._asked!r} falls back to the slower autograd engine for "
                f"{type(self.controller).__name__}: {obstacle}."
            )
