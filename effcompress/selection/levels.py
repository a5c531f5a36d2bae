"""Levels instead of single removals: how wide the attention and the feed-forward block of every
layer may end. Arithmetic on names and widths; no tensors.

``M`` modules (a set of heads or of FFN channels of one layer), ``L`` levels of each, from all units
to none.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from effcompress.errors import CoverageError
from effcompress.spec import PruneSpec
from effcompress.types import DEPTH, GroupSet

BLOCK_OF = {"attention": "attention_block", "ffn": "mlp_block"}
"""Kind of units -> the block that goes when none of them is left."""


@dataclass(frozen=True)
class Module:
    """The units of one set, and the widths that it may end with: all first, ``0`` last where its
    ``block`` may go with it.
    """

    name: str
    kind: str
    widths: tuple[int, ...]
    block: str = ""
    multiple: int = 1
    """Widths between two levels are multiples of this."""
    floor: int = 0
    """Modules of its kind whose block stays at least, of those whose block may go."""

    @property
    def size(self) -> int:
        """Units before the cut."""
        return self.widths[0]


def ranked(sets: Sequence[GroupSet], prune: PruneSpec) -> list[GroupSet]:
    """Returns the sets that saliency ranks: all, or, where levels are chosen, those of units (a
    block goes with the last of them).
    """
    return [s for s in sets if prune.allocation is None or s.kind not in DEPTH]


def modules_of(sets: Sequence[GroupSet], shrink: float) -> list[Module]:
    """Returns the modules that a level is chosen for. FFN widths fall by the factor ``shrink``,
    rounded to the multiple that the space names; of heads, every number is a level.

    Raises CoverageError for kinds that are no part of one layer's attention or FFN, for sets that
    are not cut layer by layer, and for blocks without their units.
    """
    _require_units(sets)
    found = []
    for s in sets:
        if s.kind in BLOCK_OF.values():
            continue
        if s.kind not in BLOCK_OF:
            raise CoverageError(
                f"prune.allocation chooses widths of attention and FFN, not of '{s.kind}'",
                fix="Leave this space out, or use a selector in place of the allocation.",
            )
        if s.scope != "per_layer":
            raise CoverageError(
                f"prune.allocation chooses the width of each layer, but '{s.kind}' has "
                f"scope {s.scope}",
                fix=f"Write `{{name: {s.kind}, scope: per_layer}}` under prune.space.",
            )
        found.append(_module(s, shrink, *_block(s, sets)))
    return found


def _require_units(sets: Sequence[GroupSet]) -> None:
    kinds = {s.kind for s in sets}
    for kind, block in BLOCK_OF.items():
        if block in kinds and kind not in kinds:
            raise CoverageError(
                f"prune.allocation takes '{block}' where none of its '{kind}' units is left, and "
                f"'{kind}' is not cut",
                fix=f"Add `{{name: {kind}, scope: per_layer}}` to prune.space, or take '{block}' "
                "out.",
            )


def _block(s: GroupSet, sets: Sequence[GroupSet]) -> tuple[str, int]:
    """The block that goes with the last unit of a set (none where it has to stay), and how many of
    its kind stay at least: blocks whose units are not cut are among those that the space asks for.
    """
    pool = {t.name: t for t in sets if t.kind == BLOCK_OF[s.kind]}
    mine = {t.name.replace(s.kind, BLOCK_OF[s.kind], 1) for t in sets if t.kind == s.kind}
    name, may_go = s.name.replace(s.kind, BLOCK_OF[s.kind], 1), mine & pool.keys()
    if name not in pool:
        return "", 0
    floor = max(0, pool[name].floor - len(pool.keys() - mine))
    return (name, floor) if floor < len(may_go) else ("", 0)


def _module(s: GroupSet, shrink: float, block: str, floor: int) -> Module:
    least = max(-(-s.minimum // s.multiple), 1) * s.multiple
    # Of heads every number that the space allows: a factor of 1 falls by the multiple alone.
    widths = (s.size, *_falling(s, shrink if s.kind == "ffn" else 1.0, least))
    return Module(s.name, s.kind, (*widths, 0) if block else widths, block, s.multiple, floor)


def _falling(s: GroupSet, shrink: float, least: int) -> Iterator[int]:
    """Yields ``size * shrink^k`` in multiples, each at least one multiple below the one before, and
    ``least`` at the end.
    """
    width = s.size
    for k in itertools.count(1):
        rounded = math.floor(s.size * shrink**k / s.multiple + 0.5) * s.multiple
        below = (width - 1) // s.multiple * s.multiple
        if below < least:
            return
        width = max(min(rounded, below), least)
        yield width


def filled(
    modules: Sequence[Module],
    levels: Sequence[int],
    error_ML: Sequence[Sequence[float]],
    cost_ML: Sequence[Sequence[float]],
    spare: float,
) -> list[int]:
    """Returns the width of every module at its level, and more of it where ``spare`` pays for
    multiples between that level and the next: first where the error falls most for what it costs.
    Costs are linear between two levels.
    """
    width_M = [m.widths[level] for m, level in zip(modules, levels, strict=True)]
    order: list[tuple[float, int, float]] = []
    for k, (module, level) in enumerate(zip(modules, levels, strict=True)):
        if level and width_M[k]:
            costs, errors = cost_ML[k], error_ML[k]
            gain, price = errors[level] - errors[level - 1], costs[level - 1] - costs[level]
            if price <= 0:  # of a table of times: more units need not take longer
                continue
            each = price / (module.widths[level - 1] - width_M[k]) * module.multiple
            order.append((-gain / price, k, each))
    for _, k, each in sorted(order):
        below = modules[k].widths[levels[k] - 1] - modules[k].multiple
        while each <= spare and width_M[k] + modules[k].multiple <= below:
            width_M[k] += modules[k].multiple
            spare -= each
    return width_M


def held_back(
    modules: Sequence[Module],
    levels: Sequence[int],
    error_ML: Sequence[Sequence[float]],
) -> list[int]:
    """Returns the modules whose block goes though too few of its kind would stay, the one first
    whose block makes the largest difference.
    """
    pairs = enumerate(zip(modules, levels, strict=True))
    gone = [k for k, (m, level) in pairs if not m.widths[level]]
    found = []
    for k in gone:
        alike = [n for n, m in enumerate(modules) if m.kind == modules[k].kind and m.block]
        if len(alike) - sum(n in gone for n in alike) < modules[k].floor:
            found.append(k)
    return sorted(found, key=lambda k: error_ML[k][-2] - error_ML[k][-1])


def widths_of(modules: Sequence[Module], width_M: Sequence[int]) -> dict[str, int]:
    """Returns the widths of a choice by axis, those of blocks that go included (0)."""
    pairs = zip(modules, width_M, strict=True)
    return {(m.name if width else m.block): width for m, width in pairs}
