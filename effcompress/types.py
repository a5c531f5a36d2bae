"""The data types that rooms exchange, all frozen.

An architecture is data: named axes on the dimensions of its parameters, and the sizes and module
paths that depend on them (``Axis``, ``Family``). Declarations are in ``model/families``;
``groups/axes.py`` resolves them for one model to an ``AxisMap``. torch is imported only where an
index tensor is made, so that ``check`` and ``plan`` stay free of it.

Shape legend, used in names everywhere:
``G`` mini-groups of a set; ``B`` positions one mini-group owns along a dimension;
``O, I`` rows and columns of a linear weight; ``T`` tokens; ``K`` candidates for the next cut.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, TypedDict, Unpack

from effcompress.kept_layers import kept_layers

if TYPE_CHECKING:
    from torch import Tensor

Widths = Mapping[str, int]
"""Axis name (or kind) -> number of units on it."""

WHOLE = -1
"""In place of a dimension: the whole parameter, removed as one piece (with its layer or block)."""

EXPERT_ROW = 8
"""Grouped GEMM kernels for experts need rows of 16 bytes: 8 numbers of the narrowest type, bf16."""

DEPTH = ("layer", "attention_block", "mlp_block")
"""Axis kinds whose one unit per layer is a module, not a position along a dimension."""


def axis_kind(name: str) -> str:
    """Kind of an axis or a group set: ``ffn.3`` -> ``ffn``, ``hidden`` -> ``hidden``."""
    return name.partition(".")[0]


def axis_layer(name: str) -> int | None:
    """Layer of an axis or a group set, by its number in the parent: ``ffn.3`` -> 3; None where it
    belongs to no single layer (``hidden``).
    """
    number = name.partition(".")[2]
    return int(number) if number else None


@dataclass(frozen=True)
class Axis:
    """Declares that dimension ``dim`` of parameter ``param`` carries the axis ``name``.

    Dimensions with the same axis name shrink together. ``{i}`` in ``param`` and ``name`` stands for
    the layer. Where it stands in ``name`` alone, every layer has a segment of the dimension, in
    order. A name may be a product of axes, outer to inner, joined by ``/`` (query rows: KV
    heads, each with its query heads). ``positions_per_unit`` is a key of
    ``Family.positions_per_unit``: how many positions one unit of the innermost axis owns. Several
    axes declared on one dimension are segments of it, in the order of the declaration (fused
    projections). ``when`` is a configuration flag, or a key of ``Family.flags``, that must be true
    (``!flag``: false) for the parameter to exist; several are joined by `` & ``.
    """

    param: str
    dim: int
    name: str
    positions_per_unit: str = "one"
    when: str = ""


UNTOUCHED_EXPERTS = "routed experts"
"""Key of ``Family.unreached`` for the experts of a traced family, which are never cut."""
Config = Mapping[str, Any]
"""A Hugging Face configuration (the content of a config.json) as plain values."""
Fields = dict[str, Any]
"""Configuration fields to set, as plain values."""
ModuleSizes = dict[str, dict[str, int | list[int] | list[list[float]]]]
"""Path of a module in its layer -> attribute -> value; ``config.x`` stands for field ``x`` of a
configuration that the module has to itself. Of a buffer that is one number along a stretch and
another along the next, the value is pairs of number and length.
"""


@dataclass(frozen=True)
class Sublayer:
    """A part of a layer that can be removed on its own. The module ``silent`` (which returns
    ``outputs`` values) is replaced by one that returns zeros, so that it adds nothing to the
    residual stream, and so are the modules ``beside`` it, whose outputs are added to its own; the
    modules ``through`` become identities. Paths are relative to the layer. ``behind``: the norm, if
    there is one, between the module and the stream. ``instead``: modules that take the place of
    ``silent`` in layers of another kind, with the number of their outputs. With negative
    ``outputs`` the module itself adds to the stream, which is its second argument.
    """

    silent: str
    outputs: int
    through: tuple[str, ...]
    behind: str = ""
    beside: tuple[str, ...] = ()
    instead: tuple[tuple[str, int], ...] = ()
    outputs_more: Callable[[Config, int], int] = lambda _config, _layer: 0
    """How many values more than ``outputs`` it returns in a layer (by its number in the parent)."""

    @property
    def silenced(self) -> dict[str, int]:
        """Modules that return zeros, each with how many values, whether a layer has them or not."""
        own = {self.silent: self.outputs, **dict(self.instead)}
        return own | dict.fromkeys(self.beside, 1)

    @property
    def modules(self) -> tuple[str, ...]:
        """Modules whose parameters are removed."""
        return (*self.silenced, *self.through)

    def within(self, layer: object, more: int = 0) -> dict[str, int]:
        """Returns the modules that this layer has -> the values that the replacement of each
        returns; 0: it is the identity. ``more``: that of ``outputs_more`` for this layer.
        """
        zeros = {**self.silenced, self.silent: self.outputs + more}
        found = {path: n for path, n in zeros.items() if getattr(layer, path, None) is not None}
        return found | dict.fromkeys(self.through, 0)


@dataclass(frozen=True)
class Residual:
    """How a layer adds to the residual stream: the modules of each block that run one behind the
    other, without the norm in front (a number stands for a dropout), and whether both blocks read
    the same stream (``parallel``).
    """

    attention: tuple[str, ...] = ("self_attn",)
    mlp: tuple[str, ...] = ("mlp",)
    parallel: bool = False
    alone: bool = True
    """Whether a layer returns nothing beside the stream."""
    one_width: bool = False
    """Whether the class wants the last layer to return as many channels as the first one reads."""


class Stream(TypedDict):
    """How a model with a rotated residual stream is put together, as JSON values
    (``modeling_pruned.rotate``). ``channels``: width of the source model's stream; ``mapped``:
    embedding and output matrix stay as they are, with a matrix behind the embedding and one behind
    the last norm; ``head``: the module behind that norm.
    """

    layers: str
    blocks: list[tuple[str, str, list[str]]]
    """For attention and feed-forward: norm, shortcut, and the modules of ``Residual``."""
    parallel: bool
    final_norm: str
    channels: int
    centred: bool
    mapped: bool
    head: str


@dataclass(frozen=True)
class Depth:
    """Layers that a model has: their numbers in the parent, in order, and the sublayers removed
    from them (``attention_block.3``, by number in the parent).
    """

    layers: tuple[int, ...]
    absent: frozenset[str] = frozenset()

    def without(self, gone: Iterable[str], *, more: bool = False) -> Depth:
        """Returns the depth after ``layer.3``, ``mlp_block.7``, ... are removed as well. A layer
        without both of its blocks is the identity, and no layer any more, unless it does ``more``.
        """
        names = self.absent | frozenset(gone)
        blocks = {i: {f"{kind}.{i}" for kind in DEPTH[1:]} for i in self.layers}
        layers = tuple(
            i for i in self.layers if f"layer.{i}" not in names and (more or not blocks[i] <= names)
        )
        return Depth(layers, names & {name for i in layers for name in blocks[i]})


@dataclass(frozen=True)
class Family:
    """The declaration of an architecture (``model/families``)."""

    name: str
    model_types: tuple[str, ...]
    axes: tuple[Axis, ...]
    units: Mapping[str, Callable[[Config, int], int]]
    """Axis kind -> how many units the configuration gives it in a layer."""
    positions_per_unit: Mapping[str, Callable[[Config], int]]
    """Name used in ``Axis.positions_per_unit`` -> how many positions."""
    resize: Callable[[Config, Widths], Fields]
    """Configuration fields of a model with these widths per axis kind, the same in all layers."""
    required: tuple[str, ...] = ()
    """Configuration fields that must be present, as positive integers."""
    norms: tuple[str, ...] = ()
    """Gains of the norms that average over an axis that can be cut (patterns with ``{i}``)."""
    norm_parts: Mapping[str, str] = field(default_factory=dict[str, str])
    """Gain of a norm (pattern) -> the axis kind whose units it normalises each by itself (groups of
    a state space): it averages over what one of them owns.
    """
    layer: str = "model.layers.{i}"
    """The path of a layer."""
    counted: Callable[[Config], int] | None = None
    """The number of layers, where configurations state it as the length of a list."""
    applies: Callable[[Config], bool] = lambda _config: True
    """Whether a configuration of these ``model_types`` is meant: some classes are built in several
    ways, and each has a declaration of its own.
    """
    unusable: Callable[[Config], str] = lambda _config: ""
    """Why the class cannot be built in this configuration, or cannot compute in it; empty when it
    can.
    """
    inputs: int = 1
    """The input dimension of a linear layer's weight (GPT-2's Conv1D: 0)."""
    sublayers: Mapping[str, Sublayer] = field(default_factory=dict[str, Sublayer])
    """``attention_block`` and ``mlp_block``, where they can be removed on their own."""
    flags: Mapping[str, Callable[[Config, int], bool]] = field(
        default_factory=dict[str, Callable[[Config, int], bool]]
    )
    """Conditions for ``Axis.when`` that are computed from the configuration, per layer."""
    attributes: Callable[[Config, Widths], ModuleSizes] = lambda _config, _widths: {}
    """Sizes that modules of a layer keep as attributes, for that layer's widths per axis kind."""
    module_there: Callable[[str, int], bool] = lambda _path, _layer: True
    """Whether a layer has a module of ``attributes``."""
    head_widths: Callable[[Config], tuple[int, int]] | None = None
    """Width of a query (and key) and of a value of a head, where they differ; else both are
    ``positions_per_unit["head"]``.
    """
    latent: Callable[[Config], int] | None = None
    """Numbers that the KV cache keeps of a token in a layer, where it keeps those that keys and
    values of all heads are made of, in their place.
    """
    outside: Callable[[Config, Widths], ModuleSizes] = lambda _config, _widths: {}
    """The same of modules outside the layers, by their whole path."""
    residual: Callable[[Config], Residual] = lambda _config: Residual()
    """How a layer adds to the residual stream."""
    centred: bool = False
    """Whether the norms are LayerNorms: they subtract the mean of what they average over."""
    norms_behind: Callable[[Config], bool] = lambda _config: False
    """Whether a norm lies between a block and the stream, so that no projection writes into it."""
    residual_scale: Callable[[Config], float] = lambda _config: 1.0
    """What the class multiplies by what a block adds to the stream."""
    gain_offset: float = 0.0
    """What the norms add to their stored gain (Gemma: 1)."""
    scaled_embedding: str = ""
    """An embedding whose output the class multiplies by the root of the hidden size."""
    hidden_powers: Mapping[str, float] = field(default_factory=dict[str, float])
    """Weight (pattern) -> the power of the hidden size that the class multiplies its output by."""
    fed_by: Mapping[str, str | tuple[str, ...]] = field(
        default_factory=dict[str, str | tuple[str, ...]]
    )
    """Norm within attention -> the linear layers whose outputs it normalises (patterns of modules).
    A stock class has one epsilon for all norms; where these need another one, the linear layer's
    weights are scaled instead.
    """
    recurrence: Mapping[str, Callable[[Config], int]] = field(
        default_factory=dict[str, Callable[[Config], int]]
    )
    """Axis kind, or kinds joined by ``/`` -> operations of a token for each of its units that are
    no product with a weight: updates of a recurrent state.
    """
    more_products: Callable[[Config], int] = lambda _config: 0
    """Multiplications of a token in each layer that are no product with a weight, or with one that
    is used again.
    """
    scales_stream: bool = False
    """Whether a stock class gets another epsilon by another scale of the residual stream: a norm
    within its layers has the same epsilon, and nothing in front of it could be scaled.
    """
    final_norm: str = "model.norm.weight"
    epsilon_field: str = "rms_norm_eps"
    epsilon_attribute: str = "variance_epsilon"
    router: str = ""
    """The router of a mixture of experts (pattern)."""
    untrained: tuple[str, ...] = ()
    """Parameters that no gradient reaches (patterns with ``{i}``)."""
    experts: str = ""
    """The module that holds all experts of a layer (pattern)."""
    expert_inputs: int = 2
    """The input dimension of its three-dimensional weights (gpt-oss: 1)."""
    inputs_weighed: bool = False
    """Whether every expert reads every token, multiplied by the router's weight (0 where it is not
    chosen), so that its outputs are only added.
    """
    floors: Mapping[str, Callable[[Config], int]] = field(
        default_factory=dict[str, Callable[[Config], int]]
    )
    """Axis kind -> minimum width, whatever the recipe says (experts: as many as per token)."""
    parts: Mapping[str, Callable[[Config], int]] = field(
        default_factory=dict[str, Callable[[Config], int]]
    )
    """Axis kind -> equal stretches of its units that always lose equally many (the groups of a
    router that first chooses among groups of experts).
    """
    derived: Mapping[str, Callable[[Config, Widths], int]] = field(
        default_factory=dict[str, Callable[[Config, Widths], int]]
    )
    """Axis kind that is never cut -> its width as the stock class derives it from others."""
    fixed: tuple[str, ...] = ("vocab", "head_dim")
    """Axis kinds that no removal touches."""
    approximate: Mapping[str, str] = field(default_factory=dict[str, str])
    """Axis kind -> why a removal changes more than the removed units' own contribution."""
    depth_fields: Callable[[Config, tuple[int, ...]], Fields] | None = kept_layers
    """Further configuration fields of a model that keeps only these layers (lists per layer)."""
    no_depth: Callable[[Config], str] = lambda _config: ""
    """Why layers cannot be removed in this configuration; empty when they can."""
    staying: Callable[[Config], Iterable[str]] = lambda _config: ()
    """Layers and blocks (``layer.3``, ``mlp_block.0``) that others cannot do without."""
    more_than_blocks: Callable[[Config], bool] = lambda _config: False
    """Whether a layer adds something to the stream beside its two blocks."""
    kv_layer: Callable[[Config, int], int] = lambda _config, layer: layer
    """The layer whose keys and values a layer attends to; ``{kv}`` in the name of an axis."""
    layer_scale: str = ""
    """A buffer of one number by which a layer multiplies the stream that it returns."""
    pad: Callable[[Config, Widths], dict[str, int]] | None = None
    """The nearest widths, none smaller, that the stock class accepts; only what changes."""
    multiples: Mapping[str, int] = field(default_factory=dict[str, int])
    """Axis kind -> multiple that the stock class's kernels require of its width."""
    whole_heads: Callable[[Config], bool] = lambda _config: False
    """Whether no stock class takes a hidden size that is no multiple of the heads."""
    rigid: tuple[str, ...] = ()
    """Axis kinds that cannot be padded with zeros: the wider model computes something else."""
    traced: bool = False
    """Whether the family was traced and proven on a small model instead of declared."""
    unreached: Mapping[str, str] = field(default_factory=dict[str, str])
    """Axis kind or module that tracing could not follow or prove -> why; it is never cut."""
    defaults: Mapping[str, Config] = field(default_factory=dict[str, Config])
    """``model_type`` -> default values of configuration fields that a config.json may leave out."""
    aliases: Mapping[str, str] = field(default_factory=dict[str, str])
    """Usual name of a configuration field -> its name in this family's configurations."""
    containers: tuple[str, ...] = ()
    """``model_type``s to export as, in order of preference: the first that accepts the shape."""

    @property
    def layers(self) -> str:
        """Path of the list of layers: ``model.layers``."""
        return self.layer.partition(".{i}")[0]

    def complete(self, config: Config) -> Fields:
        """Returns the configuration with the defaults that its file leaves out."""
        return {**self.defaults.get(config.get("model_type", ""), {}), **config}

    def holds(self, when: str, config: Config, layer: int) -> bool:
        """Returns whether the condition of an axis (``Axis.when``) is true in a layer. Of several,
        joined by `` & ``, all must be.
        """
        if not when:
            return True
        if " & " in when and when not in self.flags:
            return all(self.holds(part, config, layer) for part in when.split(" & "))
        flag = when.removeprefix("!")
        derived = self.flags.get(flag)
        value = derived(config, layer) if derived else bool(config.get(flag, False))
        return value != when.startswith("!")

    def read(self, config: Config, name: str) -> Any:
        """Reads a field by its usual name. Raises KeyError when it is missing."""
        if name == "num_hidden_layers" and self.counted is not None:
            return self.counted(config)
        return config[self.aliases.get(name, name)]


