"""Reads the newest relevant events of a record without parsing the whole log."""

import os
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from effcompress.record import events
from effcompress.record.events import Event, of_type

BLOCK = 1 << 22
"""Bytes of a record that are in memory at a time."""
LONGEST = 16 * BLOCK
"""Bytes of a line beyond which it is damaged."""
KEPT = {"run": 1, "step": 20, "cut": 1, "warning": 3}
"""Event -> how many of the last ones are parsed."""


@dataclass(frozen=True)
class RecordTail:
    """The newest events of ``metrics.jsonl``. None: there is no such event."""

    run: events.Run | None
    steps: tuple[events.Step, ...]
    """The last 20, oldest first."""
    cut: events.Cut | None
    end: events.End | None
    """Only where the record ends with it."""
    warnings: int
    """All of the record."""
    last_warnings: tuple[str, ...]


def read_tail(path: Path) -> RecordTail:
    """Reads a record block by block and parses only the newest lines of ``KEPT``. A damaged or
    half-written line is left out; a missing file gives an empty tail.
    """
    lines = {kind: deque[bytes](maxlen=most) for kind, most in KEPT.items()}
    warnings, last = 0, b""
    if not path.is_file():  # opening a pipe would wait
        path = Path(os.devnull)
    with path.open("rb") as file:
        rest = b"\n"
        while block := file.read(BLOCK):
            block = rest + block
            whole = block[: block.rfind(b"\n")]
            rest = block[len(whole) :]  # a newline, and what may be half of the next line
            rest = rest if len(rest) < LONGEST else b""
            if not whole:
                continue
            last = whole[whole.rfind(b"\n") + 1 :]
            new = whole.count(_begin("warning"))
            warnings += new
            for kind, found in lines.items():
                # Searching costs most: skip blocks without warnings, and what occurs only once.
                if new if kind == "warning" else not (kind == "run" and found):
                    found.extend(_last(whole, kind, KEPT[kind]))
    found = [event for of_kind in lines.values() for event in map(_event, of_kind)]
    return RecordTail(
        run=next(iter(of_type(found, events.Run)), None),
        steps=of_type(found, events.Step),
        cut=next(iter(of_type(found, events.Cut)), None),
        end=next(iter(of_type([_event(last)], events.End)), None),
        warnings=warnings,
        last_warnings=tuple(event.text for event in of_type(found, events.Warn)),
    )


def _begin(kind: str) -> bytes:
    return f'\n{{"event": "{kind}"'.encode()


def _last(whole: bytes, kind: str, most: int) -> list[bytes]:
    """The last ``most`` lines of a kind, oldest first."""
    found: list[bytes] = []
    end = len(whole)
    while len(found) < most and (at := whole.rfind(_begin(kind), 0, end)) >= 0:
        stop = whole.find(b"\n", at + 1)
        found.append(whole[at + 1 : stop if stop >= 0 else None])
        end = at
    return found[::-1]


def _event(line: bytes) -> Event | None:
    """None where a line is damaged."""
    with suppress(ValueError):
        return events.parse(line)
    return None
