"""What the processes of a run send each other: bytes per step, per cut and per commit.

Bytes are those that one process hands to a collective; ``sent`` is what leaves it on a ring: an
all-reduce of ``b`` bytes among ``N`` sends ``2 (N - 1) / N b``, an all-gather of ``b`` each
``(N - 1) b``, a reduce-scatter of ``b`` ``(N - 1) / N b``, and a broadcast passes on ``b``.
Gradients, and weights that are shared out, travel while the passes compute; everything else waits.
``benchmarks/scaling.py`` counts the same bytes as they go out.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from effcompress.estimate.feasibility import SizedModel
from effcompress.estimate.gram_sizes import grams_of
from effcompress.estimate.shards import losing_rows, repaired, scored, shards_of, share
from effcompress.removal.repairs import for_linears, need_second_moments
from effcompress.spec import PruneSpec, Recipe
from effcompress.types import Widths

FP32, FP64 = 4, 8
DECIDED = 12
"""Bytes of a mini-group in a decision, about: its number and its saliency, pickled."""
NAMED = 80
"""Bytes of a group set in a decision, about: its name, its width."""


@dataclass(frozen=True)
class Message:
    """``bytes`` per process."""

    what: str
    collective: Literal["all_reduce", "all_gather", "reduce_scatter", "broadcast"]
    bytes: int

    def sent(self, processes: int) -> float:
        """Bytes that leave a process of a ring."""
        if self.collective == "all_reduce":
            return 2 * (processes - 1) / processes * self.bytes
        if self.collective == "all_gather":
            return float((processes - 1) * self.bytes)
        if self.collective == "reduce_scatter":
            return (processes - 1) / processes * self.bytes
        return float(self.bytes) if processes > 1 else 0.0


def per_step(
    found: SizedModel, recipe: Recipe, widths: Widths, processes: int, trained: int
) -> list[Message]:
    """Messages of one optimizer step; ``trained`` parameters have gradients."""
    loop, prune = recipe.loop, recipe.prune
    assert loop is not None
    shared = shards_of(recipe, processes) > 1
    said = _sharing(found, recipe, widths, processes) if shared else []
    said += [
        *([] if shared else [Message("gradients", "all_reduce", FP32 * trained)]),
        Message("losses", "all_gather", FP32 * (loop.batch_size // processes)),
        # The objective, whether somebody was asked to stop, and the norm of a shared gradient.
        Message("flags", "all_reduce", (2 + shared) * FP64),
    ]
    rides = prune is not None and prune.measure.source == "training"
    if prune is not None and rides and "mask_grad" in prune.criterion.needs:
        units = sum({**found.axes.widths, **widths}[s.name] for s in found.sets)
        said.append(Message("saliency of masks", "all_reduce", FP32 * units))
    elif prune is not None and rides and shared and _learns(prune):
        said.append(Message("saliency of weights", "all_reduce", FP32 * scored(found, widths)))
    return said


def _learns(prune: PruneSpec) -> bool:
    """Whether saliency is taken in at every step (``runner/measuring.py``)."""
    hessian = prune.hessian.needs if prune.hessian and "hess" in prune.criterion.needs else ()
    return "grad" in {*prune.criterion.needs, *hessian}  # no torch is loaded to price a recipe


def _sharing(found: SizedModel, recipe: Recipe, widths: Widths, processes: int) -> list[Message]:
    """Weights are gathered for each forward and each backward, gradients leave after each."""
    loop = recipe.loop
    assert loop is not None
    own = loop.batch_size // processes
    passes = -(-own // min(loop.micro_batch_size or own, own))
    here = FP32 * share(found.axes, widths, processes)
    return [
        Message("weights", "all_gather", 2 * passes * here),
        Message("gradients", "reduce_scatter", passes * processes * here),
    ]


def per_cut(
    found: SizedModel,
    prune: PruneSpec,
    widths: Widths,
    groups: int,
    touched: Collection[str] | None = None,
    shards: int = 1,
) -> list[Message]:
    """Messages of a cut of ``groups`` mini-groups from the sets ``touched`` (None: from all): what
    layers read is sent where they lose inputs. The decision is an estimate, the rest is exact.
    """
    axes, needs = found.axes, set(prune.criterion.needs)
    decided = DECIDED * groups + NAMED * len(found.sets) + 2 * FP64
    said = [Message("decision", "broadcast", decided)]
    if prune.measure.source == "calibration":
        means = len(needs & {"grad", "hess"})
        said += [
            Message("gradients of calibration", "all_reduce", FP32 * axes.count(widths))
        ] * means
    if for_linears(prune.repair):
        second = need_second_moments(prune.repair)
        every = grams_of(axes, found.sets, widths)
        listed = [g for g in every if touched is None or g.axes.intersection(touched)]
        # Each with the number of steps that it is a mean of, and so are the means of the inputs.
        size = sum(FP32 * (g.inputs + second * g.inputs**2) + (1 + second) * FP64 for g in listed)
        said.append(Message("what layers read", "all_reduce", size))
        if shards > 1:
            whole = share(axes, widths, shards, {*repaired(found, touched)})
            said.append(Message("weights to repair", "all_gather", FP32 * whole))
    return said


def per_commit(
    found: SizedModel, widths: Widths, touched: Collection[str] | None = None, shards: int = 1
) -> list[Message]:
    """Replicas need no message; the next step begins with the main process's weights. Shares are
    dealt out anew where rows went, of weights and of both moments, and the proof gathers the model
    twice (counted: as it was before).
    """
    if shards > 1:
        rows = share(found.axes, widths, shards, losing_rows(found, touched))
        proof = 2 * share(found.axes, widths, shards)
        return [
            Message("what lost rows", "all_gather", 3 * FP32 * rows),
            Message("proof", "all_gather", FP32 * proof),
        ]
    return [Message("weights", "broadcast", FP32 * found.axes.count(widths))]
