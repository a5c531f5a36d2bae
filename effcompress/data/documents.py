"""What a text source is, before anything is tokenised: a fixed order of records, and an identity
that changes whenever the text could.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from effcompress.errors import SourceError


class Record(NamedTuple):
    """One document and its address (``file:line``). ``text`` may be empty: it is then counted and
    left out, so that a position in the source stays a plain number of records. ``prompt`` stands
    in front of it and is not trained on.
    """

    text: str
    where: str
    prompt: str = ""


class Fields(NamedTuple):
    """What to take of a row: the field of the text, and what to write in front (None: nothing)."""

    text: str
    prompt: str | None = None

    @property
    def names(self) -> list[str]:
        """All fields that are read."""
        return list(dict.fromkeys((self.text, *BRACES.findall(self.prompt or ""))))


BRACES = re.compile(r"\{(\w+)\}")
"""A field in a prompt. Nothing but a name may stand there: no attribute is ever looked up."""


def record_of(row: Mapping[str, Any], fields: Fields, where: str) -> Record:
    """One row as a document. Raises ``SourceError`` as ``text_of`` does."""
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
    identity: Mapping[str, Any]
    """Plain JSON. Two sources with equal identity give equal text."""
    records: Callable[[int], Generator[Record, None, None]]
    """``records(skip)``: the records after the first ``skip``."""
    remote: str | None = None
    """Name of the hub data set if reading needs a network."""


def address(domain: str) -> str:
    """Where the domain is written in a recipe, for error messages."""
    return f"data.domains.{domain}"


def text_of(row: Mapping[str, Any], field: str, where: str) -> str:
    """The text of one row. ``null`` counts as empty.

    Raises ``SourceError`` naming the fields that are there if ``field`` is not, or if the value is
    no string.
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
    """Prompt and text as UTF-8. Raises ``SourceError`` for half characters (lone surrogates), which
    JSON can spell and no tokenizer accepts.
    """
    try:
        return (record.prompt + record.text).encode("utf-8")
    except UnicodeEncodeError as error:
        raise SourceError(f"the text is not valid Unicode ({error})", where=record.where) from error


def is_held_out(text: bytes, share: float) -> bool:
    """Whether a document belongs to the held-out share.

    Decided by its text alone, so copies of a document are always on the same side and neither the
    order of the files nor their number matters.
    """
    number = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
    return number < share * 2**64
