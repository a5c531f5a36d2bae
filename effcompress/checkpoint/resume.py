"""Newest complete checkpoint -> Saved."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from effcompress.checkpoint.files import Stored, check
from effcompress.checkpoint.save import FORMAT, STATE, TENSORS, Saved, steps
from effcompress.distributed import ALONE, World


def newest(folder: Path, warn: Callable[[str], None], world: World = ALONE) -> Saved | None:
    """The newest checkpoint that can be read; damaged ones are named and passed over. The main
    process of ``world`` looks for it, all read it.
    """
    path = world.agree(lambda: _sound(folder, warn))
    return None if path is None else _opened(path)


def _sound(folder: Path, warn: Callable[[str], None]) -> Path | None:
    for path in reversed(steps(folder) if folder.is_dir() else []):
        try:
            for name, said in _files(_values(path)).items():
                check(path / name, said)
            _opened(path)
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            warn(f"checkpoint {path.name} is damaged ({first}); trying the one before")
        else:
            return path
    return None


def _values(path: Path) -> dict[str, Any]:
    values = json.loads((path / STATE).read_text(encoding="utf-8"))
    if values["format"] not in (1, FORMAT):
        raise ValueError(f"format {values['format']}, this version reads {FORMAT}")
    return values


def _files(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What is said of each file. Earlier versions wrote one, and said it among the values."""
    return values.get("files", {TENSORS: values})


def _opened(path: Path) -> Saved:
    values = _values(path)
    return Saved(values, Stored([path / name for name in sorted(_files(values))]))
