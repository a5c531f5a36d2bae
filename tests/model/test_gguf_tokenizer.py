"""llama.cpp splits text into the same tokens as transformers, or the tokenizer is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader, TokenType
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from effcompress.errors import SourceError
from effcompress.model.gguf.read import convert
from effcompress.model.gguf.vocabulary import _LLAMA3, _QWEN2
from effcompress.model.tokenizer import ByteTokenizer
from tests.model.by_llama_cpp import TEXTS, ask, tiny, write

WITHOUT = ("never", "gemma")
"""Schemes that put no space before a text."""


def corpus() -> list[str]:
    text = "the theory of this thing that they then thought through 12 345 2024 it's don't "
    return [text[i:] + text[:i] + "\n" + TEXTS[0] for i in range(40)]


def byte_level(way: str) -> Tokenizer:
    rust = Tokenizer(models.BPE(ignore_merges=way == "llama-bpe"))
    split = {"llama-bpe": _LLAMA3, "dbrx": _LLAMA3, "qwen2": _QWEN2}.get(way)
    regex = split is None
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)
    steps: list[Any] = [last]
    if way == "smollm":
        steps = [pre_tokenizers.Digits(individual_digits=True), last]
    if split is not None:
        steps = [pre_tokenizers.Split(Regex(split), "isolated"), last]
    if way == "qwen2":
        rust.normalizer = normalizers.NFC()
    rust.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else last
    rust.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=["<s>", "</s>"]
    )
    rust.train_from_iterator(corpus(), trainer)
    return rust


def sentencepiece(scheme: str = "") -> Tokenizer:
    """As Llama 2's: spaces are characters, what is unknown is bytes, all joins in token order.
    ``scheme`` is that of newer folders, which add the first space in another step.
    """
    rust = Tokenizer(models.BPE())
    rust.normalizer = normalizers.Replace(" ", "\u2581")
    specials = ["<unk>", "<s>", "</s>", *[f"<0x{b:02X}>" for b in range(256)]]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=specials)
    rust.train_from_iterator(corpus(), trainer)
    vocab = dict(sorted(rust.get_vocab().items(), key=lambda item: item[1]))
    joins = [
        (text[:i], text[i:])
        for text in vocab
        if text not in specials
        for i in range(1, len(text))
        if text[:i] in vocab and text[i:] in vocab
    ]
    model = models.BPE(vocab=vocab, merges=joins, byte_fallback=True, unk_token="<unk>")
    rust = Tokenizer(model)
    steps = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    if scheme == "gemma":
        rust.normalizer = steps[-1]
        rust.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    elif scheme:
        space = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme=scheme, split=False)
        rust.pre_tokenizer = space
    else:
        rust.normalizer = normalizers.Sequence(steps)
    rust.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback()])
    return rust


def saved(rust: Tokenizer, folder: Path, **more: Any) -> Any:
    names = {"bos_token": "<s>", "eos_token": "</s>", **more}
    PreTrainedTokenizerFast(tokenizer_object=rust, **names).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("way", ["gpt-2", "smollm", "llama-bpe", "dbrx", "qwen2", "default"])
def test_tokenizers_agree(way: str, tmp_path: Path) -> None:
    rust = sentencepiece() if way == "default" else byte_level(way)
    texts = ["{% for m in messages %}{{ m.content }}{% endfor %}"]
    backend = saved(rust, tmp_path / "t", chat_template=texts[0])
    model = tiny(vocab_size=len(backend) + 3)
    write(tmp_path / "m.gguf", model, folder=tmp_path / "t")
    found = ask(tmp_path / "m.gguf", texts=TEXTS)
    meta = found["meta"]
    assert found["tokens"] == [backend(text)["input_ids"] for text in TEXTS]
    assert max(map(len, found["tokens"])) > 20
    assert (meta["tokenizer.ggml.pre"], meta["tokenizer.chat_template"]) == (way, texts[0])
    assert meta["tokenizer.ggml.bos_token_id"] == str(backend.bos_token_id)
    assert meta["tokenizer.ggml.eos_token_id"] == str(backend.eos_token_id)


@pytest.mark.parametrize("first", ["ab", "bc"])
def test_joins_happen_in_order(first: str, tmp_path: Path) -> None:
    texts = ["<unk>", "<s>", "</s>", *[f"<0x{b:02X}>" for b in range(256)], *"abc"]
    texts += sorted(("ab", "bc"), key=lambda text: text != first)
    vocab = {text: i for i, text in enumerate(texts)}
    joins = [(text[0], text[1]) for text in texts[-2:]]
    rust = Tokenizer(models.BPE(vocab=vocab, merges=joins, byte_fallback=True, unk_token="<unk>"))
    rust.normalizer = normalizers.Replace(" ", "\u2581")
    backend = saved(rust, tmp_path / "t")
    write(tmp_path / "m.gguf", tiny(vocab_size=len(texts)), folder=tmp_path / "t")
    asked = ["abc", "aabcc", "\u00e9"]
    found = ask(tmp_path / "m.gguf", texts=asked)["tokens"]
    assert found == [backend(text)["input_ids"] for text in asked]
    assert vocab[first] in found[0]


def test_kinds_of_tokens_and_ends(tmp_path: Path) -> None:
    backend = saved(sentencepiece(), tmp_path / "t")
    rows = len(backend) + 2
    model = tiny(vocab_size=rows, eos_token_id=[backend.eos_token_id, 7])
    write(tmp_path / "m.gguf", model, folder=tmp_path / "t")
    fields = GGUFReader(tmp_path / "m.gguf").fields
    types = fields["tokenizer.ggml.token_type"].contents()
    assert types[:3] == [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL]
    assert types[3:259] == [TokenType.BYTE] * 256
    assert set(types[259:-2]) == {TokenType.NORMAL}
    assert types[-2:] == [TokenType.UNUSED] * 2
    ends = [fields[f"tokenizer.ggml.{end}_token_id"].contents() for end in ("eos", "eot")]
    assert ends == [backend.eos_token_id, 7]


@pytest.mark.parametrize("scheme", ["always", "first", "never", "gemma"])
def test_the_first_space(scheme: str, tmp_path: Path) -> None:
    backend = saved(sentencepiece(scheme), tmp_path / "t")
    write(tmp_path / "m.gguf", tiny(vocab_size=len(backend)), folder=tmp_path / "t")
    # SentencePiece puts one before a first space too, this step of transformers does not.
    texts = [text for text in TEXTS if scheme in WITHOUT or not text.startswith(" ")]
    found = ask(tmp_path / "m.gguf", texts=texts)
    assert found["tokens"] == [backend(text)["input_ids"] for text in texts]
    prefix = found["meta"]["tokenizer.ggml.add_space_prefix"]
    assert prefix == ("false" if scheme in WITHOUT else "true")


def test_bos_before_every_text(tmp_path: Path) -> None:
    rust = byte_level("smollm")
    rust.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    backend = saved(rust, tmp_path / "t")
    model = tiny(vocab_size=len(backend))
    write(tmp_path / "m.gguf", model, folder=tmp_path / "t")
    found = ask(tmp_path / "m.gguf", texts=TEXTS)["tokens"]
    assert found == [backend(text)["input_ids"] for text in TEXTS]
    assert found[0][0] == backend.bos_token_id


def test_bytes_as_tokens(tmp_path: Path) -> None:
    ByteTokenizer().save(tmp_path / "t")
    write(tmp_path / "m.gguf", tiny(vocab_size=258), folder=tmp_path / "t")
    found = ask(tmp_path / "m.gguf", texts=TEXTS)
    assert found["tokens"] == [list(text.encode()) for text in TEXTS]


def lowercased() -> Tokenizer:
    rust = byte_level("smollm")
    rust.normalizer = normalizers.Lowercase()
    return rust


def split_otherwise() -> Tokenizer:
    rust = byte_level("smollm")
    rust.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Punctuation(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return rust


def joins_missing() -> Tokenizer:
    rust = sentencepiece()
    plan = json.loads(rust.to_str())
    made = ["".join(m) for m in plan["model"]["merges"]]
    twice = next(i for i, text in enumerate(made) if made.count(text) > 1)
    plan["model"]["merges"].pop(twice)
    return Tokenizer.from_str(json.dumps(plan))


def of_words() -> Tokenizer:
    words = {"<s>": 0, "</s>": 1, "a": 2}
    return Tokenizer(models.WordLevel(vocab=words, unk_token="<s>"))


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lowercased, "Lowercase"),
        (split_otherwise, "no name there"),
        (joins_missing, "not merged"),
        (of_words, "WordLevel"),
    ],
)
def test_other_tokenizers_are_refused(make, word: str, tmp_path: Path) -> None:
    saved(make(), tmp_path / "t")
    model = tiny(vocab_size=600)
    with pytest.raises(SourceError, match=rf"{word}[\s\S]*without a tokenizer"):
        write(tmp_path / "m.gguf", model, folder=tmp_path / "t")
    assert not (tmp_path / "m.gguf").exists()


def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path: Path) -> None:
    saved(byte_level("gpt-2"), tmp_path / "t")
    with pytest.raises(SourceError, match=r"3\d\d tokens, the embedding 61 rows"):
        write(tmp_path / "m.gguf", tiny(), folder=tmp_path / "t")


def test_transformers_reads_it_too(tmp_path: Path) -> None:
    saved(byte_level("smollm"), tmp_path / "t")
    model = tiny(vocab_size=400, tie_word_embeddings=False)
    write(tmp_path / "m.gguf", model, folder=tmp_path / "t")
    (tmp_path / "back").mkdir()
    assert convert(tmp_path / "m.gguf", tmp_path / "back", label="back") == "F32"
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "back").state_dict()
    assert all(torch.equal(back[k], v) for k, v in model.state_dict().items())
