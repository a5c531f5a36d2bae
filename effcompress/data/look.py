"""What lies in a file of text that a recipe does not describe yet: its format, the field that holds
the text, and how long documents are. Reads the first records; needs no tokenizer and no torch.
"""

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from effcompress.data.sources import raw_rows
from effcompress.errors import SourceError

SAMPLE = 200
"""Records that are looked at."""
FORMATS = {"jsonl": (".jsonl", ".ndjson"), "txt": (".txt", ".md"), "parquet": (".parquet",)}
PACKED = {".gz": 3.0, ".bz2": 4.0, ".zst": 3.5}
"""Ending of a compressed file -> how many times longer its text is, about; parquet: see there."""
PARQUET = 2.0
_USUAL = ("text", "content", "body", "document", "raw_content", "code", "completion", "output")
"""Fields that hold text in published data sets, the likeliest first."""


@dataclass(frozen=True)
class Look:
    """What was seen of one file or several of one format."""

    kind: str
    files: tuple[Path, ...]
    field: str
    """The field with the text; empty for plain text and conversations."""
    chat: str
    """The field with a list of messages; empty for text."""
    others: tuple[str, ...]
    """Further fields with text."""
    size: int
    """Bytes of text in all files, about."""
    sample: tuple[str, ...]
    """The first documents."""

    @property
    def bytes_per_document(self) -> int:
        """The median of the sample."""
        return int(statistics.median(len(text.encode()) for text in self.sample))


def kind_of_file(path: Path) -> str:
    """Returns the format of a file by its ending; empty for others."""
    name = path.name.lower()
    for packed in PACKED:
        name = name.removesuffix(packed)
    return next((kind for kind, ends in FORMATS.items() if name.endswith(ends)), "")


def look(files: tuple[Path, ...]) -> Look:
    """Looks at files of one format.

    Raises SourceError, with the file and line, for a file or record that cannot be read, and for
    files in which no field holds text.
    """
    kind = kind_of_file(files[0])
    try:
        rows = list(islice(_rows(kind, files), SAMPLE))
    except OSError as error:
        raise SourceError(f"cannot be read: {error}", where=str(files[0])) from error
    if kind == "txt":
        found, chat, others = "", "", ()
        sample = tuple(str(row["text"]) for row in rows)
    else:
        found, chat, others = _fields(rows, files[0])
        sample = tuple(_text(row, found, chat) for row in rows)
    sample = tuple(text for text in sample if text.strip())
    if not sample:
        raise SourceError("there is no text in it", where=str(files[0]))
    share = sum(len(t.encode()) for t in sample) / max(1, sum(map(_written, rows)))
    held = sum(stored(path) for path in files)
    size = int(held * (1.0 if kind == "txt" else min(1.0, share)))
    return Look(kind, files, found, chat, others, size, sample)


def _rows(kind: str, files: tuple[Path, ...]) -> Iterator[Mapping[str, Any]]:
    for path in files:
        yield from raw_rows(kind, path)


def stored(path: Path) -> float:
    """Returns about how many bytes the content of a file is, unpacked."""
    factor = PARQUET if kind_of_file(path) == "parquet" else PACKED.get(path.suffix.lower(), 1.0)
    return path.stat().st_size * factor


def _written(row: Mapping[str, Any]) -> int:
    return len(str(dict(row)).encode())


def _fields(rows: list[Mapping[str, Any]], path: Path) -> tuple[str, str, tuple[str, ...]]:
    """Returns the field with the text, or the one with conversations, and others with text."""
    texts: dict[str, int] = {}
    for row in rows:
        for name, value in row.items():
            if isinstance(value, str):
                texts[name] = texts.get(name, 0) + len(value)
            if _is_conversation(value):
                return "", name, ()
    if not texts:
        names = ", ".join(sorted({str(name) for row in rows for name in row})) or "nothing"
        raise SourceError(f"no field holds text; there are: {names}", where=str(path))
    usual = [name for name in _USUAL if texts.get(name)]
    best = usual[0] if usual else max(texts, key=lambda name: texts[name])
    return best, "", tuple(name for name in texts if name != best and texts[name])


def _is_conversation(value: object) -> bool:
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, Mapping) and {"role", "content"} <= {*first}


def _text(row: Mapping[str, Any], field: str, chat: str) -> str:
    if not chat:
        value = row.get(field)
        return value if isinstance(value, str) else ""
    return "\n".join(str(turn.get("content", "")) for turn in row.get(chat) or ())
