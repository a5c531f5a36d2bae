"""Which mini-groups go, by what pruned layers hand on: front to back, every layer is measured on
what the layers in front of it, without what they lose, put out (Wanda-sp in arXiv:2312.11983).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from effcompress.log import Log
from effcompress.measure.blockwise import Block, blockwise
from effcompress.measure.grams import readers
from effcompress.measure.inputs import InputStats
from effcompress.runner.state import RunState
from effcompress.saliency.average import in_original_order
from effcompress.saliency.inputs import score_inputs
from effcompress.selection.choose import Choice, least_salient
from effcompress.spec import PruneSpec
from effcompress.types import GroupSet, Scores


def propagated(
    state: RunState, prune: PruneSpec, choice: Choice, ids_NT: Tensor, log: Log
) -> Choice:
    """``choice`` with as many mini-groups of every set, but those that are least salient by what
    reaches their layer. Nothing of the model is changed: until the last layer has been measured,
    what goes is silenced where it is read. Heads and channels of one layer are scored by the same
    pass, before either goes.

    Raises RunError for models that cannot be taken block by block, CoverageError and PluginError as
    ``score_inputs`` does.
    """
    pruned, plan, raw = state.pruned, dict(choice.plan), dict(choice.scores)
    waiting = [s for s in pruned.sets if s.name in plan]
    params = readers(state.module, pruned.axes, waiting)
    with ExitStack() as stack:
        for block in blockwise(state.module, pruned.family.layer, ids_NT):
            sets = [s for s in waiting if _within(s, block)]
            scores = _scored(state, prune, block, sets, params) if sets else {}
            for s in sets:
                plan[s.name], raw[s.name] = least_salient(scores[s.name], len(plan[s.name]))
                at = pruned.ledger.positions(s.name, plan[s.name])
                for handle in _silence(state.module, s, at, params):
                    stack.callback(handle.remove)
            waiting = [s for s in waiting if s not in sets]
            log.progress("layer", block.number + 1, len(pruned.depth.layers))
            if not waiting:
                break
    return replace(choice, plan=plan, scores=raw)


def _within(s: GroupSet, block: Block) -> bool:
    return any(side.param.startswith(f"{block.path}.") for side in s.sides)


def _scored(
    state: RunState,
    prune: PruneSpec,
    block: Block,
    sets: Sequence[GroupSet],
    params: Mapping[str, int],
) -> Scores:
    """In original order, inf where a unit is gone."""
    here = {name: dim for name, dim in params.items() if name in block.linears}
    read = InputStats(state.module, here)
    try:
        with read.listening():
            block.run()
    finally:
        read.close()
    ledger = state.pruned.ledger
    found = score_inputs(sets, prune.criterion, read, {})
    sizes = {s.name: ledger.sizes[s.name] for s in sets}
    return ledger.original_order(in_original_order(found, ledger.original, sizes))


def _silence(
    module: nn.Module, s: GroupSet, at: Tensor, params: Mapping[str, int]
) -> Iterator[Any]:
    """Hooks that put zeros where the mini-groups at these positions are read."""
    for m in s.members:
        if params.get(m.param) == m.dim:
            linear = module.get_submodule(m.param.removesuffix(".weight"))
            gone = m.index_GB[at].flatten()
            yield linear.register_forward_pre_hook(_zeros_at(gone))


def _zeros_at(gone: Tensor) -> Callable[..., tuple[Tensor, ...]]:
    def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x, *rest = args
        return (x.index_fill(-1, gone.to(x.device), 0.0), *rest)

    return hook
