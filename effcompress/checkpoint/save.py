"""Checkpoints: one folder each, complete or not there.

``state.json`` holds everything that is no tensor, ``tensors.safetensors`` everything that is. The
folder is written under a temporary name, read back and compared, flushed to disk and then renamed.
A hash of the tensors tells later whether they are still what was written.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from effcompress import fault
from effcompress.errors import RunError

FORMAT = 1
TENSORS, STATE = "tensors.safetensors", "state.json"


@dataclass(frozen=True)
class Saved:
    """A checkpoint in memory."""

    values: dict[str, Any]
    """JSON values: step, tokens, positions in data and record, epsilons, hash of the text."""
    tensors: dict[str, Tensor]
    """Flat names: ``model/NAME``, ``optimizer/FIELD/NAME``, ``ledger/...``, ``saliency/SET``."""

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin with ``prefix``, without it."""
        return {k.removeprefix(prefix): t for k, t in self.tensors.items() if k.startswith(prefix)}


def save(folder: Path, step: int, saved: Saved, keep: int) -> Path:
    """Write ``folder/step-<step>`` atomically, then delete all but the newest ``keep``.

    Raises RunError when the disk is full or what was written cannot be read back; earlier
    checkpoints stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    target = folder / f"step-{step:08d}"
    work = folder / f".writing-{os.getpid()}"
    try:
        work.mkdir()
        contiguous = {name: t.detach().contiguous() for name, t in saved.tensors.items()}
        save_file(contiguous, work / TENSORS)
        fault.point("save.tensors")
        _read_back(work / TENSORS, contiguous)
        written = {"bytes": (work / TENSORS).stat().st_size, "sha256": sha256(work / TENSORS)}
        values = {"format": FORMAT, **written, **saved.values}
        (work / STATE).write_text(json.dumps(values, indent=1), encoding="utf-8")
        _flush(work / TENSORS, work / STATE, work)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(work, ignore_errors=True)
        raise RunError(
            f"the checkpoint of step {step} cannot be written: {error}",
            where=str(folder),
            fix="Free some space, then continue with --resume from the checkpoint before.",
        ) from error
    if target.exists():
        shutil.rmtree(target)
    fault.point("save.rename")
    work.rename(target)
    _flush(folder)
    fault.point("save.renamed")
    # Newer ones than this were damaged, or this run would have continued from them.
    for newer in (p for p in steps(folder) if p.name > target.name):
        shutil.rmtree(newer)
    for old in steps(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def steps(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(p for p in folder.glob("step-*") if p.is_dir())


def sha256(path: Path) -> str:
    """Of a file, without holding it in memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Also where both are not numbers."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))


def _sweep(folder: Path) -> None:
    """Remove what a process that died while writing left behind."""
    for left in folder.glob(".writing-*"):
        shutil.rmtree(left, ignore_errors=True)


def _flush(*paths: Path) -> None:
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _read_back(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raises OSError unless the file says bit for bit what is in memory."""
    with safe_open(path, framework="pt") as file:
        for name, tensor in tensors.items():
            if not same_bits(file.get_tensor(name), tensor.cpu()):
                raise OSError(f"{name} reads back as something else")
