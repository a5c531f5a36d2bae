"""``effcompress run``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from effcompress.cli.arguments import Offline, Overrides, RecipeFile, process
from effcompress.cli.signals import stop_on_signals


def run(
    recipe: RecipeFile,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Output folder. Default: runs/ and the name of the recipe."
        ),
    ] = None,
    set_: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint in the folder.")
    ] = False,
    offline: Offline = False,
) -> None:
    """Run a recipe: prune, train, evaluate and export.

    The export is loaded again in a fresh process before the run reports success.
    """
    from effcompress.recipe import load

    loaded = load(recipe, set_ or ())
    from effcompress.runner.preflight import preflight

    preflight(loaded, offline=offline)
    # Only now: what can be refused should not wait for torch.
    from effcompress.runner.run import run as run_recipe

    with stop_on_signals() as stopping:
        done = run_recipe(
            loaded, output=output, resume=resume, offline=offline, stopping=stopping
        )
    if process():  # rank 0 prints the result
        return
    for domain, value in done.perplexity.items():
        typer.echo(f"perplexity  {domain} {value:.2f}")
    typer.echo(f"parameters  {done.params:,}")
    if done.sparse:
        of = f"{100 * done.zeroed / done.sparse:.1f} % of linear layers"
        typer.echo(f"parameters removed: {done.removed:,}, weights zeroed: {done.zeroed:,} ({of})")
    typer.echo(f"model       {done.folder}")
    typer.echo(f"report      {done.folder / 'report.html'}")
