"""Tables of the tasks that were solved before and after."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from effcompress.record.events import Tasks
from effcompress.report import numbers


@dataclass(frozen=True)
class Accuracy:
    """A fraction of right answers (0 to 1), its standard error, and the metric."""

    value: float
    stderr: float | None
    metric: str = ""


@dataclass(frozen=True)
class Row:
    """One line of a table, in percent. What was measured once only has an empty ``change``."""

    name: str
    before: str
    after: str
    change: str


def accuracies(tasks: Tasks | None) -> dict[str, Accuracy]:
    """Accuracy by task; the mean comes first, as ``mean of <words>``."""
    found: dict[str, Accuracy] = {}
    if tasks and (mean := tasks.mean):
        found[f"mean of {mean.of}"] = Accuracy(mean.value, mean.stderr)
    for name, score in (tasks.scores if tasks else {}).items():
        found[name] = Accuracy(score.value, score.stderr, score.metric)
    return found


def rows(before: Tasks | None, after: Tasks | None) -> list[Row]:
    """Both evaluations, task by task; what was measured once only has one number."""
    old, new = accuracies(before), accuracies(after)
    found = []
    for name in dict.fromkeys([*old, *new]):
        a, b = old.get(name), new.get(name)
        metric = (a or new[name]).metric
        change = numbers.points(b.value - a.value) if a and b else ""
        title = f"{name} ({metric})" if metric else name
        found.append(Row(title, _percent(a), _percent(b), change))
    return found


def protocol(tasks: Tasks) -> str:
    """How tasks were measured, in words."""
    settings = dict(tasks.protocol)
    limit = settings.pop("limit", None)
    amount = f"the first {limit} examples of each" if limit else "all examples"
    listed = [f"{key.replace('_', ' ')}: {_value(value)}" for key, value in settings.items()]
    return (
        f"Tasks were solved by likelihood of the given answers, {amount}; accuracy in percent with "
        f"its standard error. Settings: {'; '.join(listed)}."
    )


def _value(value: Any) -> str:
    return "none" if value is None else str(value)


def _percent(one: Accuracy | None) -> str:
    return "" if one is None else numbers.with_error(one.value, one.stderr)
