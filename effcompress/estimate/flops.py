"""What a shape costs in floating-point operations, by arithmetic on widths.

The formulas are those of ``docs/cost.md``; each term is named so that it can be argued with.
"""

from __future__ import annotations

import math
from typing import final

from effcompress.types import AxisMap, Config, Widths

H100_FLOPS = 989e12
"""Dense bf16 tensor-core peak of an H100 SXM (vendor's data sheet)."""
UTILISATION = 0.40
"""Share of the peak that well-tuned training of models of this size reaches."""


@final
class Flops:
    """Operations per token of a model of any widths. What does not depend on them is worked out
    once: a plan asks for thousands of sizes.
    """

    def __init__(self, axes: AxisMap, config: Config, length: int) -> None:
        self._axes, self._config, self._length = axes, config, length
        self._factors: dict[tuple[str, tuple[str, ...]], int] = {}
        """(Experts of which a token meets some, axes) -> factor: what matrices have in common is
        added up."""
        for param in multiplied(axes):
            experts = _experts(axes, param)
            for names, factor in axes.terms(param):
                key = (experts, tuple(sorted(names)))
                self._factors[key] = self._factors.get(key, 0) + factor

    def per_token(self, widths: Widths) -> float:
        """Forward and backward operations.

        Two per weight of every matrix product, two products per attended pair (half of the pairs
        are masked away), and the backward costs twice the forward.
        """
        axes, config = self._axes, self._config
        wide = {**axes.widths, **widths}
        weights = 0.0
        for (experts, names), factor in self._factors.items():
            met = min(1.0, routed(config) / max(1, wide[experts])) if experts else 1.0
            weights += met * factor * math.prod(wide[name] for name in names)
        rows = sum(query_rows(axes, config, wide, i) for i in axes.depth.layers)
        attention = 2 * 2 * rows * self._length / 2
        return 3.0 * (2.0 * weights + attention)


def flops_per_token(axes: AxisMap, config: Config, widths: Widths, length: int) -> float:
    """The same for one size."""
    return Flops(axes, config, length).per_token(widths)


def query_rows(axes: AxisMap, config: Config, wide: Widths, layer: int) -> int:
    """Query heads of a layer times their width; none where the layer or its attention is gone."""
    heads = wide.get(f"attention.{layer}", 0) * wide.get(f"query.{layer}", 1)
    there = wide[f"layer.{layer}"] * wide.get(f"attention_block.{layer}", 1)
    return heads * there * axes.family.positions_per_unit["head"](config)


def routed(config: Config) -> int:
    """Experts that a token is sent to."""
    return config.get("num_experts_per_tok") or 0


def _experts(axes: AxisMap, param: str) -> str:
    """The experts that a parameter is divided into, of which a token meets those that it is sent
    to; empty for others.
    """
    experts = [n for s in axes.by_param[param] for n in s.names if n.startswith("expert.")]
    return experts[0] if experts and len(axes.shapes[param]) > 2 else ""


def multiplied(axes: AxisMap) -> list[str]:
    """Matrices that take part in a product; an embedding that is only looked up does not."""
    matrices = [p for p, shape in axes.shapes.items() if len(shape) > 1]

    def carries(param: str, kind: str) -> bool:
        return any(kind in s.names for s in axes.by_param[param])

    tables = [p for p in matrices if carries(p, "vocab")]
    looked_up = {tables[0]} if len(tables) > 1 else set[str]()
    looked_up |= {p for p in matrices if carries(p, "positions")}
    return [p for p in matrices if p not in looked_up]
