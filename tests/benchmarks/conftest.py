"""The scripts of ``benchmarks/`` import each other as scripts do: from their own folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOMAINS = ("book", "code")


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A few documents of two domains, each with held-out text."""
    for domain in DOMAINS:
        folder = tmp_path / "corpus" / domain
        folder.mkdir(parents=True)
        for split, count in (("train", 40), ("validation", 8)):
            texts = [f"{domain} {split} {n}: " + "a few words of text. " * 60 for n in range(count)]
            lines = [json.dumps({"text": text}) for text in texts]
            (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path / "corpus"
