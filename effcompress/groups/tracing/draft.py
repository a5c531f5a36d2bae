"""A proposed family as plain data: made by tracing, sent between processes as JSON, turned into a
``Family``, or written as a plugin file (``template``).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from effcompress.errors import CoverageError
from effcompress.types import (
    DEPTH,
    EXPERT_ROW,
    UNTOUCHED_EXPERTS,
    Axis,
    Config,
    Family,
    Sublayer,
    Widths,
    axis_kind,
)

if TYPE_CHECKING:
    from effcompress.groups.tracing.anatomy import Anatomy

Product = tuple[str, ...]
"""Factors of a size: axis kinds and names of ``positions_per_unit``, as in ``("attention", "query",
"head")``.
"""

_OWN = "part of dim "


@dataclass(frozen=True)
class Draft:
    """A proposed family, traced on one configuration. ``positions_per_unit`` and ``widths`` hold
    numbers of that model; everything else is structure.
    """

    model_type: str
    layer: str
    """The path of a layer, with ``{i}``."""
    axes: tuple[Axis, ...]
    kept: tuple[str, ...]
    """Axis kinds that are never cut."""
    positions_per_unit: Mapping[str, int]
    """``one``, ``head``, ``head_3``, ... -> positions per unit."""
    widths: Widths = field(default_factory=dict)
    """Axis name -> units."""
    fields: Mapping[str, Product] = field(default_factory=dict)
    """Configuration field -> the size that it states."""
    attributes: Mapping[str, Mapping[str, Product]] = field(default_factory=dict)
    """Module of a layer -> attribute -> the size that it keeps."""
    norms: tuple[str, ...] = ()
    centred: bool = False
    gain_offset: float = 0.0
    epsilon_attribute: str = ""
    epsilon_field: str = ""
    scales_stream: bool = False
    """Whether norms over axes that are never cut have the same epsilon, and a stock class can do
    with another scale of the residual stream in place of another one.
    """
    final_norm: str = ""
    approximate: Mapping[str, str] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Usual name of a configuration field -> its name in this architecture."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Default values of configuration fields that a config.json may leave out."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Axis kind or module -> why it is never cut."""
    looks: tuple[str, ...] = ()
    """What tells kinds of layers apart (``Anatomy.looks``); ``Axis.when`` counts them from 0."""
    layers: tuple[int, ...] = ()
    """The kind of every layer."""
    held: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Module of ``attributes`` -> the kinds of layers that have it."""
    sublayers: Mapping[str, Sublayer] = field(default_factory=dict)
    """Blocks of a layer that can be removed on their own."""
    stays: tuple[int, ...] = ()
    """Kinds of layers of which the last layer stays."""
    no_depth: str = "not proven yet"
    """Why layers cannot be removed; empty when they can."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """All axis kinds, in order of appearance."""
        names = (name for axis in self.axes for name in axis.name.split("/"))
        return tuple(dict.fromkeys(axis_kind(name) for name in names))

    def on(self, anatomy: Anatomy) -> Draft:
        """Returns the same structure for the layers and the heads of another model.

        Raises CoverageError for a layer of a kind that was not traced.
        """
        for i, look in enumerate(anatomy.looks):
            if look not in self.looks:
                raise CoverageError(
                    "no layer of the small model that was traced has these parameters",
                    where=anatomy.layer.replace("{i}", str(i)),
                )
        layers = tuple(map(self.looks.index, anatomy.looks))
        per_unit = {name: _positions(name, anatomy) for name in self.positions_per_unit}
        return replace(self, layers=layers, positions_per_unit=per_unit)

    def to_json(self) -> str:
        """Serialises the draft; ``draft_from_json`` reads it."""
        plain = asdict(replace(self, sublayers={}))
        parts = {kind: _plain(part) for kind, part in self.sublayers.items()}
        return json.dumps({**plain, "sublayers": parts})


def draft_from_json(text: str) -> Draft:
    """Reads what ``Draft.to_json`` wrote."""
    data: dict[str, Any] = json.loads(text)
    data["axes"] = tuple(Axis(**axis) for axis in data["axes"])
    data["fields"] = {name: tuple(product) for name, product in data["fields"].items()}
    data["attributes"] = {
        path: {name: tuple(product) for name, product in held.items()}
        for path, held in data["attributes"].items()
    }
    data["held"] = {path: tuple(kinds) for path, kinds in data["held"].items()}
    data["sublayers"] = {kind: _sublayer(part) for kind, part in data["sublayers"].items()}
    for name in ("kept", "norms", "looks", "layers", "stays"):
        data[name] = tuple(data[name])
    return Draft(**data)


def _plain(part: Sublayer) -> dict[str, Any]:
    return {n: getattr(part, n) for n in ("silent", "outputs", "through", "behind")} | {
        "beside": part.beside,
        "instead": part.instead,
    }


def _sublayer(part: dict[str, Any]) -> Sublayer:
    instead = tuple((path, outputs) for path, outputs in part["instead"])
    listed = {"through": tuple(part["through"]), "beside": tuple(part["beside"])}
    return Sublayer(**{**part, **listed, "instead": instead})


def family_from(draft: Draft) -> Family:
    """Turns a draft into a family."""

    def sizes(products: Mapping[str, Product], widths: Widths) -> dict[str, Any]:
        per_unit = draft.positions_per_unit
        return {name: value(product, widths, per_unit) for name, product in products.items()}

    return Family(
        name=draft.model_type,
        model_types=(draft.model_type,),
        axes=draft.axes,
        units={kind: partial(_units, draft, kind) for kind in draft.kinds},
        positions_per_unit={n: lambda _, k=k: k for n, k in draft.positions_per_unit.items()},
        resize=lambda _, widths: sizes(draft.fields, {**anywhere(draft.widths), **widths}),
        required=(),
        norms=draft.norms,
        layer=draft.layer,
        attributes=lambda _, widths: {
            path: sizes(held, widths)
            for path, held in draft.attributes.items()
            if all(n in widths or n in draft.positions_per_unit for p in held.values() for n in p)
        },
        module_there=lambda path, i: draft.layers[i] in draft.held.get(path, draft.layers),
        flags={w: partial(_is_of, draft, w) for w in {a.when for a in draft.axes} - {""}},
        centred=draft.centred,
        gain_offset=draft.gain_offset,
        final_norm=draft.final_norm,
        epsilon_field=draft.epsilon_field,
        epsilon_attribute=draft.epsilon_attribute,
        scales_stream=draft.scales_stream,
        fixed=draft.kept,
        approximate=draft.approximate,
        # Channels of zeros would change the mean and the variance of a LayerNorm.
        rigid=("hidden",) if draft.centred else (),
        # Grouped kernels of experts want it, and experts stay as they are.
        multiples={"hidden": EXPERT_ROW} if UNTOUCHED_EXPERTS in draft.left_out else {},
        sublayers=draft.sublayers,
        norms_behind=lambda _: any(part.behind for part in draft.sublayers.values()),
        staying=lambda _: [
            f"{part}.{_last(draft.layers, kind)}" for kind in draft.stays for part in DEPTH[:2]
        ],
        no_depth=lambda _: draft.no_depth,
        defaults={draft.model_type: draft.defaults},
        aliases=draft.aliases,
        traced=True,
        unreached=draft.left_out,
    )


def value(product: Iterable[str], widths: Widths, per_unit: Mapping[str, int]) -> int:
    """A product of widths per axis kind and of positions per unit. KeyError for an unknown name."""
    return math.prod(widths[name] if name in widths else per_unit[name] for name in product)


def own_length(pattern: str, dim: int) -> str:
    """Names the positions per KV head of a dimension that is no multiple of a head's width."""
    return f"{_OWN}{dim} of {pattern}"


