"""The source that a recipe names, and what is known of it before it is fetched. Imports neither
torch nor transformers, so that ``check`` is fast.

``random`` beside a source takes its configuration and tokenizer without the weights
(``model/scratch.py``).
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from effcompress.errors import SourceError
from effcompress.model import hub, scratch
from effcompress.model.cache import cache_root
from effcompress.model.gguf.sources import require_readable
from effcompress.model.integrity import (
    folder_flaw,
    kept_at,
    manifest_flaw,
    opened,
    read_json,
    read_object,
    require_whole,
)
from effcompress.model.lineage import is_pruned, parent_of
from effcompress.model.multimodal import text_of
from effcompress.model.suitability import (
    largest_id,
    read_config,
    require_causal,
    require_fields,
    require_generation,
    require_padding,
    require_plain,
    require_rows,
)
from effcompress.model.tokenizer_files import require_tokenizer_files
from effcompress.model.values import require_computable, require_values
from effcompress.spec import ModelSpec
from effcompress.types import Config, Fields

Kind = Literal["hub", "folder", "gguf", "wheel", "random"]
LAYOUT = 2
"""Version of converted folders, part of the cache key: increase it when the conversion changes."""
BYTES = "bytes"
BYTE_CONFIG = {"vocab_size": 258, "bos_token_id": 256, "eos_token_id": 257}
"""Defaults of a random model with the byte tokenizer."""

_TABLES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tiktoken.model")
_SPM = ("sentencepiece", "google.protobuf")
_TOKENIZER = re.compile(r"tokeniz(?!er_config)|vocab|merges|tekken|.*\.(model|tiktoken)$")
_WITHOUT_FILES = ("ByT5Tokenizer", "CanineTokenizer", "PerceiverTokenizer")
"""Classes of tokenizers that need none but their configuration."""
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
    try:
        require_usable(path, scratch=from_scratch(spec))
    except SourceError as error:
        fix = error.fix or "a folder needs config.json and *.safetensors"
        raise SourceError(error.what, where=f"model.folder: {path}", fix=fix) from error
    return path


def require_usable(folder: Path, *, scratch: bool, whole: bool = True) -> None:
    """Raises SourceError if a Hugging Face folder lacks a file, unless it is not yet ``whole``, or
    holds no model that can be pruned. Only its configuration is used if trained from ``scratch``.
    """
    headers = require_whole(folder, weights=whole and not scratch)
    config = read_config(folder) or {}
    require_causal(config, str(folder))
    if not scratch:
        require_plain(folder, config, headers)
        require_generation(folder, config)


def stored_tensors(spec: ModelSpec) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Returns tensor -> its type and shape in the files of a local folder or a cached hub model;
    empty from scratch, for other sources, and for a folder that is not complete.
    """
    if from_scratch(spec) or (kind := kind_of(spec)) not in ("folder", "hub"):
        return {}
    at = Path(str(spec.folder)).expanduser() if kind == "folder" else cached_hub(spec)
    if at is None or folder_flaw(at) is not None:
        return {}
    return {
        name: (dtype, shape)
        for tensors in require_whole(at).values()
        for name, (dtype, shape, _) in tensors.items()
    }


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
        if kind == "gguf" and not whole:  # to be converted, which needs no network
            at, whole = gguf_file(spec), True
    files = [at] if at and at.is_file() else at.iterdir() if at and whole else ()
    size = sum(f.stat().st_size for f in files if f.is_file()) or None
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
    kind, cache = kind_of(spec), cache or cache_root()
    shape = dict(spec.shape or {})
    if kind == "folder":
        local_folder(spec)
    elif kind == "gguf":
        require_readable(gguf_file(spec))
    real = _beside(spec, cache, "config.json")
    if kind == "hub" and real:
        whole = folder_flaw(real.parent) is None
        require_usable(real.parent, scratch=from_scratch(spec), whole=whole)
    config = _config(spec, kind, cache, shape, read_config(real.parent) if real else None)
    if config is not None:
        where = "model.shape" if kind == "random" else label_of(spec)
        require_causal(config, where)
        require_padding(config, where)
        _require_tokenizer(spec, cache, config)
    return config


def outer_config(spec: ModelSpec) -> Fields | None:
    """Returns the configuration of the multimodal model whose text model a spec's source is; None
    for others, and where it is not on this machine.
    """
    file = _beside(spec, cache_root(), "config.json")
    config = (read_object(file) if file else None) or {}
    return config if text_of(config) else None


def outer_of(spec: ModelSpec) -> str | None:
    """Returns the ``model_type`` of that model."""
    config = outer_config(spec)
    return None if config is None else str(config.get("model_type"))


def _config(
    spec: ModelSpec, kind: Kind, cache: Path, shape: Fields, real: Fields | None
) -> Fields | None:
    known = {**shape, **(real or {})}
    require_fields(shape, known, real or {})
    if "auto_map" not in known:
        require_values(shape, str(parent_of(known).get("model_type")))
        require_computable(real or {}, f"{origin_of(spec)}: config.json")
    if kind == "random":
        return {**(BYTE_CONFIG if spec.tokenizer in (None, BYTES) else {}), **shape}
    if from_scratch(spec):
        if real and not is_pruned(real):
            record = _beside(spec, cache, scratch.RECORD)
            real = (read_object(record) if record else None) or real
        # Without config.json, a `shape` is complete only if it names its class.
        known = real or (shape if "model_type" in shape else None)
        return scratch.architecture(known, shape, origin_of(spec)) if known else None
    if real is None:
        return shape or None
    require_agreement(shape, real, label_of(spec))
    return {**shape, **real}


