"""The text of the experiments: a folder of ``<domain>/{train,validation}.jsonl``."""

from __future__ import annotations

from pathlib import Path


def domains(corpus: Path) -> dict[str, dict[str, str]]:
    """``data.domains`` of a recipe: every domain with its own held-out text."""
    return {
        folder.name: {
            "jsonl": str(folder / "train.jsonl"),
            "validation": str(folder / "validation.jsonl"),
        }
        for folder in sorted(corpus.resolve().iterdir())
        if (folder / "train.jsonl").exists()
    }
