"""Asked to stop: by Ctrl-C, or by a scheduler that wants its machine back."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import final

from effcompress.errors import RecipeError, RunError, Stopped

VARIABLE = "EFFCOMPRESS_GRACE"
GRACE = 60.0
"""Seconds after a request in which a step may end and a checkpoint be written."""
SIGNALS = (signal.SIGTERM, signal.SIGINT)


def grace() -> float:
    """Seconds, from ``EFFCOMPRESS_GRACE``. Raises RecipeError when that is no number."""
    given = os.environ.get(VARIABLE, "")
    try:
        seconds = float(given or GRACE)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < threading.TIMEOUT_MAX:
        raise RecipeError(f"{VARIABLE} is '{given}'", fix="Write seconds, e.g. 60.")
    return seconds


@final
class Stopping:
    """What has been asked of this process so far.

    Between steps of training a request waits for the end of the step (``patient``), so that a
    checkpoint loses nothing. Anywhere else nothing is lost by stopping at once, with ``Stopped``
    raised in the main thread; so does a second request, and one that waited longer than the grace
    time.
    """

    def __init__(self, seconds: float = GRACE, say: Callable[[str], None] | None = None) -> None:
        self.asked = ""
        """Name of the signal, once there was one."""
        self.say = say
        self._seconds, self._patient, self._overdue = seconds, False, False
        self._timer: threading.Timer | None = None

    @contextmanager
    def listening(self) -> Iterator[Stopping]:
        """Take requests until the end of the block. Does nothing outside of the main thread, which
        alone gets signals.
        """
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.signal(number, self._heard) for number in SIGNALS}
        try:
            yield self
        finally:
            if self._timer is not None:
                self._timer.cancel()
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def patient(self) -> Iterator[None]:
        """Requests wait for whoever looks at ``asked``."""
        self._patient = True
        try:
            yield
        finally:
            self._patient = False

    def _heard(self, number: int, _frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self._patient and not self.asked:
            self.asked = name
            self._later(0.0, self._tell, name)
            self._timer = self._later(self._seconds, self._too_long, number)
            return
        if self._overdue:
            raise RunError(
                f"{name} came, and no step ended within {self._seconds:g} s",
                fix=f"--resume goes on from the newest checkpoint. {VARIABLE} sets the seconds.",
            )
        raise self.stopped(name)

    @staticmethod
    def stopped(name: str, where: str = "") -> Stopped:
        """What to raise for this signal."""
        error = Stopped(f"by {name}{where}", fix="The same command with --resume goes on.")
        error.exit_code = 130 if name == "SIGINT" else 0
        return error

    @staticmethod
    def _later(seconds: float, do: Callable[..., None], *given: object) -> threading.Timer:
        # In a thread: what a signal handler prints may meet a half-printed line of its own thread.
        timer = threading.Timer(seconds, do, given)
        timer.daemon = True
        timer.start()
        return timer

    def _tell(self, name: str) -> None:
        if self.say is not None:
            self.say(f"{name}: this step ends, then a checkpoint is written (again: at once)")

    def _too_long(self, number: int) -> None:
        self._overdue = True
        os.kill(os.getpid(), number)
