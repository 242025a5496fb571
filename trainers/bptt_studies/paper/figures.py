"""The figures of the report: medians over seeds with the band between their quartiles."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import EngFormatter, StrMethodFormatter
from numpy.typing import ArrayLike

from bptt_envs.canvas import INK, MUTED
from bptt_studies.paper.across_tasks import profile
from bptt_studies.paper.algorithm_tables import FAMILIES
from bptt_studies.paper.results import Point, Result
from bptt_studies.paper.statistics import ENOUGH, FEW, SMOOTHED, Improvement, Values, quantile, trailing_mean
from bptt_studies.paper.study import PLAIN, RULES, TaskResults, at_rate, change, plain
from bptt_studies.paper.tables import PAIRS, by_learning_rate, improvement_of, measured_losses
from bptt_studies.paper.tuned_tables import COMPARED, scores_of, whole_tasks
from bptt_trainers.figures.bands import draw_band, drawable, series_of
from bptt_trainers.figures.style import (
    COLORS,
    WIDTH,
    Look,
    draw_curve,
    handles_of,
    legend_below,
    looks_of,
    rgb,
    style_axes,
    title_above,
    variant_looks,
    wrapped,
)
from bptt_trainers.figures.ticks import log_axes, ticks_at

ABOVE = 10.0  # times the untrained loss: losses above it and infinite ones are drawn there
CLIP_TITLES = {"none": "no clipping", "value": "clipped by value", "norm": "clipped by norm", "": ""}
BEYOND = f"triangles, and lines at the top: infinite, or more than {ABOVE:g} times the untrained loss"
COLUMNS = 4  # of small multiples
STRIPS = 3  # of strips, whose ticks need room


def rules_figure(task: TaskResults) -> Figure:
    """Held-out loss over epochs, a panel for each clipping, a line for each rule."""
    clips = task.clips()
    figure = _figure(WIDTH if len(clips) > 1 else 0.7 * WIDTH, 3.4)
    panels = figure.subplots(1, len(clips), sharey=True, squeeze=False)[0]
    for clip, axes in zip(clips, panels, strict=True):
        _rule_curves(axes, task, clip)
        axes.set_title(CLIP_TITLES[clip], fontsize=9, loc="left", color=rgb(INK))
        axes.set_xlabel("epochs", fontsize=9)
    panels[0].set_ylabel(task.loss, fontsize=9)
    return _finished(figure, panels, f"{task.title}: {_runs(task.results)}, median and quartiles", _beyond([task]))


def budget_figure(task: TaskResults) -> Figure:
    """Held-out loss, smoothed as the paper's, and the sizes of the updates, over epochs: a column for each clipping."""
    clips = task.clips()
    figure = _figure(WIDTH if len(clips) > 1 else 0.7 * WIDTH, 5.6)
    panels = figure.subplots(2, len(clips), sharex=True, sharey="row", squeeze=False)
    for clip, (losses, sizes) in zip(clips, panels.T, strict=True):
        _rule_curves(losses, task, clip, _smoothed)
        losses.set_title(CLIP_TITLES[clip], fontsize=9, loc="left", color=rgb(INK))
        _log_axes(sizes, "y")
        for rule in RULES:
            curves = _curves(task, task.methods().get(plain(rule, clip), []))
            series = series_of(curves, "epoch", value="direction_norm")
            if series:
                draw_band(sizes, series, Look(COLORS[rule], "-"), rule)
        sizes.set_xlabel("epochs", fontsize=9)
    panels[0, 0].set_ylabel(f"{task.loss},\nmeans over {SMOOTHED} epochs", fontsize=9)
    panels[1, 0].set_ylabel("norm of the direction\nbefore clipping", fontsize=9)
    title = f"{task.title}: {_runs(task.results)}, median and quartiles"
    return _finished(figure, panels.ravel(), title, _beyond([task]))


