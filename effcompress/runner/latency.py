"""Times attention and FFN at all of their widths, within the passes of a model whose layers have
all of these widths, and whole models beside the source model.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from effcompress.errors import SourceError
from effcompress.estimate.allocation import (
    LatencyTable,
    dependencies,
    monotone,
    place_of,
    read_table,
    widths_by_kind,
)
from effcompress.evaluation.speed import Clock, Spread, Timing, race, spread, timing, write_on
from effcompress.model.cache import atomically
from effcompress.model.small import build
from effcompress.network.pruned_model import PrunedModel
from effcompress.registry import REGISTRY, Bound
from effcompress.removal.modules import depth_fields
from effcompress.selection.levels import BLOCK_OF, Module
from effcompress.spec import WorkloadSpec
from effcompress.types import AxisMap, Config, Depth, Family, Widths, axis_kind, axis_layer

Say = Callable[[str], None]
Levels = list[dict[str, int]]
"""For every layer of a model: kind -> width."""


@dataclass(frozen=True)
class Times:
    """Seconds of two models at one workload, and how many times as fast the second is, each over
    the rounds in which both took their turn.
    """

    dense: Spread
    pruned: Spread
    speed_up: Spread


@dataclass(frozen=True)
class Source:
    """The model before any cut, with its axes and the configuration that they belong to."""

    module: nn.Module
    axes: AxisMap
    config: Config


def table_for(
    source: Source, modules: Sequence[Module], load: WorkloadSpec, say: Say
) -> tuple[LatencyTable, bool]:
    """Returns the table of this machine, from the cache (then True) or measured now."""
    device = next(source.module.parameters()).device
    with threads(load):
        where = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        count = torch.get_num_threads()
        of = dependencies(source.axes, modules, load, device.type, where, count)
        path = place_of(of)
        if (known := read_table(path)) is not None:
            return known, True
        began = time.perf_counter(), time.process_time()
        entries, dense = measure(source, widths_by_kind(modules), load, say)
        wall, own = time.perf_counter() - began[0], time.process_time() - began[1]
    table = LatencyTable(of, entries, dense, 1.0 if device.type == "cuda" else min(1.0, own / wall))
    with suppress(OSError, SourceError), atomically(path) as work:  # a cache, no result
        work.write_text(table.text(), encoding="utf-8")
    return table, False


@contextmanager
def threads(load: WorkloadSpec) -> Iterator[None]:
    """Sets the number of threads that the workload names, and the former one at the end."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(load.threads or before)
        yield
    finally:
        torch.set_num_threads(before)


def measure(
    source: Source,
    widths: Mapping[str, Sequence[int]],
    load: WorkloadSpec,
    say: Say,
    clock: Clock = time.perf_counter,
) -> tuple[dict[str, dict[int, float]], float]:
    """Returns kind -> width -> seconds, none lower than that of a smaller width, and the seconds of
    the source model: medians over rounds in which all take their turn. A first round is not
    counted.
    """
    dense, config, family = source.module, source.config, source.axes.family
    device, training = next(dense.parameters()).device, dense.training
    stacks = [
        (_watched(shaped(config, family, levels).to(device), family, levels), levels)
        for levels in spread_over(widths, levels_by_layer(source.axes.depth, source.axes.widths))
    ]
    prompt_BT = _prompt(dense, load).to(device)
    new = tokens_of(load)
    whole: list[float] = []
    found: dict[str, dict[int, list[float]]] = {k: {w: [] for w in ws} for k, ws in widths.items()}
    for turn in range(load.rounds + 1):
        say(f"times of blocks: round {turn} of {load.rounds}")
        one = seconds_of(write_on(dense.eval(), prompt_BT, new, clock)[1], load)
        whole += [one] if turn else []
        for (module, parts), levels in stacks:
            with timing(parts, device, clock) as calls:
                write_on(module, prompt_BT, new, clock)
            for name, seconds in calls.items() if turn else ():
                kind = axis_kind(name)
                width = levels[axis_layer(name) or 0][kind]
                found[kind][width].append(_of_calls(seconds, load))
    dense.train(training)
    entries = {
        kind: monotone({width: statistics.median(s) for width, s in by_width.items()})
        for kind, by_width in found.items()
    }
    return entries, statistics.median(whole)


def _of_calls(seconds: Sequence[float], load: WorkloadSpec) -> float:
    """The first call reads the prompt, every other one token."""
    return seconds[0] if load.phase == "prefill" else statistics.fmean(seconds[1:])


def tokens_of(load: WorkloadSpec) -> int:
    """Returns the tokens to generate: the first one ends the prefill."""
    return 1 if load.phase == "prefill" else load.new


