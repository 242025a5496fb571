"""Whatever is handed in is taken for what it is, or refused in words that name the argument: a fuzz of every door.

A row is a door and an argument; each is tried with every value of HOSTILE. What is taken must be stored as a plain
value that equals what was given. BPTT_TEST_LONG=1 tries reinforcement learning and values made at random, too.
"""

import datetime
import enum
import functools
import itertools
import math
import os
import pathlib
import random
import traceback
import warnings
from dataclasses import fields
from decimal import Decimal
from fractions import Fraction

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

from bptt_envs import DifferentiableEnv, DifferentiableVectorEnv, System, Task, TorchVectorEnv, register, registration
from bptt_envs.systems import (
    LQR,
    BouncingBall,
    Burgers,
    CartPole,
    ChainedPendulum,
    Guidance,
    Heat,
    Hopper,
    Integrator,
    KuramotoSivashinsky,
    MultiPole,
    Pusher,
    Quadrotor,
    QuantumControl,
)
from bptt_studies.benchmarks.config import BenchmarkConfig
from bptt_studies.lqr.descents import StudyConfig
from bptt_studies.scaling.config import ScalingConfig
from bptt_trainers import (
    MLP,
    ConvNet,
    Ensemble,
    Feedback,
    Rule,
    RunFolder,
    TrainConfig,
    Trainer,
    check_gradients,
    default_controller,
    diagnose,
    held_out_states,
    join_ranks,
    losses,
    policy_gradient,
    rollout,
    training_states,
    variations,
)
from bptt_trainers.analysis.fields import grid
from bptt_trainers.analysis.run_fields import FieldsConfig
from bptt_trainers.controllers.baselines import RandomController
from bptt_trainers.planning.plan import PLANNERS, plan
from bptt_trainers.rl.view import RLView

LONG = os.environ.get("BPTT_TEST_LONG") == "1"


class Colour(enum.Enum):
    RED = 1


class Word(str, enum.Enum):
    ADJOINT = "adjoint"


class Level(enum.IntEnum):
    ONE = 1


class Unshown:
    def __repr__(self):
        raise RuntimeError("no repr")


class Unequal:
    def __eq__(self, other):
        raise RuntimeError("no ==")

    __hash__ = None


class ArrayThatRaises:
    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("no array")


class FloatThatRaises:
    def __float__(self):
        raise RuntimeError("no float")

    def __index__(self):
        raise RuntimeError("no index")

    def __fspath__(self):
        raise RuntimeError("no path")


