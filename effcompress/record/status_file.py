"""``now.json``: what a run does at this moment, for whoever looks from outside.

It is replaced as a whole, so that nobody reads half of it, and it stays when the process is gone:
then it holds the last words.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, final

from effcompress import processes

NAME = "now.json"
MISSED = 6
"""So many heartbeats may be missing before a process that cannot be asked counts as dead."""
OFTEN = 2.0
"""Seconds between two writes, where only the progress of a phase changed."""


NO_UNIT = {"unit": None, "done": None, "total": None}
"""Where a phase has no parts, or those of a measurement are behind."""


@dataclass(frozen=True)
class StatusRecord:
    """What ``now.json`` says. Times are UTC, as ISO 8601."""

    pid: int
    host: str
    system: str
    """Which start of the system, and which of its sets of processes, ``pid`` belongs to."""
    born: int | None
    """When the process began, by the system's own count: a later one with this pid is another."""
    started: str
    """When this process took up the run."""
    heartbeat: float
    """Seconds between two writes at most."""
    written: str
    active: str
    """When something last happened; the heartbeat goes on without that."""
    phase: str = "start"
    phase_since: str = ""
    unit_since: str = ""
    """When the first of ``total`` units of the phase began."""
    unit: str | None = None
    done: int | None = None
    total: int | None = None
    step: int | None = None
    tokens: int | None = None
    open: bool = True
    """False once the process has let go of the run, whether or not it lives on."""

    @property
    def silence(self) -> float:
        """Seconds since the last sign of the process."""
        return since(self.written)

    @property
    def same_system(self) -> bool:
        """Whether this process can ask the system about that one."""
        return (self.host, self.system) == (socket.gethostname(), _system())

    def alive(self) -> bool:
        """Whether the process is still there: asked of the system, or, of another one, guessed from
        the heartbeat.
        """
        if self.same_system and self.born is not None:
            return processes.born(self.pid) == self.born
        beats = self.silence < MISSED * self.heartbeat
        return beats and (not self.same_system or processes.exists(self.pid))


def read(folder: Path) -> StatusRecord | None:
    """What the run in ``folder`` last said of itself; None where it said nothing."""
    with suppress(OSError, ValueError, TypeError, AttributeError):
        said = json.loads((folder / NAME).read_text(encoding="utf-8"))
        known = {field.name for field in fields(StatusRecord)}
        return StatusRecord(**{key: value for key, value in said.items() if key in known})
    return None


def since(moment: str) -> float:
    """Seconds since then, never less than none: clocks of two machines may differ."""
    return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds())


@final
class StatusFile:
    """Keeps ``now.json`` in ``folder`` true; without a folder, it keeps nothing.

    A disk that is full does not matter here: whoever needs the space says so.
    """

    def __init__(self, folder: Path | None, heartbeat: float) -> None:
        self._folder, self._lock, self._written = folder, threading.Lock(), 0.0
        pid, time_ = os.getpid(), _moment()
        self._now = StatusRecord(
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
        """A new part of the run begins."""
        self._learn(phase=name, phase_since=_moment(), unit_since=_moment(), **NO_UNIT)
        self._write()

    def progress(self, unit: str, done: int, total: int) -> None:
        """So many of ``total`` units of the phase are done."""
        if not done:
            self._learn(unit_since=_moment())
        self._learn(unit=unit, done=done, total=total)
        if time.monotonic() - self._written >= OFTEN:
            self._write()

    def event(self, event: Mapping[str, Any]) -> None:
        """Take in what stands in the record now."""
        if event["event"] == "step":  # goes along with the next heartbeat
            self._learn(step=event["step"], tokens=event["tokens"], **NO_UNIT)
        elif event["event"] == "cut":
            self._learn(**NO_UNIT)
        elif event["event"] == "end":
            self.close()

    def beat(self, silent: float) -> None:
        """The process is there; nothing has happened for so many seconds."""
        self._write(silent)

    def close(self) -> None:
        """The process has nothing more to do with this run."""
        self._learn(open=False)
        self._write()

    def _learn(self, **changes: Any) -> None:
        with self._lock:  # the heartbeat comes from another thread
            self._now = replace(self._now, **changes)

    def _write(self, silent: float = 0.0) -> None:
        if self._folder is None:
            return
        with self._lock:
            self._written = time.monotonic()
            self._now = replace(self._now, written=_moment(), active=_moment(silent))
            work = self._folder / f".{NAME}"
            with suppress(OSError):
                work.write_text(json.dumps(asdict(self._now), indent=1) + "\n", encoding="utf-8")
                work.replace(self._folder / NAME)


def _moment(ago: float = 0.0) -> str:
    return datetime.fromtimestamp(time.time() - ago, UTC).isoformat(timespec="milliseconds")


def _system() -> str:
    """Empty where the system does not say."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    return ""
