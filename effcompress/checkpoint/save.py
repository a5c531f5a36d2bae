"""Writes and reads checkpoints: one folder each, complete or absent.

``state.json`` holds everything that is no tensor, ``tensors.safetensors`` every tensor of rank 0;
sharded parameters are written by every rank into a file of its own. Of the record so far there is
one copy beside the checkpoints (``GrowingCopy``). The folder is written under a
temporary name, read back and compared, flushed to disk, and then renamed: a rename is atomic, so a
``kill -9`` at any moment leaves the old checkpoint or the new one. Hashes of all files, its own
among them, are in ``state.json`` and show later whether they are still what was written.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NotRequired, TypedDict, final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from effcompress import fault, processes
from effcompress.distributed.world import ALONE, World
from effcompress.errors import RunError, first_line

FORMAT = 4
"""4: one copy of the record for all checkpoints; 3: ``state.json`` is hashed, too, and each has a
copy of the record; 2: files of several ranks; 1: one file, its facts among the values.
"""
WRITING, _TENSORS = ".writing", ".safetensors"
TENSORS, STATE = "tensors.safetensors", "state.json"
HASH = "state_sha256"
"""Key of ``state.json``: hash of all else in it, as it was written."""
MOST_BYTES = 2**28
"""Of ``state.json``; a larger one is not read."""
_PART = 2**20
"""Bytes that are compared at once."""
MISFITS = (ValueError, LookupError, TypeError, AttributeError)
"""What reading values of another structure raises."""


class FileFacts(TypedDict):
    """What a checkpoint records of one file. Those of format 1 have no ``sha256``."""

    bytes: int
    sha256: NotRequired[str]


@dataclass(frozen=True)
class Saved:
    """A checkpoint in memory, or one on disk whose tensors are read on access."""

    values: dict[str, Any]
    """JSON values: step, tokens, positions in data and record, epsilons, hash of the text."""
    tensors: Mapping[str, Tensor]
    """Flat names: ``model/NAME``, ``optimizer/FIELD/NAME``, ``ledger/...``, ``saliency/SET``."""
    rows: Mapping[str, Tensor] = field(default_factory=dict)
    """This rank's rows of sharded tensors, for saving; when read, ``tensors`` has them whole."""
    texts: Mapping[str, bytes] = field(default_factory=dict)
    """File name -> content, when read: the record so far. Formats 1 and 2 have none."""
    growing: Mapping[str, Callable[[], FileFacts]] = field(default_factory=dict)
    """File name -> what copies it and returns the facts of the copy, for saving."""

    def part(self, prefix: str) -> Mapping[str, Tensor]:
        """Returns a view of the tensors whose names begin with ``prefix``, without the prefix."""
        return _Part(self.tensors, prefix)


@final
class GrowingCopy:
    """A copy, in ``folder``, of a file that only grows: each checkpoint states how many of its
    bytes are its own, and their hash, and appends what is new.
    """

    def __init__(self, source: Path, folder: Path) -> None:
        self._source, self._copy = source, folder / source.name
        self._hash, self._bytes = hashlib.sha256(), -1

    def until(self, size: int) -> Callable[[], FileFacts]:
        """Returns what appends the bytes up to ``size`` and returns size and hash of them all."""
        return partial(self._extend, size)

    def _extend(self, size: int) -> FileFacts:
        if not 0 <= self._bytes <= _bytes_of(self._copy):
            self._compare(size)
        with self._source.open("rb") as own, self._copy.open("r+b") as copy:
            own.seek(self._bytes)
            copy.seek(self._bytes)
            tail = own.read(size - self._bytes)
            copy.write(tail)
            copy.truncate()
        flush(self._copy)
        self._hash.update(tail)
        self._bytes += len(tail)
        return {"bytes": self._bytes, "sha256": self._hash.hexdigest()}

    def _compare(self, size: int) -> None:
        """Finds out how much of the copy of an earlier process is still right: bytes that older
        checkpoints need are not written again as others.
        """
        self._hash, self._bytes = hashlib.sha256(), 0
        if self._copy.is_symlink():
            self._copy.unlink()
        self._copy.touch()
        with self._source.open("rb") as own, self._copy.open("rb") as copy:
            while part := own.read(min(_PART, size - self._bytes)):
                if copy.read(len(part)) != part:
                    break
                self._hash.update(part)
                self._bytes += len(part)


