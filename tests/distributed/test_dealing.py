"""Gram matrices that each have one holder, and layers that are gathered in bfloat16."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from effcompress.distributed.deal import Deal
from tests import warm
from tests.distributed import dealing

pytestmark = pytest.mark.timeout(900)  # a machine may be busy with more than this


@pytest.mark.parametrize("limit", [5, 1 << 20], ids=["sampled", "all"])
def test_each_matrix_is_a_mean_and_has_one_holder(tmp_path: Path, limit: int) -> None:
    """Of few tokens the rows are sent, of many the matrix; three processes divide no width."""
    code, said = warm.together(dealing.dealt, limit, folder=tmp_path, processes=3)
    assert code == 0, said


@pytest.mark.parametrize("act", [dealing.spoilt, dealing.failing, dealing.halved])
def test_what_two_processes_make_of_it(tmp_path: Path, act: Callable[[], None]) -> None:
    code, said = warm.together(act, folder=tmp_path)
    assert code == 0, said


def test_a_deal_is_even_and_lasts() -> None:
    deal = Deal(3)
    layer = [("qkv", 4), ("o", 4), ("up", 4), ("down", 49)]
    holders = deal.all((f"{k}.{name}", size) for k in range(30) for name, size in layer)
    assert max(deal.bytes) - min(deal.bytes) <= 49 and sum(deal.bytes) == 30 * 61
    assert deal.all([(name, 1) for name in reversed(holders)]) == holders
    assert [*Deal(4).all((str(k), 1) for k in range(6)).values()] == [0, 1, 2, 3, 0, 1]
