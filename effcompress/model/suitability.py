"""Refuses models that cannot be pruned, by their configuration, the headers of their weights and
the text of their tokenizer. Imports neither torch nor transformers, so that ``check`` is fast.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from effcompress.errors import SourceError, did_you_mean
from effcompress.model.classes import (
    ALWAYS,
    causal_models,
    fields_of,
    has_padding_row,
    has_position_table,
    is_known,
    mentions,
)
from effcompress.model.families import find_family
from effcompress.model.integrity import (
    Tensors,
    opened,
    read_json,
    read_object,
    require_whole,
)
from effcompress.model.lineage import is_pruned, parent_of
from effcompress.model.multimodal import text_of
from effcompress.types import Config, Fields

DEQUANTISED = ("fp8",)
"""Quantisation whose weights transformers turns into plain numbers when it loads them."""
_QUANTISED = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
OTHER_HEADS = ("v_head.", "value_head.", "score.", "classifier.", "qa_outputs.", "reward_head.")
"""Beginnings of the weights of heads for other tasks: values of PPO, rewards, classes."""
_WRAPPED = ("text_config", "language_config", "llm_config", "thinker_config")
_HEADS = ("lm_head.weight", "embed_out.weight")
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
_DECODERS = ("gpt_neox", "gpt_neox_japanese")
"""Model types whose classes say `is_decoder: false` and never read it."""
_NAME = re.compile(r"[a-z]\w+")
_PROBED = 1 << 16
"""Bytes that are compared at each of a few places of two tensors."""


def read_config(folder: Path) -> Fields | None:
    """Reads a folder's config.json; of a multimodal model, returns that of the text model. None if
    it is missing or holds something else.
    """
    return text_in(folder) or read_object(folder / "config.json")


def text_in(folder: Path) -> Fields | None:
    """Returns the configuration of the text model of a folder's multimodal model; None where there
    is none. As in transformers, an output matrix of its own that is stored is not the embedding,
    whatever the configuration says.
    """
    text = text_of(read_object(folder / "config.json") or {})
    if text is None or not text["tie_word_embeddings"]:
        return text
    try:
        own = next(_untied(folder, require_whole(folder)), None)
    except SourceError:  # not complete yet
        return text
    return text if own is None else {**text, "tie_word_embeddings": False}


def require_causal(config: Config, where: str) -> None:
    """Raises SourceError naming the architecture of a configuration that is not that of a causal
    language model: one with an undeclared text model inside, an encoder, or a head for another
    task.
    """
    kind, named = str(config.get("model_type")), config.get("architectures")
    classes = [str(name) for name in named] if isinstance(named, list) else []
    said = f"'{kind}'" + (f" ({classes[0]})" if classes else "")
    for key in _WRAPPED:
        if isinstance(inner := config.get(key), Mapping):
            text = str(inner.get("model_type", "llama"))
            none = f"name another model: transformers have no language model of '{text}' by itself"
            how = "that is not found inside it"
            if find_family(text) is None:
                how = "of an architecture that is not declared"
            raise SourceError(
                f"{said} wraps a text model (`{key}`: {text}) {how}",
                where=where,
                fix=extract(kind) if text in causal_models() else none,
            )
    if is_pruned(config) or "auto_map" in config or not is_known(kind):
        return
    both = ", an encoder and a decoder" if _said(config, "is_encoder_decoder") else ""
    encodes = _said(config, "is_decoder") is False and kind not in _DECODERS
    both = both or (", an encoder" if encodes else "")
    other = classes and not any("ForCausalLM" in c or "For" not in c for c in classes)
    if both or other or kind not in causal_models():
        raise SourceError(
            f"{said} is no causal language model{both}",
            where=where,
            fix="name a model that predicts the next token (its class ends in ForCausalLM)",
        )


def extract(kind: str) -> str:
    """What to do to get the text model of a multimodal model of the type ``kind`` by itself."""
    # Of some classes it is a causal language model, not a decoder with a head beside it.
    whole = mentions(kind, "language_model = AutoModelForCausalLM")
    return f"save it by itself and name that folder: {EXTRACT_WHOLE if whole else EXTRACT}"


EXTRACT_WHOLE = (
    "m = AutoModelForImageTextToText.from_pretrained(FOLDER); "
    "m.language_model.save_pretrained(TEXT)"
)
EXTRACT = (
    "m = AutoModelForImageTextToText.from_pretrained(FOLDER); "
    "t = AutoModelForCausalLM.from_config(m.config.get_text_config()); "
    "t.model.load_state_dict(m.model.language_model.state_dict()); "
    "t.lm_head.load_state_dict(m.lm_head.state_dict()); t.save_pretrained(TEXT)"
)
"""Python that saves the text model of a multimodal one."""


def _said(config: Config, field: str) -> Any:
    """The value of a field, else its class's default."""
    return config.get(field, (fields_of(str(config.get("model_type"))) or {}).get(field))