def _bytes_of(path: Path) -> int:
    return path.stat().st_size if path.is_file() and not path.is_symlink() else -1


@final
class _Part(Mapping[str, Tensor]):
    def __init__(self, tensors: Mapping[str, Tensor], prefix: str) -> None:
        self._tensors, self._prefix = tensors, prefix

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[self._prefix + name]

    def __iter__(self) -> Iterator[str]:
        held = (name for name in self._tensors if name.startswith(self._prefix))
        return (name.removeprefix(self._prefix) for name in held)

    def __len__(self) -> int:
        return sum(1 for _ in self)


@dataclass(frozen=True)
class Writing:
    """A checkpoint being written. ``written`` writes this rank's files and returns their facts by
    name; it may run in any thread.
    """

    work: Path
    step: int
    values: Mapping[str, Any]
    written: Callable[[], dict[str, FileFacts]]


def save(folder: Path, step: int, saved: Saved, keep: int, world: World = ALONE) -> Path:
    """Writes ``folder/step-<step>`` atomically, then deletes all but the newest ``keep``. A
    collective: all ranks of ``world`` call it with the same ``folder``.

    Raises RunError on every rank when the disk is full or a file cannot be read back on one of
    them; earlier checkpoints stay.
    """
    return publish(begin(folder, step, saved, world), keep, world)


def begin(folder: Path, step: int, saved: Saved, world: World = ALONE) -> Writing:
    """Creates the temporary folder. Tensors are written when ``Writing.written`` is called."""
    work = world.agree(lambda: _room(folder, step))
    return Writing(work, step, saved.values, lambda: _own_files(work, step, saved, world))


def publish(writing: Writing, keep: int, world: World = ALONE) -> Path:
    """Waits for the files of all ranks, then renames the folder. Raises as ``save`` does."""
    work = writing.work
    try:
        files = world.each(writing.written)
        found = {name: said for each in files for name, said in each.items()}
        return world.agree(lambda: _move(writing, found, keep))
    except BaseException:  # a second Ctrl-C included
        if world.main:
            shutil.rmtree(work, ignore_errors=True)
        raise


def steps(folder: Path) -> list[Path]:
    """Returns the complete checkpoints, oldest first. A link, or a folder that a user made, is
    none.
    """
    named = (p for p in folder.glob("step-*") if re.fullmatch(r"step-\d{8,}", p.name, re.ASCII))
    return sorted(p for p in named if (p / STATE).is_file() and not p.is_symlink())


def thin(folder: Path, keep: int) -> tuple[int, int]:
    """Deletes all but the newest ``keep`` checkpoints, and with the last one its folder, unless a
    user put something into it; returns how many stay, and their bytes.
    """
    found = steps(folder)
    for old in found[: max(0, len(found) - keep)]:
        _delete(old)
    left = steps(folder)
    if not left and folder.is_dir() and not folder.is_symlink():
        for copy in folder.glob("*.jsonl"):
            if (folder.parent / copy.name).is_file():  # what a ``GrowingCopy`` copied
                copy.unlink()
        with suppress(OSError):
            folder.rmdir()
    return len(left), sum(map(size, left))


def size(path: Path) -> int:
    """Returns the bytes of a checkpoint's tensors."""
    return sum(file.stat().st_size for file in path.glob(f"*{_TENSORS}"))


def _room(folder: Path, step: int) -> Path:
    """Creates an empty folder to write into; deletes those that a killed process left behind."""
    work = folder / f".writing-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        processes.sweep(folder, WRITING)
        work.mkdir()
    except OSError as error:
        raise _unwritten(folder, step, error) from error
    return work


def _own_files(work: Path, step: int, saved: Saved, world: World) -> dict[str, FileFacts]:
    """Writes this rank's files; returns their sizes and hashes by name."""
    mine: dict[str, Mapping[str, Tensor]] = {TENSORS: saved.tensors} if world.main else {}
    if saved.rows:
        mine[f"rows-{world.rank:05d}-of-{world.size:05d}.safetensors"] = saved.rows
    try:
        facts = {name: write(work / name, tensors) for name, tensors in mine.items()}
        growing = saved.growing if world.main else {}
        return facts | {name: extend() for name, extend in growing.items()}
    except (OSError, SafetensorError) as error:
        raise _unwritten(work.parent, step, error) from error


