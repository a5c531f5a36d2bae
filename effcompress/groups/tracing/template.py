"""Writes a draft as the source text of a plugin file that declares the architecture.

The file runs as it is written. Dimensions that tracing leaves alone get the names that their sizes
suggest (hidden channels, experts and their channels) and stay in ``fixed``: who takes a kind out of
it has the proof of plugins decide.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from effcompress.groups.tracing.anatomy import Anatomy
from effcompress.groups.tracing.draft import Draft, Product, kinds_of
from effcompress.groups.tracing.formula import Models, Spot, quoted
from effcompress.groups.tracing.roles import CHANNEL, EXPERT, HIDDEN, mixture, roles
from effcompress.types import DEPTH, Axis, AxisMap, Config, Sublayer, axis_kind, axis_layer

_WIDTH = 98


@dataclass(frozen=True)
class Model:
    """One model: anatomy, configuration, and the draft's axes and positions per unit on it."""

    anatomy: Anatomy
    config: Config
    axes: AxisMap
    per_unit: Mapping[str, int]


def template(draft: Draft, raw: Config, models: Sequence[Model]) -> str:
    """Returns the text of a plugin file. ``models`` are small ones and, last, the one that was
    asked for, of which ``raw`` is the configuration as its file states it.
    """
    return "\n".join(Template(draft, raw, models).lines()) + "\n"