def require_fields(shape: Iterable[str], config: Config, real: Config) -> None:
    """Raises SourceError naming the first field of ``shape`` that neither the class of ``config``
    nor the source's own file, ``real``, has: transformers would silently store a misspelt one.
    """
    kind = str(parent_of(config).get("model_type"))
    known = fields_of(kind)
    if known is None or "auto_map" in config:
        return
    for field in shape:
        if field not in known and field not in real and field not in ALWAYS:
            raise SourceError(
                f"a {kind} configuration has no '{field}'",
                where=f"model.shape.{field}",
                fix=did_you_mean(field, filter(_NAME.fullmatch, {*known, *ALWAYS})),
            )


def positions_of(config: Config) -> tuple[int | None, bool]:
    """Returns the positions that a model was trained for, None where its configuration does not
    say, and whether it has no others.
    """
    plain = parent_of(config)
    found = (_said(plain, name) for name in ("max_position_embeddings", "n_positions"))
    limit = next((n for n in found if isinstance(n, int)), None)
    return limit, limit is not None and has_position_table(str(plain.get("model_type")))


def require_plain(folder: Path, config: Config, headers: Mapping[str, Tensors]) -> None:
    """Raises SourceError for weights that would not be loaded as the plain numbers that the
    configuration describes: quantised ones, others than those checked, and a head of its own where
    the configuration says that it is tied to the embedding.
    """
    keys = ("quantization_config", "compression_config")
    stated = next((config[key] for key in keys if config.get(key) is not None), None)
    aside = next((name for name in _QUANTISED if (folder / name).exists()), None)
    if stated is not None or aside:
        how = stated if isinstance(stated, Mapping) else {}
        name = str(how.get("quant_method") or how.get("format") or aside or "in an unknown way")
        if name not in DEQUANTISED:
            bits = next((f", {n} bit" for n in (4, 8) if how.get(f"load_in_{n}bit")), "")
            raise SourceError(
                f"its weights are quantised ({name}{bits}), and pruning needs plain ones",
                where=str(folder),
                fix="name the folder of the model before quantisation (16 or 32 bits; of quantised "
                f"ones {', '.join(DEQUANTISED)} works, and gguf files)",
            )
    if (file := config.get("transformers_weights")) not in (None, *headers):
        said = f"config.json names other weights (transformers_weights: {file})"
        raise SourceError(said, where=str(folder), fix="take the key out, or name that folder")
    if _said(config, "tie_word_embeddings"):
        _require_tied(folder, headers)


_IDS = re.compile(r"(bos|eos|pad|decoder_start|forced_[a-z]+)_token_id")
_COUNTS = ("max_length", "max_new_tokens", "min_length", "min_new_tokens", "num_beams", "top_k")
_COUNTS += ("num_return_sequences", "no_repeat_ngram_size")


def require_generation(folder: Path, config: Config) -> None:
    """Raises SourceError for a generation_config.json (without one, for end tokens of config.json)
    with which no text can be generated, as the proof of an export does.
    """
    file, rows = "generation_config.json", _said(config, "vocab_size")
    stated = read_object(folder / file) if (folder / file).exists() else None
    if stated is None:
        file, stated = "config.json", {"eos_token_id": _said(config, "eos_token_id")}
    for name, value in stated.items():
        if value is None:
            continue
        wrong = name in _COUNTS and (type(value) is not int or value < 0)
        fix = "write a whole number, or take the key out"
        if _IDS.fullmatch(name):
            ids = value if isinstance(value, list) else [value]
            most = rows if isinstance(rows, int) else math.inf
            wrong = not all(type(i) is int and i < most for i in ids)
            fix = f"write the id of one of the {rows} rows of the vocabulary, or take the key out"
        if wrong:
            raise SourceError(f"{file}: {name} is {value!r}", where=str(folder), fix=fix)


