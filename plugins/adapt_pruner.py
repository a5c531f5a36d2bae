"""Adapt-Pruner and Adapt-Accel: adaptive structural pruning (arXiv:2502.03460).

Layers that hardly turn the residual stream lose more (sec. 3): layer ``i`` loses units at the rate
``1 - amplitude * n_i``, where ``n_i`` is the layer's influence (``shortgpt.py``), averaged over the
cuts so far and brought to mean 0 and largest magnitude 1. Adapt-Accel cuts and trains in turns.

``K`` candidates for removal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from effcompress import Count, Due, NotNegative, Positive, schedule, selector

if TYPE_CHECKING:
    from torch import Tensor


def mean_influence(
    state: Mapping[str, list[float]] | None, influence: Mapping[int, float]
) -> dict[str, list[float]]:
    """Sum and number of every layer's influence over the cuts so far."""
    old = state or {}
    new = dict(old)
    for layer, value in influence.items():
        total, count = old.get(str(layer), (0.0, 0))
        new[str(layer)] = [total + value, count + 1]
    return new


@selector("adaptive", paper="arXiv:2502.03460, sec. 3", observe=mean_influence)
def adaptive(
    fraction_K: Tensor,
    layer_K: Tensor,
    state: Mapping[str, tuple[float, int]],
    *,
    amplitude: NotNegative = 1.0,
) -> Tensor:
    """A layer's next unit falls due when its rate times the progress reaches the fraction that is
    then gone; saliency only ranks within a layer, ``[K]``.

    ``amplitude`` is the published one divided by the published step (0.02 / 0.02); rates are never
    below a hundredth. For ``scope: per_layer``. What belongs to no layer has influence 0.
    """
    means = {int(i): total / count for i, (total, count) in state.items()}
    centre = sum(means.values()) / len(means)
    largest = max(abs(value - centre) for value in means.values()) or 1.0
    influence = [(means.get(i, centre) - centre) / largest for i in layer_K.tolist()]
    rate_K = (1.0 - amplitude * fraction_K.new_tensor(influence)).clamp(min=0.01)
    return fraction_K / rate_K


def something_is_trained(
    tokens_per_step: int,
    prune_from: int,
    prune_until: int,
    *,
    stages: Positive,
    shards: str,
    start: Count | None,
    end: Count | None,
) -> tuple[str, str] | None:
    """What is wrong where no step of training would follow the last cut."""
    if not tokens_per_step:
        return (
            "'interleaved' cuts between shards of training, but there is none",
            "Add `train:`, or write `schedule: {name: once, at: 0, rounds: 10}`.",
        )
    span = (prune_until if end is None else end) - (prune_from if start is None else start)
    last = int(span * (1 / stages if shards == "equal" else 2 / (stages + 1)))
    if last >= tokens_per_step:
        return None
    return (
        f"the last of {stages} shards has {last:,} tokens, an optimizer step {tokens_per_step:,}: "
        "no step would train behind the last cut",
        "Write fewer `stages`, more tokens, or a smaller train.batch_size.",
    )


@schedule("interleaved", paper="arXiv:2502.03460, Adapt-Accel", check=something_is_trained)
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

    ``restart``: as published, a selector's ``fraction_K`` and state (those of ``adaptive``) count
    from the beginning of a stage. A KV group then hardly ever falls due, since a stage's fraction
    of a layer is less than one.
    """
    begin, stop = prune_from if start is None else start, prune_until if end is None else end
    if tokens < begin or params <= target_params:
        return None
    stage = _stage(tokens - begin, stop - begin, stages, linear=shards == "linear")
    span = start_params - target_params
    first, last = (start_params - span * i // stages for i in (stage - 1, stage))
    if params <= last:
        return None
    numbered = stage if restart else 0
    each = max(1.0, (first - last) / rounds)
    done = math.floor((first - params + 1) / each)  # a size is a whole number
    if done >= rounds - 1:
        return Due(params=last, stage=numbered)
    return Due(params=round(first - (done + 1) * each), again=True, stage=numbered)


def _stage(behind: int, all_of_them: int, stages: int, *, linear: bool) -> int:
    """Returns the last stage whose shard has begun when ``behind`` of all tokens are trained on.
    Those in front of the i-th hold ``i (i - 1)`` of ``I (I + 1)`` parts (linear), or ``i - 1`` of
    ``I``; in whole numbers, so exact.
    """
    if all_of_them <= 0:
        return stages
    parts = behind * stages * (stages + 1 if linear else 1) // all_of_them
    return min(stages, (1 + math.isqrt(1 + 4 * parts)) // 2 if linear else parts + 1)
