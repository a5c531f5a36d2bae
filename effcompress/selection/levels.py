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

    Raises CoverageError for kinds that are no part of one layer's attention or FFN, and for sets
    that are not cut layer by layer.
    """
    names = {s.name for s in sets}
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
        block = s.name.replace(s.kind, BLOCK_OF[s.kind], 1)
        found.append(_module(s, shrink, block if block in names else ""))
    return found


def _module(s: GroupSet, shrink: float, block: str) -> Module:
    least = max(-(-s.minimum // s.multiple), 1) * s.multiple
    # Of heads every number that the space allows: a factor of 1 falls by the multiple alone.
    widths = (s.size, *_falling(s, shrink if s.kind == "ffn" else 1.0, least))
    return Module(s.name, s.kind, (*widths, 0) if block else widths, block, s.multiple)


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
            each = price / (module.widths[level - 1] - width_M[k]) * module.multiple
            order.append((-gain / price, k, each))
    for _, k, each in sorted(order):
        below = modules[k].widths[levels[k] - 1] - modules[k].multiple
        while each <= spare and width_M[k] + modules[k].multiple <= below:
            width_M[k] += modules[k].multiple
            spare -= each
    return width_M


def widths_of(modules: Sequence[Module], width_M: Sequence[int]) -> dict[str, int]:
    """Returns the widths of a choice by axis, those of blocks that go included (0)."""
    pairs = zip(modules, width_M, strict=True)
    return {(m.name if width else m.block): width for m, width in pairs}
