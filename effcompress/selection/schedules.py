"""Built-in schedules: when is something due, and how much. Pure functions of where the run is.

``start`` and ``end`` are tokens; without them the pruning stage's own borders hold. Whatever the
schedule, what remains when the stage ends is cut there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from effcompress.errors import PluginError
from effcompress.registry import Bound, schedule
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


@schedule("interleaved", paper="arXiv:2502.03460, Adapt-Accel")
def interleaved(
    tokens: int,
    start_params: int,
    params: int,
    target_params: int,
    prune_from: int,
    prune_until: int,
    *,
    stages: Positive = 10,
    shards: Literal["linear", "equal"] = "linear",
    rounds: Positive = 1,
    restart: bool = False,
    start: Count | None = None,
    end: Count | None = None,
) -> Due | None:
    """Cut, train, cut, train: ``stages`` cuts of equally many parameters, each in ``rounds``
    between which saliency is measured anew, and each in front of its shard of the tokens from
    ``start`` to ``end``. Shards grow with their number (linear: the i-th of I has
    ``2 i / (I (I + 1))`` of the tokens) or do not (equal).

    ``restart``: as published, a selector's ``fraction_K`` and ``influence_K`` (those of
    ``adaptive``) count from the beginning of a stage. A KV group then hardly ever falls due,
    since a stage's share of a layer is less than one.
    """
    begin, stop = prune_from if start is None else start, prune_until if end is None else end
    if tokens < begin or params <= target_params:
        return None
    growing = shards == "linear"
    # Shards in front of the i-th hold weights[i - 1] of weights[-1]; whole numbers, so exact.
    weights = [i * (i + 1) if growing else i for i in range(stages + 1)]
    behind = (tokens - begin) * weights[-1]
    stage = max(i for i in range(1, stages + 1) if behind >= (stop - begin) * weights[i - 1])
    span = start_params - target_params
    first, last = (start_params - span * i // stages for i in (stage - 1, stage))
    if params <= last:
        return None
    due = _next_round(first, last, params, rounds)
    return replace(due, stage=stage) if restart else due


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


@schedule("cost_aware", paper="arXiv:2502.06663, rate read off the figures")
def cost_aware(
    step: int,
    tokens: int,
    prune_from: int,
    removed: Mapping[str, int],
    positions: Mapping[str, int],
    *,
    every: Positive = 1,
    start: Count | None = None,
    ffn: Positive = 1,
    hidden: Positive = 2,
    attention: Positive | None = None,
    query: Positive | None = None,
) -> Due | None:
    """One mini-group, then a pause of ``every`` steps times its cost, so that the model recovers
    for as long as what went would have taken channel by channel.

    An FFN channel costs ``ffn``, a channel of the residual stream ``hidden``, heads (and experts,
    blocks, layers) by default as much as they have columns in the projection back into the stream:
    a head its width, a KV group that of all its query heads. The next cut is due once ``every``
    times the cost of all that went is behind.
    """
    begin = prune_from if start is None else start
    if tokens < begin:
        return None
    cost = {**positions, "ffn": ffn, "expert_ffn": ffn, "hidden": hidden}
    cost |= {k: v for k, v in (("attention", attention), ("query", query)) if v is not None}
    spent = every * sum(cost.get(kind, 1) * units for kind, units in removed.items())
    first = math.ceil(begin * step / tokens) if tokens else 0
    return Due(groups=1) if step - first >= spent else None


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