def _require_tied(folder: Path, headers: Mapping[str, Tensors]) -> None:
    for head, table in _untied(folder, headers):
        raise SourceError(
            f"config.json says tie_word_embeddings, and {head} differs from {table}",
            where=str(folder),
            fix="write `tie_word_embeddings: false` in config.json, or remove that weight",
        )


def _untied(folder: Path, headers: Mapping[str, Tensors]) -> Iterator[tuple[str, str]]:
    """Yields output matrices that are stored and differ from the embedding, with its name."""
    at = {
        name: (folder / file, *one)
        for file, tensors in headers.items()
        for name, one in tensors.items()
        if name.endswith((*_HEADS, *_EMBEDDINGS))
    }
    for head in (name for name in at if name.endswith(_HEADS)):
        tables = [name for name in at if name.endswith(_EMBEDDINGS) and at[name][2] == at[head][2]]
        if tables and not any(_alike(at[head], at[table]) for table in tables):
            yield head, tables[0]


def _alike(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    """Whether two tensors have equal bytes, at five places of them."""
    size = one[3][1] - one[3][0]
    if one[1] != other[1]:
        return True  # of another type: rounded, perhaps
    places = sorted({max(0, (size - _PROBED) * k // 4) for k in range(5)})
    with opened(one[0]) as left, opened(other[0]) as right:
        for place in places:
            left.seek(one[3][0] + place)
            right.seek(other[3][0] + place)
            n = min(_PROBED, size)
            if left.read(n) != right.read(n):
                return False
    return True


def require_rows(largest: int, text: str, config: Config, where: str) -> None:
    """Raises SourceError if the ``largest`` id that a tokenizer emits, that of the token ``text``,
    has no row in the embedding.
    """
    rows = _said(config, "vocab_size")
    if isinstance(rows, int) and largest >= rows:
        raise SourceError(
            f"the tokenizer gives {text} the id {largest}, the model's vocabulary has {rows} rows",
            where=where,
            fix="name the model's own tokenizer, or give a random model a larger vocab_size",
        )


def require_padding(config: Config, where: str) -> None:
    """Raises SourceError if the padding token, or the class's default of it, has no row in the
    embedding: transformers cannot build such a model.
    """
    plain = parent_of(config)
    rows, pad = _said(plain, "vocab_size"), _said(plain, "pad_token_id")
    if not (isinstance(rows, int) and isinstance(pad, int)) or -rows <= pad < rows:
        return
    if has_padding_row(kind := str(plain.get("model_type"))):
        raise SourceError(
            f"pad_token_id is {pad}"
            + ("" if "pad_token_id" in plain else f", {kind}'s default")
            + f", and the vocabulary has {rows} rows",
            where=where,
            fix="write `pad_token_id: null`, or the id of a row",
        )


def largest_id(file: Path) -> tuple[int, str]:
    """Returns the largest id that a text or packing can give, and its token, of a tokenizer.json:
    tokens of the vocabulary, added ones, BOS and EOS. Special tokens, which no text gives, may lie
    beyond the embedding.

    Raises SourceError if the file cannot be read.
    """
    plan = read_json(file)
    ends: set[str] = {*SEPARATORS}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        stated = read_object(file.parent / name) or {}
        for one in (stated.get("bos_token"), stated.get("eos_token")):
            ends.add(str(one.get("content") if isinstance(one, dict) else one))
    try:
        words = plan["model"]["vocab"]
        ids = dict(words) if isinstance(words, dict) else {w[0]: i for i, w in enumerate(words)}
        for token in plan.get("added_tokens") or ():
            ids[token["content"]] = token["id"]
            if token["special"] and token["content"] not in ends:
                del ids[token["content"]]
        return max((int(i), str(text)) for text, i in ids.items())
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        said = "tokenizer.json is damaged (no vocabulary)"
        raise SourceError(said, where=str(file.parent)) from error


SEPARATORS = ("<|endoftext|>", "<|end_of_text|>")
"""End-of-document tokens of pretraining. The EOS of instruct models (``<|im_end|>``,
``<|eot_id|>``) ends a turn of a conversation, which is wrong between documents.
"""
