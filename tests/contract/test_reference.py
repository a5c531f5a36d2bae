"""The committed reference is the one the code generates."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_reference_is_current() -> None:
    committed = Path(__file__).parents[2] / "docs" / "reference.md"
    # In a process of its own: other tests register plugins of theirs.
    command = [sys.executable, "-m", "effcompress", "schema", "--markdown"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert committed.read_text(encoding="utf-8") == done.stdout, (
        "run: effcompress schema --markdown > docs/reference.md"
    )
