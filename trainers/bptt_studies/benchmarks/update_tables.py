"""The tables of updates: the parts updates, quantum and guidance."""

from __future__ import annotations

from collections.abc import Sequence

from bptt_trainers.directions.rules import PAPER_RULES
from bptt_trainers.records.tables import Line, Row, markdown, number, percent, spread


def to_markdown(lines: Sequence[Line]) -> str:
    """A line for each task, number of threads, batch size and peer; below it, who was left out and why."""
    timed_lines = [line for line in lines if not line["left_out"]]
    found = {(*_task_of(line), line["peer"], line["rule"]): line for line in timed_lines}
    groups = dict.fromkeys((_task_of(line), line["peer"]) for line in timed_lines)
    columns = [name for name in ("options", "threads", "batch") if any(line[name] for line in lines)]
    with_jax = any(peer == "jax" for _, peer in groups)
    rows: list[Row] = []
    for task, peer in groups:
        by_rule = {rule: found[(*task, peer, rule)] for rule in PAPER_RULES}
        median = {rule: float(line["milliseconds"]) for rule, line in by_rule.items()}
        row: Row = {name: by_rule["C"][name] for name in (*columns, "peer")}
        row |= {f"{rule} ms": number(by_rule[rule]["milliseconds"]) for rule in ("R", "M", "S")}
        row |= {"C ms (least to largest)": spread(by_rule["C"]), "C / R": f"{median['C'] / median['R']:.2f}"}
        row |= {"C: times as fast as autograd": _ratio(found.get((*task, "autograd", "C")), median["C"], " x")}
        if with_jax:
            theirs = found.get((*task, "jax", "C"))
            row |= {"C: time over JAX's": _ratio(by_rule["C"], float(theirs["milliseconds"])) if theirs else "–"}
        row |= {"C: share of the limit": percent(by_rule["C"]["share"])}
        row |= {"first updates, s": number(str(sum(float(line["first_seconds"]) for line in by_rule.values())))}
        rows.append(row)
    return "\n\n".join([markdown(rows), *_left_out(lines)])


def _task_of(line: Line) -> tuple[str, ...]:
    return tuple(line[name] for name in ("env", "options", "device", "threads", "batch"))


def _ratio(line: Line | None, milliseconds: float, unit: str = "") -> str:
    """How many times as long as `milliseconds` a line took."""
    return "–" if line is None else f"{float(line['milliseconds']) / milliseconds:#.3g}".rstrip(".") + unit


def _left_out(lines: Sequence[Line]) -> list[str]:
    """Who was left out, where and why: a list."""
    places: dict[tuple[str, str], list[str]] = {}
    for line in lines:
        if line["left_out"]:
            where = " ".join(filter(None, [line["options"], f"batch {line['batch']}", f"threads {line['threads']}"]))
            places.setdefault((line["peer"], line["left_out"]), []).append(where)
    if not places:
        return []
    items = [f"- {peer} ({'; '.join(where)}): {reason}." for (peer, reason), where in places.items()]
    return ["Left out:\n\n" + "\n".join(items)]
