"""Newest complete checkpoint -> Saved."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from effcompress.checkpoint.save import FORMAT, STATE, TENSORS, Saved, sha256, steps


def newest(folder: Path, warn: Callable[[str], None]) -> Saved | None:
    """The newest checkpoint that can be read; damaged ones are named and passed over."""
    for path in reversed(steps(folder) if folder.is_dir() else []):
        try:
            return _read(path)
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            warn(f"checkpoint {path.name} is damaged ({first}); trying the one before")
    return None


def _read(path: Path) -> Saved:
    values = json.loads((path / STATE).read_text(encoding="utf-8"))
    if values["format"] != FORMAT:
        raise ValueError(f"format {values['format']}, this version reads {FORMAT}")
    size = (path / TENSORS).stat().st_size
    if size != values["bytes"]:
        raise ValueError(f"{TENSORS} has {size} bytes, not {values['bytes']}")
    # Checkpoints of earlier versions have no hash.
    if "sha256" in values and sha256(path / TENSORS) != values["sha256"]:
        raise ValueError(f"{TENSORS} is not what was written")
    tensors: dict[str, torch.Tensor] = {}
    with safe_open(path / TENSORS, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118  safe_open is no mapping
            # A copy in aligned memory: kernels may round differently on other addresses.
            tensors[name] = file.get_tensor(name).clone(memory_format=torch.contiguous_format)
    return Saved(values, tensors)
