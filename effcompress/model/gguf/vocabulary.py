"""A tokenizer as llama.cpp wants it: a kind it knows by name, tokens, merges or scores.

llama.cpp does not read how a tokenizer splits text, it has a fixed list of ways. What is not on the
list here is refused: a file that splits text otherwise would work, and be worse.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from effcompress.errors import SourceError
from effcompress.model.tokenizer import HFTokenizer, open_tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Kinds of tokens in a gguf file."""

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_WAYS: Mapping[tuple[str, ...], tuple[str, bool]] = {
    ("gpt2",): ("gpt-2", False),
    ("digits", "gpt2"): ("smollm", False),
    (f"split {_LLAMA3}",): ("llama-bpe", True),
}
"""Ways to split text before bytes are merged -> llama.cpp's name, and whether a word that is itself
a token skips the merges there.
"""
_SPACE = "\u2581"
_FIX = "write the file without a tokenizer, and give llama.cpp token ids"


@dataclass(frozen=True)
class Vocabulary:
    """``kind`` is gpt2 (merges of bytes), llama (SentencePiece) or none: token ids only."""

    kind: str = "none"
    pre: str = ""
    tokens: list[str] = field(default_factory=list)
    types: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    merges: list[str] = field(default_factory=list)
    special: Mapping[str, int] = field(default_factory=dict)
    switches: Mapping[str, bool] = field(default_factory=dict)
    chat_template: str | None = None

    def add_to(self, writer: Any) -> None:
        """Hand everything to a ``gguf.GGUFWriter``."""
        writer.add_tokenizer_model(self.kind)
        if self.kind == "none":
            return
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.scores:
            writer.add_token_scores(self.scores)
        if self.merges:
            writer.add_token_merges(self.merges)
        for name, token in self.special.items():
            getattr(writer, f"add_{name}_token_id")(token)
        for name, on in self.switches.items():
            getattr(writer, f"add_add_{name}")(on)
        if self.chat_template:
            writer.add_chat_template(self.chat_template)


def read_vocabulary(folder: Path | None, rows: int, config: Mapping[str, Any]) -> Vocabulary:
    """The tokenizer of a Hugging Face folder; ``rows`` are those of the embedding.

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
    shared: dict[str, Any] = {
        "tokens": tokens,
        "special": _special(opened.backend, config),
        "chat_template": _template(opened.backend),
    }
    begin, end = _dressed(opened.backend, folder)
    switches = {"bos_token": begin, "eos_token": end}
    if model.get("byte_fallback"):
        scores = _scores(model["vocab"], merges, plan, tokens, folder)
        _name_bytes(tokens, types)
        switches["space_prefix"] = _space_prefix(plan, folder)
        return Vocabulary(
            "llama", "default", types=types, scores=scores, switches=switches, **shared
        )
    # An empty list cannot be written, and without one llama.cpp does not open the file. Bytes are
    # never spelled with spaces, so this merge joins nothing.
    joined = [" ".join(m) for m in merges] or [f"{_SPACE} {_SPACE}"]
    pre = _way(plan, bool(merges), folder)
    return Vocabulary("gpt2", pre, types=types, merges=joined, switches=switches, **shared)


def _refused(why: str, folder: Path) -> SourceError:
    return SourceError(f"llama.cpp cannot use this tokenizer: {why}", where=str(folder), fix=_FIX)


def _tokens(plan: Mapping[str, Any], rows: int, folder: Path) -> tuple[list[str], list[int]]:
    """Text and kind by id; ids without a token, as in padded embeddings, are marked unused."""
    by_id = {i: text for text, i in plan["model"]["vocab"].items()}
    kinds = dict.fromkeys(by_id, NORMAL)
    for token in plan["added_tokens"]:
        by_id[token["id"]] = token["content"]
        kinds[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    if max(by_id) >= rows:
        raise _refused(f"it has {max(by_id) + 1} tokens, the embedding {rows} rows", folder)
    tokens = [by_id.get(i, f"[PAD{i}]") for i in range(rows)]
    return tokens, [kinds.get(i, UNUSED) for i in range(rows)]


def _special(backend: Any, config: Mapping[str, Any]) -> dict[str, int]:
    """Ids by role: the tokenizer's, else those of config.json; where that has several ends, the
    second one also ends an answer.
    """
    found: dict[str, int] = {}
    for role in ("bos", "eos", "pad", "unk"):
        stated = config.get(f"{role}_token_id")
        ids: list[Any] = stated if isinstance(stated, list) else [stated]
        own = getattr(backend, f"{role}_token_id", None)
        token = ids[0] if own is None and ids else own
        if token is not None and token >= 0:
            found[role] = int(token)
        others = [i for i in ids if i != token]
        if role == "eos" and len(ids) > 1 and others:
            found["eot"] = int(others[0])
    return found


def _template(backend: Any) -> str | None:
    template = getattr(backend, "chat_template", None)
    if isinstance(template, Mapping):
        template = template.get("default")
    return template if isinstance(template, str) else None


def _dressed(backend: Any, folder: Path) -> tuple[bool, bool]:
    """Whether BOS goes before every text and EOS after it; other dress is unknown to llama.cpp."""
    plain = list(backend("a", add_special_tokens=False)["input_ids"])
    found = list(backend("a", add_special_tokens=True)["input_ids"])
    for begin in (False, True):
        for end in (False, True):
            before = [backend.bos_token_id] if begin else []
            if found == before + plain + ([backend.eos_token_id] if end else []):
                return begin, end
    raise _refused("it adds other tokens to a text than BOS and EOS", folder)


def _way(plan: Mapping[str, Any], merges: bool, folder: Path) -> str:
    """llama.cpp's name for the way text is split. Raises SourceError if it has none."""
    if plan["normalizer"]:
        raise _refused(f"it changes text first ({plan['normalizer']['type']})", folder)
    steps = [_step(s) for s in _flat(plan["pre_tokenizer"], "pretokenizers")]
    if "bytes" not in steps and "gpt2" not in steps:
        raise _refused("it merges characters, not bytes", folder)
    if not merges:
        return "gpt-2"  # every byte is a token, however the text is split
    way = tuple(s for s in steps if s != "bytes")
    name, skips = _WAYS.get(way, ("", False))
    if not name or skips != bool(plan["model"].get("ignore_merges")):
        raise _refused(f"text is split in a way that has no name there: {way}", folder)
    return name


