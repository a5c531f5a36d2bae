"""Annotated types of recipe values, and ``key``, which declares a field of a section."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Annotated, Any

Count = Annotated[int, "count"]
"""A whole number; recipes may write 469M, 72B, 1.5k."""
Fraction = Annotated[float, "fraction"]
"""A number from 0 to 1; recipes may write 85%."""
Positive = Annotated[int, "positive"]
"""A whole number from 1 on."""
InputPath = Annotated[Path, "path"]
"""A file or folder to read; relative to the recipe file that names it."""


NAME = {
    "pattern": r"^(?!.*\.\.)[A-Za-z0-9_][A-Za-z0-9._-]*$(?!\n)",
    "words": "letters, digits, '.', '_' and '-' only (no '..', no '.' or '-' in front)",
}
SHA256 = {"pattern": "^[0-9a-fA-F]{64}$", "words": "64 hexadecimal digits"}


def key(help: str, default: Any = ..., **metadata: Any) -> Any:
    """Declares a field of a section: its help text, its default, and the bounds it is checked
    against (``metadata``, see ``effcompress.spec``).
    """
    metadata["help"] = help
    if default is ...:
        return field(metadata=metadata)
    return field(default=default, metadata=metadata)
