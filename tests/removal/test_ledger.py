"""The ledger: physical positions and original units."""

from __future__ import annotations

import pytest
import torch

from effcompress.errors import SurgeryError
from effcompress.removal.ledger import Ledger


def test_original_numbers_survive_two_rounds() -> None:
    ledger = Ledger({"a": 6})
    ledger.bury("a", ledger.positions("a", [1, 4]))
    assert ledger.pending() and ledger.widths() == {"a": 4}
    assert ledger.compact("a").tolist() == [0, 2, 3, 5]
    assert ledger.positions("a", [5, 2]).tolist() == [3, 1]
    ledger.bury("a", ledger.positions("a", [5]))
    assert ledger.compact("a").tolist() == [0, 1, 2]
    assert ledger.original["a"].tolist() == [0, 2, 3] and not ledger.pending()
    with pytest.raises(SurgeryError, match="mini-group 4 was removed before"):
        ledger.positions("a", [4])


def test_scores_of_the_dead_are_infinite() -> None:
    ledger = Ledger({"a": 4})
    ledger.bury("a", torch.tensor([2]))
    marked = ledger.original_order({"a": torch.tensor([1.0, 2, 3, 4])})
    assert marked["a"].tolist() == [1, 2, torch.inf, 4]
    ledger.compact("a")
    assert ledger.original_order({"a": torch.tensor([1.0, 2, 3, 4])})["a"].tolist() == [
        1,
        2,
        torch.inf,
        4,
    ]


def test_state_round_trip() -> None:
    one, two = Ledger({"a": 4}), Ledger({"a": 4})
    one.bury("a", torch.tensor([0]))
    one.compact("a")
    one.bury("a", torch.tensor([1]))
    two.load_state_dict({k: v.clone() for k, v in one.state_dict().items()})
    assert two.widths() == {"a": 2} and two.original["a"].tolist() == [1, 2, 3]


def test_a_masked_unit_is_gone_before_any_commit() -> None:
    ledger = Ledger({"a": 6})
    ledger.bury("a", ledger.positions("a", [1, 4]))
    for units in ([4], [0, 1], [6]):
        with pytest.raises(SurgeryError, match=f"mini-group {units[-1]} was removed before"):
            ledger.positions("a", units)
    assert ledger.positions("a", [0, 5]).tolist() == [0, 5]
