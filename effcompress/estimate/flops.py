"""Counts the floating-point operations of a shape, by arithmetic on widths.

The formulas are those of ``docs/cost.md``; each term is named so that it can be argued with.
"""

import math
from collections import Counter
from typing import final

from effcompress.network.active import expert_axis, routed
from effcompress.types import AxisMap, Config, Widths, axis_layer, is_gain

H100_FLOPS = 989e12
"""Dense bf16 tensor-core peak of an H100 SXM (vendor's data sheet)."""
UTILISATION = 0.40
"""Fraction of the peak (MFU) that well-tuned training of models of this size reaches."""


@final
class Flops:
    """Operations per token of one architecture at any widths. Matrix terms are grouped into one
    polynomial in the widths, because a forecast asks for thousands of sizes.
    """

    def __init__(self, axes: AxisMap, config: Config, length: int) -> None:
        self._axes, self._config, self._length = axes, config, length
        self._factors = Counter[tuple[str, tuple[str, ...]]]()
        """(expert axis of routed matrices or "", axes) -> factor, summed over all matrices."""
        for param in multiplied(axes):
            for names, factor in axes.terms(param):
                self._factors[expert_axis(axes, param), tuple(sorted(names))] += factor
        self._more = axes.family.more_products(config)
        self._states = {
            tuple(f"{kind}.{axis_layer(name)}" for kind in kinds.split("/")): operations(config)
            for kinds, operations in axes.family.recurrence.items()
            for name in axes.axes(kinds.partition("/")[0])
        }

    def per_token(self, widths: Widths) -> float:
        """Returns forward plus backward operations per token.

        Two per weight of every matrix product or convolution; two products (scores, values) per
        attended pair, of which the causal mask leaves half; what recurrent states cost one token
        after the other (kernels that take them in chunks do more); the backward costs twice the
        forward.
        """
        axes, config = self._axes, self._config
        wide = {**axes.widths, **widths}
        weights = 0.0
        for (experts, names), factor in self._factors.items():
            # A token is multiplied with k of E experts: on average k / E of their weights.
            met = routed(axes, config, wide[experts]) / max(1, wide[experts]) if experts else 1.0
            weights += met * factor * math.prod(wide[name] for name in names)
        if self._more:
            weights += self._more * sum(wide[f"layer.{i}"] for i in axes.depth.layers)
        # 2 operations x widths of a query and of a value x length, half of it masked.
        pairs = 2 * sum(attended(axes, config, wide, i) for i in axes.depth.layers)
        attention = pairs * self._length / 2
        for names, n in self._states.items():
            attention += n * math.prod(wide[name] for name in names) * _mixes(wide, names[0])
        return 3.0 * (2.0 * weights + attention)


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


def attended(axes: AxisMap, config: Config, wide: Widths, layer: int) -> int:
    """Returns the numbers of a layer's queries and values of all heads."""
    heads = query_heads(axes, wide, layer)
    return heads * sum(head_widths(axes, config, layer)) if heads else 0


def _mixes(wide: Widths, name: str) -> int:
    """Returns 1 where the layer of an axis still mixes tokens, else 0."""
    layer = axis_layer(name)
    return wide[f"layer.{layer}"] * wide.get(f"attention_block.{layer}", 1)


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
