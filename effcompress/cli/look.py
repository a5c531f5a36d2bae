"""Commands that look without running: ``plan``, ``inspect``, ``fetch``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from effcompress.cli.arguments import (
    AsJson,
    Offline,
    Overrides,
    RecipeFile,
    recipe_or_folder,
    show,
)


def plan(
    recipe: RecipeFile,
    set_: Overrides = None,
    json: AsJson = False,
    processes: Annotated[
        int,
        typer.Option(min=1, envvar="WORLD_SIZE", help="Processes that share the batch."),
    ] = 1,
    flops_per_second: Annotated[
        float | None,
        typer.Option(
            min=1.0,
            help="What one process reaches, e.g. 4e14: adds the time of a step.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Show what a recipe will do: sizes, tokens, memory, messages. Loads no weights."""
    from effcompress.recipe import load

    loaded = load(recipe, set_ or ())
    from effcompress.estimate.costs import Launch
    from effcompress.estimate.forecast import plan as plan_recipe

    show(plan_recipe(loaded, launch=Launch(processes, flops_per_second)), json)


def inspect(
    target: Annotated[
        Path,
        typer.Argument(
            metavar="RECIPE_OR_FOLDER",
            help="Recipe file, or a folder with a model or a run.",
            show_default=False,
        ),
    ],
    json: AsJson = False,
) -> None:
    """Show a model's axes, its mini-groups and their sizes."""
    looked_at = recipe_or_folder(target)
    from effcompress.estimate.inspect import inspect as inspect_target

    show(inspect_target(looked_at), json)


def fetch(
    recipe: RecipeFile,
    offline: Offline = False,
    list_only: Annotated[
        bool, typer.Option("--list", help="Only list what the recipe needs.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Fetch the model and the texts that a recipe needs.

    Afterwards the recipe runs offline.
    """
    from effcompress.recipe import load

    loaded = load(recipe)
    from effcompress.commands.fetch import fetch as fetch_recipe

    show(fetch_recipe(loaded, offline=offline, list_only=list_only), json)
