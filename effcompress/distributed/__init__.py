"""The one door to other processes: who takes part, who decides, and what is added up
(``world.py``); parameters of which every process holds some rows (``rows.py``, ``shards.py``).
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
from effcompress.distributed.world import ALONE, World, in_step, joined, unsynchronised

__all__ = [
    "ALONE",
    "Shards",
    "World",
    "clear",
    "first_row",
    "in_step",
    "is_sharded",
    "joined",
    "own",
    "select",
    "shard_like",
    "unsynchronised",
    "whole",
    "write_back",
]
