"""What the experiments share: their text, a folder of ``<domain>/{train,validation}.jsonl``, and
their results, a CSV file with one line per run.
"""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Mapping
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


def mean(perplexities: Mapping[str, float]) -> float:
    """Geometric: each domain counts alike."""
    return math.exp(statistics.mean(math.log(value) for value in perplexities.values()))


def lines_of(results: Path) -> list[dict[str, str]]:
    """All lines so far."""
    if not results.exists():
        return []
    with results.open(newline="") as file:
        return list(csv.DictReader(file))
