"""The lines of a record that say how a run stands, out of hundreds of thousands of others."""

from __future__ import annotations

import json
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BLOCK = 1 << 22
"""Bytes of a record that are in memory at a time."""
KEPT = {"run": 1, "step": 20, "cut": 1, "warning": 3}
"""Kind of event -> how many of the last ones matter."""


@dataclass(frozen=True)
class RecordTail:
    """What ``metrics.jsonl`` said last. Events that are not there are empty."""

    run: dict[str, Any]
    steps: tuple[dict[str, Any], ...]
    """The last 20, oldest first."""
    cut: dict[str, Any]
    end: dict[str, Any]
    warnings: int
    """All there are."""
    last_warnings: tuple[str, ...]


def read_tail(path: Path) -> RecordTail:
    """Read a record block by block and parse only lines that matter. A last line that is only half
    there is left out, a file that is missing says nothing.
    """
    lines = {kind: deque[bytes](maxlen=most) for kind, most in KEPT.items()}
    warnings, last = 0, b""
    with suppress(FileNotFoundError), path.open("rb") as file:
        rest = b"\n"
        while block := file.read(BLOCK):
            block = rest + block
            whole = block[: block.rfind(b"\n")]
            rest = block[len(whole) :]  # the end of a line, and what may be half of the next one
            if not whole:
                continue
            last = whole[whole.rfind(b"\n") + 1 :]
            new = whole.count(_begin("warning"))
            warnings += new
            for kind, found in lines.items():
                # What is not there, and what comes once, is not searched for: a search costs most.
                if new if kind == "warning" else not (kind == "run" and found):
                    found.extend(_last(whole, kind, KEPT[kind]))
    read = {kind: [e for e in map(_event, found) if e] for kind, found in lines.items()}
    end = _event(last)
    return RecordTail(
        run=next(iter(read["run"]), {}),
        steps=tuple(read["step"]),
        cut=next(iter(read["cut"]), {}),
        end=end if end.get("event") == "end" else {},
        warnings=warnings,
        last_warnings=tuple(event["text"] for event in read["warning"]),
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


def _event(line: bytes) -> dict[str, Any]:
    """Empty where a line is damaged."""
    with suppress(ValueError):
        event = json.loads(line)
        if isinstance(event, dict):
            return event
    return {}
