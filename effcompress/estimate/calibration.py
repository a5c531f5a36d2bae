"""Computes what processes send each other where a sharded model reads calibration text: for the
scores of a cut, for a refit, to slice a rotated stream, and to make zeros. Sums of a few numbers
per layer are left out.

Passes through the whole model gather it once, and once more for a backward; passes that take one
layer at a time gather each layer when it has its turn, whatever the number of sequences, and in two
passes before that, which record what layers are called with (``measure/blockwise.py``).
"""

from collections import defaultdict
from collections.abc import Iterable

from effcompress.estimate.communication import (
    FP32,
    FP64,
    Message,
    scored,
    shard_elements,
    shards_of,
)
from effcompress.estimate.feasibility import SizedModel, skipped_layers
from effcompress.estimate.memory import projections
from effcompress.injectable import ABLATED, BACKWARD
from effcompress.model.lineage import STREAM
from effcompress.removal.repairs import for_experts, for_linears
from effcompress.sparsity.magnitude import reads_inputs
from effcompress.spec import PruneSpec, Recipe
from effcompress.types import DEPTH, AxisMap, Widths, axis_layer

RECORDED = 2
"""Passes of a few tokens through the whole model before layers have their turns."""


def reads_in_turn(prune: PruneSpec, processes: int, *, sharded: bool) -> bool:
    """Returns whether processes take calibration sequences in turn; else each reads all of them.

    A statistic with state is a recursion over the sequences in their order, and statistics of
    inputs are to be the same numbers everywhere. FSDP2 adds up the gradients of all processes,
    which a Hessian would have to square one by one.
    """
    plugin, selector = prune.saliency.plugin, prune.selector
    others = {} if selector is None else selector.plugin.of_layers
    streamed = (*plugin.of_layers.values(), *others.values(), *plugin.of_experts.values())
    ordered = plugin.reads_inputs or any("state" in s.needs for s in streamed)
    squared = sharded and "hess" in plugin.needs
    return not (ordered or squared) and prune.measure.sequences >= processes


