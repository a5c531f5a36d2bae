"""Folders that are made once and kept in the cache, and checks that a model folder is complete:
sizes on every load, checksums when fetching. Imports neither torch nor transformers.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from effcompress.errors import SourceError
from effcompress.model.cache import atomically

MANIFEST = "effcompress-manifest.json"


def kept_at(cache: Path, kind: str, name: str, *key: str) -> Path:
    """The folder in the cache for what ``key`` determines, whether it exists or not."""
    slug = re.sub(r"[^A-Za-z0-9.]+", "-", name)
    digest = hashlib.sha256("\n".join(key).encode()).hexdigest()
    return cache / kind / f"{slug}-{digest[:12]}"


def kept(
    target: Path,
    make: Callable[[Path, Path], Mapping[str, Any]],
    *,
    name: str,
    where: str = "model",
    offline: bool,
    say: Callable[[str], None],
    deep: bool,
) -> Path:
    """Returns the folder ``target``; if it is missing or damaged, ``make`` fills a new one, given
    another for temporary files, and returns facts for its manifest. ``deep`` compares checksums.

    Raises:
        SourceError: it must be made, and this run is ``offline``; the disk is full.
    """
    here = target.is_dir()
    flaw = manifest_flaw(target, deep=deep) if here else ""
    if flaw is None:
        return target
    if offline:
        said = f"is damaged in {target} ({flaw})" if here else "is not on this machine"
        raise absent(name, said, where=where)
    if here:
        say(f"{target}: {flaw}; making it again")
    with atomically(target) as work:
        parts = work / "parts"
        parts.mkdir(parents=True)
        facts = make(work, parts)
        shutil.rmtree(parts)
        write_manifest(work, facts)
    return target


def absent(name: str, flaw: str = "is not on this machine", *, where: str = "model") -> SourceError:
    """The error for what an offline run lacks."""
    return SourceError(
        f"{name} {flaw}, and this run is offline",
        where=where,
        fix="on a connected machine or before going offline: effcompress fetch RECIPE",
    )


def sha256_of(path: Path) -> str:
    """Lower-case hexadecimal checksum of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_manifest(folder: Path, facts: Mapping[str, Any]) -> None:
    """Writes a manifest: ``facts``, and size in bytes and sha256 of every file of ``folder``."""
    files = {
        file.name: {"bytes": file.stat().st_size, "sha256": sha256_of(file)}
        for file in sorted(folder.iterdir())
        if file.is_file() and file.name != MANIFEST
    }
    text = json.dumps({**facts, "files": files}, indent=2, sort_keys=True)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Reads the manifest; None if it is missing or unreadable."""
    return read_object(folder / MANIFEST)


def read_object(path: Path) -> dict[str, Any] | None:
    """Reads a JSON object; None if the file is missing or holds something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def manifest_flaw(folder: Path, *, deep: bool = False) -> str | None:
    """Compares a folder with its manifest; returns the first flaw or None. ``deep`` also compares
    checksums.
    """
    manifest = read_manifest(folder)
    if manifest is None or not isinstance(manifest.get("files"), dict):
        return f"{MANIFEST} is missing or damaged"
    for name, fact in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if (size := path.stat().st_size) != fact["bytes"]:
            return f"{name} has {size} bytes instead of {fact['bytes']}"
        if deep and sha256_of(path) != fact["sha256"]:
            return f"{name} does not have the checksum it had when it was written"
    return None


def folder_flaw(folder: Path) -> str | None:
    """Checks a Hugging Face folder without reading weights; returns the first flaw or None."""
    if read_object(folder / "config.json") is None:
        return "config.json is missing or damaged"
    names = {path.name for path in folder.glob("*.safetensors")}
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        wanted = set(((read_object(index) or {}).get("weight_map") or {}).values())
        if not wanted:
            return f"{index.name} is damaged"
    else:
        wanted = {"model.safetensors"}
    if not names:
        return "there are no safetensors weights (pickled weights are never opened)"
    if missing := sorted(wanted - names):
        return f"{missing[0]} is missing"
    return next((flaw for name in sorted(wanted) if (flaw := _tensor_flaw(folder / name))), None)


def _tensor_flaw(path: Path) -> str | None:
    """Compares a safetensors file's size with its header: 8 bytes (length of the JSON), JSON with
    the offsets of the tensors, the tensors.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length + 8 > size:
            return f"{path.name} is truncated ({size} bytes)"
        try:
            header = json.loads(stream.read(length))
            ends = [entry["data_offsets"][1] for key, entry in header.items() if key[:2] != "__"]
        except (ValueError, LookupError, TypeError, AttributeError):
            return f"{path.name} is damaged (its header cannot be read)"
    expected = 8 + length + max(ends, default=0)
    return f"{path.name} has {size} bytes instead of {expected}" if size != expected else None
