"""What a reading command answers: facts for machines, tables for people. The command line draws."""

from __future__ import annotations

import math
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


def short(count: float) -> str:
    """469,000,000 -> 469M; 1.5e12 -> 1.5T."""
    for scale, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(count) >= scale:
            return f"{count / scale:.4g}{letter}"
    return f"{count:.0f}"


def gigabytes(count: float) -> str:
    """Bytes -> GB with one decimal (1 GB = 1e9 bytes)."""
    return f"{count / 1e9:.1f} GB"


def size(count: float) -> str:
    """Bytes -> 2.69 GB, 323 MB, 1.5 kB; three digits (1 GB = 1e9 bytes), ``-`` for none."""
    for scale, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= scale:
            digits = max(0, 2 - int(math.log10(count / scale)))
            return f"{count / scale:.{digits}f} {unit}"
    return f"{count:.0f} B" if count else "-"


def duration(seconds: float) -> str:
    """0.25 s, 12 min, 3.1 h, 14.2 days."""
    for scale, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds:.3g} s"


def with_error(value: float, stderr: float | None) -> str:
    """A share and its standard error in percent, of equal width: ``55.0 \u00b1 11.4``."""
    return f"{value * 100:.1f}" + ("" if stderr is None else f" \u00b1 {stderr * 100:4.1f}")
