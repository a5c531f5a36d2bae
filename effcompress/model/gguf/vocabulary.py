"""A tokenizer as llama.cpp reads it: a pre-tokenizer by name, tokens, merges or scores.

llama.cpp does not read how a tokenizer splits text, it has a fixed list of pre-tokenizers. One that
is not on the list here is refused: the file would load and silently split text into other tokens.

Special tokens, merges and the chat template are read and written by gguf's ``SpecialVocab``. Its
``LlamaHfVocab`` is not used: it gives every SentencePiece token the same score, and llama.cpp then
merges in another order than the tokenizer.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, SpecialVocab, TokenType

from effcompress.errors import SourceError
from effcompress.model.tokenizer import HFTokenizer, open_tokenizer
from effcompress.types import Config

Plan = Mapping[str, Any]
"""A tokenizer.json, or a part of it."""

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_PRE_TOKENIZERS: Mapping[tuple[tuple[str, ...], bool], str] = {
    (("gpt2",), False): "gpt-2",
    (("digits", "gpt2"), False): "smollm",
    ((f"split {_LLAMA3}",), True): "llama-bpe",
    ((f"split {_LLAMA3}",), False): "dbrx",
    ((f"split {_QWEN2}",), False): "qwen2",
}
"""Steps of a pre-tokenizer, and whether it skips the merges for a word that is itself a token
(``ignore_merges``) -> llama.cpp's name of it.
"""
_ROLES = ("bos", "eos", "pad", "unk")
_SPACE = "\u2581"
NO_MERGES = f"{_SPACE} {_SPACE}"
"""The one merge of a file whose tokenizer has none."""
_FIX = "write the file without a tokenizer, and give llama.cpp token ids"


@dataclass(frozen=True)
class Vocabulary:
    """``kind`` is gpt2 (byte-level BPE), llama (SentencePiece) or none: token ids only."""

    kind: str = "none"
    pre: str = ""
    tokens: Sequence[str] = ()
    types: Sequence[TokenType] = ()
    scores: Sequence[float] = ()
    special: SpecialVocab | None = None
    space_prefix: bool | None = None

    def add_to(self, writer: GGUFWriter) -> None:
        """Writes everything into the header."""
        writer.add_tokenizer_model(self.kind)
        if self.special is None:
            return
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.scores:
            writer.add_token_scores(self.scores)
        self.special.add_to_gguf(writer, quiet=True)
        if self.space_prefix is not None:
            writer.add_add_space_prefix(self.space_prefix)


def read_vocabulary(folder: Path | None, rows: int, config: Config) -> Vocabulary:
    """Reads the tokenizer of a Hugging Face folder; ``rows`` are those of the embedding.

    Raises:
        SourceError: there is none, it has more tokens than ``rows``, or llama.cpp would split text
            into other tokens.
    """
    if folder is None:
        return Vocabulary()
    opened = open_tokenizer(None, folder, offline=True)
    rust = getattr(getattr(opened, "backend", None), "backend_tokenizer", None)
    if not isinstance(opened, HFTokenizer) or rust is None:
        raise _refused("it has no tokenizer.json", folder)
    plan = json.loads(rust.to_str())
    model = plan["model"]
    if model["type"] != "BPE":
        raise _refused(f"it is of the kind {model['type']}; BPE is known", folder)
    tokens, types = _tokens(plan, rows, folder)
    merges = [(m.split(" ", 1) if isinstance(m, str) else m) for m in model["merges"]]
    sentencepiece = bool(model.get("byte_fallback"))
    special = _special(opened.backend, folder, rows, config, load_merges=not sentencepiece)
    if sentencepiece:
        scores = _scores(plan, merges, tokens, folder)
        _name_bytes(tokens, types)
        prefix = _space_prefix(plan, folder)
        return Vocabulary("llama", "default", tokens, types, scores, special, prefix)
    # Without a list of merges llama.cpp does not open the file, and an empty list cannot be
    # written. Byte-level tokens never hold U+2581, so this merge joins nothing.
    special.merges = special.merges or [NO_MERGES]
    pre = _pre_tokenizer(plan, bool(merges), folder)
    return Vocabulary("gpt2", pre, tokens, types, special=special)


def _refused(why: str, folder: Path) -> SourceError:
    return SourceError(f"llama.cpp cannot use this tokenizer: {why}", where=str(folder), fix=_FIX)


def _tokens(plan: Plan, rows: int, folder: Path) -> tuple[list[str], list[TokenType]]:
    """Text and type by id; ids without a token, as in padded embeddings, are marked unused."""
    by_id = {i: text for text, i in plan["model"]["vocab"].items()}
    kinds = dict.fromkeys(by_id, TokenType.NORMAL)
    for token in plan["added_tokens"]:
        by_id[token["id"]] = token["content"]
        kinds[token["id"]] = TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
    if max(by_id) >= rows:
        raise _refused(f"it has {max(by_id) + 1} tokens, the embedding {rows} rows", folder)
    tokens = [by_id.get(i, f"[PAD{i}]") for i in range(rows)]
    return tokens, [kinds.get(i, TokenType.UNUSED) for i in range(rows)]


def _special(
    backend: Any, folder: Path, rows: int, config: Config, *, load_merges: bool
) -> SpecialVocab:
    """Special tokens, merges and chat template of the folder; ids that it does not state are those
    of ``config``.
    """
    begin, end = _added(backend, folder)
    found = SpecialVocab(folder, load_merges, _ROLES, n_vocab=rows)
    # Observed on a text rather than parsed: gguf's reading of post-processors is approximate.
    found.add_special_token = {"bos": begin, "eos": end}
    ids = found.special_token_ids
    for role in _ROLES:
        stated = config.get(f"{role}_token_id")
        several = stated if isinstance(stated, list) else [stated]
        usable = [int(i) for i in several if i is not None and i >= 0]
        if usable:
            ids.setdefault(role, usable[0])
        # Instruct models state several ends; the second one ends a turn.
        if role == "eos" and len(several) > 1 and (others := [i for i in usable if i != ids[role]]):
            ids["eot"] = others[0]
    return found


def _added(backend: Any, folder: Path) -> tuple[bool, bool]:
    """Whether the tokenizer puts BOS before a text and EOS after it; llama.cpp can add nothing
    else.
    """
    plain = list(backend("a", add_special_tokens=False)["input_ids"])
    found = list(backend("a", add_special_tokens=True)["input_ids"])
    for begin, end in itertools.product((False, True), repeat=2):
        if found == [backend.bos_token_id] * begin + plain + [backend.eos_token_id] * end:
            return begin, end
    raise _refused("it adds other tokens to a text than BOS and EOS", folder)


def _pre_tokenizer(plan: Plan, merges: bool, folder: Path) -> str:
    """llama.cpp's name of the pre-tokenizer. Raises SourceError if it has none."""
    changes = [s["type"] for s in _flat(plan["normalizer"], "normalizers")]
    # NFC joins a letter and its accent. llama.cpp takes text as it is, which nearly always is so.
    if changes not in ([], ["NFC"]):
        raise _refused(f"it changes text first ({plan['normalizer']['type']})", folder)
    steps = [_step(s) for s in _flat(plan["pre_tokenizer"], "pretokenizers")]
    if "bytes" not in steps and "gpt2" not in steps:
        raise _refused("it merges characters, not bytes", folder)
    if not merges:
        return "gpt-2"  # every byte is a token, however the text is split
    known = tuple(s for s in steps if s != "bytes")
    name = _PRE_TOKENIZERS.get((known, bool(plan["model"].get("ignore_merges"))))
    if name is None:
        raise _refused(f"text is split in a way that has no name there: {known}", folder)
    return name


