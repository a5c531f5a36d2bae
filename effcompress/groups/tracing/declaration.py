"""A draft -> the text of a declaration, for a person to correct and to paste."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from effcompress.groups.tracing.draft import NO_DEPTH, Draft, Product

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
            *_sizes(draft),
            *_memory(draft),
            *_traits(draft),
            ")",
        ]
    )


def _sizes(draft: Draft) -> Iterator[str]:
    held = {product: name for name, product in draft.fields.items()}
    yield "    axes=("
    for axis in draft.axes:
        block = f", {axis.positions_per_unit!r}" if axis.positions_per_unit != "one" else ""
        yield f"        Axis({axis.param!r}, {axis.dim}, {axis.name!r}{block}),"
    yield "    ),"
    yield "    units={"
    for kind in draft.kinds:
        yield f"        {kind!r}: lambda c, _: {_units(kind, held)},"
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


def _units(kind: str, held: Held) -> str:
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
