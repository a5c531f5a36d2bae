"""What is cut, and how it is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from effcompress.registry import Bound
from effcompress.spec.key import Count, Fraction, key


@dataclass(frozen=True, kw_only=True)
class TargetSpec:
    """How much must remain: exactly one of params, keep (met within 0.5 %), shape (met exactly)."""

    params: Count | None = key("parameters at the end, e.g. 469M", None, minimum=1)
    keep: Fraction | None = key("share of the parameters to keep, e.g. 85%", None, above=0)
    shape: Mapping[str, int] | None = key(
        "units left of each kind of the space, in every layer that may lose some, e.g. "
        "{attention: 2, ffn: 1024}; `layer`: layers left in all",
        None,
        least=1,
    )


@dataclass(frozen=True, kw_only=True)
class MeasureSpec:
    """What the saliency is measured on."""

    source: Literal["training", "calibration"] = key(
        "training: ride on the training backward; calibration: extra passes before each cut",
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
        "calibration, criteria of what layers read: every layer reads what those in front of it, "
        "already pruned, put out. How many go is decided on the model as it was",
        False,
    )
    gram_tokens: int = key(
        "repairs that use what layers read: tokens taken from each forward pass", 128, minimum=1
    )
    gram_decay: Fraction = key(
        "repairs that use what layers read: weight of the past per optimizer step", 0.95, below=1
    )


@dataclass(frozen=True, kw_only=True)
class ReduceSpec:
    """How the saliency of weights becomes that of a mini-group; for criteria of weights."""

    channel: Literal["sum", "abs"] = key(
        "a row or column of one matrix: sum of its weights' saliency, or the magnitude of that sum",
        "sum",
    )
    members: Bound | None = key(
        "over the matrices that a mini-group goes through (default: their sum)",
        None,
        plugin="reduction",
    )


@dataclass(frozen=True, kw_only=True)
class PruneSpec:
    """What is cut, by which saliency, when, down to what size."""

    target: TargetSpec = key("the size to reach")
    space: tuple[Bound, ...] = key("kinds of mini-groups that may go", plugin="space", least=1)
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
        "once the target is reached: fit the projections into the residual stream anew, one after "
        "another, so that the stream is again the source model's (calibration text; the source "
        "model is loaded a second time)",
        None,
        plugin="refit",
    )
    commit_every: int = key(
        "removals between two physical shortenings of the tensors", 16, minimum=1
    )
