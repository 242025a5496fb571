"""What is searched: a table of entries for each kind of method, and how a command line changes it."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from bptt_envs import System
from bptt_envs.checks import nearest, one_of, shown
from bptt_trainers.comparison.methods import BPTT, BY_ESTIMATOR, METHODS, RL, SHAC, Budget, get_method, method_name
from bptt_trainers.controllers.defaults import default_controller
from bptt_trainers.controllers.networks import MLP
from bptt_trainers.presets.presets import Preset

MINIBATCHES = "minibatches"
"""Searched in place of PPO's batch_size, which has to divide what an update collects."""


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included.

    Raises:
        ValueError: if it is empty, or logarithmic and not of positive numbers.
    """

    low: float
    high: float
    log: bool = False
    """Whether factors count, not differences."""

    def __post_init__(self) -> None:
        if not (_number(self.low) and _number(self.high) and self.low < self.high):
            raise ValueError(f"a range must be of two finite numbers, the lower one first; got {self}.")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic range must be of positive numbers; got {self}.")

    def __str__(self) -> str:
        return f"{self.low!r}:{self.high!r}{':log' if self.log else ''}"

    @property
    def whole(self) -> bool:
        """Whether it is of integers: as its ends are."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def values(self) -> tuple[Any, ...]:
        """Its ends."""
        return (self.low, self.high)

    def encoded(self, value: Any) -> Any:
        """The parameter of a study that stands for `value`, or for what is nearest to it."""
        inside = min(max(value, self.low), self.high) if _number(value) else self.low
        return round(inside) if self.whole else float(inside)

    def decoded(self, parameter: Any) -> Any:
        """The value that a parameter of a study stands for, in three digits as in a table."""
        return parameter if self.whole else float(f"{parameter:.3g}")


@dataclass(frozen=True)
class Choice:
    """One of these values; of a single one there is nothing to search.

    Raises:
        ValueError: if there is none.
    """

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("a choice must be among at least one value; got {}.")
        if len({repr(value) for value in self.values}) < len(self.values):
            raise ValueError(f"a choice must name each value once; got {self}.")

    def __str__(self) -> str:
        return f"{{{', '.join(repr(value) for value in self.values)}}}"

    def encoded(self, value: Any) -> str:
        """The parameter of a study that stands for `value`, or for the nearest number, else the last: its text."""
        if not any(_alike(one, value) for one in self.values) and _number(value):
            numbers = [one for one in self.values if _number(one)]
            return repr(min(numbers, key=lambda one: abs(one - value), default=self.values[-1]))
        return repr(next((one for one in self.values if _alike(one, value)), self.values[-1]))

    def decoded(self, parameter: Any) -> Any:
        """The value that a parameter of a study stands for."""
        return next(value for value in self.values if repr(value) == parameter)


Entry = Range | Choice
Space = dict[str, Entry]


def only(value: Any) -> Choice:
    """An entry that is pinned."""
    return Choice((value,))


def _of_rules(system: System) -> Space:
    space: Space = {
        "learning_rate": Range(3e-4, 1e-1, log=True),
        "final_learning_rate": only(0.0),  # along half a cosine
        "batch_size": Choice((2, 4, 8, 16, 32)),
        "clip": Choice(("none", "norm")),
        "clip_threshold": Range(0.1, 10.0, log=True),
        "hidden": Choice(((32, 32), (64, 64), (100, 100))),
        "adam_betas": Choice(((0.9, 0.95), (0.9, 0.99), (0.9, 0.999))),
        "start_states": only("fresh"),
        "observe_time": Choice((False, True)),
    }
    if not isinstance(default_controller(system), MLP):
        space["controller"] = Choice(("default", "mlp"))
    if system.has_bounds:
        space["squash"] = Choice((False, True))
    return space


def _of_shac(system: System) -> Space:
    space = _of_rules(system)
    del space["adam_betas"], space["clip"]
    return space | {
        "learning_rate": Range(3e-4, 3e-2, log=True),
        "batch_size": Choice((8, 16, 32, 64)),
        "window": Choice((4, 8, 16, 32)),
        "discount": Choice((0.98, 0.99, 1.0)),
        "td_lambda": Choice((0.9, 0.95, 1.0)),
        "critic_learning_rate": Range(3e-4, 1e-2, log=True),
        "critic_iterations": Choice((4, 8, 16)),
        "target_rate": Choice((0.2, 0.5, 0.8)),
        "deviation": Choice(("none", "constant")),
    }


def _of_sapo(system: System) -> Space:
    space = _of_shac(system)
    del space["target_rate"]
    return space | {
        "deviation": Choice(("constant", "state")),
        "temperature": Range(1e-3, 1.0, log=True),
        "target_entropy": Choice((-2.0, -1.0, -0.5)),
    }


