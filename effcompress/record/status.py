"""Reads how a run stands from its folder: a run under way, here or on another machine, or one that
died. Nothing here imports torch or loads a recipe.
"""

import os
import shlex
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from effcompress.errors import SourceError, did_you_mean
from effcompress.record import status_file as moment
from effcompress.record.heartbeat import STACKS
from effcompress.record.panel import Progress, Status
from effcompress.record.status_file import StatusRecord, since
from effcompress.record.tail import RecordTail, read_tail

State = Literal["not started", "running", "finished", "failed", "stopped", "died"]
RECIPE, RECORD, REPORT, RUNS = "recipe.resolved.yaml", "metrics.jsonl", "report.html", "runs"
"""As in ``runner``, whose modules would import everything that reads recipes."""
AT = "at"
"""Folder, in that of a run, of models at sizes that it passes (``export.at``), one folder each."""


@dataclass(frozen=True)
class Checkpoint:
    """The newest checkpoint: its step, its age in seconds, its bytes."""

    step: int
    seconds: float
    bytes: int


@dataclass(frozen=True)
class Risk:
    """What a death costs, or did: steps since the newest checkpoint, and their seconds if known."""

    steps: int
    seconds: float | None


@dataclass(frozen=True)
class RunStatus:
    """How one run stands. Seconds count until now; None: not known, or not yet."""

    folder: Path
    name: str
    state: State
    reason: str
    """Why it ended, unless it succeeded."""
    now: StatusRecord | None
    """Content of ``now.json``: process, phase, progress."""
    seconds: float | None
    """Since the process started or resumed the run."""
    phase_seconds: float | None
    silence: float | None
    """Since the last event."""
    heartbeat: float | None
    """Since the last heartbeat."""
    stacks: Path | None
    """The watchdog's dump of all stacks, if no event came after it."""
    step: int | None
    tokens: int | None
    total_tokens: int | None
    tokens_per_second: float | None
    """Of the last 20 steps."""
    loss: float | None
    params_before: int | None
    params: int | None
    target_params: int | None
    cut_step: int | None
    cut: Mapping[str, int]
    """Kind -> units of the last cut."""
    checkpoint: Checkpoint | None
    risk: Risk | None
    seconds_left: float | None
    """Of training, or of a phase that reports its progress or was forecast."""
    warnings: int
    last_warnings: tuple[str, ...]
    report: Path | None
    next: str
    """The command that resumes it; empty where it runs or has finished."""


def is_run(folder: Path) -> bool:
    """Returns whether a run was started in this folder."""
    return any((folder / name).is_file() for name in (RECIPE, RECORD, moment.NAME))


def run_of_size(folder: Path) -> Path | None:
    """Returns the run that writes this folder as one of its sizes; None for any other folder."""
    place = Path(os.path.abspath(folder)).parent  # noqa: PTH100  a link is not followed
    return place.parent if place.name == AT and (place.parent / RECIPE).is_file() else None


def runs_in(folder: Path) -> list[Path]:
    """Returns the folders of the runs in ``folder``. Raises SourceError where there is none."""
    for place in (folder / RUNS, folder):
        if found := [inner for inner in _folders(place) if is_run(inner)]:
            return found
    fix = "Name the folder of a run, e.g. effcompress status runs/quickstart."
    near = [path.name for path in _folders(folder.parent) if is_run(path)]
    if near:
        fix = did_you_mean(folder.name, near)
    if folder.is_file():
        what = "this is a file; a run is a folder"
    else:
        what = "no run was begun here" if folder.is_dir() else "there is no such folder"
    raise SourceError(what, where=str(folder), fix=fix)


