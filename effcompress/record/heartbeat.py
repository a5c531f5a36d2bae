"""The heartbeat of a run, and the watchdog that dumps all stacks when it is stuck."""

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
from effcompress.record.lasting import Lasting

STACKS = "stacks.txt"
VARIABLE = "EFFCOMPRESS_SILENCE"
SILENCE = 300.0
"""Default seconds without an event after which the watchdog dumps stacks."""


def patience() -> float:
    """Returns the seconds of ``EFFCOMPRESS_SILENCE``. Raises RecipeError if that is no number."""
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
    ``silence`` seconds without a call of ``alive``: to standard error and to the file ``stacks``.
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
        """Resets the watchdog. The first call starts the thread."""
        self._last, self._dumped = time.monotonic(), False
        if self._thread is None and not self._stop.is_set():
            self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
            self._thread.start()

    @property
    def silent(self) -> float:
        """Seconds since the last call of ``alive``."""
        return time.monotonic() - self._last

    def stop(self) -> None:
        """Ends the thread and waits for it."""
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        due = time.monotonic() + self._interval
        now = time.monotonic()
        # Never wait longer than one silence: `alive` moves the alarm while this thread sleeps.
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
        # faulthandler needs a real file descriptor, which sys.stderr need not have; writing to
        # descriptor 2 itself would garble a live panel.
        with tempfile.TemporaryFile() as file:
            faulthandler.dump_traceback(file, all_threads=True)
            file.seek(0)
            stacks = file.read().decode(errors="replace")
        what = f"Nothing has happened for {seconds:.0f} s in phase '{self._phase()}'."
        kept = self._keep(f"{what}\n{stacks}\n")
        if sys.stderr is not None:
            shown = Lasting(sys.stderr)  # this thread must not end with the terminal
            shown.write(f"\n{what} Stacks of all threads{kept}:\n{stacks}\n")
            shown.flush()

    def _keep(self, text: str) -> str:
        """Appends to the file ``stacks``; returns the words that point to it."""
        date = datetime.now(UTC).isoformat(timespec="seconds")
        head = f"{date}, process {os.getpid()} on {socket.gethostname()}"
        try:
            # One write: several processes of a run may append at the same time.
            with self._stacks.open("ab", buffering=0) as file:
                file.write(f"{head}: {text}".encode())
        except OSError:  # standard error has it anyway
            return ""
        return f" (also in {self._stacks}; look at the main thread, the last one)"
