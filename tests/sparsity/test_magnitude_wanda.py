"""The formulas, by hand; counts, exactly."""

from __future__ import annotations

import pytest
import torch
from effcompress_plugins.wanda import wanda
from torch import tensor

from effcompress.sparsity.magnitude import SORTED, lowest, magnitude
from effcompress.spec import Pattern

PATTERNS = (Pattern(2, 4), Pattern(4, 8))


def random(rows: int = 24, inputs: int = 40, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, inputs, generator=torch.Generator().manual_seed(seed))


def test_magnitude_of_three_numbers() -> None:
    weight = tensor([[3.0, -1.0, 2.0]])
    assert magnitude(weight, 1 / 3, None).tolist() == [[3.0, 0.0, 2.0]]
    assert magnitude(weight, 2 / 3, None).tolist() == [[3.0, 0.0, 0.0]]
    assert weight.tolist() == [[3.0, -1.0, 2.0]], "its input is left alone"


def test_magnitude_ranks_a_layer_or_its_rows() -> None:
    weight = tensor([[1.0, 2.0], [30.0, 40.0]])
    assert magnitude(weight, 0.5, None).tolist() == [[0.0, 0.0], [30.0, 40.0]]
    assert magnitude(weight, 0.5, None, per="row").tolist() == [[0.0, 2.0], [0.0, 40.0]]


def test_wanda_of_three_numbers() -> None:
    # |w| * norm: 3 * 1 = 3, 1 * 5 = 5, 2 * 2 = 4.
    found = wanda(tensor([[3.0, -1.0, 2.0]]), tensor([1.0, 5.0, 2.0]), 1 / 3, None)
    assert found.tolist() == [[0.0, -1.0, 2.0]]
    found = wanda(tensor([[3.0, -1.0, 2.0]]), tensor([1.0, 5.0, 2.0]), 2 / 3, None)
    assert found.tolist() == [[0.0, -1.0, 0.0]]


def test_wanda_takes_as_many_from_every_row() -> None:
    weight, norm = random() * torch.logspace(-3, 3, 24)[:, None], random(1)[0].abs()
    gone = wanda(weight, norm, 0.6, None) == 0
    assert set(gone.sum(1).tolist()) == {24}
    by_hand = torch.zeros_like(gone)
    for row, scores in enumerate((weight.abs() * norm).tolist()):
        order = sorted(range(len(scores)), key=scores.__getitem__)
        by_hand[row, order[:24]] = True
    assert torch.equal(gone, by_hand)
    assert len(set((wanda(weight, norm, 0.6, None, per="layer") == 0).sum(1).tolist())) > 1


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_patterns_hold_exactly(pattern: Pattern) -> None:
    weight, norm = random(), random(1)[0].abs()
    for new in (magnitude(weight, 0.5, pattern), wanda(weight, norm, 0.5, pattern)):
        assert set((new == 0).reshape(-1, pattern.of).sum(1).tolist()) == {pattern.zeros}
    score = weight.abs() * norm
    new = wanda(weight, norm, 0.5, pattern)
    for row in range(24):
        for start in range(0, 40, pattern.of):
            group = score[row, start : start + pattern.of]
            kept = new[row, start : start + pattern.of] != 0
            assert group[kept].min() > group[~kept].max()


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_the_alpha_search_meets_the_share_row_by_row(share: float) -> None:
    weight, norm = random(64, 400), random(1, 400, 1)[0].abs()
    weight[:32] *= torch.linspace(0, 4, 400)  # rows of two kinds
    new = wanda(weight, norm, share, None, alpha_search=True)
    gone = new == 0
    assert float(gone.double().mean()) == pytest.approx(share, abs=1.1e-3)
    score = (weight.abs() * norm).double()
    lost = (score * gone).sum(1) / score.sum(1)
    # One alpha for all rows: each lost about that part of its sum, and not by as many weights.
    assert float(lost.max() - lost.min()) < 0.02
    assert len(set(gone.sum(1).tolist())) > 3


def test_the_alpha_search_in_three_numbers() -> None:
    # Sums of the scores in order: 1, 3, 6 of 6 and 1, 2, 10 of 10. At alpha 0.2 the first row loses
    # one weight and the second two: half of the six.
    weight = tensor([[3.0, 1.0, 2.0], [1.0, 1.0, 8.0]])
    found = wanda(weight, torch.ones(3), 0.5, None, alpha_search=True)
    assert found.tolist() == [[3.0, 0.0, 2.0], [0.0, 0.0, 8.0]]


def test_counts_are_floors_but_not_of_rounding_errors() -> None:
    assert int(lowest(random(1, 100), 0.29).sum()) == 29 and int(100 * 0.29) == 28
    assert int(lowest(random(1, 7), 0.5).sum()) == 3 and int(lowest(random(1, 5), 0.999).sum()) == 4
    assert int(lowest(random(3, 7), 0.5, "row").sum()) == 9
    assert int(lowest(random(3, 7), 0.5, "layer").sum()) == 10
    assert int(lowest(random(3, 7), 8, "layer").sum()) == 8


def test_equal_scores_go_in_order() -> None:
    assert lowest(torch.ones(2, 4), 2).tolist() == [[True, True, False, False]] * 2


@pytest.mark.parametrize("values", [4, 1 << 20])
def test_many_scores_are_ranked_as_a_stable_sort_does(values: int) -> None:
    """With many equal ones and with none."""
    draw = torch.Generator().manual_seed(values)
    score = torch.randint(values, (7, 2 * SORTED + 1), generator=draw).float()
    for per, rows in (("row", score), ("layer", score.view(1, -1))):
        for count in (0, 1, SORTED, score.shape[1]):
            wanted = torch.zeros_like(rows, dtype=torch.bool)
            wanted.scatter_(1, rows.argsort(dim=1, stable=True)[:, :count], True)
            assert torch.equal(lowest(score, count, per), wanted.view_as(score))  # type: ignore[arg-type]


def test_the_type_stays() -> None:
    weight = random().bfloat16()
    assert magnitude(weight, 0.5, None).dtype == torch.bfloat16
    assert wanda(weight, torch.ones(40), 0.5, None).dtype == torch.bfloat16
