"""A model of a stock class of transformers as one gguf file.

Names of tensors come from gguf's own tables. What those do not say is here and in
``architectures``: the order of channels, fused matrices, experts, and windows.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from gguf import (
    MODEL_ARCH,
    MODEL_TENSOR,
    TENSOR_NAMES,
    GGUFWriter,
    RopeScalingType,
    TensorNameMap,
    get_tensor_name_map,
)
from torch import Tensor

from effcompress.errors import SourceError
from effcompress.model.gguf.architectures import ARCHITECTURES, Architecture
from effcompress.model.gguf.geometry import (
    context_of,
    epsilon_of,
    first,
    head_dim,
    heads_of,
    layers_of,
    rope_base,
    rope_kind,
    rope_of,
    windows_fit,
)
from effcompress.model.gguf.mixers import of_keys_and_gate
from effcompress.model.gguf.offered import chosen, why_not, why_not_sizes
from effcompress.model.gguf.vocabulary import read_vocabulary
from effcompress.model.gguf.write import DType, Entry, interleaved, rope_factors, store
from effcompress.types import Config

T = MODEL_TENSOR
Shapes = Mapping[str, tuple[int, ...]]
_EXPERTS = re.compile(r"layers\.(\d+)\..*experts\.(gate_up_proj|down_proj)(_bias)?$")
_OF_HEAD = re.compile(r"\.norms\.\d+\.")
"""StableLM has a norm of its own for every head."""
_LATENT_EPSILON = 1e-6
"""Epsilon of norms of latent vectors, which no configuration states."""
_UNUSED = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias", ".attention.bias")
"""Endings of tables that classes compute from their configuration, and store."""
_HEADS = ("lm_head.weight", "embed_out.weight")
_LINEAR = (T.ATTN_QKV, T.ATTN_OUT, T.FFN_UP, T.FFN_DOWN)
_NORMS = (
    *(T.OUTPUT_NORM, T.ATTN_NORM, T.FFN_NORM, T.ATTN_POST_NORM, T.FFN_PRE_NORM, T.FFN_POST_NORM),
    *(T.ATTN_Q_NORM, T.ATTN_K_NORM),
)


@dataclass(frozen=True)
class Model:
    """A configuration, and what of it decides on the order of channels."""

    config: Config
    known: Architecture
    heads: int
    kv_heads: int
    width: int
    """Channels of a head."""


def write_stock(
    path: Path,
    config: Config,
    tensors: Mapping[str, Tensor],
    tokenizer_folder: Path | None,
    *,
    dtype: DType,
    name: str,
) -> int:
    """Writes a model of a stock class to ``path``, whole or not at all; returns the size in bytes.

    ``config`` is the content of its config.json with the values of all fields; ``tensors`` have
    transformers' names in memory and are read one at a time. Matrices are stored as ``dtype``,
    vectors, norms and routers as F32. Without a ``tokenizer_folder`` llama.cpp takes token ids
    only.

    Where llama.cpp has no windows, or not in these layers, the stated context ends with them.

    Raises:
        SourceError: llama.cpp would not compute the same (see ``offered``), has no place for a
            tensor, F16 cannot hold a value, the tokenizer is of an unknown kind.
    """
    if flaw := why_not(config) or why_not_sizes(config):
        raise SourceError(flaw, where="config.json", fix="use the Hugging Face folder instead")
    model = Model(config, chosen(config), *heads_of(config), head_dim(config))
    entries = list(entries_of(model, tensors))
    rows = next(e.shape[0] for e in entries if e.name == "token_embd.weight")
    vocabulary = read_vocabulary(tokenizer_folder, rows, config)

    def header(writer: GGUFWriter) -> None:
        _header(writer, model, {e.name: e.shape for e in entries})

    return store(path, model.known.name, header, vocabulary, entries, dtype=dtype, name=name)


def entries_of(model: Model, tensors: Mapping[str, Tensor]) -> Iterator[Entry]:
    """Yields the tensors of the file. Raises SourceError for one that llama.cpp has no place
    for.
    """
    # Architectures name tensors alike; only the type's own one has its fused matrices in the table.
    own_arch = ARCHITECTURES[str(model.config["model_type"])].arch
    names = get_tensor_name_map(own_arch, layers_of(model.config))
    tied = bool(model.config.get("tie_word_embeddings", False)) and not model.known.unties
    by_head = dict[str, list[Tensor]]()
    for theirs, tensor in tensors.items():
        if theirs.endswith(_UNUSED) or (tied and theirs in _HEADS):
            continue
        if expert := _EXPERTS.search(theirs):
            yield from _experts(model, int(expert[1]), expert[2], bool(expert[3]), tensor)
            continue
        kind, own = _named(names, theirs)
        entry = _entry(own, tensor)
        if _OF_HEAD.search(theirs):
            by_head.setdefault(own, []).append(tensor)
            continue
        yield from _changed(model, kind, entry)
        if tied and model.known.own_output and kind == T.TOKEN_EMBD:
            yield from _changed(model, T.OUTPUT, _entry("output.weight", tensor))
    for own, parts in by_head.items():
        yield _entry(own, torch.stack(parts))
    if model.known.divisors is not None:
        yield _entry("rope_freqs.weight", torch.tensor(model.known.divisors(model.config)))
    if model.known.rope_factors and (divisors := rope_factors(model.config, model.width)):
        yield _entry("rope_freqs.weight", torch.tensor(divisors))


def _named(names: TensorNameMap, theirs: str) -> tuple[T, str]:
    """Kind and name of a tensor in llama.cpp. Raises SourceError where it has none."""
    listed = _listed(theirs)
    # Of Bloom, the tables have some names without the first part, of Nemotron-H with another one.
    others = (listed.removeprefix("transformer."), re.sub(r"^model\.", "backbone.", listed))
    for name in (listed, *others):
        for own in (name, name.replace(".router.weight", ".router.layer.weight")):
            if found := names.get_type_and_name(own, (".weight", ".bias")):
                return found
    raise SourceError("llama.cpp has no place for this weight", where=theirs)


def _listed(theirs: str) -> str:
    """The name of a tensor as older versions of transformers have it, and gguf's tables do."""
    plain = _OF_HEAD.sub(".", theirs).replace(".gate.moe_statics.", ".moe_statics.")
    plain = plain.replace(".e_score_correction_bias", ".e_score_correction.bias")
    plain = plain.replace(".expert_bias", ".expert_bias.bias").replace(".dt_bias", ".dt_proj.bias")
    plain = plain.replace(".layer_scalar", ".layer_scalar.weight")
    return f"{plain}.weight" if plain.endswith(".sinks") else plain


