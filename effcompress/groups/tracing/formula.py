"""Finds out how numbers and conditions follow from a configuration, and writes that as Python.

An expression is right if it is so in all models that were built, which differ in every size.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from effcompress.kept_layers import FIRST, LAST, LAYERS, NUMBERS, per_layer
from effcompress.types import Config

Values = tuple[int, ...]
Spot = tuple[int, int | None]
"""Where a number is: which model, and the layer, None where it belongs to none."""
_NO_SIZES = ("_token_id", "_size_feed_forward", "torch_dtype", "dtype")
_MOST_TIMES = 4


@dataclass(frozen=True)
class Models:
    """Configurations of models of one architecture, each with its number of layers. ``stated``: the
    fields that may be used.
    """

    configs: tuple[Config, ...]
    layers: tuple[int, ...]
    stated: frozenset[str]

    def number(self, wanted: Mapping[Spot, int]) -> str | None:
        """Returns an expression of ``c`` (and ``i``) with these values, by place; None if none of
        the simple ones has. A field comes before a quotient, a product and a sum.
        """
        places, target = tuple(wanted), tuple(wanted.values())
        fields = dict(self._fields(places))
        for found in (fields, dict(_quotients(fields)), dict(_products(fields))):
            if (name := _named(found, target)) is not None:
                return name
        return _sum(dict(_products(fields)) | fields, target)

    def _fields(self, places: Sequence[Spot]) -> Iterator[tuple[str, Values]]:
        for name in self.configs[0]:
            if name not in self.stated or name.endswith(_NO_SIZES) or name in LAYERS:
                continue
            held: list[Any] = [config.get(name) for config in self.configs]
            if all(_is_size(value) for value in held):
                values = tuple(held[m] for m, _ in places)
                if set(values) != {1}:
                    yield f"c[{quoted(name)}]", values
            elif self._listed(name) and places and places[0][1] is not None:
                per = [held[m][i] for m, i in places]
                if all(_is_size(value) for value in per):
                    yield f"c[{quoted(name)}][i]", tuple(per)

    def _listed(self, name: str) -> bool:
        pairs = zip(self.configs, self.layers, strict=True)
        return all(per_layer(name, config.get(name), count) for config, count in pairs)

    def condition(self, wanted: Sequence[Sequence[bool]]) -> str | None:
        """Returns an expression of ``c`` and ``i`` that holds in these layers of every model; None
        if neither a simple one nor two of them together do.
        """
        target = tuple(itertools.chain.from_iterable(wanted))
        if (name := _named(self._conditions, target)) is not None:
            return name
        for (one, a), (two, b) in itertools.combinations(self._conditions.items(), 2):
            if tuple(x and y for x, y in zip(a, b, strict=True)) == target:
                return f"{one} and {two}"
            if tuple(x or y for x, y in zip(a, b, strict=True)) == target:
                return f"{one} or {two}"
        return None

    @cached_property
    def _conditions(self) -> dict[str, tuple[bool, ...]]:
        found: dict[str, tuple[bool, ...]] = {}
        everywhere = [(m, i) for m, count in enumerate(self.layers) for i in range(count)]
        for text, holds in self._atoms():
            values = tuple(bool(holds(self.configs[m], i)) for m, i in everywhere)
            found.setdefault(text, values)
        return found

    def _atoms(self) -> Iterator[tuple[str, Any]]:
        for name in (n for n in self.configs[0] if n in self.stated):
            key = f"c[{quoted(name)}]"
            if self._listed(name):
                entries = sorted({repr(e) for c in self.configs for e in c[name]})
                for k in range(1, len(entries)):
                    for some in itertools.combinations(entries, k):
                        said = f"{key}[i] == {some[0]}" if k == 1 else f"{key}[i] in {_tuple(some)}"
                        yield said.replace("'", '"'), _entry(name, some)
            elif name in FIRST and all(_is_number(c.get(name)) for c in self.configs):
                yield f"i >= {key}", lambda c, i, n=name: i >= c[n]
                yield f"i < {key}", lambda c, i, n=name: i < c[n]
            elif name in NUMBERS:
                yield f"i in {key}", lambda c, i, n=name: i in (c[n] or ())
                yield f"i not in {key}", lambda c, i, n=name: i not in (c[n] or ())
            elif name == LAST:
                count = next(n for n in LAYERS if n in self.configs[0])
                start = f"c[{quoted(count)}] - {key}"
                yield f"i >= {start}", lambda c, i, n=count: i >= c[n] - c[LAST]
                yield f"i < {start}", lambda c, i, n=count: i < c[n] - c[LAST]
            elif all(_is_size(c.get(name)) for c in self.configs) and "step" in name:
                yield f"(i + 1) % {key} == 0", lambda c, i, n=name: (i + 1) % c[n] == 0
                yield f"(i + 1) % {key} != 0", lambda c, i, n=name: (i + 1) % c[n] != 0


def quoted(text: str) -> str:
    """Returns a string as Python source, in double quotes."""
    return '"' + repr(text)[1:-1].replace('"', '\\"') + '"'


def _entry(name: str, some: Sequence[str]) -> Any:
    return lambda c, i: repr(c[name][i]) in some


def _tuple(some: Iterable[str]) -> str:
    return f"({', '.join(some)})"


def _quotients(fields: Mapping[str, Values]) -> Iterator[tuple[str, Values]]:
    for (one, a), (two, b) in itertools.permutations(fields.items(), 2):
        if all(x >= y for x, y in zip(a, b, strict=True)):
            yield f"{one} // {two}", tuple(x // y for x, y in zip(a, b, strict=True))


def _products(fields: Mapping[str, Values]) -> Iterator[tuple[str, Values]]:
    for one, a in fields.items():
        for times in range(2, _MOST_TIMES + 1):
            yield f"{times} * {one}", tuple(times * x for x in a)
    for (one, a), (two, b) in itertools.combinations_with_replacement(fields.items(), 2):
        yield f"{one} * {two}", tuple(x * y for x, y in zip(a, b, strict=True))


def _sum(terms: Mapping[str, Values], target: Values) -> str | None:
    """Two terms, or three; those with fewer factors first."""
    ordered = sorted(terms, key=lambda name: name.count("c["))
    by_values: dict[Values, str] = {}
    for name in ordered:
        by_values.setdefault(terms[name], name)
    for name in ordered:
        rest = tuple(t - x for t, x in zip(target, terms[name], strict=True))
        if rest in by_values:
            return f"{name} + {by_values[rest]}"
    return None


def _named(found: Mapping[str, tuple[Any, ...]], target: tuple[Any, ...]) -> str | None:
    return next((name for name, values in found.items() if values == target), None)


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
