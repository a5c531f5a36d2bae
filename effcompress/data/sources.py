"""Sources of text: local files, a data set of the Hugging Face Hub, Python's standard library. Each
gives records in a fixed order, and an identity (cache key) that changes whenever the text might.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import platform
import sysconfig
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from itertools import count, islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, NamedTuple

from effcompress.data.chat import Turn, turns_of
from effcompress.errors import SourceError
from effcompress.spec import DomainSpec, prompt_parts

if TYPE_CHECKING:
    import pyarrow as pa

Row = Mapping[str, object]
"""A row of a data file: field -> value."""


class Record(NamedTuple):
    """One document, its address (``file:line``) and a prompt in front of it that is not trained on.
    An empty ``text`` is counted as a record and then skipped, so that a position in the source is a
    number of records. A conversation has ``turns``, and those as JSON for its text.
    """

    text: str
    where: str
    prompt: str = ""
    turns: tuple[Turn, ...] = ()


class Fields(NamedTuple):
    """Which fields of a row to read: that of the text, and the parts of the prompt's template."""

    text: str
    prompt: tuple[tuple[str, bool], ...] | None = None
    chat: str | None = None

    @classmethod
    def of(cls, spec: DomainSpec) -> Fields:
        """The fields that a domain reads."""
        prompt = None if spec.prompt is None else tuple(prompt_parts(spec.prompt))
        return cls(spec.text, prompt, spec.chat)

    @property
    def identity(self) -> dict[str, object]:
        """Their part of a source's identity."""
        said = {"text": self.text, "prompt": self.prompt, "chat": self.chat}
        return {name: value for name, value in said.items() if value is not None}

    @property
    def names(self) -> list[str]:
        """Names of all fields that are read."""
        if self.chat is not None:
            return [self.chat]
        return list(dict.fromkeys((self.text, *(p for p, field in self.prompt or () if field))))


def record_of(row: Row, fields: Fields, where: str) -> Record:
    """Makes a document of a row. Raises ``SourceError`` as ``text_of`` and ``turns_of`` do."""
    if fields.chat is not None:
        turns = turns_of(_found(row, fields.chat, where), where)
        return Record(json.dumps(turns) if turns else "", where, turns=turns)
    text = text_of(row, fields.text, where)
    parts = fields.prompt or ()
    prompt = [text_of(row, part, where) if field else part for part, field in parts]
    return Record(text, where, "".join(prompt))


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
    """Reads the text of a row: a field by its name or, in fields with fields, by its path
    (``meta.title``). ``null`` counts as empty, a number is written out.

    Raises ``SourceError`` if ``field`` is missing (naming those that exist) or holds neither.
    """
    value = _found(row, field, where)
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    number = isinstance(value, int | float | Decimal)
    if number and not isinstance(value, bool) and math.isfinite(value):
        return str(value)
    holds = value if number else type(value).__name__
    raise SourceError(
        f"field '{field}' holds {holds}, not text",
        where=where,
        fix="name a field with text, or make it text (a field of fields: `name.field`)",
    )


def _found(row: Row, field: str, where: str) -> object:
    for name in (field, field.strip()):
        value: object = row
        rest = name
        while isinstance(value, Mapping) and rest:
            head = rest if rest in value else rest.partition(".")[0]
            if head not in value:
                break
            value, rest = value[head], rest[len(head) + 1 :]
        if not rest or value is None:
            return value
    there = ", ".join(islice(_names(row), NAMED)) or "none"
    raise SourceError(
        f"no field '{field}'; fields here: {there}",
        where=where,
        fix="name the field that holds the text with `text:` in the domain, and those of "
        "`prompt:` in braces (braces that are text: {{ and }})",
    )


def _names(row: Row, above: str = "") -> Iterator[str]:
    for name in sorted(map(str, row)):
        inner = row.get(name)
        if isinstance(inner, Mapping) and inner:
            yield from _names(inner, f"{above}{name}.")
        else:
            yield above + name


MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\x28\xb5\x2f\xfd": "zstd"}
"""First bytes of a compressed file -> pyarrow's name of the codec."""
NAMED = 20
"""Fields that an error lists."""
LONGEST = 1 << 26
"""Bytes of a line or document; a longer one is refused: a tokenizer needs 40 times its size."""
_SPLIT = "split it into documents, one a line (txt: with blank lines between them)"
KINDS = ("jsonl", "txt", "parquet", "hub", "stdlib")
Reader = Callable[[Path, Fields, float], Iterator[Record]]
"""Reads the records of a file; raises ``ReadEnough`` behind so many bytes."""
# Not part of `stdlib: code`: installed packages, tests, tables (`encodings`), the text of `stdlib:
# prose` (`pydoc_data`), and files with paths of the build machine (`config-`, `_sysconfigdata`).
LEFT_OUT = {
    *("site-packages", "dist-packages", "__pycache__"),
    *("test", "tests", "idlelib", "idle_test", "encodings", "pydoc_data"),
}
LEFT_OUT_PREFIXES = ("config-", "_sysconfigdata")


def kind_of(domain: str, spec: DomainSpec) -> str:
    """Returns the kind of a domain's source. Raises ``SourceError`` if it names none or several, or
    held-out text that this kind cannot have.
    """
    given = [kind for kind in KINDS if getattr(spec, kind)]
    where = address(domain)
    if len(given) != 1:
        problem = "names no source" if not given else f"names several: {', '.join(given)}"
        raise SourceError(problem, where=where, fix=f"exactly one of {', '.join(KINDS)}")
    kind = given[0]
    if spec.validation and kind in ("hub", "stdlib"):
        instead = "validation_split" if kind == "hub" else "holdout"
        raise SourceError(
            f"`validation` names files, but the domain is {kind}", where=where, fix=f"use {instead}"
        )
    if spec.validation_split and kind != "hub":
        raise SourceError("`validation_split` needs a hub data set", where=where)
    if not 0 <= spec.holdout < 1:
        raise SourceError(f"holdout is {spec.holdout}; it must be from 0 to below 1", where=where)
    return kind


def training_source(domain: str, spec: DomainSpec) -> Source:
    """Returns the source of training text; documents to hold out by hash are still in it."""
    kind = kind_of(domain, spec)
    if kind == "hub":
        return hub_source(domain, spec, spec.split)
    if spec.stdlib:
        return stdlib_source(domain, spec.stdlib)
    return files_source(domain, kind, getattr(spec, kind), Fields.of(spec))


def validation_source(domain: str, spec: DomainSpec, training: Source) -> Source | None:
    """Returns the source of held-out text; None if documents are held out by hash.

    Raises ``SourceError`` if it is also training text.
    """
    kind = kind_of(domain, spec)
    if spec.validation_split:
        if spec.validation_split == spec.split:
            raise SourceError(
                f"split '{spec.split}' is both training and held-out text", where=address(domain)
            )
        return hub_source(domain, spec, spec.validation_split)
    if not spec.validation:
        return None
    source = files_source(domain, kind, spec.validation, Fields.of(spec))
    if source.checksums & training.checksums:
        raise SourceError(
            "a `validation` file has the same content as a training file", where=address(domain)
        )
    return source


def how_held_out(spec: DomainSpec) -> str:
    """How text is held out, as a phrase for reports."""
    if spec.validation_split:
        return f"split {spec.validation_split}"
    if spec.validation:
        return "files: " + ", ".join(path.name for path in spec.validation)
    return f"{spec.holdout:.3%} of the documents, by hash of their text"


def files_source(domain: str, kind: str, paths: tuple[Path, ...], fields: Fields) -> Source:
    """Documents of local files, in the order of ``paths``; ``kind`` is jsonl, txt or parquet.

    Reads every file once to hash it. Raises ``SourceError`` naming a file that is missing,
    unreadable or empty.
    """
    contents = [_sha256(path, domain) for path in paths]
    identity: dict[str, object] = {"kind": kind, "sha256": contents}
    if kind != "txt":
        identity |= fields.identity
    reader = READERS[kind]

    def records(skip: int) -> Generator[Record, None, None]:
        every = (record for path in paths for record in guarded(reader, path, fields))
        yield from islice(every, skip, None)

    description = f"{kind}: {', '.join(path.name for path in paths)}"
    return Source(domain, description, identity, records, checksums=frozenset(contents))


