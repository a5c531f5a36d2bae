"""Scores of tasks: the main metric of each, and their mean."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from effcompress.record import events
from effcompress.spec import SEVEN

NORMALISED = frozenset({"arc_challenge", "hellaswag", "openbookqa"})
"""Tasks whose main metric is ``acc_norm`` (the log-likelihood of an answer divided by its length);
of all others it is ``acc``. This is the choice of the tables of arXiv:2305.11627, and of papers
that compare with them.
"""


@dataclass(frozen=True)
class Metric:
    """One metric of a task and its standard error (None where the harness has none)."""

    value: float
    stderr: float | None


@dataclass(frozen=True)
class TaskScore:
    """The result of one task: ``metrics`` by the harness's names, over ``examples`` of ``of`` in
    the split; ``version`` is the task's.
    """

    name: str
    metrics: Mapping[str, Metric]
    examples: int
    of: int
    split: str
    shots: int
    version: str

    @property
    def metric(self) -> str:
        """Name of the main metric."""
        for wanted in ("acc_norm", "acc") if self.name in NORMALISED else ("acc",):
            if wanted in self.metrics:
                return wanted
        return next(iter(self.metrics))

    @property
    def main(self) -> Metric:
        """The metric that tables show and means are taken of."""
        return self.metrics[self.metric]

    def facts(self) -> events.TaskScore:
        """Returns the score as it is recorded."""
        return events.TaskScore(
            metric=self.metric,
            value=self.main.value,
            stderr=self.main.stderr,
            metrics={
                key: value
                for name, measured in self.metrics.items()
                for key, value in ((name, measured.value), (f"{name}_stderr", measured.stderr))
            },
            examples=self.examples,
            of=self.of,
            split=self.split,
            shots=self.shots,
            version=self.version,
        )


@dataclass(frozen=True)
class Mean:
    """The unweighted mean of the main metrics of ``tasks``, with its standard error."""

    value: float
    stderr: float | None
    tasks: tuple[str, ...]

    @property
    def words(self) -> str:
        """What it is the mean of, in words."""
        return "seven tasks" if set(self.tasks) == set(SEVEN) else f"{len(self.tasks)} tasks"


def mean_of(scores: Sequence[TaskScore]) -> Mean | None:
    """Returns the mean of the papers' seven tasks where all were evaluated (others do not count),
    else of all tasks; None of fewer than two.

    Tasks have different questions, so their errors are independent and variances add.
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
