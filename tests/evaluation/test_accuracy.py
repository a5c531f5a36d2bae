"""Which number of a task counts, and the mean of some, by hand."""

from __future__ import annotations

import math

import pytest

from effcompress.evaluation.accuracy import mean_of, scored
from effcompress.record.events import TaskScore
from effcompress.spec import SEVEN


def score(name: str, acc: float, norm: float | None = None, stderr: float | None = 0.1):
    metrics: dict[str, float | None] = {"acc": acc, "acc_stderr": stderr}
    if norm is not None:
        metrics |= {"acc_norm": norm, "acc_norm_stderr": stderr}
    return scored(name, metrics, examples=10)


def named(**scores: float) -> dict[str, TaskScore]:
    return {name: score(name, value, value) for name, value in scores.items()}


@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("arc_easy", "acc"),
        ("arc_challenge", "acc_norm"),
        ("boolq", "acc"),
        ("hellaswag", "acc_norm"),
        ("openbookqa", "acc_norm"),
        ("piqa", "acc"),
        ("winogrande", "acc"),
        ("sciq", "acc"),
    ],
)
def test_the_number_that_counts(name: str, metric: str) -> None:
    facts = score(name, 0.25, 0.75)
    assert (facts.metric, facts.value) == (metric, facts.metrics[metric])
    assert {facts.metrics["acc"], facts.metrics["acc_norm"]} == {0.25, 0.75}


def test_a_task_without_accuracy_shows_what_it_has() -> None:
    odd = scored("odd", {"f1": 0.5, "f1_stderr": None}, examples=10)
    assert (odd.metric, odd.value, odd.stderr) == ("f1", 0.5, None)


def test_the_mean_of_the_seven_leaves_others_out() -> None:
    mean = mean_of(named(**{name: 0.1 * k for k, name in enumerate(SEVEN)}, sciq=1.0))
    assert mean is not None
    assert (mean.value, mean.of) == (pytest.approx(0.3), "seven tasks")
    assert mean.stderr == pytest.approx(math.sqrt(7 * 0.01) / 7)
    assert mean.tasks == SEVEN


def test_the_mean_of_others_says_how_many() -> None:
    mean = mean_of({"boolq": score("boolq", 0.2), "sciq": score("sciq", 0.6, stderr=None)})
    assert mean is not None
    assert (mean.value, mean.stderr, mean.of) == (pytest.approx(0.4), None, "2 tasks")
    assert mean_of(named(boolq=0.2)) is None
