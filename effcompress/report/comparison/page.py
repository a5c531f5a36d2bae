"""The page of a comparison: one HTML file that needs nothing else."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from effcompress.record import readable
from effcompress.report.comparison.columns import Column
from effcompress.report.comparison.dots import dots
from effcompress.report.comparison.names import Keys, differences, unusual
from effcompress.report.comparison.pictures import pictures
from effcompress.report.comparison.rows import Comparison, Row
from effcompress.report.comparison.spread import LEVEL
from effcompress.report.comparison.tables import (
    Grid,
    collapsed,
    comma_separated,
    grid,
    markdown,
    plain,
    written,
)
from effcompress.report.render import render, replace

FILES = ("comparison.json", "comparison.csv", "comparison.md", "comparison.html")
"""The files that ``write`` makes."""


def write(folder: Path, comparison: Comparison) -> Path:
    """Writes all ``FILES`` into ``folder``; returns the path of the page."""
    texts = (
        json.dumps(plain(comparison), indent=1, ensure_ascii=False) + "\n",
        comma_separated(comparison),
        markdown(comparison),
        page(comparison, pictures(comparison)),
    )
    for name, text in zip(FILES, texts, strict=True):
        replace(folder / name, text)
    return folder / FILES[-1]


@dataclass(frozen=True)
class Line:
    """A row of a table: the heading above it, what its recipe has of its own, its cells."""

    row: Row
    heading: str
    own: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """``header``: title and help of every column but the first."""

    title: str
    header: tuple[tuple[str, str], ...]
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Entry:
    """A method below the tables: ``says`` is what its recipe has of its own; a run is (seed,
    folder, words, whether a report is there).
    """

    row: Row
    says: Keys
    runs: tuple[tuple[int, str, str, bool], ...]


def page(comparison: Comparison, drawn: Mapping[str, str]) -> str:
    """Returns the HTML of the page."""
    columns = written(comparison)
    methods = [row for row in comparison.rows if row.size is not None]
    shown = _many(len(methods), "method")
    runs = _many(sum(len(row.attempts) for row in methods), "run")
    same, apart = differences({row.label: _says(row) for row in methods})
    equal, tables = _tables(comparison, columns, unusual(apart))
    return render(
        "comparison.html.jinja",
        name=comparison.name,
        subtitle=f"{shown} in {runs}, beside the dense model",
        claims=comparison.claims,
        failures=[(row.label, row.reason) for row in comparison.rows if row.reason],
        conditions=comparison.conditions,
        dots=dots(comparison),
        equal=equal,
        tables=tables,
        notes=comparison.notes,
        level=f"{100 * LEVEL:g} %",
        legend=[(c.title, c.help) for c in columns],
        pictures=drawn,
        same=same,
        methods=[Entry(row, apart[row.label], tuple(_runs(row))) for row in methods],
    )


def _many(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _says(row: Row) -> Keys | None:
    """What the recipe says of the method; None of a method whose runs recorded nothing."""
    return next((a.facts.method for a in row.attempts if a.facts and a.facts.method), None)


def _tables(
    comparison: Comparison, columns: Sequence[Column], own: Mapping[str, Keys]
) -> tuple[list[str], list[Table]]:
    """Returns what all methods have in common, and the tables of what they do not: the main one,
    then those of single domains and tasks.
    """
    whole = grid(comparison)
    equal, said = collapsed(comparison, whole)
    # Of the cells of a row: the method, the written columns, calibration tokens, runs.
    single = {k for k, c in enumerate(columns, 1) if "/" in c.key}
    by_task = {k for k, c in enumerate(columns, 1) if c.key.startswith("accuracy/")}
    every = set(range(1, len(whole.header)))
    parts = (
        ("", every - single - equal),
        ("Perplexity by domain", single - by_task),
        ("Accuracy by task", by_task),
    )
    helps = {c.title: c.help for c in columns}
    tables: list[Table] = []
    for title, numbers in parts:
        chosen = sorted(numbers)
        header = tuple((name, helps.get(name, "")) for name in (whole.header[k] for k in chosen))
        lines = tuple(_lines(comparison, whole, chosen, {} if title else own))
        tables += [Table(title, header, lines)] if chosen else []
    return said, tables


def _lines(
    comparison: Comparison, whole: Grid, chosen: Sequence[int], own: Mapping[str, Keys]
) -> Iterator[Line]:
    before: int | None = None
    for row, cells in zip(comparison.rows, whole.rows, strict=True):
        heading = ""
        if row.size is not None and row.size != before and len(comparison.sizes) > 1:
            heading = comparison.sizes[row.size].words
        before = row.size
        said = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in own.get(row.label, {}).items())
        yield Line(row, heading, said, tuple(cells[k] for k in chosen))


def _runs(row: Row) -> Iterator[tuple[int, str, str, bool]]:
    for attempt in row.attempts:
        took = attempt.facts.seconds if attempt.facts else None
        said = f", {readable.duration(took)}" if took else ""
        if attempt.reason:
            said = f": {attempt.reason}"
        linked = not attempt.reason and "/" in attempt.folder
        yield attempt.seed, attempt.folder, said, linked