HOSTILE = {
    "None": lambda: None,
    "True": lambda: True,
    "False": lambda: False,
    "np.True_": lambda: np.True_,
    "no": lambda: "no",
    "empty text": lambda: "",
    "text 1": lambda: "1",
    "text 1.5": lambda: "1.5",
    "nul": lambda: "a\0b",
    "surrogate": lambda: "\udcff",
    "long text": lambda: "x" * 10**5,
    "bytes": lambda: b"1.5",
    "bytearray": lambda: bytearray(b"1"),
    "1": lambda: 1,
    "0": lambda: 0,
    "-1": lambda: -1,
    "0.5": lambda: 0.5,
    "1.0": lambda: 1.0,
    "-0.0": lambda: -0.0,
    "np.int64": lambda: np.int64(1),
    "np.float32": lambda: np.float32(0.5),
    "np.float16": lambda: np.float16(0.5),
    "np.longdouble": lambda: np.longdouble(0.5),
    "np.uint64": lambda: np.uint64(2**64 - 1),
    "np.complex64": lambda: np.complex64(1),
    "np.str_": lambda: np.str_("adjoint"),
    "np.datetime64": lambda: np.datetime64("2020-01-01"),
    "np.timedelta64": lambda: np.timedelta64(1, "s"),
    "10**400": lambda: 10**400,
    "-10**400": lambda: -(10**400),
    "10**5000": lambda: 10**5000,
    "2**64": lambda: 2**64,
    "2**63": lambda: 2**63,
    "2**62": lambda: 2**62,
    "2**40": lambda: 2**40,
    "nan": lambda: math.nan,
    "inf": lambda: math.inf,
    "-inf": lambda: -math.inf,
    "1e-320": lambda: 1e-320,
    "1e308": lambda: 1e308,
    "-1e308": lambda: -1e308,
    "complex": lambda: 1 + 0j,
    "Decimal": lambda: Decimal("0.5"),
    "Fraction": lambda: Fraction(1, 2),
    "[]": list,
    "()": lambda: (),
    "{}": dict,
    "set": lambda: {1},
    "dict of numbers": lambda: {1: 2},
    "[1]": lambda: [1],
    "(1, 2)": lambda: (1, 2),
    "ragged": lambda: [[1], [1, 2]],
    "nested": lambda: [[[[[[1]]]]]],
    "many": lambda: [0] * 10**5,
    "range": lambda: range(3),
    "endless range": lambda: range(2**70),
    "iterator": lambda: iter([1]),
    "generator": lambda: (i for i in range(2)),
    "object": object,
    "Unshown": Unshown,
    "Unequal": Unequal,
    "ArrayThatRaises": ArrayThatRaises,
    "FloatThatRaises": FloatThatRaises,
    "lambda": lambda: lambda x: x,
    "type": lambda: int,
    "module": lambda: math,
    "NotImplemented": lambda: NotImplemented,
    "Ellipsis": lambda: ...,
    "Enum": lambda: Colour.RED,
    "str Enum": lambda: Word.ADJOINT,
    "IntEnum": lambda: Level.ONE,
    "Path": lambda: pathlib.Path("a"),
    "date": lambda: datetime.date(2020, 1, 1),
    "tensor()": lambda: torch.tensor(1.0),
    "tensor(int)": lambda: torch.tensor(1),
    "tensor(bool)": lambda: torch.tensor(True),
    "tensor with gradient": lambda: torch.tensor(1.0, requires_grad=True),
    "tensor [1]": lambda: torch.ones(1),
    "tensor complex": lambda: torch.ones(1, dtype=torch.complex64),
    "tensor half": lambda: torch.ones(1, 4, dtype=torch.float16),
    "tensor long": lambda: torch.ones(1, 4, dtype=torch.long),
    "tensor sparse": lambda: torch.eye(4).to_sparse(),
    "tensor meta": lambda: torch.ones(1, 4, device="meta"),
    "parameter": lambda: nn.Parameter(torch.ones(1)),
    "array()": lambda: np.array(1.0),
    "array [1]": lambda: np.ones(1),
    "array of objects": lambda: np.array([None]),
    "array of text": lambda: np.array(["1"]),
    "array of bools": lambda: np.array([True]),
    "array complex": lambda: np.array([1j]),
    "array structured": lambda: np.zeros(1, dtype=[("a", "f4")]),
    "array empty": lambda: np.zeros((0,)),
    "list of text": lambda: ["1"],
    "list of None": lambda: [None],
    "list of bools": lambda: [True],
    "list of gradients": lambda: [torch.ones((), requires_grad=True)],
    "nn.Module": lambda: nn.Linear(4, 1),
    "torch.dtype": lambda: torch.float32,
    "torch.Generator": torch.Generator,
}
if LONG:  # torch imports much for it
    HOSTILE["tensor nested"] = lambda: torch.nested.nested_tensor([torch.ones(1), torch.ones(2)], layout=torch.jagged)


