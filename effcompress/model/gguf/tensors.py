"""The tensors of a gguf file: names, order and layout that llama.cpp expects of a Llama.

Names come from gguf's own tables. What those do not know is here: widths per layer, layers that are
left out, and the order of channels within a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from gguf import MODEL_ARCH, TensorNameMap, get_tensor_name_map

from effcompress.errors import SourceError
from effcompress.types import Config


@dataclass(frozen=True)
class LayerWidths:
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

    def take(self, name: str, shape: tuple[int, ...]) -> Callable[[], torch.Tensor]:
        """Returns a reader of the tensor. Raises SourceError if it has another shape."""
        if (found := self.shape(name)) != shape:
            raise SourceError(
                f"the shape is {list(found)}, the widths say {list(shape)}", where=name
            )
        self.left.discard(name)
        return lambda: self.tensors[name]


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


@dataclass(frozen=True)
class _Layer:
    """Writes the tensors of one layer: number ``number`` of the source, ``block`` of the file."""

    source: Source
    names: TensorNameMap
    number: int
    block: int
    sizes: Sizes

    @property
    def widths(self) -> LayerWidths:
        return self.sizes.layers[self.block]

    def attention(self, present: bool) -> Iterator[Entry]:
        """Norm, q, k, v and o; zeros where the source has no attention here."""
        w, hidden = self.widths, self.sizes.hidden
        q, kv = w.heads * self.sizes.head_dim, w.kv_heads * self.sizes.head_dim
        yield self._norm("input_layernorm", present)
        for part, rows, heads in (("q", q, w.heads), ("k", kv, w.kv_heads), ("v", kv, 0)):
            for entry in self._linear(f"self_attn.{part}_proj", (rows, hidden), present):
                yield interleaved(entry, heads) if heads else entry
        yield from self._linear("self_attn.o_proj", (hidden, q), present)

    def feed_forward(self, present: bool) -> Iterator[Entry]:
        """Norm, gate, up and down; zeros where the source has no feed-forward here."""
        ffn, hidden = self.widths.ffn, self.sizes.hidden
        yield self._norm("post_attention_layernorm", present)
        for part, shape in (
            ("gate", (ffn, hidden)),
            ("up", (ffn, hidden)),
            ("down", (hidden, ffn)),
        ):
            yield from self._linear(f"mlp.{part}_proj", shape, present)

    def _named(self, module: str) -> tuple[str, str]:
        """The module's name in the file, and in the source."""
        own = self.names.get_name(f"model.layers.{self.block}.{module}")
        return str(own), f"model.layers.{self.number}.{module}"

    def _norm(self, module: str, present: bool) -> Entry:
        (own, theirs), shape = self._named(module), (self.sizes.hidden,)
        values = (
            self.source.take(f"{theirs}.weight", shape) if present else lambda: torch.ones(shape)
        )
        return Entry(f"{own}.weight", shape, values)

    def _linear(self, module: str, shape: tuple[int, int], present: bool) -> Iterator[Entry]:
        """Weight and, where there is one, bias."""
        own, theirs = self._named(module)
        if not present:
            yield Entry(f"{own}.weight", shape, lambda: torch.zeros(shape))
            return
        yield Entry(f"{own}.weight", shape, self.source.take(f"{theirs}.weight", shape))
        if f"{theirs}.bias" in self.source.tensors:
            bias = self.source.take(f"{theirs}.bias", shape[:1])
            yield Entry(f"{own}.bias", shape[:1], bias)


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
        return Entry(
            f"{names.get_name(module)}.weight", shape, source.take(f"{module}.weight", shape)
        )

    table = (sizes.rows, sizes.hidden)
    found = [whole("model.embed_tokens", table)]
    if freqs := _rope_factors(config, sizes.head_dim):
        found.append(Entry("rope_freqs.weight", (len(freqs),), lambda: torch.tensor(freqs)))
    kept = [i for i, w in enumerate(layers) if w.ffn or w.heads]
    for block, number in enumerate(kept):
        layer = _Layer(source, names, number, block, sizes)
        if layer.widths.heads:
            found += layer.attention(layers[number].heads > 0)
        found += layer.feed_forward(layers[number].ffn > 0)
    found.append(whole("model.norm", (sizes.hidden,)))
    found += [] if tied else [whole("lm_head", table)]
    if forgotten := sorted(name for name in source.left if not _without_effect(name, tied)):
        raise SourceError(
            "this weight has no place in the file: its block is said to be gone, or llama.cpp has "
            "no such weight",
            where=forgotten[0],
        )
    return found


def _without_effect(name: str, tied: bool) -> bool:
    """Norms of absent blocks, the second name of tied embeddings, tables computed from the
    configuration.
    """
    if name == "lm_head.weight":
        return tied
    return name.endswith(("layernorm.weight", "rotary_emb.inv_freq"))


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


def rope_of(config: Config) -> Config:
    """The rope section, which older files call ``rope_scaling``; empty when there is none."""
    return config.get("rope_parameters") or config.get("rope_scaling") or {}


def rope_kind(rope: Config) -> str:
    """``default``, ``linear``, ``llama3``, ..."""
    return str(rope.get("rope_type") or rope.get("type") or "default")


def rope_base(config: Config) -> float:
    """Base of the rotary frequencies; 10000 where nothing states it."""
    return float(rope_of(config).get("rope_theta") or config.get("rope_theta") or 10000.0)


def _rope_factors(config: Config, head_dim: int) -> list[float]:
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