def per_calibration(
    found: SizedModel, recipe: Recipe, widths: Widths, processes: int
) -> list[Message]:
    """Returns the messages of the measurement before one cut."""
    prune, axes = recipe.prune, found.axes
    assert prune is not None
    needs, count = set(prune.saliency.needs), prune.measure.sequences
    in_turn = reads_in_turn(prune, processes, sharded=True)
    backward, passes = bool(BACKWARD & needs), 0
    if backward or _listens(prune):
        passes = -(-count // processes) if in_turn else count
    shards = shards_of(recipe, processes)
    model = FP32 * shard_elements(axes, widths, shards)
    sent = (1 + backward) * passes * model
    listed = [Message("weights for calibration", "all_gather", sent, shards)]
    if backward:
        sent = shards * passes * model
        listed.append(Message("gradients of calibration", "reduce_scatter", sent, shards))
    if backward and (replicas := processes // shards) > 1:
        summed = Message("gradients of replicas", "all_reduce", passes * model, replicas)
        listed.append(summed)
    if ABLATED & needs:
        silenced = 1 + sum(s.kind in DEPTH for s in found.sets)
        rounds = -(-min(prune.measure.ablation_sequences, count) // processes)
        sent = silenced * rounds * model
        listed.append(Message("weights without a block", "all_gather", sent, shards))
    listed += _scores(found, prune, widths, shards, in_turn=in_turn)
    if prune.measure.propagate:
        sent = by_layer(axes, widths, shards)
        listed.append(Message("layers, one at a time", "all_gather", sent, shards))
    return [message for message in listed if message.bytes]


def _listens(prune: PruneSpec) -> bool:
    """Returns whether anything but a gradient is measured in the passes."""
    plugin, selector = prune.saliency.plugin, prune.selector
    streams = plugin.of_layers or (selector is not None and selector.plugin.of_layers)
    read = plugin.reads_inputs or plugin.reads_experts
    return bool(streams or read or for_linears(prune.repair) or for_experts(prune.repair))


def _scores(
    found: SizedModel, prune: PruneSpec, widths: Widths, shards: int, *, in_turn: bool
) -> list[Message]:
    plugin, needs = prune.saliency.plugin, prune.saliency.needs
    listed: list[Message] = []
    if for_experts(prune.repair) and in_turn:
        wide = {**found.axes.widths, **widths}
        experts = sum(wide[s.name] for s in found.sets if s.kind == "expert")
        sums = FP64 * experts * wide["hidden"]
        listed.append(Message("means of what experts return", "all_reduce", sums))
    if "mask_grad" in needs:
        units = sum({**found.axes.widths, **widths}[s.name] for s in found.sets)
        return [*listed, Message("saliency of masks", "all_reduce", FP32 * units * in_turn)]
    if not plugin.reads_forward:
        sums = FP32 * scored(found, widths)
        return [*listed, Message("saliency of weights", "all_reduce", sums, shards)]
    if not plugin.reads_inputs or "weight" not in needs:
        return listed
    axes, prefix = found.axes, found.axes.family.layer.partition("{i}")[0]
    read = [
        side.param
        for s in found.sets
        for side in s.sides
        if side.dim == axes.family.inputs and side.param.startswith(prefix)
        if len(axes.shapes[side.param]) == 2
    ]
    sent = sum(FP32 * shard_elements(axes, widths, shards, [param]) for param in read)
    return [*listed, Message("weights to score", "all_gather", sent, shards)]


def per_refit(found: SizedModel, recipe: Recipe, final: Widths, processes: int) -> list[Message]:
    """Returns the messages of a refit of a sharded model: the source model, whose hash is compared
    when it is read once more, both models layer by layer, and the moments of every fit, which are
    summed. What rank 0 fits is broadcast.
    """
    prune, axes = recipe.prune, found.axes
    assert prune is not None and prune.refit is not None
    count = prune.measure.refit_sequences
    shared = count >= 2 * processes
    shards = shards_of(recipe, processes)
    hashed = 0 if recipe.model.random else FP32 * shard_elements(axes, {}, shards)
    both = sum(by_layer(axes, widths, shards) for widths in ({}, final))
    parts, sums, fitted = 1 + bool(prune.refit.candidates), 0, 0
    for _, inputs, outputs in projections(axes, final):
        sums += inputs**2 + outputs * inputs + inputs + outputs + 1 + 1  # the last: tokens
        fitted += outputs * inputs
    summed = FP64 * parts * sums if shared else 0
    listed = [
        Message("source model, for its hash", "all_gather", hashed, shards),
        Message("layers of both models", "all_gather", both, shards),
        Message("moments to fit", "all_reduce", summed),
        Message("fitted weights", "broadcast", FP32 * fitted),
    ]
    return [message for message in listed if message.bytes]


def per_rotation(found: SizedModel, recipe: Recipe, processes: int) -> list[Message]:
    """Returns the messages of slicing a rotated stream: second moments and, with a refit, those of
    every residual addition, which are summed; bases and fits, which rank 0 chooses; and the layers
    of a sharded model, one at a time: all of the source model, and twice what is left of them, to
    see that logits stay. The bytes of bases and fits are an estimate.
    """
    prune, source = recipe.prune, found.source
    assert prune is not None and prune.rotate is not None and source is not None
    stream, layers = found.config[STREAM], len(found.axes.depth.layers)
    outer, width = stream["channels"], found.axes.widths["hidden"]
    blocks = layers * (1 if stream["parallel"] else 2)
    fit, count = prune.refit, prune.measure.sequences
    if fit is not None:
        count = min(count, prune.measure.refit_sequences)
    shared = count >= 2 * processes
    moments = (1 + blocks) * outer**2
    inputs, parts = width + outer, 1 + bool(fit is not None and fit.candidates)
    sums = inputs**2 + outer * inputs + inputs + outer + 1 + 1  # the last: tokens
    fits = 0 if fit is None else blocks
    sharded, shards = 0, shards_of(recipe, processes)
    if shards > 1:
        sharded = by_layer(source.axes, {}, shards)
        within = [p for p in found.axes.shapes if p.startswith(f"{stream['layers']}.")]
        sharded += 2 * FP32 * shard_elements(found.axes, {}, shards, within)
        # What is outside the layers once more: the embedding is sliced unless it is kept, and at
        # the end there is an output matrix where the source's was the embedding.
        before = [param for param in source.axes.shapes if not source.axes.gates[param]]
        sliced = [p for p in {*before, f"{stream['head']}.weight"} if p in found.axes.shapes]
        norms = [param for param in before if param not in found.axes.shapes]
        again = 0 if stream["mapped"] else shard_elements(source.axes, {}, shards, before)
        again += shard_elements(found.axes, {}, shards, sliced)
        sharded += FP32 * (again + shard_elements(source.axes, {}, shards, norms))
    listed = [
        Message("second moments", "all_reduce", FP64 * moments * shared),
        Message("rotations", "broadcast", FP64 * moments),
        Message("moments to fit", "all_reduce", FP64 * parts * sums * fits * shared),
        Message("fitted weights", "broadcast", FP64 * outer * inputs * fits),
        Message("layers, one at a time", "all_gather", sharded, shards),
    ]
    return [message for message in listed if message.bytes]


def per_sparsify(
    found: SizedModel, recipe: Recipe, widths: Widths, processes: int
) -> list[Message]:
    """Returns the messages of making zeros in a sharded model of these widths."""
    spec, axes = recipe.sparsify, found.axes
    assert spec is not None
    shards = shards_of(recipe, processes)
    skipped = skipped_layers(spec, axes)
    wanted = [i for i in axes.depth.layers if i not in skipped]
    if reads_inputs(spec.method):  # layers in front of the last hand text on
        turns = [i for i in axes.depth.layers if i <= max(wanted, default=-1)]
        sent = by_layer(axes, widths, shards, turns)
    else:
        sent = FP32 * sum(_layers(axes, widths, shards, wanted))
    return [Message("layers, one at a time", "all_gather", sent, shards)]


def by_layer(axes: AxisMap, widths: Widths, shards: int, turns: Iterable[int] | None = None) -> int:
    """Returns the bytes that a process sends while layers (numbers in ``turns``; None: all) have
    their turns, behind the passes that record what they are called with.
    """
    every = axes.depth.layers
    outside = [param for param in axes.shapes if not axes.gates[param]]
    recorded = RECORDED * sum(_layers(axes, widths, shards, every))
    each = sum(_layers(axes, widths, shards, every if turns is None else turns))
    return FP32 * (shard_elements(axes, widths, shards, outside) + recorded + each)


def _layers(axes: AxisMap, widths: Widths, shards: int, numbers: Iterable[int]) -> Iterable[int]:
    within: dict[int | None, list[str]] = defaultdict(list)
    for param in axes.shapes:
        for gate in axes.gates[param][:1]:
            within[axis_layer(gate)].append(param)
    return [shard_elements(axes, widths, shards, within[i]) for i in numbers]
