"""Built-in schedules: when something is due, and how much. Pure functions of where the run is.

``start`` and ``end`` are tokens; without them the pruning stage's own borders hold. Whatever the
schedule, what remains when the stage ends is cut there.
"""

import math

from effcompress.registry import schedule
from effcompress.spec import Count, Positive
from effcompress.types import Due


@schedule("once", paper="post-training pruning")
def once(
    tokens: int,
    start_params: int,
    params: int,
    target_params: int,
    prune_from: int,
    *,
    at: Count | None = None,
    rounds: Positive = 1,
) -> Due | None:
    """Everything after ``at`` tokens: in one event, or in ``rounds`` of equally many parameters
    between which saliency is measured anew and nothing is trained.
    """
    if tokens < (prune_from if at is None else at) or params <= target_params:
        return None
    return _next_round(start_params, target_params, params, rounds)


def _next_round(first: int, last: int, params: int, rounds: int) -> Due:
    """The next of ``rounds`` steps of equally many parameters from one size to another."""
    each = max(1.0, (first - last) / rounds)
    done = math.floor((first - params + 1) / each)  # a size is a whole number
    if done >= rounds - 1:
        return Due(params=last)
    return Due(params=round(first - (done + 1) * each), again=True)


@schedule("continuous", paper="arXiv:2502.06663")
def continuous(
    step: int,
    tokens: int,
    prune_from: int,
    *,
    every: Positive = 1,
    start: Count | None = None,
    groups: Positive = 1,
) -> Due | None:
    """``groups`` mini-groups every ``every`` steps, once ``start`` tokens have been trained on."""
    begun = tokens >= (prune_from if start is None else start)
    return Due(groups=groups) if begun and step % every == 0 else None


@schedule("constant_rate", paper="arXiv:2502.06663")
def constant_rate(
    step: int,
    tokens: int,
    start_params: int,
    target_params: int,
    prune_from: int,
    prune_until: int,
    *,
    every: Positive = 1,
    start: Count | None = None,
    end: Count | None = None,
) -> Due | None:
    """Parameters fall in proportion to the tokens, from ``start`` to ``end``, in a cut every
    ``every`` steps.
    """
    share = _share(tokens, start, end, prune_from, prune_until)
    return _down_to(share, share, step, every, start_params, target_params)


@schedule("cubic", paper="arXiv:1710.01878")
def cubic(
    step: int,
    tokens: int,
    start_params: int,
    target_params: int,
    prune_from: int,
    prune_until: int,
    *,
    every: Positive = 1,
    start: Count | None = None,
    end: Count | None = None,
) -> Due | None:
    """As ``constant_rate``, but fast first and slow at the end: ``(1 - t)^3`` of what is to go is
    left when the share ``t`` of the tokens is behind.
    """
    share = _share(tokens, start, end, prune_from, prune_until)
    gone = None if share is None else 1.0 - (1.0 - share) ** 3
    return _down_to(share, gone, step, every, start_params, target_params)


def _share(
    tokens: int, start: int | None, end: int | None, prune_from: int, prune_until: int
) -> float | None:
    """Share of the way from ``start`` to ``end``, by default the stage's; None before it begins."""
    begin, stop = prune_from if start is None else start, prune_until if end is None else end
    if tokens < begin:
        return None
    return min(1.0, (tokens - begin) / (stop - begin)) if stop > begin else 1.0


def _down_to(
    share: float | None, gone: float | None, step: int, every: int, first: int, last: int
) -> Due | None:
    if share is None or gone is None or (share < 1.0 and step % every):
        return None
    return Due(params=round(first - (first - last) * gone))
