"""What a run said about zeros within its linear layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from effcompress.report import charts, numbers


@dataclass(frozen=True)
class Sparsified:
    """One pass that made zeros: how, in how many weights, what it took (of memory: the peak)."""

    method: str
    sparsity: float
    pattern: str | None
    weights: int
    zeroed: int
    seconds: float
    memory_bytes: int | None = None
    layers: Sequence[Mapping[str, int]] = ()
    """``layer`` (its number in the source model), ``weights`` and ``zeroed`` of each."""

    @property
    def how(self) -> str:
        """``magnitude, 2:4`` or ``magnitude, 50.0 %``."""
        return f"{self.method}, {self.pattern or numbers.percent(self.sparsity)}"

    @property
    def cost(self) -> str:
        """``42 s, 1.9 GB at the peak``."""
        held = f", {numbers.size(self.memory_bytes)} at the peak" if self.memory_bytes else ""
        return f"{numbers.duration(self.seconds)}{held}"


def picture(sparsified: Sparsified) -> str | None:
    """Weights of each layer that are not zero."""
    if not sparsified.layers:
        return None
    had = [0] * (1 + max(row["layer"] for row in sparsified.layers))
    has = [*had]
    for row in sparsified.layers:
        had[row["layer"]] = row["weights"]
        has[row["layer"]] = row["weights"] - row["zeroed"]
    return charts.layers("Weights that are not zero", "per layer, linear layers", had, has, "after")


def shares(sparsified: Sparsified, params: int) -> str:
    """``50.0 % of linear layers, 39.5 % of all``."""
    layers = numbers.percent(sparsified.zeroed / max(1, sparsified.weights))
    return f"{layers} of linear layers, {numbers.percent(sparsified.zeroed / params)} of all"
