"""A family as plain data: what tracing proposes, what goes from one process to another, and what a
person can paste as a declaration.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from effcompress.types import Axis, Config, Family, Widths, axis_kind, in_layer

Product = tuple[str, ...]
"""Axis kinds and block names, to be multiplied: ``("attention", "query", "head")``."""

NO_DEPTH = "the architecture is not declared, and tracing does not find out which layers can go"


@dataclass(frozen=True)
class Draft:
    """A proposed family of one configuration. Numbers in ``blocks`` and ``widths`` are those of
    that model, structure is everything else.
    """

    model_type: str
    layer: str
    """The path of a layer, with ``{i}``."""
    axes: tuple[Axis, ...]
    kept: tuple[str, ...]
    """Axis kinds that nothing may cut."""
    blocks: Mapping[str, int]
    """``one``, ``head``, ``head_3``, ... -> positions per unit."""
    widths: Widths = field(default_factory=dict)
    """Axis name -> units."""
    fields: Mapping[str, Product] = field(default_factory=dict)
    """Configuration field -> what it holds."""
    attributes: Mapping[str, Mapping[str, Product]] = field(default_factory=dict)
    """Module of a layer -> attribute -> what it remembers."""
    norms: tuple[str, ...] = ()
    centred: bool = False
    gain_offset: float = 0.0
    epsilon_attribute: str = ""
    epsilon_field: str = ""
    final_norm: str = ""
    approximate: Mapping[str, str] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Usual name of a configuration field -> what this architecture calls it."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Configuration fields that the file may have left out."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Axis kind or module -> why nothing of it can be cut."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """All axis kinds, in order of appearance."""
        names = (name for axis in self.axes for name in axis.name.split("/"))
        return tuple(dict.fromkeys(axis_kind(name) for name in names))

    def with_heads(self, head: int) -> Draft:
        """The same structure with heads of another width."""
        times = {name: int(name.partition("_")[2] or 1) for name in self.blocks if name != "one"}
        return replace(self, blocks={"one": 1} | {name: n * head for name, n in times.items()})

    def to_json(self) -> str:
        """All of it, for another process; ``draft_from_json`` reads it."""
        return json.dumps(asdict(self))


def draft_from_json(text: str) -> Draft:
    """What ``Draft.to_json`` wrote."""
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
    """The family that the engine works with."""
    return Family(
        name=draft.model_type,
        model_types=(draft.model_type,),
        axes=draft.axes,
        units={kind: _units(draft, kind) for kind in draft.kinds},
        blocks={name: _constant(size) for name, size in draft.blocks.items()},
        resize=lambda _, widths: _resize(draft, widths),
        required=(),
        norms=draft.norms,
        layer=draft.layer,
        attributes=lambda _, widths: _remembered(draft, widths),
        centred=draft.centred,
        gain_offset=draft.gain_offset,
        final_norm=draft.final_norm,
        epsilon_field=draft.epsilon_field,
        epsilon_attribute=draft.epsilon_attribute,
        fixed=draft.kept,
        approximate=draft.approximate,
        # Zeros would move the mean that a LayerNorm subtracts.
        rigid=("hidden",) if draft.centred else (),
        no_depth=lambda _: NO_DEPTH,
        defaults={draft.model_type: draft.defaults},
        aliases=draft.aliases,
        traced=True,
        unreached=draft.left_out,
    )


def value(product: Iterable[str], widths: Widths, blocks: Mapping[str, int]) -> int:
    """A product of widths per axis kind and of blocks. KeyError for a kind that is not there."""
    return math.prod(widths[name] if name in widths else blocks[name] for name in product)


def _units(draft: Draft, kind: str) -> Callable[[Config, int], int]:
    def units(_config: Config, layer: int) -> int:
        found = draft.widths.get(f"{kind}.{layer}")
        return draft.widths[kind] if found is None else found

    return units


def _constant(size: int) -> Callable[[Config], int]:
    return lambda _config: size


def _resize(draft: Draft, widths: Widths) -> dict[str, Any]:
    known = {**in_layer(draft.widths, 0), **widths}
    return {name: value(product, known, draft.blocks) for name, product in draft.fields.items()}


def _remembered(draft: Draft, widths: Widths) -> dict[str, dict[str, Any]]:
    return {
        path: {name: value(product, widths, draft.blocks) for name, product in held.items()}
        for path, held in draft.attributes.items()
    }


Held = Mapping[Product, str]
"""What is held -> the configuration field that holds it."""


def declaration(draft: Draft) -> str:
    """Python source of a ``Family``. Sizes are read from the configuration where a field holds
    them; the others are ``...``, to be filled in.
    """
    return "\n".join(
        [
            *(f"# {what}: {why}" for what, why in draft.left_out.items()),
            f"{draft.model_type.upper()} = Family(",
            f"    name={draft.model_type!r},",
            f"    model_types=({draft.model_type!r},),",
            *_sizes_source(draft),
            *_memory(draft),
            *_traits(draft),
            ")",
        ]
    )


def _sizes_source(draft: Draft) -> Iterator[str]:
    held = {product: name for name, product in draft.fields.items()}
    yield "    axes=("
    for axis in draft.axes:
        block = f", {axis.positions_per_unit!r}" if axis.positions_per_unit != "one" else ""
        yield f"        Axis({axis.param!r}, {axis.dim}, {axis.name!r}{block}),"
    yield "    ),"
    yield "    units={"
    for kind in draft.kinds:
        yield f"        {kind!r}: lambda c, _: {_units_source(kind, held)},"
    yield "    },"
    yield "    blocks={"
    for name in draft.blocks:
        yield f"        {name!r}: lambda c: {_block(name, held)},"
    yield "    },"


def _memory(draft: Draft) -> Iterator[str]:
    held = {product: name for name, product in draft.fields.items()}
    yield "    resize=lambda c, w: {"
    for name, product in draft.fields.items():
        yield f"        {name!r}: {_times(product, draft, held)},"
    yield "    },"
    yield "    attributes=lambda c, w: {"
    for path, remembered in draft.attributes.items():
        yield f"        {path!r}: {{"
        for name, product in remembered.items():
            yield f"            {name!r}: {_times(product, draft, held)},"
        yield "        },"
    yield "    },"


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
    return " * ".join(_block(n, held) if n in draft.blocks else f"w[{n!r}]" for n in product)


def _units_source(kind: str, held: Held) -> str:
    if (kind,) in held:
        return f"c[{held[kind,]!r}]"
    heads, kv = held.get(("attention", "query")), held.get(("attention",))
    if kind == "query" and heads and kv:
        return f"c[{heads!r}] // c[{kv!r}]"
    return "c['vocab_size']" if kind == "vocab" else "..."


def _block(name: str, held: Held) -> str:
    if name == "one":
        return "1"
    hidden = held.get(("hidden",))
    heads = held.get(("attention", "query")) or held.get(("attention",))
    if not hidden or not heads:
        return "..."
    head = f"(c.get('head_dim') or c[{hidden!r}] // c[{heads!r}])"
    times = name.partition("_")[2]
    return f"{times} * {head}" if times else head
