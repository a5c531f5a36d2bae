"""A Llama or Mistral, pruned or not, as one gguf file: what llama.cpp reads.

Layers of one size give the architecture ``llama``. Layers that differ give ``deci``, the only
one of llama.cpp that computes the same and takes widths per layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from gguf import GGUFWriter, LlamaFileType, RopeScalingType

from effcompress.errors import SourceError
from effcompress.model.cache import atomically
from effcompress.model.gguf.tensors import (
    Entry,
    LayerWidths,
    Sizes,
    Source,
    entries_of,
    rope_base,
    rope_kind,
    rope_of,
    sizes_of,
)
from effcompress.model.gguf.vocabulary import Vocabulary, read_vocabulary
from effcompress.types import Config

MODEL_TYPES = ("llama", "mistral")
DType = Literal["F32", "F16"]
__all__ = ["LayerWidths", "why_not", "write_gguf"]


def why_not(config: Config) -> str:
    """Why the model of this config.json cannot be written; empty if it can."""
    model_type = config.get("model_type")
    if model_type not in MODEL_TYPES:
        known = " and ".join(MODEL_TYPES)
        return f"gguf files are written for {known} models, not for '{model_type}'"
    if (act := config.get("hidden_act") or "silu") not in ("silu", "swish"):
        return f"llama.cpp computes {model_type} models with silu, not with '{act}'"
    rope = rope_of(config)
    if (kind := rope_kind(rope)) not in ("default", "linear", "llama3"):
        return f"rope of the kind '{kind}' is not written to gguf; default, linear and llama3 are"
    rotated = rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    if rotated != 1.0:
        return f"llama.cpp rotates whole heads of {model_type} models, this one rotates a part"
    return ""


def write_gguf(
    path: Path,
    config: Config,
    layers: Sequence[LayerWidths],
    hidden: int,
    epsilon: float,
    tensors: Mapping[str, torch.Tensor],
    tokenizer_folder: Path | None,
    *,
    dtype: DType,
    name: str,
) -> int:
    """Writes the model to ``path``, whole or not at all; returns the size in bytes.

    ``config`` is the content of config.json; ``tensors`` have transformers' names and are read one
    at a time. Matrices are stored as ``dtype``, vectors (norms, biases) always as F32. ``layers``
    has one entry per layer of the source; removed layers are left out of the file. Without a
    ``tokenizer_folder`` the file holds no tokenizer and llama.cpp takes token ids only; of
    SentencePiece, llama.cpp also adds the first space after every special token inside a text.

    The stated context ends with the sliding window if there is one: llama.cpp's ``llama`` has no
    window and would attend to more than the model does.

    Raises:
        SourceError: llama.cpp would not compute the same (see ``why_not``), the tensors do not fit
            the widths, F16 cannot hold a value, the tokenizer is of an unknown kind, disk full.
    """
    if flaw := why_not(config):
        raise SourceError(flaw, where="config.json", fix="use the Hugging Face folder instead")
    source = Source(tensors)
    sizes = sizes_of(source, config, layers, hidden)
    entries = entries_of(source, config, layers, sizes)
    vocabulary = read_vocabulary(tokenizer_folder, sizes.rows, config)
    with atomically(path) as work:
        writer = GGUFWriter(work, "llama" if sizes.uniform else "deci")
        try:
            writer.add_name(name)
            _metadata(writer, config, sizes, epsilon, dtype)
            _write(writer, vocabulary, entries, dtype)
        finally:
            writer.close()
    return path.stat().st_size


def _metadata(
    writer: GGUFWriter, config: Config, sizes: Sizes, epsilon: float, dtype: DType
) -> None:
    # `llama` takes one number each, `deci` one per layer.
    columns = zip(*sizes.layers, strict=True)
    ffn, heads, kv_heads = (c[0] if sizes.uniform else list(c) for c in columns)
    writer.add_file_type(LlamaFileType.ALL_F32 if dtype == "F32" else LlamaFileType.MOSTLY_F16)
    writer.add_vocab_size(sizes.rows)
    writer.add_block_count(len(sizes.layers))
    writer.add_context_length(_context(config))
    writer.add_embedding_length(sizes.hidden)
    writer.add_feed_forward_length(ffn)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    # Stated, since llama.cpp derives it otherwise: hidden size over the heads of the first layer.
    writer.add_key_length(sizes.head_dim)
    writer.add_value_length(sizes.head_dim)
    writer.add_rope_dimension_count(sizes.head_dim)
    writer.add_layer_norm_rms_eps(epsilon)
    writer.add_rope_freq_base(rope_base(config))
    if rope_kind(rope_of(config)) == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope_of(config)["factor"]))


def _context(config: Config) -> int:
    context = int(config.get("max_position_embeddings") or 2048)
    # A Mistral whose config.json states no window has the default of transformers' class.
    default = 4096 if config["model_type"] == "mistral" else None
    window = config.get("sliding_window", default)
    return min(context, int(window)) if window else context


def _write(writer: GGUFWriter, vocabulary: Vocabulary, entries: list[Entry], dtype: DType) -> None:
    vocabulary.add_to(writer)
    matrix = np.dtype(np.float16 if dtype == "F16" else np.float32)
    kinds = [matrix if len(entry.shape) > 1 else np.dtype(np.float32) for entry in entries]
    # The header lists every tensor before the first value is read: one tensor at a time in memory,
    # where `GGUFWriter.add_tensor` would hold all of them.
    for entry, kind in zip(entries, kinds, strict=True):
        size = math.prod(entry.shape) * kind.itemsize
        writer.add_tensor_info(entry.name, entry.shape, kind, size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for entry, kind in zip(entries, kinds, strict=True):
        full = entry.values().detach().to("cpu", torch.float32).contiguous().numpy()
        with np.errstate(over="ignore"):  # above 65504, F16 becomes inf: refused below
            stored = full.astype(kind, copy=False)
        if not np.isfinite(stored).all():
            fix = "write F32" if np.isfinite(full).all() else None
            raise SourceError(f"{dtype} cannot hold its values", where=entry.name, fix=fix)
        writer.write_tensor_data(stored)
