"""Fault injection for tests: kills, full disks and hangs at named points.

    EFFCOMPRESS_FAULT=save.tensors:2:kill effcompress run recipe.yaml

runs the action ``kill`` when the run reaches the point ``save.tensors`` for the second time.
Without the variable a point costs one look-up.
"""

import errno
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import NoReturn

from effcompress.errors import RunError

VARIABLE = "EFFCOMPRESS_FAULT"
_seen: Counter[str] = Counter()


def point(name: str) -> None:
    """Runs the action that the variable names for this point, if any.

    Raises RunError when the variable is not of the form POINT:N:ACTION.
    """
    asked = os.environ.get(VARIABLE)
    if not asked:
        return
    place, _, rest = asked.partition(":")
    if place != name:
        return
    _seen[name] += 1
    number, _, action = rest.partition(":")
    if action not in ACTIONS or not number.isdecimal():
        fix = f"Write POINT:N:ACTION; actions: {', '.join(ACTIONS)}."
        raise RunError(f"{VARIABLE} is '{asked}'", fix=fix)
    if _seen[name] == int(number):
        ACTIONS[action]()


def _fail(error: Exception) -> NoReturn:
    raise error


def _hang() -> None:
    time.sleep(3600)


ACTIONS: Mapping[str, Callable[[], None]] = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "terminate": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "disk_full": lambda: _fail(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))),
    "out_of_memory": lambda: _fail(MemoryError()),
    "hang": _hang,
}
