"""Files of tensors: written, read back, hashed and flushed to disk; read one tensor at a time."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict, final

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from effcompress import fault


class FileFacts(TypedDict):
    """What a checkpoint records of one file. Those of format 1 have no ``sha256``."""

    bytes: int
    sha256: NotRequired[str]


def write(path: Path, tensors: Mapping[str, Tensor]) -> FileFacts:
    """Writes a file, compares it with memory, flushes it; returns its size and hash.

    Raises OSError or SafetensorError when the disk is full or the file differs from memory.
    """
    contiguous = {name: t.detach().contiguous() for name, t in tensors.items()}
    save_file(contiguous, path)
    fault.point("save.tensors")
    _read_back(path, contiguous)
    flush(path)
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def write_text(path: Path, text: bytes) -> FileFacts:
    """Writes and flushes a file that is no tensor; returns its size and hash."""
    path.write_bytes(text)
    flush(path)
    return {"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}


def check(path: Path, said: FileFacts) -> None:
    """Raises OSError or ValueError unless the file has the recorded size and hash."""
    size = path.stat().st_size
    if size != said["bytes"]:
        raise ValueError(f"{path.name} has {size} bytes, not {said['bytes']}")
    if "sha256" in said and sha256(path) != said["sha256"]:
        raise ValueError(f"{path.name} is not what was written")


@final
class Stored(Mapping[str, Tensor]):
    """Tensors in files, read on access and not cached. A tensor that is in several files is
    sharded by rows, in the order of the files.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._where: dict[str, list[Any]] = {}
        for path in paths:
            file = safe_open(path, framework="pt")
            for name in file.keys():  # noqa: SIM118  safe_open is no mapping
                self._where.setdefault(name, []).append(file)

    def __getitem__(self, name: str) -> Tensor:
        parts = [file.get_tensor(name) for file in self._where[name]]
        # A copy in aligned memory: vectorised kernels may round differently on other addresses, and
        # a resumed run must repeat the interrupted one bit for bit.
        return torch.cat(parts) if len(parts) > 1 else parts[0].clone().contiguous()

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)


def sha256(path: Path) -> str:
    """Returns the hash of a file without loading it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Returns whether two tensors are equal bit for bit, nan included."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))


def flush(*paths: Path) -> None:
    """Flushes files to disk (fsync); a folder's entries too, so that a rename is durable."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _read_back(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raises OSError unless the file equals memory bit for bit."""
    with safe_open(path, framework="pt") as file:
        for name, tensor in tensors.items():
            if not same_bits(file.get_tensor(name), tensor.cpu()):
                raise OSError(f"{name} reads back as something else")
