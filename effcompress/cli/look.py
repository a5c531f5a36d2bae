"""Commands that read a recipe without running it: ``check``, ``plan``, ``inspect``, ``fetch``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from effcompress.cli.arguments import (
    AsJson,
    Offline,
    Overrides,
    RecipeFile,
    error_lines,
    print_json,
    recipe_or_folder,
    show,
)
from effcompress.errors import EffcompressError


@dataclass(frozen=True)
class Verdict:
    """The result of checking one recipe: what was checked, and its sizes or the first error."""

    recipe: str
    checked: list[str]
    sizes: Mapping[str, object]
    error: EffcompressError | None = None

    def facts(self) -> dict[str, object]:
        """Plain JSON values."""
        said = {"recipe": self.recipe, "ok": not self.error, "checked": self.checked}
        if (error := self.error) is None:
            return {**said, "price": self.sizes}
        short = {"what": error.what, "where": error.where, "fix": error.fix}
        return {**said, "error": short, "message": "\n".join(error_lines(error))}


def check(
    recipes: Annotated[
        list[Path],
        typer.Argument(metavar="RECIPE", help="Recipe files (.yaml).", show_default=False),
    ],
    set_: Overrides = None,
    json: AsJson = False,
) -> None:
    """Check recipes without loading weights; list what was checked."""
    verdicts: list[Verdict] = []
    for path in recipes:
        verdicts.append(verdict := _checked(path, set_ or ()))
        if json:
            continue
        typer.echo(f"{path}: {'failed' if verdict.error else 'ok'}")
        for line in verdict.checked:
            typer.echo(f"  - {line}")
        if verdict.error is not None:
            typer.echo("\n".join(error_lines(verdict.error, "error: ")), err=True)
    failed = sum(verdict.error is not None for verdict in verdicts)
    if json:
        print_json({"ok": not failed, "recipes": [verdict.facts() for verdict in verdicts]})
    elif failed and len(verdicts) > 1:
        typer.echo(f"{failed} of {len(verdicts)} recipes failed", err=True)
    if failed:
        raise typer.Exit(2)


def _checked(path: Path, overrides: Sequence[str]) -> Verdict:
    from effcompress.recipe import checked, load

    lines: list[str] = []
    try:
        loaded = load(path, overrides)
        lines += checked(loaded)
        from effcompress.runner.preflight import preflight  # as `run` does

        found = preflight(loaded, offline=False)
    except EffcompressError as error:
        return Verdict(str(path), lines, {}, error)
    return Verdict(str(path), [*lines, *found.lines], found.data)


def plan(
    recipe: RecipeFile,
    set_: Overrides = None,
    json: AsJson = False,
    processes: Annotated[
        int,
        typer.Option(min=1, envvar="WORLD_SIZE", help="Processes that divide the batch."),
    ] = 1,
    flops_per_second: Annotated[
        float | None,
        typer.Option(
            min=1.0,
            help="FLOP/s that one process reaches, e.g. 4e14: adds the time of a step.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Forecast sizes, tokens, memory and messages of a run. Loads no weights."""
    from effcompress.recipe import load

    loaded = load(recipe, set_ or ())
    from effcompress.estimate.forecast import Launch
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
