"""What needs no second process: which rows are whose, and what one process makes of another's."""

from __future__ import annotations

import pytest

from effcompress.distributed.rows import shard_rows
from effcompress.distributed.world import ALONE, World


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [0, 1, 5, 6, 61])
def test_every_row_belongs_to_one_process(count: int, size: int) -> None:
    rows = [range(count)[shard_rows(count, rank, size)] for rank in range(size)]
    assert [i for own in rows for i in own] == list(range(count))
    assert len(rows[0]) == max(len(own) for own in rows) == -(-count // size)


def test_a_batch_is_dealt_out_in_order() -> None:
    parts = [World(rank, 4).own_rows(12) for rank in range(4)]
    assert [list(range(12)[p]) for p in parts] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]


@pytest.mark.parametrize("here", [False, True])
def test_what_one_process_was_asked_all_were_asked(
    here: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for others in (0.0, 1.0):
        monkeypatch.setattr(World, "sums", lambda _self, v, n=others: [x + n for x in v])
        assert World(0, 2).any(here) == (here or others > 0)


def test_alone_nothing_is_communicated() -> None:
    assert ALONE.main and ALONE.own_rows(7) == slice(0, 7)
    assert ALONE.sums([1.0, 2.0]) == [1.0, 2.0] and ALONE.any(True) and not ALONE.any(False)


def test_alone_the_end_is_not_waited_for() -> None:
    said: list[str] = []
    ALONE.end_together(lambda: said.append("page"))
    World(1, 2).end_together(lambda: said.append("never"))  # rank 0 and its store are gone
    assert said == ["page"]