def _flat(part: Mapping[str, Any] | None, inner: str) -> list[Mapping[str, Any]]:
    if part is None:
        return []
    return list(part[inner]) if part["type"] == "Sequence" else [part]


def _step(step: Mapping[str, Any]) -> str:
    if step["type"] == "ByteLevel" and not step["add_prefix_space"]:
        return "gpt2" if step["use_regex"] else "bytes"
    if step["type"] == "Digits" and step["individual_digits"]:
        return "digits"
    plain = step.get("behavior") == "Isolated" and not step.get("invert")
    if step["type"] == "Split" and plain and "Regex" in step["pattern"]:
        return f"split {step['pattern']['Regex']}"
    return json.dumps(step)


def _scores(
    vocab: Mapping[str, int],
    merges: list[list[str]],
    plan: Mapping[str, Any],
    tokens: list[str],
    folder: Path,
) -> list[float]:
    """Scores that make SentencePiece join in the order of the merges: it joins what gives the
    token of the highest score. Raises SourceError if no scores can.
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
    known = {tuple(m) for m in merges}
    for text in vocab:
        splits = [(text[:i], text[i:]) for i in range(1, len(text))]
        open_ = [s for s in splits if s[0] in vocab and s[1] in vocab and s not in known]
        if open_ and text not in added and not _is_byte(text):
            raise _refused(f"{open_[0]} make a token, and are not merged", folder)
    return [-float(order[t]) if t in order else 0.0 for t in tokens]


def _is_byte(text: str) -> bool:
    return len(text) == 6 and text.startswith("<0x") and text.endswith(">")


def _name_bytes(tokens: list[str], types: list[int]) -> None:
    """Mark the 256 tokens for bytes and the one for what is unknown."""
    for i, text in enumerate(tokens):
        if _is_byte(text) and types[i] == NORMAL:
            types[i] = BYTE
        elif text == "<unk>":
            types[i] = UNKNOWN


def _space_prefix(plan: Mapping[str, Any], folder: Path) -> bool:
    """Whether a text begins with a space. Raises SourceError if spaces are treated otherwise than
    SentencePiece does.
    """
    steps = _flat(plan["normalizer"], "normalizers")
    splits = _flat(plan["pre_tokenizer"], "pretokenizers")
    kinds = [s["type"] for s in steps]
    replaced = kinds in (["Prepend", "Replace"], ["Replace"]) and steps[-1]["content"] == _SPACE
    if replaced and not splits and steps[-1]["pattern"] == {"String": " "}:
        return kinds[0] == "Prepend"
    metaspace = not steps and [s["type"] for s in splits] == ["Metaspace"]
    if metaspace and splits[0]["replacement"] == _SPACE and not splits[0]["split"]:
        return splits[0]["prepend_scheme"] != "never"
    raise _refused("it treats spaces otherwise than SentencePiece", folder)
