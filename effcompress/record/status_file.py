"""``now.json``: what a run does at this moment, for other processes to read.

The file is replaced atomically, so a reader never sees half of it. It stays when the process dies
and then holds its last state.
"""

import json
import os
import socket
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, final

from effcompress import processes
from effcompress.record import events
from effcompress.record.events import Event

NAME = "now.json"
LARGEST, LARGEST_PID = 1 << 20, 1 << 31
"""Bytes and pid beyond which the file is damaged."""
MISSED = 6
"""Missing heartbeats after which a process on another machine counts as dead."""
OFTEN = 2.0
"""Seconds between two writes where only the progress of a phase changed."""
NO_UNIT = {"unit": None, "done": None, "total": None, "until": ""}
"""Progress of a phase that does not count units, or has counted them all, and was not forecast."""


@dataclass(frozen=True)
class StatusRecord:
    """Content of ``now.json``. Times are UTC, in ISO 8601."""

    pid: int
    host: str
    system: str
    """Boot id and pid namespace: elsewhere the same ``pid`` is another process."""
    born: int | None
    """Start time of the process in clock ticks: pids are used again."""
    started: str
    """When this process started or resumed the run."""
    heartbeat: float
    """Seconds between two writes, at most."""
    written: str
    active: str
    """Time of the last event; heartbeats do not count."""
    phase: str = "start"
    phase_since: str = ""
    unit_since: str = ""
    """When the first of ``total`` units of the phase was started."""
    unit: str | None = None
    done: int | None = None
    total: int | None = None
    until: str = ""
    """When the phase is expected to end, where it was forecast."""
    step: int | None = None
    tokens: int | None = None
    open: bool = True
    """False once the process has finished with the run, whether or not it lives on."""

    @property
    def silence(self) -> float:
        """Seconds since the last heartbeat."""
        return since(self.written)

    @property
    def same_system(self) -> bool:
        """Whether the process runs on this system, so that /proc can be asked about it."""
        return (self.host, self.system) == (socket.gethostname(), _system())

    @property
    def rebooted(self) -> bool:
        """Whether the system was started again since: another boot id, the same pid namespace."""
        boot, _, pids = self.system.partition(" ")
        here, _, mine = _system().partition(" ")
        return self.host == socket.gethostname() and boot != here and bool(pids) and pids == mine

    def alive(self) -> bool:
        """Whether the process still lives: by /proc on the same system, else by its heartbeat."""
        if self.same_system and self.born is not None:
            return processes.born(self.pid) == self.born
        if self.rebooted:
            return False
        beats = self.silence < MISSED * self.heartbeat
        return beats and (not self.same_system or processes.exists(self.pid))


def read(folder: Path) -> StatusRecord | None:
    """Reads ``now.json`` of the run in ``folder``; None where there is none, or it is damaged."""
    path = folder / NAME
    with suppress(OSError, ValueError, TypeError):
        if path.is_file() and path.stat().st_size < LARGEST:
            now = events.build(StatusRecord, events.loaded(path.read_bytes()))
            for moment in (now.started, now.written, now.active):
                since(moment)
            for moment in filter(None, (now.phase_since, now.unit_since, now.until)):
                since(moment)
            return now if 0 < now.pid < LARGEST_PID else None
    return None


def since(moment: str) -> float:
    """Seconds since ``moment``, at least 0: clocks of two machines may differ."""
    return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds())


def ahead(moment: str) -> float:
    """Seconds until ``moment``; negative behind it."""
    return (datetime.fromisoformat(moment) - datetime.now(UTC)).total_seconds()


@final
class StatusFile:
    """Writes ``now.json``, if there is a folder. The record reports a full disk, this does not."""

    def __init__(self, folder: Path | None, heartbeat: float) -> None:
        self._folder, self._lock, self._written = folder, threading.Lock(), 0.0
        pid, time_ = os.getpid(), _moment()
        self._record = StatusRecord(
            pid=pid,
            host=socket.gethostname(),
            system=_system(),
            born=processes.born(pid),
            started=time_,
            heartbeat=heartbeat,
            written=time_,
            active=time_,
        )

    def phase(self, name: str) -> None:
        """Writes that a phase begins."""
        self._update(phase=name, phase_since=_moment(), unit_since=_moment(), **NO_UNIT)
        self.beat()

    def progress(self, unit: str, done: int, total: int | None) -> None:
        """Takes in progress of the phase, and writes it at most every ``OFTEN`` seconds."""
        if not done:
            self._update(unit_since=_moment())
        self._update(unit=unit, done=done, total=total)
        if time.monotonic() - self._written >= OFTEN:
            self.beat()

    def expect(self, seconds: float) -> None:
        """Writes how long the phase is expected to take from now on."""
        self._update(until=_moment(-seconds))
        self.beat()

    def event(self, event: Event) -> None:
        """Takes in an event of the record. Steps are written with the next heartbeat."""
        match event:
            case events.Step():
                self._update(step=event.step, tokens=event.tokens, **NO_UNIT)
            case events.Cut():
                self._update(**NO_UNIT)
            case events.End():
                self.close()

    def close(self) -> None:
        """Writes that this process has finished with the run."""
        self._update(open=False)
        self.beat()

    def _update(self, **changes: Any) -> None:
        with self._lock:  # heartbeats come from another thread
            self._record = replace(self._record, **changes)

    def beat(self, silent: float = 0.0) -> None:
        """Writes a heartbeat; ``silent``: seconds since the last event."""
        if self._folder is None:
            return
        with self._lock:
            self._written = time.monotonic()
            self._record = replace(self._record, written=_moment(), active=_moment(silent))
            work = self._folder / f".{NAME}"
            with suppress(OSError):
                work.write_text(json.dumps(asdict(self._record), indent=1) + "\n", encoding="utf-8")
                work.replace(self._folder / NAME)


def _moment(ago: float = 0.0) -> str:
    return datetime.fromtimestamp(time.time() - ago, UTC).isoformat(timespec="milliseconds")


def _system() -> str:
    """Boot id and pid namespace; empty where there is no /proc."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    return ""
