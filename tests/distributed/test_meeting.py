"""Processes that are started again meet under other keys of the same store."""

from __future__ import annotations

import datetime
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed import DistStoreError, Store, TCPStore

from effcompress.distributed.meeting import own_keys

SOON = datetime.timedelta(seconds=60)


@pytest.fixture
def kept() -> TCPStore:
    """The launcher's, which outlives the processes."""
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def client(kept: TCPStore) -> TCPStore:
    return TCPStore("127.0.0.1", kept.port, is_master=False, wait_for_workers=False)


def meet(kept: TCPStore, ranks: list[int], size: int) -> list[Store]:
    """What the ranks get that come; the others died before."""
    with ThreadPoolExecutor(len(ranks)) as threads:
        begun = [threads.submit(own_keys, client(kept), rank, size, SOON) for rank in ranks]
        return [one.result() for one in begun]


def test_every_start_has_keys_of_its_own(kept: TCPStore) -> None:
    starts = [meet(kept, order, 3) for order in ([0, 1, 2], [2, 1, 0])]
    for number, stores in enumerate(starts):
        stores[0].set("address", str(number))
    for number, stores in enumerate(starts):
        assert [store.get("address") for store in stores] == [str(number).encode()] * 3


def test_who_died_on_the_way_is_not_counted(kept: TCPStore) -> None:
    """A first start in which rank 1 announces itself and is gone, and rank 2 never comes."""
    kept.set("effcompress/hello/1", "gone")
    soon = datetime.timedelta(seconds=0.3)
    with pytest.raises(DistStoreError, match="2 others did not come"):
        own_keys(client(kept), 0, 3, soon)
    assert kept.check(["effcompress/reply/gone"])
    first, *others = meet(kept, [0, 1, 2], 3)
    first.set("address", "here")
    assert [store.get("address") for store in others] == [b"here"] * 2
