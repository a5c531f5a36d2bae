"""A Llama or Mistral, pruned or not, as one gguf file: what llama.cpp reads.

Layers of one size give the architecture ``llama``. Layers that differ give ``deci``, the only
one of llama.cpp that computes the same and takes widths per layer. Names of tensors come from
gguf's own tables. What those do not know is here: widths per layer, layers that are left out, and
the order of channels within a head.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from gguf import (
    MODEL_ARCH,
    GGUFWriter,
    LlamaFileType,
    RopeScalingType,
    TensorNameMap,
    get_tensor_name_map,
)

from effcompress.errors import SourceError
from effcompress.model.cache import atomically
from effcompress.model.gguf.geometry import context_of, rope_base, rope_kind, rope_of
from effcompress.model.gguf.offered import why_not
from effcompress.model.gguf.vocabulary import Vocabulary, read_vocabulary
from effcompress.types import Config

DType = Literal["F32", "F16"]
_WHOLE = (
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_inp_shexp.weight",
    "position_embd.weight",
    "shortconv.conv.weight",
    "ssm_conv1d.weight",
    "ssm_a",
    "ssm_d",
    ".bias",  # of experts, which have two dimensions
)


class LayerWidths(NamedTuple):
    """Channels and heads of one layer; 0 where the block is removed."""

    ffn: int
    heads: int
    kv_heads: int


@dataclass(frozen=True)
class Entry:
    """One tensor of the file; ``values`` reads it when it is written, so that one at a time is in
    memory.
    """

    name: str
    shape: tuple[int, ...]
    values: Callable[[], torch.Tensor]


@dataclass(frozen=True)
class Sizes:
    """Sizes that the header states; ``layers`` are those that are written."""

    layers: list[LayerWidths]
    hidden: int
    head_dim: int
    rows: int

    @property
    def uniform(self) -> bool:
        return len(set(self.layers)) == 1


class Source:
    """The tensors by name, and which of them nothing has taken yet."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.tensors = tensors
        self.left = set(tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Raises SourceError if there is no such tensor."""
        if name not in self.tensors:
            raise SourceError("this weight is missing", where=name)
        return tuple(self.tensors[name].shape)

    def take(self, name: str, own: str, shape: tuple[int, ...]) -> Entry:
        """Returns the tensor under its ``own`` name. Raises SourceError if the shape differs."""
        if (found := self.shape(name)) != shape:
            raise SourceError(
                f"the shape is {list(found)}, the widths say {list(shape)}", where=name
            )
        self.left.discard(name)
        return Entry(own, shape, lambda: self.tensors[name])


def sizes_of(source: Source, config: Config, layers: Sequence[LayerWidths], hidden: int) -> Sizes:
    """Checks the widths and completes them to what llama.cpp can open. Raises SourceError."""
    for i, w in enumerate(layers):
        if min(w.ffn, w.heads, w.kv_heads) < 0 or bool(w.heads) != bool(w.kv_heads):
            raise SourceError(f"no such widths: {w}", where=f"layer {i}")
        if w.heads and w.heads % w.kv_heads:
            raise SourceError(
                f"{w.heads} heads cannot share {w.kv_heads} KV heads evenly", where=f"layer {i}"
            )
    # Without FFN channels llama.cpp skips the layer's attention as well; one of zeros adds nothing.
    kept = [LayerWidths(max(w.ffn, 1), w.heads, w.kv_heads) for w in layers if w.ffn or w.heads]
    if not kept:
        raise SourceError("no layer is left, llama.cpp needs one", where="layers")
    if not kept[0].heads:
        # llama.cpp reads the head size of every layer from the first one: one head of zeros there.
        kept[0] = LayerWidths(kept[0].ffn, 1, 1)
    rows = source.shape("model.embed_tokens.weight")[0]
    return Sizes(kept, hidden, _head_dim(source, config, layers), rows)


def _head_dim(source: Source, config: Config, layers: Sequence[LayerWidths]) -> int:
    """Width of a head. Raises SourceError if it is odd: rope rotates channels in pairs."""
    found = config.get("head_dim")
    if not found:
        # hidden_size / heads is wrong where hidden_size is the pruned one, so the weights decide.
        first = next((i for i, w in enumerate(layers) if w.heads), None)
        if first is None:
            found = int(config["hidden_size"]) // int(config["num_attention_heads"])
        else:
            rows = source.shape(f"model.layers.{first}.self_attn.q_proj.weight")[0]
            found = rows // layers[first].heads
    if found % 2:
        raise SourceError(f"heads have {found} channels, rope needs an even number", where="model")
    return int(found)


def _layer(
    source: Source, names: TensorNameMap, sizes: Sizes, number: int, block: int, stated: LayerWidths
) -> Iterator[Entry]:
    """Tensors of layer ``number`` of the source, ``block`` of the file. Where a block is not
    ``stated``, they add nothing: zeros, and ones for its norm.
    """
    w, hidden = sizes.layers[block], sizes.hidden
    q, kv = w.heads * sizes.head_dim, w.kv_heads * sizes.head_dim
    attention = (
        ("input_layernorm", (hidden,), 0),
        ("self_attn.q_proj", (q, hidden), w.heads),
        ("self_attn.k_proj", (kv, hidden), w.kv_heads),
        ("self_attn.v_proj", (kv, hidden), 0),
        ("self_attn.o_proj", (hidden, q), 0),
    )
    feed_forward = (
        ("post_attention_layernorm", (hidden,), 0),
        ("mlp.gate_proj", (w.ffn, hidden), 0),
        ("mlp.up_proj", (w.ffn, hidden), 0),
        ("mlp.down_proj", (hidden, w.ffn), 0),
    )
    parts = [(part, stated.heads > 0) for part in attention if w.heads]
    parts += [(part, stated.ffn > 0) for part in feed_forward]
    for (module, shape, heads), there in parts:
        own = names.get_name(f"model.layers.{block}.{module}")
        theirs = f"model.layers.{number}.{module}"
        if not there:
            fill = torch.zeros if len(shape) == 2 else torch.ones
            yield Entry(f"{own}.weight", shape, partial(fill, shape))
            continue
        biased = len(shape) == 2 and f"{theirs}.bias" in source.tensors
        for leaf, size in (("weight", shape), ("bias", shape[:1]))[: 1 + biased]:
            entry = source.take(f"{theirs}.{leaf}", f"{own}.{leaf}", size)
            yield interleaved(entry, heads) if heads else entry


def entries_of(
    source: Source, config: Config, layers: Sequence[LayerWidths], sizes: Sizes
) -> list[Entry]:
    """All tensors of the file in order. Raises SourceError for one that is missing, does not fit
    or would not be written.
    """
    # llama.cpp names the tensors of `deci` and `llama` alike.
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, len(sizes.layers))
    tied = bool(config.get("tie_word_embeddings", False))

    def whole(module: str, shape: tuple[int, ...]) -> Entry:
        return source.take(f"{module}.weight", f"{names.get_name(module)}.weight", shape)

    table = (sizes.rows, sizes.hidden)
    found = [whole("model.embed_tokens", table)]
    if freqs := rope_factors(config, sizes.head_dim):
        found.append(Entry("rope_freqs.weight", (len(freqs),), lambda: torch.tensor(freqs)))
    kept = [i for i, w in enumerate(layers) if w.ffn or w.heads]
    for block, number in enumerate(kept):
        found += _layer(source, names, sizes, number, block, layers[number])
    found.append(whole("model.norm", (sizes.hidden,)))
    found += [] if tied else [whole("lm_head", table)]
    # Norms of absent blocks, tables computed from the configuration, the second name of tied
    # embeddings.
    unused, second = ("layernorm.weight", "rotary_emb.inv_freq"), "lm_head.weight" if tied else ""
    left = sorted(source.left - {second})
    if forgotten := [name for name in left if not name.endswith(unused)]:
        raise SourceError(
            "this weight has no place in the file: its block is said to be gone, or llama.cpp has "
            "no such weight",
            where=forgotten[0],
        )
    return found


def interleaved(entry: Entry, heads: int) -> Entry:
    """The rows of q or k in llama.cpp's order of channels.

    Rope rotates channels in pairs: transformers pairs ``i`` with ``i + head_dim / 2``, llama.cpp
    ``2 i`` with ``2 i + 1``. Rows ``[heads, 2, head_dim / 2]`` become ``[heads, head_dim / 2, 2]``;
    q and k change alike, so their dot products stay what they were.
    """

    def values() -> torch.Tensor:
        halves = entry.values().unflatten(0, (heads, 2, -1))
        return halves.transpose(1, 2).flatten(0, 2)

    return Entry(entry.name, entry.shape, values)


def rope_factors(config: Config, head_dim: int) -> list[float]:
    """Llama 3's divisors of the rotary frequencies, one per pair of channels: llama.cpp reads them
    as a tensor. Empty for other kinds of rope.
    """
    rope = rope_of(config)
    if rope_kind(rope) != "llama3":
        return []
    context = float(rope["original_max_position_embeddings"])
    factor, low, high = (float(rope[k]) for k in ("factor", "low_freq_factor", "high_freq_factor"))
    found = []
    for channel in range(0, head_dim, 2):
        # Frequencies that turn often within the old context stay, rare ones are divided by
        # `factor`; between `low` and `high` turns the divisor is interpolated.
        turns = context / (2 * math.pi * rope_base(config) ** (channel / head_dim))
        smooth = min(max((turns - low) / (high - low), 0.0), 1.0)
        found.append(1 / ((1 - smooth) / factor + smooth))
    return found


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

    def header(writer: GGUFWriter) -> None:
        _metadata(writer, config, sizes, epsilon)

    kind = "llama" if sizes.uniform else "deci"
    return store(path, kind, header, vocabulary, entries, dtype=dtype, name=name)


def _metadata(writer: GGUFWriter, config: Config, sizes: Sizes, epsilon: float) -> None:
    # `llama` takes one number each, `deci` one per layer.
    columns = zip(*sizes.layers, strict=True)
    ffn, heads, kv_heads = (c[0] if sizes.uniform else list(c) for c in columns)
    writer.add_vocab_size(sizes.rows)
    writer.add_block_count(len(sizes.layers))
    writer.add_context_length(context_of(config))
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


def store(
    path: Path,
    architecture: str,
    header: Callable[[GGUFWriter], None],
    vocabulary: Vocabulary,
    entries: list[Entry],
    *,
    dtype: DType,
    name: str,
) -> int:
    """Writes a file, whole or not at all; ``header`` adds what the architecture states. Returns the
    size in bytes. Raises SourceError for a value that ``dtype`` cannot hold.
    """
    with atomically(path) as work:
        writer = GGUFWriter(work, architecture)
        try:
            writer.add_name(name)
            kind = LlamaFileType.ALL_F32 if dtype == "F32" else LlamaFileType.MOSTLY_F16
            writer.add_file_type(kind)
            header(writer)
            vocabulary.add_to(writer)
            _write(writer, entries, dtype)
        finally:
            writer.close()
    return path.stat().st_size


def _write(writer: GGUFWriter, entries: list[Entry], dtype: DType) -> None:
    matrix, full_width = (
        np.dtype(np.float16 if dtype == "F16" else np.float32),
        np.dtype(np.float32),
    )
    # llama.cpp multiplies by norms and adds tables of positions as F32 alone.
    kinds = [
        matrix if len(e.shape) > 1 and not e.name.endswith(_WHOLE) else full_width for e in entries
    ]
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
