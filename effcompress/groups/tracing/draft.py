"""A proposed family as plain data: made by tracing, sent between processes as JSON, turned into a
``Family``, or written as source text of a declaration.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from effcompress.types import Axis, Config, Family, Widths, axis_kind, in_layer

Product = tuple[str, ...]
"""Factors of a size: axis kinds and names of ``positions_per_unit``, as in ``("attention", "query",
"head")``.
"""

NO_DEPTH = "the architecture is not declared, and tracing does not find out which layers can go"


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
    final_norm: str = ""
    approximate: Mapping[str, str] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Usual name of a configuration field -> its name in this architecture."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Default values of configuration fields that a config.json may leave out."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Axis kind or module -> why it is never cut."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """All axis kinds, in order of appearance."""
        names = (name for axis in self.axes for name in axis.name.split("/"))
        return tuple(dict.fromkeys(axis_kind(name) for name in names))

    def with_heads(self, head: int) -> Draft:
        """Returns the same structure with heads of another width."""
        times = {
            name: int(name.partition("_")[2] or 1)
            for name in self.positions_per_unit
            if name != "one"
        }
        return replace(
            self, positions_per_unit={"one": 1} | {name: n * head for name, n in times.items()}
        )

    def to_json(self) -> str:
        """Serialises the draft; ``draft_from_json`` reads it."""
        return json.dumps(asdict(self))


def draft_from_json(text: str) -> Draft:
    """Reads what ``Draft.to_json`` wrote."""
    data: dict[str, Any] = json.loads(text)
    data["axes"] = tuple(Axis(**axis) for axis in data["axes"])
    data["fields"] = {name: tuple(product) for name, product in data["fields"].items()}
    data["attributes"] = {
        path: {name: tuple(product) for name, product in held.items()}
        for path, held in data["attributes"].items()
    }
    data["kept"], data["norms"] = tuple(data["kept"]), tuple(data["norms"])
    return Draft(**data)


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
        resize=lambda _, widths: sizes(draft.fields, {**in_layer(draft.widths, 0), **widths}),
        required=(),
        norms=draft.norms,
        layer=draft.layer,
        attributes=lambda _, widths: {
            path: sizes(held, widths) for path, held in draft.attributes.items()
        },
        centred=draft.centred,
        gain_offset=draft.gain_offset,
        final_norm=draft.final_norm,
        epsilon_field=draft.epsilon_field,
        epsilon_attribute=draft.epsilon_attribute,
        fixed=draft.kept,
        approximate=draft.approximate,
        # Channels of zeros would change the mean and the variance of a LayerNorm.
        rigid=("hidden",) if draft.centred else (),
        no_depth=lambda _: NO_DEPTH,
        defaults={draft.model_type: draft.defaults},
        aliases=draft.aliases,
        traced=True,
        unreached=draft.left_out,
    )


def value(product: Iterable[str], widths: Widths, per_unit: Mapping[str, int]) -> int:
    """A product of widths per axis kind and of positions per unit. KeyError for an unknown name."""
    return math.prod(widths[name] if name in widths else per_unit[name] for name in product)


def _units(draft: Draft, kind: str, _config: Config, layer: int) -> int:
    found = draft.widths.get(f"{kind}.{layer}")
    return draft.widths[kind] if found is None else found


Held = Mapping[Product, str]
"""Size -> the configuration field that states it."""


def declaration(draft: Draft) -> str:
    """Writes Python source of a ``Family`` to start from. Sizes that a configuration field states
    are read from it; the others are ``...``, to be filled in.
    """
    return "\n".join(_source(draft))


def _source(draft: Draft) -> Iterator[str]:
    held = {product: name for name, product in draft.fields.items()}

    def sizes(products: Mapping[str, Product], indent: str) -> list[str]:
        return [f"{indent}{n!r}: {_times(p, draft, held)}," for n, p in products.items()]

    yield from (f"# {what}: {why}" for what, why in draft.left_out.items())
    yield f"{draft.model_type.upper()} = Family("
    yield f"    name={draft.model_type!r},"
    yield f"    model_types=({draft.model_type!r},),"
    yield "    axes=("
    for axis in draft.axes:
        more = f", {axis.positions_per_unit!r}" if axis.positions_per_unit != "one" else ""
        yield f"        Axis({axis.param!r}, {axis.dim}, {axis.name!r}{more}),"
    yield from ("    ),", "    units={")
    yield from (f"        {k!r}: lambda c, _: {_units_source(k, held)}," for k in draft.kinds)
    yield from ("    },", "    positions_per_unit={")
    yield from (f"        {n!r}: lambda c: {_per_unit(n, held)}," for n in draft.positions_per_unit)
    yield from ("    },", "    resize=lambda c, w: {", *sizes(draft.fields, " " * 8))
    yield from ("    },", "    attributes=lambda c, w: {")
    for path, remembered in draft.attributes.items():
        yield from (f"        {path!r}: {{", *sizes(remembered, " " * 12), "        },")
    yield "    },"
    yield from _traits(draft)
    yield ")"


def _traits(draft: Draft) -> Iterator[str]:
    yield "    required=(),"
    yield f"    norms={draft.norms!r},"
    yield f"    layer={draft.layer!r},"
    if draft.centred:
        yield "    centred=True,"
        yield "    rigid=('hidden',),"
    for trait in ("gain_offset", "approximate", "aliases"):
        if value := getattr(draft, trait):
            yield f"    {trait}={value!r},"
    for trait in ("epsilon_attribute", "epsilon_field", "final_norm"):
        yield f"    {trait}={getattr(draft, trait)!r},"
    yield f"    fixed={draft.kept!r},"
    yield f"    no_depth=lambda c: {NO_DEPTH!r},"


def _times(product: Product, draft: Draft, held: Held) -> str:
    return " * ".join(
        _per_unit(n, held) if n in draft.positions_per_unit else f"w[{n!r}]" for n in product
    )


def _units_source(kind: str, held: Held) -> str:
    if (kind,) in held:
        return f"c[{held[kind,]!r}]"
    heads, kv = held.get(("attention", "query")), held.get(("attention",))
    if kind == "query" and heads and kv:
        return f"c[{heads!r}] // c[{kv!r}]"
    return "c['vocab_size']" if kind == "vocab" else "..."


def _per_unit(name: str, held: Held) -> str:
    if name == "one":
        return "1"
    hidden = held.get(("hidden",))
    heads = held.get(("attention", "query")) or held.get(("attention",))
    if not hidden or not heads:
        return "..."
    head = f"(c.get('head_dim') or c[{hidden!r}] // c[{heads!r}])"
    times = name.partition("_")[2]
    return f"{times} * {head}" if times else head
