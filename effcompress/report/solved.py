"""Tasks before and after: what the record says of them, and how a report puts it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from effcompress.report import numbers


@dataclass(frozen=True)
class Accuracy:
    """A share of right answers, its standard error, the metric, the number of examples."""

    value: float
    stderr: float | None
    metric: str
    examples: int


@dataclass(frozen=True)
class Solved:
    """Accuracy by task; the mean comes first, under what it is the mean of."""

    scores: Mapping[str, Accuracy]
    protocol: Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One line of a table, in percent. What was measured once only has an empty ``change``."""

    name: str
    before: str
    after: str
    change: str


def solved_of(line: Mapping[str, Any]) -> Solved | None:
    """What an evaluation event says of tasks."""
    found = line.get("tasks")
    if not found:
        return None
    scores: dict[str, Accuracy] = {}
    if mean := found["mean"]:
        amount = sum(found["scores"][name]["examples"] for name in mean["tasks"])
        scores[f"mean of {mean['of']}"] = Accuracy(mean["value"], mean["stderr"], "", amount)
    for name, score in found["scores"].items():
        scores[name] = Accuracy(*(score[k] for k in ("value", "stderr", "metric", "examples")))
    return Solved(scores, found["protocol"])


def rows(before: Solved | None, after: Solved | None) -> list[Row]:
    """Both evaluations, task by task; what was measured once only has one number."""
    old = before.scores if before else {}
    new = after.scores if after else {}
    found = []
    for name in dict.fromkeys([*old, *new]):
        a, b = old.get(name), new.get(name)
        metric = (a or new[name]).metric
        change = numbers.points(b.value - a.value) if a and b else ""
        title = f"{name} ({metric})" if metric else name
        found.append(Row(title, _percent(a), _percent(b), change))
    return found


def protocol(solved: Solved) -> str:
    """How tasks were measured, in words."""
    said = dict(solved.protocol)
    limit = said.pop("limit", None)
    amount = f"the first {limit} examples of each" if limit else "all examples"
    settings = [f"{key.replace('_', ' ')}: {_said(value)}" for key, value in said.items()]
    return (
        f"Tasks were solved by likelihood of the given answers, {amount}; accuracy in percent with "
        f"its standard error. Settings: {'; '.join(settings)}."
    )


def _said(value: Any) -> str:
    return "none" if value is None else str(value)


def _percent(one: Accuracy | None) -> str:
    if one is None:
        return ""
    return numbers.with_error(one.value, one.stderr)
