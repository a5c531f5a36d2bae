"""Turns errors of torch and the operating system into RunErrors that say what to do."""

from __future__ import annotations

import errno

import torch

from effcompress.errors import EffcompressError, RunError
from effcompress.spec import Recipe

_NO_MEMORY = ("allocate memory", "out of memory", "not enough memory")
"""Words of a RuntimeError of torch on a CPU, which has no class of its own."""
_COMPILING = ("torch._dynamo", "torch._inductor")
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def named(error: BaseException, phase: str, recipe: Recipe) -> EffcompressError | None:
    """Returns a RunError for too little memory, a full disk or a failed compilation, else None."""
    if isinstance(error, EffcompressError):
        return error
    if _out_of_memory(error):
        return RunError(f"not enough memory while {phase}", fix=_smaller(recipe))
    if type(error).__module__.startswith(_COMPILING):
        inner = getattr(error, "inner_exception", error)
        said = [line for line in str(inner).splitlines() if line.strip()] or [repr(inner)]
        return RunError(
            f"layers cannot be compiled: {said[0].strip()}",
            fix="Write `compile: false`, and --resume goes on without.",
        )
    if isinstance(error, OSError) and error.errno in _NO_SPACE:
        return RunError(
            f"the disk is full, noticed while {phase}",
            where=error.filename,
            fix="Free some space, then --resume goes on from the newest checkpoint.",
        )
    return None


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    said = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in said for words in _NO_MEMORY)


def _smaller(recipe: Recipe) -> str:
    spec = recipe.loop
    if spec is None:
        return "Lower prune.measure.sequences or evaluate.sequences, or free some memory."
    rows = spec.micro_batch_size or spec.batch_size
    section = "recover" if recipe.recover is not None else "train"
    if rows == 1:
        return "Lower data.sequence_length, or free some memory; see effcompress plan."
    return (
        f"Start afresh (--output) with {section}.micro_batch_size: {rows // 2} or less (batch and "
        "learning stay the same), or free some memory and --resume."
    )
