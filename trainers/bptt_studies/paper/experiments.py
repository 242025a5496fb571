"""The experiments as data: tasks, what is trained on them, how much of it in each tier."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from bptt_trainers.comparison.methods import BPTT, BY_ESTIMATOR, RL, SAPO, SHAC
from bptt_trainers.presets.presets import PresetName
from bptt_trainers.presets.tuned import TUNED

Tier = Literal["smoke", "standard", "full"]
TIERS: tuple[Tier, ...] = get_args(Tier)

Study = Literal[
    "rules",
    "sensitivity",
    "ablation",
    "stability",
    "continued",
    "rl",
    "tuned",
    "tuned-rates",
    "memory",
    "systems",
    "algorithms",
    "budget",
]
STUDIES: tuple[Study, ...] = get_args(Study)


@dataclass(frozen=True)
class Task:
    """What is to be learned.

    Attributes:
        name: in commands and file names.
        title: for readers.
        env_id: id of the environment.
        options: its options.
        losses: for which the tables say how many runs ended at or below them.
    """

    name: str
    title: str
    env_id: str
    options: Mapping[str, Any]
    losses: tuple[float, ...]


@dataclass(frozen=True)
class Variant:
    """What is trained on a task, once with each seed.

    Attributes:
        label: unlike that of all others of its experiment.
        method: how it is trained.
        options: of the environment, besides those of the task.
        alone: not in an ensemble, so that its seconds are those that a run takes by itself.
        start: of the study of the rules, the variant on the same task from whose best controller, on the training
            states, the run with the same seed starts; None: from random weights.
        preset: whose settings the method has; None: those of the experiment.
    """

    label: str
    method: BPTT | RL
    options: Mapping[str, Any] = field(default_factory=dict)
    alone: bool = False
    start: str | None = None
    preset: PresetName | None = None


@dataclass(frozen=True)
class Amount:
    """How much of an experiment is run.

    Attributes:
        epochs: passes over the training states; reinforcement learning gets as many simulator steps.
        seeds: the runs of each variant have the seeds from 0 up to it.
        train_states: start states for training.
        test_states: held-out start states.
    """

    epochs: int
    seeds: int
    train_states: int = 256
    test_states: int = 256


SMOKE = Amount(epochs=1, seeds=2, train_states=16, test_states=16)
FULL = Amount(epochs=1000, seeds=10)


@dataclass(frozen=True)
class Experiment:
    """Variants on a task.

    Attributes:
        study: what it is for.
        task: what is to be learned.
        variants: what is trained.
        standard: how much of it two cores train in a fair time.
        preset: whose settings the methods have, but for their own changes.
        evaluations: of reinforcement learning, while it learns.
    """

    study: Study
    task: Task
    variants: tuple[Variant, ...]
    standard: Amount
    preset: PresetName = "paper"
    evaluations: int = 50

    @property
    def name(self) -> str:
        """In commands and file names."""
        return f"{self.study}-{self.task.name}"

    @property
    def ready(self) -> bool:
        """Whether its settings are there: the paper's, or those that a tuning study of its task found."""
        tuning = self.name if self.study == "algorithms" else self.task.name
        return self.preset == "paper" or any(row.study == tuning for row in TUNED)

    def amount(self, tier: Tier) -> Amount:
        """How much of it a tier runs: "full" is the paper's protocol with 10 seeds, where it is the paper's."""
        full = FULL if self.preset == "paper" else self.standard
        return {"smoke": SMOKE, "standard": self.standard, "full": full}[tier]


def _cart_pole(n_poles: int, name: str = "", **options: Any) -> Task:
    words = "".join(f", {value} {option}" for option, value in options.items() if option == "dynamics")
    title = f"cart-pole, {n_poles} {'pole' if n_poles == 1 else 'poles'}{words}"
    env_id, given = ("DiffCartPole-v0", {}) if n_poles == 1 else ("DiffMultiPole-v0", {"n_poles": n_poles})
    return Task(name or f"cart-pole-{n_poles}", title, env_id, {**given, **options}, (0.1, 0.01, 0.001))


def _quantum(target: int, losses: tuple[float, ...] = (80.0, 40.0, 20.0), **options: Any) -> Task:
    title = f"quantum control, target {target}"
    return Task(f"quantum-{target}", title, "DiffQuantumControl-v0", {"target": target, **options}, losses)


