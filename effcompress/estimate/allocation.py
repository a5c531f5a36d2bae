"""What levels of attention and FFN cost: in parameters and bytes by arithmetic, in time by a table
that was measured on this machine and lies in the cache. Imports no torch.

The cost of a model is that of what always stays (``base``) and of one level for each module.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from effcompress.estimate.flops import head_widths
from effcompress.model.cache import cache_root
from effcompress.processes import cores
from effcompress.record.readable import size as readable_size
from effcompress.selection.levels import BLOCK_OF, Module
from effcompress.selection.reachability import TOLERANCE
from effcompress.spec import PruneSpec, TargetSpec, WorkloadSpec
from effcompress.types import AxisMap, Config, axis_layer, in_layer

Unit = Literal["parameters", "bytes", "seconds"]
STORED = 4
"""Bytes of a number in the exported weights and in the KV cache beside them: fp32."""
QUIET = 0.9
"""Share of a processor below which a table of times is doubted."""
PACKAGES = ("torch", "transformers")
"""Dependencies whose version a time depends on."""


@dataclass(frozen=True)
class Costs:
    """Costs by module and level, what always stays, and what a model may cost in all."""

    unit: Unit
    base: float
    cost_ML: tuple[tuple[float, ...], ...]
    asked: float
    staying: float = 0.0
    """What blocks of which the space keeps some cost at least."""

    @property
    def budget(self) -> float:
        """What the levels may cost together."""
        return self.asked - self.base

    @property
    def least(self) -> float:
        """Cost of the cheapest model."""
        return self.base + self.staying + sum(min(costs) for costs in self.cost_ML)

    @property
    def whole(self) -> float:
        """Cost before the cut."""
        return self.base + sum(costs[0] for costs in self.cost_ML)

    def of(self, levels: Sequence[int]) -> float:
        """Cost of a choice."""
        return self.base + sum(c[level] for c, level in zip(self.cost_ML, levels, strict=True))

    def said(self, cost: float) -> str:
        """A cost in words: ``12.3 ms``, ``180.0 MB``, ``94,000,000 parameters``."""
        if self.unit == "seconds":
            return f"{cost * 1e3:.4g} ms"
        return (
            f"{cost:,.0f} parameters" if self.unit == "parameters" else readable_size(round(cost))
        )


def refusal(costs: Costs, modules: Sequence[Module], key: str) -> tuple[str, str] | None:
    """Returns what is wrong with a target that no choice of levels meets, and what to type instead:
    one below the least cost that there is, or above that of the source model.
    """
    if costs.least > costs.asked * (1 + TOLERANCE):
        return _unreachable(costs, key), _within_reach(costs, modules, key)
    if costs.asked > costs.whole * (1 + TOLERANCE):
        asked, whole = costs.said(costs.asked), costs.said(costs.whole)
        takes = "takes" if costs.unit == "seconds" else "has"
        what = f"prune.target.{key}: {asked}, and the source model {takes} {whole} as it is"
        return what, "Name a smaller target, or a larger model."
    return None


def _unreachable(costs: Costs, key: str) -> str:
    least, asked = costs.said(costs.least), costs.said(costs.asked)
    if costs.unit != "seconds":
        return f"prune.target.{key}: {asked} cannot be reached; {least} always remain"
    return (
        f"prune.target.{key}: {asked} cannot be reached: the fastest that the space allows takes "
        f"{least}, {costs.whole / costs.least:.2f} times as fast as the source model"
    )


def _within_reach(costs: Costs, modules: Sequence[Module], key: str) -> str:
    faster = math.floor(100 * costs.whole / costs.least) / 100
    value = {
        "speedup": f"{faster:g}, or less",
        "milliseconds": f"{math.ceil(1e4 * costs.least) / 10:g}, or more",
    }.get(key, f"{costs.said(costs.least)}, or more")
    more = [kind for kind in BLOCK_OF if kind not in {m.kind for m in modules}]
    more += [block for kind, block in BLOCK_OF.items() if not _goes_whole(modules, kind)]
    added = f", or add {', '.join(more)} to prune.space" if more else ""
    if key == "speedup" and faster <= 1:  # no target names less
        return f"Lower a `minimum`{added}."
    return f"Name {value}, lower a `minimum`{added}."


def _goes_whole(modules: Sequence[Module], kind: str) -> bool:
    return any(m.block for m in modules if m.kind == kind)


def _staying(modules: Sequence[Module], cost_ML: Sequence[Sequence[float]]) -> float:
    """What blocks cost beyond nothing of which the space keeps some: of each kind the cheapest.
    Those without their last level stay already.
    """
    total = 0.0
    for kind in BLOCK_OF:
        pairs = zip(modules, cost_ML, strict=True)
        blocks = [(m, costs) for m, costs in pairs if m.kind == kind and m.block]
        more = sorted(c[-2] - c[-1] for m, c in blocks if len(c) == len(m.widths))
        floor = max((m.floor for m, _ in blocks), default=0)
        total += sum(more[: max(0, floor - len(blocks) + len(more))])
    return total


def sums_of(costs: Costs) -> set[float]:
    """Returns the costs that choices of levels may have: one for each number of units and blocks,
    where layers are alike.
    """
    found = {costs.base}
    for own in costs.cost_ML:
        found = {total + cost for total in found for cost in own}
    return found


def still_fits(costs: Costs, modules: Sequence[Module], open_M: Sequence[int]) -> bool:
    """Returns whether the target is in reach where every module has only so many of its levels."""
    offered = [costs[:count] for costs, count in zip(costs.cost_ML, open_M, strict=True)]
    least = costs.base + sum(map(min, offered)) + _staying(modules, offered)
    return least <= costs.asked * (1 + TOLERANCE)


def params_costs(axes: AxisMap, modules: Sequence[Module], target: int) -> Costs:
    """Returns costs in parameters."""
    base, cost_ML = _parameters(axes, modules)
    return Costs("parameters", base, cost_ML, target, _staying(modules, cost_ML))


def bytes_costs(
    axes: AxisMap, config: Config, modules: Sequence[Module], load: WorkloadSpec, target: int
) -> Costs:
    """Returns costs in bytes: of the exported weights, and of what the KV cache keeps for every
    sequence and token of the workload: keys and values, or what these are made of.
    """
    base, cost_ML = _parameters(axes, modules)
    tokens, latent = load.batch * load.length, axes.family.latent
    whatever_heads = latent(config) if latent else 0

    def cached(name: str, heads: int) -> int:
        layer = axis_layer(name)
        none = latent or layer is None
        per_group = 0 if none else sum(head_widths(axes, config, layer or 0))
        return tokens * (heads * per_group + whatever_heads * bool(heads))

    chosen = {m.name for m in modules if m.kind == "attention"}
    base += sum(cached(n, axes.widths[n]) for n in axes.axes("attention") if n not in chosen)
    scaled = tuple(
        tuple(
            STORED * (cost + (cached(m.name, width) if m.kind == "attention" else 0))
            for cost, width in zip(costs, m.widths, strict=True)
        )
        for m, costs in zip(modules, cost_ML, strict=True)
    )
    return Costs("bytes", STORED * base, scaled, target, _staying(modules, scaled))


def _parameters(
    axes: AxisMap, modules: Sequence[Module]
) -> tuple[int, tuple[tuple[int, ...], ...]]:
    """Parameters that always stay, and those of every level: a block's own (its norms, biases of
    its outputs) go with its last unit.
    """
    count, found = axes.count(), []
    base = count
    for module in modules:
        unit = axes.freed(module.name, axes.widths)
        block = count - axes.count({module.block: 0}) if module.block else unit * module.size
        own = block - unit * module.size
        found.append(tuple(own + unit * w if w or not module.block else 0 for w in module.widths))
        base -= block
    return base, tuple(found)


@dataclass(frozen=True)
class LatencyTable:
    """Seconds of attention (by KV heads) and FFN (by channels) at each of their widths, and of the
    source model; ``of``: what they depend on.
    """

    of: Mapping[str, Any]
    entries: Mapping[str, Mapping[int, float]]
    dense: float
    share: float = 1.0
    """Processor time of this process over the time that the measurement took; 1 for a GPU. Below 1
    the processor also did other work, and what takes long was interrupted most.
    """

    @property
    def busy(self) -> str:
        """The warning of a table that was measured on a busy machine; else nothing."""
        if self.share >= QUIET:
            return ""
        return (
            f"blocks were timed while this process had {100 * self.share:.0f} % of a processor, so "
            f"the choice may be wrong; remove {place_of(self.of)} and run again on a quiet machine"
        )

    def costs(self, modules: Sequence[Module], target: TargetSpec) -> Costs:
        """Returns costs in seconds. What always stays takes what the source model takes beyond its
        own attention and FFN; modules that are not chosen belong to that. Where blocks took longer
        than the source model, they are taken for all of it, in proportion.
        """
        cost_ML = tuple(
            tuple(self.entries[m.kind][w] if w else 0.0 for w in m.widths) for m in modules
        )
        blocks = sum(costs[0] for costs in cost_ML)
        if blocks > self.dense:  # a part cannot take longer than the whole: they were disturbed
            part = self.dense / blocks
            cost_ML = tuple(tuple(part * cost for cost in costs) for costs in cost_ML)
        asked = self.dense / (target.speedup or 1.0)
        if target.milliseconds is not None:
            asked = target.milliseconds / 1e3
        base = max(0.0, self.dense - blocks)
        return Costs("seconds", base, cost_ML, asked, _staying(modules, cost_ML))

    def text(self) -> str:
        """The table as JSON."""
        return json.dumps(asdict(self), indent=1)


def monotone(seconds: Mapping[int, float]) -> dict[int, float]:
    """Returns width -> seconds, none lower than that of a smaller width (running maximum)."""
    found: dict[int, float] = {}
    for width in sorted(seconds):
        found[width] = max(seconds[width], *found.values(), 0.0)
    return found


def dependencies(
    axes: AxisMap,
    modules: Sequence[Module],
    load: WorkloadSpec,
    device: str,
    name: str,
    threads: int,
) -> dict[str, Any]:
    """Returns all that a table depends on, as JSON values. ``name`` of the device: that of a GPU;
    a processor's is looked up.
    """
    shapes = json.dumps({name: list(shape) for name, shape in sorted(axes.shapes.items())})
    heads = {i: in_layer(axes.widths, i).get("query", 1) for i in axes.depth.layers}
    return {
        "hardware": hardware() if device == "cpu" else name,
        "device": device,
        "threads": threads,
        "versions": {name: version(name) for name in PACKAGES},
        "family": axes.family.name,
        "shapes": hashlib.sha256((shapes + str(sorted(heads.items()))).encode()).hexdigest(),
        "workload": {k: v for k, v in asdict(load).items() if k != "threads"},
        "widths": {kind: list(widths) for kind, widths in widths_by_kind(modules).items()},
    }


def widths_by_kind(modules: Sequence[Module]) -> dict[str, tuple[int, ...]]:
    """Returns kind -> all widths of its modules, the largest first, without 0."""
    found: dict[str, set[int]] = {}
    for module in modules:
        found.setdefault(module.kind, set()).update(w for w in module.widths if w)
    return {kind: tuple(sorted(widths, reverse=True)) for kind, widths in found.items()}


def hardware() -> str:
    """Returns the name of the processor and the number of its cores that this process may use."""
    name = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        name = next(
            (x.partition(":")[2].strip() for x in lines if x.startswith("model name")), name
        )
    return f"{name}, {cores()} cores"


def place_of(of: Mapping[str, Any]) -> Path:
    """Returns the file in the cache of the table that depends on these."""
    text = json.dumps(of, sort_keys=True)
    return cache_root() / "latency" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


def read_table(path: Path) -> LatencyTable | None:
    """Reads a table; None where there is none, or none that can be read."""
    try:
        held = json.loads(path.read_text("utf-8"))
        entries = {
            str(kind): {int(width): float(s) for width, s in by_width.items()}
            for kind, by_width in held["entries"].items()
        }
        return LatencyTable(held["of"], entries, float(held["dense"]), float(held["share"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def known_tables(
    axes: AxisMap, modules: Sequence[Module], prune: PruneSpec, device: str
) -> list[LatencyTable]:
    """Returns the tables in the cache that a run of the recipe here may use. Where the recipe
    leaves threads or device to the run, there may be several.
    """
    load = prune.workload
    assert load is not None
    wanted = dependencies(axes, modules, load, "cpu", "", load.threads or 0)
    found = (read_table(path) for path in sorted(place_of({}).parent.glob("*.json")))
    return [table for table in found if table and _fits(table.of, wanted, load, device)]


def _fits(
    of: Mapping[str, Any], wanted: Mapping[str, Any], load: WorkloadSpec, device: str
) -> bool:
    free = {"hardware", "device"} | ({"threads"} if load.threads is None else set())
    if {k: v for k, v in of.items() if k not in free} != {
        k: v for k, v in wanted.items() if k not in free
    }:
        return False
    here = of.get("device") != "cpu" or of.get("hardware") == wanted["hardware"]
    return here and device in ("auto", of.get("device"))
