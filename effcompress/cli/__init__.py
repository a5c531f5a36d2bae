"""The command line: parses arguments, calls a room and prints. Rooms are imported inside commands,
so that ``--help`` does not wait for them.
"""

import errno
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from effcompress.cli import compare, describe, look, measure, publish, run, start, status
from effcompress.cli.arguments import error_lines, process, say
from effcompress.errors import EffcompressError, Stopped, short

app = typer.Typer(
    name="effcompress",
    help="Prune a language model to a smaller one, as a YAML recipe says.",
    epilog="Start with: effcompress check recipes/quickstart.yaml",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        say(f"effcompress {version('effcompress')}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback when something fails.")
    ] = False,
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    context.obj["debug"] = debug


app.command("init")(start.init)
app.command("new")(start.new)
app.command("check")(look.check)
app.command("plan")(look.plan)
app.command("fetch")(look.fetch)
app.command("run", cls=run.RunCommand)(run.run)
app.command("status")(status.status)
app.command("report")(status.report)
app.command("compare")(compare.compare)
app.command("inspect")(look.inspect)
app.command("eval")(measure.evaluate)
app.command("bench")(measure.bench)
app.command("export")(run.export)
app.command("push")(publish.push)
app.command("schema")(describe.schema)
app.add_typer(describe.plugins, name="plugins")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one command and exits with 0, 1 (a run failed), 2 (wrong input), 75 (stopped under
    ``--resume=auto``: to be started again) or 130 (interrupted).

    Errors of the package are printed in at most three lines on standard error.
    """
    _open_streams()
    options = {"debug": False}
    try:
        app(argv, prog_name="effcompress", obj=options)
    except (EffcompressError, Stopped, OSError) as error:
        with suppress(OSError):  # standard error may be what failed
            _print_error(error, debug=options["debug"])
        # A name that no file can have is wrong input, whichever option it came by.
        usual = 2 if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG else 1
        sys.exit(usual if isinstance(error, OSError) else error.exit_code)
    finally:
        _give_up_streams()


def _print_error(error: EffcompressError | Stopped | OSError, *, debug: bool) -> None:
    if debug:
        traceback.print_exception(error)
    elif not isinstance(error, OSError):
        who = f"process {process()}: " if process() else ""
        what = "stopped" if isinstance(error, Stopped) else "error"
        say("\n".join(error_lines(error, f"{who}{what}: ")), err=True)
    else:
        name = f"{short(str(error.filename))}: " if error.filename else ""
        say(f"error: {name}{error.strerror or error}", err=True)


def _open_streams() -> None:
    """Opens the standard streams that this process was started without (``2>&-``). Else the next
    file that is opened has the number of one, and gets what libraries print.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115


def _give_up_streams() -> None:
    """Turns a stream that cannot be written to away from where it led: Python flushes it when it
    ends, and would make an exit code of its own from a failure.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
