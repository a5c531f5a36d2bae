"""Built-in schedules: when is something due, and how much. Pure functions of where the run is."""

from __future__ import annotations

from effcompress.registry import schedule
from effcompress.spec import Count
from effcompress.types import Due


@schedule("once", paper="post-training pruning")
def once(tokens: int, params: int, target_params: int, *, at: Count = 0) -> Due | None:
    """Everything in one event, after ``at`` tokens."""
    return Due(params=target_params) if tokens >= at and params > target_params else None


@schedule("continuous", paper="arXiv:2502.06663")
def continuous(
    step: int, tokens: int, *, every: int = 1, start: Count = 0, groups: int = 1
) -> Due | None:
    """``groups`` mini-groups every ``every`` steps, once ``start`` tokens have been trained on."""
    return Due(groups=groups) if tokens >= start and step % every == 0 else None