def overview_figure(tasks: Sequence[TaskResults]) -> Figure:
    """The rules on all tasks, a small panel each: without clipping where that was run, else with the first there is."""
    columns = min(COLUMNS, len(tasks))
    rows = math.ceil(len(tasks) / columns)
    figure = _figure(WIDTH, 0.9 + 1.9 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for place, (task, axes) in enumerate(zip(tasks, panels, strict=False)):
        clips = task.clips()
        note = f"\n{CLIP_TITLES[clips[0]]}" if clips and clips[0] != "none" else ""
        name = wrapped(task.title + note, 0.75 * 72.0 * WIDTH / columns, 8)
        axes.set_title(name, fontsize=8, loc="left", color=rgb(INK))
        if clips:
            _rule_curves(axes, task, clips[0])
        else:
            style_axes(axes)
            axes.set(xticks=[], yticks=[])
            axes.text(0.5, 0.5, "no runs", transform=axes.transAxes, ha="center", color=rgb(MUTED), fontsize=9)
        if len(tasks) - columns <= place:
            axes.set_xlabel("epochs", fontsize=8)
    for axes in panels[len(tasks) :]:
        axes.remove()
    figure.supylabel("held-out loss", fontsize=9)
    runs = _runs([result for task in tasks for result in task.results])
    title = f"Update rules on all tasks: {runs}, median and quartiles"
    return _finished(figure, panels[: len(tasks)], title, _beyond(tasks))


def reinforcement_figure(task: TaskResults) -> Figure:
    """Held-out loss against simulator steps and against seconds, a line for each method."""
    figure = _figure(WIDTH, 3.9)
    panels = figure.subplots(1, 2, sharey=True)
    _against_steps_and_seconds(panels, task, list(task.methods()))
    panels[0].set_ylabel(task.loss, fontsize=9)
    return _finished(figure, panels, f"{task.title}: {_runs(task.results)}, median and quartiles", _beyond([task]))


def tuned_figure(tasks: Sequence[TaskResults], methods: Sequence[str] = ("C", "R", "PPO", "SAC")) -> Figure:
    """Held-out loss against simulator steps and against seconds: a row for each task, a line for some methods."""
    figure = _figure(WIDTH, 1.0 + 2.2 * len(tasks))
    rows = figure.subplots(len(tasks), 2, sharey="row", squeeze=False)
    for task, panels in zip(tasks, rows, strict=True):
        _against_steps_and_seconds(panels, task, [label for label in methods if label in task.methods()])
        panels[0].set_ylabel(task.loss, fontsize=9)
        panels[0].set_title(task.title, fontsize=9, loc="left", color=rgb(INK))
        if task is not tasks[-1]:
            for axes in panels:
                axes.set_xlabel("")
    runs = _runs([one for task in tasks for one in task.results if one.member.method in methods])
    title = f"Tuned rules and tuned reinforcement learning, {runs}, median and quartiles"
    return _finished(figure, rows.ravel(), title, _beyond(tasks))


def algorithm_figure(task: TaskResults, references: Sequence[str] = ("R", "PPO")) -> Figure:
    """Held-out loss against simulator steps and against seconds, a column for each family, beside two references."""
    methods, top = task.methods(), _top(task.results)
    looks = looks_of(methods)
    columns = {name: [one for one in family if one in methods] for name, family in FAMILIES.items()}
    columns = {name: family for name, family in columns.items() if set(family) - set(references)}
    figure = _figure(WIDTH, 6.0)
    panels = figure.subplots(2, max(len(columns), 1), sharey=True, sharex="row", squeeze=False)
    for (name, family), column in zip(columns.items(), panels.T, strict=True):
        for axes, of in zip(column, ("simulator_steps", "seconds"), strict=True):
            _log_axes(axes, "xy")
            for label in dict.fromkeys([*references, *family]):
                series = series_of(_curves(task, methods.get(label, [])), of, top)
                if series:
                    look = looks[label] if label in family else Look(COLORS[label], ":")
                    draw_band(axes, series, look, label)
            _untrained(axes, task.results)
        column[0].set_title(name, fontsize=9, loc="left", color=rgb(INK))
        column[0].xaxis.set_major_formatter(EngFormatter(sep=""))
        column[0].set_xlabel("simulator steps", fontsize=9)
        column[1].set_xlabel("seconds of training", fontsize=9)
    for axes in panels[:, 0]:
        axes.set_ylabel(task.loss, fontsize=9)
    again = " and ".join(label for label in references if label in methods)
    title = f"{task.title}: {_runs(task.results)}, median and quartiles; dotted: {again}"
    return _finished(figure, panels.ravel(), title, _beyond([task]))


def algorithms_figure(tasks: Sequence[TaskResults]) -> Figure:
    """The final losses of every algorithm, a panel for each task: single runs and their median."""
    labels = list(dict.fromkeys(label for task in tasks for label in task.methods()))
    looks = looks_of(labels)
    columns = min(STRIPS, len(tasks))
    rows = math.ceil(len(tasks) / columns)
    figure = _figure(WIDTH, 0.8 + rows * (0.6 + 0.17 * len(labels)))
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for task, axes in zip(tasks, panels, strict=False):
        methods = {label: task.methods().get(label, []) for label in labels}
        _strip(axes, methods, lambda result: result.final_loss, _top(task.results), looks)
        axes.set_title(task.title, fontsize=9, loc="left", color=rgb(INK))
    for axes in panels[len(tasks) :]:
        axes.remove()
    figure.supxlabel("final held-out loss: single runs, median", fontsize=9)
    title_above(figure, f"Every algorithm on every task: {_runs([one for task in tasks for one in task.results])}")
    return figure


def profiles_figure(tasks: Sequence[TaskResults]) -> Figure:
    """Performance profiles over all tasks that every rule and PPO were run on, with bootstrap bands."""
    figure = _figure(0.8 * WIDTH, 3.4)
    axes = figure.subplots()
    style_axes(axes)
    kept, runs = whole_tasks(tasks)
    scored = scores_of(kept, COMPARED, runs) if kept else {}
    levels = np.linspace(0.0, 1.2, 121)
    for label, look in variant_looks({label: label[:1] if label not in COLORS else label for label in scored}).items():
        found = profile(scored[label], levels)
        axes.fill_between(levels, found.low, found.high, color=look.color, alpha=0.16, linewidth=0)
        draw_curve(axes, levels, found.share, look, label)
    axes.set_xlabel("score: 0 untrained, 1 the best median of all methods, logarithmic in the loss", fontsize=9)
    axes.set_ylabel("share of runs with a higher score", fontsize=9)
    return _finished(figure, [axes], f"Performance profiles over {len(kept)} tasks, {runs} runs of each method a task")


def _against_steps_and_seconds(panels: Sequence[Axes], task: TaskResults, methods: Sequence[str]) -> None:
    """The curves of methods, in one panel against simulator steps, in the other against seconds."""
    every = task.methods()
    looks = variant_looks({label: results[0].member.rule for label, results in every.items()})
    top = _top(task.results)
    for axes, of in zip(panels, ("simulator_steps", "seconds"), strict=True):
        _log_axes(axes, "xy")
        for label in methods:
            series = series_of(_curves(task, every[label]), of, top)
            if series:
                draw_band(axes, series, looks[label], label)
        _untrained(axes, task.results)
    panels[0].xaxis.set_major_formatter(EngFormatter(sep=""))
    panels[0].set_xlabel("simulator steps", fontsize=9)
    panels[1].set_xlabel("seconds of training", fontsize=9)


def sensitivity_figure(tasks: Sequence[TaskResults]) -> Figure:
    """Final loss over the learning rate, a panel for each task: medians with their quartiles, and the single runs."""
    figure = _figure(WIDTH if len(tasks) > 1 else 0.65 * WIDTH, 4.0)
    panels = figure.subplots(1, len(tasks), squeeze=False)[0]
    for task, axes in zip(tasks, panels, strict=True):
        _log_axes(axes, "xy")
        by_rate, top = by_learning_rate(task), _top(task.results)
        axes.set_xlim(min(by_rate) / 1.5, max(by_rate) * 1.5)
        names = list(dict.fromkeys(name for methods in by_rate.values() for name in methods))
        looks = looks_of(names)
        for i, name in enumerate(names):
            color, style = looks[name]
            rates = [rate for rate, methods in by_rate.items() if name in methods]
            losses = [measured_losses(by_rate[rate][name]) for rate in rates]
            places = np.array(rates) * 1.06 ** (i - (len(names) - 1) / 2)  # beside each other
            for place, of_rate in zip(places, losses, strict=True):
                _dots(axes, np.full(len(of_rate), place), of_rate, top, color)
            low, middle, high = (
                drawable([quantile(of_rate, share) for of_rate in losses], top) for share in (0.25, 0.5, 0.75)
            )
            bars = np.stack([middle - low, high - middle])
            axes.errorbar(places, middle, bars, fmt="o", linestyle=style, color=color, markersize=5, label=name)
        ticks_at(axes, sorted(by_rate), [f"{rate:g}" for rate in sorted(by_rate)])
        _untrained(axes, task.results)
        axes.set_title(f"{task.title}: {_runs(task.results)}", fontsize=9, loc="left", color=rgb(INK))
        axes.set_xlabel("learning rate", fontsize=9)
    panels[0].set_ylabel("final held-out loss", fontsize=9)
    return _finished(figure, panels, "Learning rate: single runs, median and quartiles", _beyond(tasks))


def ablation_figure(task: TaskResults) -> Figure:
    """Curves of the rules and their variants, and the final loss of every run."""
    figure = _figure(WIDTH, 4.0)
    curves, strip = figure.subplots(1, 2, width_ratios=(1.2, 1.0))
    looks, top = looks_of(task.methods()), _top(task.results)
    _log_axes(curves, "y")
    for label, results in task.methods().items():
        series = series_of(_curves(task, results), "epoch", top, start=True)
        if series:
            draw_band(curves, series, looks[label], label)
    _untrained(curves, task.results)
    curves.set_xlabel("epochs", fontsize=9)
    curves.set_ylabel(task.loss, fontsize=9)
    _strip(strip, task.methods(), lambda result: result.final_loss, top, looks)
    strip.set_xlabel("final held-out loss: single runs, median", fontsize=9)
    return _finished(figure, [curves], f"{task.title}: {_runs(task.results)}, median and quartiles", _beyond([task]))


def stability_figure(task: TaskResults) -> Figure:
    """A panel for each change with the curves of the rules so changed; the final losses, and how far they climbed back.

    So many curves in one panel would hide each other. Beside those of the change, each panel has the medians of the
    plain rules; where these were not run, of the first change.
    """
    order = ("C", "R", "M", "S")
    ordered = sorted(task.results, key=lambda result: order.index(result.member.rule))
    by_change: dict[str, dict[str, list[Result]]] = {}
    for result in sorted(ordered, key=lambda result: change(result.member) != PLAIN):
        by_change.setdefault(change(result.member), {}).setdefault(result.member.rule, []).append(result)
    methods: dict[str, list[Result]] = {}
    for result in ordered:
        methods.setdefault(result.member.method, []).append(result)
    reference, top = next(iter(by_change)), _top(task.results)

    columns = min(COLUMNS, len(by_change))
    rows = math.ceil(len(by_change) / columns)
    heights = 0.9 + 1.45 * rows, 0.7 + 0.19 * len(methods)
    figure = _figure(WIDTH, sum(heights))
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=heights)[:, 0]
    panels = above.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for place, ((changed, by_rule), axes) in enumerate(zip(by_change.items(), panels, strict=False)):
        _log_axes(axes, "y")
        for rule, results in by_change[reference].items():
            series = series_of(_curves(task, results), "epoch", top, start=True)
            if series and changed != reference:
                draw_band(axes, series, Look(COLORS[rule], ":"), f"{rule} {reference}", None, 1.0)
        for rule, results in by_rule.items():
            series = series_of(_curves(task, results), "epoch", top, start=True)
            if series:
                draw_band(axes, series, Look(COLORS[rule], "-"), rule)
        axes.set_title(changed, fontsize=9, loc="left", color=rgb(INK))
        if len(by_change) - columns <= place:
            axes.tick_params(labelbottom=True)
            axes.set_xlabel("epochs", fontsize=9)
    for axes in panels[len(by_change) :]:
        axes.remove()
    above.supylabel(task.loss, fontsize=9)
    looks = {label: Look(COLORS[results[0].member.rule], "-") for label, results in methods.items()}
    strips = below.subplots(1, 2, sharey=True)
    _strip(strips[0], methods, lambda result: result.final_loss, top, looks)
    strips[0].set_xlabel("final held-out loss: single runs, median", fontsize=9)
    _strip(strips[1], methods, _climb, math.inf, looks)
    strips[1].axvline(1.0, color=rgb(MUTED), linewidth=1.0, linestyle=":")
    strips[1].set_xlabel("final loss over that of the best training loss", fontsize=9)
    title = f"{task.title}: {_runs(task.results)}, median and quartiles, a panel for each change"
    return _finished(figure, panels[: len(by_change)], title, _beyond([task]), above)


