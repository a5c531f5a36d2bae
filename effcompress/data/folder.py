"""The token cache: append-only files, safe under ``kill -9`` and concurrent writers, without locks.

``<cache>/tokens/<key>/`` holds, for each part (train, heldout), ``<part>.bin`` (tokens, uint16 or
uint32), ``<part>.ends`` (uint64: where each document ends), ``<part>.hashes`` (uint64: of its text,
``tokens.text_hash``) and ``manifest.json``, which states how many of them are valid.

The bytes at a position of a file depend on the key alone, so concurrent writers write the same
bytes to the same places. Files never shrink; bytes beyond the manifest's count are ignored and
later overwritten with the same bytes. The manifest is replaced atomically, after the bytes that it
counts are flushed. A writer killed in between leaves a temporary manifest, which the next one
removes.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from effcompress.errors import RunError

FORMAT = 3
"""3: hashes of documents take no account of blanks within lines, case and Unicode forms."""
PARTS = {"train": "training", "heldout": "held-out"}
"""Part -> its name in words."""
Tokens = NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class Pass:
    """How far one source has been read, and how much that gave."""

    records: int = 0
    done: bool = False
    """Whether the source is exhausted."""
    empty: int = 0
    first_empty: str = ""
    bos_inside: int = 0
    """BOS ids among the tokens of the text itself."""
    tokens: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    documents: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))

    def further_than(self, other: Pass) -> bool:
        """Whether it has read more than ``other``."""
        return (self.records, self.done) > (other.records, other.done)


@dataclass(frozen=True)
class Piece:
    """The tokens of a chunk that go to one part; the length of each document, and its hash."""

    tokens: Tokens
    lengths: NDArray[np.int64]
    hashes: NDArray[np.uint64]


class TokenFolder:
    """A folder of token files. ``facts`` (plain JSON) determine the content; ``passes`` are the
    manifest's counts by source.
    """

    def __init__(self, path: Path, facts: Mapping[str, object], names: tuple[str, ...]) -> None:
        self.path, self.facts = path, dict(facts)
        self.dtype = np.dtype(str(facts["dtype"]))
        self.passes: dict[str, Pass] = {name: Pass() for name in names}

    def load(self) -> str | None:
        """Reads the manifest. Returns why the cache cannot be used; None if it can, or is empty."""
        with suppress(OSError):  # clean-up only: a read-only cache can still be read
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
        each = [(suffix, state.documents[part], "<u8") for suffix in ("ends", "hashes")]
        counted = [("bin", state.tokens[part], self.dtype), *each]
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
        """Appends a chunk: counted as a whole or, if this fails or is killed, not at all.

        ``state`` is the pass after the chunk, except for its ``tokens`` and ``documents``. Raises
        ``RunError`` naming the folder if the disk is full or cannot be written.
        """
        tokens, documents = dict(state.tokens), dict(state.documents)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for part, piece in pieces.items():
                ends = tokens[part] + np.cumsum(piece.lengths)
                self._write(f"{part}.bin", tokens[part], piece.tokens.astype(self.dtype))
                self._write(f"{part}.ends", documents[part], ends.astype("<u8"))
                self._write(f"{part}.hashes", documents[part], piece.hashes.astype("<u8"))
                tokens[part] += len(piece.tokens)
                documents[part] += len(piece.lengths)
            after = replace(state, tokens=tokens, documents=documents)
            # Only after the bytes are flushed: the manifest never counts what is not there.
            self._publish({**self.passes, name: after})
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise RunError(
                "the disk is full" if full else f"cannot be written: {error}",
                where=str(self.path),
                fix="free some space or name another cache folder, then run again: what is "
                "tokenised so far is kept",
            ) from error
        self.passes[name] = after

    def _write(self, name: str, start: int, values: NDArray[Any]) -> None:
        # O_CREAT without O_TRUNC: another writer's bytes are never cut off.
        number = os.open(self.path / name, os.O_RDWR | os.O_CREAT, 0o644)
        with os.fdopen(number, "r+b") as file:
            file.seek(start * values.dtype.itemsize)
            file.write(values.tobytes())
            file.flush()
            os.fsync(file.fileno())

    def _publish(self, passes: Mapping[str, Pass]) -> None:
        # A concurrent writer may be ahead; its counts are kept.
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
        # A process that starts now may remove our temporary file before it is renamed: try again.
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

    def tokens(self, part: str) -> Tokens:
        """All counted tokens of a part, memory-mapped, read only."""
        count = sum(state.tokens[part] for state in self.passes.values())
        return self._map(part, "bin", self.dtype, count)

    def ends(self, part: str) -> NDArray[np.uint64]:
        """Where each counted document of a part ends, in tokens."""
        return self._map(part, "ends", "<u8", self._count(part))

    def hashes(self, part: str) -> NDArray[np.uint64]:
        """Hashes of the counted documents of a part."""
        return self._map(part, "hashes", "<u8", self._count(part))

    def documents(self, part: str, tokens: int) -> int:
        """Number of documents among the first ``tokens`` tokens of a part."""
        ends = self.ends(part)
        return min(len(ends), int(np.searchsorted(ends, tokens, side="left")) + 1) if tokens else 0

    def _count(self, part: str) -> int:
        return sum(state.documents[part] for state in self.passes.values())

    def _map(self, part: str, suffix: str, dtype: Any, count: int) -> NDArray[Any]:
        if not count:  # an empty file cannot be mapped
            return np.zeros(0, dtype=dtype)
        return np.memmap(self.path / f"{part}.{suffix}", dtype=dtype, mode="r", shape=(count,))
