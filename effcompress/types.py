"""The data types that rooms exchange, all frozen. torch is imported only where an index tensor is
made, so that ``check`` and ``plan`` stay free of it.

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
from typing import TYPE_CHECKING, Protocol, TypedDict, Unpack

from effcompress.architecture import DEPTH as DEPTH
from effcompress.architecture import EXPERT_ROW as EXPERT_ROW
from effcompress.architecture import WHOLE as WHOLE
from effcompress.architecture import Axis as Axis
from effcompress.architecture import Config as Config
from effcompress.architecture import Depth as Depth
from effcompress.architecture import Family as Family
from effcompress.architecture import Fields as Fields
from effcompress.architecture import ModuleSizes as ModuleSizes
from effcompress.architecture import Sublayer as Sublayer
from effcompress.architecture import Widths as Widths
from effcompress.architecture import axis_kind as axis_kind
from effcompress.architecture import axis_layer as axis_layer

if TYPE_CHECKING:
    from torch import Tensor

Shapes = Mapping[str, tuple[int, ...]]
"""Parameter name -> shape."""
Scores = dict[str, "Tensor"]
"""Group set name -> ``score_G`` in the parent's unit order; ``inf`` where a unit is removed."""
Plan = dict[str, list[int]]
"""Group set name -> mini-groups to remove, by number in the parent. Plain JSON."""


def in_layer(widths: Widths, layer: int) -> dict[str, int]:
    """Widths by axis name -> widths by kind in one layer (its number in the parent)."""
    found: dict[str, int] = {}
    for name, width in widths.items():
        if axis_layer(name) in (None, layer):
            found[axis_kind(name)] = width
    return found


@dataclass(frozen=True)
class Segment:
    """An ``Axis`` resolved for one layer: a stretch of dimension ``dim`` of ``param``, from
    ``start`` on, laid out as ``[names[0], names[1], ..., positions_per_unit]``.
    """

    param: str
    dim: int
    names: tuple[str, ...]
    positions_per_unit: int
    start: int = 0

    def length(self, widths: Widths) -> int:
        """Number of positions in a model of these widths."""
        return math.prod(widths[name] for name in self.names) * self.positions_per_unit


@dataclass(frozen=True)
class Side:
    """The positions of one axis within a segment. In the layout ``[outer, size, inner]``, unit
    ``u`` owns ``start + (o * size + u) * inner + r`` for all ``o < outer`` and ``r < inner``.
    """

    param: str
    dim: int
    name: str
    start: int = 0
    outer: int = 1
    inner: int = 1


@dataclass(frozen=True)
class Member:
    """What the units of a set own of one parameter: unit ``g`` the positions ``index_GB[g]`` along
    ``dim``, or, where ``dim`` is ``WHOLE``, the whole parameter (then there is one unit).
    """

    param: str
    dim: int
    index_GB: Tensor


class Limits(TypedDict, total=False):
    """Keywords of ``GroupSet`` that a pruning space sets."""

    scope: str
    minimum: int
    round_to: int
    floor: int
    finish_on: int
    after: float
    until: float


