"""The nouns, all frozen. No file of the package is below this one, and importing it is cheap:
torch is imported only where an index tensor is made.

Shape legend, used in names everywhere:
``G`` mini-groups of a set; ``B`` positions one mini-group owns along a dimension;
``O, I`` rows and columns of a linear weight; ``T`` tokens; ``K`` candidates for the next cut.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from effcompress.architecture import DEPTH as DEPTH
from effcompress.architecture import EXPERT_ROW as EXPERT_ROW
from effcompress.architecture import WHOLE as WHOLE
from effcompress.architecture import Axis as Axis
from effcompress.architecture import Config as Config
from effcompress.architecture import Depth as Depth
from effcompress.architecture import Family as Family
from effcompress.architecture import Sublayer as Sublayer
from effcompress.architecture import Widths as Widths
from effcompress.architecture import axis_kind as axis_kind
from effcompress.architecture import axis_layer as axis_layer

if TYPE_CHECKING:
    from torch import Tensor

Shapes = Mapping[str, tuple[int, ...]]
"""Parameter name -> shape."""
Scores = dict[str, "Tensor"]
"""Group set name -> ``score_G`` in original unit order; ``inf`` where a unit is gone."""
Plan = dict[str, list[int]]
"""Group set name -> original numbers of the mini-groups to remove. Plain JSON."""


def in_layer(widths: Widths, layer: int) -> dict[str, int]:
    """Widths by axis name -> widths by kind, as one layer (its number in the parent) has them."""
    found: dict[str, int] = {}
    for name, width in widths.items():
        if axis_layer(name) in (None, layer):
            found[axis_kind(name)] = width
    return found


@dataclass(frozen=True)
class Segment:
    """An ``Axis`` resolved for one layer: a stretch of one dimension, from ``start`` on, that is
    the product of its axes ``names``, outer to inner, times ``block`` positions.
    """

    param: str
    dim: int
    names: tuple[str, ...]
    positions_per_unit: int
    start: int = 0

    def length(self, widths: Widths) -> int:
        """Positions it takes in a model of these widths."""
        return math.prod(widths[name] for name in self.names) * self.positions_per_unit


@dataclass(frozen=True)
class Side:
    """What an axis owns of a segment: its unit ``u`` has the positions
    ``start + (o * size + u) * inner + r`` for all ``o < outer`` and ``r < inner``.
    """

    param: str
    dim: int
    name: str
    start: int = 0
    outer: int = 1
    inner: int = 1


@dataclass(frozen=True)
class Member:
    """One parameter's share: unit ``g`` owns the positions ``index_GB[g]`` along ``dim``, or, where
    ``dim`` is ``WHOLE``, all of it (then there is one unit).
    """

    param: str
    dim: int
    index_GB: Tensor


@dataclass(frozen=True)
class GroupSet:
    """All mini-groups along one axis.

    In ``lockstep`` every set of a kind loses equally many; ``per_layer`` each set competes on its
    own; ``global`` the sets of a kind are one pool, from which the least salient goes first. None
    is cut below ``minimum`` units, nor to a width that is no multiple of ``round_to``; a pool keeps
    at least ``floor`` units. A width that is cut at all ends on a multiple of ``finish_on``. They
    are candidates while the share of the model's parameters that is gone lies in
    ``[after, until)``.
    """

    name: str
    kind: str
    layer: int | None
    size: int
    sides: tuple[Side, ...]
    scope: str = "per_layer"
    minimum: int = 1
    round_to: int = 1
    floor: int = 0
    finish_on: int = 1
    after: float = 0.0
    until: float = 1.0

    @property
    def multiple(self) -> int:
        """What its width is a multiple of in the end, once anything of it was cut."""
        return math.lcm(self.round_to, self.finish_on)

    @cached_property
    def members(self) -> tuple[Member, ...]:
        """Index tensors of every side; made when asked for, so that pricing needs no torch."""
        import torch

        index: dict[tuple[int, int, int], Tensor] = {}
        for side in self.sides:
            key = (side.start, side.outer, side.inner)
            if key not in index:
                shape = (side.outer, self.size, side.inner)
                positions = torch.arange(math.prod(shape), device="cpu").view(shape) + side.start
                index[key] = positions.transpose(0, 1).reshape(self.size, -1)
        return tuple(Member(s.param, s.dim, index[s.start, s.outer, s.inner]) for s in self.sides)


@dataclass(frozen=True)
class AxisMap:
    """The coupling of one model: which side of which parameter carries which axis, and how wide."""

    family: Family
    shapes: Shapes
    depth: Depth
    segments: tuple[Segment, ...]
    widths: Widths
    """Units of every axis, and 1 for every layer and sublayer."""
    by_axis: Mapping[str, tuple[Side, ...]] = field(repr=False)
    by_param: Mapping[str, tuple[Segment, ...]] = field(repr=False)
    gates: Mapping[str, tuple[str, ...]] = field(repr=False)
    """Parameter -> the layer and the sublayer it lives and dies with."""
    floors: Widths = field(default_factory=dict[str, int])
    """Axis kind -> units that must stay."""
    no_depth: str = ""
    """Why no layer can go; empty when they can."""

    def axes(self, kind: str) -> list[str]:
        """Names of the axes of one kind, in layer order: ``ffn`` -> ``ffn.0, ffn.1, ...``."""
        return [name for name in self.by_axis if axis_kind(name) == kind]

    def sets(
        self,
        kind: str,
        *,
        scope: str = "per_layer",
        minimum: int = 1,
        round_to: int = 1,
        floor: int = 0,
        finish_on: int = 1,
        after: float = 0.0,
        until: float = 1.0,
        skip_layers: Iterable[int] = (),
    ) -> Iterator[GroupSet]:
        """The group sets of every axis of ``kind``; a ``minimum`` above the width cuts nothing.
        ``skip_layers`` are left whole (negative: from the end).
        """
        last = max(self.depth.layers, default=-1) + 1
        skipped = {i + last if i < 0 else i for i in skip_layers}
        minimum = max(minimum, self.floors.get(kind, 0))
        for name in self.axes(kind):
            layer = axis_layer(name)
            if layer in skipped:
                continue
            sides, size = self.by_axis[name], self.widths[name]
            yield GroupSet(
                name,
                kind,
                layer,
                size,
                sides,
                scope=scope,
                minimum=min(minimum, size),
                round_to=round_to,
                floor=floor,
                finish_on=finish_on,
                after=after,
                until=until,
            )

    def living(self, name: str, widths: Widths) -> bool:
        """Whether anything of an axis is left in a model of these widths."""
        return any(self.numel(side.param, {**self.widths, **widths}) for side in self.by_axis[name])

    def count(self, widths: Widths | None = None) -> int:
        """Parameters of the model if its axes had these widths (missing ones keep theirs)."""
        wide = {**self.widths, **(widths or {})}
        return sum(self.numel(param, wide) for param in self.shapes)

    def freed(self, name: str, widths: Widths) -> int:
        """Parameters that go with one unit of axis ``name`` in a model of these widths."""
        params = {side.param for side in self.by_axis[name]}
        fewer = {**widths, name: widths[name] - 1}
        return sum(self.numel(param, widths) - self.numel(param, fewer) for param in params)

    def numel(self, param: str, widths: Widths) -> int:
        """Elements of one parameter in a model of these widths."""
        sizes: dict[int, int] = {}
        for segment in self.by_param[param]:
            sizes[segment.dim] = sizes.get(segment.dim, 0) + segment.length(widths)
        return math.prod(sizes.values()) * math.prod(widths[gate] for gate in self.gates[param])

    def terms(self, param: str) -> Iterator[tuple[tuple[str, ...], int]]:
        """``numel`` as a polynomial: (names of axes, factor), to be multiplied and added up."""
        by_dim: dict[int, list[Segment]] = {}
        for segment in self.by_param[param]:
            by_dim.setdefault(segment.dim, []).append(segment)
        for choice in itertools.product(*by_dim.values()):
            names = [name for segment in choice for name in segment.names]
            factor = math.prod(segment.positions_per_unit for segment in choice)
            yield (*names, *self.gates[param]), factor


class TextTokenizer(Protocol):
    """What the data and evaluation rooms need of a tokenizer. No special tokens are ever added by
    ``encode``: the one BOS and EOS policy lives in ``data/pack.py``.
    """

    bos_id: int | None
    eos_id: int | None
    adds_bos: bool
    """Whether the tokenizer on its own begins a text with BOS."""
    vocab_size: int
    fingerprint: str
    """Hash of everything that decides how text becomes tokens."""

    def encode(self, texts: list[str]) -> list[list[int]]: ...

    def decode(self, ids: list[int]) -> str: ...


@dataclass(frozen=True)
class Batch:
    """Packed sequences: ``ids_BT`` tokens, the domain of each row, which sample it is, and which
    tokens are trained on (None: all).
    """

    ids_BT: Tensor
    domains: tuple[str, ...]
    samples: tuple[tuple[str, int], ...]
    """(domain, running number of the sample in that domain's stream) for each row."""
    trained_BT: Tensor | None = None


@dataclass(frozen=True)
class Due:
    """What a schedule asks for: remove so many mini-groups, or come down to so many parameters.
    ``again``: and ask once more when that is done, before anything is trained. ``stage``: when it
    changes, ``fraction_K`` and ``influence_K`` of selectors begin anew.
    """

    groups: int | None = None
    params: int | None = None
    again: bool = False
    stage: int = 0


@dataclass(frozen=True)
class Cut:
    """One removal as it was decided: the plan, the saliency of what went, what is left."""

    step: int
    tokens: int
    plan: Plan
    saliency: Mapping[str, float]
    """Kind -> lowest saliency per freed parameter then (also of kinds that were not cut)."""
    removed: Mapping[str, int]
    """Kind -> mini-groups that went (a lockstep tuple counts once)."""
    scores: Mapping[str, list[float]]
    """Group set name -> raw saliency of each mini-group in the plan."""
    params: int
    """Parameters after the cut."""
