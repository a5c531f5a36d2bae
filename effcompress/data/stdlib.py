"""Text that every Python installation carries: real prose and real code without a download."""

from __future__ import annotations

import hashlib
import platform
import sysconfig
from collections.abc import Generator, Iterator
from itertools import islice
from pathlib import Path
from typing import Literal

from effcompress.data.documents import Record, Source, address
from effcompress.errors import SourceError

# Installed packages and tests are not the library; `encodings` is tables, `pydoc_data` is the prose
# domain in quotes, and the `config-` folders and `_sysconfigdata` hold paths of one machine.
LEFT_OUT = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idlelib",
    "idle_test",
    "encodings",
    "pydoc_data",
    "__pycache__",
}
LEFT_OUT_PREFIXES = ("config-", "_sysconfigdata")


def stdlib_source(domain: str, which: Literal["prose", "code"]) -> Source:
    """``prose``: the language reference that ``help()`` shows, one document per topic, by name.
    ``code``: the modules of the standard library, one document each, by path.

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
                text = ""  # a few modules are in another encoding; counted among the empty ones
            yield Record(text, path.relative_to(root).as_posix())

    version = platform.python_version()
    identity = {"kind": "stdlib code", "python": version, "files": listing.hexdigest()}
    return Source(domain, f"standard library of Python {version}", identity, records)


def _modules(root: Path) -> Iterator[Path]:
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).parts
        if LEFT_OUT.isdisjoint(parts) and not any(p.startswith(LEFT_OUT_PREFIXES) for p in parts):
            yield path