def _sha256(path: Path, domain: str) -> str:
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
    except OSError as error:
        problem = "does not exist" if isinstance(error, FileNotFoundError) else error.strerror
        raise SourceError(
            f"{path}: {problem}",
            where=address(domain),
            fix="paths are relative to the recipe file that names them",
        ) from error
    if not size:
        raise SourceError(f"{path} is an empty file", where=address(domain))
    return digest


class ReadEnough(Exception):
    """As many bytes of a file were read as the caller asked for."""


def guarded(reader: Reader, path: Path, fields: Fields, most: float = math.inf) -> Iterator[Record]:
    """Yields the records of a file. Raises ``SourceError`` where it cannot be read, ``ReadEnough``
    behind ``most`` bytes of text (parquet files are read as far as the caller goes).
    """
    try:
        for record in reader(path, fields, most):
            if len(record.text) + len(record.prompt) > LONGEST:
                raise _too_long(record.where)
            yield record
    except OSError as error:
        raise SourceError(
            f"cannot be read: {error}",
            where=str(path),
            fix="download or copy the file again: it is cut short, damaged, or not readable here",
        ) from error


def _too_long(where: str) -> SourceError:
    said = f"a document of more than {LONGEST >> 20} MiB"
    return SourceError(said, where=where, fix=_SPLIT)


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file to read its text; a compressed one (``MAGIC``) is
    decompressed."""
    with path.open("rb") as file:
        head = file.read(4)
    codec = next((name for magic, name in MAGIC.items() if head.startswith(magic)), None)
    import pyarrow as pa

    with pa.input_stream(str(path), compression=codec) as stream:
        yield io.BufferedReader(stream)  # pyright: ignore[reportArgumentType]


def _lines(file: IO[bytes], path: Path, most: float) -> Iterator[tuple[str, str]]:
    """Yields (line, file:line), decoded one by one so that a bad byte can be located."""
    for number in count(1):
        where = f"{path}:{number}"
        raw = file.readline(int(min(LONGEST, most)) + 1)
        most -= len(raw)
        if most < 0:
            raise ReadEnough
        if len(raw) > LONGEST:
            raise SourceError(f"a line of more than {LONGEST >> 20} MiB", where=where, fix=_SPLIT)
        if not raw:
            return
        try:
            # A byte order mark is allowed at the start of a file, and only there.
            yield raw.decode("utf-8-sig" if number == 1 else "utf-8"), where
        except UnicodeDecodeError as error:
            kind, fix = _kind_of(path)
            what = f"not UTF-8 text ({kind or error})"
            raise SourceError(what, where=where, fix=fix) from error


_OTHERS = {
    b"PK\x03\x04": ("a zip file", "unzip it, and name the files in it"),
    b"PAR1": ("a parquet file", "name it with `parquet:`"),
    b"ARROW1": ("an Arrow file", "store it as parquet: pyarrow.parquet.write_table(table, FILE)"),
    b"\xff\xfe": ("UTF-16", "iconv -f UTF-16 -t UTF-8 FILE > OTHER"),
    b"\xfe\xff": ("UTF-16", "iconv -f UTF-16 -t UTF-8 FILE > OTHER"),
    b"\xfd7zXZ": ("xz", "xz -d FILE"),
}
"""First bytes of files that are no text -> what they are, and what to do."""


def _kind_of(path: Path) -> tuple[str, str]:
    with _opened(path) as file:
        head = file.read(8)
    known = (said for magic, said in _OTHERS.items() if head.startswith(magic))
    return next(known, ("", "store it as UTF-8: iconv -f latin1 -t UTF-8 FILE > OTHER, say"))


def raw_rows(kind: str, path: Path) -> Iterator[Row]:
    """Yields the rows of a file as they are; a document of plain text is the field `text`.

    Raises ``SourceError`` for a row that cannot be read.
    """
    if kind == "txt":
        yield from ({"text": record.text} for record in _txt(path, Fields("text"), math.inf))
    elif kind == "jsonl":
        yield from (row for row, _ in _objects(path, math.inf) if row is not None)
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=64):
                    yield from batch.to_pylist()
        except (pa.ArrowException, UnicodeDecodeError) as error:
            raise _no_parquet(path, error) from error


def _jsonl(path: Path, fields: Fields, most: float) -> Iterator[Record]:
    for row, where in _objects(path, most):
        yield Record("", where) if row is None else record_of(row, fields, where)


def _objects(path: Path, most: float) -> Iterator[tuple[Row | None, str]]:
    """Yields the object of every line with its address; None for an empty line."""
    with _opened(path) as file:
        for line, where in _lines(file, path, most):
            if not line.strip():
                yield None, where
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise _not_json(line, error, path, where) from error
            if not isinstance(row, dict):
                problem = f"expected a JSON object, found {type(row).__name__}"
                raise SourceError(problem, where=where, fix=_one_each(line, path))
            yield row, where


def _not_json(line: str, error: Exception, path: Path, where: str) -> SourceError:
    if isinstance(error, json.JSONDecodeError):
        problem = f"not valid JSON: {error.msg} (column {error.colno})"
        return SourceError(problem, where=where, fix=_one_each(line, path))
    deep = isinstance(error, RecursionError)
    problem = "nested too deeply" if deep else "a number with too many digits"
    return SourceError(f"not usable JSON: {problem}", where=where, fix="remove this line")


def _one_each(line: str, path: Path) -> str:
    """How to get one object per line out of a file that is one array or has objects over lines."""
    if path.suffix in (".csv", ".tsv"):
        read = "pandas.read_csv" if path.suffix == ".csv" else "pandas.read_table"
        return f"{read}('{path.name}').to_json('{path.stem}.jsonl', orient='records', lines=True)"
    if line.strip() in ("{", "[") or line.lstrip().startswith("["):
        select = ".[]" if line.lstrip().startswith("[") else "."
        return f"one object per line: jq -c '{select}' {path.name} > {path.stem}.lines.jsonl"
    return 'write one JSON object per line, e.g. {"text": "..."}, or remove this line'


def _txt(path: Path, _fields: Fields, most: float) -> Iterator[Record]:
    """Documents are separated by blank lines."""
    with _opened(path) as file:
        held: list[str] = []
        start, size = "", 0
        for line, where in _lines(file, path, most):
            if line.strip():
                start, size = start or where, size + len(line)
                if size > LONGEST:
                    raise _too_long(start)
                held.append(line)
            elif held:
                yield Record("".join(held).rstrip("\r\n"), start)
                held, start, size = [], "", 0
        if held:
            yield Record("".join(held).rstrip("\r\n"), start)


def _parquet(path: Path, fields: Fields, _most: float) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            # pyarrow's own error does not list the columns that exist.
            columns = _tree(file.schema_arrow)
            for name in fields.names:
                _found(columns, name, str(path))
            row, names = 0, [n if n in columns else n.strip() for n in fields.names]
            for batch in file.iter_batches(batch_size=256, columns=names):
                for values in batch.to_pylist():
                    row += 1
                    yield record_of(values, fields, f"{path}:row {row}")
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise _no_parquet(path, error) from error


def _no_parquet(path: Path, error: Exception) -> SourceError:
    return SourceError(
        f"not a readable parquet file: {error}",
        where=str(path),
        fix="download or copy it again; a file of lines of JSON is named with `jsonl:`",
    )


def _tree(fields: Iterable[pa.Field]) -> dict[str, Any]:
    """Column -> its fields, or a word for one that has none."""
    from pyarrow.types import is_struct

    return {f.name: _tree(f.type) if is_struct(f.type) else "column" for f in fields}


READERS: dict[str, Reader] = {"jsonl": _jsonl, "txt": _txt, "parquet": _parquet}


def hub_source(domain: str, spec: DomainSpec, split: str) -> Source:
    """Documents of one split, streamed in the order of the data set. Uses the network only when
    read.

    Reading raises ``SourceError`` naming the data set if it cannot be opened or the connection
    breaks, and one naming the row if the text field is missing.
    """
    hub = spec.hub
    assert hub is not None
    fields = Fields.of(spec)
    identity = {
        "kind": "hub",
        "hub": hub,
        "revision": spec.revision,
        "config": spec.config,
        "split": split,
        **fields.identity,
    }

    def records(skip: int) -> Generator[Record, None, None]:
        try:
            rows = open_stream(hub, spec.config, split, spec.revision, skip)
            for number, row in enumerate(rows, start=skip + 1):
                yield record_of(row, fields, f"{hub}[{split}]:row {number}")
        except SourceError:
            raise
        except Exception as error:  # hub clients have no common base class of errors
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            raise SourceError(
                f"hub data set '{hub}' (split '{split}') cannot be read: {reason}",
                where=address(domain),
                fix="check hub, config, split and revision, and the network; run again to go on",
            ) from error

    pinned = f"@{spec.revision}" if spec.revision else ""
    name = f"{hub}{pinned}" + (f" ({spec.config})" if spec.config else "")
    return Source(domain, f"hub: {name}, split {split}", identity, records, remote=hub)


def open_stream(
    hub: str, config: str | None, split: str, revision: str | None, skip: int
) -> Iterator[dict[str, Any]]:
    """Streams the rows of a hub data set after the first ``skip``. The only use of the network."""
    import datasets

    stream = datasets.load_dataset(hub, name=config, split=split, revision=revision, streaming=True)
    return iter(stream.skip(skip) if skip else stream)  # pyright: ignore[reportArgumentType]


def stdlib_source(domain: str, which: Literal["prose", "code"]) -> Source:
    """Text that every Python installation contains, so that examples need no download. ``prose``:
    the language reference behind ``help()``, one document per topic; ``code``: the modules of the
    standard library, one document each.

    Raises ``SourceError`` if this Python was installed without the files.
    """
    return _prose(domain) if which == "prose" else _code(domain)


def _prose(domain: str) -> Source:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise SourceError(
            "this Python was installed without pydoc_data.topics",
            where=address(domain),
            fix="use a complete Python, or name files of your own",
        ) from error
    names = sorted(topics)
    content = hashlib.sha256("\0".join(topics[name] for name in names).encode()).hexdigest()

    def records(skip: int) -> Generator[Record, None, None]:
        for name in names[skip:]:
            yield Record(topics[name], f"pydoc_data.topics:{name}")

    version = platform.python_version()
    identity = {"kind": "stdlib prose", "python": version, "sha256": content}
    return Source(domain, f"reference manual of Python {version}", identity, records)


def _code(domain: str) -> Source:
    root = Path(sysconfig.get_path("stdlib"))
    paths = sorted(_modules(root), key=lambda path: path.relative_to(root).as_posix())
    if not paths:
        raise SourceError(
            f"{root} holds no .py files",
            where=address(domain),
            fix="use a Python that carries its library as source, or name files of your own",
        )
    listing = hashlib.sha256()
    for path in paths:
        listing.update(f"{path.relative_to(root).as_posix()} {path.stat().st_size}\n".encode())

    def records(skip: int) -> Generator[Record, None, None]:
        for path in islice(paths, skip, None):
            try:
                text = path.read_text("utf-8")
            except UnicodeDecodeError:
                text = ""  # not UTF-8: counted as empty
            yield Record(text, path.relative_to(root).as_posix())

    version = platform.python_version()
    identity = {"kind": "stdlib code", "python": version, "files": listing.hexdigest()}
    return Source(domain, f"standard library of Python {version}", identity, records)


def _modules(root: Path) -> Iterator[Path]:
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).parts
        if LEFT_OUT.isdisjoint(parts) and not any(p.startswith(LEFT_OUT_PREFIXES) for p in parts):
            yield path
