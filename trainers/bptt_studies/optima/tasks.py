"""The tasks whose best losses are looked for, and by which planners."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bptt_studies.paper.experiments import EXPERIMENTS


@dataclass(frozen=True)
class Sought:
    """One task.

    Attributes:
        name: of the experiment's task whose results stand beside it, or one of its own.
        env_id: id of the environment.
        options: its options.
        methods: planners with their settings, in turn.
        study: whose results stand beside it: those in results/STUDY-NAME.csv; "" if there are none.
    """

    name: str
    env_id: str
    options: Mapping[str, Any] = field(default_factory=dict)
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"iLQR": {}})
    study: str = ""


PLANNED_BY: dict[str, Mapping[str, Mapping[str, Any]]] = {
    "guidance-0.1": {"GRAPE": {"iterations": 150}},
    "quantum-3": {"GRAPE": {}},
    "quantum-5": {"GRAPE": {}},
    "quadrotor": {"MPPI": {"iterations": 50}, "iLQR": {"restarts": 4, "iterations": 60}},
    "pusher": {"MPPI": {"iterations": 50}, "GRAPE": {"iterations": 100}},
    "chained-2": {"iLQR": {"restarts": 1, "iterations": 50}},
    "hopper": {"GRAPE": {"iterations": 100}},
    "heat": {"GRAPE": {}},
    "burgers": {"GRAPE": {"iterations": 100}},
    "kuramoto-sivashinsky": {"GRAPE": {}},
}
"""Tasks that are not planned by iLQR alone: it would take long, or get stuck."""

SOUGHT = {
    one.name: one
    for one in (
        *(
            Sought(
                each.task.name,
                each.task.env_id,
                each.task.options,
                PLANNED_BY.get(each.task.name, {"iLQR": {}}),
                each.study,
            )
            for each in EXPERIMENTS.values()
            if each.study in ("tuned", "systems")
        ),
        Sought("lqr", "DiffLQR-v0"),
    )
}
"""By name."""
