"""Fault injection for tests: kills, full disks and hangs at named points.

    EFFCOMPRESS_FAULT=save.tensors:2:kill effcompress run recipe.yaml

runs the action ``kill`` when the run reaches the point ``save.tensors`` for the second time.
Without the variable a point costs one look-up.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping

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
        raise RunError(
            f"{VARIABLE} is '{asked}'", fix=f"Write POINT:N:ACTION; actions: {', '.join(ACTIONS)}."
        )
    if _seen[name] == int(number):
        ACTIONS[action]()


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def _disk_full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _out_of_memory() -> None:
    raise MemoryError


def _hang() -> None:
    time.sleep(3600)


ACTIONS: Mapping[str, Callable[[], None]] = {
    "kill": _kill,
    "terminate": _terminate,
    "disk_full": _disk_full,
    "out_of_memory": _out_of_memory,
    "hang": _hang,
}
