"""What solving tasks gives: one score per task, and their mean."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from effcompress.spec.results import SEVEN

NORMALISED = frozenset({"arc_challenge", "hellaswag", "openbookqa"})
"""Tasks whose main number is ``acc_norm``, where the log-likelihood of an answer is divided by its
length; of all others it is ``acc``. So LLM-Pruner's tables read (its issue 25), and those that
compare with them.
"""


@dataclass(frozen=True)
class Measured:
    """One metric and its standard error (None where the harness gives none)."""

    value: float
    stderr: float | None


@dataclass(frozen=True)
class TaskScore:
    """What a task gave: ``metrics`` as the harness names them, over ``examples`` of the ``of`` that
    the split has; ``version`` is the task's.
    """

    name: str
    metrics: Mapping[str, Measured]
    examples: int
    of: int
    split: str
    shots: int
    version: str

    @property
    def metric(self) -> str:
        """Name of the main number."""
        for wanted in ("acc_norm", "acc") if self.name in NORMALISED else ("acc",):
            if wanted in self.metrics:
                return wanted
        return next(iter(self.metrics))

    @property
    def main(self) -> Measured:
        """The number that tables show and means are taken of."""
        return self.metrics[self.metric]

    def facts(self) -> dict[str, Any]:
        """Plain JSON values."""
        numbers = {
            key: value
            for name, measured in self.metrics.items()
            for key, value in ((name, measured.value), (f"{name}_stderr", measured.stderr))
        }
        main = {"metric": self.metric, "value": self.main.value, "stderr": self.main.stderr}
        amount = {"examples": self.examples, "of": self.of, "split": self.split}
        return {**main, **numbers, **amount, "shots": self.shots, "version": self.version}


@dataclass(frozen=True)
class Mean:
    """The unweighted mean of the main numbers of ``tasks``, with its standard error."""

    value: float
    stderr: float | None
    tasks: tuple[str, ...]

    @property
    def words(self) -> str:
        """What it is the mean of."""
        return "seven tasks" if set(self.tasks) == set(SEVEN) else f"{len(self.tasks)} tasks"


def mean_of(scores: Sequence[TaskScore]) -> Mean | None:
    """The mean of the seven tasks of the papers where all were measured (others do not count into
    it), else of all; None of fewer than two. Errors of tasks are independent.
    """
    seven = [score for score in scores if score.name in SEVEN]
    taken = seven if len(seven) == len(SEVEN) else list(scores)
    if len(taken) < 2:
        return None
    errors = [score.main.stderr for score in taken]
    known = [error for error in errors if error is not None]
    joint = math.sqrt(math.fsum(error**2 for error in known)) / len(taken)
    value = math.fsum(score.main.value for score in taken) / len(taken)
    stderr = joint if len(known) == len(errors) else None
    return Mean(value, stderr, tuple(score.name for score in taken))