def _move(writing: Writing, files: Mapping[str, FileFacts], keep: int) -> Path:
    work, folder = writing.work, writing.work.parent
    target = folder / f"step-{writing.step:08d}"
    try:
        own = {name: said for name, said in files.items() if name.endswith(_TENSORS)}
        record = {name: said for name, said in files.items() if name not in own}
        total = sum(said["bytes"] for said in own.values())
        kept = {"bytes": total, "files": own, "record": record}
        said = {"format": FORMAT, **kept, **writing.values}
        said[HASH] = _hash_of(said)
        (work / STATE).write_text(json.dumps(said, indent=1), encoding="utf-8")
        flush(work / STATE, work)
        _delete(target)
        fault.point("save.rename")
        work.rename(target)
        flush(folder)
    except OSError as error:
        raise _unwritten(folder, writing.step, error) from error
    fault.point("save.renamed")
    # Newer ones are damaged, else this run would have resumed from them. Deleted after the rename:
    # at no moment is there no readable checkpoint.
    for newer in (p for p in steps(folder) if p.name > target.name):
        _delete(newer)
    for old in steps(folder)[:-keep]:
        _delete(old)
    return target


def _delete(path: Path) -> None:
    """Deletes the files of a checkpoint, and the folder if a user put nothing else into it."""
    if path not in steps(path.parent):
        return
    for file in (*path.glob(f"*{_TENSORS}"), *path.glob("*.jsonl"), path / STATE):
        file.unlink(missing_ok=True)
    with suppress(OSError):
        path.rmdir()


def _unwritten(folder: Path, step: int, error: Exception) -> RunError:
    return RunError(
        f"the checkpoint of step {step} cannot be written: {error}",
        where=str(folder),
        fix="Free some space, or take away what is in the way, then continue with --resume.",
    )


def newest(
    folder: Path,
    warn: Callable[[str], None],
    world: World = ALONE,
    like: Mapping[str, Any] | None = None,
) -> Saved | None:
    """Returns the newest checkpoint that can be read, None without one; warns of damaged ones and
    passes over them. Rank 0 chooses, all ranks read it. ``like``: an example of the values, whose
    keys and types a checkpoint must have (``require_like``).
    """
    path = world.agree(lambda: _sound(folder, warn, like))
    return None if path is None else _opened(path)


def _sound(
    folder: Path, warn: Callable[[str], None], like: Mapping[str, Any] | None
) -> Path | None:
    found = steps(folder) if folder.is_dir() else []
    for path in reversed(found):
        try:
            values = _values(path)
            for file, said in _files(path, values).items():
                _check(file, said)
            if like is not None:
                require_like(values, like)
            _opened(path)
        except (OSError, SafetensorError, *MISFITS) as error:
            first = first_line(error) or type(error).__name__
            then = "there is none before it" if path == found[0] else "trying the one before"
            warn(f"checkpoint {path.name} is damaged ({first}); {then}")
        else:
            return path
    return None


