"""Saliency of mini-groups: the criterion's saliency of every weight, summed over what a mini-group
owns in every parameter.

A weight that belongs to two mini-groups (a row of one axis, a column of another) counts in both, so
each parameter is read once, in blocks of rows that stay in the processor's cache, and summed along
every dimension. No tensor of the size of the model is ever made.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from effcompress.errors import NotFinite
from effcompress.registry import Bound
from effcompress.saliency.reduce import reduce as over_members
from effcompress.spec import ReduceSpec
from effcompress.types import WHOLE, GroupSet, Scores

BLOCK_ELEMENTS = 1 << 18
"""Elements scored at once: 1 MB in fp32, small enough to stay in cache between the passes."""


class Stats(Protocol):
    """Where the inputs of a criterion come from (``measure/stats.py``)."""

    def shape(self, param: str) -> tuple[int, ...]: ...

    def held(self, param: str) -> range: ...

    def total(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]: ...

    def rows(self, param: str, start: int, stop: int) -> dict[str, Tensor]: ...


@torch.no_grad()
def score(
    sets: Sequence[GroupSet],
    criterion: Bound,
    stats: Stats,
    reduce: ReduceSpec = ReduceSpec(),  # noqa: B008  frozen
) -> Scores:
    """``{set: score_G}`` in fp32, in the physical order of the units.

    Raises PluginError when the criterion returns another shape or changes its inputs, NotFinite
    when a saliency is not (naming the set).
    """
    wanted: dict[str, set[int]] = defaultdict(set)
    for s in sets:
        for m in s.members:
            wanted[m.param].add(m.dim)
    sums: dict[str, Tensor] = {}
    for param, dims in wanted.items():
        for dim, here in _sums(param, dims, criterion, stats).items():
            sums[f"{param} {dim}"] = here
    along = stats.total(sums)
    scores: Scores = {}
    for s in sets:
        total = over_members([along[f"{m.param} {m.dim}"][m.index_GB] for m in s.members], reduce)
        scores[s.name] = total
    require_finite(scores, criterion)
    return scores


@torch.no_grad()
def score_masks(criterion: Bound, mask_grad_TG: Tensor) -> Tensor:
    """``score_G`` of one set from one micro-batch, in fp32 on the CPU; to be added up over them.

    Raises PluginError when the criterion returns something else or changes its input. Whether the
    sum is finite is asked when it is complete (``require_finite``): processes see different rows,
    and one must not stop alone.
    """
    return _ask(criterion, {"mask_grad": mask_grad_TG}, (mask_grad_TG.shape[1],)).float().cpu()


def require_finite(scores: Scores, criterion: Bound) -> None:
    """Raises NotFinite, with the name of the set, when a saliency is not."""
    for name, score_G in scores.items():
        if not bool(torch.isfinite(score_G).all()):
            raise NotFinite(
                f"criterion '{criterion.name}' gives a saliency that is not finite",
                where=name,
                fix="Look at the loss of the last steps and at the criterion.",
            )


def alike(sets: Sequence[GroupSet], scores: Scores) -> dict[str, str]:
    """Kind -> which of its sets cannot be ranked, in words: all mini-groups alive (saliency below
    inf; two or more of them) have the same saliency. Sets of one unit, such as layers, are ranked
    together.
    """
    ranked: dict[str, dict[str, list[Tensor]]] = defaultdict(lambda: defaultdict(list))
    for s in sets:
        living_G = scores[s.name][torch.isfinite(scores[s.name])]
        ranked[s.kind][s.name if s.size > 1 else s.kind].append(living_G)
    found = {}
    for kind, every in ranked.items():
        values = {name: torch.cat(parts) for name, parts in every.items()}
        same = {n: v for n, v in values.items() if len(v) > 1 and bool((v == v[0]).all())}
        if same:
            name, value_G = next(iter(same.items()))
            more = f" and of {len(same) - 1} more sets" if len(same) > 1 else ""
            found[kind] = f"the {len(value_G)} mini-groups of '{name}'{more} have the same " + (
                f"saliency ({float(value_G[0]):.3g})"
            )
    return found


def _ask(criterion: Bound, inputs: dict[str, Tensor], shape: tuple[int, ...]) -> Tensor:
    """The criterion's answer, held to its contract: a tensor of this shape, inputs unchanged."""
    with criterion.keeping(**inputs):
        saliency = criterion(**inputs)
    fix = "A criterion returns one number per weight, in the weight's shape (with mask_grad: one "
    fix += "per mini-group)."
    criterion.plugin.require_shape(saliency, f"where {shape} was expected", shape, fix=fix)
    return saliency