def _positions(name: str, anatomy: Anatomy) -> int:
    """What a key of ``positions_per_unit`` is in another model: ``head_3`` three heads' width, the
    key of ``own_length`` an equal part of that dimension.
    """
    if name == "one":
        return 1
    if not name.startswith(_OWN):
        return int(name.partition("_")[2] or 1) * (anatomy.head_dim or 1)
    dim, _, pattern = name.removeprefix(_OWN).partition(" of ")
    shape = next(s for p, s in anatomy.shapes.items() if anatomy.pattern(p) == pattern)
    return shape[int(dim)] // anatomy.heads


def anywhere(widths: Widths) -> dict[str, int]:
    """Units per axis kind, in the first layer that has it."""
    found: dict[str, int] = {}
    for name, units in widths.items():
        found.setdefault(axis_kind(name), units)
    return found


def _last(layers: Sequence[int], kind: int) -> int:
    """The last layer of a kind; -1 where there is none."""
    return max((i for i, other in enumerate(layers) if other == kind), default=-1)


def _is_of(draft: Draft, when: str, _config: Config, layer: int) -> bool:
    return draft.layers[layer] in kinds_of(when)


def when_of(kinds: Iterable[int]) -> str:
    """Writes kinds of layers as a condition of an axis; ``kinds_of`` reads it."""
    return "_".join(("layers_of_kind", *map(str, kinds)))


def kinds_of(when: str) -> tuple[int, ...]:
    """Reads what ``when_of`` wrote."""
    return tuple(map(int, when.removeprefix("layers_of_kind_").split("_")))


def _units(draft: Draft, kind: str, _config: Config, layer: int) -> int:
    found = draft.widths.get(f"{kind}.{layer}")
    return draft.widths[kind] if found is None else found
