"""What the engine must know of an architecture, as data. Declarations are in ``model/families``,
their resolution for one model is in ``types.py``. Importing it costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Widths = Mapping[str, int]
"""Axis name (or kind) -> number of units on it."""

WHOLE = -1
"""Instead of a dimension: all of the parameter, which goes as one piece (a layer, a block)."""

EXPERT_ROW = 8
"""Grouped kernels for experts want rows of 16 bytes: 8 numbers of the narrowest type in use."""

DEPTH = ("layer", "attention_block", "mlp_block")
"""Kinds whose units are modules, not positions; every layer has one unit of each."""


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
    """One side of one parameter: dimension ``dim`` of ``param`` carries the axis ``name``.

    Two sides with the same axis name shrink together. ``{i}`` in ``param`` and ``name`` stands for
    the layer. A name may be a product of axes, outer to inner, joined by ``/`` (query rows: KV
    heads, each with its query heads). ``positions_per_unit`` names how many positions one unit of
    the innermost owns (``"one"``, or a key of ``Family.blocks``). Several axes on one dimension are
    segments, one behind the other, in the order of the declaration (fused projections). ``when``
    is a configuration flag, or a key of ``Family.flags``, that must be true (``!flag``: false) for
    the parameter to exist.
    """

    param: str
    dim: int
    name: str
    positions_per_unit: str = "one"
    when: str = ""


Config = Mapping[str, Any]
"""A Hugging Face configuration as plain values."""


@dataclass(frozen=True)
class Sublayer:
    """A part of a layer that can go on its own: ``silent`` adds nothing to the residual stream any
    more (a module that returns ``outputs`` values), ``through`` pass on what they get. Paths are
    relative to the layer.
    """

    silent: str
    outputs: int
    through: tuple[str, ...]

    @property
    def modules(self) -> tuple[str, ...]:
        """Everything whose parameters go."""
        return (self.silent, *self.through)


@dataclass(frozen=True)
class Depth:
    """What of the parent's depth is there: the original numbers of the layers, in order, and the
    sublayers that are missing in them (``attention_block.3``, by original number).
    """

    layers: tuple[int, ...]
    absent: frozenset[str] = frozenset()

    def without(self, gone: Iterable[str]) -> Depth:
        """After ``layer.3``, ``mlp_block.7``, ... have gone as well."""
        names = frozenset(gone)
        layers = tuple(i for i in self.layers if f"layer.{i}" not in names)
        kept = {f"{kind}.{i}" for kind in DEPTH for i in layers}
        return Depth(layers, (self.absent | names) & kept)


def _nothing(_config: Config, _widths: Widths) -> dict[str, dict[str, Any]]:
    return {}


def _possible(_config: Config) -> str:
    return ""


@dataclass(frozen=True)
class Family:
    """What the engine must know of an architecture, as data (``model/families.py``)."""

    name: str
    model_types: tuple[str, ...]
    axes: tuple[Axis, ...]
    units: Mapping[str, Callable[[Config, int], int]]
    """Axis kind -> how many units the configuration gives it (in this layer)."""
    blocks: Mapping[str, Callable[[Config], int]]
    """Block name -> positions per unit."""
    resize: Callable[[Config, Widths], dict[str, Any]]
    """Configuration fields of a model with these widths per axis kind, the same in all layers."""
    required: tuple[str, ...]
    """Configuration fields that must be there, positive whole numbers all."""
    norms: tuple[str, ...]
    """Gains of the norms that average over an axis that can be cut (patterns with ``{i}``)."""
    layer: str = "model.layers.{i}"
    """The path of a layer."""
    inputs: int = 1
    """The dimension of a linear layer's weight that its inputs run along (GPT-2: 0)."""
    sublayers: Mapping[str, Sublayer] = field(default_factory=dict)
    """``attention_block`` and ``mlp_block``, where they can go on their own."""
    flags: Mapping[str, Callable[[Config, int], bool]] = field(default_factory=dict)
    """Conditions for ``Axis.when`` that are no plain configuration flag."""
    attributes: Callable[[Config, Widths], Mapping[str, Mapping[str, Any]]] = _nothing
    """What modules of a layer remember about their sizes besides their tensors: path in the layer
    -> attribute -> value, for the widths per axis kind of that layer. ``config.x`` stands for a
    configuration of the module's own.
    """
    centred: bool = False
    """The norms are LayerNorms: they subtract the mean of what they average over."""
    gain_offset: float = 0.0
    """What the norms add to their stored gain (Gemma: 1)."""
    scaled_embedding: str = ""
    """An embedding whose output the class multiplies by the root of the hidden size."""
    fed_by: Mapping[str, str] = field(default_factory=dict)
    """Norm within a block -> the linear layer whose output it normalises (patterns of modules). All
    norms of a class share one epsilon; where these need another one, their input is scaled.
    """
    final_norm: str = "model.norm.weight"
    epsilon_field: str = "rms_norm_eps"
    epsilon_attribute: str = "variance_epsilon"
    router: str = ""
    """The module that sends tokens to experts (pattern)."""
    floors: Mapping[str, Callable[[Config], int]] = field(default_factory=dict)
    """Axis kind -> units that must stay whatever the recipe says (experts per token)."""
    fixed: tuple[str, ...] = ("vocab", "head_dim")
    """Axis kinds that no removal touches."""
    approximate: Mapping[str, str] = field(default_factory=dict)
    """Axis kind -> why a removal changes more than what the removed units did."""
    depth_fields: Callable[[Config, tuple[int, ...]], dict[str, Any]] | None = None
    """Configuration fields beside the usual ones when only these layers are kept."""
    no_depth: Callable[[Config], str] = _possible
    """Why layers cannot go in this configuration; empty when they can."""
    pad: Callable[[Config, Widths], dict[str, int]] | None = None
    """The nearest widths, none smaller, that the stock class accepts; only what changes."""
    multiples: Mapping[str, int] = field(default_factory=dict)
    """Axis kind -> what the stock class's kernels want its width to be a multiple of."""
    rigid: tuple[str, ...] = ()
    """Axis kinds that no zeros can fill up: a wider class would compute something else."""
    traced: bool = False
    """Nobody declared it: a tracer proposed it, and it was proven on a small model."""
    unreached: Mapping[str, str] = field(default_factory=dict)
    """What a tracer could not follow or prove -> why; nothing of it is cut."""
    defaults: Mapping[str, Config] = field(default_factory=dict)
    """``model_type`` -> configuration fields that files leave out when they have these values."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Usual name of a configuration field -> what this family's files call it."""
    containers: tuple[str, ...] = ()
    """``model_type``s to export as, in order of preference: the first that accepts the shape."""

    @property
    def layers(self) -> str:
        """Path of the list of layers: ``model.layers``."""
        return self.layer.partition(".{i}")[0]

    def complete(self, config: Config) -> dict[str, Any]:
        """A configuration with what its file left out."""
        return {**self.defaults.get(config.get("model_type", ""), {}), **config}

    def read(self, config: Config, name: str) -> Any:
        """A field of a configuration by its usual name; KeyError when it is not there."""
        return config[self.aliases.get(name, name)]