def continued_figure(task: TaskResults) -> Figure:
    """Curves on from a trained controller, a panel for each learning rate."""
    rates = sorted({result.member.learning_rate for result in task.results}, reverse=True)
    figure = _figure(WIDTH if len(rates) > 1 else 0.7 * WIDTH, 3.9)
    panels = figure.subplots(1, len(rates), sharey=True, squeeze=False)[0]
    looks = looks_of(at_rate(result.member) for result in task.results)
    losses = [point.test_loss for curve in task.curves.values() for point in curve]
    top = 3.0 * max(filter(math.isfinite, losses), default=1.0)  # a start near the optimum says nothing of the end
    for rate, axes in zip(rates, panels, strict=True):
        _log_axes(axes, "y")
        for results in task.methods().values():
            series = series_of(_curves(task, results), "epoch", top, start=True)
            name = at_rate(results[0].member)
            if series and results[0].member.learning_rate == rate:
                draw_band(axes, series, looks[name], name)
        _untrained(axes, task.results, "start")
        axes.set_title(f"learning rate {rate:g}", fontsize=9, loc="left", color=rgb(INK))
        axes.set_xlabel("epochs from there on", fontsize=9)
    panels[0].set_ylabel(task.loss, fontsize=9)
    infinite = any(math.isinf(result.final_loss) for result in task.results)
    title = f"{task.title}, on from a trained controller: {_runs(task.results)}, median and quartiles"
    return _finished(figure, panels, title, "lines at the top: infinite" if infinite else "")