def _entry(name: str, tensor: Tensor) -> Entry:
    return Entry(name, tuple(tensor.shape), lambda: tensor)


def _map(entry: Entry, change: Callable[[Tensor], Tensor], name: str = "") -> Entry:
    """The tensor as ``change`` makes it, which is done when it is written."""
    shape = tuple(change(torch.empty(entry.shape, device="meta")).shape)
    return Entry(name or entry.name, shape, lambda: change(entry.values()))


def _experts(model: Model, block: int, name: str, bias: bool, tensor: Tensor) -> Iterator[Entry]:
    """Experts; gate and up projection, which are one tensor ``[experts, 2 ffn, hidden]``, apart."""
    down, gate, up = (
        f"{TENSOR_NAMES[kind].format(bid=block)}.{'bias' if bias else 'weight'}"
        for kind in (T.FFN_DOWN_EXP, T.FFN_GATE_EXP, T.FFN_UP_EXP)
    )
    if model.known.inputs_first and not bias:
        tensor = tensor.transpose(1, 2)
    if name == "down_proj":
        yield _entry(down, tensor)
    elif model.known.in_turns:
        yield _entry(gate, tensor[:, ::2])
        yield _entry(up, tensor[:, 1::2])
    else:
        half = tensor.shape[1] // 2
        yield _entry(gate, tensor[:, :half])
        yield _entry(up, tensor[:, half:])


