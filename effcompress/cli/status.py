"""``effcompress status`` and ``report``: a run, from its folder alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from effcompress.answer import Answer, Table
from effcompress.cli.arguments import AsJson, print_json, say, show
from effcompress.errors import short
from effcompress.record.readable import clock_time, count, size

if TYPE_CHECKING:
    from effcompress.record.status import RunStatus

_WIDTH = 80
LONGEST = 1000
"""Characters of a warning that are shown: folding a damaged line of megabytes takes minutes."""


def status(
    folder: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of a run, or of several (a comparison).")
    ],
    json: AsJson = False,
) -> None:
    """Show how far a run is, and whether its process lives.

    Reads only the folder of the run, so it works from any machine that sees the folder.
    """
    from effcompress.record.status import is_run, runs_in
    from effcompress.record.status import status as status_of

    if not is_run(folder):
        found = [status_of(run) for run in runs_in(folder)]
        show(Answer({"runs": [asdict(run) for run in found]}, (_several(found),)), json)
        return
    run = status_of(folder)
    if json:
        print_json(asdict(run))
        return
    rows = (*_process(run), *_training(run), *_safety(run))
    notes = tuple(f"warning: {short(text, LONGEST)}" for text in run.last_warnings)
    show(Answer({}, (Table(f"{run.name}: {run.state}", ("", ""), rows),), notes), False)
    for line in _command(run.next):  # as it is, however long: it is there to be copied
        say(line)


def report(
    folder: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of a run, or of several (a comparison).")
    ],
    json: AsJson = False,
) -> None:
    """Make the report of a run again, from its record.

    Writes report.html, the pictures and, of a finished run, the model card, as this
    version draws them; reads no model.
    """
    from effcompress.commands.report import rebuild

    show(rebuild(folder), json)


def _process(run: RunStatus) -> Iterator[tuple[str, str]]:
    now = run.now
    if run.reason:
        yield "reason", run.reason
    if now is not None and run.state in ("running", "died"):
        yield "process", f"{now.pid} on {now.host}{_for(run, run.seconds)}"
        yield "phase", f"{now.phase}{_for(run, run.phase_seconds)}"
        if now.unit:
            yield "", f"{now.unit} {now.done}{f' of {now.total}' if now.total else ''}"
    if run.silence is not None:
        beat = ""
        if run.state == "running" and run.heartbeat is not None:
            beat = f", heartbeat {clock_time(run.heartbeat)} ago"
        yield "last event", f"{clock_time(run.silence)} ago{beat}"
    if run.stacks is not None:
        yield "stuck?", f"where every thread is: {run.stacks}"


def _for(run: RunStatus, seconds: float | None) -> str:
    return f", for {clock_time(seconds)}" if run.state == "running" and seconds is not None else ""


def _training(run: RunStatus) -> Iterator[tuple[str, str]]:
    if run.step is not None and run.tokens is not None:
        total = run.total_tokens
        of = f" of {count(total)} ({run.tokens / total:.0%})" if total else ""
        speed = f" at {count(run.tokens_per_second)} tokens/s" if run.tokens_per_second else ""
        yield "step", f"{run.step:,}, loss {run.loss:.3f}"
        yield "tokens", f"{count(run.tokens)}{of}{speed}"
    if run.params is not None:
        target = f", target {count(run.target_params)}" if run.target_params else ""
        yield "parameters", f"{count(run.params_before or 0)}, now {count(run.params)}{target}"
    if run.cut:
        from effcompress.record.sentences import removed

        yield "last cut", f"{removed(run.cut)} at step {run.cut_step}"
    if run.seconds_left is not None:
        yield "time left", f"about {clock_time(run.seconds_left)}"


def _safety(run: RunStatus) -> Iterator[tuple[str, str]]:
    if (kept := run.checkpoint) is not None:
        said = f"step {kept.step:,}, {clock_time(kept.seconds)} ago, {size(kept.bytes)}"
        yield "checkpoint", said
    if run.risk is not None:
        said = "nothing"
        if steps := run.risk.steps:
            spent = run.risk.seconds
            said = "1 step" if steps == 1 else f"{steps:,} steps"
            said += ", all there are" if kept is None else " behind it"
            said += "" if spent is None else f", {clock_time(spent)} of work"
        yield "at risk" if run.state == "running" else "lost", said
    if run.warnings:
        yield "warnings", f"{run.warnings:,}"
    if run.report is not None and run.state != "running":
        yield "report", str(run.report)


def _command(words: str) -> list[str]:
    """Breaks a command into lines that a shell reads as one."""
    if not words:
        return []
    first, option, rest = words.partition(" --output ")
    if len(words) <= _WIDTH - 2 or not option:
        return ["", f"  {words}"]
    return ["", f"  {first} \\", f"    {option.strip()} {rest}"]


def _several(runs: list[RunStatus]) -> Table:
    def cell(value: Any, written: Callable[[Any], str]) -> str:
        return "-" if value is None else written(value)

    rows: list[tuple[str, ...]] = []
    for run in runs:
        share = f"{run.tokens / run.total_tokens:.0%}" if run.tokens and run.total_tokens else "-"
        step, loss = cell(run.step, "{:,}".format), cell(run.loss, "{:.3f}".format)
        params, left = cell(run.params, count), cell(run.seconds_left, clock_time)
        row = (run.folder.name, run.state, step, share, params, loss, left, str(run.warnings))
        rows.append(row)
    columns = ("run", "state", "step", "tokens", "parameters", "loss", "left", "warnings")
    return Table(f"{len(runs)} runs", columns, tuple(rows))
