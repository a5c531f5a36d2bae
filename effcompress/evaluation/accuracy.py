"""Scores of tasks: the main metric of each, and their mean."""

import math
from collections.abc import Mapping
from typing import Any

from effcompress.record.events import TaskMean, TaskScore
from effcompress.spec import SEVEN

NORMALISED = frozenset({"arc_challenge", "hellaswag", "openbookqa"})
"""Tasks whose main metric is ``acc_norm`` (the log-likelihood of an answer divided by its length);
of all others it is ``acc``. This is the choice of the tables of arXiv:2305.11627, and of papers
that compare with them.
"""


def scored(name: str, metrics: Mapping[str, float | None], **amounts: Any) -> TaskScore:
    """Returns the score of a task by its main metric, the one that tables show and means are taken
    of. ``metrics``: each by the harness's name, followed by its ``<metric>_stderr``.
    """
    wanted = ("acc_norm", "acc") if name in NORMALISED else ("acc",)
    metric = next(key for key in (*wanted, *metrics) if key in metrics)
    main: Any = {"value": metrics[metric], "stderr": metrics[f"{metric}_stderr"]}
    return TaskScore(metric=metric, **main, metrics=metrics, **amounts)


def mean_of(scores: Mapping[str, TaskScore]) -> TaskMean | None:
    """Returns the mean of the papers' seven tasks where all were evaluated (others do not count),
    else of all tasks; None of fewer than two.

    Tasks have different questions, so their errors are independent and variances add.
    """
    seven = scores.keys() >= {*SEVEN}
    taken = {name: one for name, one in scores.items() if name in SEVEN or not seven}
    if len(taken) < 2:
        return None
    known = [one.stderr for one in taken.values() if one.stderr is not None]
    joint = math.sqrt(math.fsum(error**2 for error in known)) / len(taken)
    return TaskMean(
        value=math.fsum(one.value for one in taken.values()) / len(taken),
        stderr=joint if len(known) == len(taken) else None,
        of="seven tasks" if seven else f"{len(taken)} tasks",
        tasks=tuple(taken),
    )
