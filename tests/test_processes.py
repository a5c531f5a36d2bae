"""Processes are ended with all that they started."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from effcompress import processes

STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""


def start(code: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)


def test_a_process_that_ignores_sigterm_is_killed_with_its_children() -> None:
    stubborn, polite = start(STUBBORN), start("import time; time.sleep(600)")
    assert stubborn.stdout is not None and polite.stdout is not None
    child = int(stubborn.stdout.readline())
    assert processes.born(child) is not None
    processes.end_all([stubborn, polite], 0.5)
    assert stubborn.returncode == -9 and polite.returncode == -15
    deadline = time.monotonic() + 10
    while processes.born(child) is not None:
        assert time.monotonic() < deadline, "the child outlived its parent"
        time.sleep(0.01)
    stubborn.stdout.close()
    polite.stdout.close()


def test_nothing_to_end() -> None:
    done = start("")
    assert done.wait() == 0 and done.stdout is not None
    processes.end_all([done], 0.0)
    done.stdout.close()


def test_a_scratch_folder_goes_and_with_it_those_of_dead_processes(tmp_path: Path) -> None:
    gone, alive = tmp_path / f"work-{2**22 + 1}-a", tmp_path / f"work-{os.getppid()}-a"
    gone.mkdir()
    alive.mkdir()
    with processes.scratch("work", tmp_path) as made:
        assert made.is_dir() and made.name.startswith(f"work-{os.getpid()}-")
        assert not gone.exists() and alive.is_dir()
    assert [*tmp_path.iterdir()] == [alive]
