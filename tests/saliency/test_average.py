"""The running mean, by hand."""

from __future__ import annotations

import pytest
import torch

from effcompress.saliency.average import ScoreAverage
from effcompress.spec import MeasureSpec

ALL = {"a": torch.arange(3)}


def test_decay_by_hand() -> None:
    average = ScoreAverage({"a": 3}, MeasureSpec(decay=0.5))
    average.update({"a": torch.tensor([1.0, 2, 3])}, ALL)
    assert average.read()["a"].tolist() == [1, 2, 3]  # bias corrected
    average.update({"a": torch.tensor([4.0, 2, 0])}, ALL)
    assert average.read()["a"].tolist() == pytest.approx([3, 2, 1])  # (0.25 x + 0.5 y) / 0.75


def test_plain_mean() -> None:
    average = ScoreAverage({"a": 3}, MeasureSpec(average="between_cuts"))
    for k in range(4):
        average.update({"a": torch.full((3,), float(k))}, ALL)
    assert average.read()["a"].tolist() == [1.5, 1.5, 1.5]


def test_units_keep_their_original_number_after_a_cut() -> None:
    average = ScoreAverage({"a": 3}, MeasureSpec(decay=0.5))
    average.update({"a": torch.tensor([1.0, 2, 3])}, ALL)
    average.update({"a": torch.tensor([1.0, 3.0])}, {"a": torch.tensor([0, 2])})
    value = average.read()["a"]
    assert value[0] == pytest.approx(1) and value[2] == pytest.approx(3)


def test_state_round_trip() -> None:
    one, two = (ScoreAverage({"a": 3}, MeasureSpec(decay=0.9)) for _ in range(2))
    one.update({"a": torch.tensor([1.0, 2, 3])}, ALL)
    two.load_state_dict(one.state_dict())
    assert torch.equal(one.read()["a"], two.read()["a"])


def test_window_forgets_what_is_older() -> None:
    average = ScoreAverage({"a": 3}, MeasureSpec(average="window", window=2))
    for k in (1.0, 5.0, 9.0):
        average.update({"a": torch.full((3,), k)}, ALL)
    assert average.read()["a"].tolist() == [7, 7, 7]
    again = ScoreAverage({"a": 3}, MeasureSpec(average="window", window=2))
    again.load_state_dict({k: v.clone() for k, v in average.state_dict().items()})
    for one in (average, again):
        one.update({"a": torch.full((3,), 3.0)}, ALL)
        assert one.read()["a"].tolist() == [6, 6, 6]


def test_between_cuts_begins_anew() -> None:
    average = ScoreAverage({"a": 3}, MeasureSpec(average="between_cuts"))
    average.update({"a": torch.full((3,), 8.0)}, ALL)
    average.cut()
    assert average.read()["a"].tolist() == [8, 8, 8]  # a run may end here
    for k in (1.0, 2.0):
        average.update({"a": torch.full((3,), k)}, ALL)
    assert average.read()["a"].tolist() == [1.5, 1.5, 1.5]