class Template:
    """Text of one draft."""

    def __init__(self, draft: Draft, raw: Config, models: Sequence[Model]) -> None:
        self.draft, self.raw, self.models = draft, raw, models
        given = models[-1].config
        # A field that the file leaves empty on purpose is none to read sizes from.
        stated = {name for name in given if name not in raw or raw[name] is not None}
        self.known = Models(
            tuple(m.config for m in models),
            tuple(m.anatomy.layers for m in models),
            frozenset(stated),
        )
        self.roles = dict(roles(draft, models[0].anatomy))
        self.axes = tuple(self._renamed(draft.axes))
        self.kept = tuple(dict.fromkeys(self._new_kind(kind) for kind in draft.kept))

    def lines(self) -> Iterator[str]:
        """Yields the lines of the file."""
        draft, kind = self.draft, self.draft.model_type
        body = [*self._body()]
        names = {"Axis", "Family", "family"} | ({"Sublayer"} if draft.sublayers else set())
        yield f'"""Axes of the architecture `{kind}`: traced, and proven on small random models."""'
        yield from ("", f"from effcompress import {', '.join(sorted(names))}", "", "")
        yield f"@family({quoted(kind)})"
        name = "".join(letter if letter.isalnum() else "_" for letter in kind)
        yield f"def {name if name[0].isalpha() else f'_{name}'}() -> Family:"
        yield '    """What is removed together. What is in `fixed` stays as it is."""'
        for what, why in draft.left_out.items():
            yield from _comment(f"{what}: {why}", "    ")
        yield "    return Family("
        yield from body
        yield "    )"

    def _body(self) -> Iterator[str]:
        draft = self.draft
        yield f"        name={quoted(draft.model_type)},"
        yield f"        model_types=({quoted(draft.model_type)},),"
        yield "        axes=("
        for axis in self.axes:
            yield from self._axis(axis)
        yield "        ),"
        yield from _entries("units", dict(self._units()))
        yield from _entries("positions_per_unit", dict(self._per_unit()))
        yield from self._resize()
        yield from self._attributes()
        if whens := sorted({axis.when for axis in draft.axes} - {""}):
            yield from _entries("flags", {when: self._flag(when) for when in whens})
        yield (
            '        required=("vocab_size",),'
            if self._has_vocabulary()
            else "        required=(),"
        )
        yield from _listed("norms", draft.norms)
        yield f"        layer={quoted(draft.layer)},"
        yield from self._traits()
        yield from _listed("fixed", self.kept)
        yield from self._depth()
        yield from self._defaults([*self._text()])

    def _text(self) -> Iterator[str]:
        """The expressions of the file."""
        yield from (text for _, text in (*self._units(), *self._per_unit()))
        yield from (self._flag(axis.when) for axis in self.draft.axes if axis.when)
        yield from map(self._last, self.draft.stays)
        yield from self.draft.fields

    def _has_vocabulary(self) -> bool:
        return all("vocab_size" in m.config for m in self.models)

    def _axis(self, axis: Axis) -> Iterator[str]:
        more = f", {quoted(axis.positions_per_unit)}" if axis.positions_per_unit != "one" else ""
        more += f", when={quoted(axis.when)}" if axis.when else ""
        line = f"            Axis({quoted(axis.param)}, {axis.dim}, {quoted(axis.name)}{more}),"
        kinds = {axis_kind(name) for name in axis.name.split("/")}
        unsure = sorted(kinds & {EXPERT, CHANNEL, HIDDEN} & {*self.kept})
        yield line + (f"  # {unsure[0]}: by its size, not proven" if unsure else "")

    # ----------------------------------------------------------------- names by size

    def _new_kind(self, kind: str) -> str:
        return self.roles.get(kind, ((kind, 1),))[0][0]

    def _renamed(self, axes: Iterable[Axis]) -> Iterator[Axis]:
        for axis in axes:
            kind, dot, layer = axis.name.partition(".")
            for role, times in self.roles.get(kind, ((kind, 1),)):
                name = HIDDEN if role == HIDDEN else role + dot + layer
                yield from [replace(axis, name=name)] * times

    # ----------------------------------------------------------------- sizes

    def _units(self) -> Iterator[tuple[str, str]]:
        """Yields the source of the number of units of every kind."""
        old = {self._new_kind(kind): kind for kind in reversed(self.draft.kinds)}
        for kind in dict.fromkeys(axis_kind(n) for a in self.axes for n in a.name.split("/")):
            times = self.roles.get(old[kind], ((kind, 1),))[0][1]
            yield kind, f"lambda c, i: {self._unit(old[kind], times)}"

    def _unit(self, kind: str, times: int) -> str:
        """The expression of a width: one for all kinds of layers, or one for each."""
        by_look: dict[str, dict[Spot, int]] = defaultdict(dict)
        for m, model in enumerate(self.models):
            for name in model.axes.axes(kind):
                layer = axis_layer(name)
                look = "" if layer is None else model.anatomy.looks[layer]
                by_look[look][m, layer] = model.axes.widths[name] // times
        texts: dict[str, list[str]] = defaultdict(list)
        for look, wanted in by_look.items():
            texts[self._stated(kind, wanted) or self._number(wanted)].append(look)
        *some, (last, _) = texts.items()
        looks = self.draft.looks
        conditions = (self._condition(tuple(map(looks.index, of))) for _, of in some)
        return (
            "".join(
                f"{text} if {condition} else "
                for (text, _), condition in zip(some, conditions, strict=True)
            )
            + last
        )

    def _stated(self, kind: str, wanted: Mapping[Spot, int]) -> str:
        """The expression by the field that ``resize`` sets; empty where it is not that."""
        fields = {product: name for name, product in self.draft.fields.items()}
        named = ["vocab_size"] if kind == "vocab" else [fields.get((kind,), "")]
        queries = [fields.get(p, "") for p in (("attention", "query"), ("attention",))]
        for names in (named, queries if kind == "query" else []):
            held: list[list[Any]] = [[m.config.get(n) for n in names] for m in self.models]
            known = {*names} <= self.known.stated and all(
                isinstance(n, int) for h in held for n in h
            )
            if not names or not known:
                continue
            found = [h[0] if len(h) == 1 else h[0] // h[1] for h in held]
            if all(found[m] == n for (m, _), n in wanted.items()):
                return " // ".join(f"c[{quoted(name)}]" for name in names)
        return ""

    def _number(self, wanted: Mapping[Spot, int]) -> str:
        if (found := self.known.number(wanted)) is not None:
            return found
        last = len(self.models) - 1
        own = {i: n for (m, i), n in wanted.items() if m == last}
        return str(next(iter(own.values()))) if len(set(own.values())) == 1 else f"{own!r}[i]"

    def _per_unit(self) -> Iterator[tuple[str, str]]:
        for name in self.draft.positions_per_unit:
            wanted: dict[Spot, int] = {
                (m, None): model.per_unit[name] for m, model in enumerate(self.models)
            }
            yield name, f"lambda c: {self._length(name, wanted)}"

    def _length(self, name: str, wanted: Mapping[Spot, int]) -> str:
        if name == "one":
            return "1"
        if name.startswith("head_") and (times := int(name.removeprefix("head_"))):
            head = {place: size // times for place, size in wanted.items()}
            return f"{times} * {self._length('head', head)}"
        if name == "head":
            return self._head(wanted)
        return self.known.number(wanted) or str([*wanted.values()][-1])

    def _head(self, wanted: Mapping[Spot, int]) -> str:
        fields = {product: name for name, product in self.draft.fields.items()}
        hidden = fields.get((HIDDEN,), "hidden_size")
        heads = next(
            (fields[p] for p in (("attention", "query"), ("attention",)) if p in fields), ""
        )
        last, given = [*wanted.values()][-1], self.models[-1].config
        quotient = heads and given.get(hidden, 0) // given[heads] == last
        if [m.config.get("head_dim") for m in self.models] == [*wanted.values()]:
            # A class that derives the width is told it in a smaller model.
            own = 'c["head_dim"]'
            return f'(c.get("head_dim") or c["{hidden}"] // c["{heads}"])' if quotient else own
        if quotient:
            return f'(c.get("head_dim") or c["{hidden}"] // c["{heads}"])'
        return self.known.number(wanted) or str(last)

    def _times(self, product: Product) -> str:
        source = dict(self._per_unit())
        parts = (
            source[n].partition(": ")[2] if n in source else f"w[{quoted(n)}]" for n in product
        )
        return " * ".join(parts)

    def _resize(self) -> Iterator[str]:
        yield "        resize=lambda c, w: {"
        for name, product in self.draft.fields.items():
            yield f"            {quoted(name)}: {self._times(product)},"
        yield "        },"

    def _attributes(self) -> Iterator[str]:
        if not self.draft.attributes:
            return
        yield "        attributes=lambda c, w: {"
        for path, held in self.draft.attributes.items():
            said = ", ".join(f"{quoted(n)}: {self._times(p)}" for n, p in held.items())
            entry = f"{quoted(path)}: {{{said}}}"
            there = self._condition_of(path, held.values())
            if there:
                yield f"            **({{{entry}}} if {there} else {{}}),"
            else:
                yield f"            {entry},"
        yield "        },"

    def _condition_of(self, path: str, products: Iterable[Product]) -> str:
        """What tells, by the widths of a layer, that it has the module; empty if all have."""
        draft = self.draft
        kinds = set(draft.held.get(path, range(len(draft.looks))))
        if kinds == set(range(len(draft.looks))):
            return ""
        where: dict[str, set[int]] = defaultdict(set)
        for axis in self.axes:
            for name in axis.name.split("/"):
                if "{i}" in name:
                    of = kinds_of(axis.when) if axis.when else range(len(draft.looks))
                    where[axis_kind(name)] |= set(of)
        named = [n for product in products for n in product]
        ordered = sorted(where, key=lambda name: name not in named)
        found = next((name for name in ordered if where[name] == kinds), "")
        return f"w.get({quoted(found)})" if found else ""

    def _flag(self, when: str) -> str:
        return f"lambda c, i: {self._condition(kinds_of(when))}"

    def _condition(self, kinds: Sequence[int]) -> str:
        """An expression that holds in layers of these kinds."""
        looks = self.draft.looks
        wanted = [
            [looks.index(look) in kinds for look in model.anatomy.looks] for model in self.models
        ]
        if (found := self.known.condition(wanted)) is not None:
            return found
        return f"i in {tuple(i for i, there in enumerate(wanted[-1]) if there)!r}"

    # ----------------------------------------------------------------- the rest

    def _traits(self) -> Iterator[str]:
        draft, anatomy = self.draft, self.models[0].anatomy
        if draft.centred:
            yield "        centred=True,"
            yield '        rigid=("hidden",),'
        if draft.gain_offset:
            yield f"        gain_offset={draft.gain_offset!r},"
        for trait in ("approximate", "aliases"):
            if value := getattr(draft, trait):
                yield f"        {trait}={_source(value)},"
        for trait in ("epsilon_attribute", "epsilon_field", "final_norm"):
            yield f"        {trait}={quoted(getattr(draft, trait))},"
        for trait, path in mixture(anatomy).items():
            yield f"        {trait}={quoted(path)},"

    def _depth(self) -> Iterator[str]:
        draft = self.draft
        if draft.no_depth:
            yield f"        no_depth=lambda c: {quoted(draft.no_depth)},"
            return
        if draft.stays:
            yield "        staying=lambda c: ["
            for last in map(self._last, draft.stays):
                for part in DEPTH[:2]:
                    yield f'            "{part}." + str({last}),'
            yield "        ],"
        if draft.sublayers:
            yield "        sublayers={"
            for kind, part in draft.sublayers.items():
                yield f"            {quoted(kind)}: {_sublayer(part)},"
            yield "        },"
            if any(part.behind for part in draft.sublayers.values()):
                yield "        norms_behind=lambda c: True,"

    def _last(self, kind: int) -> str:
        """The last layer of a kind; -1 where there is none."""
        count = self.draft.aliases.get("num_hidden_layers", "num_hidden_layers")
        return (
            f"max((i for i in range(c[{quoted(count)}]) if {self._condition((kind,))}), default=-1)"
        )

    def _defaults(self, text: Sequence[str]) -> Iterator[str]:
        """The fields that the file reads and this config.json leaves out."""
        given, all_of_it = self.models[-1].config, " ".join(text)
        always = ("hidden_size", "num_hidden_layers", "num_attention_heads", "tie_word_embeddings")
        usual = {self.draft.aliases.get(name, name) for name in always}
        read = [n for n in given if f'"{n}"' in all_of_it or n in usual or n in text]
        missing = {n: given[n] for n in read if n not in self.raw and given[n] is not None}
        if missing:
            yield f"        defaults={{{quoted(self.draft.model_type)}: {_source(missing)}}},"


def _entries(name: str, entries: Mapping[str, str]) -> Iterator[str]:
    yield f"        {name}={{"
    yield from (f"            {quoted(key)}: {source}," for key, source in entries.items())
    yield "        },"


def _listed(name: str, values: Sequence[str]) -> Iterator[str]:
    yield f"        {name}=("
    yield from (f"            {quoted(value)}," for value in values)
    yield "        ),"


def _comment(text: str, indent: str) -> Iterator[str]:
    line = ""
    for word in " ".join(text.split()).split(" "):
        if line and len(indent) + len(line) + len(word) + 3 > _WIDTH:
            yield f"{indent}# {line}"
            line = ""
        line = f"{line} {word}" if line else word
    yield f"{indent}# {line}"


def _source(value: Any) -> str:
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_source(k)}: {_source(v)}' for k, v in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_source, value))}]"
    return repr(value)


def _sublayer(part: Sublayer) -> str:
    through = ", ".join(map(quoted, part.through)) + ("," if len(part.through) == 1 else "")
    said = f"Sublayer({quoted(part.silent)}, {part.outputs}, ({through})"
    said += f", behind={quoted(part.behind)}" if part.behind else ""
    said += f", beside=({', '.join(map(quoted, part.beside))},)" if part.beside else ""
    instead = ", ".join(f"({quoted(path)}, {n})" for path, n in part.instead)
    return said + (f", instead=({instead},)" if instead else "") + ")"
