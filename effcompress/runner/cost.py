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
    weights = sum(axes.numel(p, wide) for p in _multiplied(axes))
    query = axes.family.blocks["query"](config)
    heads = sum(wide[name] * query for name in axes.axes("attention"))
    attention = 2 * 2 * heads * length / 2
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
    assert recipe.train is not None
    params = axes.count()
    bf16 = recipe.train.precision == "bf16"
    share = devices if sharded else 1
    rows = recipe.train.micro_batch_size or max(1, recipe.train.batch_size // devices)
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
    family, wide = axes.family, axes.widths
    query, head = family.blocks["query"](config), family.blocks["head"](config)
    hidden = wide["hidden"]
    total = 0.0
    for attention, ffn in zip(axes.axes("attention"), axes.axes("ffn"), strict=True):
        heads = 2 * wide[attention] * (query + head) + wide[attention] * (query + head)
        total += value * (2 * hidden + heads + 4 * wide[ffn]) + 2 * hidden * (4 + value)
    return total


def _multiplied(axes: AxisMap) -> list[str]:
    """Matrices that take part in a product; an embedding that is only looked up does not."""
    matrices = [p for p, shape in axes.shapes.items() if len(shape) > 1]
    tables = [p for p in matrices if any(side.name == "vocab" for side in axes.by_param[p])]
    looked_up = tables[0] if len(tables) > 1 else None
    return [p for p in matrices if p != looked_up]
