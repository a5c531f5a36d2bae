"""Folders that are made once and kept in the cache, and checks that a model folder is complete:
sizes on every load, checksums when fetching. Imports neither torch nor transformers.
"""

import hashlib
import json
import math
import os
import re
import shutil
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from effcompress.errors import SourceError
from effcompress.model.cache import atomically

MANIFEST = "effcompress-manifest.json"
TEXT_LIMIT = 256 << 20
"""Bytes of the largest text file of a model folder that is read. Large tokenizers have 40 MB."""
HEADER_LIMIT = 100_000_000
"""Bytes of the largest header that the safetensors library reads."""
_PARSED = 4 << 20
"""Bytes of a JSON file up to which it is parsed with every check; beyond, only when it is used."""
_TEXT = re.compile(
    r"(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab"
    r"|processor_config|preprocessor_config|chat_template|.*\.safetensors\.index)\.json"
    r"|tokenizer\.model|.*\.(tiktoken|jinja)|(merges|vocab)\.txt"
)
"""Text files of a folder that transformers opens."""
_AGAIN = "download or copy that file again"
_PICKLED = (
    "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(OTHER) writes safetensors: do so "
    "where you trust the file, and name that folder"
)
TAG = "__float__"
SPECIAL = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}
"""How transformers writes these numbers into config.json: ``{TAG: "Infinity"}``."""
Tensor = tuple[str, tuple[int, ...], tuple[int, int]]
"""Type, shape, and where the file holds it: first byte, and the byte after the last."""
Tensors = Mapping[str, Tensor]


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


def opened(path: Path) -> BinaryIO:
    """Opens a regular file for reading; of anything else (a pipe, a device) nothing is read.

    Raises SourceError.
    """
    try:
        stream = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")
    except FileNotFoundError as error:
        raise SourceError(f"{path.name} is missing", where=str(path.parent)) from error
    except OSError as error:
        said = f"{path.name} cannot be read: {error.strerror}"
        raise SourceError(said, where=str(path.parent), fix=_AGAIN) from error
    if stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        return stream
    stream.close()
    raise SourceError(f"{path.name} is not a regular file", where=str(path.parent))


def untagged(value: dict[str, Any]) -> Any:
    """Decodes the numbers that JSON has not, as transformers writes them into config.json."""
    return SPECIAL.get(str(value[TAG]), value) if value.keys() == {TAG} else value


