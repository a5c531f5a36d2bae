"""A draft -> the text of a declaration, for a person to correct and to paste."""

from __future__ import annotations

from collections.abc import Iterator

from effcompress.groups.draft import Draft, Product


def declaration(draft: Draft) -> str:
    """Python source of a ``Family``. Sizes are read from the configuration where a field holds
    them; the others are ``...``, to be filled in.
    """
    return "\n".join(_lines(draft))


def _lines(draft: Draft) -> Iterator[str]:
    holds = {product: name for name, product in draft.fields.items()}
    yield f"{draft.model_type.upper()} = Family("
    yield f"    name={draft.model_type!r},"
    yield f"    model_types=({draft.model_type!r},),"
    yield "    axes=("
    for axis in draft.axes:
        block = f", {axis.block!r}" if axis.block != "one" else ""
        yield f"        Axis({axis.param!r}, {axis.dim}, {axis.name!r}{block}),"
    yield "    ),"
    yield "    units={"
    for kind in draft.kinds:
        yield f"        {kind!r}: lambda c, _: {_size(kind, holds)},"
    yield "    },"
    yield "    blocks={"
    for name in draft.blocks:
        size = "1" if name == "one" else _block(name, holds)
        yield f"        {name!r}: lambda c: {size},"
    yield "    },"
    yield "    resize=lambda _, w: {"
    for field, product in draft.fields.items():
        if not set(product) & draft.blocks.keys():
            yield f"        {field!r}: {' * '.join(f'w[{kind!r}]' for kind in product)},"
    yield "    },"
    yield "    required=(),"
    yield f"    norms={draft.norms!r},"
    yield f"    layer={draft.layer!r},"
    for trait in ("centred", "gain_offset", "epsilon_attribute", "epsilon_field", "final_norm"):
        if (value := getattr(draft, trait)) or trait.startswith(("eps", "final")):
            yield f"    {trait}={value!r},"
    yield f"    fixed={draft.kept!r},"
    yield ")"


def _size(kind: str, holds: dict[Product, str]) -> str:
    if (kind,) in holds:
        return f"c[{holds[kind,]!r}]"
    heads, kv = holds.get(("attention", "query")), holds.get(("attention",))
    if kind == "query" and heads and kv:
        return f"c[{heads!r}] // c[{kv!r}]"
    return "c['vocab_size']" if kind == "vocab" else "..."


def _block(name: str, holds: dict[Product, str]) -> str:
    hidden = holds.get(("hidden",))
    heads = holds.get(("attention", "query")) or holds.get(("attention",))
    derived = f" or c[{hidden!r}] // c[{heads!r}]" if hidden and heads else ""
    head = f"(c.get('head_dim'){derived})" if derived else "..."
    times = name.partition("_")[2]
    return f"{times} * {head}" if times else head
