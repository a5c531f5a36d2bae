"""The size a recipe asks for, as parameters: a number, a share, or a shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from effcompress.errors import CoverageError, did_you_mean
from effcompress.spec import PruneSpec, TargetSpec
from effcompress.types import DEPTH, AxisMap, GroupSet


def bounded(sets: Sequence[GroupSet], target: TargetSpec) -> list[GroupSet]:
    """Group sets that give no more than the target's ``shape`` leaves them; the same ones without
    a shape.

    Raises CoverageError for a kind that only one of shape and space names, for more units than
    there are, and for widths that blocks of ``round_to`` do not lead to.
    """
    if target.shape is None:
        return list(sets)
    kinds = dict.fromkeys(s.kind for s in sets)
    for kind in target.shape:
        if kind not in kinds:
            raise CoverageError(
                f"prune.target.shape names '{kind}', which nothing under prune.space cuts",
                fix=did_you_mean(kind, kinds),
            )
    for kind in kinds:
        if kind not in target.shape:
            raise CoverageError(
                f"prune.target.shape does not say how many '{kind}' units stay",
                fix=f"Add `{kind}:` to it, or take the space out.",
            )
    return [_bounded(s, target.shape[s.kind], sets) for s in sets]


def _bounded(s: GroupSet, units: int, sets: Sequence[GroupSet]) -> GroupSet:
    pool = s.kind in DEPTH
    most = sum(t.kind == s.kind for t in sets) if pool else s.size
    least = max(s.floor, 1) if pool else s.minimum
    if not least <= units <= most or (s.size - units) % s.round_to:
        steps = f", in steps of {s.round_to}" if s.round_to > 1 else ""
        raise CoverageError(
            f"prune.target.shape: {units} units of '{s.kind}', but there are {most}",
            where=s.name,
            fix=f"Name {least} to {most}{steps}.",
        )
    return replace(s, floor=units) if pool else replace(s, minimum=units)


def wanted(target: TargetSpec, axes: AxisMap, sets: Sequence[GroupSet]) -> int:
    """Parameters at the end. ``sets`` are ``bounded`` ones."""
    if target.shape is not None:
        return axes.count(_widths(target.shape, sets))
    if target.params is not None:
        return target.params
    return round((target.keep or 0.0) * axes.count())


def target_of(prune: PruneSpec | None, axes: AxisMap, sets: Sequence[GroupSet]) -> int | None:
    """Parameters at the end; None where nothing is cut."""
    return wanted(prune.target, axes, sets) if prune else None


def _widths(shape: Mapping[str, int], sets: Sequence[GroupSet]) -> dict[str, int]:
    """Of whole layers (or blocks) it makes no difference which go: those of one kind weigh the
    same, or the shape would be no size; the last ones are taken.
    """
    widths: dict[str, int] = {}
    for kind, units in shape.items():
        names = [s.name for s in sets if s.kind == kind]
        if kind in DEPTH:
            widths |= dict.fromkeys(names[units:], 0)
        else:
            widths |= dict.fromkeys(names, units)
    return widths
