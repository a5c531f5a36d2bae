"""Writes a model as one gguf file, which llama.cpp reads."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import MODEL_ARCH

from effcompress import processes
from effcompress.errors import RunError, SourceError
from effcompress.export.forms import Form, form, stock_form
from effcompress.model.gguf.architectures import ARCHITECTURES
from effcompress.model.gguf.geometry import is_square
from effcompress.model.gguf.offered import BY_LAYER, said_of, why_not
from effcompress.model.gguf.stock import write_stock
from effcompress.model.gguf.vocabulary import read_vocabulary
from effcompress.model.gguf.write import DType, LayerWidths, write_gguf
from effcompress.network.pruned_model import PrunedModel
from effcompress.record import events
from effcompress.record.log import Log
from effcompress.removal.modules import depth_fields
from effcompress.types import Config, Shapes, in_layer

_TOKENIZER = "effcompress-tokenizer"


def require_words(pruned: PrunedModel, tokenizer: Any) -> None:
    """Raises SourceError for a tokenizer that llama.cpp cannot use, before anything is trained."""
    with processes.scratch(_TOKENIZER) as words:
        tokenizer.save(words)
        read_vocabulary(words, pruned.axes.widths["vocab"], pruned.config)


def add(pruned: PrunedModel, tokenizer: Any, target: Path, dtype: DType, log: Log) -> None:
    """Writes the file of a run beside its folder's other ones, and records it. Raises as
    ``write`` does.
    """
    log.phase("writing the gguf file")
    made = write(pruned, tokenizer, target, dtype, target.stem)
    log.event(events.Gguf(file=target.name, dtype=dtype, why=made.why, bytes=made.bytes))


@dataclass(frozen=True)
class File:
    """A gguf file that was written."""

    bytes: int
    why: str = ""
    """What of the model is stored otherwise, zeros that pad it, or computed a little otherwise."""
    by_block: bool = True
    """All widths are multiples of 32, which quantisation wants."""


def write(pruned: PrunedModel, tokenizer: Any, target: Path, dtype: DType, name: str) -> File:
    """Writes the model to ``target``, under the title ``name``. Layers of unequal widths stay as
    they are where llama.cpp reads a width for every layer, else they are padded with zeros as the
    form ``padded`` is.

    Raises SourceError where llama.cpp would not compute the same, RunError where no stock class
    holds the model.
    """
    if why := why_not(pruned.config):
        raise SourceError(why, where="gguf")
    target.parent.mkdir(parents=True, exist_ok=True)
    with processes.scratch(_TOKENIZER) as words:
        tokenizer.save(words)
        made = _stock(pruned)
        if made is None:
            return _by_layer(pruned, words, target, dtype, name)
        config = _config(made)
        size = write_stock(target, config, made.tensors, words, dtype=dtype, name=name)
        why = "; ".join(filter(None, (made.why, said_of(config))))
        return File(size, why, _by_block(made.tensors.shapes))


def _stock(pruned: PrunedModel) -> Form | None:
    """The stock class whose architecture llama.cpp has; None where one with a width for every layer
    computes the same and is needed, or is the type's own.
    """
    kind = str(pruned.config["model_type"])
    if kind not in BY_LAYER:
        return stock_form(pruned, "auto")
    if ARCHITECTURES[kind].arch == MODEL_ARCH.LLAMA:
        return None
    try:
        made = form(pruned, "uniform")
    except RunError:
        return None
    return made if is_square(_config(made)) else None


def _config(made: Form) -> Config:
    stored: Any = made.skeleton
    return json.loads(stored.config.to_json_string(use_diff=False))


def _by_layer(pruned: PrunedModel, words: Path, target: Path, dtype: DType, name: str) -> File:
    axes, family = pruned.axes, pruned.family
    config = {**pruned.config, **depth_fields(family, pruned.config, axes.depth.layers)}
    layers = []
    for i in axes.depth.layers:
        wide = in_layer(axes.widths, i)
        kv = wide.get("attention", 0)
        layers.append(LayerWidths(wide.get("ffn", 0), kv * wide.get("query", 0), kv))
    tensors = {n: p.detach().cpu() for n, p in pruned.parameters().items()}
    epsilon = pruned.norms()[0].epsilon  # all of these types have norms
    shape = config, layers, axes.widths["hidden"], epsilon
    size = write_gguf(target, *shape, tensors, words, dtype=dtype, name=name)
    return File(size, said_of(config), _by_block(axes.shapes))


def _by_block(shapes: Shapes) -> bool:
    return all(shape[-1] % 32 == 0 for shape in shapes.values() if len(shape) > 1)
