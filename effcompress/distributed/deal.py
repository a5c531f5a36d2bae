"""Which process holds what, without torch, so that ``plan`` computes the same."""

from collections.abc import Iterable
from typing import final


def shard_rows(count: int, rank: int, size: int) -> slice:
    """Returns the rows of ``count`` that ``rank`` of ``size`` holds."""
    each = -(-count // size)
    start = min(rank * each, count)
    return slice(start, min(start + each, count))


@final
class Deal:
    """Gives each item to the process that holds the fewest bytes so far, the lowest of equals:
    every process computes the same from the same items in the same order (list scheduling, Graham
    1969). Neighbours get different holders, so that what goes to them does not meet at one.
    """

    def __init__(self, processes: int) -> None:
        self.bytes = [0] * processes
        """Bytes that each process holds."""
        self.holder: dict[str, int] = {}
        """Item -> the rank that holds it."""

    def take(self, name: str, size: int) -> int:
        """Returns the holder of an item of ``size`` bytes; a new one is dealt out."""
        if name not in self.holder:
            self.holder[name] = self.bytes.index(min(self.bytes))
            self.bytes[self.holder[name]] += size
        return self.holder[name]

    def all(self, items: Iterable[tuple[str, int]]) -> dict[str, int]:
        """Deals out all items (name, bytes), in this order; returns their holders."""
        return {name: self.take(name, size) for name, size in items}
