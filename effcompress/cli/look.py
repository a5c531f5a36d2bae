"""Commands that look without running: ``plan``, ``inspect``, ``fetch``, ``eval``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from effcompress.cli.arguments import AsJson, Offline, Overrides, RecipeFile, show

if TYPE_CHECKING:
    from effcompress.recipe import LoadedRecipe


def plan(recipe: RecipeFile, set_: Overrides = None, json: AsJson = False) -> None:
    """Show what a recipe will do: sizes, tokens, memory. Loads no weights."""
    from effcompress.recipe import load

    loaded = load(recipe, set_ or ())
    from effcompress.runner.plan import plan as plan_recipe

    show(plan_recipe(loaded), json)


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
    looked_at = _recipe_or_folder(target)
    from effcompress.runner.inspect import inspect as inspect_target

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
    from effcompress.runner.fetch import fetch as fetch_recipe

    show(fetch_recipe(loaded, offline=offline, list_only=list_only), json)


def evaluate(
    target: Annotated[
        Path,
        typer.Argument(
            metavar="RECIPE_OR_RUN",
            help="Recipe file (its source model), or the folder of a run.",
            show_default=False,
        ),
    ],
    json: AsJson = False,
    offline: Offline = False,
) -> None:
    """Measure a model on held-out text.

    A recipe: its source model. The folder of a run: the pruned model.
    """
    looked_at = _recipe_or_folder(target)
    from effcompress.runner.evaluate import evaluate as evaluate_target

    show(evaluate_target(looked_at, offline=offline), json)


def _recipe_or_folder(target: Path) -> LoadedRecipe | Path:
    from effcompress.recipe import load

    return target if target.is_dir() else load(target)
