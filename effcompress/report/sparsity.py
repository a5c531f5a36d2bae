"""What a run said about zeros within its linear layers."""

from __future__ import annotations

from dataclasses import dataclass

from effcompress.report import numbers


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

    @property
    def how(self) -> str:
        """``sparsegpt, 2:4`` or ``wanda, 50.0 %``."""
        return f"{self.method}, {self.pattern or numbers.percent(self.sparsity)}"

    @property
    def cost(self) -> str:
        """``42 s, 1.9 GB at the peak``."""
        held = f", {numbers.size(self.memory_bytes)} at the peak" if self.memory_bytes else ""
        return f"{numbers.duration(self.seconds)}{held}"


def shares(sparsified: Sparsified, params: int) -> str:
    """``50.0 % of linear layers, 39.5 % of all``."""
    layers = numbers.percent(sparsified.zeroed / max(1, sparsified.weights))
    return f"{layers} of linear layers, {numbers.percent(sparsified.zeroed / params)} of all"