def improvement_figure(tasks: Sequence[TaskResults]) -> Figure:
    """Is C better than R and M, is R better than M: probability of improvement with its interval, task by task."""
    rows = [(task, clip) for task in tasks for clip in task.clips()]
    figure = _figure(WIDTH, 1.5 + 0.23 * max(len(rows), 3))
    panels = figure.subplots(1, len(PAIRS), sharey=True)
    for (better, worse), axes in zip(PAIRS, panels, strict=True):
        style_axes(axes)
        for place, (task, clip) in enumerate(rows):
            methods = task.methods()
            found = improvement_of(methods.get(plain(better, clip), []), methods.get(plain(worse, clip), []))
            if found is not None:
                _interval(axes, place, found, {"yes": COLORS[better], "no": COLORS[worse]})
        axes.axvline(0.5, color=rgb(MUTED), linewidth=1.0, linestyle="--", zorder=1)
        axes.set(xlim=(-0.04, 1.04), xticks=(0, 0.25, 0.5, 0.75, 1), ylim=(len(rows) - 0.4, -0.6))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.set_title(f"{better} better than {worse}", fontsize=9, loc="left", color=rgb(INK))
    names = [f"{task.title}{'' if clip == 'none' else f', {clip}'}" for task, clip in rows]
    panels[0].set_yticks(range(len(rows)), names)
    figure.supxlabel("probability that a run of the one ends with a lower held-out loss", fontsize=9)
    runs = _runs([one for task in tasks for one in task.results])
    note = f"color: the better rule; gray: the interval holds 0.5; hollow: fewer than {ENOUGH} runs a side"
    title_above(figure, f"Probability of improvement with 95 % intervals: {runs}\n{note}")
    return figure


