"""The tables of the report: rows of cells, and their Markdown once all verdicts of a page are made together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np

from bptt_studies.paper.results import SMALLEST, Result
from bptt_studies.paper.statistics import (
    ENOUGH,
    FEW,
    LEVEL,
    MEASURES,
    RESAMPLES,
    SMOOTHED,
    Improvement,
    Verdict,
    climbed_back,
    improvement,
    measured,
    quantile,
    share_at_or_below,
    spread,
    to_level,
    trailing_mean,
    verdicts,
)
from bptt_studies.paper.study import RULES, TaskResults, plain
from bptt_trainers.comparison.summary import CLIMB
from bptt_trainers.records.tables import Cell, markdown, number

DIGITS = 2
NONE = "–"
PAIRS = (("C", "R"), ("C", "M"), ("R", "M"))  # is the first better than the second?

READING = f"""Losses are means over the held-out start states. *Final*: at the end of training. *Last {SMOOTHED}*: the
mean over the last {SMOOTHED} epochs, or over all if they are fewer: where the paper's curves, such trailing means,
would end. *Best*: where the loss over the training states is lowest; nothing is chosen on held-out states.
*Area*: the geometric mean over the curve, the area under it on a log scale. Each as the median over the runs [first to
third quartile]; the mean has its bootstrap 95 % interval ({RESAMPLES:,} resamples, percentiles) in parentheses. A loss
that is not a number counts as infinite, and the mean is infinite if one loss is. *Climbed back*: runs whose final loss
is more than {CLIMB:g} times their best.

