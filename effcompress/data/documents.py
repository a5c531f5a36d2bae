"""Documents and text sources: records in a fixed order, and an identity (cache key) that changes
whenever the text might.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from effcompress.errors import SourceError

Row = Mapping[str, object]
"""A row of a data file: field -> value."""


class Record(NamedTuple):
    """One document, its address (``file:line``) and a prompt in front of it that is not trained on.
    An empty ``text`` is counted as a record and then skipped, so that a position in the source is a
    number of records.
    """

    text: str
    where: str
    prompt: str = ""


class Fields(NamedTuple):
    """Which fields of a row to read: that of the text, and a template of the prompt."""

    text: str
    prompt: str | None = None

    @property
    def names(self) -> list[str]:
        """Names of all fields that are read."""
        return list(dict.fromkeys((self.text, *BRACES.findall(self.prompt or ""))))


BRACES = re.compile(r"\{(\w+)\}")
"""A field in a prompt template: a plain name, so that (unlike ``str.format``) no attribute is read.
"""


def record_of(row: Row, fields: Fields, where: str) -> Record:
    """Makes a document of a row. Raises ``SourceError`` as ``text_of`` does."""
    text = text_of(row, fields.text, where)
    if fields.prompt is None:
        return Record(text, where)
    prompt = BRACES.sub(lambda match: text_of(row, match[1], where), fields.prompt)
    return Record(text, where, prompt)


@dataclass(frozen=True)
class Source:
    """Text that can be read from any record on, always in the same order."""

    domain: str
    description: str
    identity: Mapping[str, object]
    """Plain JSON, part of the cache key: sources with equal identity give equal text."""
    records: Callable[[int], Generator[Record, None, None]]
    """``records(skip)``: the records after the first ``skip``."""
    remote: str | None = None
    """Name of the hub data set, if reading needs a network."""
    checksums: frozenset[str] = frozenset()
    """sha256 of every local file."""


def address(domain: str) -> str:
    """The domain's key in a recipe, for error messages."""
    return f"data.domains.{domain}"


def text_of(row: Row, field: str, where: str) -> str:
    """Reads the text of a row; ``null`` counts as empty.

    Raises ``SourceError`` if ``field`` is missing (naming those that exist) or is not a string.
    """
    if field not in row:
        there = ", ".join(sorted(map(str, row))) or "none"
        raise SourceError(
            f"no field '{field}'; fields here: {there}",
            where=where,
            fix="name the field that holds the text with `text:` in the domain, and those of "
            "`prompt:` in braces",
        )
    value = row[field]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise SourceError(f"field '{field}' holds {type(value).__name__}, not text", where=where)
    return value


def utf8(record: Record) -> bytes:
    """Encodes prompt and text. Raises ``SourceError`` for lone surrogates, which JSON can escape
    and no tokenizer accepts.
    """
    try:
        return (record.prompt + record.text).encode("utf-8")
    except UnicodeEncodeError as error:
        raise SourceError(f"the text is not valid Unicode ({error})", where=record.where) from error


def is_held_out(text: bytes, fraction: float) -> bool:
    """Whether a document is held out, which happens to this fraction of documents.

    Decided by a hash of its text, so copies of a document are on the same side whatever the order
    and number of files.
    """
    number = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
    # A 64-bit hash, uniform on [0, 2^64).
    return number < fraction * 2**64
