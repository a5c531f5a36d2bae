"""Computes what the processes of a run send each other: bytes per step, per cut and per commit.

Bytes are those that one process hands to a collective; ``sent`` is what leaves it on a ring: an
all-reduce of ``b`` bytes among ``N`` sends ``2 (N - 1) / N b``, an all-gather of ``b`` each
``(N - 1) b``, a reduce-scatter of ``b`` ``(N - 1) / N b``, and a broadcast passes on ``b``.
Gradients and sharded weights travel while the passes compute; the processes wait for the rest.
``benchmarks/scaling.py`` counts the same bytes as they go out.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from effcompress.estimate.feasibility import SizedModel
from effcompress.estimate.memory import grams_of
from effcompress.removal.repairs import for_linears, need_second_moments
from effcompress.spec import LoopSpec, PruneSpec, Recipe
from effcompress.types import WHOLE, AxisMap, Widths

FP32, FP64 = 4, 8
DECIDED = 12
"""Approximate bytes of a mini-group in a decision: its number and its saliency, pickled."""
NAMED = 80
"""Approximate bytes of a group set in a decision: its name and its width."""


@dataclass(frozen=True)
class Message:
    """One collective; ``bytes`` per process."""

    what: str
    collective: Literal["all_reduce", "all_gather", "reduce_scatter", "broadcast"]
    bytes: int

    def sent(self, processes: int) -> float:
        """Returns the bytes that leave one process of a ring."""
        others = processes - 1
        times = {
            "all_reduce": 2 * others / processes,
            "all_gather": others,
            "reduce_scatter": others / processes,
            "broadcast": others > 0,
        }
        return float(times[self.collective] * self.bytes)


def per_step(
    found: SizedModel, recipe: Recipe, widths: Widths, processes: int, trained: int
) -> list[Message]:
    """Returns the messages of one optimizer step in which ``trained`` parameters get gradients."""
    loop, prune = recipe.loop, recipe.prune
    assert loop is not None
    sharded = shards_of(recipe, processes) > 1
    whole = [Message("gradients", "all_reduce", FP32 * trained)]
    messages = [
        *(_sharded(found, loop, widths, processes) if sharded else whole),
        Message("losses", "all_gather", FP32 * (loop.batch_size // processes)),
        # The objective, whether any process got a signal to stop, and the norm of a sharded
        # gradient.
        Message("flags", "all_reduce", (2 + sharded) * FP64),
    ]
    if prune is None or prune.rotate or prune.measure.source != "training":
        return messages
    if "mask_grad" in prune.saliency.needs:
        units = sum({**found.axes.widths, **widths}[s.name] for s in found.sets)
        messages.append(Message("saliency of masks", "all_reduce", FP32 * units))
    elif sharded and _learns(prune):
        messages.append(Message("saliency of weights", "all_reduce", FP32 * scored(found, widths)))
    return messages


def _learns(prune: PruneSpec) -> bool:
    """Returns whether saliency is measured at every step (``runner/measuring.py``)."""
    hessian = prune.hessian.needs if prune.hessian and "hess" in prune.saliency.needs else ()
    return "grad" in {*prune.saliency.needs, *hessian}


def _sharded(found: SizedModel, loop: LoopSpec, widths: Widths, processes: int) -> list[Message]:
    """Returns the messages of FSDP2: weights are gathered for each forward and each backward
    (``reshard_after_forward``), gradients are scattered after each backward.
    """
    own = loop.batch_size // processes
    passes = -(-own // min(loop.micro_batch_size or own, own))
    here = FP32 * shard_elements(found.axes, widths, processes)
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
    """Returns the messages of a cut of ``groups`` mini-groups from the sets ``touched`` (None:
    all). Input statistics are summed only for layers that lose inputs. The bytes of the decision
    are an estimate, the others are exact.
    """
    if prune.rotate is not None:
        outer, places = found.axes.widths["outer"], 2 * len(found.axes.depth.layers) + 1
        return [
            Message("second moments", "all_reduce", FP64 * places * outer**2),
            Message("rotations", "broadcast", FP64 * places * outer**2),
        ]
    axes, decided = found.axes, DECIDED * groups + NAMED * len(found.sets) + 2 * FP64
    messages = [Message("decision", "broadcast", decided)]
    if prune.measure.source == "calibration" and shards == 1:  # else ``estimate/calibration.py``
        mean = Message("gradients of calibration", "all_reduce", FP32 * axes.count(widths))
        messages += [mean] * len({"grad", "hess"}.intersection(prune.saliency.needs))
    if for_linears(prune.repair):
        second = need_second_moments(prune.repair)
        every = grams_of(axes, found.sets, widths)
        listed = [g for g in every if touched is None or g.axes.intersection(touched)]
        # Each statistic comes with the number of steps that it is a mean of, in fp64.
        size = sum(FP32 * (g.inputs + second * g.inputs**2) + (1 + second) * FP64 for g in listed)
        messages.append(Message("what layers read", "all_reduce", size))
        if shards > 1:
            # A repair gathers the weights that lose inputs.
            whole = shard_elements(axes, widths, shards, losing(found, touched, 1))
            messages.append(Message("weights to repair", "all_gather", FP32 * whole))
    return messages


def per_commit(
    found: SizedModel, widths: Widths, touched: Collection[str] | None = None, shards: int = 1
) -> list[Message]:
    """Returns the messages of a commit.

    Replicated: the rebuilt DDP wrapper broadcasts rank 0's weights. Sharded: parameters that lost
    rows are gathered and sharded again, weights and both moments, and the self-test gathers the
    model twice (counted at its size before the commit).
    """
    if shards > 1:
        rows = shard_elements(found.axes, widths, shards, losing(found, touched, 0))
        proof = 2 * shard_elements(found.axes, widths, shards)
        return [
            Message("what lost rows", "all_gather", 3 * FP32 * rows),
            Message("proof", "all_gather", FP32 * proof),
        ]
    return [Message("weights", "broadcast", FP32 * found.axes.count(widths))]


def shards_of(recipe: Recipe, processes: int) -> int:
    """Returns over how many processes parameters are sharded; 1 where they are replicated."""
    return processes if recipe.distributed.mode == "shard" else 1


def shard_elements(
    axes: AxisMap, widths: Widths, processes: int, of: Collection[str] | None = None
) -> int:
    """Returns the elements that a process sends when the parameters ``of`` (None: all) are
    gathered: its rows, padded to as many as rank 0 has.
    """
    wide = {**axes.widths, **widths}
    total = 0
    for param in axes.shapes if of is None else of:
        if count := axes.numel(param, wide):
            rows = axes.length(param, 0, wide)
            total += -(-rows // processes) * (count // rows)
    return total


def scored(found: SizedModel, widths: Widths) -> int:
    """Returns how many numbers sum weight saliency over the rows of all processes: one for each
    position along each side of a parameter on which a mini-group lies.
    """
    wide = {**found.axes.widths, **widths}
    sides = {(side.param, side.dim) for s in found.sets for side in s.sides}
    return sum(
        1 if dim == WHOLE else found.axes.length(param, dim, wide)
        for param, dim in sides
        if found.axes.numel(param, wide)
    )


def losing(found: SizedModel, touched: Collection[str] | None, dim: int) -> set[str]:
    """Returns the parameters that lose positions along ``dim`` (0: rows) to cuts from the sets
    ``touched`` (None: all).
    """
    sets = (s for s in found.sets if touched is None or s.name in touched)
    return {side.param for s in sets for side in s.sides if side.dim == dim}
