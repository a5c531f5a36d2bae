"""``effcompress export``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from effcompress.cli.arguments import AsJson, Offline, show


class As(StrEnum):
    """Forms that a model can have outside."""

    uniform = "uniform"
    padded = "padded"
    exact = "exact"
    gguf = "gguf"


class DType(StrEnum):
    """Numbers in a .gguf file."""

    F32 = "F32"
    F16 = "F16"


def export(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="The folder of a run.", show_default=False)
    ],
    form: Annotated[
        As,
        typer.Option(
            "--as",
            help="uniform: a stock class; padded: a stock class, zeros added; exact: the shapes as "
            "they are, with the class's file; gguf: one file for llama.cpp.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Where to. Default: in the run's own folder."),
    ] = None,
    dtype: Annotated[DType, typer.Option(help="gguf: numbers of 32 or 16 bits.")] = DType.F32,
    offline: Offline = False,
    json: AsJson = False,
) -> None:
    """Write the model of a run in another form.

    Folders are loaded again in a fresh process before success is reported.
    """
    from effcompress.commands.export import export as export_run

    done = export_run(run, form.value, output=output, dtype=dtype.value, offline=offline)
    show(done, json)