def _of_estimators(system: System) -> Space:
    return _of_rules(system) | {
        "batch_size": Choice((8, 16, 32, 64)),
        "initial_deviation": Range(0.01, 1.0, log=True),
    }


def _of_ppo(system: System) -> Space:
    some = system.horizon
    return {
        "learning_rate": Range(1e-4, 1e-2, log=True),
        "num_envs": Choice((32, 64, 128)),
        "n_steps": Choice(tuple(sorted({max(2, some // 4), max(2, some // 2), some, 2 * some}))),
        MINIBATCHES: Choice((2, 4, 8, 16, 32)),
        "n_epochs": Choice((3, 5, 10, 20)),
        "clip_range": Choice((0.1, 0.2, 0.3, 0.4)),
        "gae_lambda": Choice((0.9, 0.95, 0.98, 1.0)),
        "gamma": Choice((0.98, 0.99, 0.995, 1.0)),
        "ent_coef": Choice((0.0, 1e-4, 1e-3, 1e-2)),
        "hidden": Choice(((32, 32), (64, 64), (100, 100))),
        "activation": Choice(("relu", "tanh")),
        "dense": Choice((False, True)),
    }


def _of_sac(system: System) -> Space:
    return {
        "learning_rate": Range(1e-4, 1e-2, log=True),
        "num_envs": Choice((16, 32, 64)),
        "gradient_steps": Choice((4, 8, 16)),
        "batch_size": Choice((128, 256, 512)),
        "learning_starts": Choice((1600, 6400)),
        "gamma": Choice((0.95, 0.98, 0.99, 1.0)),
        "tau": Choice((0.002, 0.005, 0.01, 0.02)),
        "ent_coef": Choice(("auto_0.005", "auto_0.02", "auto_0.1", "auto")),
        "hidden": Choice(((32, 32), (64, 64), (100, 100))),
        "activation": Choice(("relu", "tanh")),
        "dense": Choice((False, True)),
    }


SPACES: dict[str, Callable[[System], Space]] = {
    "rules": _of_rules,
    "estimators": _of_estimators,
    "SHAC": _of_shac,
    "SAPO": _of_sapo,
    "PPO": _of_ppo,
    "SAC": _of_sac,
}
"""What is searched of the update rules, each alike, of estimators and in windows, too, and of each method of RL."""

TUNABLE = tuple(name for name, method in METHODS.items() if isinstance(method, (BPTT, RL)))
"""The rows of METHODS that have settings."""


def tunable(name: str, value: Any) -> str:
    """The name of a method that has settings: one of TUNABLE or another update rule; else raise ValueError."""
    return method_name(name, value, TUNABLE)


@dataclass(frozen=True)
class Search:
    """The search of one method on one system.

    Attributes:
        method: its name.
        row: its settings as they stand, in full.
        fixed: those that the user pins.
        space: what is searched, or pinned for all trials but the first.
    """

    method: str
    row: Preset
    fixed: Preset
    space: Space

    @property
    def free(self) -> Space:
        """What of the space is searched."""
        return {name: entry for name, entry in self.space.items() if len(entry.values) > 1}

    @property
    def names(self) -> list[str]:
        """The settings that a row of the search names."""
        return [*self.fixed, *("batch_size" if name == MINIBATCHES else name for name in self.space)]

    def first(self) -> Preset:
        """The settings of the first trial: the row as it stands, with what the user pins."""
        return self.row | self.fixed

    def parameters(self) -> dict[str, Any]:
        """The point of the space that is nearest to the first trial, as parameters of a study."""
        row = self.first()
        if MINIBATCHES in self.space:
            row |= {MINIBATCHES: row["num_envs"] * row["n_steps"] // row["batch_size"]}
        return {name: entry.encoded(row.get(name)) for name, entry in self.free.items()}

    def settings(self, parameters: Mapping[str, Any]) -> Preset:
        """The settings of a trial in full, from the parameters of a study."""
        found = {
            name: entry.decoded(parameters[name]) if len(entry.values) > 1 else entry.values[0]
            for name, entry in self.space.items()
        }
        settings = self.first() | found
        if MINIBATCHES in found:
            count = settings["num_envs"] * settings["n_steps"]
            settings["batch_size"] = count // settings.pop(MINIBATCHES)
        return settings

    def named(self, settings: Mapping[str, Any]) -> Preset:
        """Of a trial's settings, those that a row names."""
        return {name: settings[name] for name in self.names}

    def __str__(self) -> str:
        pinned = {name: only(value) for name, value in self.fixed.items()}
        return "; ".join(f"{name}={entry}" for name, entry in {**pinned, **self.space}.items())


def search_of(
    method: str, budget: Budget, fixed: Mapping[str, Any], searched: Mapping[str, Entry], row: Preset | None = None
) -> Search:
    """The search of a method: its table, with what is pinned and what is searched otherwise.

    Args:
        method: its name.
        budget: on what, and for how long.
        fixed: settings that are pinned.
        searched: entries in place of those of the table, or beside them.
        row: its settings as they stood when a study of it was begun; None: as they stand.

    Raises:
        ValueError: if a setting is unknown, pinned and searched at once, or cannot be what it is to be.
    """
    trained = get_method(method)
    if row is None:
        row = trained.settings(budget, {})
        row.pop("rule", None)  # which is no setting of a rule, but the rule
    own = trained.method if isinstance(trained, RL) else trained.LEARNER if isinstance(trained, SHAC) else "rules"
    table = SPACES["estimators" if method in BY_ESTIMATOR else own](budget.make_env().system)
    published = trained.settings(replace(budget, preset="paper"), {})
    table |= {name: only(value) for name, value in row.items() if name not in table and published.get(name) != value}
    searchable = [*row, *(name for name in table if name == MINIBATCHES)]
    for option, given, known in (("fix", fixed, list(row)), ("search", searched, searchable)):
        for name in given:
            if name not in known:
                raise ValueError(
                    f"{option}: {method} has no setting {name!r}.{nearest(name, known)} Its settings: "
                    f"{', '.join(known)}."
                )
            if name in fixed and name in searched:
                raise ValueError(f"{method} {name} is pinned by fix and searched at once; keep one of them.")
    trained.settings(budget, {**row, **fixed})
    apart = {*fixed, *budget.env_options}
    space = {name: entry for name, entry in table.items() if name in searchable and name not in apart} | dict(searched)
    if "batch_size" in [*fixed, *searched]:
        space.pop(MINIBATCHES, None)
    search = Search(method, row, dict(fixed), space)
    middle = search.parameters()
    for name, entry in [
        *searched.items(),
        *space.items(),
    ]:  # the user's first, so that they are named if they are wrong
        for value in entry.values:
            changed = middle | ({name: entry.encoded(value)} if len(entry.values) > 1 else {})
            try:
                trained.settings(budget, search.settings(changed))
            except ValueError as error:
                why = str(error).removeprefix(f"{method}: ")
                raise ValueError(
                    f"{method} cannot be searched with {name} {value!r}: {why} Leave it out by search, or pin "
                    f"{name} by fix."
                ) from error
    return search


def read_searches(texts: Iterable[str]) -> dict[str, dict[str, Entry]]:
    """Read entries as a command line gives them, "C.learning_rate=1e-3:1e-1:log", "C.batch_size={2, 4}".

    Raises:
        ValueError: if a text has another form, or an entry is empty.
    """
    found: dict[str, dict[str, Entry]] = {}
    for text in texts:
        target, equals, entry = text.partition("=")
        method, dot, name = target.rpartition(".")  # of "R decay 0.9", too
        if not (method and dot and name and equals and entry):
            raise ValueError(f"search must be METHOD.NAME=LOW:HIGH, LOW:HIGH:log or {{A,B,...}}; got {text!r}.")
        try:
            found.setdefault(method, {})[name] = read_entry(entry)
        except ValueError as error:
            raise ValueError(f"search {target}: {error}") from error
    return found


def read_entry(text: str) -> Entry:
    """Read "low:high", "low:high:log" or "{a, b}".

    Raises:
        ValueError: if it is none of these, or empty.
    """
    text = text.strip()
    if text.startswith("{") and text.endswith("}"):
        try:
            listed = ast.parse(f"[{text[1:-1]}]", mode="eval").body
            assert isinstance(listed, ast.List)
            return Choice(tuple(_value(one) for one in listed.elts))
        except SyntaxError as error:
            raise ValueError(f"a choice must be values between braces, such as {{2, 4, 8}}; got {text!r}.") from error
    match = re.fullmatch(r"([^:]+):([^:]+)(?::(\w+))?", text)
    if match is None:
        raise ValueError(f"it must be LOW:HIGH, LOW:HIGH:log or {{A,B,...}}; got {text!r}.")
    if match[3] is not None:
        one_of("what follows the range", match[3], ("log",))
    try:
        low, high = (int(end) if re.fullmatch(r"\s*[+-]?\d+\s*", end) else float(end) for end in match.groups()[:2])
    except ValueError:
        raise ValueError(f"the ends of a range must be numbers, such as 1e-3:1e-1; got {text!r}.") from None
    return Range(low, high, log=match[3] is not None)


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Name):  # a word without quotes
        return {"true": True, "false": False}.get(node.id.lower(), node.id)
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise ValueError(f"a choice must be among plain values; got {shown(ast.unparse(node))}.") from None


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _alike(one: Any, other: Any) -> bool:
    """Whether two values are the same; a list of JSON is the tuple that it was."""
    return bool(one == other) or (isinstance(other, list) and one == tuple(other))
