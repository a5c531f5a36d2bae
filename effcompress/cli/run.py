"""Commands that write a model: ``run`` and ``export``."""

import shlex
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from effcompress.cli.arguments import AsJson, Offline, Overrides, RecipeFile, process, say, show
from effcompress.cli.signals import stop_on_signals
from effcompress.errors import Stopped
from effcompress.launcher import outside_of_tasks

if TYPE_CHECKING:
    from effcompress.recipe import LoadedRecipe
    from effcompress.runner.run import Report

AGAIN = 75
"""Exit code of a run that was stopped under ``--resume=auto``: to be started again (EX_TEMPFAIL of
``sysexits.h``)."""
INTERRUPTED = 128 + signal.SIGINT
"""Exit code of a run that Ctrl-C stopped. ``--resume=auto`` keeps it, so that no script starts the
run again.
"""
_RESUME, _AUTO = "--resume", "--resume=auto"


class RunCommand(TyperCommand):
    """Takes ``--resume`` with and without ``=auto``. Options with an optional value would take the
    recipe for it in ``effcompress run --resume RECIPE``.
    """

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """Raises UsageError for another value than ``auto``."""
        options = args[: args.index("--")] if "--" in args else args
        for k, word in enumerate(options):
            if word.startswith(f"{_RESUME}="):
                if word != _AUTO:
                    ctx.fail(f"{word}: write --resume or --resume=auto")
                args[k] = "--resume-auto"
        return super().parse_args(ctx, args)  # type: ignore[arg-type]


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
        bool,
        typer.Option(
            "--resume",
            help="Continue from the newest checkpoint in the folder. --resume=auto, for job "
            "schedulers: the same command begins a run, continues it and leaves a finished one; "
            f"ends with {AGAIN} where a signal stopped it.",
        ),
    ] = False,
    auto: Annotated[bool, typer.Option("--resume-auto", hidden=True)] = False,
    measurements: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="A folder that several runs share: saliency of the source model on the same text "
            "is measured once, and counts for each. compare does this by itself.",
        ),
    ] = None,
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

    folder = output_folder(loaded, output)
    if auto and _finished(loaded, folder):
        if not process():
            say(f"finished    {folder}: nothing is left to do (report: {folder / 'report.html'})")
        return
    if not process():
        _prepare(folder, auto)
        check_folder(loaded, folder, resume or auto)
    # After all that can be refused, which should not wait for torch.
    from effcompress.runner.run import run as run_recipe

    options: Any = {"output": output, "resume": resume or auto, "offline": offline}
    options["measurements"] = measurements
    try:
        with stop_on_signals() as stopping:
            done = run_recipe(loaded, **options, stopping=stopping)
    except Stopped as error:
        if auto and error.exit_code != INTERRUPTED:
            error.exit_code = AGAIN
        raise
    if not process():  # rank 0 prints the result
        _tell(done)


def _tell(done: "Report") -> None:
    for domain, value in done.perplexity.items():
        before = done.before.perplexity.get(domain)
        say(f"perplexity  {domain} {'' if before is None else f'{before:.2f} -> '}{value:.2f}")
    say(f"parameters  {done.before.params:,} -> {done.params:,}")
    if done.sparse:
        of = f"{100 * done.zeroed / done.sparse:.1f} % of linear layers"
        say(f"parameters removed: {done.removed:,}, weights zeroed: {done.zeroed:,} ({of})")
    say(f"model       {done.folder}")
    say(f"report      {done.folder / 'report.html'}")
    folder = shlex.quote(str(done.folder))
    say(f"next        effcompress bench {folder}   speed beside the source model")
    say(f"            effcompress export {folder} --for vllm   or sglang, llama.cpp")
    say("            effcompress init --model DIR --text FILE --keep 70%   your own model")


def _prepare(folder: Path, auto: bool) -> None:
    """Says where SLURM's tasks are not used, and waits for what a lost node may still do."""
    if tasks := outside_of_tasks():
        said = f"note: SLURM has {tasks} tasks for this job; this is one process beside them, "
        say(f"{said}and `srun effcompress run ...` starts all of them", err=True)
    if auto:
        _await_silence(folder)


def _finished(loaded: "LoadedRecipe", folder: Path) -> bool:
    """Whether the folder holds the finished run of this recipe. Raises RecipeError for a finished
    run of another one.
    """
    from effcompress.record.status import status
    from effcompress.runner.folder import same_recipe

    if status(folder).state != "finished":
        return False
    same_recipe(loaded, folder)
    return True


def _await_silence(folder: Path) -> None:
    """Waits while it is not certain whether a process of another machine still works on the run,
    as after the loss of a node: until it sends a heartbeat, or has missed too many.
    """
    from effcompress.record import status_file

    before = now = status_file.read(folder)
    while now is not None and now.open and not now.same_system and now.alive():
        if before is None or now.written != before.written:
            return  # it lives
        if now is before:
            waiting = f"Waiting whether process {now.pid} on host {now.host} has ended"
            say(f"{waiting}: at most {status_file.MISSED * now.heartbeat:.0f} s.", err=True)
        time.sleep(1.0)
        now = status_file.read(folder)


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