# Parts of figures


def _smoothed(losses: Sequence[float]) -> Values:
    """A curve as the paper has it: the untrained loss, then trailing means; a loss that is no number is infinite."""
    untrained, *trained = np.nan_to_num(losses, nan=math.inf, posinf=math.inf)
    return np.append(untrained, trailing_mean(trained))


def _rule_curves(
    axes: Axes, task: TaskResults, clip: str, smooth: Callable[[Sequence[float]], ArrayLike] = np.asarray
) -> None:
    """The rules under a clipping, over epochs."""
    _log_axes(axes, "y")
    methods, top = task.methods(), _top(task.results)
    for rule in RULES:
        series = series_of(_curves(task, methods.get(plain(rule, clip), [])), "epoch", top, start=True, smooth=smooth)
        if series:
            draw_band(axes, series, Look(COLORS[rule], "-"), rule)
    _untrained(axes, task.results)


def _untrained(axes: Axes, results: Sequence[Result], label: str = "untrained") -> None:
    """A line at the loss before the first update, the median over the runs."""
    losses = [result.untrained_loss for result in results]
    axes.axhline(
        float(drawable(quantile(losses, 0.5))),
        color=rgb(MUTED),
        linewidth=1.0,
        linestyle=(0, (1, 2)),
        label=label,
    )