def _beside(spec: ModelSpec, cache: Path, name: str) -> Path | None:
    """A file beside the weights, if it is on this machine."""
    kind = kind_of(spec)
    if kind == "hub":
        return hub.cached_file(str(spec.hub), spec.revision, name)
    if kind == "random":
        return None
    if kind == "folder":
        at = Path(str(spec.folder)).expanduser()
    else:
        at = converted_at(spec, cache)
        if manifest_flaw(at) is not None:
            return None
    return at / name if (at / name).exists() else None


def _words(spec: ModelSpec, cache: Path, name: str = "tokenizer.json") -> Path | None:
    """A file of a spec's tokenizer; None if it has none or is not on this machine."""
    named = tokenizer_kind(spec.tokenizer) if spec.tokenizer else None
    if named == "hub":
        return hub.cached_file(str(spec.tokenizer), None, name)
    if named == "folder":
        file = Path(str(spec.tokenizer)).expanduser() / name
        return file if file.exists() else None
    return _beside(spec, cache, name)


def tokenizer_packages(spec: ModelSpec) -> tuple[str, ...]:
    """The packages that read the tokenizer of a spec, as far as it is on this machine. A
    tokenizer.json needs none.

    Raises:
        SourceError: a local folder has no tokenizer.
    """
    cache = cache_root()
    if of_bytes(spec):
        return ()
    stated = _words(spec, cache, "tokenizer_config.json")
    if stated and (read_object(stated) or {}).get("tokenizer_class") == "MistralCommonBackend":
        return ("mistral_common",)
    if _words(spec, cache):
        return ()
    for name in _TABLES:
        if (file := _words(spec, cache, name)) is not None:
            with opened(file) as stream:  # a table of tiktoken is text: "IQ== 0"
                return _SPM if stream.read(1) == b"\n" else ("tiktoken",)
    kept = Path(str(spec.tokenizer or spec.folder)).expanduser()
    if (spec.tokenizer or spec.folder) and kept.is_dir() and not _any_tokenizer(kept):
        key = "model.tokenizer" if spec.tokenizer else "model.folder"
        raise SourceError(
            "there is no tokenizer in this folder",
            where=f"{key}: {kept}",
            fix="set model.tokenizer to `bytes`, a folder with tokenizer.json, or a hub id",
        )
    return ()


def _any_tokenizer(folder: Path) -> bool:
    stated = read_object(folder / "tokenizer_config.json") or {}
    if stated.get("auto_map") or stated.get("tokenizer_class") in _WITHOUT_FILES:
        return True
    return any(_TOKENIZER.match(file.name) for file in folder.iterdir())


def template_folder(spec: ModelSpec) -> Path | None:
    """Returns the folder with the files of a spec's tokenizer; None without one on this machine."""
    words = None if of_bytes(spec) else _words(spec, cache_root())
    return None if words is None else words.parent


def has_template(spec: ModelSpec) -> bool | None:
    """Whether the tokenizer has a chat template; None where it is not on this machine."""
    if of_bytes(spec):
        return False
    if (words := _words(spec, cache_root())) is None:
        return None
    folder = words.parent
    apart = (folder / "chat_template.jinja", folder / "additional_chat_templates/default.jinja")
    written = (read_object(folder / "tokenizer_config.json") or {}).get("chat_template")
    return bool(written) or any(file.exists() for file in apart)


def of_bytes(spec: ModelSpec) -> bool:
    """Returns whether text is read byte by byte, without a tokenizer of the model's."""
    return spec.tokenizer == BYTES or (spec.tokenizer is None and kind_of(spec) == "random")


def prompt_length(spec: ModelSpec, prompt: str) -> int:
    """Counts the tokens of a prompt as far as the tokenizer is known here; of an unknown one, 1.

    Raises:
        SourceError: the tokenizer cannot be read.
    """
    if of_bytes(spec):
        return len(prompt.encode("utf-8", "replace"))
    if (file := _words(spec, cache_root())) is None:
        return 1
    return _tokens(file, [prompt])


def tokens_per_byte(spec: ModelSpec, texts: Sequence[str]) -> float | None:
    """Returns how many tokens the model's tokenizer makes of a byte of these texts; None where it
    is not on this machine.

    Raises:
        SourceError: the tokenizer cannot be read.
    """
    size = sum(len(text.encode("utf-8", "replace")) for text in texts)
    if of_bytes(spec) or not size:
        return 1.0
    if (file := _words(spec, cache_root())) is None:
        return None
    return _tokens(file, texts) / size


def _tokens(file: Path, texts: Sequence[str]) -> int:
    """Counts the tokens of texts by a tokenizer.json. Raises SourceError if it cannot be read."""
    from tokenizers import Tokenizer

    read_json(file)  # a file that is no JSON, or too large
    try:
        made = Tokenizer.from_file(str(file)).encode_batch([*texts])
    except BaseException as error:  # the library has no class of its own; panics are no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        said = f"tokenizer.json cannot be used: {error}"
        raise SourceError(said, where=str(file.parent)) from error
    return sum(len(one.ids) for one in made)


def _require_tokenizer(spec: ModelSpec, cache: Path, config: Config) -> None:
    """Raises SourceError if the tokenizer, as far as it is on this machine, cannot be read or has
    too many tokens.
    """
    where = f"model.tokenizer: {spec.tokenizer or BYTES}"
    if of_bytes(spec):
        require_rows(BYTE_CONFIG["eos_token_id"], "EOS", config, where)
        return
    words = _words(spec, cache)
    if (file := words or _words(spec, cache, "tokenizer_config.json")) is not None:
        require_tokenizer_files(file.parent)
    if words is not None:
        where = where if spec.tokenizer else f"model: {origin_of(spec)}"
        require_rows(*largest_id(words), config, where)


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
