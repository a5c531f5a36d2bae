"""Checkpoints of a run: when one is due, everything goes in."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from effcompress import checkpoint
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
    keep = state.recipe.save.keep
    path = checkpoint.save(folder / "checkpoints", state.step, saved, keep, state.world)
    size, seconds = checkpoint.size(path), time.monotonic() - started
    log.event("checkpoint", step=state.step, seconds=seconds, bytes=size)