@dataclass(frozen=True)
class GroupSet:
    """All mini-groups along one axis, and the limits on their removal.

    Scope ``lockstep``: every set of a kind loses equally many; ``per_layer``: each set is cut on
    its own; ``global``: the sets of a kind are one pool, cut by saliency, of which ``floor`` units
    stay. A set keeps ``minimum`` units, and every width on the way is a multiple of ``round_to``.
    With ``finish_on``, units are cut one at a time and the final width is a multiple of it. The
    units are candidates while the removed fraction of the model's parameters is in
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
        """The final width is a multiple of this, if anything was cut."""
        return math.lcm(self.round_to, self.finish_on)

    @cached_property
    def members(self) -> tuple[Member, ...]:
        """Index tensors of every side; built on first use: size arithmetic needs no torch."""
        import torch

        index: dict[tuple[int, int, int], Tensor] = {}
        for side in self.sides:
            key = (side.start, side.outer, side.inner)
            if key not in index:
                # [outer, size, inner] -> [size, outer * inner]: one row of positions per unit.
                shape = (side.outer, self.size, side.inner)
                positions = torch.arange(math.prod(shape), device="cpu").view(shape) + side.start
                index[key] = positions.transpose(0, 1).reshape(self.size, -1)
        return tuple(Member(s.param, s.dim, index[s.start, s.outer, s.inner]) for s in self.sides)


@dataclass(frozen=True)
class AxisMap:
    """The axes of one model: which dimensions each axis is on, and its width."""

    family: Family
    shapes: Shapes
    depth: Depth
    segments: tuple[Segment, ...]
    widths: Widths
    """Units of every axis, and 1 for every layer and sublayer."""
    by_axis: Mapping[str, tuple[Side, ...]] = field(repr=False)
    by_param: Mapping[str, tuple[Segment, ...]] = field(repr=False)
    gates: Mapping[str, tuple[str, ...]] = field(repr=False)
    """Parameter -> the layer and the sublayer (as axis names) that it is removed with."""
    floors: Widths = field(default_factory=dict[str, int])
    """Axis kind -> minimum width."""
    no_depth: str = ""
    """Why layers cannot be removed; empty when they can."""

    def axes(self, kind: str) -> list[str]:
        """Names of the axes of one kind, in layer order: ``ffn`` -> ``ffn.0, ffn.1, ...``."""
        return [name for name in self.by_axis if axis_kind(name) == kind]

    def sets(
        self, kind: str, *, skip_layers: Iterable[int] = (), **limits: Unpack[Limits]
    ) -> Iterator[GroupSet]:
        """Yields a group set for every axis of ``kind``, with these ``limits``; a ``minimum`` above
        the width cuts nothing. ``skip_layers`` get none (negative: from the end).
        """
        last = max(self.depth.layers, default=-1) + 1
        skipped = {i + last if i < 0 else i for i in skip_layers}
        minimum = max(limits.get("minimum", 1), self.floors.get(kind, 0))
        for name in self.axes(kind):
            if (layer := axis_layer(name)) not in skipped:
                limits["minimum"] = min(minimum, self.widths[name])
                yield GroupSet(name, kind, layer, self.widths[name], self.by_axis[name], **limits)

    def living(self, name: str, widths: Widths) -> bool:
        """Whether any parameter with this axis is left in a model of these widths."""
        return any(self.numel(side.param, {**self.widths, **widths}) for side in self.by_axis[name])

    def count(self, widths: Widths | None = None) -> int:
        """Parameter count of the model with these widths (missing axes keep theirs)."""
        wide = {**self.widths, **(widths or {})}
        return sum(self.numel(param, wide) for param in self.shapes)

    def freed(self, name: str, widths: Widths) -> int:
        """Parameters freed by removing one unit of axis ``name`` from a model of these widths."""
        params = {side.param for side in self.by_axis[name]}
        fewer = {**widths, name: widths[name] - 1}
        return sum(self.numel(param, widths) - self.numel(param, fewer) for param in params)

    def numel(self, param: str, widths: Widths) -> int:
        """Elements of one parameter in a model of these widths."""
        sizes: dict[int, int] = {}
        for segment in self.by_param[param]:
            # Segments of one dimension add up, dimensions multiply; a gate is 0 or 1.
            sizes[segment.dim] = sizes.get(segment.dim, 0) + segment.length(widths)
        return math.prod(sizes.values()) * math.prod(widths[gate] for gate in self.gates[param])

    def terms(self, param: str) -> Iterator[tuple[tuple[str, ...], int]]:
        """``numel`` as a polynomial in the widths: terms (axis names, factor), each the product of
        the factor and these axes' widths.
        """
        by_dim: dict[int, list[Segment]] = {}
        for segment in self.by_param[param]:
            by_dim.setdefault(segment.dim, []).append(segment)
        # A product over dimensions of sums over segments, multiplied out.
        for choice in itertools.product(*by_dim.values()):
            names = [name for segment in choice for name in segment.names]
            factor = math.prod(segment.positions_per_unit for segment in choice)
            yield (*names, *self.gates[param]), factor


class TextTokenizer(Protocol):
    """The tokenizer interface of data and evaluation. ``encode`` adds no special tokens: the BOS
    and EOS policy is in ``data/pack.py``.
    """

    bos_id: int | None
    eos_id: int | None
    adds_bos: bool
    """Whether the tokenizer itself puts BOS in front of a text."""
    vocab_size: int
    fingerprint: str
    """Hash of everything that determines the token ids of a text."""

    def encode(self, texts: list[str]) -> list[list[int]]: ...

    def decode(self, ids: list[int]) -> str: ...


@dataclass(frozen=True)
class Batch:
    """Packed sequences: token ids ``ids_BT``, the domain and sample number of each row, and a mask
    of the tokens that enter the loss (None: all).
    """

    ids_BT: Tensor
    domains: tuple[str, ...]
    samples: tuple[tuple[str, int], ...]
    """(domain, running number of the sample in that domain's stream) for each row."""
    trained_BT: Tensor | None = None


@dataclass(frozen=True)
class Due:
    """A schedule's request: remove ``groups`` mini-groups, or reach ``params`` parameters. With
    ``again`` the schedule is asked once more after that cut, before the next training step.
    When ``stage`` changes, ``fraction_K`` and the state of selectors restart.
    """

    groups: int | None = None
    params: int | None = None
    again: bool = False
    stage: int = 0


@dataclass(frozen=True)
class Cut:
    """One cut: the plan, the saliency of the removed mini-groups, and the sizes afterwards."""

    step: int
    tokens: int
    plan: Plan
    saliency: Mapping[str, float]
    """Kind -> lowest saliency per freed parameter then (also of kinds that were not cut)."""
    removed: Mapping[str, int]
    """Kind -> mini-groups removed (one of every layer in lockstep counts once)."""
    scores: Mapping[str, list[float]]
    """Group set name -> raw saliency of each mini-group in the plan."""
    params: int
    """Parameters after the cut."""
