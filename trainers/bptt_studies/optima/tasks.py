"""The tasks whose best losses are looked for, and by which planners."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bptt_studies.paper.experiments import TUNED_TASKS


@dataclass(frozen=True)
class Sought:
    """One task.

    Attributes:
        name: of the tuned task whose results stand beside it, or one of its own.
        env_id: id of the environment.
        options: its options.
        methods: planners with their settings, in turn.
    """

    name: str
    env_id: str
    options: Mapping[str, Any] = field(default_factory=dict)
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"iLQR": {}})


PLANNED_BY: dict[str, Mapping[str, Mapping[str, Any]]] = {
    "guidance-0.1": {"GRAPE": {"iterations": 150}},
    "quantum-3": {"GRAPE": {}},
    "quantum-5": {"GRAPE": {}},
}
"""Tuned tasks that are not planned by iLQR alone: it would take long."""

SOUGHT = {
    one.name: one
    for one in (
        *(
            Sought(task.name, task.env_id, task.options, PLANNED_BY.get(task.name, {"iLQR": {}}))
            for task, _ in TUNED_TASKS
        ),
        Sought("chained-pendulum-2", "DiffChainedPendulum-v0", methods={"iLQR": {"restarts": 1, "iterations": 50}}),
        Sought(
            "quadrotor-gate",
            "DiffQuadrotor-v0",
            methods={"MPPI": {"iterations": 50}, "iLQR": {"restarts": 4, "iterations": 60}},
        ),
        Sought("lqr", "DiffLQR-v0"),
    )
}
"""By name."""