def tagged(value: Any) -> Any:
    """Encodes them again; other values stay as they are."""
    if isinstance(value, dict):
        return {key: tagged(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [tagged(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {TAG: next(n for n, special in SPECIAL.items() if repr(special) == repr(value))}
    return value


def read_json(path: Path) -> Any:
    """Reads a JSON file of a model folder, of at most ``TEXT_LIMIT`` bytes. Infinity and NaN may be
    written as transformers does (``{"__float__": "Infinity"}``).

    Raises SourceError if it is missing, no regular file, too large or not JSON.
    """
    with opened(path) as stream:
        data = stream.read(TEXT_LIMIT + 1)
    if len(data) > TEXT_LIMIT:
        what = f"has more than {TEXT_LIMIT >> 20} MiB"
    else:
        try:
            return json.loads(data, object_hook=untagged)
        except RecursionError:
            what = "is nested too deeply"
        except ValueError as error:
            what = f"is damaged (no JSON: {error})"
    raise SourceError(f"{path.name} {what}", where=str(path.parent), fix=_AGAIN)


def read_object(path: Path) -> dict[str, Any] | None:
    """Reads a JSON object; None if the file is missing or holds something else."""
    try:
        value = read_json(path)
    except SourceError:
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
    try:
        require_whole(folder)
    except SourceError as error:
        return error.what
    return None


def require_whole(folder: Path, *, weights: bool = True) -> Mapping[str, Tensors]:
    """Returns the headers of the weights that transformers loads from a Hugging Face folder: file
    -> tensors. Reads no weights; without ``weights`` the folder needs none, and none are returned.

    Raises SourceError naming the first file that is missing, damaged, no regular file or too large.
    """
    if (folder / "adapter_config.json").exists():
        base = (read_object(folder / "adapter_config.json") or {}).get("base_model_name_or_path")
        raise SourceError(
            f"adapter_config.json: this is a PEFT adapter (of {base}), not a model",
            where=str(folder),
            fix="merge it: PeftModel.from_pretrained(base, FOLDER).merge_and_unload()"
            ".save_pretrained(OTHER), and name that folder",
        )
    for name in (file.name for file in sorted(folder.iterdir()) if _TEXT.fullmatch(file.name)):
        with opened(folder / name) as stream:
            size = os.fstat(stream.fileno()).st_size
        if size > TEXT_LIMIT:
            said = f"{name} has {size:,} bytes, more than {TEXT_LIMIT >> 20} MiB"
            raise SourceError(said, where=str(folder))
        small = name.endswith(".json") and size <= _PARSED
        if small and not isinstance(read_json(folder / name), dict):
            raise SourceError(f"{name} holds no JSON object", where=str(folder), fix=_AGAIN)
    if read_object(folder / "config.json") is None:
        raise SourceError("config.json is missing, or no JSON object", where=str(folder))
    return _headers(folder) if weights else {}


def _headers(folder: Path) -> Mapping[str, Tensors]:
    names = {path.name for path in folder.glob("*.safetensors")}
    if not names:
        what = "there are no safetensors weights (pickled weights are never opened)"
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt*"))
        raise SourceError(what, where=str(folder), fix=_PICKLED if pickled else None)
    whole, index = "model.safetensors", folder / "model.safetensors.index.json"
    wanted, said = {whole}, read_object(index) or {}
    if index.exists():
        table = said.get("weight_map")
        files = list(table.values()) if isinstance(table, dict) else []
        if not files or not all(isinstance(f, str) and Path(f).name == f for f in files):
            what = f"{index.name} is damaged (weight_map)"
            raise SourceError(what, where=str(folder), fix=_AGAIN)
        wanted = set(files)
        if whole in names and wanted != {whole}:
            raise SourceError(
                f"two sets of weights: {whole}, and the files of {index.name}",
                where=str(folder),
                fix="remove one of them; transformers loads the first, whatever the second holds",
            )
    if missing := sorted(wanted - names):
        what, fix = f"{missing[0]} is missing", None
        if missing == [whole]:  # other names are not read without an index
            what = f"{whole} is missing, and {index.name}, which would name {min(names)}"
            fix = f"add that index, or rename the file where it is the only one: {whole}"
        raise SourceError(what, where=str(folder), fix=fix)
    if wanted != {whole} and not isinstance(said.get("metadata"), dict):
        raise SourceError(
            f"{index.name} has no `metadata`, without which transformers do not read it",
            where=str(folder),
            fix='add "metadata": {} beside its weight_map',
        )
    found = {name: read_header(folder / name) for name in sorted(wanted)}
    if not any(found.values()):
        what = f"{min(wanted)} holds no tensors"
        raise SourceError(what, where=str(folder), fix=_AGAIN)
    _require_once(folder, found)
    return found


def _require_once(folder: Path, found: Mapping[str, Tensors]) -> None:
    """Raises SourceError for a tensor that two files hold: which of them counts is not said."""
    at: dict[str, str] = {}
    for file, tensors in found.items():
        for name in tensors:
            if (other := at.setdefault(name, file)) != file:
                raise SourceError(
                    f"{name} is stored twice, in {other} and in {file}",
                    where=str(folder),
                    fix="remove one of them: take all files from one download",
                )


def read_header(path: Path) -> Tensors:
    """Reads the header of a safetensors file: 8 bytes (length of the JSON), JSON with the offsets
    of the tensors, the tensors. Returns tensor -> its type, shape and bytes from the file's start.

    Raises SourceError if it cannot be read or does not fit the file's size.
    """
    with opened(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        length = int.from_bytes(stream.read(8), "little")
        if length + 8 > size:
            said = f"{path.name} is truncated ({size} bytes)"
            if size < 1024:  # the text that Git LFS leaves in place of a file
                said += ", or was never downloaded"
            raise SourceError(said, where=str(path.parent), fix="download it again (git lfs pull)")
        if length > HEADER_LIMIT:
            said = f"{path.name} is damaged (a header of {length:,} bytes)"
            raise SourceError(said, where=str(path.parent))
        try:
            header = json.loads(stream.read(length))
            found = {
                key: _tensor(one, length + 8) for key, one in header.items() if key[:2] != "__"
            }
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            said = f"{path.name} is damaged (its header cannot be read)"
            raise SourceError(said, where=str(path.parent), fix=_AGAIN) from error
    expected = max((end for _, _, (_, end) in found.values()), default=8 + length)
    if size != expected:
        said = f"{path.name} has {size} bytes instead of {expected}"
        raise SourceError(said, where=str(path.parent), fix=_AGAIN)
    return found


def _tensor(entry: Any, start: int) -> Tensor:
    dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not all(type(n) is int and n >= 0 for n in (*shape, begin, end - begin)):
        raise ValueError("no sizes")
    return str(dtype), tuple(shape), (start + begin, start + end)