def _values(path: Path) -> dict[str, Any]:
    """Returns what ``state.json`` holds. Raises one of ``MISFITS`` when it is not what was
    written; of formats 1 and 2, which have no hash, when it is no mapping of values.
    """
    if (size := (path / STATE).stat().st_size) > MOST_BYTES:
        raise ValueError(f"{STATE} has {size} bytes")
    try:
        values = json.loads((path / STATE).read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError(f"{STATE} is nested too deeply") from error
    if values["format"] not in range(1, FORMAT + 1):
        raise ValueError(f"format {values['format']}, this version reads {FORMAT}")
    if values["format"] == 1 and "files" in values:
        raise ValueError(f"{STATE} is not what was written")
    if values["format"] > 2 or (values["format"] > 1 and HASH in values):
        said = values.pop(HASH)
        if _hash_of(values) != said:
            raise ValueError(f"{STATE} is not what was written")
    return values


def _hash_of(values: Mapping[str, Any]) -> str:
    """The same for values and for what is read back of them: JSON keeps order and numbers."""
    return hashlib.sha256(json.dumps(values, indent=1).encode()).hexdigest()


def require_like(value: Any, example: Any, at: str = STATE) -> None:
    """Raises ValueError unless ``value`` has the types of ``example``: a mapping its keys (those
    that end in ``?`` may be missing), an empty one any keys with whole numbers; a list elements
    like the first of the example; None is like everything. Whole numbers are not negative.
    """
    kinds = (int, float) if type(example) is float else (type(example),)
    if example is not None and (type(value) not in kinds or (kinds == (int,) and value < 0)):
        raise ValueError(f"{at} is not what was written: {value!r:.40}")
    if isinstance(example, list):
        for k, inner in enumerate(value):
            require_like(inner, example[0], f"{at}: {k}")
    elif isinstance(example, dict):
        wanted = {key.removesuffix("?"): inner for key, inner in example.items()}
        for key in wanted:
            if key not in value and f"{key}?" not in example:
                raise ValueError(f"{at} has no '{key}'")
        for key in value.keys() & (wanted.keys() or value.keys()):
            require_like(value[key], wanted.get(key, 0), f"{at}: {key}")


def _files(path: Path, values: dict[str, Any]) -> dict[Path, FileFacts]:
    """Returns the facts of each file. Format 1 has one file and its facts among the values. Raises
    ValueError where the file of rank 0 is missing, or a name is no file of this folder.
    """
    found, record = values.get("files", {TENSORS: values}), values.get("record", {})
    if TENSORS not in found or any(Path(name).name != name for name in (*found, *record)):
        raise ValueError(f"{STATE} does not name the files of a checkpoint")
    beside = {_recorded(path.parent, name, said): said for name, said in record.items()}
    return {path / name: said for name, said in found.items()} | beside


def _recorded(folder: Path, name: str, said: FileFacts) -> Path:
    """Returns the copy of a record or, where that is damaged, the run's own file if that is not."""
    for file in (folder / name, folder.parent / name):
        with suppress(OSError, ValueError):
            _check(file, said)
            return file
    return folder / name


def _opened(path: Path) -> Saved:
    values = _values(path)
    files = _files(path, values)
    texts = [file for file in files if file.suffix != _TENSORS]
    tensors = Stored(sorted(file for file in files if file not in texts))
    return Saved(values, tensors, texts={f.name: _first(f, files[f]["bytes"]) for f in texts})


def _first(path: Path, size: int) -> bytes:
    with path.open("rb") as file:
        return file.read(size)


def write(path: Path, tensors: Mapping[str, Tensor]) -> FileFacts:
    """Writes a file, compares it with memory, flushes it; returns its size and hash.

    Raises OSError or SafetensorError when the disk is full or the file differs from memory.
    """
    contiguous = {name: t.detach().contiguous() for name, t in tensors.items()}
    save_file(contiguous, path)
    fault.point("save.tensors")
    with safe_open(path, framework="pt") as file:
        for name, tensor in contiguous.items():
            if not same_bits(file.get_tensor(name), tensor.cpu()):
                raise OSError(f"{name} reads back as something else")
    flush(path)
    return {"bytes": path.stat().st_size, "sha256": _sha256(path)}


def _check(path: Path, said: FileFacts) -> None:
    """Raises OSError or ValueError unless the file has the recorded size and hash. The copy of a
    record may have grown.
    """
    size, text = path.stat().st_size, path.suffix != _TENSORS
    if size < said["bytes"] or (size > said["bytes"] and not text):
        raise ValueError(f"{path.name} has {size} bytes, not {said['bytes']}")
    found = hashlib.sha256(_first(path, said["bytes"])).hexdigest() if text else _sha256(path)
    if found != said.get("sha256", found):
        raise ValueError(f"{path.name} is not what was written")


@final
class Stored(Mapping[str, Tensor]):
    """Tensors in files, read on access and not cached. A tensor that is in several files is
    sharded by rows, in the order of the files.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._where: dict[str, list[Any]] = {}
        for path in paths:
            file = safe_open(path, framework="pt")
            for name in file.keys():  # noqa: SIM118  safe_open is no mapping
                self._where.setdefault(name, []).append(file)

    def __getitem__(self, name: str) -> Tensor:
        parts = [file.get_tensor(name) for file in self._where[name]]
        # A copy in aligned memory: vectorised kernels may round differently on other addresses, and
        # a resumed run must repeat the interrupted one bit for bit.
        return torch.cat(parts) if len(parts) > 1 else parts[0].clone().contiguous()

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)


def _sha256(path: Path) -> str:
    """Returns the hash of a file without loading it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Returns whether two tensors are equal bit for bit, nan included."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))


def flush(*paths: Path) -> None:
    """Flushes files to disk (fsync); a folder's entries too, so that a rename is durable."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
