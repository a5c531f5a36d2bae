"""What a reading command answers: facts for machines, tables for people. The command line draws."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Table:
    """One table. Cells are text; numbers are right-aligned by the reader."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Answer:
    """``data`` is JSON; ``sheets`` and ``notes`` say the same for people."""

    data: Mapping[str, Any]
    sheets: tuple[Table, ...] = ()
    notes: tuple[str, ...] = field(default=())