def _flat(part: Plan | None, inner: str) -> list[Plan]:
    if part is None:
        return []
    return list(part[inner]) if part["type"] == "Sequence" else [part]


def _step(step: Plan) -> str:
    if step["type"] == "ByteLevel" and not step["add_prefix_space"]:
        return "gpt2" if step["use_regex"] else "bytes"
    if step["type"] == "Digits" and step["individual_digits"]:
        return "digits"
    plain = step.get("behavior") == "Isolated" and not step.get("invert")
    if step["type"] == "Split" and plain and "Regex" in step["pattern"]:
        return f"split {step['pattern']['Regex']}"
    return json.dumps(step)


def _scores(plan: Plan, merges: list[list[str]], tokens: list[str], folder: Path) -> list[float]:
    """Scores under which SentencePiece merges in the order of ``merges``: it joins the pair whose
    token has the highest score, so the k-th token that the list makes gets ``-k``.

    Raises SourceError where no scores can: SentencePiece merges any two tokens that make a token,
    and ranks by the token alone, not by the pair.
    """
    order: dict[str, int] = {}
    last = ""
    for left, right in merges:
        made = left + right
        if made != last and made in order:
            raise _refused("its merges are not in an order by token", folder)
        order.setdefault(made, len(order))
        last = made
    added = {token["content"] for token in plan["added_tokens"]}
    vocab, known = plan["model"]["vocab"], {tuple(m) for m in merges}
    for text in vocab:
        splits = [(text[:i], text[i:]) for i in range(1, len(text))]
        unlisted = [s for s in splits if s[0] in vocab and s[1] in vocab and s not in known]
        if unlisted and text not in added and not _is_byte(text):
            raise _refused(f"{unlisted[0]} make a token, and are not merged", folder)
    return [-float(order[t]) if t in order else 0.0 for t in tokens]


def _is_byte(text: str) -> bool:
    return len(text) == 6 and text.startswith("<0x") and text.endswith(">")


def _name_bytes(tokens: list[str], types: list[TokenType]) -> None:
    """Marks the 256 byte tokens and the unknown token."""
    for i, text in enumerate(tokens):
        if _is_byte(text) and types[i] == TokenType.NORMAL:
            types[i] = TokenType.BYTE
        elif text == "<unk>":
            types[i] = TokenType.UNKNOWN


def _space_prefix(plan: Plan, folder: Path) -> bool:
    """Whether a text begins with a space. Raises SourceError if spaces are treated otherwise than
    SentencePiece does.
    """
    steps = _flat(plan["normalizer"], "normalizers")
    splits = _flat(plan["pre_tokenizer"], "pretokenizers")
    kinds = [s["type"] for s in steps]
    replaced = kinds in (["Prepend", "Replace"], ["Replace"]) and steps[-1]["content"] == _SPACE
    # Gemma's splits at spaces, of which none is left.
    splits = [s for s in splits if not (replaced and _splits_at_spaces(s))]
    if replaced and not splits and steps[-1]["pattern"] == {"String": " "}:
        return kinds[0] == "Prepend"
    metaspace = not steps and [s["type"] for s in splits] == ["Metaspace"]
    if metaspace and splits[0]["replacement"] == _SPACE and not splits[0]["split"]:
        return splits[0]["prepend_scheme"] != "never"
    raise _refused("it treats spaces otherwise than SentencePiece", folder)


def _splits_at_spaces(step: Plan) -> bool:
    return step["type"] == "Split" and step["pattern"] == {"String": " "}
