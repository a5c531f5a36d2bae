"""Zeros in the linear layers of a model, block by block, before anything is trained."""

from collections.abc import Iterator, Mapping
from contextlib import closing

from torch import Tensor

from effcompress.distributed.gather import gathered
from effcompress.distributed.rows import shard_like
from effcompress.errors import RunError
from effcompress.estimate.feasibility import skipped_layers
from effcompress.measure.blockwise import Block, Layer, blockwise, layers_of
from effcompress.measure.grams import Grams, Squares
from effcompress.precision import precision_on
from effcompress.record import events
from effcompress.record.log import Log
from effcompress.runner.measuring import ALL_TOKENS, calibration_text
from effcompress.runner.resources import Meter, Operations, counted, drained
from effcompress.runner.state import RunState
from effcompress.sparsity.apply import counts, require_pattern, sparsified
from effcompress.sparsity.magnitude import reads_inputs
from effcompress.spec import SparsifySpec


def sparsify_event(state: RunState, spec: SparsifySpec, log: Log) -> None:
    """Make zeros as the recipe says and write down how many; the state remembers where.

    Raises RunError when pruning is not over, or a layer's inputs do not fit the pattern;
    PluginError for a method that does not keep its word.
    """
    if state.recipe.prune is not None and not state.target_reached:
        raise RunError(
            "pruning did not reach its target, so nothing was made sparse",
            fix="Write `schedule: {name: once, at: 0}` under prune.",
        )
    meter = Meter(state.device)
    log.phase("making zeros")
    module = state.unwrapped
    layers = _wanted(state, spec, log)
    params = dict(module.named_parameters())
    with counted(state, alike=True) as operations:
        for done, (layer, block) in enumerate(_turns(state, spec, layers, log), start=1):
            _block(state, spec, params, layer, block, operations)
            log.progress("block", done, len(layers))
    rows: list[events.LayerZeros] = []  # of all layers; those that stayed dense have no zeros
    for layer in layers_of(module, state.pruned.family.layer):
        held = [params[name] for name in layer.linears]
        zeroed = sum(counts(held, state.world)) if layer.number in layers else 0
        number = state.pruned.depth.layers[layer.number]
        weights = sum(p.numel() for p in held)
        rows.append(events.LayerZeros(layer=number, weights=weights, zeroed=zeroed))
    log.event(
        events.Sparsify(
            step=state.step,
            method=spec.method.name,
            sparsity=spec.fraction,
            pattern=spec.pattern,
            params=state.params,
            weights=sum(params[name].numel() for name in state.sparse),
            zeroed=sum(row.zeroed for row in rows),
            layers=tuple(rows),
            **vars(meter.read()),
            flops=drained(state),
        )
    )


def _wanted(state: RunState, spec: SparsifySpec, log: Log) -> dict[int, Layer]:
    """Block number -> the blocks to work on; what of them stays dense is said."""
    numbers, skipped = state.pruned.depth.layers, skipped_layers(spec, state.pruned.parent)
    found: dict[int, Layer] = {}
    params = dict(state.module.named_parameters())
    for layer in layers_of(state.module, state.pruned.family.layer):
        if numbers[layer.number] in skipped or not layer.linears:
            continue
        found[layer.number] = layer
        for param, dim in layer.linears.items():
            require_pattern(spec.n_of_m, tuple(params[param].shape), dim, param)
    others = [name for layer in found.values() for name in layer.others]
    if others:
        left = sum(params[name].numel() for name in others)
        log.warn(
            f"{left:,} weights of experts and routers stay dense (the first is {others[0]}): they "
            "have no single input"
        )
    if not found:
        raise RunError("no linear layer is left to make zeros in", where="sparsify.skip_layers")
    return found


def _turns(
    state: RunState, spec: SparsifySpec, layers: Mapping[int, Layer], log: Log
) -> Iterator[tuple[Layer, Block | None]]:
    """The blocks to work on, each with what it reads at that time if the method asks for it."""
    if not reads_inputs(spec.method):
        for layer in layers.values():
            with gathered(state.module.get_submodule(layer.path)):
                yield layer, None
        return
    text = calibration_text(state, spec.sequences, log, asked=spec.precision)
    last, precision = max(layers), precision_on(state.device, spec.precision)
    of = state.unwrapped, state.pruned.family.layer
    for block in blockwise(*of, *text, precision=precision):
        if block.number in layers:
            yield layers[block.number], block
        if block.number == last:
            return


def _block(
    state: RunState,
    spec: SparsifySpec,
    params: Mapping[str, Tensor],
    layer: Layer,
    block: Block | None,
    operations: Operations,
) -> None:
    """Makes the zeros of one layer, which is gathered; ``params``: the model's parameters, which
    may be sharded.
    """
    together = [list(layer.linears)]
    if block is not None and spec.true_sequential:
        together = block.readers()
        if unread := layer.linears.keys() - {name for names in together for name in names}:
            raise RunError("nothing went through this layer", where=min(unread))
    for names in together:
        dims = {name: layer.linears[name] for name in names}
        read = dict[str, Tensor]() if block is None else _read(state, spec, dims, block)
        for name in names:
            # Stored as [I, O], a weight is worked on as [O, I].
            weight = state.module.get_parameter(name).detach()
            weight_OI = weight.T if dims[name] == 0 else weight
            how = spec.fraction, spec.n_of_m, name
            with operations.like(weight_OI.shape):
                new_OI = sparsified(spec.method, weight_OI, read.get(name), *how)
            weight_OI.copy_(new_OI)
            state.sparse.append(name)
            if state.recipe.train is not None:  # training must know where
                state.zeros[name] = shard_like(weight == 0, params[name])


def _read(
    state: RunState, spec: SparsifySpec, dims: Mapping[str, int], block: Block
) -> dict[str, Tensor]:
    """Returns second moments of what these linear layers read, over all calibration sequences.
    Layers that read the same tensor get the same.
    """
    if "gram" in spec.method.needs:
        moments = Grams(state.module, dims, ALL_TOKENS, 1.0)
    else:
        moments = Squares(state.module, dims)
    with closing(moments), moments.listening():
        if spec.twice:
            block.run()
        else:  # what it puts out now is what the next block reads
            block.advance()
    found: dict[str, Tensor] = {}
    for name in dims:
        owner = moments.owner.get(name, "")
        moment = found[owner] if owner in found else moments.read(name)
        if moment is None:
            raise RunError("nothing went through this layer", where=name)
        found[name] = moment
    return found