def _sums(param: str, dims: set[int], criterion: Bound, stats: Stats) -> dict[int, Tensor]:
    """``{dim: [size of dim]}``: saliency summed over all other dimensions, on the CPU; under
    ``WHOLE`` the sum of everything, ``[1]``.
    """
    shape, held = stats.shape(param), stats.held(param)
    width = max(1, math.prod(shape[1:]))
    step = max(1, BLOCK_ELEMENTS // width)
    pieces: list[Tensor] = []
    sums: dict[int, Tensor] = {}
    uniform = _Uniform(shape, step) if "uniform" in criterion.needs else None
    for start in range(held.start, held.stop, step):
        stop = min(start + step, held.stop)
        inputs = stats.rows(param, start, stop)
        if uniform is not None:
            inputs["uniform"] = uniform.rows(start, stop).to(inputs["weight"].device)
        saliency = _ask(criterion, inputs, tuple(inputs["weight"].shape)).float()
        if 0 in dims:
            pieces.append(saliency.flatten(1).sum(1) if saliency.dim() > 1 else saliency)
        for dim in dims - {0}:
            part = _sum(saliency, dim)
            sums[dim] = sums[dim].add_(part) if dim in sums else part
    found = {dim: total.cpu() for dim, total in sums.items()}
    if pieces:
        found[0] = torch.cat(pieces).cpu()
    if uniform is not None:
        uniform.skip_to(shape[0])
    return found if len(held) == shape[0] else _among_all(found, dims, shape, held)


class _Uniform:
    """Random numbers for the rows of one parameter, drawn in their order from the CPU's generator.
    Those of rows that other processes hold are drawn and dropped, so that every process has the
    numbers of one alone, and its generator is where that of one alone would be.
    """

    def __init__(self, shape: tuple[int, ...], step: int) -> None:
        """``step``: rows that may be in memory at a time."""
        self._width, self._step, self._at = shape[1:], step, 0

    def rows(self, start: int, stop: int) -> Tensor:
        """Returns those of rows ``start:stop``, which lie behind those asked for before."""
        self.skip_to(start)
        self._at = stop
        return torch.rand(stop - start, *self._width)

    def skip_to(self, start: int) -> None:
        """Draws those of the rows up to ``start``."""
        while self._at < start:
            count = min(self._step, start - self._at)
            torch.rand(count, *self._width)
            self._at += count


def _among_all(
    sums: Mapping[int, Tensor], dims: set[int], shape: tuple[int, ...], held: range
) -> dict[int, Tensor]:
    """Sums over the rows ``held``, as summands of those over all: zeros where others have rows."""
    found = {dim: torch.zeros(1 if dim == WHOLE else shape[dim]) for dim in dims}
    if 0 in sums:
        found[0][held.start : held.stop] = sums[0]
    return {**found, **{dim: here for dim, here in sums.items() if dim != 0}}


def _sum(saliency: Tensor, dim: int) -> Tensor:
    """Over all dimensions but ``dim``; a new tensor."""
    if dim == WHOLE:
        return saliency.sum().reshape(1)
    return saliency.sum([d for d in range(saliency.dim()) if d != dim])
