"""The answer of a command: JSON for programs, tables for people. ``cli/`` prints it."""

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
