"""Documents from local files: jsonl, txt, parquet."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Iterator
from itertools import islice
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from effcompress.data.documents import Fields, Record, Source, address, record_of, text_of
from effcompress.errors import SourceError

Reader = Callable[[Path, Fields], Iterator[Record]]
"""(file, what to take of a row) -> its records."""


def files_source(domain: str, kind: str, paths: tuple[Path, ...], fields: Fields) -> Source:
    """The documents of ``paths`` in the order given; ``kind`` is jsonl, txt or parquet.

    Reads every file once to hash it. Raises ``SourceError`` naming a file that is missing,
    unreadable or empty.
    """
    contents = [_sha256(path, domain) for path in paths]
    identity: dict[str, object] = {"kind": kind, "sha256": contents}
    if kind != "txt":
        identity["text"] = fields.text
    if fields.prompt is not None:
        identity["prompt"] = fields.prompt
    reader = READERS[kind]

    def records(skip: int) -> Generator[Record, None, None]:
        every = (record for path in paths for record in _guarded(reader, path, fields))
        yield from islice(every, skip, None)

    description = f"{kind}: {', '.join(path.name for path in paths)}"
    return Source(domain, description, identity, records)


def _sha256(path: Path, domain: str) -> str:
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
    except OSError as error:
        raise _unreadable(path, domain, error) from error
    if not size:
        raise SourceError(f"{path} is an empty file", where=address(domain))
    return digest


def _unreadable(path: Path, domain: str, error: OSError) -> SourceError:
    problem = "does not exist" if isinstance(error, FileNotFoundError) else error.strerror
    return SourceError(
        f"{path}: {problem}",
        where=address(domain),
        fix="paths are relative to the recipe file that names them",
    )


def _guarded(reader: Reader, path: Path, fields: Fields) -> Iterator[Record]:
    try:
        yield from reader(path, fields)
    except OSError as error:
        raise SourceError(f"cannot be read: {error}", where=str(path)) from error


def _lines(file: IO[bytes], path: Path) -> Iterator[tuple[str, str]]:
    """(line, file:line). Decoded one by one so that a bad byte has an address."""
    for number, raw in enumerate(file, start=1):
        where = f"{path}:{number}"
        try:
            # A byte order mark is allowed at the start of a file, and only there.
            yield raw.decode("utf-8-sig" if number == 1 else "utf-8"), where
        except UnicodeDecodeError as error:
            raise SourceError(f"not UTF-8 text ({error})", where=where) from error


def _jsonl(path: Path, fields: Fields) -> Iterator[Record]:
    with path.open("rb") as file:
        for line, where in _lines(file, path):
            if not line.strip():
                yield Record("", where)
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                problem = f"not valid JSON: {error.msg} (column {error.colno})"
                raise SourceError(problem, where=where) from error
            if not isinstance(row, dict):
                raise SourceError(
                    f"expected a JSON object, found {type(row).__name__}", where=where
                )
            yield record_of(row, fields, where)


def _txt(path: Path, _fields: Fields) -> Iterator[Record]:
    with path.open("rb") as file:
        held: list[str] = []
        start = ""
        for line, where in _lines(file, path):
            if line.strip():
                start = start or where
                held.append(line)
            elif held:
                yield Record("".join(held).rstrip("\r\n"), start)
                held, start = [], ""
        if held:
            yield Record("".join(held).rstrip("\r\n"), start)


def _parquet(path: Path, fields: Fields) -> Iterator[Record]:
    try:
        with pq.ParquetFile(path) as file:
            # One look at the names says more than the error pyarrow gives for a missing column.
            names = dict.fromkeys(file.schema_arrow.names)
            for name in fields.names:
                text_of(names, name, str(path))
            row = 0
            for batch in file.iter_batches(batch_size=256, columns=fields.names):
                for values in batch.to_pylist():
                    row += 1
                    yield record_of(values, fields, f"{path}:row {row}")
    except pa.ArrowException as error:
        raise SourceError(f"not a readable parquet file: {error}", where=str(path)) from error


READERS: dict[str, Reader] = {"jsonl": _jsonl, "txt": _txt, "parquet": _parquet}
