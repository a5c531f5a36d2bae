"""Loads a source model in fp32 with its tokenizer, and hashes its weights."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from effcompress.distributed.rows import whole
from effcompress.errors import SourceError, first_line
from effcompress.model.by_rows import NotByRows, RowsOf, drawn, reading, reduced
from effcompress.model.cache import cache_root
from effcompress.model.classes import fields_of, mentions
from effcompress.model.exact import new_exact, open_exact
from effcompress.model.fetch import ensure
from effcompress.model.hub import Progress
from effcompress.model.integrity import read_manifest, read_object, untagged
from effcompress.model.lineage import is_pruned, parent_of
from effcompress.model.multimodal import TEXT_KEYS, TEXT_PARTS, text_of
from effcompress.model.scratch import require_unpadded
from effcompress.model.silence import explained, quietly, read_weights
from effcompress.model.source import (
    BYTES,
    config_of,
    from_scratch,
    kind_of,
    label_of,
    origin_of,
    require_agreement,
)
from effcompress.model.suitability import require_fields, require_rows, text_in
from effcompress.model.tokenizer import ByteTokenizer, HFTokenizer, open_tokenizer
from effcompress.spec import ModelSpec
from effcompress.types import Config, Fields


def config_of_module(module: Any) -> Fields:
    """Returns the configuration of a model of transformers as plain JSON values."""
    return json.loads(module.config.to_json_string(use_diff=False), object_hook=untagged)


@dataclass(frozen=True)
class LoadedModel:
    """The model that a run starts from.

    ``module`` is in fp32 and training mode, without KV cache; ``config`` is the configuration as
    loaded (plain JSON values); ``source`` is the origin of the weights in words; ``dtype`` is the
    type they were stored in (``bfloat16``, ``Q4_1``, ...); ``added_params`` counts zero biases that
    were added for a repair. Where only the rows of one process were loaded, ``rows`` has them by
    parameter, and these parameters are on the meta device.
    """

    module: nn.Module
    tokenizer: HFTokenizer | ByteTokenizer
    config: Fields
    source: str
    dtype: str
    added_params: int = 0
    rows: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])


def load(
    spec: ModelSpec,
    cache: Path | None = None,
    *,
    seed: int = 0,
    offline: bool = False,
    progress: Progress | None = None,
    rows_of: RowsOf | None = None,
) -> LoadedModel:
    """Loads the model, fetching it first if necessary. ``seed`` determines random weights; the
    global random state is not changed. With ``rows_of``, which rows of how many, no more than these
    and one whole parameter are in memory at a time (``LoadedModel.rows``).

    Raises:
        SourceError: it cannot be fetched, is incomplete, contradicts `shape`, or its weights do not
            fit its architecture exactly.
    """
    cache = cache or cache_root()
    folder = ensure(spec, cache, offline=offline, progress=progress)
    tokenizer = open_tokenizer(
        spec.tokenizer,
        folder,
        offline=offline,
        trust_remote_code=spec.trust_remote_code,
        progress=progress,
    )
    module: Any
    rows: Mapping[str, Tensor] = {}
    if folder is None or spec.random:
        module, rows = _random(spec, cache, folder, seed, rows_of, progress)
        what = "" if from_scratch(spec) else " weights"
        source, dtype = f"{label_of(spec)}{what}, seed {seed}", "float32"
    else:
        pruned = is_pruned(read_object(folder / "config.json") or {})
        read = open_exact if pruned else partial(_pretrained, spec=spec, name=label_of(spec))
        if rows_of is None:
            module = read(folder)
        else:
            with reading(rows_of) as found:
                module = read(folder)
            rows = found.rows(module)
        source, dtype = _describe(spec, folder)
    module.config._name_or_path = label_of(spec)  # instead of the cache folder
    _forget_strays(module.config)
    config = config_of_module(module)
    if not spec.random:
        require_agreement(spec.shape or {}, config, label_of(spec))
        require_fields(spec.shape or {}, config, config)
    named = spec.tokenizer or (label_of(spec) if folder else BYTES)
    require_rows(*tokenizer.largest, config, f"model.tokenizer: {named}")
    module.config.use_cache = False
    return LoadedModel(_ready(module), tokenizer, config, source, dtype, rows=rows)


_CACHED = ("sliding_window", "attention_chunk_size", "layer_types", "kv_sharing_modes")


def _forget_strays(config: Any) -> None:
    """Takes out what the cache of transformers reads, and the model's class does not: text would be
    generated with a window that the model has not.
    """
    kind = str(parent_of(config.to_dict()).get("model_type"))
    for name in _CACHED:
        if name in vars(config) and fields_of(kind) is not None and not mentions(kind, name):
            delattr(config, name)


def _random(
    spec: ModelSpec,
    cache: Path,
    folder: Path | None,
    seed: int,
    rows_of: RowsOf | None,
    say: Progress | None,
) -> tuple[nn.Module, Mapping[str, Tensor]]:
    """Builds the model of ``spec`` with random weights, initialised as transformers does; of these
    only the rows that ``rows_of`` names, if it is given.
    """
    config = config_of(spec, cache)
    if config is None:
        raise SourceError("its config.json cannot be read", where=f"model: {origin_of(spec)}")
    if is_pruned(config):
        return _drawn(lambda: new_exact(config), seed, rows_of, say)
    built = _configuration(config)
    from transformers import AutoModelForCausalLM

    real = read_object(folder / "config.json") if spec.folder and folder is not None else None
    if folder is not None and real is not None and text_of(real) is None:
        require_unpadded(folder, built.vocab_size)
    build = partial(AutoModelForCausalLM.from_config, built, dtype=torch.float32)
    return _drawn(build, seed, rows_of, say)


_UNBUILT = (ValueError, TypeError, RuntimeError, AssertionError, LookupError, ImportError)
"""What classes raise where they cannot be built: for want of a package, too."""


def _drawn(
    build: Callable[[], Any], seed: int, rows_of: RowsOf | None, say: Progress | None
) -> tuple[nn.Module, Mapping[str, Tensor]]:
    with torch.random.fork_rng(devices=[]), quietly():
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also reseed GPUs
        try:
            if rows_of is None:
                return build(), {}
            try:
                return drawn(build, rows_of)
            except NotByRows:
                torch.default_generator.manual_seed(seed)
                module = build()
            if say:
                say("this class draws its weights together: each process holds all of them once")
            return module, reduced(module, rows_of)
        except _UNBUILT as error:
            said = first_line(error) or type(error).__name__
            raise SourceError(
                f"transformers cannot build this model: {said}", where="model.shape"
            ) from error


def _configuration(config: Config) -> Any:
    """Makes a configuration object. Raises SourceError."""
    from transformers import AutoConfig

    fields = dict(config)
    model_type = fields.pop("model_type", None)
    try:
        return AutoConfig.for_model(str(model_type), **fields)
    except Exception as error:
        lines = " ".join(line.strip() for line in str(error).splitlines()[:2])
        if lines.startswith("Unrecognized model identifier"):
            lines = f"transformers knows no model_type '{model_type}'"
        raise SourceError(lines, where="model.shape") from error


def _pretrained(folder: Path, *, spec: ModelSpec, name: str) -> nn.Module:
    from transformers import AutoModelForCausalLM

    _require_generation(folder, name)
    text = text_in(folder)
    inside = {"config": _configuration(text), "key_mapping": TEXT_KEYS} if text else {}
    with explained("cannot be loaded", where=f"model: {name}"), quietly():
        module, kind, keys = read_weights(
            AutoModelForCausalLM,
            folder,
            of=TEXT_PARTS if text else ("",),
            trust_remote_code=spec.trust_remote_code,
            **inside,
        )
    if keys:
        more = f" and {len(keys) - 4} more" if len(keys) > 4 else ""
        raise SourceError(
            f"weights and architecture do not fit: {kind} {', '.join(keys[:4])}{more}",
            where=f"model: {name}",
            fix="config.json and the weights must belong together; nothing is initialised anew",
        )
    return module


def _require_generation(folder: Path, name: str) -> None:
    """Raises SourceError for a generation_config.json that transformers do not accept: before they
    read the weights, after which they would.
    """
    from transformers import GenerationConfig

    if (folder / "generation_config.json").exists():
        fix = "mend or remove that key, or remove the file: it only says how text is generated"
        what = "generation_config.json cannot be used"
        with explained(what, where=f"model: {name}", fix=fix), quietly():
            GenerationConfig.from_pretrained(str(folder))


def _describe(spec: ModelSpec, folder: Path) -> tuple[str, str]:
    """The source in words, and the type its weights were stored in."""
    kind = kind_of(spec)
    if kind in ("gguf", "wheel"):
        dtype = str((read_manifest(folder) or {}).get("dtype", "unknown"))
        return f"{label_of(spec)} ({dtype} weights, dequantised)", dtype
    config = read_object(folder / "config.json") or {}
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    inside = "the text model of " if text_of(config) else ""
    # A snapshot folder is named by its commit.
    return inside + (f"{spec.hub}@{folder.name}" if kind == "hub" else label_of(spec)), dtype


def _ready(module: nn.Module) -> nn.Module:
    """Copies every tensor into fp32 memory of its own, for training mode. Tied weights are one
    parameter and stay tied.
    """
    # A view into a memory-mapped file has the file's alignment, and vectorised sums over it can
    # differ in the last bit: without the copy, two loads of one model may not be reproducible.
    for parameter in module.parameters():
        parameter.data = parameter.data.to(
            torch.float32, copy=True, memory_format=torch.contiguous_format
        )
        parameter.requires_grad_(True)
    for buffer in module.buffers():
        buffer.data = buffer.data.clone()
    return module.train()


def fingerprint(module: nn.Module) -> str:
    """Hashes all parameters, and buffers that are stored with them, to 16 hexadecimal digits, equal
    exactly for equal names, shapes, types and values. A bias of zeros counts like none, since
    repairs start from added zero biases. What only the configuration states (a rotary base, for
    example) is not included. Reads every weight once.
    """
    said = hashlib.sha256()
    stored = module.state_dict().keys()
    buffers = ((name, b) for name, b in module.named_buffers() if name in stored)
    for name, p in (*module.named_parameters(), *buffers):
        value = whole(p.detach())
        if name.endswith(".bias") and not value.any():
            continue
        said.update(f"{name} {p.dtype} {tuple(p.shape)} ".encode())
        flat = value.cpu().contiguous().reshape(-1)
        said.update(flat.view(torch.uint8).numpy().data)
    return said.hexdigest()[:16]
