"""Arguments and options that several commands share, and how their results are printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer

RecipeFile = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="Recipe file (.yaml).", show_default=False)
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Overrule one value, e.g. train.tokens=2M. May be repeated.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Offline = Annotated[bool, typer.Option("--offline", help="Use only what is already here.")]


class Result(Protocol):
    """What a runner's command gives back: the facts, and how people see them."""

    data: dict[str, Any]

    def render(self) -> Any: ...


def show(result: Result, as_json: bool) -> None:
    """Print a result on standard output, as a rich renderable or as JSON."""
    if as_json:
        print_json(result.data)
        return
    from rich.console import Console

    Console(highlight=False).print(result.render())


def print_json(data: Any) -> None:
    """Indented JSON on standard output; paths become text."""
    typer.echo(json.dumps(data, indent=2, default=str, ensure_ascii=False))
