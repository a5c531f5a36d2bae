"""Commands that write a model: ``run`` and ``export``."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from effcompress.cli.arguments import AsJson, Offline, Overrides, RecipeFile, process, say, show
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
        bool, typer.Option("--resume", help="Continue from the newest checkpoint in the folder.")
    ] = False,
    offline: Offline = False,
) -> None:
    """Run a recipe: prune, train, evaluate and export.

    The export is reloaded and compared in a fresh process before the run reports
    success.
    """
    from effcompress.recipe import load

    loaded = load(recipe, set_ or ())
    from effcompress.runner.preflight import preflight

    preflight(loaded, offline=offline)
    from effcompress.runner.folder import check_folder, output_folder

    if not process():
        check_folder(loaded, output_folder(loaded, output), resume)
    # After all that can be refused, which should not wait for torch.
    from effcompress.runner.run import run as run_recipe

    with stop_on_signals() as stopping:
        done = run_recipe(loaded, output=output, resume=resume, offline=offline, stopping=stopping)
    if process():  # rank 0 prints the result
        return
    for domain, value in done.perplexity.items():
        say(f"perplexity  {domain} {value:.2f}")
    say(f"parameters  {done.params:,}")
    if done.sparse:
        of = f"{100 * done.zeroed / done.sparse:.1f} % of linear layers"
        say(f"parameters removed: {done.removed:,}, weights zeroed: {done.zeroed:,} ({of})")
    say(f"model       {done.folder}")
    say(f"report      {done.folder / 'report.html'}")


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    form: Annotated[
        Literal["uniform", "padded", "exact", "gguf"] | None,
        typer.Option(
            "--as",
            help="uniform: a stock class; padded: a stock class, padded with zeros; exact: the "
            "shapes as they are, with a modelling file; gguf: one file for llama.cpp.",
        ),
    ] = None,
    software: Annotated[
        Literal["transformers", "vllm", "sglang", "llama.cpp"] | None,
        typer.Option("--for", help="In place of --as: takes a form that this software loads."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Output. Default: in the folder of the run.")
    ] = None,
    dtype: Annotated[
        Literal["F32", "F16"] | None,
        typer.Option(help="gguf: 32-bit or 16-bit floats. Default: F32."),
    ] = None,
    quantise: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE",
            help="gguf: Q8_0, Q5_1, Q5_0, Q4_1, Q4_0; where llama.cpp's quantiser is installed, "
            "also Q6_K, Q5_K_M, Q4_K_M and others. Scores the held-out text before and after.",
        ),
    ] = None,
    offline: Offline = False,
    json: AsJson = False,
) -> None:
    """Write the model of a run in another form.

    Folders are reloaded and compared in a fresh process before the command reports
    success.
    """
    from effcompress.commands.export import export as export_run

    how: Any = {"dtype": dtype, "quantise": quantise, "offline": offline}
    show(export_run(run, form, software=software, output=output, **how), json)
