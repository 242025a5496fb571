"""What a reader of a comparison has to know beside its table: in one place for every output."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import torch

from bptt_envs import System
from bptt_envs.registration import system_class
from bptt_trainers.comparison.methods import BPTT, RL, Budget, Planned, get_method
from bptt_trainers.comparison.runs import Cell

TOGETHER = "Runs of the update rules are trained together; the seconds of one are its share of all."

NEAR = 1.05  # numbers of steps that are within this factor count as equal


def notes_of(cells: Sequence[Cell], seeds: int, together: bool) -> tuple[str, ...]:
    """The notes of a comparison or a sweep, those that apply.

    Args:
        cells: what is run.
        seeds: how often each is.
        together: whether runs of the update rules are trained as ensembles.
    """
    trained = TOGETHER if together and sum(cell.together for cell in cells) * seeds > 1 else ""
    return tuple(note for note in (trained, unequal_steps(cells), unequal_actions(cells)) if note)


def unequal_steps(cells: Sequence[Cell]) -> str:
    """How many simulator steps each method takes, in words; "" if those are about the ones asked for."""
    taken: dict[str, list[int]] = {}
    for cell in cells:
        if cell.steps:
            taken.setdefault(cell.method, []).append(cell.steps)
    counts = [count for some in taken.values() for count in some]
    asked = cells[0].budget.steps
    if not counts or max(*counts, asked) <= NEAR * min(*counts, asked):
        return ""
    methods: dict[str, list[str]] = {}
    for method, some in taken.items():
        low, high = min(some), max(some)
        methods.setdefault(f"{low:,}" if low == high else f"{low:,} to {high:,}", []).append(method)
    said = "; ".join(f"{', '.join(names)} {count}" for count, names in methods.items())
    note = f"In whole epochs and updates, the simulator steps of a run are not {asked:,} but: {said}."
    if max(counts) <= NEAR * min(counts):
        return note
    return f"{note} Losses at the end are not after equal steps: compare the curves."


def unequal_actions(cells: Sequence[Cell]) -> str:
    """Which methods act in a range beside which that act without bounds, in words; "" if all act alike."""
    free = [cell for cell in cells if isinstance(get_method(cell.method), (BPTT, Planned))]
    kept = [cell for cell in cells if cell.method == "random" or isinstance(get_method(cell.method), RL)]
    free = [cell for cell in free if not cell.settings().get("squash")] if kept else []
    if not free:
        return ""
    systems = {repr(cell.budget): cell.budget for cell in free}
    open_ones = {key: one for key, budget in systems.items() if not _is_bounded(one := budget.make_system())}
    free, kept = ([cell for cell in some if repr(cell.budget) in open_ones] for some in (free, kept))
    if not free or not kept:
        return ""
    system = open_ones[repr(free[0].budget)]
    ranges = {(float(low), float(high)) for low, high in zip(*map(torch.flatten, system.action_range), strict=True)}
    span = "in a nominal range" if len(ranges) > 1 else "from {:g} to {:g}".format(*ranges.pop())
    names = [", ".join(dict.fromkeys(cell.method for cell in some)) for some in (kept, free)]
    option = _bounding_option(free[0].budget)
    way = "" if option is None else f"; the option {option} bounds all alike"
    return f"Where actions have no bounds, those of {names[0]} are {span}, those of {names[1]} any{way}."


def _is_bounded(system: System) -> bool:
    """Whether each component of an action has a least and a largest value."""
    ends = (system.action_low, system.action_high)
    return all(end is not None and bool(torch.as_tensor(end).isfinite().all()) for end in ends)


def _bounding_option(budget: Budget) -> str | None:
    """The option of an environment that bounds its actions; None if it is not called max_... or not None now."""
    for name, value in (system_class(budget.env).options() | dict(budget.env_options)).items():
        if name.startswith("max_") and value is None:
            with suppress(Exception):  # of a user's own system: it is no option for bounds then
                if _is_bounded(replace(budget, env_options={**budget.env_options, name: 1.0}).make_system()):
                    return name
    return None
