"""Zeros within linear layers, without a smaller shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from effcompress.registry import Bound
from effcompress.spec.key import Fraction, key


@dataclass(frozen=True)
class Pattern:
    """N:M: of every ``of`` consecutive inputs of a row, ``kept`` stay."""

    kept: int
    of: int

    @property
    def zeros(self) -> int:
        """How many go."""
        return self.of - self.kept

    def __str__(self) -> str:
        return f"{self.kept}:{self.of}"


@dataclass(frozen=True, kw_only=True)
class SparsifySpec:
    """Zeros in the linear layers of all blocks, chosen block by block before training; they stay
    zero. Exactly one of sparsity, pattern.
    """

    method: Bound = key(
        "which weights become zero, and what the others do about it", plugin="sparsifier"
    )
    sparsity: Fraction | None = key(
        "share of zeros in every linear layer, e.g. 50%", None, above=0, below=1
    )
    pattern: Literal["2:4", "4:8"] | None = key(
        "2:4: two of every four consecutive inputs of a row stay; 4:8: four of eight", None
    )
    sequences: int = key("calibration sequences, if the method looks at inputs", 128, minimum=1)
    true_sequential: bool = key(
        "within a block: look at the inputs of a linear layer anew once those in front of it are "
        "done",
        False,
    )
    skip_layers: tuple[int, ...] = key("layers that stay dense (negative: from the end)", ())

    @property
    def n_of_m(self) -> Pattern | None:
        """``pattern`` as numbers."""
        return Pattern(*map(int, self.pattern.split(":"))) if self.pattern else None

    @property
    def share(self) -> float:
        """Fraction of zeros, whichever way it was written."""
        wanted = self.n_of_m
        return wanted.zeros / wanted.of if wanted else self.sparsity or 0.0
