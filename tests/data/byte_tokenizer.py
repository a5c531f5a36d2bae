"""The tokenizer of these tests: one token per byte, after three special ids. Also imported by the
child processes they start.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from jinja2 import Template


class ByteTokenizer:
    bos_id: int | None = 1
    eos_id: int | None = 2
    vocab_size = 259
    stop_id: int | None = 2
    unknown_id: int | None = None
    template: str | None = None
    special: ClassVar[dict[int, str]] = {1: "<s>", 2: "</s>"}

    def __init__(self, *, adds_bos: bool = False, fingerprint: str = "bytes") -> None:
        self.adds_bos, self.fingerprint = adds_bos, fingerprint
        self.encoded: list[str] = []

    def encode(self, texts: list[str]) -> list[list[int]]:
        self.encoded += texts
        return [[byte + 3 for byte in text.encode()] for text in texts]

    def offsets(self, texts: list[str], *, special: bool) -> list[tuple[list[int], list[Any]]]:
        """Special tokens, where they may be spelt, are one token each."""
        found = []
        for text in texts:
            self.encoded.append(text)
            ids: list[int] = []
            at: list[Any] = []
            for part in re.finditer("<s>|</s>|." if special else ".", text, re.DOTALL):
                known = [i for i, spelt in self.special.items() if spelt == part[0]]
                new = known or [byte + 3 for byte in part[0].encode()]
                ids += new
                at += [part.span()] * len(new)
            found.append((ids, at))
        return found

    def render(self, turns: Sequence[Mapping[str, str]], *, generation: bool) -> str:
        if self.template is None:
            raise ValueError("no template")
        return Template(self.template).render(messages=turns, add_generation_prompt=generation)

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
