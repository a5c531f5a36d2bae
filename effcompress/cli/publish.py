"""Commands that pass a model on: ``push``."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from effcompress.cli.arguments import AsJson, show


def push(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")],
    to: Annotated[
        str | None,
        typer.Option(metavar="USER/NAME", help="Repository; created if there is none."),
    ] = None,
    form: Annotated[
        Literal["uniform", "padded", "exact"] | None,
        typer.Option(
            "--as",
            help="What `effcompress export --as` wrote into the run's folder, in place of the "
            "run's own model.",
        ),
    ] = None,
    gguf: Annotated[
        bool, typer.Option("--gguf", help="Also the gguf files that `export` wrote there.")
    ] = False,
    private: Annotated[
        bool,
        typer.Option(
            "--private",
            help="Create the repository as a private one. Default: as the owner's settings say.",
        ),
    ] = False,
    branch: Annotated[
        str | None, typer.Option(metavar="NAME", help="Branch; created if there is none.")
    ] = None,
    list_only: Annotated[
        bool,
        typer.Option("--list", "--dry-run", help="Only list the files; needs no token."),
    ] = False,
    json: AsJson = False,
) -> None:
    """Upload the proven model of a run to the Hugging Face Hub.

    Weights, configuration, tokenizer and model card go in one commit; checkpoints,
    records and recipes stay here.
    """
    from effcompress.commands.push import push as push_run

    how = {"form": form, "gguf": gguf, "branch": branch, "list_only": list_only}
    show(push_run(run, to, private=private or None, **how), json)