def _guidance(weight: float, losses: tuple[float, ...] = (3.0, 2.0, 1.5), **options: Any) -> Task:
    title = f"guidance, control weight {weight:g}"
    return Task(f"guidance-{weight:g}", title, "DiffGuidance-v0", {"control_weight": weight, **options}, losses)


CART_POLES = {n: _cart_pole(n) for n in (1, 2, 3, 4)}
EXACT = _cart_pole(2, "cart-pole-2-exact", dynamics="exact")
QUANTUM = {target: _quantum(target) for target in (3, 4, 5)}
GUIDANCE = {weight: _guidance(weight) for weight in (1.0, 0.1, 0.01, 0.001)}


def _rules(rules: str, clips: Iterable[str] = ("none",), **changes: Any) -> tuple[Variant, ...]:
    """A variant for each rule and clipping: "C", "C value", "C norm"."""
    return tuple(
        Variant(rule if clip == "none" else f"{rule} {clip}", BPTT(rule, {**changes, "clip": clip}))
        for clip in clips
        for rule in rules
    )


def _changed(rules: str, label: str, **changes: Any) -> tuple[Variant, ...]:
    """The rules with other settings, "C LABEL"."""
    return tuple(Variant(f"{rule} {label}", BPTT(rule, changes)) for rule in rules)


CLIPS = ("none", "value", "norm")
LEARNING_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)

ABLATIONS = (
    Variant("C keeping R", BPTT("C", {"combine": "regular"})),
    Variant("M masked at random", BPTT("C", {"combine": "random"})),
)

# Besides "C cosine" and so on, what one pole shows to be no cure
NO_CURES = (
    *_changed("C", "small rate", learning_rate=1e-4),
    *_changed("CR", "average", average=0.999),
    *_changed("C", "amsgrad", amsgrad=True),
    *_changed("C", "betas 0.9 0.9", adam_betas=(0.9, 0.9)),
    *_changed("C", "betas 0 0.999", adam_betas=(0.0, 0.999)),
)

CURES = (
    *_changed("CR", "cosine", final_learning_rate=0.0),
    *_changed("CR", "norm cosine", clip="norm", final_learning_rate=0.0),
    *_changed("C", "turned", combine="turned"),
    *_changed("C", "turned norm", combine="turned", clip="norm"),
    *_changed("C", "turned cosine", combine="turned", final_learning_rate=0.0),
)

CURES_CLIPPED = (
    *_changed("CR", "norm cosine", clip="norm", final_learning_rate=0.0),
    *_changed("C", "turned norm", combine="turned", clip="norm"),
    *_changed("C", "turned norm cosine", combine="turned", clip="norm", final_learning_rate=0.0),
)

# From where C is best on with each rule, with the paper's step size and a tenth of it
CONTINUED = tuple(
    Variant(f"from C: {label} lr={rate:g}", BPTT(rule, {**changes, "learning_rate": rate}), start="C")
    for label, rule, changes in (
        ("R", "R", {}),
        ("M", "M", {}),
        ("C", "C", {}),
        ("C keeping R", "C", {"combine": "regular"}),
        ("C turned", "C", {"combine": "turned"}),
    )
    for rate in (1e-3, 1e-4)
)

RATES = tuple(
    Variant(f"{rule} lr={rate:g}", BPTT(rule, {"learning_rate": rate})) for rate in LEARNING_RATES for rule in "RC"
)

COS_SIN = {"observation": "cos_sin"}


def _alone(rules: str, **changes: Any) -> tuple[Variant, ...]:
    return tuple(Variant(rule, BPTT(rule, changes), alone=True) for rule in rules)


RL_ON_POLES = (
    *_alone("CR"),
    Variant("C cos/sin", BPTT("C"), COS_SIN, alone=True),
    Variant("PPO", RL("PPO")),
    Variant("PPO dense", RL("PPO", {"dense": True})),
    Variant("SAC", RL("SAC", {"dense": False})),
    Variant("SAC dense", RL("SAC")),
)

# The continuous objective pays at every step: there is no sparse one that asks for the same
RL_WHERE_STEPS_PAY = (*_alone("CR"), Variant("PPO", RL("PPO")), Variant("SAC", RL("SAC")))

