"""The committed reference is the one the code generates."""

from __future__ import annotations

from pathlib import Path

from effcompress.recipe import reference


def test_reference_is_current() -> None:
    committed = Path(__file__).parents[2] / "docs" / "reference.md"
    assert committed.read_text(encoding="utf-8") == reference(), (
        "run: effcompress schema --markdown > docs/reference.md"
    )