def status(folder: Path) -> RunStatus:
    """Reads how the run in ``folder`` stands, in well under a second for any length of record."""
    now, record = moment.read(folder), read_tail(folder / RECORD)
    state, reason = _state(folder, now, record)
    seen = _seen(now, record)
    run, step, cut, end = record.run, seen.step, record.cut, record.end
    checkpoint = _checkpoint(folder)
    # Since the last event: `now.json` may lag by a heartbeat, the record does not.
    ages = [_age(folder / RECORD), since(now.active) if now else None]
    silence = min((age for age in ages if age is not None), default=None)
    dumped = _age(folder / STACKS)
    stacks = dumped is not None and silence is not None and dumped < silence
    training = step is not None and step.tokens < (seen.total_tokens or 0)
    # The resolved recipe, as its paths are absolute: the user's own file may lie anywhere.
    whole = run_of_size(folder) or folder
    recipe, output = shlex.quote(str(whole / RECIPE)), shlex.quote(str(whole))
    resume = f"effcompress run {recipe} --output {output} --resume"
    return RunStatus(
        folder=folder,
        name=run.name if run else folder.resolve().name,
        state=state,
        reason=reason,
        now=now,
        seconds=since(now.started) if now else None,
        phase_seconds=since(now.phase_since) if now and now.phase_since else None,
        silence=silence,
        heartbeat=now.silence if now else None,
        stacks=folder / STACKS if stacks and state in ("running", "died") else None,
        step=step.step if step else None,
        tokens=step.tokens if step else None,
        total_tokens=seen.total_tokens,
        tokens_per_second=seen.rate,
        loss=step.loss if step else None,
        params_before=(run.source_params or run.params) if run else None,
        params=(end.params if end else None) or seen.params,
        target_params=seen.target,
        cut_step=cut.step if cut else None,
        cut=cut.removed if cut else {},
        checkpoint=checkpoint,
        risk=None if state == "finished" else _risk(record, checkpoint),
        seconds_left=_left(seen, training) if state == "running" else None,
        warnings=record.warnings,
        last_warnings=record.last_warnings,
        report=folder / REPORT if (folder / REPORT).is_file() else None,
        next="" if state in ("running", "finished") else resume,
    )


def _state(folder: Path, now: StatusRecord | None, record: RecordTail) -> tuple[State, str]:
    """The state, and the reason for it."""
    end = record.end
    if now is None and not (folder / RECORD).is_file():
        return "not started", ""
    held = now is not None and now.open  # a process works on the run, or did when it died
    if now is not None and held and now.alive():
        return "running", ""
    if end and end.status == "success":
        return "finished", ""
    # A resumed run truncates its record only once it has found its checkpoint: until then the
    # record still ends with the failure before.
    if end and not held:
        reason = " ".join((end.reason or "").split())
        return ("stopped" if end.status == "stopped" else "failed"), reason
    if now is None:
        return "died", "its record has no end, and no process says that it writes one"
    who = f"process {now.pid}" + ("" if now.same_system else f" on {now.host}")
    return "died", f"{who} is gone, and its record has no end"


def _seen(now: StatusRecord | None, record: RecordTail) -> Status:
    """The status that a live panel would show."""
    seen = Status()
    for event in (record.run, *record.steps, record.cut):
        if event is not None:
            seen.update(event)
    if now is not None and now.unit and now.done is not None:
        seen.progress = Progress(
            now.unit, now.done, now.total, since(now.unit_since or now.phase_since)
        )
    if now is not None and now.until:
        seen.expect(moment.ahead(now.until))
    return seen


def _left(seen: Status, training: bool) -> float | None:
    """Seconds left of the training or of the phase."""
    return seen.eta if training or seen.progress or seen.until is not None else None


def _age(path: Path) -> float | None:
    """Seconds since a file was written."""
    with suppress(OSError):
        return max(0.0, time.time() - path.stat().st_mtime)
    return None


def _checkpoint(folder: Path) -> Checkpoint | None:
    for path in sorted((folder / "checkpoints").glob("step-*"), reverse=True):
        with suppress(OSError, ValueError):  # the run deletes old ones
            step = int(path.name.removeprefix("step-"))
            size = sum(file.stat().st_size for file in path.iterdir())
            return Checkpoint(step, _age(path) or 0.0, size)
    return None


def _risk(record: RecordTail, checkpoint: Checkpoint | None) -> Risk | None:
    if not record.steps:
        return None
    first, last = record.steps[0], record.steps[-1]
    if checkpoint is None:
        return Risk(last.step, last.seconds)
    steps = max(0, last.step - checkpoint.step)
    if last.step == first.step:
        return Risk(steps, None)
    pace = (last.seconds - first.seconds) / (last.step - first.step)
    return Risk(steps, steps * pace)


def _folders(place: Path) -> list[Path]:
    with suppress(OSError):
        return sorted(path for path in place.iterdir() if path.is_dir())
    return []
