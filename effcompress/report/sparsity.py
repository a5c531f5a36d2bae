"""How a report shows zeros within linear layers."""

from __future__ import annotations

from effcompress.record.events import Sparsify
from effcompress.report import charts, numbers


def how(made: Sparsify) -> str:
    """``magnitude, 2:4`` or ``magnitude, 50.0 %``."""
    return f"{made.method}, {made.pattern or numbers.percent(made.sparsity)}"


def cost(made: Sparsify) -> str:
    """``42 s, 1.90 GB at the peak``."""
    held = f", {numbers.size(made.memory_bytes)} at the peak" if made.memory_bytes else ""
    return f"{numbers.duration(made.seconds)}{held}"


def picture(made: Sparsify) -> str | None:
    """Weights of each layer that are not zero."""
    if not made.layers:
        return None
    had = [0] * (1 + max(row.layer for row in made.layers))
    has = [*had]
    for row in made.layers:
        had[row.layer] = row.weights
        has[row.layer] = row.weights - row.zeroed
    return charts.layers("Weights that are not zero", "per layer, linear layers", had, has, "after")


def fractions(made: Sparsify, params: int) -> str:
    """``50.0 % of linear layers, 39.5 % of all``."""
    layers = numbers.percent(made.zeroed / max(1, made.weights))
    return f"{layers} of linear layers, {numbers.percent(made.zeroed / params)} of all"
