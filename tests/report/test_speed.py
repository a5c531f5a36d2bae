"""Speed of training beside what its operations predict, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from effcompress.record.events import Commit, Cut, Step
from effcompress.report.gather import Record
from effcompress.report.speed import expected, speed, told


def step(number: int, rate: float, flops: float) -> Step:
    return Step(
        step=number,
        tokens=100 * number,
        loss=2.0,
        learning_rate=1e-3,
        params=1000,
        tokens_per_second=rate,
        flops=flops,
    )


def record() -> Record:
    """100 tokens a step: 10 per second with 500 operations each, then 16 with 250. The first step
    was slow.
    """
    whole = [step(n, 10.0 if n > 1 else 1.0, 500.0) for n in range(1, 6)]
    small = [step(n, 16.0, 250.0) for n in range(6, 10)]
    cut = Cut(
        step=5,
        tokens=500,
        params=500,
        removed={"ffn": 3},
        share_removed={"ffn": 0.5},
        saliency={"ffn": 0.1},
        seconds=4.0,
    )
    costs = (cut, Commit(step=5, params=500, seconds=1.0))
    return Record(run=None, steps=(*whole, *small), cuts=(cut,), costs=costs)


def test_by_hand() -> None:
    found = speed(record())
    assert found is not None
    assert (found.before, found.after) == (10.0, 16.0)
    assert found.predicted == pytest.approx(20.0)  # half the operations, twice the tokens
    # 4 steps of 10 s and 4 of 5 s were to be expected; 40 s, 25 s and 5 s of cutting it took.
    assert found.kept == pytest.approx(60 / 70)
    assert told(found).startswith("x1.60, by operations x2.00; with cuts and commits 85.7 %")
    assert expected(record())[0] == (100.0, pytest.approx(10.0))
    assert expected(record())[-1] == (900.0, pytest.approx(20.0))


@pytest.mark.parametrize(
    "less",
    [
        {"cuts": ()},
        {"steps": record().steps[:6]},
        {"steps": tuple(replace(s, flops=0.0) for s in record().steps)},  # an earlier version's
        {"steps": ()},
    ],
)
def test_nothing_is_said_without_enough(less: dict) -> None:
    found = replace(record(), **less)
    assert speed(found) is None and expected(found) == []