Shapes = Mapping[str, tuple[int, ...]]
"""Parameter name -> shape."""
Scores = dict[str, "Tensor"]
"""Group set name -> ``score_G`` in the parent's unit order; ``inf`` where a unit is removed."""
Plan = dict[str, list[int]]
"""Group set name -> mini-groups to remove, by number in the parent. Plain JSON."""


def in_layer(widths: Widths, layer: int) -> dict[str, int]:
    """Widths by axis name -> widths by kind in one layer (its number in the parent)."""
    return {axis_kind(n): w for n, w in widths.items() if axis_layer(n) in (None, layer)}


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
    parts: int
    after: float
    until: float


@dataclass(frozen=True)
class GroupSet:
    """All mini-groups along one axis, and the limits on their removal.

    Scope ``lockstep``: every set of a kind loses equally many; ``per_layer``: each set is cut on
    its own; ``global``: the sets of a kind are one pool, cut by saliency, of which ``floor`` units
    stay. A set keeps ``minimum`` units, and every width on the way is a multiple of ``round_to``.
    With ``finish_on``, units are cut one at a time and the final width is a multiple of it. Of
    each of ``parts`` equal stretches equally many units go, one of each at a time. The units are
    candidates while the removed fraction of the model's parameters is in
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
    parts: int = 1
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

    def reading(self, params: Mapping[str, int]) -> dict[str, Tensor]:
        """Returns the inputs that each unit owns, ``[G, B]``, of every linear layer that reads the
        units. ``params``: weight -> the dimension that its inputs run along. The inputs of a unit
        may lie in several stretches of one layer (CodeGen's heads do).
        """
        import torch

        found: dict[str, list[Tensor]] = {}
        for m in self.members:
            if params.get(m.param) == m.dim:
                found.setdefault(m.param, []).append(m.index_GB)
        return {param: torch.cat(each, 1) for param, each in found.items()}


def is_gain(param: str) -> bool:
    """Whether a parameter is the gain of a norm (Cohere's within heads have a row for each)."""
    return "norm" in param.rpartition(".")[0].rpartition(".")[2]


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
    parts: Widths = field(default_factory=dict[str, int])
    """Axis kind -> stretches of its units that lose equally many."""
    no_depth: str = ""
    """Why layers cannot be removed; empty when they can."""
    staying: frozenset[str] = frozenset()
    """Layers and blocks that cannot be removed (``layer.3``)."""
    residual_scale: float = 1.0
    """What a block's output is multiplied by before it is added to the stream."""

    @cached_property
    def queries(self) -> Mapping[int, Segment]:
        """Layer -> the segment of its query heads; of several the one with the least positions per
        head (a fused projection holds queries, keys and values in one).
        """
        kind = "query" if self.axes("query") else "attention"
        found: dict[int, Segment] = {}
        held = (s for s in self.segments if len(self.shapes[s.param]) > 1)
        matrices = (s for s in held if not is_gain(s.param))
        for segment in sorted(matrices, key=lambda s: -s.positions_per_unit):
            layers = [axis_layer(name) for name in segment.names if axis_kind(name) == kind]
            found |= {layer: segment for layer in layers if layer is not None}
        return found

    def axes(self, kind: str) -> list[str]:
        """Names of the axes of one kind, in layer order: ``ffn`` -> ``ffn.0, ffn.1, ...``."""
        return [*self._by_kind.get(kind, ())]

    @cached_property
    def _by_kind(self) -> dict[str, list[str]]:
        """Axis kind -> the names of its axes."""
        found: dict[str, list[str]] = {}
        for name in self.by_axis:
            found.setdefault(axis_kind(name), []).append(name)
        return found

    def sets(
        self, kind: str, *, skip_layers: Iterable[int] = (), **limits: Unpack[Limits]
    ) -> Iterator[GroupSet]:
        """Yields a group set for every axis of ``kind``, with these ``limits``; a ``minimum`` above
        the width cuts nothing. ``skip_layers`` get none (negative: from the end), and a kind that
        the family never cuts has none.
        """
        if kind in self.family.fixed:
            return
        last = max(self.depth.layers, default=-1) + 1
        skipped = {i + last if i < 0 else i for i in skip_layers}
        minimum = max(limits.get("minimum", 1), self.floors.get(kind, 0))
        limits["parts"] = self.parts.get(kind, 1)
        limits["round_to"] = math.lcm(limits.get("round_to", 1), limits["parts"])
        for name in self.axes(kind):
            if (layer := axis_layer(name)) not in skipped and name not in self.staying:
                limits["minimum"] = min(minimum, self.widths[name])
                yield GroupSet(name, kind, layer, self.widths[name], self.by_axis[name], **limits)

    def living(self, name: str, widths: Widths) -> bool:
        """Whether any parameter with this axis is left in a model of these widths; of a layer or
        block, any that it owns whole.
        """
        wide = {**self.widths, **widths}
        owned = [s for s in self.by_axis[name] if (s.dim == WHOLE) is (axis_kind(name) in DEPTH)]
        return any(self.numel(side.param, wide) for side in owned)

    def count(self, widths: Widths | None = None) -> int:
        """Parameter count of the model with these widths (missing axes keep theirs)."""
        wide = {**self.widths, **(widths or {})}
        return sum(self.numel(param, wide) for param in self.shapes)

    def stacked(self, param: str) -> bool:
        """Whether a parameter holds the matrices of several experts, and is no convolution."""
        kinds = {axis_kind(name) for segment in self.by_param[param] for name in segment.names}
        return len(self.shapes[param]) > 2 and "kernel" not in kinds

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

    def length(self, param: str, dim: int, widths: Widths) -> int:
        """Positions along one dimension of a parameter in a model of these widths."""
        return sum(s.length(widths) for s in self.by_param[param] if s.dim == dim)

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
    and EOS policy is in ``data/stream.py``.
    """

    bos_id: int | None
    eos_id: int | None
    adds_bos: bool
    """Whether the tokenizer itself puts BOS in front of a text."""
    vocab_size: int
    fingerprint: str
    """Hash of everything that determines the token ids of a text."""

    stop_id: int | None
    """What ends an answer when the model generates."""
    unknown_id: int | None
    """The token for what the vocabulary cannot spell."""
    special: Mapping[int, str]
    """Special tokens: id -> how a text would spell it."""
    template: str | None
    """The chat template."""

    def encode(self, texts: list[str]) -> list[list[int]]: ...

    def offsets(self, texts: list[str], *, special: bool) -> list[tuple[list[int], list[Any]]]:
        """The ids of each text, and the characters ``(start, end)`` that each token stands for.
        ``special``: special tokens that a text spells are those, not text.
        """
        ...

    def render(self, turns: Sequence[Mapping[str, str]], *, generation: bool) -> str:
        """Writes messages with the chat template; ``generation``: with the words behind them that
        ask for an answer. Raises ValueError if it refuses them.
        """
        ...

    def decode(self, ids: list[int]) -> str: ...


@dataclass(frozen=True)
class Batch:
    """Packed sequences: token ids ``ids_BT``, the domain and sample number of each row, a mask of
    the tokens that enter the loss (None: all), and the position of each token in its document
    where documents are isolated (None: in its row).
    """

    ids_BT: Tensor
    domains: tuple[str, ...]
    samples: tuple[tuple[str, int], ...]
    """(domain, running number of the sample in that domain's stream) for each row."""
    trained_BT: Tensor | None = None
    positions_BT: Tensor | None = None


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
