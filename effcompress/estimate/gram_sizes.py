"""What is kept for cuts beside the model: sizes of Gram matrices and of index tensors, from named
axes alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from effcompress.types import AxisMap, GroupSet, Widths


@dataclass(frozen=True)
class Gram:
    """One matrix of second moments: ``inputs`` squared, for ``outputs`` rows that read it. They lie
    on ``axes``, and ``weight`` is the first of those that read them.
    """

    weight: str
    axes: frozenset[str]
    inputs: int
    outputs: int


def grams_of(axes: AxisMap, sets: list[GroupSet], widths: Widths) -> list[Gram]:
    """What the repairs listen to: one matrix for each distinct input of linear layers that lose
    some (the rule of ``measure/grams.py``). A layer that is gone reads nothing.
    """
    wide, inputs = {**axes.widths, **widths}, axes.family.inputs
    shrinking = {side.param for s in sets for side in s.sides if side.dim == inputs}
    prefix = axes.family.layer.partition("{i}")[0]
    found: dict[tuple[str, tuple[tuple[str, ...], ...]], Gram] = {}
    for param in axes.shapes:
        plain = len(axes.shapes[param]) == 2 and param.endswith(".weight")
        if param not in shrinking or not plain or not param.startswith(prefix):
            continue
        if not axes.numel(param, wide):
            continue
        read = [s for s in axes.by_param[param] if s.dim == inputs]
        size = sum(s.length(wide) for s in read)
        rows = axes.numel(param, wide) // size
        names = frozenset(name for s in read for name in s.names)
        key = (param.rsplit(".", 2)[0], tuple(s.names for s in read))
        before = found.get(key)
        found[key] = Gram(param, names, size, rows) if before is None else _wider(before, rows)
    return list(found.values())


def _wider(gram: Gram, rows: int) -> Gram:
    return replace(gram, outputs=gram.outputs + rows)


def index_bytes(sets: list[GroupSet]) -> int:
    """Of the index tensors of all mini-groups, made once for sides that are alike."""
    return sum(
        8 * outer * s.size * inner
        for s in sets
        for _, outer, inner in {(side.start, side.outer, side.inner) for side in s.sides}
    )
