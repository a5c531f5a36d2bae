"""Where the processes of one start meet. ``torchrun`` keeps the store in which they exchange their
addresses over its restarts (``--max-restarts``), and torch would read there the addresses of
processes that are gone; so each start agrees on keys of its own.
"""

import datetime
import time
import uuid

from torch.distributed import DistStoreError
from torch.distributed.distributed_c10d import PrefixStore, Store

_HELLO, _REPLY, _STARTS = "effcompress/hello", "effcompress/reply", "effcompress/starts"
_POLL = 0.01
"""Seconds between two looks of rank 0."""


def own_keys(store: Store, rank: int, size: int, patience: datetime.timedelta) -> Store:
    """Returns ``store`` with a prefix that no earlier start has used, the same on all ranks.
    Collective.

    Every other rank announces itself under a new name, and rank 0 answers to whatever names it
    finds, also to those of earlier starts, until all of this start have seen its answer. The
    restart count of ``torchrun`` will not do: it differs between machines, as it counts the
    failures of each.

    Raises DistStoreError where a rank is not there within ``patience``.
    """
    if rank == 0:
        prefix = f"{_STARTS}/{uuid.uuid4().hex}"
        _answer(store, prefix, size, patience)
        return PrefixStore(prefix, store)
    name = uuid.uuid4().hex
    store.set(f"{_HELLO}/{rank}", name)
    store.wait([f"{_REPLY}/{name}"], patience)
    prefix = store.get(f"{_REPLY}/{name}").decode()
    store.add(_joined(prefix), 1)
    return PrefixStore(prefix, store)


def _answer(store: Store, prefix: str, size: int, patience: datetime.timedelta) -> None:
    answered: set[bytes] = set()
    deadline = time.monotonic() + patience.total_seconds()
    while store.add(_joined(prefix), 0) < size - 1:  # adding nothing reads
        for rank in range(1, size):
            key = f"{_HELLO}/{rank}"
            if store.check([key]) and (name := store.get(key)) not in answered:
                store.set(f"{_REPLY}/{name.decode()}", prefix)
                answered.add(name)
        if time.monotonic() > deadline:
            raise DistStoreError(f"{size - 1} others did not come within {patience}")
        time.sleep(_POLL)


def _joined(prefix: str) -> str:
    return f"{prefix}/joined"
