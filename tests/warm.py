"""Processes that begin in a moment: forked from a parent that has imported torch, transformers and
the package once.

A process of its own costs a test several seconds of imports before it does anything. Where a test
is about what happens to a process (it is killed, stopped, one of two), and not about how it is
launched, it starts here. Every such process runs on one thread and proves exports in itself. Tests
of the real command line and of `torchrun` start those.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
from torch.distributed import TCPStore

from effcompress.checkpoint import proof

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.warm_imports"])


def start(
    act: Callable[..., Any],
    *given: Any,
    out: Path,
    err: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> BaseProcess:
    """A process that calls ``act(*given)``; what it prints is appended to the files ``out`` and
    ``err`` (by default the same). ``environment`` is added to that of this process.
    """
    everything = {**os.environ, **(environment or {})}
    with _for_children():  # the common parent starts with the first of them
        process = _FORKS.Process(
            target=_begin, args=(everything, str(out), str(err or out), act, given)
        )
        process.start()
    return process


def effcompress(
    *words: str, folder: Path, environment: Mapping[str, str] | None = None
) -> CompletedProcess[str]:
    """What `python -m effcompress WORDS` does; the output passes through files in ``folder``."""
    out, err = (Path(tempfile.mkdtemp(dir=folder), name) for name in ("out", "err"))
    process = start(command, words, out=out, err=err, environment=environment)
    code = wait(process)
    return CompletedProcess(words, code, out.read_text(), err.read_text())


def command(words: Sequence[str]) -> None:
    """The entry point of the command line."""
    from effcompress.cli import main

    main(list(words))


def wait(process: BaseProcess, seconds: float = 300) -> int:
    """The exit code; minus the signal's number where a signal ended it."""
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise TimeoutError(f"a process took more than {seconds} s")
    return process.exitcode


def together(
    act: Callable[..., Any], *given: Any, folder: Path, processes: int = 2
) -> tuple[int, str]:
    """(exit code, standard error) of processes that call the same, as `torchrun` would start them:
    the first that fails ends the others.
    """
    # As torchrun's agent does: this process holds the store in which the others meet.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    errors = [folder / f"standard-error-{rank}" for rank in range(processes)]
    for file in errors:
        file.unlink(missing_ok=True)
    started = [
        start(
            act,
            *given,
            out=folder / f"standard-output-{rank}",
            err=errors[rank],
            environment={
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(processes),
                "LOCAL_WORLD_SIZE": str(processes),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(store.port),
                "TORCHELASTIC_USE_AGENT_STORE": "True",
            },
        )
        for rank in range(processes)
    ]
    deadline = time.monotonic() + 800
    while any(p.exitcode is None for p in started):
        if time.monotonic() > deadline or any(p.exitcode for p in started):
            for process in started:
                process.join(5)  # what failed in one, the others are told, and say it, too
                process.kill()
        time.sleep(0.01)
    for process in started:
        process.join()
    codes = [p.exitcode or 0 for p in started]
    return next((code for code in codes if code), 0), "".join(f.read_text() for f in errors)


@contextmanager
def _for_children() -> Iterator[None]:
    """Child processes find the modules that this one finds, and compute on one thread."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


def _begin(
    environment: Mapping[str, str],
    out: str,
    err: str,
    act: Callable[..., Any],
    given: Sequence[Any],
) -> None:
    assert "tests.warm_imports" in sys.modules, "the parent has not imported what it should"
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # TMPDIR may be another
    for number, name in ((1, out), (2, err)):
        file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(file, number)
        os.close(file)
    torch.set_num_threads(1)
    from tests.proving import in_this_process

    proof.in_fresh_process = in_this_process
    code = act(*given)
    sys.exit(code if isinstance(code, int) else 0)