def seconds_of(one: Timing, load: WorkloadSpec) -> float:
    """Returns the seconds of a prefill, or of one token of a decode."""
    return one.prefill if load.phase == "prefill" else one.decode / (load.new - 1)


def spread_over(widths: Mapping[str, Sequence[int]], whole: Levels) -> list[Levels]:
    """Returns models whose layers, together, have every width: of as many layers as there are
    widths, or of all where layers are of several kinds or sizes. ``whole``: the widths of the
    source model's layers; each gets those that are not larger.
    """
    most = max(map(len, widths.values()))
    each = min(len(whole), most) if all(layer == whole[0] for layer in whole) else len(whole)
    queue = {kind: [*ws] for kind, ws in widths.items()}
    missing = {kind: set(ws) for kind, ws in widths.items()}
    found: list[Levels] = []
    while any(missing.values()):
        found.append([_taken(queue, missing, layer) for layer in whole[:each]])
    return found


def _taken(
    queue: Mapping[str, list[int]], missing: Mapping[str, set[int]], whole: Mapping[str, int]
) -> dict[str, int]:
    """Takes for one layer the next width of every kind, those that no layer has yet first."""
    found = {}
    for kind in queue.keys() & whole.keys():
        fit = [width for width in queue[kind] if width <= whole[kind]]
        if fit:
            found[kind] = next((width for width in fit if width in missing[kind]), fit[0])
            missing[kind].discard(found[kind])
            queue[kind].remove(found[kind])
            queue[kind].append(found[kind])
    return {kind: found[kind] for kind in queue if kind in found}


def shaped(config: Config, family: Family, levels: Levels) -> nn.Module:
    """Returns a random model of the family's class whose layers have these widths; 0: the block is
    gone. The global random state is not changed.
    """
    numbers = tuple(range(len(levels)))
    plain = {**config, **depth_fields(family, config, numbers)}
    with torch.random.fork_rng(devices=[]):
        module = build(plain, "given", attention=None)
    kinds = {kind: None for by_kind in levels for kind in by_kind}
    gone = {BLOCK_OF[kind] for by_kind in levels for kind, w in by_kind.items() if not w}
    space = [Bound(REGISTRY.get("space", kind), {}) for kind in (*kinds, *sorted(gone))]
    pruned = PrunedModel(module, plain, space, family=family)
    plan = {}
    for i, by_kind in enumerate(levels):
        for kind, width in by_kind.items():
            name = f"{kind}.{i}"
            if not width:
                plan[f"{BLOCK_OF[kind]}.{i}"] = [0]
            elif width < pruned.parent.widths[name]:
                plan[name] = [*range(width, pruned.parent.widths[name])]
    pruned.mask(plan)
    pruned.commit()
    return module.eval()


def levels_by_layer(depth: Depth, widths: Widths) -> Levels:
    """Returns widths by axis as those of each layer."""
    found = []
    for i in depth.layers:
        whole = {kind: widths.get(block, 1) for kind, block in _blocks(i).items()}
        there = {kind: widths[f"{kind}.{i}"] for kind in BLOCK_OF if f"{kind}.{i}" in widths}
        found.append({kind: width * bool(whole[kind]) for kind, width in there.items()})
    return found


def _blocks(layer: int) -> dict[str, str]:
    return {kind: f"{block}.{layer}" for kind, block in BLOCK_OF.items()}


def _watched(
    module: nn.Module, family: Family, levels: Levels
) -> tuple[nn.Module, dict[str, nn.Module]]:
    """The model, and axis -> the module that is timed."""
    parts = {}
    for j, by_kind in enumerate(levels):
        for kind in by_kind:
            path = (
                f"{family.layer.replace('{i}', str(j))}.{family.sublayers[BLOCK_OF[kind]].silent}"
            )
            parts[f"{kind}.{j}"] = module.get_submodule(path)
    return module, parts


def compared(dense: nn.Module, other: nn.Module, load: WorkloadSpec) -> Times:
    """Times two models by turns."""
    modes = dense.training, other.training
    device = next(dense.parameters()).device
    with threads(load):
        sides = {"dense": dense, "other": other}
        found = race(sides, _prompt(dense, load).to(device), tokens_of(load), load.rounds)
    dense.train(modes[0])
    other.train(modes[1])
    whole, less = ([seconds_of(one, load) for one in found[name]] for name in sides)
    ratios = [a / b for a, b in zip(whole, less, strict=True)]
    return Times(*(spread(values) for values in (whole, less, ratios)))


def _prompt(module: nn.Module, load: WorkloadSpec) -> Tensor:
    """Tokens ``[B, T]``; their values do not affect the time."""
    rows = int(module.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
    return torch.arange(load.batch * load.length).reshape(load.batch, load.length) % rows
