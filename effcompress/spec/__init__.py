"""The keys of a recipe, as frozen dataclasses: one per YAML section. The JSON Schema, the reference
in the docs and the checks of ``recipe.load`` are all derived from these classes.

Field metadata: ``help`` is the text that users read; ``plugin`` names the registry kind of a
``Bound`` field; ``expert`` sorts a key last in the reference. Bounds: ``minimum``, ``maximum``,
``above`` and ``below`` (exclusive) of a number, ``least`` and ``most`` elements, ``pattern``: a
regular expression for a text, described by ``words``. ``folder``: the path must be one;
``near_recipe``: text that may also name a folder, relative to the recipe.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from effcompress.spec.key import NAME, Count, Fraction, InputPath, Positive, key
from effcompress.spec.pruning import (
    MeasureSpec,
    Pattern,
    PruneSpec,
    ReduceSpec,
    SparsifySpec,
    TargetSpec,
)
from effcompress.spec.results import EvaluateSpec, ExportSpec, SaveSpec, TasksSpec, TrackSpec
from effcompress.spec.sources import DataSpec, DomainSpec, ModelSpec
from effcompress.spec.training import (
    DistillSpec,
    DistributedSpec,
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
    device: Literal["auto", "cpu", "cuda"] = key("device; auto: a GPU if there is one", "auto")
    seed: int = key("seed of all random numbers", 0, minimum=0, maximum=2**32 - 1)
    effcompress: str | None = key("versions this recipe is for, e.g. '>=0.1'", None)
    plugins: tuple[InputPath, ...] = key("plugin files to load, relative to the recipe", ())
    prune: PruneSpec | None = key("pruning: a smaller model", None)
    sparsify: SparsifySpec | None = key("zeros in linear layers, after pruning", None)
    train: TrainSpec | None = key("pruning-aware training; without `prune:`, training alone", None)
    recover: RecoverSpec | None = key("training after one-shot pruning", None)
    distributed: DistributedSpec = key("several processes, started by torchrun", DistributedSpec())
    evaluate: EvaluateSpec = key("evaluation before and after", EvaluateSpec())
    save: SaveSpec = key("checkpoints", SaveSpec())
    export: ExportSpec = key("the model folder at the end", ExportSpec())
    track: TrackSpec | None = key("experiment trackers; without it none", None)

    @property
    def loop(self) -> LoopSpec | None:
        """The training section, ``train`` or ``recover``; None without one."""
        return self.train or self.recover
