"""An architecture as data: named axes on the dimensions of its parameters, and the sizes and module
paths that depend on them. Declarations are in ``model/families``; ``groups/axes.py`` resolves them
for one model to an ``AxisMap`` (``types.py``). Imports the standard library alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

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
    the layer. A name may be a product of axes, outer to inner, joined by ``/`` (query rows: KV
    heads, each with its query heads). ``positions_per_unit`` is a key of
    ``Family.positions_per_unit``: how many positions one unit of the innermost axis owns. Several
    axes declared on one dimension are segments of it, in the order of the declaration (fused
    projections). ``when`` is a configuration flag, or a key of ``Family.flags``, that must be true
    (``!flag``: false) for the parameter to exist.
    """

    param: str
    dim: int
    name: str
    positions_per_unit: str = "one"
    when: str = ""


Config = Mapping[str, Any]
"""A Hugging Face configuration (the content of a config.json) as plain values."""
Fields = dict[str, Any]
"""Configuration fields to set, as plain values."""
ModuleSizes = dict[str, dict[str, int | list[int]]]
"""Path of a module in its layer -> attribute -> value; ``config.x`` stands for field ``x`` of a
configuration that the module has to itself.
"""


@dataclass(frozen=True)
class Sublayer:
    """A part of a layer that can be removed on its own. The module ``silent`` (which returns
    ``outputs`` values) is replaced by one that returns zeros, so that it adds nothing to the
    residual stream; the modules ``through`` become identities. Paths are relative to the layer.
    """

    silent: str
    outputs: int
    through: tuple[str, ...]

    @property
    def modules(self) -> tuple[str, ...]:
        """Modules whose parameters are removed."""
        return (self.silent, *self.through)


@dataclass(frozen=True)
class Depth:
    """Layers that a model has: their numbers in the parent, in order, and the sublayers removed
    from them (``attention_block.3``, by number in the parent).
    """

    layers: tuple[int, ...]
    absent: frozenset[str] = frozenset()

    def without(self, gone: Iterable[str]) -> Depth:
        """Returns the depth after ``layer.3``, ``mlp_block.7``, ... are removed as well."""
        names = frozenset(gone)
        layers = tuple(i for i in self.layers if f"layer.{i}" not in names)
        kept = {f"{kind}.{i}" for kind in DEPTH for i in layers}
        return Depth(layers, (self.absent | names) & kept)


def _nothing(_config: Config, _widths: Widths) -> ModuleSizes:
    return {}


def _possible(_config: Config) -> str:
    return ""


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
    required: tuple[str, ...]
    """Configuration fields that must be present, as positive integers."""
    norms: tuple[str, ...]
    """Gains of the norms that average over an axis that can be cut (patterns with ``{i}``)."""
    layer: str = "model.layers.{i}"
    """The path of a layer."""
    inputs: int = 1
    """The input dimension of a linear layer's weight (GPT-2's Conv1D: 0)."""
    sublayers: Mapping[str, Sublayer] = field(default_factory=dict)
    """``attention_block`` and ``mlp_block``, where they can be removed on their own."""
    flags: Mapping[str, Callable[[Config, int], bool]] = field(default_factory=dict)
    """Conditions for ``Axis.when`` that are computed from the configuration, per layer."""
    attributes: Callable[[Config, Widths], ModuleSizes] = _nothing
    """Sizes that modules of a layer keep as attributes, for that layer's widths per axis kind."""
    centred: bool = False
    """Whether the norms are LayerNorms: they subtract the mean of what they average over."""
    gain_offset: float = 0.0
    """What the norms add to their stored gain (Gemma: 1)."""
    scaled_embedding: str = ""
    """An embedding whose output the class multiplies by the root of the hidden size."""
    fed_by: Mapping[str, str] = field(default_factory=dict)
    """Norm within attention -> the linear layer whose output it normalises (patterns of modules).
    A stock class has one epsilon for all norms; where these need another one, the linear layer's
    weights are scaled instead.
    """
    final_norm: str = "model.norm.weight"
    epsilon_field: str = "rms_norm_eps"
    epsilon_attribute: str = "variance_epsilon"
    router: str = ""
    """The router of a mixture of experts (pattern)."""
    floors: Mapping[str, Callable[[Config], int]] = field(default_factory=dict)
    """Axis kind -> minimum width, whatever the recipe says (experts: as many as per token)."""
    fixed: tuple[str, ...] = ("vocab", "head_dim")
    """Axis kinds that no removal touches."""
    approximate: Mapping[str, str] = field(default_factory=dict)
    """Axis kind -> why a removal changes more than the removed units' own contribution."""
    depth_fields: Callable[[Config, tuple[int, ...]], Fields] | None = None
    """Further configuration fields of a model that keeps only these layers (lists per layer)."""
    no_depth: Callable[[Config], str] = _possible
    """Why layers cannot be removed in this configuration; empty when they can."""
    pad: Callable[[Config, Widths], dict[str, int]] | None = None
    """The nearest widths, none smaller, that the stock class accepts; only what changes."""
    multiples: Mapping[str, int] = field(default_factory=dict)
    """Axis kind -> multiple that the stock class's kernels require of its width."""
    rigid: tuple[str, ...] = ()
    """Axis kinds that cannot be padded with zeros: the wider model computes something else."""
    traced: bool = False
    """Whether the family was traced and proven on a small model instead of declared."""
    unreached: Mapping[str, str] = field(default_factory=dict)
    """Axis kind or module that tracing could not follow or prove -> why; it is never cut."""
    defaults: Mapping[str, Config] = field(default_factory=dict)
    """``model_type`` -> default values of configuration fields that a config.json may leave out."""
    aliases: Mapping[str, str] = field(default_factory=dict)
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

    def read(self, config: Config, name: str) -> Any:
        """Reads a field by its usual name. Raises KeyError when it is missing."""
        return config[self.aliases.get(name, name)]
