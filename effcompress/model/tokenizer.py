"""Implements ``types.TextTokenizer``: a wrapper of transformers' tokenizers, and one of bytes."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from effcompress.errors import SourceError
from effcompress.model.chat_template import said_in_words
from effcompress.model.fetch import tokenizer_folder
from effcompress.model.hub import Progress
from effcompress.model.integrity import read_object
from effcompress.model.silence import explained, quietly
from effcompress.model.source import tokenizer_kind
from effcompress.model.suitability import SEPARATORS

BOS, EOS = "<|bos|>", "<|eos|>"
CONFIG = "tokenizer_config.json"
_CLASS_5, _CLASS_4 = "TokenizersBackend", "PreTrainedTokenizerFast"
_OF_THE_LOAD = ("is_local", "local_files_only")


class HFTokenizer:
    """Wraps a tokenizer of transformers (``backend``).

    ``eos_id`` is the first of ``SEPARATORS`` that the vocabulary has, else the tokenizer's own EOS.
    ``vocab_size`` counts added tokens, so it may exceed the rows of the model's embedding;
    ``largest`` is the largest id that a text or packing can give, and its token.
    """

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        vocab: dict[str, int] = backend.get_vocab()
        separator = next((vocab[name] for name in SEPARATORS if name in vocab), None)
        self.bos_id: int | None = backend.bos_token_id
        self.eos_id: int | None = backend.eos_token_id if separator is None else separator
        self.vocab_size: int = len(backend)
        self.stop_id: int | None = backend.eos_token_id
        self.unknown_id: int | None = _unknown(backend)
        added = backend.added_tokens_decoder.items()
        self.special: Mapping[int, str] = {i: token.content for i, token in added if token.special}
        template = backend.chat_template  # a dictionary where there are several
        default = template.get("default") if isinstance(template, dict) else template
        self.template: str | None = default
        silent = self.special.keys() - {self.bos_id, self.eos_id, self.stop_id}
        self.largest = max((i, text) for text, i in vocab.items() if i not in silent)
        self.adds_bos: bool = self._begins_with_bos()
        self.fingerprint: str = self._hash(vocab)

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, without special tokens or truncation. A lone surrogate counts as
        ``?``.
        """
        return [list(ids) for ids in self._ids(texts)["input_ids"]] if texts else []

    def offsets(self, texts: list[str], *, special: bool) -> list[tuple[list[int], list[Any]]]:
        """As ``TextTokenizer`` says. Raises SourceError for a tokenizer that does not know."""
        if not texts:
            return []
        try:
            found = self._ids(texts, split_special_tokens=not special, return_offsets_mapping=True)
        except NotImplementedError as error:
            raise SourceError(
                "this tokenizer does not tell which characters a token stands for, so prompts and "
                "answers cannot be told apart",
                where=str(self.backend.name_or_path),
                fix="use one with a tokenizer.json",
            ) from error
        return [*zip(found["input_ids"], found["offset_mapping"], strict=True)]

    def _ids(self, texts: list[str], **how: Any) -> Any:
        clean = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
        # `verbose=False` hides the warning about long sequences, which packing splits later.
        # `split_special_tokens`: a text that spells "</s>" must not give the EOS id, which only
        # packing inserts.
        plain = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
        return self.backend(clean, **{"split_special_tokens": True, **plain, **how})

    def render(self, turns: Sequence[Mapping[str, str]], *, generation: bool) -> str:
        """As ``TextTokenizer`` says."""
        with said_in_words():
            return self.backend.apply_chat_template(
                [dict(turn) for turn in turns], tokenize=False, add_generation_prompt=generation
            )

    def decode(self, ids: list[int]) -> str:
        """The text of ``ids``, special tokens left out."""
        return self.backend.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def save(self, folder: Path) -> None:
        """Writes the files that ``AutoTokenizer`` loads."""
        _save(self.backend, folder)

    def _begins_with_bos(self) -> bool:
        if self.bos_id is None:
            return False
        plain = self.backend("a", add_special_tokens=False)["input_ids"]
        dressed = self.backend("a", add_special_tokens=True)["input_ids"]
        return dressed[:1] == [self.bos_id] and plain[:1] != [self.bos_id]

    def _hash(self, vocab: dict[str, int]) -> str:
        rust = getattr(self.backend, "backend_tokenizer", None)
        if rust is not None:
            # Truncation and padding are state of the last call: reset, so that the hash is stable.
            rust.no_truncation()
            rust.no_padding()
            text = rust.to_str()
        else:
            text = type(self.backend).__name__ + json.dumps(vocab, sort_keys=True)
        special = [text, self.bos_id, self.eos_id, self.adds_bos, "special tokens split"]
        return hashlib.sha256(json.dumps(special).encode()).hexdigest()


