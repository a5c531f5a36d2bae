"""Comparison of runs: reads their records, flags differences, names the best and its ties, writes
page and tables.
"""

from __future__ import annotations

from pathlib import Path

from effcompress.report.comparison.facts import Attempt, Method, read
from effcompress.report.comparison.page import page
from effcompress.report.comparison.pictures import pictures
from effcompress.report.comparison.rows import Comparison, compare
from effcompress.report.comparison.tables import (
    Grid,
    as_json,
    brief,
    comma_separated,
    markdown,
    plain,
)
from effcompress.report.render import replace

__all__ = [
    "Attempt",
    "Comparison",
    "Grid",
    "Method",
    "brief",
    "compare",
    "plain",
    "read",
    "write",
]

FILES = ("comparison.json", "comparison.csv", "comparison.md", "comparison.html")
"""The files that ``write`` makes."""


def write(folder: Path, comparison: Comparison) -> Path:
    """Writes all ``FILES`` into ``folder``; returns the path of the page."""
    texts = (
        as_json(comparison),
        comma_separated(comparison),
        markdown(comparison),
        page(comparison, pictures(comparison)),
    )
    for name, text in zip(FILES, texts, strict=True):
        replace(folder / name, text)
    return folder / FILES[-1]
