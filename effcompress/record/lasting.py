"""A stream for a view that lasts longer than the terminal, pipe or log file behind it."""

from contextlib import suppress
from typing import Any, TextIO, final


@final
class Lasting:
    """Passes text on to ``stream`` and drops what it does not take: its terminal was closed, its
    pipe has no reader, the disk of its file is full. A run goes on then, since its record has
    everything; text that comes when there is room again is written.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Returns the number of characters, whether or not they were written."""
        with suppress(OSError, ValueError):  # ValueError: it was closed
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
