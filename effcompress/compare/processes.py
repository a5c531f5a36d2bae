"""Runs the jobs of a comparison, each in a process of its own: a crash ends one job only."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol, final

from effcompress.compare.entries import Job, require_same
from effcompress.errors import EffcompressError
from effcompress.processes import cores, end_all
from effcompress.record import events
from effcompress.record.events import Event
from effcompress.record.tail import read_tail
from effcompress.stopping import Stopping, grace

MARGIN = 10.0
"""Seconds beyond the grace time in which a process may write its report."""
POLL = 0.1
"""Seconds between two polls of the processes."""


class Progress(Protocol):
    """Receives the progress of a comparison. ``reason`` is empty where a job succeeded."""

    def checking(self, number: int) -> None: ...
    def begin(self, jobs: Sequence[Job], done: Sequence[Job]) -> None: ...
    def started(self, job: Job) -> None: ...
    def event(self, job: Job, event: Event) -> None: ...
    def ended(self, job: Job, seconds: float, reason: str) -> None: ...
    def beat(self) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Running:
    """A job and its process."""

    job: Job
    process: subprocess.Popen[bytes]
    output: IO[bytes]
    tail: Tail
    started: float


@final
class Tail:
    """The lines that a growing file gained since one last looked."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0

    def read(self) -> Iterator[Event]:
        """Events of whole new lines that are not damaged; of a shorter file, all again."""
        try:
            with self._path.open("rb") as file:
                if file.seek(0, os.SEEK_END) < self._offset:
                    self._offset = 0
                file.seek(self._offset)
                new = file.read()
        except FileNotFoundError:
            return
        whole = new[: new.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            with suppress(ValueError):
                yield events.parse(line)


def finished(job: Job) -> bool:
    """Whether the job has a successful run already."""
    end = read_tail(job.folder / "metrics.jsonl").end
    succeeded = end is not None and end.status == "success"
    return succeeded and (job.folder / "config.json").is_file()


def run_all(
    jobs: Sequence[Job],
    at_once: int,
    progress: Progress,
    *,
    offline: bool,
    measurements: Path,
    stopping: Stopping | None = None,
) -> dict[Path, str]:
    """Runs all jobs that are not finished; returns folder -> reason of those that failed now.
    ``measurements``: the folder in which they share what they measure on a source model.

    Unfinished runs continue from their newest checkpoint. ``at_once``: processes at the same time;
    0: everything in this one, where ``stopping`` is handed on to the runs.
    """
    done = [job for job in jobs if finished(job)]
    waiting = deque(job for job in jobs if job not in done)
    progress.begin(jobs, done)
    failed: dict[Path, str] = {}
    try:
        if at_once == 0:
            _here(waiting, progress, failed, offline, measurements, stopping)
        else:
            # By all jobs, so that those which are left of a comparison run as the others did.
            variables = _threads(min(at_once, len(jobs)))
            _processes(waiting, at_once, variables, progress, failed, offline, measurements)
    finally:
        progress.close()
    return failed


def _here(
    waiting: deque[Job],
    progress: Progress,
    failed: dict[Path, str],
    offline: bool,
    measurements: Path,
    stopping: Stopping | None,
) -> None:
    from effcompress.runner.run import run

    for job in waiting:
        progress.started(job)
        started = time.monotonic()
        reason = ""
        try:
            run(
                job.loaded,
                output=job.folder,
                resume=True,
                offline=offline,
                stopping=stopping,
                measurements=measurements,
            )
        except EffcompressError as error:
            reason = str(error)
        except Exception as error:  # noqa: BLE001  a plugin may raise anything; others go on
            reason = f"{type(error).__name__}: {error}"
        if reason:
            failed[job.folder] = reason
        progress.ended(job, time.monotonic() - started, reason)


def _threads(at_once: int) -> dict[str, str]:
    """Returns variables that divide the cores among so many processes. Each takes all of them
    otherwise, and threads of one that spin while they wait keep those of another from working.
    What the user set stays.
    """
    if at_once < 2 or "OMP_NUM_THREADS" in os.environ:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, cores() // at_once))}


def _processes(
    waiting: deque[Job],
    at_once: int,
    variables: Mapping[str, str],
    progress: Progress,
    failed: dict[Path, str],
    offline: bool,
    measurements: Path,
) -> None:
    running: list[Running] = []
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                running.append(_start(waiting.popleft(), variables, offline, measurements))
                progress.started(running[-1].job)
            for one in running.copy():
                # Before the record is read, so that its last event is seen.
                code = one.process.poll()
                for event in one.tail.read():
                    progress.event(one.job, event)
                if code is not None:
                    running.remove(one)
                    if reason := _reason(one, code):
                        failed[one.job.folder] = reason
                    progress.ended(one.job, time.monotonic() - one.started, reason)
            progress.beat()
            time.sleep(POLL)
    finally:
        # All at the same time: each needs its grace time for a checkpoint.
        end_all([one.process for one in running], grace() + MARGIN)
        for one in running:
            one.output.close()


def command(job: Job, *, offline: bool, measurements: Path | None = None) -> list[str]:
    """Returns the command line of a job. ``measurements``: as ``run`` takes it."""
    # -P where this process does not import from the current folder either.
    here = {"", str(Path.cwd())} & set(sys.path)
    words = [sys.executable, *([] if here else ["-P"]), "-m", "effcompress", "run"]
    words += [str(job.loaded.path), "--output", str(job.folder), "--resume"]
    words += ["--offline"] if offline else []
    words += [] if measurements is None else ["--measurements", str(measurements)]
    return [*words, *(word for one in job.overrides for word in ("--set", one))]


def _start(job: Job, variables: Mapping[str, str], offline: bool, measurements: Path) -> Running:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    output = job.log.open("wb")
    process = subprocess.Popen(
        command(job, offline=offline, measurements=measurements),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        env={**os.environ, **variables},
        # Ctrl-C is for this process alone, which tells the others once: told twice, they would end
        # without a checkpoint.
        process_group=0,
    )
    return Running(job, process, output, Tail(job.folder / "metrics.jsonl"), time.monotonic())


def _reason(one: Running, code: int) -> str:
    """Returns why a process failed: its error, else its last line; empty where it succeeded."""
    one.output.close()
    if code == 0 and not finished(one.job):
        return "stopped by a signal; the same command goes on"
    if code == 0:
        try:
            require_same(one.job)  # the recipe may have changed after it was checked
        except EffcompressError as error:
            return str(error)
        return ""
    if code < 0:
        name = signal.Signals(-code).name
        hint = " (often: not enough memory)" if name == "SIGKILL" else ""
        return f"killed by {name}{hint}"
    lines = one.job.log.read_text(encoding="utf-8", errors="replace").splitlines()
    said = [line for line in lines if line.strip()]
    at = max((k for k, line in enumerate(said) if line.startswith("error: ")), default=None)
    if at is not None:
        return " ".join(line.strip() for line in said[at:]).removeprefix("error: ")
    last = said[-1].strip() if said else f"exit code {code}"
    # A traceback ends with the name of the exception.
    return last if re.match(r"\S", last) else f"exit code {code}"
