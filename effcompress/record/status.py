"""How a run stands, read from its folder: of one that runs, here or on another machine, and of one
that died. Nothing here imports torch or loads a recipe.
"""

from __future__ import annotations

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
"""As elsewhere in ``runner``, where all that reads recipes would be loaded along with the names."""


@dataclass(frozen=True)
class Checkpoint:
    """The newest one: at which step, how many seconds ago, how many bytes."""

    step: int
    seconds: float
    bytes: int


@dataclass(frozen=True)
class Risk:
    """What a death would cost (or what it cost): steps behind the newest checkpoint, and the
    seconds they took, where known.
    """

    steps: int
    seconds: float | None


@dataclass(frozen=True)
class RunStatus:
    """How one run stands. Seconds count until now; None: not known, or not yet."""

    folder: Path
    name: str
    state: State
    reason: str
    """Why it ended, unless it ended well."""
    now: StatusRecord | None
    """What it last said of itself: process, phase, progress."""
    seconds: float | None
    """Since the process took up the run."""
    phase_seconds: float | None
    silence: float | None
    """Since something happened."""
    heartbeat: float | None
    """Since the last sign that the process is there."""
    stacks: Path | None
    """Where the watchdog wrote down where the run stood, if nothing has happened since."""
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
    """What went last: kind -> units."""
    checkpoint: Checkpoint | None
    risk: Risk | None
    seconds_left: float | None
    """Of training, or of a phase that says how far it is."""
    warnings: int
    last_warnings: tuple[str, ...]
    report: Path | None
    next: str
    """What to type to go on; empty where it runs or is done."""


def is_run(folder: Path) -> bool:
    """Whether a run was begun in this folder."""
    return any((folder / name).is_file() for name in (RECIPE, RECORD, moment.NAME))


def runs_in(folder: Path) -> list[Path]:
    """The folders of the runs in ``folder``: of a comparison, or side by side.

    Raises SourceError where there is none.
    """
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
    """How the run in ``folder`` stands; well under a second, however long its record is."""
    now, record = moment.read(folder), read_tail(folder / RECORD)
    state, reason = _state(folder, now, record)
    seen = _seen(now, record)
    checkpoint = _checkpoint(folder)
    silence = _silence(folder, now)
    return RunStatus(
        folder=folder,
        name=record.run.get("name") or folder.resolve().name,
        state=state,
        reason=reason,
        now=now,
        seconds=since(now.started) if now else None,
        phase_seconds=since(now.phase_since) if now and now.phase_since else None,
        silence=silence,
        heartbeat=now.silence if now else None,
        stacks=_stacks(folder, silence) if state in ("running", "died") else None,
        step=seen.step.get("step"),
        tokens=seen.step.get("tokens"),
        total_tokens=seen.total_tokens,
        tokens_per_second=seen.rate,
        loss=seen.step.get("loss"),
        params_before=record.run.get("source_params", record.run.get("params")),
        params=record.end.get("params") or seen.params,
        target_params=record.run.get("target_params"),
        cut_step=record.cut.get("step"),
        cut=record.cut.get("removed", {}),
        checkpoint=checkpoint,
        risk=None if state == "finished" else _risk(record, checkpoint),
        seconds_left=_left(seen) if state == "running" else None,
        warnings=record.warnings,
        last_warnings=record.last_warnings,
        report=folder / REPORT if (folder / REPORT).is_file() else None,
        next="" if state in ("running", "finished") else _next(folder),
    )


def _state(folder: Path, now: StatusRecord | None, record: RecordTail) -> tuple[State, str]:
    """How it stands, and why."""
    end = record.end
    if now is None and not (folder / RECORD).is_file():
        return "not started", ""
    held = now is not None and now.open  # a process has the run in its hands, or had when it died
    if now is not None and held and now.alive():
        return "running", ""
    if end.get("status") == "success":
        return "finished", ""
    # Until a run that is taken up again has found its checkpoint, its record ends as it did before.
    if end and not held:
        reason = " ".join(str(end.get("reason", "")).split())
        return ("stopped" if end["status"] == "stopped" else "failed"), reason
    if now is None:
        return "died", "its record has no end, and no process says that it writes one"
    who = f"process {now.pid}" + ("" if now.same_system else f" on {now.host}")
    return "died", f"{who} is gone, and its record has no end"


def _seen(now: StatusRecord | None, record: RecordTail) -> Status:
    """What a panel would show by now."""
    seen = Status()
    for event in (record.run, *record.steps, record.cut):
        if event:
            seen.update(event)
    if now is not None and now.unit and now.done is not None and now.total is not None:
        seen.progress = Progress(
            now.unit, now.done, now.total, since(now.unit_since or now.phase_since)
        )
    return seen


def _left(seen: Status) -> float | None:
    training = bool(seen.step) and seen.step["tokens"] < (seen.total_tokens or 0)
    return seen.eta if training or seen.progress is not None else None


def _silence(folder: Path, now: StatusRecord | None) -> float | None:
    """What ``now.json`` knows is as old as a heartbeat; the record has every event at once."""
    known = [_age(folder / RECORD), since(now.active) if now else None]
    return min((seconds for seconds in known if seconds is not None), default=None)


def _stacks(folder: Path, silence: float | None) -> Path | None:
    age = _age(folder / STACKS)
    return folder / STACKS if age is not None and silence is not None and age < silence else None


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
        return Risk(last["step"], last["seconds"])
    steps = max(0, last["step"] - checkpoint.step)
    if last["step"] == first["step"]:
        return Risk(steps, None)
    pace = (last["seconds"] - first["seconds"]) / (last["step"] - first["step"])
    return Risk(steps, steps * pace)


def _next(folder: Path) -> str:
    # The recipe as it was written may lie anywhere; this one says the same from any folder.
    recipe, output = shlex.quote(str(folder / RECIPE)), shlex.quote(str(folder))
    return f"effcompress run {recipe} --output {output} --resume"


def _folders(place: Path) -> list[Path]:
    with suppress(OSError):
        return sorted(path for path in place.iterdir() if path.is_dir())
    return []
