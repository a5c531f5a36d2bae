"""Token files that survive a kill at any moment and any number of writers.

``<cache>/tokens/<key>/`` holds, for each part (train, heldout), ``<part>.bin`` (tokens, uint16 or
uint32) and ``<part>.ends`` (uint64: where each document ends), and ``manifest.json``, which says
how much of them counts.

There are no locks. What stands at a given position of a file is a function of the key alone, so
all writers write the same bytes to the same places, files never shrink, and bytes behind what the
manifest counts are harmless: the next writer puts the same bytes there. The manifest is replaced
whole, after the bytes it counts are on the disk. A writer killed just before leaves its unpublished
manifest behind; the next one to come sweeps it away.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from effcompress.errors import RunError

FORMAT = 1
PARTS = ("train", "heldout")
Tokens = NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class Pass:
    """How far one source has been read, and what came of it."""

    records: int = 0
    done: bool = False
    """Whether the source has no more records."""
    empty: int = 0
    first_empty: str = ""
    bos_inside: int = 0
    """BOS ids that the tokenizer found in the text itself."""
    tokens: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    documents: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))

    def further_than(self, other: Pass) -> bool:
        return (self.records, self.done) > (other.records, other.done)


@dataclass(frozen=True)
class Piece:
    """One part of a chunk: its tokens, and how many of them each document has."""

    tokens: Tokens
    lengths: NDArray[np.int64]


class TokenFolder:
    """One folder of token files. ``facts`` (plain JSON) decide the content; ``passes`` is what the
    manifest counts, by name of the source pass.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any], names: tuple[str, ...]) -> None:
        self.path, self.facts = path, dict(facts)
        self.dtype = np.dtype(str(facts["dtype"]))
        self.passes: dict[str, Pass] = {name: Pass() for name in names}

    def load(self) -> str | None:
        """Take over what the disk has. Returns why it is of no use, or None if it is, or if there
        is nothing yet.
        """
        with suppress(OSError):  # tidying only; reading from a folder one may not write is fine
            for left_behind in self.path.glob(".manifest-*"):
                left_behind.unlink(missing_ok=True)
        found, problem = self._on_disk()
        if problem:
            self.passes = {name: Pass() for name in self.passes}
        for name, state in found.items():
            if state.further_than(self.passes[name]):
                self.passes[name] = state
        return problem

    def _on_disk(self) -> tuple[dict[str, Pass], str | None]:
        file = self.path / "manifest.json"
        try:
            manifest = json.loads(file.read_text("utf-8"))
            facts = manifest["facts"]
            passes = {name: Pass(**manifest["passes"][name]) for name in self.passes}
            checks = [self._mismatch(part, state) for part in PARTS for state in passes.values()]
        except FileNotFoundError:
            return {}, None
        except (ValueError, KeyError, TypeError):
            return {}, "its manifest is not readable"
        if facts != self.facts:
            return {}, "its manifest is of another source"
        problem = next((check for check in checks if check), None)
        return ({}, problem) if problem else (passes, None)

    def _mismatch(self, part: str, state: Pass) -> str | None:
        counted = (("bin", state.tokens[part], self.dtype), ("ends", state.documents[part], "<u8"))
        for suffix, count, dtype in counted:
            file = self.path / f"{part}.{suffix}"
            size = file.stat().st_size if file.exists() else 0
            if size < count * np.dtype(dtype).itemsize:
                return f"{file.name} is shorter than its manifest says"
        documents = state.documents[part]
        if documents and int(self._map(part, "ends", "<u8", documents)[-1]) != state.tokens[part]:
            return f"{part}.ends and its manifest disagree"
        return None

    def append(self, name: str, state: Pass, pieces: Mapping[str, Piece]) -> None:
        """Add a chunk and count it: all of it, or, if this fails or is killed, nothing.

        ``state`` is the pass after the chunk, its ``tokens`` and ``documents`` not yet counted up.
        Raises ``RunError`` naming the folder if the disk is full or cannot be written.
        """
        tokens, documents = dict(state.tokens), dict(state.documents)
        with self._writing():
            self.path.mkdir(parents=True, exist_ok=True)
            for part, piece in pieces.items():
                ends = tokens[part] + np.cumsum(piece.lengths)
                self._write(f"{part}.bin", tokens[part], piece.tokens.astype(self.dtype))
                self._write(f"{part}.ends", documents[part], ends.astype("<u8"))
                tokens[part] += len(piece.tokens)
                documents[part] += len(piece.lengths)
            after = replace(state, tokens=tokens, documents=documents)
            self._publish({**self.passes, name: after})
        self.passes[name] = after

    def _write(self, name: str, start: int, values: NDArray[Any]) -> None:
        # Opened without truncating, and created if missing, in one step: safe beside other writers.
        number = os.open(self.path / name, os.O_RDWR | os.O_CREAT, 0o644)
        with os.fdopen(number, "r+b") as file:
            file.seek(start * values.dtype.itemsize)
            file.write(values.tobytes())
            file.flush()
            os.fsync(file.fileno())

    def _publish(self, passes: Mapping[str, Pass]) -> None:
        # Another writer may be ahead; what it has counted stays counted.
        on_disk, _ = self._on_disk()
        passes = {
            name: on_disk[name] if name in on_disk and on_disk[name].further_than(mine) else mine
            for name, mine in passes.items()
        }
        manifest = {
            "format": FORMAT,
            "facts": self.facts,
            "passes": {name: asdict(state) for name, state in passes.items()},
        }
        # Somebody who just came may have swept our file away before it got its name.
        while not self._replace(json.dumps(manifest, indent=1)):
            pass

    def _replace(self, text: str) -> bool:
        private = self.path / f".manifest-{secrets.token_hex(8)}"
        try:
            with private.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            try:
                private.replace(self.path / "manifest.json")
            except FileNotFoundError:
                return False
            return True
        finally:
            private.unlink(missing_ok=True)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise RunError(
                "the disk is full" if full else f"cannot be written: {error}",
                where=str(self.path),
                fix="free some space or name another cache folder, then run again: what is "
                "tokenised so far is kept",
            ) from error

    def tokens(self, part: str) -> Tokens:
        """All counted tokens of a part, memory-mapped, read only."""
        count = sum(state.tokens[part] for state in self.passes.values())
        return self._map(part, "bin", self.dtype, count)

    def documents(self, part: str, tokens: int) -> int:
        """How many documents the first ``tokens`` tokens of a part touch."""
        count = sum(state.documents[part] for state in self.passes.values())
        ends = self._map(part, "ends", "<u8", count)
        return min(count, int(np.searchsorted(ends, tokens, side="left")) + 1) if tokens else 0

    def _map(self, part: str, suffix: str, dtype: Any, count: int) -> Tokens:
        if not count:  # an empty file cannot be mapped
            return np.zeros(0, dtype=dtype)
        return np.memmap(self.path / f"{part}.{suffix}", dtype=dtype, mode="r", shape=(count,))
