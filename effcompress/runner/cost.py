"""What a shape costs: floating-point operations and memory, by arithmetic on widths.

The formulas are those of ``docs/cost.md``; each term is named so that it can be argued with.
"""

from __future__ import annotations

from dataclasses import dataclass

from effcompress.spec import Recipe
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
    weights = sum(axes.numel(p, wide) * _used(axes, config, wide, p) for p in _multiplied(axes))
    rows = sum(_query_rows(axes, config, wide, i) for i in axes.depth.layers)
    attention = 2 * 2 * rows * length / 2
    return 3.0 * (2.0 * weights + attention)


@dataclass(frozen=True)
class Memory:
    """Bytes on one device, by what they hold."""

    weights: float
    gradients: float
    moments: float
    compute_copy: float
    activations: float
    logits: float

    @property
    def total(self) -> float:
        """Sum of all parts."""
        return (
            self.weights
            + self.gradients
            + self.moments
            + self.compute_copy
            + self.activations
            + self.logits
        )


def memory(axes: AxisMap, config: Config, recipe: Recipe, devices: int, sharded: bool) -> Memory:
    """Bytes per device at the beginning of the run, where the model is largest.

    fp32 weights, gradients and two moments; under bf16 a 2-byte copy of the matrices for the
    products. ``devices`` share the global batch; ``sharded`` also spreads weights, gradients and
    moments over them. Saliency needs one number per mini-group, which does not show here.
    """
    loop = recipe.loop
    assert loop is not None
    params = axes.count()
    bf16 = loop.precision == "bf16"
    share = devices if sharded else 1
    rows = loop.micro_batch_size or max(1, loop.batch_size // devices)
    tokens = rows * recipe.data.sequence_length
    value = 2 if bf16 else 4
    matrices = sum(axes.numel(p, axes.widths) for p in _multiplied(axes))
    return Memory(
        weights=4 * params / share,
        gradients=4 * params / share,
        moments=8 * params / share,
        compute_copy=(2 * matrices if bf16 else 0) / share,
        activations=tokens * _activations(axes, config, value),
        # Logits, their log-softmax in fp32, and the gradient of either.
        logits=tokens * axes.widths["vocab"] * (value + 4 + 4),
    )


def _activations(axes: AxisMap, config: Config, value: int) -> float:
    """Bytes per token that the backward of all blocks needs, without recomputation.

    Per block: the inputs of q/k/v and of gate/up, both norms' inputs in fp32 and their normalised
    values; q, k, v before and after the rotation and the attention output; gate, its activation,
    up and their product.
    """
    wide, head = axes.widths, axes.family.blocks["head"](config)
    total = 0.0
    for i in axes.depth.layers:
        query = _query_rows(axes, config, wide, i)
        key = wide.get(f"attention.{i}", 0) * head
        ffn = wide.get(f"ffn.{i}", 0) + _routed(config) * wide.get(f"expert_ffn.{i}", 0)
        total += value * (2 * wide["hidden"] + 3 * (query + key) + 4 * ffn)
        total += 2 * wide["hidden"] * (4 + value)
    return total


def _query_rows(axes: AxisMap, config: Config, wide: Widths, layer: int) -> int:
    """Query heads of a layer times their width; none where the layer or its attention is gone."""
    heads = wide.get(f"attention.{layer}", 0) * wide.get(f"query.{layer}", 1)
    there = wide[f"layer.{layer}"] * wide.get(f"attention_block.{layer}", 1)
    return heads * there * axes.family.blocks["head"](config)


def _routed(config: Config) -> int:
    """Experts that a token is sent to."""
    return config.get("num_experts_per_tok") or 0


def _used(axes: AxisMap, config: Config, wide: Widths, param: str) -> float:
    """Share of a parameter that one token meets: of experts, those that it is sent to."""
    experts = [n for s in axes.by_param[param] for n in s.names if n.startswith("expert.")]
    if not experts or len(axes.shapes[param]) < 3:
        return 1.0
    return min(1.0, _routed(config) / max(1, wide[experts[0]]))


def _multiplied(axes: AxisMap) -> list[str]:
    """Matrices that take part in a product; an embedding that is only looked up does not."""
    matrices = [p for p, shape in axes.shapes.items() if len(shape) > 1]

    def carries(param: str, kind: str) -> bool:
        return any(kind in s.names for s in axes.by_param[param])

    tables = [p for p in matrices if carries(p, "vocab")]
    looked_up = {tables[0]} if len(tables) > 1 else set[str]()
    looked_up |= {p for p in matrices if carries(p, "positions")}
    return [p for p in matrices if p not in looked_up]
