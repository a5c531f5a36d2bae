"""The cache folder, and atomic writes of files and folders. Free of torch and transformers."""

import errno
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from effcompress import processes
from effcompress.errors import SourceError, is_disk_full

SUFFIX = ".partial"
ABANDONED_AFTER = 2 * 24 * 3600
"""Seconds without a change after which a leftover of another host counts as abandoned."""


def cache_root() -> Path:
    """``$EFFCOMPRESS_CACHE``, else ``$XDG_CACHE_HOME/effcompress``, else ``~/.cache/effcompress``.

    The folder need not exist yet.
    """
    if own := os.environ.get("EFFCOMPRESS_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "effcompress"


@contextmanager
def atomically(target: Path) -> Iterator[Path]:
    """Yields a temporary path beside ``target``, where the caller creates a file or a folder.

    On success it is flushed to disk and renamed to ``target``, replacing what was there; on any
    exception, Ctrl-C included, it is removed. Leftovers of killed processes in the same folder are
    removed first.

    Raises:
        SourceError: the disk is full, or the folder cannot be written to.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SourceError(
            f"cannot make this folder: {error.strerror or error}",
            where=str(target.parent),
            fix="set EFFCOMPRESS_CACHE to a folder that you may write to",
        ) from error
    for leftover in target.parent.glob(f".*{SUFFIX}"):
        if _abandoned(leftover):
            _remove(leftover)
    work = _private(target)
    try:
        yield work
        for file in _files(work):
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        _put(work, target)
    except BaseException as error:
        freed = _remove(work)
        if is_disk_full(error):
            raise SourceError(
                f"the disk is full; {freed / 1e6:.1f} MB of unfinished work were removed again",
                where=str(target.parent),
                fix="free some space, or set EFFCOMPRESS_CACHE to a folder on a bigger disk",
            ) from error
        raise


def _host() -> str:
    return re.sub(r"\W", "_", socket.gethostname()) or "host"


def _private(target: Path) -> Path:
    """A temporary name that states its process: ``.<target>.<host>.<pid>.<random>.partial``."""
    name = f".{target.name}.{_host()}.{os.getpid()}.{secrets.token_hex(4)}{SUFFIX}"
    return target.parent / name


def _abandoned(leftover: Path) -> bool:
    parts = leftover.name.rsplit(".", 4)
    if len(parts) != 5 or not parts[2].isdigit():
        return False
    if parts[1] == _host() and not processes.exists(int(parts[2])):
        return True
    # Another host (shared file system, or a renamed container): its processes cannot be seen from
    # here, so the age decides.
    try:
        return time.time() - leftover.stat().st_mtime > ABANDONED_AFTER
    except FileNotFoundError:
        return False


def _files(path: Path) -> list[Path]:
    return [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]


def _remove(path: Path) -> int:
    """Removes a file or folder if it exists; returns its size in bytes."""
    size = 0
    for file in _files(path):
        with suppress(OSError):
            size += file.stat().st_size
    shutil.rmtree(path, ignore_errors=True)  # ignores a file, too
    with suppress(OSError):
        path.unlink(missing_ok=True)
    return size


def _put(work: Path, target: Path) -> None:
    """Renames ``work`` to ``target``; an existing folder, which rename cannot replace, is moved
    away first.
    """
    if not work.is_dir():
        work.replace(target)
        return
    while True:
        aside = _private(target)
        with suppress(FileNotFoundError):
            target.rename(aside)
        try:
            work.rename(target)
            break
        except OSError as error:  # another process created it meanwhile: move that away, too
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        finally:
            _remove(aside)