def refused(door, argument):
    """Whether a door refuses in words that name the argument; anything else that it raises fails the test."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*Overriding environment")  # an id that is registered again
        try:
            return False, door()
        except (ValueError, TypeError) as error:
            words = str(error)
            raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
            assert "bptt_" in raised_in, f"raised in {raised_in}: {words}"
            assert argument in words, f"does not name {argument}: {words}"
            assert len(words) < 2000, "the words are too many"
            return True, None


def is_plain(value):
    if isinstance(value, dict):
        return type(value) is dict and all(type(key) is str for key in value)
    if type(value) in (tuple, list):
        return all(map(is_plain, value))
    return value is None or type(value) in (bool, int, float, str) or isinstance(value, pathlib.PurePath)


def assert_same(stored, given):
    assert is_plain(stored), f"stored as {type(stored).__name__}"
    if isinstance(stored, tuple):
        assert len(stored) == len(given)
        assert isinstance(given, (list, tuple, range, np.ndarray)), f"taken from {type(given).__name__}"
        for one, other in zip(stored, given, strict=True):
            assert_same(one, other)
    elif isinstance(stored, bool):
        assert isinstance(given, (bool, np.bool_))
        assert stored == given
    elif isinstance(stored, (int, float)):
        assert isinstance(given, (int, float, np.integer, np.floating)), f"taken from {type(given).__name__}"
        assert not isinstance(given, (bool, np.timedelta64)), f"taken from {type(given).__name__}"
        assert stored == given
        assert math.isfinite(stored)
    elif isinstance(stored, str):
        assert isinstance(given, str)
        assert stored == given
    elif isinstance(stored, pathlib.PurePath):
        assert isinstance(given, (str, os.PathLike))
        assert str(stored) == os.fspath(given)


CONFIGS = (TrainConfig, BenchmarkConfig, ScalingConfig, FieldsConfig, StudyConfig, *PLANNERS.values())
SYSTEMS = (
    *(CartPole, MultiPole, ChainedPendulum, Quadrotor, Hopper, BouncingBall, Pusher, QuantumControl, Guidance),
    *(Integrator, LQR, Heat, Burgers, KuramotoSivashinsky),
)
SETTINGS = [(config, one.name) for config in CONFIGS for one in fields(config)]
OPTIONS = [(system, name) for system in SYSTEMS for name in system.options()]
WIDER = ("max_force", "max_control")  # kept as max_action
ALSO_NAMED = {"env_options": "", "env": ""}  # the error may be about an entry


@pytest.mark.parametrize("value", HOSTILE)
def test_a_setting_is_a_plain_value_of_its_type_or_refused_by_name(value):
    for config, name in SETTINGS:
        given = HOSTILE[value]()
        no, made = refused(lambda: config(**{name: given}), ALSO_NAMED.get(name, name))  # noqa: B023, called at once
        if not no:
            assert_same(getattr(made, name), given)


@pytest.mark.parametrize("value", HOSTILE)
def test_an_option_of_a_system_is_a_plain_value_of_its_type_or_refused_by_name(value):
    for system, name in OPTIONS:
        given = HOSTILE[value]()
        no, made = refused(lambda: system(**{name: given}), name)  # noqa: B023, called at once
        by_default = given is None and system.options()[name] is None  # which may stand for a number
        if not no and not by_default and not (system is LQR and name in "A B Q R Q_T"):
            assert_same(getattr(made, "max_action" if name in WIDER else name), given)


NUMBERS = {"1", "np.int64", "IntEnum"}
SEEDS = NUMBERS | {"0", "2**62", "2**40"}
FLOATS = SEEDS | {
    "-1",
    "0.5",
    "1.0",
    "-0.0",
    "np.float32",
    "np.float16",
    "np.longdouble",
    "np.uint64",
    "2**63",
    "2**64",
}
SHARES = NUMBERS | {"0", "0.5", "1.0", "-0.0", "1e-320", "np.float32", "np.float16", "np.longdouble"}
FLOATS |= {"tensor()", "tensor with gradient", "tensor [1]", "parameter"}
TEXTS = {"no", "text 1", "text 1.5", "surrogate", "long text", "np.str_", "str Enum"}
ONE_NUMBER = {"[1]", "tensor [1]", "array [1]", "parameter"}


def cart_pole():
    env = DifferentiableEnv(CartPole(horizon=2))
    env.reset(seed=0)
    return env


def envs():
    made = DifferentiableVectorEnv(CartPole(horizon=2), 1)
    made.reset(seed=0)
    return made


def tensors():
    made = TorchVectorEnv(CartPole(horizon=2), 1)
    made.reset(seed=0)
    return made


NEW = itertools.count()  # versions of ids
STATES, ACTIONS = torch.zeros(1, 4), torch.zeros(1, 1)
TINY = TrainConfig(epochs=1, batch_size=1, train_states=1, test_states=1)


def gradient(**arguments):
    given = {"controller": MLP((4,), (1,), (3,)), "initial_states": STATES, "engine": "autograd"} | arguments
    return policy_gradient(cart_pole(), **given)


@functools.cache
def trainer():
    return Trainer(CartPole(horizon=2), None, TINY)


class Bounded(System):
    state_shape, action_shape = (1,), (1,)

    def __init__(self, **bounds):
        super().__init__(horizon=2, dt=0.1, **bounds)

    def step(self, state, action):
        return state + action

    def initial_states(self, batch, generator, dtype=torch.float32):
        return torch.randn(batch, 1, generator=generator, dtype=dtype)


# A door, the argument that it names, and the values that it takes
DOORS = [
    ("seed", lambda v: cart_pole().reset(seed=v), {"None"} | SEEDS),
    ("options", lambda v: cart_pole().reset(options=v), {"None", "{}"}),
    ("options['state']", lambda v: cart_pole().reset(options={"state": v}), set()),
    ("action", lambda v: cart_pole().step(v), ONE_NUMBER),
    ("seed", lambda v: envs().reset(seed=v), {"None", "[1]", "list of None", "array of objects"} | SEEDS),
    ("options", lambda v: envs().reset(options=v), {"None", "{}"}),
    ("options['state']", lambda v: envs().reset(options={"state": v}), {"tensor half", "tensor long"}),
    (
        "options['reset_mask']",
        lambda v: envs().reset(options={"reset_mask": v}),
        {"None", "array of bools", "list of bools"},
    ),
    ("action", lambda v: envs().step(v), set()),
    ("action_low", lambda v: Bounded(action_low=v, action_high=2.0**100), None),
    ("action_high", lambda v: Bounded(action_high=v), None),
    ("state", lambda v: cart_pole().step_differentiable(v, ACTIONS), set()),
    ("action", lambda v: cart_pole().step_differentiable(STATES, v), set()),
    ("state", lambda v: cart_pole().final_reward(v), {"tensor meta"}),
    ("state", lambda v: cart_pole().observe(v), {"tensor meta"}),
    ("batch", lambda v: cart_pole().initial_states(v), NUMBERS),
    ("generator", lambda v: cart_pole().initial_states(1, v), {"None", "torch.Generator"}),
    ("dtype", lambda v: cart_pole().initial_states(1, dtype=v), {"None", "torch.dtype"}),
    ("num_envs", lambda v: DifferentiableVectorEnv(CartPole(), v), NUMBERS),
    ("autoreset_mode", lambda v: DifferentiableVectorEnv(CartPole(), 1, autoreset_mode=v), set()),
    ("num_envs", lambda v: TorchVectorEnv(CartPole(), v), NUMBERS),
    ("autoreset_mode", lambda v: TorchVectorEnv(CartPole(), 1, autoreset_mode=v), set()),
    ("dtype", lambda v: TorchVectorEnv(CartPole(), 1, dtype=v), {"torch.dtype"}),
    ("device", lambda v: TorchVectorEnv(CartPole(), 1, device=v), {"None"}),
    ("differentiable", lambda v: TorchVectorEnv(CartPole(), 1, differentiable=v), {"True", "False", "np.True_"}),
    ("seed", lambda v: tensors().reset(seed=v), {"None", "[1]", "list of None", "array of objects"} | SEEDS),
    ("options", lambda v: tensors().reset(options=v), {"None", "{}"}),
    ("options['state']", lambda v: tensors().reset(options={"state": v}), set()),
    ("actions", lambda v: tensors().step(v), set()),
    ("render_mode", lambda v: DifferentiableEnv(CartPole(), render_mode=v), {"None"}),
    ("system", lambda v: DifferentiableEnv(v), set()),
    ("env_id", lambda v: register(v, "bptt_envs.systems:CartPole", "a pole"), None),
    ("system", lambda v: register(f"Hostile-v{next(NEW)}", v, "a pole"), set()),
    ("summary", lambda v: register(f"Hostile-v{next(NEW)}", "bptt_envs.systems:CartPole", v), None),
    (
        "reward_threshold",
        lambda v: register(f"Hostile-v{next(NEW)}", "bptt_envs.systems:CartPole", "a pole", reward_threshold=v),
        {"None"} | {one for one in FLOATS if "tensor" not in one and one != "parameter"},
    ),
    ("env", lambda v: policy_gradient(v, MLP((4,), (1,)), STATES), set()),
    ("env", lambda v: check_gradients(v), set()),
    ("controller", lambda v: gradient(controller=v), {"nn.Module"}),
    ("initial_states", lambda v: gradient(initial_states=v), set()),
    ("rule", lambda v: gradient(rule=v), set()),
    ("engine", lambda v: gradient(engine=v), {"np.str_", "str Enum"}),
    ("combine", lambda v: gradient(combine=v), set()),
    ("generator", lambda v: gradient(generator=v), {"None", "torch.Generator"}),
    ("system", lambda v: rollout(v, nn.Linear(4, 1), STATES), set()),
    ("policy", lambda v: rollout(CartPole(horizon=2), None if callable(v) else v, STATES), set()),
    ("initial_states", lambda v: rollout(CartPole(horizon=2), nn.Linear(4, 1), v), set()),
    ("steps", lambda v: rollout(CartPole(horizon=2), nn.Linear(4, 1), STATES, v), {"None"} | NUMBERS),
    ("system", lambda v: training_states(v, 1, 0), set()),
    ("count", lambda v: training_states(CartPole(), v, 0), NUMBERS),
    ("seed", lambda v: training_states(CartPole(), 1, v), SEEDS),
    ("dtype", lambda v: training_states(CartPole(), 1, 0, v), {"torch.dtype"}),
    ("count", lambda v: held_out_states(CartPole(), v), NUMBERS),
    ("system", lambda v: plan(v, STATES), set()),
    ("states", lambda v: plan(CartPole(horizon=2), v), set()),
    ("method", lambda v: plan(Integrator(), torch.zeros(1, 1), v, iterations=1), set()),
    ("actions", lambda v: plan(Integrator(), torch.zeros(1, 1), actions=v, iterations=1), {"None"}),
    ("seed", lambda v: plan(Integrator(), torch.zeros(1, 1), seed=v, iterations=1), SEEDS),
    ("restarts", lambda v: plan(Integrator(), torch.zeros(1, 1), restarts=v, iterations=1), NUMBERS | {"0"}),
    ("system", lambda v: default_controller(v), set()),
    ("seed", lambda v: default_controller(CartPole(), v), SEEDS),
    ("hidden", lambda v: default_controller(CartPole(), 0, v), {"None", "[]", "()", "[1]", "(1, 2)", "array empty"}),
    ("controller", lambda v: default_controller(CartPole(), 0, None, v), set()),
    ("seed", lambda v: RandomController(CartPole(), v), SEEDS),
    ("observation_shape", lambda v: MLP(v, (1,)), {"[]", "()", "[1]", "(1, 2)", "array empty"}),
    ("action_shape", lambda v: MLP((4,), v), {"[]", "()", "[1]", "(1, 2)", "array empty"}),
    ("hidden", lambda v: MLP((4,), (1,), v), {"[]", "()", "[1]", "(1, 2)", "array empty"}),
    ("bias", lambda v: MLP((4,), (1,), bias=v), {"True", "False", "np.True_"}),
    ("generator", lambda v: MLP((4,), (1,), generator=v), {"None", "torch.Generator"}),
    ("hidden", lambda v: ConvNet((32, 2), (1,), v), {"[]", "()", "[1]", "(1, 2)", "array empty"}),
    ("observation", lambda v: MLP((4,), (1,)).predict(v), {"tensor half", "tensor long"}),
    (
        "path",
        lambda v: RunFolder(v),
        {"no", "text 1", "text 1.5", "surrogate", "long text", "np.str_", "str Enum", "Path"},
    ),
    ("config", lambda v: variations(v, seeds=[1]), set()),
    ("rules", lambda v: variations(TINY, rules=v), set()),
    ("clips", lambda v: variations(TINY, clips=v), set()),
    ("learning_rates", lambda v: variations(TINY, learning_rates=v), {"[1]", "(1, 2)", "array [1]"}),
    ("seeds", lambda v: variations(TINY, seeds=v), {"[1]", "(1, 2)", "range"}),
    ("env", lambda v: Trainer(v), set()),
    ("controller", lambda v: Trainer(cart_pole(), v, TINY), {"None", "nn.Module"}),
    ("config", lambda v: Trainer(cart_pole(), None, v), {"None"}),
    ("callbacks", lambda v: Trainer(cart_pole(), None, TINY, v), {"[]", "()"}),
    ("optimizer", lambda v: Trainer(cart_pole(), None, TINY, optimizer=v), {"None"}),
    ("schedule", lambda v: Trainer(cart_pole(), None, TINY, schedule=v), {"None", "lambda", "type"}),
    ("ranks", lambda v: Trainer(cart_pole(), None, TINY, ranks=v), set()),
    ("device", lambda v: join_ranks(v), set()),
    ("callbacks", lambda v: Ensemble(cart_pole(), [TINY], v), {"[]", "()"}),
    ("system", lambda v: RLView(v), set()),
    ("system", lambda v: Task(v), set()),
    ("observe_time", lambda v: gym.make("DiffIntegrator-v0", observe_time=v), {"True", "False", "np.True_"}),
    ("show_parameters", lambda v: gym.make("DiffIntegrator-v0", show_parameters=v), {"False"}),
    ("randomize", lambda v: gym.make("DiffIntegrator-v0", randomize=v), {"None", "{}"}),
    ("randomize", lambda v: gym.make("DiffIntegrator-v0", randomize={"target": v}), {"(1, 2)"}),
    ("target", lambda v: Integrator().with_parameters(target=v), FLOATS),
    ("terminated", lambda v: Task(CartPole(), terminated=v), {"None", "lambda", "type", "nn.Module"}),
    ("final_cost", lambda v: Task(CartPole(), final_cost=v), {"None", "lambda", "type", "nn.Module"}),
    ("dense", lambda v: RLView(CartPole(), dense=v), {"True", "False", "np.True_"}),
    ("trajectory", lambda v: losses(CartPole(), v), set()),
    ("physics", lambda v: Feedback(v, True), SHARES | {"True", "False", "np.True_"}),
    ("every", lambda v: Feedback(1.0, 0.5, every=v), NUMBERS | {"None", "2**62", "2**40"}),
    ("passes", lambda v: Rule("X", v, "one of one's own"), set()),
    ("initial_states", lambda v: diagnose(CartPole(horizon=2), MLP((4,), (1,)), v), set()),
    ("radius", lambda v: grid((0.0, 0.0), v, 3), None),
    ("size", lambda v: grid((0.0, 0.0), 1.0, v), set()),
    ("states", lambda v: trainer().evaluate(v), set()),
    ("configs", lambda v: Ensemble(cart_pole(), v), set()),
    ("controllers", lambda v: Ensemble(cart_pole(), [TINY], (), v), {"None"}),
]


def tried(given, monkeypatch):
    """Hand a value, made anew each time, to every door; yields the row and whether it was refused."""
    with monkeypatch.context() as patch:  # `register` writes into these tables
        patch.setattr(registration, "ENTRIES", dict(registration.ENTRIES))
        patch.setattr(gym.envs.registration, "registry", dict(gym.envs.registration.registry))
        for argument, door, taken in DOORS:
            yield argument, taken, refused(lambda: door(given()), argument)[0]  # noqa: B023, called at once


@pytest.mark.parametrize("value", HOSTILE)
def test_a_call_works_with_what_an_argument_is_for_and_refuses_the_rest_by_name(value, monkeypatch):
    for argument, taken, no in tried(HOSTILE[value], monkeypatch):
        if taken is not None:
            assert no == (value not in taken), f"{argument}: {'refused' if no else 'taken'}"


# Longer


def composites(count):
    """Values made of hostile values, at random."""
    chance = random.Random(0)

    def made(depth):
        if depth == 0 or chance.random() < 0.3:
            return HOSTILE[chance.choice(list(HOSTILE))]()
        parts = [made(depth - 1) for _ in range(chance.randrange(4))]
        form = chance.choice((list, tuple, dict, "repeated", "array"))
        if form is dict:
            return dict(zip("abcd", parts, strict=False))
        if form == "repeated":
            return parts[:1] * chance.randrange(4)
        if form == "array":
            array = np.empty(len(parts), dtype=object)
            for i, part in enumerate(parts):
                array[i] = part
            return array
        return form(parts)

    return [made(2) for _ in range(count)]


def test_values_made_at_random_are_taken_plain_or_refused_by_name(monkeypatch):
    for given in composites(1000 if LONG else 10):
        for config, name in SETTINGS:
            no, made = refused(lambda: config(**{name: given}), ALSO_NAMED.get(name, name))  # noqa: B023
            if not no:
                assert_same(getattr(made, name), given)
        for system, name in OPTIONS:
            refused(lambda: system(**{name: given}), name)  # noqa: B023
        for _ in tried(lambda: given, monkeypatch):  # noqa: B023
            pass


def test_settings_of_reinforcement_learning_a_comparison_and_a_search_are_plain_or_refused_by_name():
    from bptt_trainers.comparison.compare import ComparisonConfig
    from bptt_trainers.comparison.sweep import SweepConfig
    from bptt_trainers.presets.presets import PRESETS
    from bptt_trainers.rl.sb3 import RLConfig
    from bptt_trainers.tuning.config import TuneConfig

    values = HOSTILE if LONG else list(HOSTILE)[::7]
    for value in values:
        for config in (RLConfig, ComparisonConfig, SweepConfig, TuneConfig):
            for one in fields(config):
                given = HOSTILE[value]()
                no, made = refused(
                    lambda: config(**{one.name: given}),  # noqa: B023
                    ALSO_NAMED.get(one.name, one.name),
                )
                if not no:
                    assert_same(getattr(made, one.name), given)
        for method, row in PRESETS.items():
            for name in row:
                refused(lambda: RLConfig(method=method, overrides={name: HOSTILE[value]()}), name)  # noqa: B023
