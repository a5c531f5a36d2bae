"""The answer of a command: JSON for programs, tables for people. ``cli/`` prints it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Json = None | bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"]
"""A JSON value."""


@dataclass(frozen=True)
class Table:
    """One table. Cells are text; the command line right-aligns numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Answer:
    """``data`` for programs; ``sheets`` and ``notes`` show the same to people."""

    data: Mapping[str, Json]
    sheets: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()


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
