"""Counts the floating-point operations of a shape, by arithmetic on widths.

The formulas are those of ``docs/cost.md``; each term is named so that it can be argued with.
"""

import math
from collections.abc import Hashable, Iterator, Mapping
from operator import itemgetter
from typing import final

from effcompress.network.active import expert_axis, routed
from effcompress.types import AxisMap, Config, Widths, axis_layer, is_gain

H100_FLOPS = 989e12
"""Dense bf16 tensor-core peak of an H100 SXM (vendor's data sheet)."""
UTILISATION = 0.40
"""Fraction of the peak (MFU) that well-tuned training of models of this size reaches."""


@final
class Flops:
    """Operations per token of one architecture at any widths: one polynomial in the widths, by
    layer. A forecast asks for thousands of sizes, most of which differ from the one before in a few
    layers, and layers of one class and equal widths cost the same: each is computed once.
    """

    def __init__(self, axes: AxisMap, config: Config, length: int) -> None:
        self._axes = axes
        by_layer: dict[int | None, dict[Product, int]] = {}
        for product, operations in _products(axes, config, length):
            layer = next((i for i in map(axis_layer, product[1]) if i is not None), None)
            terms = by_layer.setdefault(layer, {})
            terms[product] = terms.get(product, 0) + operations
        alike: dict[Hashable, dict[Hashable, float]] = {}
        self._parts = [_Part(axes, config, terms, alike) for terms in by_layer.values()]

    def per_token(self, widths: Widths) -> float:
        """Returns forward plus backward operations per token.

        Two per weight of every matrix product or convolution; two products (scores, values) per
        attended pair, of which the causal mask leaves half; what recurrent states cost one token
        after the other (kernels that take them in chunks do more); the backward costs twice the
        forward.
        """
        wide = {**self._axes.widths, **widths}
        return 3.0 * sum(part(wide) for part in self._parts)


Product = tuple[str, tuple[str, ...]]
"""Expert axis of routed matrices (else empty), and the axes whose widths are multiplied."""


def _products(axes: AxisMap, config: Config, length: int) -> Iterator[tuple[Product, int]]:
    """Yields products of widths with the operations per token of a forward pass for each of them.
    A product may come more than once.
    """
    for param in multiplied(axes):
        for names, factor in axes.terms(param):
            yield (expert_axis(axes, param), tuple(sorted(names))), 2 * factor
    if more := axes.family.more_products(config):
        for i in axes.depth.layers:
            yield ("", (f"layer.{i}",)), 2 * more
    for i, segment in axes.queries.items():
        # 2 operations x widths of a query and of a value x length, half of it masked.
        pairs = 2 * sum(head_widths(axes, config, i))
        yield ("", (*segment.names, *axes.gates[segment.param])), pairs * length // 2
    for kinds, operations in axes.family.recurrence.items():
        for name in axes.axes(kinds.partition("/")[0]):
            layer = axis_layer(name)
            states = (f"{kind}.{layer}" for kind in kinds.split("/"))
            mixes = (n for n in (f"layer.{layer}", f"attention_block.{layer}") if n in axes.widths)
            yield ("", (*states, *mixes)), operations(config)


class _Part:
    """The operations of one layer, or of what no layer owns. ``alike``: values by widths, for each
    polynomial with its axes numbered; layers share them.
    """

    def __init__(
        self,
        axes: AxisMap,
        config: Config,
        terms: Mapping[Product, int],
        alike: dict[Hashable, dict[Hashable, float]],
    ) -> None:
        self._axes, self._config, self._terms = axes, config, terms
        names = dict.fromkeys(n for experts, of in terms for n in (*of, experts) if n)
        number = {name: k for k, name in enumerate(names)} | {"": -1}
        form = tuple((number[e], *map(number.get, of), n) for (e, of), n in terms.items())
        self._widths, self._known = itemgetter(*names), alike.setdefault(form, {})

    def __call__(self, wide: Widths) -> float:
        """Returns the operations of a forward pass per token."""
        key = self._widths(wide)
        if key not in self._known:
            self._known[key] = sum(self._value(term, wide) for term in self._terms.items())
        return self._known[key]

    def _value(self, term: tuple[Product, int], wide: Widths) -> float:
        (experts, names), operations = term
        product = operations * math.prod(wide[name] for name in names)
        if not experts:
            return product
        # A token is multiplied with k of E experts: on average k / E of their weights.
        return routed(self._axes, self._config, wide[experts]) / max(1, wide[experts]) * product


def flops_per_token(axes: AxisMap, config: Config, widths: Widths, length: int) -> float:
    """Returns forward plus backward operations per token of one size."""
    return Flops(axes, config, length).per_token(widths)


def query_heads(axes: AxisMap, wide: Widths, layer: int) -> int:
    """Returns the query heads of a layer; 0 where it or its attention is gone."""
    segment = axes.queries.get(layer)
    names = (*segment.names, *axes.gates[segment.param]) if segment else ()
    return math.prod(wide[name] for name in names) if names else 0


def head_widths(axes: AxisMap, config: Config, layer: int) -> tuple[int, int]:
    """Returns the width of a query and of a value of one head of a layer that has attention."""
    if axes.family.head_widths:
        return axes.family.head_widths(config)
    head = axes.queries[layer].positions_per_unit
    return head, head


def _is_bias(param: str) -> bool:
    return param.endswith("bias")


def multiplied(axes: AxisMap) -> list[str]:
    """Returns the matrices that take part in a product; embeddings that are only indexed do not,
    nor decays of states, which are multiplied elementwise.

    With tied embeddings the one table counts: it is the output matrix.
    """
    # The biases of all experts of a layer are one matrix, too.
    held = [p for p, shape in axes.shapes.items() if len(shape) > 1]
    matrices = [p for p in held if not _is_bias(p) and not is_gain(p)]
    names = {p: {n for s in axes.by_param[p] for n in s.names} for p in matrices}
    tables = [p for p in matrices if "vocab" in names[p]]
    looked_up = tables[:1] if len(tables) > 1 else []
    apart = {"positions", "looked_up", "decays"}
    return [p for p in matrices if p not in looked_up and not names[p] & apart]
