"""Computes what the processes of a run send each other: bytes per step, per cut and per commit.

Bytes are those that one process hands to a collective; ``sent`` is what leaves it on a ring: an
all-reduce of ``b`` bytes among ``N`` sends ``2 (N - 1) / N b``, an all-gather of ``b`` each
``(N - 1) b``, a reduce-scatter or an all-to-all of ``b`` ``(N - 1) / N b``, and a broadcast passes
on ``b``. ``N`` are all processes or, where a sharded model has replicas, those of a replica or
those with the same rows.
Gradients and sharded weights travel while the passes compute; the processes wait for the rest.
``benchmarks/scaling.py`` counts the same bytes as they go out.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from effcompress.distributed.deal import shard_rows
from effcompress.estimate.feasibility import SizedModel
from effcompress.estimate.memory import (
    Gram,
    deal_of,
    factors_of,
    grams_of,
    sampled,
    taught,
)
from effcompress.removal.repairs import for_linears, need_second_moments
from effcompress.spec import DistributedSpec, LoopSpec, PruneSpec, Recipe
from effcompress.types import WHOLE, AxisMap, Widths

FP32, FP64 = 4, 8
DECIDED = 12
"""Approximate bytes of a mini-group in a decision: its number and its saliency, pickled."""
NAMED = 80
"""Approximate bytes of a group set in a decision: its name and its width."""


@dataclass(frozen=True)
class Message:
    """One collective; ``bytes`` per process, of the one with the most. ``among``: so many of the
    processes take part (None: all).
    """

    what: str
    collective: Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast"]
    bytes: int
    among: int | None = None

    def sent(self, processes: int) -> float:
        """Returns the bytes that leave one process of a ring."""
        processes = self.among or processes
        others = processes - 1
        times = {
            "all_reduce": 2 * others / processes,
            "all_gather": others,
            "reduce_scatter": others / processes,
            "all_to_all": others / processes,
            "broadcast": others > 0,
        }
        return float(times[self.collective] * self.bytes)


def per_step(
    found: SizedModel, recipe: Recipe, widths: Widths, processes: int, trained: int
) -> list[Message]:
    """Returns the messages of one optimizer step in which ``trained`` parameters get gradients."""
    loop, prune = recipe.loop, recipe.prune
    assert loop is not None
    shards = shards_of(recipe, processes)
    sharded = shards > 1
    whole = [Message("gradients", "all_reduce", FP32 * trained)]
    messages = [
        *(_sharded(found, recipe, loop, widths, processes) if sharded else whole),
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
        sums = FP32 * scored(found, widths)
        messages.append(Message("saliency of weights", "all_reduce", sums, shards))
    if sharded and need_second_moments(prune.repair):
        rows = _sampled(found, recipe, loop, prune, widths, processes)
        messages.append(Message("sampled inputs", "all_to_all", rows))
    return messages


def _learns(prune: PruneSpec) -> bool:
    """Returns whether saliency is measured at every step (``runner/measuring.py``)."""
    hessian = prune.hessian.needs if prune.hessian and "hess" in prune.saliency.needs else ()
    return "grad" in {*prune.saliency.needs, *hessian}


def _rows_of_passes(loop: LoopSpec, processes: int) -> list[int]:
    """Returns how many rows each pass of a step computes on one process."""
    own = loop.batch_size // processes
    size = min(loop.micro_batch_size or own, own)
    return [min(size, own - start) for start in range(0, own, size)]


def _sharded(
    found: SizedModel, recipe: Recipe, loop: LoopSpec, widths: Widths, processes: int
) -> list[Message]:
    """Returns the messages of FSDP2: weights are gathered for each forward and each backward
    (``reshard_after_forward``), those of a teacher for its forward; gradients of what is trained
    are scattered after each backward or, where they are accumulated unsharded, after the last, and
    summed over replicas after the last.
    """
    how, shards = recipe.distributed, shards_of(recipe, processes)
    axes, passes = found.axes, len(_rows_of_passes(loop, processes))
    here = shard_elements(axes, widths, shards)
    outside = shard_elements(axes, widths, shards, [p for p in axes.shapes if not axes.gates[p]])
    learned = here
    if factors := factors_of(found, recipe, widths):
        learned = sum(-(-rows // shards) * columns for rows, columns in factors)
        here += learned
    weights = FP32 * outside + (2 if how.gather == "bf16" else FP32) * (here - outside)
    scattered = 1 if how.accumulate == "unsharded" else passes
    messages = [
        Message("weights", "all_gather", 2 * passes * weights, shards),
        Message("gradients", "reduce_scatter", scattered * shards * FP32 * learned, shards),
    ]
    if (replicas := processes // shards) > 1:
        messages.append(Message("gradients of replicas", "all_reduce", FP32 * learned, replicas))
    if each := taught(recipe):
        rows = passes * shard_elements(axes, {}, shards)
        messages.append(Message("teacher's weights", "all_gather", each * rows, shards))
    return messages


def _sampled(
    found: SizedModel,
    recipe: Recipe,
    loop: LoopSpec,
    prune: PruneSpec,
    widths: Widths,
    processes: int,
) -> int:
    """Returns the bytes of sampled tokens (or, where it has fewer, of their Gram matrix) that a
    process sends to the holders of the matrices in one step.
    """
    inputs = [g.inputs for g in grams_of(found.axes, found.sets, widths)]
    length, limit = recipe.data.sequence_length, prune.measure.gram_tokens
    taken = [sampled(rows * length, limit) for rows in _rows_of_passes(loop, processes)]
    return sum(FP32 * min(tokens, i) * i for tokens in taken for i in inputs)


def per_cut(
    found: SizedModel,
    prune: PruneSpec,
    widths: Widths,
    groups: int,
    touched: Collection[str] | None = None,
    shards: int = 1,
    processes: int | None = None,
    rank: int | None = None,
) -> list[Message]:
    """Returns the messages of a cut of ``groups`` mini-groups from the sets ``touched`` (None:
    all). Input statistics are summed only for layers that lose inputs. Where parameters are sharded
    (over ``shards`` of ``processes``, None: over all), Gram matrices stay where they are and the
    weights go there and back; of ``rank``, else of the process that sends the most. The bytes of
    the decision are an estimate, the others are exact.
    """
    axes, decided = found.axes, DECIDED * groups + NAMED * len(found.sets) + 2 * FP64
    messages = [Message("decision", "broadcast", decided)]
    messages.append(Message("operations", "all_reduce", FP64))  # as the record counts them
    if prune.measure.source == "calibration" and shards == 1:  # else ``estimate/calibration.py``
        mean = Message("gradients of calibration", "all_reduce", FP32 * axes.count(widths))
        messages += [mean] * len({"grad", "hess"}.intersection(prune.saliency.needs))
    if for_linears(prune.repair):
        second = need_second_moments(prune.repair)
        every = grams_of(axes, found.sets, widths)
        listed = [g for g in every if touched is None or g.axes.intersection(touched)]
        # Each statistic comes with the number of steps that it is a mean of, in fp64.
        size = sum(FP32 * g.inputs + (1 + second) * FP64 for g in listed)
        dealt = shards > 1 and second and prune.measure.source == "training"
        if dealt:
            size += FP64 * len(listed)  # whether the holder's matrix is finite
        elif second:
            size += sum(FP32 * g.inputs**2 for g in listed)
        messages.append(Message("what layers read", "all_reduce", size))
        if dealt:
            of = found, listed, widths, shards, processes or shards
            each = [_lent(*of, r) for r in range(of[-1])] if rank is None else [_lent(*of, rank)]
            messages.append(Message("weights to repair", "all_to_all", max(each)))
        elif shards > 1:  # every process computes it
            names = {name for g in listed for name in _repaired(axes, g)}
            whole = shard_elements(axes, widths, shards, names)
            messages.append(Message("weights to repair", "all_gather", FP32 * whole, shards))
    return messages


def _repaired(axes: AxisMap, gram: Gram) -> list[str]:
    """Returns the weights that read an input, and their biases."""
    biases = (name.removesuffix("weight") + "bias" for name in gram.weights)
    return [*gram.weights, *(name for name in biases if name in axes.shapes)]


def _lent(
    found: SizedModel,
    listed: Sequence[Gram],
    widths: Widths,
    shards: int,
    processes: int,
    rank: int,
) -> int:
    """Returns the bytes that a rank sends for repairs: its rows to the holders of the second
    moments in its replica, and what it has repaired to all.
    """
    axes, holders = found.axes, deal_of(found, processes)
    wide, sent = {**axes.widths, **widths}, 0
    for gram in listed:
        holder = holders[gram.weight]
        for name in _repaired(axes, gram):
            rows, count = axes.length(name, 0, wide), axes.numel(name, wide)
            if holder // shards == rank // shards:
                own = shard_rows(rows, rank % shards, shards)
                sent += (own.stop - own.start) * (count // rows)
            if holder == rank:
                sent += processes // shards * count
    return FP32 * sent


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
            Message("what lost rows", "all_gather", 3 * FP32 * rows, shards),
            Message("proof", "all_gather", FP32 * proof, shards),
        ]
    return [Message("weights", "broadcast", FP32 * found.axes.count(widths))]


def unequal(how: DistributedSpec, processes: int) -> tuple[str, str] | None:
    """Returns why replicas of a sharded model cannot have equally many of these processes, at least
    two, and what to do; None if they can.
    """
    replicas = how.replicas
    if how.mode != "shard" or replicas == 1 or (processes % replicas == 0 and processes > replicas):
        return None
    fits = [n for n in range(1, processes) if processes % n == 0]
    fix = f"Write `replicas: {max((n for n in fits if n < replicas), default=1)}`, or start "
    fix += f"{max(2, -(-processes // replicas)) * replicas} processes."
    return f"{processes} processes cannot be {replicas} replicas of several shards each", fix


def shards_of(recipe: Recipe, processes: int) -> int:
    """Returns over how many processes parameters are sharded; 1 where they are replicated."""
    return recipe.distributed.shards(processes)


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
