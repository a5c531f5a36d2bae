"""What a shape costs in floating-point operations, by arithmetic on widths.

The formulas are those of ``docs/cost.md``; each term is named so that it can be argued with.
"""

from __future__ import annotations

from effcompress.types import AxisMap, Config, Widths

H100_FLOPS = 989e12
"""Dense bf16 tensor-core peak of an H100 SXM (vendor's data sheet)."""
UTILISATION = 0.40
"""Share of the peak that well-tuned training of models of this size reaches."""


def flops_per_token(axes: AxisMap, config: Config, widths: Widths, length: int) -> float:
    """Forward and backward operations per token.

    Two per weight of every matrix product, two products per attended pair (half of the pairs are
    masked away), and the backward costs twice the forward.
    """
    wide = {**axes.widths, **widths}
    weights = sum(axes.numel(p, wide) * _used(axes, config, wide, p) for p in multiplied(axes))
    rows = sum(query_rows(axes, config, wide, i) for i in axes.depth.layers)
    attention = 2 * 2 * rows * length / 2
    return 3.0 * (2.0 * weights + attention)


def query_rows(axes: AxisMap, config: Config, wide: Widths, layer: int) -> int:
    """Query heads of a layer times their width; none where the layer or its attention is gone."""
    heads = wide.get(f"attention.{layer}", 0) * wide.get(f"query.{layer}", 1)
    there = wide[f"layer.{layer}"] * wide.get(f"attention_block.{layer}", 1)
    return heads * there * axes.family.blocks["head"](config)


def routed(config: Config) -> int:
    """Experts that a token is sent to."""
    return config.get("num_experts_per_tok") or 0


def _used(axes: AxisMap, config: Config, wide: Widths, param: str) -> float:
    """Share of a parameter that one token meets: of experts, those that it is sent to."""
    experts = [n for s in axes.by_param[param] for n in s.names if n.startswith("expert.")]
    if not experts or len(axes.shapes[param]) < 3:
        return 1.0
    return min(1.0, routed(config) / max(1, wide[experts[0]]))


def multiplied(axes: AxisMap) -> list[str]:
    """Matrices that take part in a product; an embedding that is only looked up does not."""
    matrices = [p for p, shape in axes.shapes.items() if len(shape) > 1]

    def carries(param: str, kind: str) -> bool:
        return any(kind in s.names for s in axes.by_param[param])

    tables = [p for p in matrices if carries(p, "vocab")]
    looked_up = {tables[0]} if len(tables) > 1 else set[str]()
    looked_up |= {p for p in matrices if carries(p, "positions")}
    return [p for p in matrices if p not in looked_up]
