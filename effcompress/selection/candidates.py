"""Turns group sets into candidates: sets that lose mini-groups together, and their limits.

A *candidate* is all sets of one kind in lockstep, or one set on its own. Taking from it removes one
mini-group from each of its sets. The candidates of a *pool* (scope ``global``) have one floor and
one removed fraction in common. Arithmetic on names and widths; no tensors.
"""

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
    """Units of the narrowest set: it limits how far all of them may go."""
    units: int
    """Units of all sets."""
    minimum: int
    round_to: int = 1
    pool: str = ""
    floor: int = 0
    """Units that stay in the pool at least."""
    multiple: int = 1
    """The width is a multiple of this at the end, once anything was cut (``finish_on``)."""
    parts: int = 1
    """Equal stretches of the parent's units, each of which loses as many as the others."""
    after: float = 0.0
    until: float = 1.0
    """May be cut while the removed fraction of all parameters is in ``[after, until)``."""


def candidates_of(sets: Iterable[GroupSet]) -> list[Candidate]:
    """Returns one candidate per lockstep kind, one per set otherwise, in the order of the sets."""
    together: dict[str, list[GroupSet]] = {}
    for s in sets:
        together.setdefault(s.kind if s.scope == "lockstep" else s.name, []).append(s)
    return [_candidate(members) for members in together.values()]


def _candidate(sets: list[GroupSet]) -> Candidate:
    narrowest, *others = sorted(sets, key=lambda s: s.size)
    return Candidate(
        narrowest.kind,
        (narrowest.name, *(s.name for s in others)),
        size=narrowest.size,
        units=sum(s.size for s in sets),
        minimum=max(s.minimum for s in sets),
        round_to=narrowest.round_to,
        pool=narrowest.kind if narrowest.scope == "global" else "",
        floor=narrowest.floor,
        multiple=narrowest.multiple,
        parts=narrowest.parts,
        after=narrowest.after,
        until=narrowest.until,
    )


def beside(candidates: list[Candidate]) -> dict[int, list[int]]:
    """Returns candidate -> all candidates of its layer, where layers or blocks may go whole."""
    numbers = [axis_layer(c.sets[0]) if len(c.sets) == 1 else None for c in candidates]
    whole = {number for c, number in zip(candidates, numbers, strict=True) if c.kind in DEPTH}
    near = {n: [k for k, number in enumerate(numbers) if number == n] for n in whole - {None}}
    return {k: near.get(number, []) for k, number in enumerate(numbers)}


def positions(axes: AxisMap, sets: Iterable[GroupSet]) -> dict[str, int]:
    """Returns kind -> columns of the projections into the residual stream that one mini-group owns,
    in the widest layer: those of its query heads for a KV head, its channels for an expert, all of
    both for blocks and layers, 1 for a channel.
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
    mlp += wide.get("shared_ffn", 0)
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
    """Returns the positions of one head. The smallest segment counts: a fused projection holds
    queries, keys and values of a head in one.
    """
    lengths = [segment.positions_per_unit for segment in axes.segments if name in segment.names]
    return min(lengths, default=1)


def least(axes: AxisMap, sets: Iterable[GroupSet]) -> int:
    """Returns the parameters that always remain: every set at its narrowest, every pool at its
    floor, which its cheapest units meet.
    """
    sets = list(sets)
    widths = {**axes.widths, **{s.name: narrowest(s) for s in sets}}
    for s in sets:
        if s.floor and s is next(t for t in sets if t.kind == s.kind):
            pool = [t for t in sets if t.kind == s.kind]
            widths |= _filled(axes, pool, widths)
    return axes.count(widths)


def narrowest(s: GroupSet | Candidate) -> int:
    """Returns the smallest width allowed, whatever the target."""
    return min(s.size, math.ceil(s.minimum / s.multiple) * s.multiple)


def _filled(axes: AxisMap, pool: list[GroupSet], widths: Mapping[str, int]) -> dict[str, int]:
    """Returns the widths of a pool's sets when its ``floor`` cheapest units stay."""

    def cost(s: GroupSet) -> int:
        one = {**widths, s.name: widths[s.name] + 1}
        return axes.count(one)

    found = {s.name: s.minimum for s in pool}
    missing = pool[0].floor - sum(found.values())
    for s in sorted(pool, key=cost):
        more = max(0, min(s.size - s.minimum, missing))
        found[s.name] += more
        missing -= more
    return found
