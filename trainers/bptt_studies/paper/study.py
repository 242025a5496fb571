"""The results of one study on one task, as tables and figures take them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from bptt_studies.paper.results import Member, Point, Result

RULES = ("R", "M", "S", "C")
CLIPS = ("none", "value", "norm")
PLAIN = "plain"  # a rule with nothing changed


@dataclass(frozen=True)
class TaskResults:
    """What a study left on a task.

    Attributes:
        name: of the task, in file names.
        title: of the task, for readers.
        results: every finished run; all runs with the same `Member.method` are one method.
        curves: by `Member.name`; a run without a curve is missing where curves are drawn, and nowhere else.
        thresholds: losses for which the tables say how many runs ended at or below them.
        loss: what the loss is, for readers.
    """

    name: str
    title: str
    results: Sequence[Result]
    curves: Mapping[str, Sequence[Point]] = field(default_factory=dict)
    thresholds: Sequence[float] = ()
    loss: str = "held-out loss"

    def methods(self) -> dict[str, list[Result]]:
        """The runs of each method, in the order in which the methods come first."""
        found: dict[str, list[Result]] = {}
        for result in self.results:
            found.setdefault(result.member.method, []).append(result)
        return found

    def clips(self) -> list[str]:
        """The clippings that there are, as `CLIPS` orders them; that of reinforcement learning, "", comes last."""
        there = {result.member.clip for result in self.results}
        return [clip for clip in CLIPS if clip in there] + sorted(there - {*CLIPS})

    def beside(self, other: TaskResults, methods: Sequence[str]) -> TaskResults:
        """The same with these methods of another study of the task before its own; what it has itself is not taken."""
        wanted = set(methods) - set(self.methods())
        taken = [result for result in other.results if result.member.method in wanted]
        names = {result.member.name for result in taken}
        curves = {name: curve for name, curve in other.curves.items() if name in names}
        return replace(self, results=[*taken, *self.results], curves={**curves, **self.curves})


def plain(rule: str, clip: str) -> str:
    """The label of a rule with a clipping and nothing else changed: "C", "C norm"."""
    return rule if clip in ("none", "") else f"{rule} {clip}"


def at_rate(member: Member) -> str:
    """The label of a method without its learning rate: "C keeping R" of "from C: C keeping R lr=0.001"."""
    return member.method.rpartition(": ")[2].partition(" lr=")[0]


def change(member: Member) -> str:
    """What a method changes in its rule, from their labels: "cosine" of "C cosine", `PLAIN` of "C"."""
    return member.method.removeprefix(member.rule).strip() or PLAIN