class ByteTokenizer:
    """One token per byte of UTF-8: ids 0 to 255, then BOS (256) and EOS (257)."""

    bos_id: int | None = 256
    eos_id: int | None = 257
    adds_bos = False
    stop_id: int | None = 257
    unknown_id: int | None = None
    vocab_size = 258
    largest = (257, EOS)
    special: Mapping[int, str] = {256: BOS, 257: EOS}
    template: str | None = None
    fingerprint = hashlib.sha256(b"effcompress bytes 1").hexdigest()

    def encode(self, texts: list[str]) -> list[list[int]]:
        """The bytes of each text; a lone surrogate counts as ``?``."""
        return [list(text.encode("utf-8", "replace")) for text in texts]

    def offsets(self, texts: list[str], *, special: bool) -> list[tuple[list[int], list[Any]]]:
        """As ``TextTokenizer`` says; special tokens cannot be spelt."""
        found: list[tuple[list[int], list[Any]]] = []
        for text, ids in zip(texts, self.encode(texts), strict=True):
            widths = [len(character.encode("utf-8", "replace")) for character in text]
            ends = [(n, n + 1) for n, width in enumerate(widths) for _ in range(width)]
            found.append((ids, ends))
        return found

    def render(self, turns: Sequence[Mapping[str, str]], *, generation: bool) -> str:
        """There is no template."""
        raise ValueError("a tokenizer of bytes has no chat template")

    def decode(self, ids: list[int]) -> str:
        """The text of ``ids``; BOS and EOS are left out, broken UTF-8 becomes U+FFFD."""
        return bytes(i for i in ids if i < 256).decode("utf-8", "replace")

    def save(self, folder: Path) -> None:
        """Writes an equivalent byte-level tokenizer that ``AutoTokenizer`` loads."""
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        vocab = {character: byte for byte, character in enumerate(byte_alphabet())}
        rust = Tokenizer(models.BPE(vocab=vocab, merges=[]))
        rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        rust.decoder = decoders.ByteLevel()
        # A text that spells a special token is still bytes.
        backend = PreTrainedTokenizerFast(
            tokenizer_object=rust, bos_token=BOS, eos_token=EOS, split_special_tokens=True
        )
        _save(backend, folder)


def _unknown(backend: Any) -> int | None:
    """The id of the token for what the vocabulary cannot spell; where another token has the role
    of EOS or BOS, too, a text is not known to have been unknown.
    """
    found: int | None = backend.unk_token_id
    return None if found in (backend.bos_token_id, backend.eos_token_id) else found


def _save(backend: Any, folder: Path) -> None:
    """Writes a tokenizer under the class that its source names. Version 5 of transformers calls any
    ``TokenizersBackend``, a class that version 4 does not have.
    """
    with quietly():
        backend.save_pretrained(str(folder))
    path = folder / CONFIG
    # `is_local` and the like are arguments of this load, not properties of the tokenizer.
    config = {k: v for k, v in (read_object(path) or {}).items() if k not in _OF_THE_LOAD}
    if config.get("tokenizer_class") == _CLASS_5:
        source = read_object(Path(backend.name_or_path) / CONFIG) or {}
        named = source.get("tokenizer_class", _CLASS_5)
        config["tokenizer_class"] = _CLASS_4 if named == _CLASS_5 else named
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def byte_alphabet() -> list[str]:
    """The character that stands for each byte in byte-level BPE (GPT-2's table)."""
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    spare = iter(range(256, 512))
    return [chr(byte if byte in plain else next(spare)) for byte in range(256)]


def open_tokenizer(
    name: str | None,
    folder: Path | None,
    *,
    offline: bool,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> HFTokenizer | ByteTokenizer:
    """Opens the tokenizer that a spec names (`bytes`, folder, hub id), else that of the model's
    folder; without either, bytes.

    Raises:
        SourceError: it is not on this machine and cannot be fetched, or cannot be read.
    """
    kind = tokenizer_kind(name) if name else None
    if kind == "bytes" or (kind is None and folder is None):
        return ByteTokenizer()
    if kind == "folder":
        folder = Path(str(name)).expanduser()
    elif kind == "hub":
        folder = tokenizer_folder(str(name), offline=offline, progress=progress)
    from transformers import AutoTokenizer

    fix = "set model.tokenizer to `bytes`, a folder with tokenizer.json, or a hub id"
    with explained("its tokenizer cannot be loaded", where=str(folder), fix=fix), quietly():
        backend = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=trust_remote_code
        )
    return HFTokenizer(backend)
