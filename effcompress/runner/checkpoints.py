"""Writes the checkpoints of a run, at once or in the background."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from effcompress import checkpoint
from effcompress.checkpoint import GrowingCopy, Writing
from effcompress.record.events import Checkpoint
from effcompress.record.log import Log
from effcompress.runner.state import RunState


@dataclass(frozen=True)
class _Pending:
    writing: Writing
    done: Future[Any]
    seconds: float
    """Time for which training paused."""


@final
class CheckpointWriter:
    """Writes checkpoints and records them. Collective: all processes call the same methods in turn.

    In the background, tensors are copied to host memory, and a thread writes them while training
    continues; the checkpoint is published once all processes have written.
    """

    def __init__(
        self, state: RunState, folder: Path, log: Log, *, into: str = "checkpoints"
    ) -> None:
        self._state, self._log = state, log
        self._folder = folder / into
        self._copies = {
            name: GrowingCopy(folder / f"{name}.jsonl", self._folder) for name in log.state()
        }
        self._pending: _Pending | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.wait()
        elif self._state.world.size == 1:  # other ranks may be gone, so no collective
            with suppress(Exception):  # the first error is the one to report
                self.wait()
        self._thread.shutdown()

    def save(self, *, background: bool = False) -> None:
        """Saves a checkpoint before it returns, or in the background. Raises RunError when this
        checkpoint, or the one before, cannot be written.
        """
        self.wait()
        started = time.monotonic()
        state = self._state
        offsets = self._log.state()
        growing = {f"{name}.jsonl": self._copies[name].until(at) for name, at in offsets.items()}
        saved = replace(state.snapshot(offsets), growing=growing)
        saved.values["corpus"] = state.corpus.fingerprint
        saved.values["provenance"] = state.provenance
        saved.values["threads"] = torch.get_num_threads()
        if background:
            saved = replace(saved, tensors=_copied(saved.tensors), rows=_copied(saved.rows))
        writing = checkpoint.begin(self._folder, state.step, saved, state.world)
        if not background:
            self._publish(writing, started)
            return
        done = self._thread.submit(writing.written)
        writing = replace(writing, written=done.result)
        self._pending = _Pending(writing, done, time.monotonic() - started)

    def poll(self) -> None:
        """Publishes a checkpoint that the background thread has finished writing."""
        if self._pending and not self._state.world.any(not self._pending.done.done()):
            self.wait()

    def wait(self) -> None:
        """Waits for the background thread. Raises RunError when it cannot write."""
        pending, self._pending = self._pending, None
        if pending is not None:
            self._publish(pending.writing, time.monotonic() - pending.seconds)

    def _publish(self, writing: Writing, started: float) -> None:
        state = self._state
        path = checkpoint.publish(writing, state.recipe.save.keep, state.world)
        size = checkpoint.size(path) if state.world.main else 0
        seconds = time.monotonic() - started
        self._log.event(Checkpoint(step=writing.step, seconds=seconds, bytes=size))


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.detach().to("cpu", copy=True) for name, t in tensors.items()}
