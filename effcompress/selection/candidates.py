"""Group sets -> lines: who loses a mini-group together, within what limits. No tensors.

A *line* is a queue of candidates: the sets of one kind in lockstep, or one set on its own. Taking
from a line removes one mini-group from each of its sets. The lines of a *pool* (scope ``global``)
share the count of what must stay and of what is gone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from effcompress.types import DEPTH, AxisMap, GroupSet, axis_layer, in_layer


@dataclass(frozen=True)
class Candidate:
    """Sets that lose their next mini-group together."""

    kind: str
    sets: tuple[str, ...]
    size: int
    minimum: int
    round_to: int = 1
    pool: str = ""
    floor: int = 0
    """Units that stay in the pool."""
    multiple: int = 1
    """What the width is a multiple of in the end, once anything of it was cut."""
    after: float = 0.0
    until: float = 1.0
    """Share of the parameters that is gone while this is a candidate: ``[after, until)``."""


def candidates_of(sets: Iterable[GroupSet]) -> list[Candidate]:
    """One line per lockstep kind, one per set otherwise, in the order of the sets."""
    lines: dict[str, Candidate] = {}
    for s in sets:
        key = s.kind if s.scope == "lockstep" else s.name
        names: tuple[str, ...] = (s.name,)
        if key in lines:  # the narrowest first: it decides what may still go
            before = lines[key].sets
            names = (*before, s.name) if s.size >= lines[key].size else (s.name, *before)
        lines[key] = Candidate(
            s.kind,
            names,
            size=min(s.size, lines[key].size) if key in lines else s.size,
            minimum=s.minimum,
            round_to=s.round_to,
            pool=s.kind if s.scope == "global" else "",
            floor=s.floor,
            multiple=s.multiple,
            after=s.after,
            until=s.until,
        )
    return list(lines.values())


def beside(lines: list[Candidate]) -> dict[int, list[int]]:
    """Candidate -> all lines of its layer, where layers or blocks may go and take them along."""
    numbers = [axis_layer(line.sets[0]) if len(line.sets) == 1 else None for line in lines]
    whole = {number for line, number in zip(lines, numbers, strict=True) if line.kind in DEPTH}
    near = {n: [k for k, number in enumerate(numbers) if number == n] for n in whole - {None}}
    return {k: near.get(number, []) for k, number in enumerate(numbers)}


def positions(axes: AxisMap, sets: Iterable[GroupSet]) -> dict[str, int]:
    """Kind -> columns of the projections back into the residual stream that one mini-group owns, in
    the widest layer: those of its query heads for a head, its channels for an expert, all of both
    for blocks and layers, 1 for a channel.
    """
    found: dict[str, int] = {}
    for s in sets:
        found[s.kind] = max(found.get(s.kind, 1), _columns(axes, s))
    return found


def _columns(axes: AxisMap, s: GroupSet) -> int:
    if s.layer is None:
        return 1
    wide = in_layer(axes.widths, s.layer)
    head = _head(axes, f"attention.{s.layer}")
    queries = wide.get("query", 1)
    attention = wide.get("attention", 0) * queries * head
    mlp = wide.get("ffn", 0) + wide.get("expert", 0) * wide.get("expert_ffn", 0)
    owned = {
        "attention": queries * head,
        "query": wide.get("attention", 0) * head,
        "expert": wide.get("expert_ffn", 1),
        "attention_block": attention,
        "mlp_block": mlp,
        "layer": attention + mlp,
    }
    return owned.get(s.kind, 1)


def _head(axes: AxisMap, name: str) -> int:
    """Positions of one head; rows of a fused projection hold its queries, keys and values."""
    blocks = [segment.positions_per_unit for segment in axes.segments if name in segment.names]
    return min(blocks, default=1)


def least(axes: AxisMap, sets: Iterable[GroupSet]) -> int:
    """Parameters that always remain: every set as narrow as it may be, every pool at its floor (met
    by what costs least).
    """
    sets = list(sets)
    widths = {**axes.widths, **{s.name: _narrowest(s) for s in sets}}
    for s in sets:
        if s.floor and s is next(t for t in sets if t.kind == s.kind):
            pool = [t for t in sets if t.kind == s.kind]
            widths |= _filled(axes, pool, widths)
    return axes.count(widths)


def _narrowest(s: GroupSet) -> int:
    """The smallest width that is allowed, whatever the target."""
    return min(s.size, math.ceil(s.minimum / s.multiple) * s.multiple)


def _filled(axes: AxisMap, pool: list[GroupSet], widths: Mapping[str, int]) -> dict[str, int]:
    """Widths of a pool's sets when ``floor`` units stay in it, the cheapest ones."""

    def price(s: GroupSet) -> int:
        one = {**widths, s.name: widths[s.name] + 1}
        return axes.count(one)

    found = {s.name: s.minimum for s in pool}
    missing = pool[0].floor - sum(found.values())
    for s in sorted(pool, key=price):
        more = max(0, min(s.size - s.minimum, missing))
        found[s.name] += more
        missing -= more
    return found