def _strip(
    axes: Axes,
    methods: Mapping[str, Sequence[Result]],
    value: Callable[[Result], float],
    top: float,
    looks: Mapping[str, Look],
) -> None:
    """A row for each method: a dot for each run, a bar at the median."""
    _log_axes(axes, "x")
    values = {label: [value(result) for result in results] for label, results in methods.items()}
    values = {label: [one for one in of_label if not math.isnan(one)] for label, of_label in values.items()}
    finite = [one for of_label in values.values() for one in of_label if math.isfinite(one)]
    top = min(top, ABOVE * max(finite, default=1.0))
    for place, (label, of_label) in enumerate(values.items()):
        if of_label:
            heights = place + 0.28 * (np.arange(len(of_label)) / max(len(of_label) - 1, 1) - 0.5)
            _dots(axes, heights, of_label, top, looks[label].color, across=True)
            middle = float(drawable(quantile(of_label, 0.5), top))
            axes.plot([middle, middle], [place - 0.36, place + 0.36], color=looks[label].color, linewidth=2.2)
    axes.set_yticks(range(len(values)), list(values))
    axes.set_ylim(len(values) - 0.4, -0.6)


def _dots(
    axes: Axes,
    places: Sequence[float] | np.ndarray,
    losses: Sequence[float],
    top: float,
    color: str,
    across: bool = False,
) -> None:
    """Single runs; those beyond the axis as triangles at its end. Across: losses to the right, not upwards."""
    shown, infinite = drawable(losses, top), np.asarray(losses) > top
    infinite |= np.isinf(losses)
    for chosen, marker, size in ((~infinite, "o", 14), (infinite, ">" if across else "^", 46)):
        if chosen.any():
            x, y = np.asarray(places)[chosen], shown[chosen]
            axes.scatter(
                y if across else x,
                x if across else y,
                s=size,
                color=color,
                alpha=0.55,
                marker=marker,
                linewidths=0,
                zorder=3,
            )


def _interval(axes: Axes, place: int, found: Improvement, colors: Mapping[str, str]) -> None:
    color = colors.get("yes" if found.low > 0.5 else "no" if found.high < 0.5 else "", rgb(MUTED))
    axes.plot([found.low, found.high], [place, place], color=color, linewidth=2.0, solid_capstyle="butt")
    axes.plot(
        [found.probability],
        [place],
        "o",
        color=color,
        markersize=6,
        markerfacecolor="white" if found.marked else color,
    )


def _climb(result: Result) -> float:
    """The final loss over the best; 1 of a run that was infinite throughout."""
    if math.isinf(result.best_loss):
        return 1.0
    return result.final_loss / result.best_loss if result.best_loss > 0 else math.nan


def _curves(task: TaskResults, results: Iterable[Result]) -> list[Sequence[Point]]:
    return [task.curves[result.member.name] for result in results if result.member.name in task.curves]


def _top(results: Sequence[Result]) -> float:
    """The largest loss that is drawn."""
    untrained = [result.untrained_loss for result in results if math.isfinite(result.untrained_loss)]
    return ABOVE * quantile(untrained, 0.5) if untrained else ABOVE


def _beyond(tasks: Iterable[TaskResults]) -> str:
    """What stands at the end of an axis, if there are final losses that it does not reach."""
    beyond = (one.final_loss > _top(task.results) for task in tasks for one in task.results)
    return BEYOND if any(beyond) else ""


def _runs(results: Sequence[Result]) -> str:
    """How many seeds a method has."""
    counts: dict[tuple[str, str, str], int] = {}
    for result in results:
        key = (result.member.env_id, result.member.options, result.member.method)
        counts[key] = counts.get(key, 0) + 1
    if not counts:
        return "no runs"
    least, most = min(counts.values()), max(counts.values())
    seeds = f"{most} seed{'s' if most > 1 else ''}" if least == most else f"{least} to {most} seeds"
    return f"{seeds} (fewer than {FEW}: no claim)" if least < FEW else seeds


def _log_axes(axes: Axes, which: str) -> None:
    style_axes(axes)
    log_axes(axes, which)


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), dpi=100, layout="constrained")


def _finished(
    figure: Figure, panels: Iterable[Axes], title: str, note: str = "", legend_of: SubFigure | None = None
) -> Figure:
    """A legend of everything that the panels label, each once, and a title."""
    handles = handles_of(panels)
    if "untrained" in handles:
        handles["untrained"] = handles.pop("untrained")  # last
    legend_below(legend_of or figure, handles)
    title_above(figure, f"{title}\n{note}" if note else title)
    return figure
