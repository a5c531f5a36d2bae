"""The heartbeat of a run, and the watchdog that says where it is stuck."""

from __future__ import annotations

import faulthandler
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import final

from effcompress.errors import RecipeError

STACKS = "stacks.txt"
VARIABLE = "EFFCOMPRESS_SILENCE"
SILENCE = 300.0
"""Seconds in which nothing happens, after which a run says where it stands."""


def patience() -> float:
    """Seconds, from ``EFFCOMPRESS_SILENCE``. Raises RecipeError when that is no number."""
    given = os.environ.get(VARIABLE, "")
    try:
        seconds = float(given or SILENCE)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < threading.TIMEOUT_MAX:
        raise RecipeError(f"{VARIABLE} is '{given}'", fix="Write seconds, e.g. 300.")
    return seconds


@final
class Heartbeat:
    """Calls ``beat`` every ``interval`` seconds, and dumps the stacks of all threads once after
    ``silence`` seconds in which nobody called ``alive``: to standard error and to ``stacks``.
    """

    def __init__(
        self,
        beat: Callable[[], None],
        phase: Callable[[], str],
        interval: float,
        silence: float,
        stacks: Path,
    ) -> None:
        self._beat, self._phase, self._stacks = beat, phase, stacks
        self._interval, self._silence = interval, silence
        self._stop = threading.Event()
        self._last, self._dumped = time.monotonic(), False
        self._thread: threading.Thread | None = None

    def alive(self) -> None:
        """Something happened. The first call starts the thread."""
        self._last, self._dumped = time.monotonic(), False
        if self._thread is None and not self._stop.is_set():
            self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)
            self._thread.start()

    @property
    def silent(self) -> float:
        """Seconds since something happened."""
        return time.monotonic() - self._last

    def stop(self) -> None:
        """End the thread. Nothing beats afterwards."""
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        due = time.monotonic() + self._interval
        now = time.monotonic()
        # Never longer than one silence, so that a new one that begins meanwhile is not slept over.
        while not self._stop.wait(max(0.0, min(due - now, self._alarm() - now, self._silence))):
            now = time.monotonic()
            if now >= self._alarm():
                self._dumped = True
                self._dump(now - self._last)
            if now >= due:
                self._beat()
                due = now + self._interval

    def _alarm(self) -> float:
        return float("inf") if self._dumped else self._last + self._silence

    def _dump(self, seconds: float) -> None:
        # By way of a file: faulthandler writes past sys.stderr, into whatever a live panel is
        # drawing there, and sys.stderr need not be a real file at all.
        with tempfile.TemporaryFile() as file:
            faulthandler.dump_traceback(file, all_threads=True)
            file.seek(0)
            stacks = file.read().decode(errors="replace")
        what = f"Nothing has happened for {seconds:.0f} s in phase '{self._phase()}'."
        kept = self._keep(f"{what}\n{stacks}\n")
        sys.stderr.write(f"\n{what} Where every thread is{kept}:\n{stacks}\n")
        sys.stderr.flush()

    def _keep(self, text: str) -> str:
        """Where it is to be found, for the reader."""
        date = datetime.now(UTC).isoformat(timespec="seconds")
        head = f"{date}, process {os.getpid()} on {socket.gethostname()}"
        try:
            # One write, as several processes of a run may be silent at the same time.
            with self._stacks.open("ab", buffering=0) as file:
                file.write(f"{head}: {text}".encode())
        except OSError:  # on standard error it stands anyway
            return ""
        return f" (also in {self._stacks}; look at the main thread, the last one)"
