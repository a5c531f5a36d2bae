"""The tokenizer of these tests: one token per byte, after three special ids. Also imported by the
child processes they start.
"""

from __future__ import annotations

import time
from pathlib import Path


class ByteTokenizer:
    bos_id: int | None = 1
    eos_id: int | None = 2
    vocab_size = 259

    def __init__(self, *, adds_bos: bool = False, fingerprint: str = "bytes") -> None:
        self.adds_bos, self.fingerprint = adds_bos, fingerprint
        self.encoded: list[str] = []

    def encode(self, texts: list[str]) -> list[list[int]]:
        self.encoded += texts
        return [[byte + 3 for byte in text.encode()] for text in texts]

    def decode(self, ids: list[int]) -> str:
        return bytes(i - 3 for i in ids if i >= 3).decode(errors="replace")


class SlowTokenizer(ByteTokenizer):
    """Writes each document it sees to a log, and takes its time."""

    def __init__(self, log: Path, seconds: float) -> None:
        super().__init__()
        self.log, self.seconds = log, seconds

    def encode(self, texts: list[str]) -> list[list[int]]:
        for text in texts:
            with self.log.open("a") as file:
                file.write(text.split(" ", 1)[0] + "\n")
            time.sleep(self.seconds)
        return super().encode(texts)
