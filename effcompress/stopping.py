"""The request to stop that a run honours at the end of a step.

Nothing here installs a signal handler: a Python program that calls ``run()`` keeps its own. The
command line forwards SIGTERM and SIGINT to a ``Stopping`` (``cli/signals.py``).
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import final

from effcompress.errors import RecipeError, RunError, Stopped

VARIABLE = "EFFCOMPRESS_GRACE"
GRACE = 60.0
"""Seconds that the current step and its checkpoint may take after a request."""


def grace() -> float:
    """Reads the grace time in seconds from ``EFFCOMPRESS_GRACE``. Raises RecipeError when that is
    not a number of seconds.
    """
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
    """Holds the request to stop of one process.

    Within ``patient()`` (the training loop) a first request is only noted in ``asked``, and the
    loop ends behind the current step with a checkpoint. Everywhere else a request raises
    ``Stopped`` at once, because no unsaved step is lost. So does a second request, and, as a
    RunError, a step that takes longer than the grace time.
    """

    def __init__(self, seconds: float = GRACE, say: Callable[[str], None] | None = None) -> None:
        """``seconds``: the grace time; ``say`` shows a line to the user."""
        self.asked = ""
        """Name of the signal, once there was one."""
        self.say = say
        self._seconds, self._patient, self._overdue = seconds, False, False
        self._timer: threading.Timer | None = None

    @contextmanager
    def patient(self) -> Iterator[None]:
        """Within this context the caller looks at ``asked`` between steps."""
        self._patient = True
        try:
            yield
        finally:
            self._patient = False

    def request(self, number: int) -> None:
        """Takes the signal ``number``, in the main thread, where signal handlers run.

        Raises Stopped (or RunError after the grace time) unless the request can wait.
        """
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

    def close(self) -> None:
        """Cancels the timer of the grace time."""
        if self._timer is not None:
            self._timer.cancel()

    @staticmethod
    def stopped(name: str, where: str = "") -> Stopped:
        """Returns the error that ends a run after the signal ``name``."""
        error = Stopped(f"by {name}{where}", fix="The same command with --resume goes on.")
        error.exit_code = 0 if name == "SIGTERM" else 128 + signal.Signals[name]
        return error

    @staticmethod
    def _later(seconds: float, do: Callable[..., None], *given: object) -> threading.Timer:
        # From another thread: a handler runs between two bytecodes of the main thread, possibly in
        # the middle of a print, and a second print there would corrupt or deadlock the stream.
        timer = threading.Timer(seconds, do, given)
        timer.daemon = True
        timer.start()
        return timer

    def _tell(self, name: str) -> None:
        words = "Finishing this step, then saving a checkpoint."
        # A scheduler's SIGTERM has no key to press.
        words += " Press Ctrl-C again to quit now" if name == "SIGINT" else f" ({name})"
        if self.say is not None:
            self.say(words)

    def _too_long(self, number: int) -> None:
        self._overdue = True
        # A signal, not an exception of this thread: only that interrupts the main thread's step.
        os.kill(os.getpid(), number)
