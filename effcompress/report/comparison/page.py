"""The page of a comparison: one HTML file that needs nothing else."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from effcompress.record import readable
from effcompress.report.comparison.columns import QUALITY
from effcompress.report.comparison.pictures import pictures
from effcompress.report.comparison.rows import Comparison, Row
from effcompress.report.comparison.spread import LEVEL
from effcompress.report.comparison.tables import comma_separated, grid, markdown, plain, written
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


def page(comparison: Comparison, drawn: Mapping[str, str]) -> str:
    """Returns the HTML of the page."""
    columns = written(comparison)
    helps = {c.title: c.help for c in columns}
    methods = [row for row in comparison.rows if row.size is not None]
    shown = _many(len(methods), "method")
    runs = _many(sum(len(row.attempts) for row in methods), "run")
    return render(
        "comparison.html.jinja",
        name=comparison.name,
        subtitle=f"{shown} in {runs}, beside the dense model",
        claims=comparison.claims,
        failures=[(row.label, row.reason) for row in comparison.rows if row.reason],
        conditions=comparison.conditions,
        header=[(title, helps.get(title, "")) for title in grid(comparison).header],
        rows=[*_rows(comparison)],
        notes=comparison.notes,
        level=f"{100 * LEVEL:g} %",
        legend=[(c.title, c.help) for c in columns],
        pictures=drawn,
        methods=[(row.label, *_method(row)) for row in methods],
    )


def _many(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _rows(comparison: Comparison) -> Iterator[tuple[Row, str, list[tuple[str, str]]]]:
    """Each row, the heading above it, and its cells without the name: (text, its mark)."""
    quality = [c.key for c in written(comparison)].index(QUALITY)
    before: int | None = None
    for row, (_, *cells) in zip(comparison.rows, grid(comparison).rows, strict=True):
        heading = ""
        if row.size is not None and row.size != before and len(comparison.sizes) > 1:
            heading = comparison.sizes[row.size].words
        before = row.size
        yield row, heading, [(c, row.mark if k == quality else "") for k, c in enumerate(cells)]


def _method(row: Row) -> tuple[Mapping[str, str], list[tuple[int, str, str, bool]]]:
    """What the recipe says, and (seed, folder, words, whether a report is there) of the runs."""
    says = next((a.facts.method for a in row.attempts if a.facts and a.facts.method), {})
    runs = []
    for attempt in row.attempts:
        took = attempt.facts.seconds if attempt.facts else None
        said = f", {readable.duration(took)}" if took else ""
        if attempt.reason:
            said = f": {attempt.reason}"
        linked = not attempt.reason and "/" in attempt.folder
        runs.append((attempt.seed, attempt.folder, said, linked))
    return says or {}, runs
