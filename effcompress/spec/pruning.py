"""The sections ``prune`` and ``sparsify``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from effcompress.registry import Bound
from effcompress.spec.key import Count, Fraction, key


@dataclass(frozen=True, kw_only=True)
class TargetSpec:
    """The size to reach: exactly one of params, keep (met within 0.5 %), shape (met exactly)."""

    params: Count | None = key("parameters at the end, e.g. 469M", None, minimum=1)
    keep: Fraction | None = key("fraction of the parameters to keep, e.g. 85%", None, above=0)
    shape: Mapping[str, int] | None = key(
        "units left of each kind of the space, in every layer that may lose some, e.g. "
        "{attention: 2, ffn: 1024}; `layer`: layers left in all",
        None,
        least=1,
    )


@dataclass(frozen=True, kw_only=True)
class MeasureSpec:
    """The text and the steps that saliency is measured on."""

    source: Literal["training", "calibration"] = key(
        "training: use the gradients of the training steps; calibration: extra passes before each "
        "cut",
        "training",
    )
    average: Literal["decay", "window", "between_cuts"] = key(
        "training: how the saliency of steps is averaged. decay: running mean; window: plain mean "
        "over the last `window` steps; between_cuts: plain mean over all steps since the last cut",
        "decay",
    )
    decay: Fraction = key(
        "average: decay: weight of the past in the running mean of the saliency", 0.9, below=1
    )
    window: int = key("average: window: number of steps", 16, minimum=1)
    sequences: int = key("calibration: number of sequences", 32, minimum=1)
    propagate: bool = key(
        "calibration, criteria of layer inputs: each layer is scored on the outputs of the already "
        "pruned layers before it. How many units go is decided on the unpruned model",
        False,
    )
    gram_tokens: int = key(
        "repairs that use layer inputs: tokens sampled from each forward pass", 128, minimum=1
    )
    gram_decay: Fraction = key(
        "repairs that use layer inputs: weight of the past per optimizer step", 0.95, below=1
    )


@dataclass(frozen=True, kw_only=True)
class ReduceSpec:
    """How weight saliency is reduced to mini-group saliency; for criteria of weights."""

    channel: Literal["sum", "abs"] = key(
        "a row or column of one matrix: sum of its weights' saliency, or the magnitude of that sum",
        "sum",
    )
    members: Bound | None = key(
        "over the matrices of a mini-group (default: their sum)",
        None,
        plugin="reduction",
    )


@dataclass(frozen=True, kw_only=True)
class PruneSpec:
    """Pruning: what may be cut, by which saliency, when, and down to what size."""

    target: TargetSpec = key("the size to reach")
    space: tuple[Bound, ...] = key("kinds of mini-groups that may be cut", plugin="space", least=1)
    criterion: Bound = key("saliency of a weight", plugin="criterion")
    reduce: ReduceSpec = key("from weights to mini-groups", ReduceSpec(), expert=True)
    hessian: Bound | None = key(
        "diagonal Hessian, for criteria that use one", None, plugin="hessian"
    )
    measure: MeasureSpec = key("where gradients and Hessian come from", MeasureSpec())
    selector: Bound | None = key(
        "how candidates of different kinds compare", None, plugin="selector"
    )
    schedule: Bound = key("when, and how many", plugin="schedule")
    repair: tuple[Bound, ...] = key("corrections of what remains", (), plugin="repair")
    refit: Bound | None = key(
        "once the target is reached: refit the projections into the residual stream one by one, "
        "so that the stream matches the source model's on calibration text (the source model is "
        "loaded a second time)",
        None,
        plugin="refit",
    )
    commit_every: int = key(
        "removals between two physical shortenings of the tensors", 16, minimum=1
    )


@dataclass(frozen=True)
class Pattern:
    """N:M sparsity: of every ``of`` consecutive inputs of a row, ``kept`` stay."""

    kept: int
    of: int

    @property
    def zeros(self) -> int:
        """Zeros among every ``of`` inputs."""
        return self.of - self.kept

    def __str__(self) -> str:
        return f"{self.kept}:{self.of}"


@dataclass(frozen=True, kw_only=True)
class SparsifySpec:
    """Unstructured or N:M zeros in the linear layers of all blocks, chosen block by block before
    training and held at zero in it. Exactly one of sparsity, pattern.
    """

    method: Bound = key(
        "which weights become zero, and how the others are updated", plugin="sparsifier"
    )
    sparsity: Fraction | None = key(
        "fraction of zeros in every linear layer, e.g. 50%", None, above=0, below=1
    )
    pattern: Literal["2:4", "4:8"] | None = key(
        "2:4: two of every four consecutive inputs of a row stay; 4:8: four of eight", None
    )
    sequences: int = key("calibration sequences, if the method uses layer inputs", 128, minimum=1)
    true_sequential: bool = key(
        "within a block: measure the inputs of a linear layer again once the layers before it are "
        "sparse",
        False,
    )
    skip_layers: tuple[int, ...] = key("layers that stay dense (negative: from the end)", ())

    @property
    def n_of_m(self) -> Pattern | None:
        """``pattern`` as numbers; None where the recipe gives ``sparsity``."""
        return Pattern(*map(int, self.pattern.split(":"))) if self.pattern else None

    @property
    def fraction(self) -> float:
        """Fraction of zeros, from ``sparsity`` or ``pattern``."""
        wanted = self.n_of_m
        return wanted.zeros / wanted.of if wanted else self.sparsity or 0.0
