"""The source that a recipe names, and what is known of it before it is fetched. Imports neither
torch nor transformers, so that ``check`` is fast.

``random`` beside a source takes its configuration and tokenizer without the weights
(``model/scratch.py``).
"""

import importlib.util
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from effcompress.errors import SourceError
from effcompress.model import hub, scratch
from effcompress.model.cache import cache_root
from effcompress.model.integrity import folder_flaw, kept_at, manifest_flaw, read_object
from effcompress.model.lineage import is_pruned
from effcompress.spec import ModelSpec
from effcompress.types import Config, Fields

Kind = Literal["hub", "folder", "gguf", "wheel", "random"]
LAYOUT = 2
"""Version of converted folders, part of the cache key: increase it when the conversion changes."""
BYTES = "bytes"
BYTE_CONFIG = {"vocab_size": 258, "bos_token_id": 256, "eos_token_id": 257}
"""Defaults of a random model with the byte tokenizer."""

_PINNED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9.!+_-]*")
_LIKE_A_PATH = re.compile(r"[./~]|[A-Za-z]:|.*\\|[^/]*/[^/]*/")


@dataclass(frozen=True)
class Item:
    """Something that a recipe needs on this machine. ``size`` is in bytes, None if unknown."""

    name: str
    kind: Literal["model", "tokenizer", "tasks"]
    size: int | None
    cached: bool
    where: Path | None


def kind_of(spec: ModelSpec) -> Kind:
    """Returns the kind of source that the spec names; ``random`` if it names nothing else.

    Raises:
        SourceError: it names none, more than one, or one without a key that it needs.
    """
    named: tuple[Kind, ...] = ("hub", "folder", "gguf", "wheel")
    kinds: list[Kind] = [kind for kind in named if getattr(spec, kind)]
    if not kinds and spec.random:
        kinds = ["random"]
    if len(kinds) != 1:
        said = " and ".join(kinds) if kinds else "none"
        raise SourceError(
            f"a model needs exactly one of {', '.join(named)} (or random); found {said}",
            where="model",
        )
    if spec.wheel and not _PINNED.fullmatch(spec.wheel):
        raise SourceError(
            f"'{spec.wheel}' does not pin a package", where="model.wheel", fix="name==version"
        )
    if kinds[0] == "random" and not (spec.shape or {}).get("model_type"):
        raise SourceError(
            "a random model needs `shape` with a `model_type`",
            where="model.shape",
            fix="shape: {model_type: llama, hidden_size: 64, ...}, or a source beside `random`",
        )
    return kinds[0]


def from_scratch(spec: ModelSpec) -> bool:
    """Whether the source gives only configuration and tokenizer (``random`` beside a source)."""
    return spec.random and kind_of(spec) != "random"


def label_of(spec: ModelSpec) -> str:
    """Describes the model for reports."""
    if not from_scratch(spec):
        return origin_of(spec)
    said = ", ".join(f"{key} {json.dumps(value)}" for key, value in (spec.shape or {}).items())
    return f"random weights, shape of {origin_of(spec)}" + (f" with {said}" if said else "")


def origin_of(spec: ModelSpec) -> str:
    """Describes the source, without the folder of a file."""
    kind = kind_of(spec)
    if kind == "wheel":
        return f"{spec.wheel}/{spec.member}" if spec.member else f"{spec.wheel}"
    if kind == "gguf":
        return Path(str(spec.gguf)).name
    if kind == "hub":
        return f"{spec.hub}@{spec.revision}" if spec.revision else f"{spec.hub}"
    if kind == "folder":
        return str(spec.folder)
    return f"random {(spec.shape or {}).get('model_type')}"


def converted_at(spec: ModelSpec, cache: Path) -> Path:
    """The cache folder of a converted wheel or gguf file, whether it exists or not.

    Raises:
        SourceError: the gguf file does not exist.
    """
    if spec.wheel:
        name, key = spec.wheel, (spec.wheel, spec.member or "")
    else:
        path = gguf_file(spec)
        stat = path.stat()
        name, key = path.stem, (str(path.resolve()), str(stat.st_size), str(stat.st_mtime_ns))
    return kept_at(cache, "models", name, str(LAYOUT), *key, (spec.sha256 or "").lower())


def gguf_file(spec: ModelSpec) -> Path:
    """The local gguf file of the spec. Raises SourceError if it does not exist."""
    path = Path(str(spec.gguf)).expanduser()
    if not path.is_file():
        raise SourceError("there is no such file", where=f"model.gguf: {path}")
    return path


def local_folder(spec: ModelSpec) -> Path:
    """The local folder of the spec. Raises SourceError if it is not a complete Hugging Face folder;
    from scratch, it needs no weights.
    """
    path = Path(str(spec.folder)).expanduser()
    if not path.is_dir():
        raise SourceError("there is no such folder", where=f"model.folder: {path}")
    if from_scratch(spec):
        if read_object(path / "config.json") is None:
            raise SourceError("config.json is missing or damaged", where=f"model.folder: {path}")
        return path
    if flaw := folder_flaw(path):
        raise SourceError(
            flaw, where=f"model.folder: {path}", fix="a folder needs config.json and *.safetensors"
        )
    return path


