"""Arguments and options of several commands, and how answers and errors are printed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from effcompress.errors import (
    CoverageError,
    EffcompressError,
    PluginError,
    RunError,
    Stopped,
    printable,
)
from effcompress.launcher import launched

if TYPE_CHECKING:
    from effcompress.answer import Answer
    from effcompress.recipe import LoadedRecipe

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe file (.yaml).")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override one value, e.g. train.tokens=2M. May be repeated.",
    ),
]


def process() -> int:
    """Returns the rank of this process; 0 where it runs alone, or no launcher says."""
    with suppress(EffcompressError):
        return launched().rank
    return 0


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Offline = Annotated[
    bool, typer.Option("--offline", help="Use only files that are already on this machine.")
]


def recipe_or_folder(target: Path, overrides: Sequence[str] = ()) -> LoadedRecipe | Path:
    """Returns a folder as it is, and a recipe file loaded and checked."""
    from effcompress.recipe import load

    return target if target.is_dir() else load(target, overrides)


def load_plugin(file: Path) -> None:
    """Loads a plugin file that the command line names. Raises PluginError."""
    from effcompress.registry import REGISTRY

    if not file.is_file():
        raise PluginError("there is no such file", where=f"--plugins {file}")
    REGISTRY.load_file(file)


def write_new(file: Path, text: str) -> None:
    """Writes a text file that must not be there yet. Raises RunError if it is."""
    if file.exists():
        raise RunError("this file is there already", where=str(file), fix="Name another one.")
    file.write_text(text, encoding="utf-8")


def error_lines(error: EffcompressError | Stopped, prefix: str = "") -> list[str]:
    """Returns the lines that the command line prints of an error: three, or the whole declaration
    that a CoverageError proposes.
    """
    return f"{prefix}{error}".splitlines()[: None if isinstance(error, CoverageError) else 3]


def show(answer: Answer, as_json: bool) -> None:
    """Prints the tables and notes of an answer, or its data as JSON, on standard output."""
    if as_json:
        print_json(answer.data)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    def text(words: str, style: str = "") -> Text:
        # As Text, because rich would read a cell such as "[hidden]" as markup.
        return Text(printable(words), style=style)

    console = Console(highlight=False)
    for number, sheet in enumerate(answer.sheets):
        if number:
            console.print()
        console.print(text(sheet.title, "bold"))
        headed = any(sheet.columns)
        table = Table(box=None, pad_edge=False, header_style="dim", show_header=headed)
        for k, column in enumerate(sheet.columns):
            written = [row[k] for row in sheet.rows if row[k].strip(" -")] if k else []
            right = written and all(cell.lstrip("-+~< ")[:1].isdigit() for cell in written)
            # Folded rather than truncated, so that every name can be copied.
            table.add_column(Text(column), justify="right" if right else "left", overflow="fold")
        for row in sheet.rows:
            table.add_row(*map(text, row))
        console.print(table)
    if answer.sheets and answer.notes:
        console.print()
    for note in answer.notes:
        console.print(text(note))


def say(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Prints ``printable`` text on standard output, or on standard error."""
    typer.echo(printable(text), err=err, nl=nl)


def print_json(data: object) -> None:
    """Prints indented JSON on standard output; paths become text."""
    say(json.dumps(data, indent=2, default=str, ensure_ascii=False))