def _latent(model: Model, entry: Entry) -> Iterator[Entry]:
    """What makes keys and values of a latent vector, ``[heads (key + value), latent]``, apart:
    keys as ``[heads, latent, key]``, by which llama.cpp multiplies queries instead.
    """
    key, value = (int(model.config[name]) for name in ("qk_nope_head_dim", "v_head_dim"))

    def by_head(t: Tensor) -> Tensor:
        return t.unflatten(0, (model.heads, key + value))

    for part, change in (
        ("k", lambda t: by_head(t)[:, :key].transpose(1, 2)),
        ("v", lambda t: by_head(t)[:, key:]),
    ):
        yield _map(entry, change, entry.name.replace("attn_kv_b", f"attn_{part}_b"))


def _linear_attention(model: Model, entry: Entry) -> Iterator[Entry]:
    """Queries, keys and values of linear attention, and its gates, apart."""
    for name in ("attn_qkv", "attn_gate"):
        named = entry.name.replace("ssm_in", name)
        yield _map(entry, lambda t, name=name: dict(of_keys_and_gate(model.config, t))[name], named)


def _changed(model: Model, kind: T, entry: Entry) -> Iterator[Entry]:
    """The tensor as llama.cpp has it, in several where transformers fuse."""
    known, entry = model.known, _laid_out(model, kind, _scaled(model, kind, entry))
    split = known.arch == MODEL_ARCH.LLAMA
    if kind == T.ATTN_KV_B and known.latent:
        yield from _latent(model, entry)
    elif kind == T.SSM_IN and known.arch == MODEL_ARCH.QWEN3NEXT:
        yield from _linear_attention(model, entry)
    elif kind == T.ATTN_QKV and split:
        counts = (model.heads, model.kv_heads, model.kv_heads)
        for own, heads, part in zip("qkv", counts, _parts(model, entry, counts), strict=True):
            named = _map(part, lambda t: t, entry.name.replace("attn_qkv", f"attn_{own}"))
            yield named if own == "v" else interleaved(named, heads)
    elif kind == T.FFN_UP and split and entry.shape[0] == 2 * _ffn(model):
        half = entry.shape[0] // 2
        yield _map(entry, lambda t: t[:half], entry.name.replace("ffn_up", "ffn_gate"))
        yield _map(entry, lambda t: t[half:])
    elif known.pairs and kind in (T.ATTN_Q, T.ATTN_K):
        yield interleaved(entry, model.heads if kind == T.ATTN_Q else model.kv_heads)
    else:
        yield entry


def _scaled(model: Model, kind: T, entry: Entry) -> Entry:
    """The tensor with the factors and offsets that llama.cpp has in weights."""
    known = model.known
    if known.gain and entry.name.endswith(".weight") and kind in _NORMS:
        entry = _map(entry, lambda t: t.float() + known.gain)
    if known.query_scale is not None and kind == known.scaled:
        # Products of queries and keys are multiplied by another factor than in transformers.
        stated = float(model.config.get("query_pre_attn_scalar") or model.width)
        factor = stated**-0.5 / known.query_scale(model.config)
        return _map(entry, lambda t: t.float() * factor)
    if known.latent and kind in (T.ATTN_Q_A, T.ATTN_KV_A_MQA):
        # llama.cpp has one epsilon. A norm of ``c x`` with epsilon ``c^2 e`` is that of ``x`` with
        # ``e``; of keys and values, the channels that rope rotates are not normalised.
        normed = entry.shape[0] if kind == T.ATTN_Q_A else int(model.config["kv_lora_rank"])
        factor = (epsilon_of(model.config) / _LATENT_EPSILON) ** 0.5
        return _map(entry, lambda t: torch.cat([t[:normed].float() * factor, t[normed:].float()]))
    return entry


