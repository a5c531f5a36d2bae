"""Built-in schedules: when is something due, and how much. Pure functions of where the run is."""

from __future__ import annotations

from typing import Any

from effcompress.errors import PluginError
from effcompress.registry import Bound, schedule
from effcompress.spec import Count, Positive
from effcompress.types import Due


@schedule("once", paper="post-training pruning")
def once(tokens: int, params: int, target_params: int, *, at: Count = 0) -> Due | None:
    """Everything in one event, after ``at`` tokens."""
    return Due(params=target_params) if tokens >= at and params > target_params else None


@schedule("continuous", paper="arXiv:2502.06663")
def continuous(
    step: int, tokens: int, *, every: Positive = 1, start: Count = 0, groups: Positive = 1
) -> Due | None:
    """``groups`` mini-groups every ``every`` steps, once ``start`` tokens have been trained on."""
    return Due(groups=groups) if tokens >= start and step % every == 0 else None


def ask(bound: Bound, **place: Any) -> Due | None:
    """What a schedule says at a place in the run. Raises PluginError if it is not an answer."""
    due = bound(**place)
    if due is None or (isinstance(due, Due) and (due.groups is None) != (due.params is None)):
        return due
    raise PluginError(
        f"schedule '{bound.name}' returned {due!r}",
        where=bound.plugin.where,
        fix="Return Due(groups=...), Due(params=...) or None.",
    )
