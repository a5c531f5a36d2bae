"""The mean over trained tokens, by hand."""

from __future__ import annotations

import pytest
import torch

from effcompress.train.loss import by_domain, over_tokens


def test_the_mask_belongs_to_the_token_that_is_predicted() -> None:
    # Losses of tokens 1, 2 and 3; token 0 has no loss. In the first row tokens 2 and 3 are trained.
    each_BT = torch.tensor([[1.0, 2.0, 4.0], [1.0, 2.0, 4.0], [1.0, 2.0, 4.0]])
    trained_BT = torch.tensor([[0, 0, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]], dtype=torch.bool)
    assert over_tokens(each_BT, trained_BT).tolist() == [3.0, 1.0, 0.0]
    assert over_tokens(each_BT, None).tolist() == pytest.approx([7 / 3] * 3)


def test_a_domain_is_the_mean_of_its_rows() -> None:
    found = by_domain(torch.tensor([1.0, 2.0, 4.0]), ("b", "a", "b"))
    assert found == {"a": 2.0, "b": 2.5} and [*found] == ["a", "b"]