def tokenizer_kind(name: str) -> Literal["bytes", "folder", "hub"]:
    """Returns what `tokenizer` of a spec names.

    Raises:
        SourceError: it looks like a path and there is no such folder.
    """
    if name == BYTES:
        return "bytes"
    if Path(name).expanduser().is_dir():
        return "folder"
    if _LIKE_A_PATH.match(name):
        raise SourceError(
            "there is no such folder",
            where=f"model.tokenizer: {name}",
            fix="`bytes`, a folder with tokenizer.json, or a hub id",
        )
    return "hub"


def items(spec: ModelSpec, cache: Path | None = None) -> list[Item]:
    """Lists what a run needs on this machine: the model and, if named separately, the tokenizer.

    Raises:
        SourceError: the spec is contradictory, or a local file does not exist.
    """
    cache = cache or cache_root()
    found = [item for item in (_model_item(spec, cache),) if item]
    if spec.tokenizer and tokenizer_kind(spec.tokenizer) == "hub":
        at = hub.cached_snapshot(spec.tokenizer, None, weights=False)
        found.append(Item(f"tokenizer of {spec.tokenizer}", "tokenizer", None, bool(at), at))
    return found


def _model_item(spec: ModelSpec, cache: Path) -> Item | None:
    kind = kind_of(spec)
    if kind == "random":
        return None
    if kind == "folder":
        at, whole = local_folder(spec), True
    elif kind == "hub":
        at = cached_hub(spec)
        whole = at is not None and (from_scratch(spec) or folder_flaw(at) is None)
    else:
        at = converted_at(spec, cache)
        whole = manifest_flaw(at) is None
    size = sum(f.stat().st_size for f in at.iterdir() if f.is_file()) if at and whole else None
    return Item(origin_of(spec), "model", size, whole, at)


def cached_hub(spec: ModelSpec) -> Path | None:
    """The folder of the hub model if what is needed is cached; never uses the network."""
    weights, code = not from_scratch(spec), spec.trust_remote_code
    return hub.cached_snapshot(str(spec.hub), spec.revision, weights=weights, code=code)


def config_of(spec: ModelSpec, cache: Path | None = None) -> Fields | None:
    """Returns the model's configuration: `shape`, overridden by the source's config.json where that
    is on this machine; from scratch, config.json overridden by `shape`. None if too little is
    known. Never uses the network.

    Raises:
        SourceError: `shape` and the real configuration disagree, or a local file is missing.
    """
    kind = kind_of(spec)
    shape = dict(spec.shape or {})
    if kind == "random":
        return {**(BYTE_CONFIG if spec.tokenizer in (None, BYTES) else {}), **shape}
    cache = cache or cache_root()
    real = _real_file(spec, kind, cache, "config.json")
    if from_scratch(spec):
        if real and not is_pruned(real):
            real = _real_file(spec, kind, cache, scratch.RECORD) or real
        # Without config.json, a `shape` is complete only if it names its class.
        known = real or (shape if "model_type" in shape else None)
        return scratch.architecture(known, shape, origin_of(spec)) if known else None
    if real is None:
        return shape or None
    require_agreement(shape, real, label_of(spec))
    return {**shape, **real}


def _real_file(spec: ModelSpec, kind: Kind, cache: Path, name: str) -> Fields | None:
    """Reads a JSON file beside the weights, if it is on this machine."""
    if kind == "folder":
        return read_object(local_folder(spec) / name)
    if kind == "hub":
        path = hub.cached_file(str(spec.hub), spec.revision, name)
        return read_object(path) if path else None
    at = converted_at(spec, cache)
    return read_object(at / name) if manifest_flaw(at) is None else None


def require_agreement(shape: Config, real: Config, name: str) -> None:
    """Raises SourceError naming the first field of ``shape`` that ``real`` contradicts.

    A field that ``real`` does not have cannot contradict it.
    """
    known = {**scratch.rope_of(real), **real}
    for field, said in shape.items():
        if field in known and not _same(said, known[field]):
            raise SourceError(
                f"`shape` says {field}: {json.dumps(said)}, {name} has {json.dumps(known[field])}",
                where=f"model.shape.{field}",
                fix="correct `shape`, or leave it out once the model is fetched",
            )


def _same(said: Any, real: Any) -> bool:
    if isinstance(said, Mapping) and isinstance(real, Mapping):
        return all(key in real and _same(value, real[key]) for key, value in said.items())
    if isinstance(said, list | tuple) and isinstance(real, list | tuple):
        return len(said) == len(real) and all(map(_same, said, real))
    if isinstance(said, float) or isinstance(real, float):
        # gguf stores floats such as 1e-5 with 32 bits.
        if not (isinstance(said, int | float) and isinstance(real, int | float)):
            return False
        return math.isclose(said, real, rel_tol=1e-6)
    return bool(said == real)


def is_known(model_type: str) -> bool:
    """Whether transformers has modelling code for this ``model_type``, judged by its folders, since
    importing it takes seconds.
    """
    found = importlib.util.find_spec("transformers")
    where = Path((found and found.origin) or "").parent / "models"
    name = model_type.replace("-", "_")
    return name.isidentifier() and any(
        (where / n).is_dir() for n in (name, name.removesuffix("_text"))
    )
