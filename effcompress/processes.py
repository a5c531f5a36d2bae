"""Processes of this machine: whether one lives, its memory, and how to end it. The only module that
imports psutil.
"""

import glob
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

TICKS = 100
"""Units of ``born`` in a second."""
PROCESS = Path("/proc/self")


def born(pid: int) -> int | None:
    """Returns when a process started, in 1/100 s since the system did; None where there is no such
    process or only a zombie. Together with the pid it identifies a process: pids are used again.
    """
    try:
        process = psutil.Process(pid)
        if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return None
        # Both are seconds since the epoch; only their difference survives a change of the clock.
        return round((process.create_time() - psutil.boot_time()) * TICKS)
    except psutil.Error:
        return None


def exists(pid: int) -> bool:
    """Whether there is a process with this pid, of any user."""
    return psutil.pid_exists(pid)


def sweep(folder: Path, name: str) -> None:
    """Deletes files and folders ``<name>-<pid>`` and ``<name>-<pid>-...`` in ``folder`` that a
    process left which is gone, or this one did earlier. A link is left alone.
    """
    for left in folder.glob(f"{glob.escape(name)}-*"):
        pid = left.name.removeprefix(f"{name}-").partition("-")[0]
        if not pid.isdecimal() or left.is_symlink():
            continue
        if int(pid) == os.getpid() or not exists(int(pid)):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


@contextmanager
def scratch(name: str, place: Path | None = None) -> Iterator[Path]:
    """Makes a folder ``<name>-<pid>-...`` in ``place`` (default: that for temporary files), which
    is deleted at the end, as are those that killed processes left.
    """
    place = Path(tempfile.gettempdir()) if place is None else place
    sweep(place, name)
    with tempfile.TemporaryDirectory(prefix=f"{name}-{os.getpid()}-", dir=place) as made:
        yield Path(made)


def cores() -> int:
    """Returns the cores that this process may use: a scheduler or container binds it to some."""
    bound = getattr(os, "sched_getaffinity", None)
    return len(bound(0)) if bound else os.cpu_count() or 1


def memory_available() -> int:
    """Returns the bytes of memory that this machine can still give."""
    return psutil.virtual_memory().available


def resident() -> int:
    """Returns the resident memory of this process, in bytes."""
    return psutil.Process().memory_info().rss


def reset_peak() -> None:
    """Sets the peak of this process's resident memory to its present size. Raises OSError where the
    system cannot.
    """
    (PROCESS / "clear_refs").write_text("5", encoding="ascii")  # psutil knows neither


def high_water() -> int | None:
    """Returns the peak of this process's resident memory in bytes; None where it is not known."""
    with suppress(OSError):
        for line in (PROCESS / "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def end_all(processes: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
    """Sends SIGTERM to all, and after ``seconds`` SIGKILL to those left and to all of their
    descendants (a fresh process of the proof, say). Returns when all have ended.
    """
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + seconds
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            _kill_tree(process.pid)
            process.wait()


def _kill_tree(pid: int) -> None:
    with suppress(psutil.Error):
        root = psutil.Process(pid)
        for process in (*root.children(recursive=True), root):
            with suppress(psutil.Error):
                process.kill()
