"""The command line's signal handlers: SIGTERM, SIGINT (Ctrl-C) and SIGHUP (the terminal is closed)
become a request to stop.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from effcompress.stopping import Stopping, grace

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@contextmanager
def stop_on_signals(stopping: Stopping | None = None) -> Iterator[Stopping]:
    """Forwards ``SIGNALS`` to ``stopping`` and puts the former handlers back at the end; a SIGHUP
    that is ignored (``nohup``) stays so. Call it in the main thread, the only one that receives
    signals.

    Raises RecipeError when ``EFFCOMPRESS_GRACE`` is not a number of seconds.
    """
    stopping = stopping or Stopping(grace())

    def handler(number: int, _frame: FrameType | None) -> None:
        stopping.request(number)

    # A shell without job control starts what is behind `&` with SIGINT ignored, too; but a SIGINT
    # that arrives is meant.
    nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    heard = [number for number in SIGNALS if not (nohup and number == signal.SIGHUP)]
    before = {number: signal.signal(number, handler) for number in heard}
    try:
        yield stopping
    finally:
        stopping.close()
        for number, former in before.items():
            signal.signal(number, former)
