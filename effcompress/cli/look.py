"""Commands that read a recipe without running it: ``check``, ``plan``, ``inspect``, ``fetch``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from effcompress.cli.arguments import (
    AsJson,
    Offline,
    Overrides,
    RecipeFile,
    error_lines,
    load_plugin,
    print_json,
    recipe_or_folder,
    say,
    show,
    write_new,
)
from effcompress.errors import EffcompressError, RecipeError


def check(
    recipes: Annotated[list[Path], typer.Argument(metavar="RECIPE", help="Recipe files (.yaml).")],
    set_: Overrides = None,
    json: AsJson = False,
) -> None:
    """Check recipes without loading weights; list what was checked."""
    answers: list[dict[str, object]] = []
    failed = 0
    for path in recipes:
        lines, sizes, error = _checked(path, set_ or ())
        answer = {"recipe": str(path), "ok": error is None, "checked": lines}
        if error is None:
            answers.append({**answer, "price": sizes})
        else:
            failed += 1
            short = {"what": error.what, "where": error.where, "fix": error.fix}
            answers.append({**answer, "error": short, "message": "\n".join(error_lines(error))})
        if json:
            continue
        say("\n  - ".join([f"{path}: {'failed' if error else 'ok'}", *lines]))
        if error is not None:
            say("\n".join(error_lines(error, "error: ")), err=True)
    if json:
        print_json({"ok": not failed, "recipes": answers})
    elif failed and len(recipes) > 1:
        say(f"{failed} of {len(recipes)} recipes failed", err=True)
    if failed:
        raise typer.Exit(2)


def _checked(
    path: Path, overrides: Sequence[str]
) -> tuple[list[str], Mapping[str, object], EffcompressError | None]:
    """What was checked, and the sizes or the first error."""
    from effcompress.recipe import checked, load

    lines: list[str] = []
    try:
        loaded = load(path, overrides)
        lines += checked(loaded)
        from effcompress.runner.preflight import preflight  # as `run` does

        found = preflight(loaded, offline=False)
    except EffcompressError as error:
        return lines, {}, error
    return [*lines, *found.lines], found.data, None


def plan(
    recipe: RecipeFile,
    set_: Overrides = None,
    json: AsJson = False,
    processes: Annotated[
        int, typer.Option(min=1, envvar="WORLD_SIZE", help="Processes that divide the batch.")
    ] = 1,
    flops_per_second: Annotated[
        float | None,
        typer.Option(
            min=1.0, help="FLOP/s that one process reaches, e.g. 4e14: adds the time of a step."
        ),
    ] = None,
    params: Annotated[
        str | None,
        typer.Option(
            metavar="N,N", help="Sizes on the way, e.g. 1.1B,469M: adds their shapes and when."
        ),
    ] = None,
) -> None:
    """Forecast sizes, tokens, memory and messages of a run. Loads no weights."""
    from effcompress.recipe import load

    sizes = _sizes(params)

    loaded = load(recipe, set_ or ())
    from effcompress.estimate.forecast import Launch
    from effcompress.estimate.forecast import plan as plan_recipe

    launch = Launch(processes, flops_per_second)
    show(plan_recipe(loaded, launch=launch, sizes=sizes), json)


def _sizes(params: str | None) -> list[int]:
    """Reads ``1.1B,469M``. Raises RecipeError for another list."""
    from effcompress.recipe.quantities import COUNT_WORDS, count

    words = [word.strip() for word in (params or "").split(",") if word.strip()]
    try:
        return [*dict.fromkeys(count(word) for word in words)]
    except ValueError as error:
        fix = f"Each is {COUNT_WORDS}, e.g. --params 1.1B,469M."
        raise RecipeError(str(error), where="--params", fix=fix) from error


def inspect(
    target: Annotated[
        Path,
        typer.Argument(
            metavar="RECIPE_OR_FOLDER", help="Recipe file, or a folder with a model or a run."
        ),
    ],
    plugins: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Plugin file that declares the architecture."),
    ] = None,
    template: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write what tracing finds out of an undeclared architecture as a plugin file.",
        ),
    ] = None,
    json: AsJson = False,
) -> None:
    """Show a model's axes, its mini-groups and their sizes."""
    looked_at = recipe_or_folder(target)
    for file in plugins or ():
        load_plugin(file)
    if template is not None:
        from effcompress.estimate.inspect import template_of

        write_new(template, template_of(looked_at))
        say(f"written: {template}")
        return
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