# All are tuned alike, see docs/tuning.md. The two ablations have the settings of C. PPO is tuned for few simulator
# steps, which takes many gradient steps; by hand it was set for few seconds, too
TUNED_METHODS = (
    *_alone("RMSC"),
    Variant("C turned", BPTT("C", {"combine": "turned"}), alone=True),
    *(replace(ablation, alone=True) for ablation in ABLATIONS),
    Variant("PPO", RL("PPO")),
    Variant("PPO by hand", RL("PPO"), preset="paper"),
)

# As tuned but for the step size, that of the paper and up
TUNED_RATES = tuple(
    Variant(f"{rule} lr={rate:g}", BPTT(rule, {"learning_rate": rate}))
    for rate in (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
    for rule in "RC"
)

# On all of them every method has the same actions: those that reinforcement learning explores
TUNED_TASKS = (
    (_cart_pole(1, max_force=50.0), Amount(50, 10, train_states=64)),
    (_cart_pole(2, max_force=50.0), Amount(50, 10, train_states=128)),
    (_cart_pole(2, "cart-pole-2-exact", dynamics="exact", max_force=50.0), Amount(50, 10, train_states=128)),
    (_cart_pole(4, max_force=50.0), Amount(50, 10, train_states=256)),
    (_guidance(0.1, (2.0, 1.5, 1.3), max_control=12.0), Amount(100, 10, train_states=128)),
    (_quantum(3, max_control=30.0), Amount(100, 10, train_states=64)),
    (_quantum(5, max_control=30.0), Amount(100, 10, train_states=64)),
)

# The systems beyond the paper's: the same methods with few trials each, without the ablations
SYSTEM_METHODS = (
    *_alone("RMSC"),
    Variant("C turned", BPTT("C", {"combine": "turned"}), alone=True),
    Variant("PPO", RL("PPO")),
)

# All actions have bounds, the same for every method
SYSTEM_TASKS = (
    (
        Task("quadrotor", "quadrotor through a gate", "DiffQuadrotor-v0", {}, (3.0, 2.0, 1.6)),
        Amount(50, 5, train_states=128),
    ),
    (
        Task("bouncing-ball", "ball over a wall", "DiffBouncingBall-v0", {"max_force": 10.0}, (0.5, 0.1, 0.01)),
        Amount(40, 5, train_states=128),
    ),
    (
        Task("pusher", "pusher and disk", "DiffPusher-v0", {"max_action": 5.0}, (0.3, 0.03, 0.01)),
        Amount(40, 5, train_states=128),
    ),
    (
        Task("hopper", "planar hopper", "DiffHopper-v0", {"max_action": 1.0}, (0.5, 0.3, 0.2)),
        Amount(40, 5, train_states=64),
    ),
    (
        Task(
            "chained-2",
            "chained pendulum, 2 links",
            "DiffChainedPendulum-v0",
            {"n_links": 2, "max_force": 50.0},
            (0.5, 0.1, 0.01),
        ),
        Amount(50, 5, train_states=128),
    ),
    (Task("heat", "heat", "DiffHeat-v0", {"max_action": 5.0}, (0.1, 0.05, 0.03)), Amount(40, 5, train_states=160)),
    (
        Task("burgers", "Burgers", "DiffBurgers-v0", {"max_action": 2.0}, (0.1, 0.03, 0.01)),
        Amount(50, 5, train_states=160),
    ),
    (
        Task(
            "kuramoto-sivashinsky",
            "Kuramoto-Sivashinsky",
            "DiffKuramotoSivashinsky-v0",
            {"max_action": 1.0},
            (1.0, 0.5, 0.3),
        ),
        Amount(40, 5, train_states=64),
    ),
)

# What else the field learns by, beside R, C and PPO as they are in the other studies
ALGORITHMS = (
    *_alone("RC"),
    *(Variant(name, BPTT(name), alone=True) for name in ("R decay 0.9", "C decay 0.9", "R every 16", "C every 16")),
    *(Variant(one.name, one) for one in (SHAC("R"), SHAC("M"), SHAC("C"), SAPO("R"))),
    *(Variant(name, method, alone=True) for name, method in BY_ESTIMATOR.items()),
    Variant("PPO", RL("PPO")),
)

# The question of the field, whether another rule pays within windows, beside what windows are weighed against
WINDOWS = (*(Variant(one.name, one) for one in (SHAC("R"), SHAC("M"), SHAC("C"))), Variant("PPO", RL("PPO")))

ALGORITHM_TASKS: dict[str, tuple[int, tuple[Variant, ...]]] = {
    "cart-pole-1": (10, ALGORITHMS),
    "cart-pole-2": (5, (*_alone("RC"), *WINDOWS)),
    "cart-pole-4": (5, (*_alone("RC"), *WINDOWS)),
    "guidance-0.1": (5, (*_alone("RC"), *WINDOWS)),
    "quantum-3": (5, (*_alone("RC"), *WINDOWS)),
    "hopper": (5, WINDOWS),
    "heat": (5, (*_alone("RC"), *WINDOWS)),
}
"""Those that they were tuned on: the number of seeds, and which of them."""

# Without velocities in sight: who does not remember cannot know them
BLIND = {
    "learning_rate": 0.01,
    "final_learning_rate": 0.0,
    "batch_size": 8,
    "start_states": "fresh",
    "clip": "norm",
    "clip_threshold": 0.3,
    "adam_betas": (0.9, 0.95),
}
MEMORY = (
    Variant("C MLP", BPTT("C", {**BLIND, "hidden": (64, 64)})),
    *(
        Variant(f"{rule} GRU", BPTT(rule, {**BLIND, "controller": "gru", "hidden": (32,)}))
        for rule in ("R", "M", "M without memory", "S", "C")
    ),
)

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        Experiment("rules", CART_POLES[1], _rules("RMSC", CLIPS), Amount(200, 5)),
        Experiment("stability", CART_POLES[1], (*CURES, *NO_CURES), Amount(200, 5)),
        Experiment("continued", CART_POLES[1], CONTINUED, Amount(40, 5)),
        Experiment("rules", CART_POLES[2], _rules("RMSC", CLIPS), Amount(200, 5)),
        Experiment("rules", CART_POLES[4], _rules("RMSC", CLIPS), Amount(200, 5)),
        Experiment("stability", CART_POLES[2], CURES, Amount(200, 5)),
        *(Experiment("ablation", CART_POLES[n], ABLATIONS, Amount(200, 5)) for n in (1, 2)),
        Experiment("ablation", EXACT, (*_rules("RMC"), *ABLATIONS), Amount(100, 5)),
        Experiment("sensitivity", CART_POLES[1], RATES, Amount(100, 5)),
        *(Experiment("rules", task, _rules("RMC"), Amount(50, 5)) for task in GUIDANCE.values()),
        *(Experiment("rules", task, _rules("RMSC", ["norm"]), Amount(25, 5)) for task in QUANTUM.values()),
        Experiment("stability", QUANTUM[3], CURES_CLIPPED, Amount(25, 5)),
        *(Experiment("rl", CART_POLES[n], RL_ON_POLES, Amount(50, 5)) for n in (1, 2)),
        Experiment("rl", QUANTUM[3], RL_WHERE_STEPS_PAY, Amount(25, 5)),
        Experiment("rl", GUIDANCE[0.1], RL_WHERE_STEPS_PAY, Amount(50, 5)),
        *(
            Experiment("tuned", task, TUNED_METHODS, amount, preset="tuned", evaluations=100)
            for task, amount in TUNED_TASKS
        ),
        *(Experiment("tuned-rates", task, TUNED_RATES, amount, preset="tuned") for task, amount in TUNED_TASKS[:1]),
        Experiment(
            "memory",
            _cart_pole(1, "cart-pole-1-positions", observation="positions", max_force=50.0),
            MEMORY,
            Amount(50, 5, train_states=64),
        ),
        *(
            Experiment("systems", task, SYSTEM_METHODS, amount, preset="tuned", evaluations=50)
            for task, amount in SYSTEM_TASKS
        ),
        *(
            Experiment("algorithms", task, variants, replace(amount, seeds=seeds), preset="tuned", evaluations=50)
            for name, (seeds, variants) in ALGORITHM_TASKS.items()
            for task, amount in (*TUNED_TASKS, *SYSTEM_TASKS)
            if task.name == name
        ),
        # The paper's own budget
        *(Experiment("budget", task, _rules("RMC", ["none", "norm"]), Amount(1000, 5)) for task in CART_POLES.values()),
        *(Experiment("budget", task, _rules("RMC", ["none", "norm"]), Amount(200, 5)) for task in GUIDANCE.values()),
        *(Experiment("budget", task, _rules("RMC", ["norm"]), Amount(1000, 5)) for task in QUANTUM.values()),
    )
}
"""In the order in which they are run."""
