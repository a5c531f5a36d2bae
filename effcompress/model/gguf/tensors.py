"""What a gguf file calls the weights of a Llama, in which order it has them, and how it stores the
heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from effcompress.errors import SourceError

_ATTENTION = {"q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output"}
_FFN = ("gate", "up", "down")


@dataclass(frozen=True)
class LayerWidths:
    """Channels and heads of one layer; 0 says that the block is gone."""

    ffn: int
    heads: int
    kv_heads: int


@dataclass(frozen=True)
class Entry:
    """One tensor of the file, computed when its turn comes."""

    name: str
    shape: tuple[int, ...]
    values: Callable[[], torch.Tensor]


@dataclass(frozen=True)
class Sizes:
    """What holds for the whole file; ``layers`` are those that are written."""

    layers: list[LayerWidths]
    hidden: int
    head_dim: int
    rows: int

    @property
    def uniform(self) -> bool:
        return len(set(self.layers)) == 1


class Source:
    """The tensors by name, and which of them have been asked for."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.tensors = tensors
        self.left = set(tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Raises SourceError if there is no such tensor."""
        if name not in self.tensors:
            raise SourceError("this weight is missing", where=name)
        return tuple(self.tensors[name].shape)

    def take(self, name: str, shape: tuple[int, ...]) -> Callable[[], torch.Tensor]:
        """What reads the tensor. Raises SourceError if it has another shape."""
        if (found := self.shape(name)) != shape:
            raise SourceError(
                f"the shape is {list(found)}, the widths say {list(shape)}", where=name
            )
        self.left.discard(name)
        return lambda: self.tensors[name]


def sizes_of(
    source: Source, config: Mapping[str, Any], layers: Sequence[LayerWidths], hidden: int
) -> Sizes:
    for i, w in enumerate(layers):
        if min(w.ffn, w.heads, w.kv_heads) < 0 or bool(w.heads) != bool(w.kv_heads):
            raise SourceError(f"no such widths: {w}", where=f"layer {i}")
        if w.heads and w.heads % w.kv_heads:
            raise SourceError(
                f"{w.heads} heads cannot share {w.kv_heads} KV heads evenly", where=f"layer {i}"
            )
    kept = [_on_file(w) for w in layers if w.ffn or w.heads]
    if not kept:
        raise SourceError("no layer is left, llama.cpp needs one", where="layers")
    if not kept[0].heads:  # llama.cpp takes the size of all heads from the first layer
        kept[0] = LayerWidths(kept[0].ffn, 1, 1)
    rows = source.shape("model.embed_tokens.weight")[0]
    return Sizes(kept, hidden, _head_dim(source, config, layers), rows)


def _on_file(widths: LayerWidths) -> LayerWidths:
    # llama.cpp skips the attention too where there are no FFN channels; one of zeros adds nothing.
    return LayerWidths(max(widths.ffn, 1), widths.heads, widths.kv_heads)


def _head_dim(source: Source, config: Mapping[str, Any], layers: Sequence[LayerWidths]) -> int:
    """Raises SourceError if it is odd: there is nothing to rotate a channel against."""
    found = config.get("head_dim")
    if not found:  # the configuration may have the pruned hidden size, so the weights tell
        first = next((i for i, w in enumerate(layers) if w.heads), None)
        if first is None:
            found = int(config["hidden_size"]) // int(config["num_attention_heads"])
        else:
            rows = source.shape(f"model.layers.{first}.self_attn.q_proj.weight")[0]
            found = rows // layers[first].heads
    if found % 2:
        raise SourceError(f"heads have {found} channels, rope needs an even number", where="model")
    return int(found)


def entries_of(
    source: Source, config: Mapping[str, Any], layers: Sequence[LayerWidths], sizes: Sizes
) -> list[Entry]:
    """All tensors of the file in order. Raises SourceError for one that misses, does not fit or
    would be forgotten.
    """
    table = (sizes.rows, sizes.hidden)
    found = [Entry("token_embd.weight", table, source.take("model.embed_tokens.weight", table))]
    if freqs := _rope_factors(config, sizes.head_dim):
        found.append(Entry("rope_freqs.weight", (len(freqs),), lambda: torch.tensor(freqs)))
    kept = [i for i, w in enumerate(layers) if w.ffn or w.heads]
    for block, (i, widths) in enumerate(zip(kept, sizes.layers, strict=True)):
        prefix = f"model.layers.{i}."
        if widths.heads:
            present = layers[i].heads > 0
            found += _attention(source, block, prefix, widths, sizes, present)
        found += _feed_forward(source, block, prefix, widths.ffn, sizes.hidden, layers[i].ffn > 0)
    norm = source.take("model.norm.weight", (sizes.hidden,))
    found.append(Entry("output_norm.weight", (sizes.hidden,), norm))
    if not config.get("tie_word_embeddings", False):
        found.append(Entry("output.weight", table, source.take("lm_head.weight", table)))
    if forgotten := sorted(n for n in source.left if not _may_go(n, config)):
        raise SourceError(
            "this weight has no place in the file: its block is said to be gone, or llama.cpp has "
            "no such weight",
            where=forgotten[0],
        )
    return found


def _may_go(name: str, config: Mapping[str, Any]) -> bool:
    """Weights without effect: norms of absent blocks, the twin of tied embeddings, tables."""
    if name == "lm_head.weight":
        return bool(config.get("tie_word_embeddings", False))
    return name.endswith(("layernorm.weight", "rotary_emb.inv_freq"))


def _attention(
    source: Source, block: int, prefix: str, w: LayerWidths, sizes: Sizes, present: bool
) -> list[Entry]:
    q, kv, hidden = w.heads * sizes.head_dim, w.kv_heads * sizes.head_dim, sizes.hidden
    shapes = {"q": (q, hidden), "k": (kv, hidden), "v": (kv, hidden), "o": (hidden, q)}
    turned = {"q": w.heads, "k": w.kv_heads}
    found = [_norm(source, f"blk.{block}.attn_norm", f"{prefix}input_layernorm", hidden, present)]
    for part, shape in shapes.items():
        own, theirs = f"blk.{block}.{_ATTENTION[part]}", f"{prefix}self_attn.{part}_proj"
        for entry in _linear(source, own, theirs, shape, present):
            heads = turned.get(part)
            found.append(interleaved(entry, heads) if heads else entry)
    return found


def _feed_forward(
    source: Source, block: int, prefix: str, ffn: int, hidden: int, present: bool
) -> list[Entry]:
    theirs = f"{prefix}post_attention_layernorm"
    found = [_norm(source, f"blk.{block}.ffn_norm", theirs, hidden, present)]
    for part in _FFN:
        shape = (hidden, ffn) if part == "down" else (ffn, hidden)
        own, name = f"blk.{block}.ffn_{part}", f"{prefix}mlp.{part}_proj"
        found += _linear(source, own, name, shape, present)
    return found


def _norm(source: Source, own: str, theirs: str, hidden: int, present: bool) -> Entry:
    shape = (hidden,)
    if present:
        return Entry(f"{own}.weight", shape, source.take(f"{theirs}.weight", shape))
    return Entry(f"{own}.weight", shape, lambda: torch.ones(shape))


def _linear(
    source: Source, own: str, theirs: str, shape: tuple[int, int], present: bool
) -> list[Entry]:
    """Weight and, where there is one, bias; zeros for a block that only fills a gap."""
    if not present:
        return [Entry(f"{own}.weight", shape, lambda: torch.zeros(shape))]
    found = [Entry(f"{own}.weight", shape, source.take(f"{theirs}.weight", shape))]
    if f"{theirs}.bias" in source.tensors:
        bias = source.take(f"{theirs}.bias", shape[:1])
        found.append(Entry(f"{own}.bias", shape[:1], bias))
    return found


def interleaved(entry: Entry, heads: int) -> Entry:
    """llama.cpp rotates neighbouring channels of a head, transformers one of each half."""

    def values() -> torch.Tensor:
        halves = entry.values().unflatten(0, (heads, 2, -1))
        return halves.transpose(1, 2).flatten(0, 2)

    return Entry(entry.name, entry.shape, values)


def rope_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return config.get("rope_parameters") or config.get("rope_scaling") or {}


def rope_kind(rope: Mapping[str, Any]) -> str:
    return str(rope.get("rope_type") or rope.get("type") or "default")


def rope_base(config: Mapping[str, Any]) -> float:
    return float(rope_of(config).get("rope_theta") or config.get("rope_theta") or 10000.0)


def _rope_factors(config: Mapping[str, Any], head_dim: int) -> list[float]:
    """Llama 3's divisors of the frequencies, one per pair of channels; empty for other kinds."""
    rope = rope_of(config)
    if rope_kind(rope) != "llama3":
        return []
    context = float(rope["original_max_position_embeddings"])
    factor, low, high = (float(rope[k]) for k in ("factor", "low_freq_factor", "high_freq_factor"))
    found = []
    for channel in range(0, head_dim, 2):
        turns = context / (2 * math.pi * rope_base(config) ** (channel / head_dim))
        smooth = min(max((turns - low) / (high - low), 0.0), 1.0)
        found.append(1 / ((1 - smooth) / factor + smooth))
    return found
