"""What a recipe says, as frozen dataclasses: one per YAML section. The JSON Schema, the reference
in the docs and the checks of ``recipe.load`` all come from these classes; nothing else knows the
keys. It lies below the rooms so that each room can take its own section.

Field metadata: ``help`` is the sentence users read; ``plugin`` names the registry kind of a
``Bound`` field; ``expert`` sorts a key last in the reference. Bounds: ``minimum``, ``maximum``,
``above`` and ``below`` (exclusive) of a number, ``least`` and ``most`` elements, ``pattern`` of a
text with ``words`` for it. ``folder``: the path must be one; ``near_recipe``: text that may also
name a folder, relative to the recipe.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from effcompress.spec.distributing import DistributedSpec
from effcompress.spec.key import NAME, Count, Fraction, InputPath, Positive, key
from effcompress.spec.pruning import MeasureSpec, PruneSpec, ReduceSpec, TargetSpec
from effcompress.spec.results import EvaluateSpec, ExportSpec, SaveSpec
from effcompress.spec.source import ModelSpec
from effcompress.spec.sparsifying import Pattern, SparsifySpec
from effcompress.spec.tasks import TasksSpec
from effcompress.spec.text import DataSpec, DomainSpec
from effcompress.spec.tracking import TrackSpec
from effcompress.spec.training import (
    DistillSpec,
    LearningRateSpec,
    LoopSpec,
    LoraSpec,
    RecoverSpec,
    StagesSpec,
    TrainSpec,
)

__all__ = [
    "Count",
    "DataSpec",
    "DistillSpec",
    "DistributedSpec",
    "DomainSpec",
    "EvaluateSpec",
    "ExportSpec",
    "Fraction",
    "InputPath",
    "LearningRateSpec",
    "LoopSpec",
    "LoraSpec",
    "MeasureSpec",
    "ModelSpec",
    "Pattern",
    "Positive",
    "PruneSpec",
    "Recipe",
    "RecoverSpec",
    "ReduceSpec",
    "SaveSpec",
    "SparsifySpec",
    "StagesSpec",
    "TargetSpec",
    "TasksSpec",
    "TrackSpec",
    "TrainSpec",
]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole run."""

    model: ModelSpec = key("the source model")
    data: DataSpec = key("the text")
    name: str = key("name of the run; its output goes to runs/<name>", "run", **NAME)
    device: Literal["auto", "cpu", "cuda"] = key(
        "where to compute; auto: a GPU if there is one", "auto"
    )
    seed: int = key("seed of everything random", 0, minimum=0, maximum=2**32 - 1)
    effcompress: str | None = key("versions this recipe is for, e.g. '>=0.1'", None)
    plugins: tuple[InputPath, ...] = key("plugin files to load, relative to the recipe", ())
    prune: PruneSpec | None = key("pruning: a smaller model", None)
    sparsify: SparsifySpec | None = key("zeros in a model of the same shape, after pruning", None)
    train: TrainSpec | None = key("training; without it pruning and zeros are all", None)
    recover: RecoverSpec | None = key("training of what was pruned at once", None)
    distributed: DistributedSpec = key(
        "several processes, where the launcher starts them", DistributedSpec()
    )
    evaluate: EvaluateSpec = key("evaluation before and after", EvaluateSpec())
    save: SaveSpec = key("checkpoints", SaveSpec())
    export: ExportSpec = key("the model folder at the end", ExportSpec())
    track: TrackSpec | None = key("trackers that are shown the run; without it none", None)

    @property
    def loop(self) -> LoopSpec | None:
        """How the run trains, in pruning or after it; None if it does not."""
        return self.train or self.recover