"C better than R" is the probability that a run of C has a lower loss than a run of R, ties counted half, over all
pairs of runs, with its bootstrap 95 % interval in parentheses
([Agarwal et al. 2021](https://arxiv.org/abs/2108.13264)). That describes what was seen; of few runs the interval is too
narrow. The word before it is the verdict, by the exact two-sided test of Mann and Whitney with Holm's correction over
all comparisons of all experiments: the probability that one of them has a false *yes* or *no* is at most
{100 * LEVEL:g} %. *Yes*: better; *no*: the other one is better; on fewer than {ENOUGH} runs a side it says so.
*Open*: not significant. *Too few*: with so few runs no outcome could be significant among so many comparisons; these
do not count in the correction, as the numbers of runs alone tell which they are (Tarone 1990)."""


@dataclass(frozen=True)
class Claim:
    """That one method is better than another on a task, which has no verdict yet.

    Attributes:
        better: experiment and label of the one method.
        worse: of the other.
        measure: one of `MEASURES`.
        found: what the runs show.
    """

    better: tuple[str, str]
    worse: tuple[str, str]
    measure: str
    found: Improvement


class Family:
    """Claims whose verdicts are made together, each counted once, however many tables show it.

    Args:
        claims: all that a page holds.
    """

    def __init__(self, claims: Iterable[Claim]) -> None:
        once = list(dict.fromkeys(claims))
        self.verdicts: dict[Claim, Verdict] = dict(zip(once, verdicts([one.found for one in once]), strict=True))

    def cell(self, claim: Claim) -> str:
        """Verdict, with few runs marked, and probability (interval)."""
        found, verdict = claim.found, self.verdicts[claim]
        sides = " and ".join(map(str, dict.fromkeys(found.runs)))
        mark = f" ({sides} a side)" if verdict in ("yes", "no") and found.marked else ""
        return f"{verdict}{mark}: {found.probability:.2f} ({found.low:.2f} to {found.high:.2f})"

    def reading(self) -> str:
        """How to read the tables, and how many claims there are with which verdict."""
        made = list(self.verdicts.values())
        counts = ", ".join(f"{made.count(word)} *{word}*" for word in get_args(Verdict) if word in made)
        return f"{READING}\n\nComparisons of all experiments: {len(made):,}, {counts}." if made else READING


Row = dict[str, Cell | Claim]


@dataclass(frozen=True)
class Table:
    """Rows of cells, some of which wait for their verdicts.

    Attributes:
        rows: all with the same columns.
        below: Markdown that follows the table.
    """

    rows: Sequence[Mapping[str, Cell | Claim]]
    below: str = ""

    def claims(self) -> list[Claim]:
        """All that stand in it."""
        return [cell for row in self.rows for cell in row.values() if isinstance(cell, Claim)]

    def text(self, family: Family) -> str:
        """The table as Markdown; nothing if it has no rows.

        Args:
            family: holds the verdicts of all its claims.
        """
        rows = [
            {name: family.cell(cell) if isinstance(cell, Claim) else cell for name, cell in row.items()}
            for row in self.rows
        ]
        return "\n\n".join(filter(None, [markdown(rows) if rows else "", self.below]))


def method_table(task: TaskResults) -> Table:
    """A row for each method of a task, and what was run below."""
    rows: list[Row] = []
    for label, results in task.methods().items():
        final = measured_losses(results)
        row: Row = {"method": label, "runs": runs_cell(len(results)), "final": median_cell(results, "final")}
        row |= {"mean final": mean_cell(results), f"last {SMOOTHED}": smoothed_cell(task, results)}
        row |= {"best": median_cell(results, "best")}
        row |= {"area": median_cell(results, "area")}
        row |= {f"at most {loss:g}": f"{100 * share_at_or_below(final, loss):.0f} %" for loss in task.thresholds}
        row |= {"climbed back": f"{sum(map(climbed_back, results))}/{len(results)}"}
        row |= {"updates skipped": sum(result.skipped for result in results)}
        row |= {"seconds a run": number(str(quantile([result.seconds for result in results], 0.5)))}
        rows.append(row)
    return Table(rows, f"{what_was_run(task)} {whose_seconds(task)}")


def comparison_table(task: TaskResults) -> Table:
    """For each clipping whether C is better than R and M, and R than M, by each measure."""
    rows: list[Row] = []
    for clip in task.clips():
        for better, worse in PAIRS:
            row: Row = {"clipping": clip, "claim": f"{better} better than {worse}"}
            rows.append(row | _by_measure(task, plain(better, clip), plain(worse, clip)))
    return Table(rows)


def overview_table(tasks: Sequence[TaskResults]) -> Table:
    """For each task and clipping whether C is better than R and M, and R than M, by the final loss; after how much."""
    rows: list[Row] = []
    for task in tasks:
        methods = task.methods()
        for clip in task.clips():
            row: Row = {"task": task.title, "clipping": clip, "as published, with": budget(task)}
            for better, worse in PAIRS:
                cell = claim(methods.get(plain(better, clip), []), methods.get(plain(worse, clip), []))
                row[f"{better} better than {worse}"] = cell
            rows.append(row)
    return Table(rows)


def ablation_table(task: TaskResults) -> Table:
    """For each variant whether it is better than R, M and C as they are, by each measure."""
    return _variant_table(task, lambda rule: ("R", "M", "C"))


def memory_table(task: TaskResults) -> Table:
    """Whether remembering pays, and what of M is to be kept in what is remembered."""
    pairs = (("C GRU", "C MLP"), ("C GRU", "R GRU"), ("M GRU", "M without memory GRU"))
    methods = task.methods()
    there = [(one, other) for one, other in pairs if {one, other} <= methods.keys()]
    return Table([{"claim": f"{one} better than {other}"} | _by_measure(task, one, other) for one, other in there])


def stability_table(task: TaskResults) -> Table:
    """For each variant whether it is better than its own rule as it is, than C and than R clipped by norm."""
    return _variant_table(task, lambda rule: (rule, "C", "R norm"))


def _variant_table(task: TaskResults, peers_of: Callable[[str], Iterable[str]]) -> Table:
    """A row for each method that is no rule as it is, and for each of its peers, by each measure.

    A peer that was not run without clipping is taken with the variant's own.
    """
    rows: list[Row] = []
    methods = task.methods()
    for label, results in methods.items():
        if label in RULES:
            continue
        member = results[0].member
        choices = [(peer, plain(peer, member.clip)) for peer in peers_of(member.rule)]
        there = [[one for one in choice if one in methods and one != label] for choice in choices]
        for peer in dict.fromkeys(found[0] for found in there if found):
            row: Row = {"claim": f"{label} better than {peer}"}
            rows.append(row | _by_measure(task, label, peer))
    return Table(rows)


def reinforcement_table(task: TaskResults) -> Table:
    """A row for each method: what it took, where it ended, when it reached each threshold."""
    rows: list[Row] = []
    methods = task.methods()
    for label, results in methods.items():
        row: Row = {"method": label, "runs": runs_cell(len(results))}
        row |= {"steps": number(str(quantile([result.member.steps for result in results], 0.5)))}
        row |= {"seconds": number(str(quantile([result.seconds for result in results], 0.5)))}
        row |= {"final": median_cell(results, "final"), "mean final": mean_cell(results)}
        row |= {f"to {loss:g}: steps, seconds": to_level_cell(task, results, loss) for loss in task.thresholds}
        row |= {"C better": NONE if label == "C" else claim(methods.get("C", []), results)}
        rows.append(row)
    below = f"""{what_was_run(task)} {whose_seconds(task)}

*To* a loss: simulator steps and seconds until the first evaluation with at most this loss, the median over all runs,
and how many reached it; {NONE} where the median run did not."""
    return Table(rows, below)


def continued_table(task: TaskResults) -> Table:
    """A row for each way to go on from a trained controller: where it started, and where it ended."""
    rows: list[Row] = []
    for label, results in task.methods().items():
        change = spread([one.final_loss / max(one.untrained_loss, SMALLEST) for one in results])
        lower, middle, upper = (number(str(value), DIGITS) for value in (change.lower, change.median, change.upper))
        row: Row = {"method": label, "runs": runs_cell(len(results))}
        row |= {"start": number(str(quantile([one.untrained_loss for one in results], 0.5)), DIGITS)}
        row |= {"final": median_cell(results, "final"), "area": median_cell(results, "area")}
        row |= {"final over start": f"{middle} [{lower} to {upper}]"}
        row |= {"rose": f"{sum(one.final_loss > one.untrained_loss for one in results)}/{len(results)}"}
        rows.append(row)
    return Table(rows, f"{what_was_run(task)} *Rose*: runs that ended above their start.")


def sensitivity_table(task: TaskResults) -> Table:
    """A row for each learning rate: the final losses of the rules, and whether C is better than R."""
    by_rate = by_learning_rate(task)
    names = list(dict.fromkeys(name for methods in by_rate.values() for name in methods))
    clips = task.clips()
    rows: list[Row] = []
    for rate, methods in by_rate.items():
        row: Row = {"learning rate": f"{rate:g}"}
        row |= {name: median_cell(methods[name], "final") if name in methods else NONE for name in names}
        for clip in clips:
            one, other = plain("C", clip), plain("R", clip)
            row[f"{one} better than {other}"] = claim(methods.get(one, []), methods.get(other, []))
        rows.append(row)
    factors = []
    for name in names:
        medians = [quantile(measured_losses(methods[name]), 0.5) for methods in by_rate.values() if name in methods]
        if min(medians) > 0:
            factors.append(f"{name} {number(str(max(medians) / min(medians)), DIGITS)}")
    below = f"Largest median over the smallest, all learning rates: {', '.join(factors) or NONE}."
    return Table(rows, f"{below} {what_was_run(task)}")


def by_learning_rate(task: TaskResults) -> dict[float, dict[str, list[Result]]]:
    """The runs by learning rate, least first, and by rule and clipping."""
    found: dict[float, dict[str, list[Result]]] = {}
    for result in sorted(task.results, key=lambda result: result.member.learning_rate):
        name = plain(result.member.rule, result.member.clip)
        found.setdefault(result.member.learning_rate, {}).setdefault(name, []).append(result)
    return found


# Cells


def runs_cell(runs: int) -> str:
    """How many runs there are, and whether they are too few for a claim."""
    return f"{runs}, too few" if runs < FEW else str(runs)


def median_cell(results: Sequence[Result], measure: str) -> str:
    """Median [first to third quartile] of a measure of `MEASURES`."""
    values = measured(results, measure)
    if values is None:
        return NONE
    of = spread(values)
    middle, lower, upper = (number(str(value), DIGITS) for value in (of.median, of.lower, of.upper))
    return middle if of.runs == 1 else f"{middle} [{lower} to {upper}]"


def mean_cell(results: Sequence[Result]) -> str:
    """Mean of the final losses (bootstrap interval)."""
    of = spread(measured_losses(results))
    mean, low, high = (number(str(value), DIGITS) for value in (of.mean, of.mean_low, of.mean_high))
    return mean if of.runs == 1 else f"{mean} ({low} to {high})"


def smoothed_cell(task: TaskResults, results: Sequence[Result]) -> str:
    """Median [first to third quartile] of where the curves end, smoothed as the paper's; a dash if one has no curve."""
    learned = [result for result in results if result.member.epochs]
    if not learned or not all(result.member.name in task.curves for result in learned):
        return NONE
    of = spread(smoothed_losses(task, learned))
    middle, lower, upper = (number(str(value), DIGITS) for value in (of.median, of.lower, of.upper))
    return middle if of.runs == 1 else f"{middle} [{lower} to {upper}]"


def smoothed_losses(task: TaskResults, results: Sequence[Result]) -> list[float]:
    """Where the curve of each run ends, smoothed as the paper's."""
    curves = [[point.test_loss for point in task.curves[result.member.name][1:]] for result in results]
    return [float(trailing_mean(np.nan_to_num(curve, nan=math.inf, posinf=math.inf))[-1]) for curve in curves]


def to_level_cell(task: TaskResults, results: Sequence[Result], loss: float) -> str:
    """When the median run reached a loss, and how many did; dashes where there are no curves."""
    curves = [task.curves[result.member.name] for result in results if result.member.name in task.curves]
    if not curves:
        return NONE
    steps, seconds = to_level(curves, loss)
    median = quantile(steps, 0.5)
    when = NONE
    if median < math.inf:
        when = f"{number(str(median), DIGITS)}, {number(str(quantile(seconds, 0.5)), DIGITS)} s"
    return f"{when} ({np.isfinite(steps).sum()}/{len(steps)})"


def claim(better: Sequence[Result], worse: Sequence[Result], measure: str = "final") -> Claim | str:
    """That one method is better than another; a dash if one was not run."""
    found = improvement_of(better, worse, measure)
    if found is None:
        return NONE
    one, other = ((results[0].member.experiment, results[0].member.method) for results in (better, worse))
    return Claim(one, other, measure, found)


def improvement_of(better: Sequence[Result], worse: Sequence[Result], measure: str = "final") -> Improvement | None:
    """The probability of improvement of a method over another; None if one was not run or has no such measure."""
    ours = measured(better, measure) if better else None
    theirs = measured(worse, measure) if worse else None
    return None if ours is None or theirs is None else improvement(ours, theirs)


def measured_losses(results: Sequence[Result]) -> list[float]:
    """The final losses."""
    return [result.final_loss for result in results]


def what_was_run(task: TaskResults) -> str:
    """Epochs, states and seeds of the runs, in a sentence."""
    members = [result.member for result in task.results]
    rules = [member for member in members if member.epochs]
    of = " of the rules" if len(rules) < len(members) else ""
    parts = [
        _range([member.epochs for member in rules], f"epochs{of}"),
        _range([member.train_states for member in rules], f"training states{of}"),
        _range([member.test_states for member in members], "held-out states"),
        _range([len(results) for results in task.methods().values()], "seeds a method"),
    ]
    return f"{', '.join(filter(None, parts))}."


def budget(task: TaskResults) -> str:
    """Epochs and seeds of the runs, in short."""
    epochs = _range([result.member.epochs for result in task.results if result.member.epochs], "epochs")
    return ", ".join(filter(None, [epochs, _range([len(results) for results in task.methods().values()], "seeds")]))


def whose_seconds(task: TaskResults) -> str:
    """Whether the seconds are those of a run alone, in a sentence."""
    together = [result.together for result in task.results if result.together > 1]
    if not together:
        return "Every run was trained alone."
    which = "Seconds" if len(together) == len(task.results) else "Seconds of some runs"
    return f"{which} are the share of one of {_range(together, 'runs')} that were trained together."


def _range(values: Sequence[int], unit: str) -> str:
    if not values:
        return ""
    least, most = min(values), max(values)
    return f"{least:,} {unit}" if least == most else f"{least:,} to {most:,} {unit}"


def _by_measure(task: TaskResults, better: str, worse: str) -> Row:
    """How many runs there are of each, and the claim by each measure."""
    methods = task.methods()
    one, other = methods.get(better, []), methods.get(worse, [])
    row: Row = {"runs": f"{len(one)} and {len(other)}"}
    return row | {measure: claim(one, other, measure) for measure in MEASURES}
