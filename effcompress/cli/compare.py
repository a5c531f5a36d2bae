"""``effcompress compare``."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from effcompress.cli.arguments import AsJson, Offline, Overrides, print_json, say
from effcompress.cli.signals import stop_on_signals
from effcompress.errors import RecipeError, printable

if TYPE_CHECKING:
    from effcompress.report.comparison.rows import Comparison
    from effcompress.report.comparison.tables import Grid

_GAP = 2

Targets = Annotated[
    list[Path],
    typer.Argument(metavar="RECIPE_OR_RUN", help="Recipe files (.yaml) and folders of runs."),
]
Seeds = Annotated[
    str | None,
    typer.Option(
        metavar="LIST", help="Run every recipe with each seed, e.g. 0,1,2. Default: its own seed."
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Output folder. Default: comparisons/ and the names of the targets."
    ),
]
Jobs = Annotated[
    int,
    typer.Option(
        metavar="N",
        min=0,
        help="Runs at the same time, one process each. 0: all in this process, where a "
        "crash of one run ends the comparison.",
    ),
]


def compare(
    targets: Targets,
    seeds: Seeds = None,
    output: Output = None,
    set_: Overrides = None,
    jobs: Jobs = 1,
    offline: Offline = False,
    json: AsJson = False,
) -> None:
    """Run recipes and compare the results in one table.

    Finished runs are not repeated: the same command continues a comparison.
    --set applies to all recipes.
    """
    from effcompress.cli.progress import make_progress
    from effcompress.compare.compare import compare as compare_all
    from effcompress.report.comparison.tables import plain

    with stop_on_signals() as stopping:
        page, found = compare_all(
            targets,
            progress=make_progress(plain=not jobs),
            seeds=_numbers(seeds),
            overrides=set_ or (),
            output=output,
            at_once=jobs,
            offline=offline,
            stopping=stopping,
        )
    if json:
        print_json(plain(found))
    else:
        _show(found, page)
    if not any(row.done for row in found.rows if row.size is not None):
        raise typer.Exit(1)


def _numbers(seeds: str | None) -> list[int]:
    """Parses ``0,1,2``, without duplicates. Raises RecipeError for anything else."""
    words = [word.strip() for word in (seeds or "").split(",") if word.strip()]
    if not all(word.isdecimal() and int(word) < 2**32 for word in words):
        what, fix = f"'{seeds}' is no list of seeds", "Write e.g. --seeds 0,1,2."
        raise RecipeError(what, where="--seeds", fix=fix)
    return list(dict.fromkeys(int(word) for word in words))


def _show(found: Comparison, page: Path) -> None:
    """Prints conditions, the columns that fit the terminal, footnotes, and the file paths."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from effcompress.report.comparison.tables import brief

    def text(words: str, style: str = "") -> Text:
        return Text(printable(words), style=style)

    console = Console(highlight=False)
    lines = Table.grid(padding=(0, _GAP))
    for title, words in found.conditions:
        lines.add_row(text(title, "dim"), text(words))
    console.print(lines)
    console.print()
    shown, left = fitting(brief(found), console.width)
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, _GAP, 0, 0))
    for number, title in enumerate(shown.header):
        table.add_column(text(title), justify="right" if number else "left", overflow="fold")
    for row, cells in zip(found.rows, shown.rows, strict=True):
        style = {"best": "bold"}.get(row.mark, "italic" if row.size is None else "")
        table.add_row(*(text(cell, style) for cell in cells))
    console.print(table)
    console.print()
    for letter, words in found.notes:
        console.print(text(f"[{letter}] {words}"))
    for row in found.rows:
        if row.reason:
            console.print(text(f"{row.label}: {row.reason}", "red"))
    for claim in found.claims:
        console.print(text(claim))
    if left:
        console.print(text(f"In the files also: {', '.join(left)}.", "dim"))
    say(f"page  {page}")
    say(f"data  {page.with_suffix('.json')}, .csv, .md")


def fitting(grid: Grid, width: int) -> tuple[Grid, list[str]]:
    """Returns the first columns that fit into ``width`` characters, and the other titles."""
    widths = [
        max(len(title), *(len(row[k]) for row in grid.rows)) for k, title in enumerate(grid.header)
    ]
    ends = itertools.accumulate(column + _GAP for column in widths)
    taken = max(1, sum(end - _GAP <= width for end in ends))
    cut = type(grid)(grid.header[:taken], tuple(row[:taken] for row in grid.rows))
    return cut, list(grid.header[taken:])
