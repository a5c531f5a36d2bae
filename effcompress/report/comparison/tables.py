"""A comparison as files that machines and other pages read: JSON, CSV, Markdown."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from effcompress.report.comparison.columns import QUALITY, Column
from effcompress.report.comparison.facts import Facts
from effcompress.report.comparison.rows import Comparison, Row
from effcompress.report.comparison.spread import BEST
from effcompress.report.render import render

FORMAT = 1


@dataclass(frozen=True)
class Grid:
    """The table as text: ``header`` and ``rows`` of cells, the first of which is the method."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def written(comparison: Comparison) -> tuple[Column, ...]:
    """Returns perplexity, size, tokens, and the columns with a value other than zero."""
    return tuple(
        column
        for column in comparison.columns
        if column.key in ("params", "removed", "trained", QUALITY)
        or any(row.values[column.key].mean for row in comparison.rows if column.key in row.values)
    )


def grid(comparison: Comparison) -> Grid:
    """Returns all written columns; without a result, the reason stands in the second cell."""
    columns = written(comparison)
    header = ("method", *(c.title for c in columns), "calibration tokens", "runs")
    rows = []
    for row in comparison.rows:
        runs = "0" if row.reason else str(len(row.done)) if row.size is not None else ""
        why = row.reason if row.size is None else f"failed: {row.reason}"
        rows.append((*_cells(row, columns, why), row.calibration, runs))
    return Grid(header, tuple(rows))


def collapsed(comparison: Comparison, table: Grid) -> tuple[set[int], list[str]]:
    """Returns the numbers of columns that say the same for all methods, and what each says; a
    column that says nothing gives no words. The method and perplexity are never among them.
    """
    results = [
        cells
        for row, cells in zip(comparison.rows, table.rows, strict=True)
        if row.size is not None and not row.reason
    ]
    dense = next(
        (c for r, c in zip(comparison.rows, table.rows, strict=True) if r.size is None), ()
    )
    equal: set[int] = set()
    said: list[str] = []
    for k in range(2, len(table.header)):
        values = {cells[k] for cells in results}
        if len(values) != 1 or (len(results) < 2 and values != {""}):
            continue
        equal.add(k)
        if value := values.pop():
            had = dense[k] if dense else ""
            before = f" (the dense model: {had})" if had not in ("", "0", value) else ""
            said.append(f"{table.header[k]} {value}{before}")
    return equal, said


def _cells(row: Row, columns: Sequence[Column], why: str) -> tuple[str, ...]:
    """``taylor [a, b] (tied)`` and a cell for each column; without a result ``why`` alone."""
    letters = f" [{', '.join(row.notes)}]" if row.notes else ""
    name = f"{row.label}{letters}" + (f" ({row.mark})" if row.mark else "")
    if row.reason:
        return (name, why, *("" for _ in columns[1:]))
    return (name, *(column.cell(row.values.get(column.key)) for column in columns))


ORDER = (QUALITY, "params", "prune_seconds", "prune_memory", "seconds", "accuracy")
"""Columns that a narrow table shows first."""


def brief(comparison: Comparison) -> Grid:
    """Returns the table for a terminal: short titles, the most important columns, no reasons."""
    found = written(comparison)
    first = [c for key in ORDER for c in found if c.key == key]
    columns = (*first, *(c for c in found if c.key not in ORDER))
    rows = (_cells(r, columns, "" if r.size is None else "failed") for r in comparison.rows)
    return Grid(("method", *(c.brief or c.title for c in columns)), tuple(rows))


def markdown(comparison: Comparison) -> str:
    """Returns a page for GitHub: conditions, table, footnotes. The best is bold."""
    table = grid(comparison)
    quality = 1 + [c.key for c in written(comparison)].index(QUALITY)
    rows = [
        {"cells": cells, "bold": (0, quality) if row.mark == BEST else ()}
        for row, cells in zip(comparison.rows, table.rows, strict=True)
    ]
    names = {**vars(comparison), "header": table.header, "rows": rows}
    return render("comparison.md.jinja", **names).rstrip() + "\n"


def comma_separated(comparison: Comparison) -> str:
    """Returns one line per row: for every column its mean and standard deviation, in base units."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    keys = [column.key for column in comparison.columns]
    head = [f"{key}{part}" for key in keys for part in ("", " sd")]
    writer.writerow(["method", "size", "mark", "notes", "runs", *head, "calibration", "reason"])
    for row in comparison.rows:
        cells: list[Any] = []
        for key in keys:
            value = row.values.get(key)
            cells += ["", ""] if value is None else [value.mean, value.deviation]
        size = "" if row.size is None else round(comparison.sizes[row.size].params)
        own = [row.full, size, row.mark, " ".join(row.notes), len(row.done)]
        writer.writerow([*own, *cells, row.calibration, row.reason])
    return out.getvalue()


def plain(comparison: Comparison) -> dict[str, Any]:
    """Returns everything as JSON values, with the facts of every run."""
    return {
        "format": FORMAT,
        "name": comparison.name,
        "claims": [*comparison.claims],
        "conditions": dict(comparison.conditions),
        "notes": dict(comparison.notes),
        "columns": {c.key: {"title": c.title, "help": c.help} for c in comparison.columns},
        "sizes": [asdict(size) for size in comparison.sizes],
        "rows": [
            {
                "method": row.full,
                **{key: getattr(row, key) for key in ("size", "mark", "notes", "reason")},
                "calibration": row.calibration,
                "values": {key: asdict(value) for key, value in row.values.items()},
                "runs": [
                    {
                        **{key: getattr(run, key) for key in ("seed", "folder", "reason")},
                        "facts": run.facts and _plain_facts(run.facts),
                    }
                    for run in row.attempts
                ],
            }
            for row in comparison.rows
        ],
    }


def _plain_facts(known: Facts) -> dict[str, Any]:
    """All but the losses of the steps, which are in the run's own folder."""
    facts = {**vars(known)}
    del facts["losses"]
    facts["calibration"] = [
        asdict(t) for t in sorted(facts["calibration"], key=lambda t: str(t.hash))
    ]
    if facts["heldout"] is not None:
        facts["heldout"] = {domain: asdict(t) for domain, t in facts["heldout"].items()}
    if facts["layers"] is not None:
        facts["layers"] = sorted(facts["layers"])
    return facts
