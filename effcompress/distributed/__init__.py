"""The only user of ``torch.distributed``: ranks, collectives and DDP (``world.py``), operations on
tensors that may be sharded by rows (``rows.py``), FSDP2 wrapping (``shards.py``).
"""

from effcompress.distributed.rows import (
    clear,
    first_row,
    is_sharded,
    own,
    select,
    shard_like,
    whole,
    write_back,
)
from effcompress.distributed.shards import Shards
from effcompress.distributed.world import ALONE, World, joined, needs_all_ranks, unsynchronised

__all__ = [
    "ALONE",
    "Shards",
    "World",
    "clear",
    "first_row",
    "is_sharded",
    "joined",
    "needs_all_ranks",
    "own",
    "select",
    "shard_like",
    "unsynchronised",
    "whole",
    "write_back",
]
