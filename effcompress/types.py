"""The nouns, all frozen. No file of the package is below this one, and importing it is cheap:
torch is imported only where an index tensor is made.

Shape legend, used in names everywhere:
``G`` mini-groups of a set; ``B`` positions one mini-group owns along a dimension;
``O, I`` rows and columns of a linear weight; ``T`` tokens; ``K`` candidates for the next cut.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

Shapes = Mapping[str, tuple[int, ...]]
"""Parameter name -> shape."""
Widths = Mapping[str, int]
"""Axis name -> number of units on it."""
Scores = dict[str, "Tensor"]
"""Group set name -> ``score_G`` in original unit order; ``inf`` where a unit is gone."""
Plan = dict[str, list[int]]
"""Group set name -> original numbers of the mini-groups to remove. Plain JSON."""


@dataclass(frozen=True)
class Axis:
    """One side of one parameter: dimension ``dim`` of ``param`` carries the axis ``name``.

    Two sides with the same axis name shrink together. ``{i}`` in ``param`` and ``name`` stands for
    the layer. ``block`` names how many positions one unit owns on this side (``"one"``, or a key of
    ``Family.blocks``). Several axes on one dimension are segments, one behind the other, in the
    order of the declaration (fused projections). ``when`` is a configuration flag that must be true
    (``!flag``: false) for the parameter to exist.
    """

    param: str
    dim: int
    name: str
    block: str = "one"
    when: str = ""


Config = Mapping[str, Any]
"""A Hugging Face configuration as plain values."""


@dataclass(frozen=True)
class Family:
    """What the engine must know of an architecture, as data (``model/families.py``)."""

    name: str
    model_types: tuple[str, ...]
    axes: tuple[Axis, ...]
    units: Mapping[str, Callable[[Config], int]]
    """Axis kind -> how many units the configuration gives it."""
    blocks: Mapping[str, Callable[[Config], int]]
    """Block name -> positions per unit."""
    resize: Callable[[Config, Widths], dict[str, Any]]
    """Configuration fields of a model with these widths per axis kind, the same in all layers."""
    required: tuple[str, ...]
    """Configuration fields that must be there, positive whole numbers all."""
    norms: tuple[str, ...]
    """Gains of the norms that average over the hidden axis (patterns with ``{i}``)."""
    gain_offset: float = 0.0
    """What the norms add to their stored gain (Gemma: 1)."""
    scaled_embedding: str = ""
    """An embedding whose output the class multiplies by the root of the hidden size."""
    final_norm: str = "model.norm.weight"
    epsilon_field: str = "rms_norm_eps"
    epsilon_attribute: str = "variance_epsilon"
    fixed: tuple[str, ...] = ("vocab", "head_dim")
    """Axis kinds that no removal touches."""
    attention: str = "model.layers.{i}.self_attn"
    """The attention module of a layer."""
    adapt: Callable[[Any, Config, int], None] | None = None
    """For classes whose attention keeps its own count of heads: given the module, the parent's
    configuration and the layer's KV heads, make them agree."""
    containers: tuple[str, ...] = ()
    """``model_type``s to export as, in order of preference: the first that accepts the shape."""


@dataclass(frozen=True)
class Side:
    """An ``Axis`` resolved for one layer: ``units * block`` positions from ``start`` on."""

    param: str
    dim: int
    name: str
    block: int
    start: int = 0


@dataclass(frozen=True)
class Member:
    """One parameter's share: unit ``g`` owns the positions ``index_GB[g]`` along ``dim``."""

    param: str
    dim: int
    index_GB: Tensor


@dataclass(frozen=True)
class GroupSet:
    """All mini-groups along one axis. In ``lockstep`` every set of a kind loses equally many; none
    is cut below ``minimum`` units, and none to a width that is no multiple of ``round_to``.
    """

    name: str
    kind: str
    layer: int | None
    size: int
    sides: tuple[Side, ...]
    scope: str = "per_layer"
    minimum: int = 1
    round_to: int = 1

    @cached_property
    def members(self) -> tuple[Member, ...]:
        """Index tensors of every side; made when asked for, so that pricing needs no torch."""
        import torch

        index: dict[tuple[int, int], Tensor] = {}
        for side in self.sides:
            key = (side.start, side.block)
            if key not in index:
                stop = side.start + self.size * side.block
                positions = torch.arange(side.start, stop, device="cpu")
                index[key] = positions.view(self.size, side.block)
        return tuple(Member(s.param, s.dim, index[s.start, s.block]) for s in self.sides)


@dataclass(frozen=True)
class AxisMap:
    """The coupling of one model: which side of which parameter carries which axis, and how wide."""

    family: Family
    shapes: Shapes
    sides: tuple[Side, ...]
    widths: Widths
    by_axis: Mapping[str, tuple[Side, ...]] = field(repr=False)
    by_param: Mapping[str, tuple[Side, ...]] = field(repr=False)

    def axes(self, kind: str) -> list[str]:
        """Names of the axes of one kind, in layer order: ``ffn`` -> ``ffn.0, ffn.1, ...``."""
        return [name for name in self.by_axis if name.split(".")[0] == kind]

    def sets(
        self, kind: str, *, scope: str = "per_layer", minimum: int = 1, round_to: int = 1
    ) -> Iterator[GroupSet]:
        """The group sets of every axis of ``kind``; a ``minimum`` above the width cuts nothing."""
        for name in self.axes(kind):
            layer = int(name.split(".")[1]) if "." in name else None
            sides, size = self.by_axis[name], self.widths[name]
            yield GroupSet(name, kind, layer, size, sides, scope, min(minimum, size), round_to)

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
        for side in self.by_param[param]:
            sizes[side.dim] = sizes.get(side.dim, 0) + widths[side.name] * side.block
        return math.prod(sizes.values())


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
    """Packed sequences: ``ids_BT`` tokens, the domain of each row, and which sample it is."""

    ids_BT: Tensor
    domains: tuple[str, ...]
    samples: tuple[tuple[str, int], ...]
    """(domain, running number of the sample in that domain's stream) for each row."""


@dataclass(frozen=True)
class Due:
    """What a schedule asks for: remove so many mini-groups, or come down to so many parameters."""

    groups: int | None = None
    params: int | None = None


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
    widths: Widths
    """Widths of the pruned axes after the cut."""
