"""Commands that write a beginning: ``init`` (a recipe) and ``new`` (a plugin)."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from effcompress.cli.arguments import AsJson, show
from effcompress.cli.complete import complete_kind
from effcompress.errors import SourceError

Number = TypeVar("Number", int, float)


def init(
    model: Annotated[
        str,
        typer.Option(metavar="MODEL", help="Folder, .gguf file or hub id of the model to prune."),
    ],
    text: Annotated[
        list[str],
        typer.Option(
            metavar="TEXT",
            help="File (.jsonl, .txt, .parquet), folder, hub:NAME or NAME=one of these. May be "
            "repeated.",
        ),
    ],
    keep: Annotated[
        str | None, typer.Option(metavar="FRACTION", help="Parameters to keep, e.g. 70%.")
    ] = None,
    params: Annotated[
        str | None, typer.Option(metavar="COUNT", help="Parameters at the end, e.g. 469M.")
    ] = None,
    tokens: Annotated[
        str | None,
        typer.Option(metavar="COUNT", help="Tokens to train on, e.g. 1B; 0 prunes alone."),
    ] = None,
    budget: Annotated[
        str | None, typer.Option(metavar="BUDGET", help='Machine and time, e.g. "8 x H100, 24 h".')
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="`bytes`, a folder or a hub id; default: the model's."),
    ] = None,
    method: Annotated[str, typer.Option(metavar="NAME", help="How to prune.")] = "best",
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The recipe; default: the model's name.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Write a checked recipe for your model and text.

    Every guess in it is a comment. Nothing is asked, no weights are loaded.
    """
    from effcompress.commands.init import Wish, init, typed
    from effcompress.commands.machine import machine_of
    from effcompress.recipe.quantities import count, fraction

    if (keep is None) == (params is None):
        raise SourceError("say how small", where="--keep", fix="E.g. --keep 70%, or --params 100M.")
    asked = {"--model": model, "--keep": keep, "--params": params, "--tokens": tokens}
    asked |= {
        "--tokenizer": tokenizer,
        "--budget": budget,
        "--method": method if method != "best" else None,
    }
    wish = Wish(
        model=model,
        tokenizer=tokenizer,
        texts=tuple(text),
        keep=_read(fraction, keep, "--keep"),
        params=_read(count, params, "--params"),
        tokens=_read(count, tokens, "--tokens"),
        machine=None if budget is None else machine_of(budget),
        method=method,
        output=output or Path(f"{Path(model.rstrip('/')).name.lower()}.yaml"),
        command=typed(asked, text),
    )
    show(init(wish), json)


def new(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND",
            help="criterion, selector, schedule, repair, statistic or another kind that "
            "`effcompress plugins list` shows.",
            autocompletion=complete_kind,
        ),
    ],
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name of the function and of its file.")
    ],
    output: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder of the two files. Default: this one.")
    ] = Path(),
    json: AsJson = False,
) -> None:
    """Write a plugin of your own with its test.

    Both work as they are: change the formula, and the test with it.
    """
    from effcompress.commands.new import new as write_plugin

    show(write_plugin(kind, name, output), json)


def _read(read: Callable[[str], Number], written: str | None, where: str) -> Number | None:
    """Reads an option as recipes write it. Raises SourceError."""
    if written is None:
        return None
    try:
        return read(written)
    except ValueError as error:
        raise SourceError(str(error), where=where) from error
