"""Checkpoints of a run: when one is due, everything goes in."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from effcompress import checkpoint
from effcompress.checkpoint import Saved
from effcompress.data import Corpus
from effcompress.log import Log
from effcompress.runner.state import RunState


def keeper(state: RunState, corpus: Corpus, folder: Path, log: Log) -> Callable[[], None]:
    """What writes a checkpoint of this run and says so in its record. All processes call it."""
    return partial(_keep, state, corpus, folder, log)


def _keep(state: RunState, corpus: Corpus, folder: Path, log: Log) -> None:
    started = time.monotonic()
    saved = state.snapshot(log.state())
    saved.values["corpus"] = corpus.fingerprint
    saved.values["threads"] = torch.get_num_threads()
    size = state.world.agree(lambda: _written(folder, state, saved))
    log.event("checkpoint", step=state.step, seconds=time.monotonic() - started, bytes=size)


def _written(folder: Path, state: RunState, saved: Saved) -> int:
    """Bytes of the checkpoint."""
    path = checkpoint.save(folder / "checkpoints", state.step, saved, state.recipe.save.keep)
    return (path / checkpoint.TENSORS).stat().st_size