def _laid_out(model: Model, kind: T, entry: Entry) -> Entry:
    """The tensor with llama.cpp's dimensions, and its order of channels."""
    known = model.known
    if kind in known.changes and (kind != T.SSM_CONV1D or entry.name.endswith(".weight")):
        return _map(entry, partial(known.changes[kind], model.config))
    if known.transposed and entry.name.endswith(".weight") and kind in _LINEAR:
        return _map(entry, lambda t: t.T)
    if kind in (T.FFN_GATE_INP_SHEXP, T.FFN_EXP_PROBS_B):
        return _map(entry, lambda t: t.flatten())  # as in published files; llama.cpp takes both
    if kind == T.SHORTCONV_CONV:
        return _map(entry, lambda t: t.flatten(1))
    if kind == T.ATTN_QKV and known.fused == "head":
        sides = (model.heads, 3, model.width)
        return _map(entry, lambda t: t.unflatten(0, sides).transpose(0, 1).flatten(0, 2))
    if kind == T.ATTN_QKV and known.fused == "group":
        return _map(entry, partial(_by_kind, model))
    return entry


def _ffn(model: Model) -> int:
    return int(model.config.get("intermediate_size") or 0)


def _by_kind(model: Model, fused: Tensor) -> Tensor:
    """Rows of all queries, then those of all keys and of all values, where each KV head has its
    own three kinds together.
    """
    shared = model.heads // model.kv_heads
    rows = fused.unflatten(0, (model.kv_heads, shared + 2, model.width))
    parts = (rows[:, :shared], rows[:, shared : shared + 1], rows[:, shared + 1 :])
    return torch.cat([part.flatten(0, 2) for part in parts])


def _parts(model: Model, entry: Entry, counts: tuple[int, ...]) -> Iterator[Entry]:
    """Rows of a fused matrix by the number of heads."""
    start = 0
    for heads in counts:
        rows = slice(start, start + heads * model.width)
        yield _map(entry, lambda t, rows=rows: t[rows])
        start = rows.stop


def _header(writer: GGUFWriter, model: Model, shapes: Shapes) -> None:
    config, known = model.config, model.known
    rows, hidden = shapes["token_embd.weight"]
    context = context_of(config, known.period)
    writer.add_vocab_size(rows)
    writer.add_block_count(layers_of(config))
    writer.add_context_length(context)
    writer.add_embedding_length(hidden)
    add_epsilon = writer.add_layer_norm_eps if known.layer_norm else writer.add_layer_norm_rms_eps
    add_epsilon(epsilon_of(config))
    _feed_forward(writer, model, shapes)
    if known.rotates:
        _rope(writer, config)
    if known.period:
        # Stated in any case: llama.cpp would take the window of the published models.
        fits = windows_fit(config, known.period)
        writer.add_sliding_window(int(config["sliding_window"]) if fits else context)
    for key, value in (*known.heads(config), *known.stated(config)):
        if known.rotates or key != "rope_dimension_count":
            getattr(writer, f"add_{key}")(value)


def _rope(writer: GGUFWriter, config: Config) -> None:
    rope, context = rope_of(config), "original_max_position_embeddings"
    writer.add_rope_freq_base(rope_base(config))
    if rope_kind(rope) in ("linear", "yarn"):
        writer.add_rope_scaling_type(RopeScalingType(rope_kind(rope)))
        writer.add_rope_scaling_factor(float(rope["factor"]))
    if rope_kind(rope) == "yarn":
        writer.add_rope_scaling_orig_ctx_len(int(first(rope, context) or context_of(config)))
        writer.add_rope_scaling_yarn_beta_fast(float(rope.get("beta_fast") or 32))
        writer.add_rope_scaling_yarn_beta_slow(float(rope.get("beta_slow") or 1))


def _feed_forward(writer: GGUFWriter, model: Model, shapes: Shapes) -> None:
    # Of mixtures, the first layers may be dense.
    dense, experts = (
        next((shape for name, shape in shapes.items() if name.endswith(f".ffn_down{kind}")), None)
        for kind in (".weight", "_exps.weight")
    )
    if model.known.widths:
        each = (shapes.get(f"blk.{i}.ffn_down.weight") for i in range(layers_of(model.config)))
        writer.add_feed_forward_length([shape[1] if shape else 0 for shape in each])
        return
    wide = dense[1] if dense else _ffn(model)
    if experts:
        writer.add_expert_count(experts[0])
        writer.add_expert_used_count(int(first(model.config, "num_experts_per_tok", "moe_k")))
        writer.add_expert_feed_forward_length(experts[2])
        wide = experts[2] if model.known.shared_width else wide
    writer.add_feed_forward_length(wide)
