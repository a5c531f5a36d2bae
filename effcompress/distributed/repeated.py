"""Work that is there only because there are several processes: each repeats what one alone would do
once, or enters a pass that counts for nothing, because a pass of a sharded model is a collective.
Its operations are not the method's (``runner/resources.py`` leaves them out).
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import final

from effcompress.distributed.world import World


@final
class _Aside:
    """Global, not thread-local: on GPUs a backward pass runs in autograd's own threads."""

    depth = 0


def repeating() -> bool:
    """Returns whether what runs now is not to be counted."""
    return _Aside.depth > 0


@contextmanager
def aside() -> Iterator[None]:
    """What runs inside is not counted."""
    _Aside.depth += 1
    try:
        yield
    finally:
        _Aside.depth -= 1


def by_all(world: World) -> AbstractContextManager[None]:
    """What every process of ``world`` computes alike inside counts on rank 0 alone."""
    return nullcontext() if world.main else aside()
