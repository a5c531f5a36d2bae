"""Tokenizers: bytes, and anything transformers loads, behind one interface."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from effcompress.errors import SourceError
from effcompress.model.gguf.read import convert
from effcompress.model.tokenizer import ByteTokenizer, HFTokenizer, open_tokenizer

TEXTS = [
    "",
    "plain",
    "  two  spaces\n\ttab\r\n",
    "h\u00e9llo \u4f60 \U0001f600",
    "<|eos|> spelt out",
]


@functools.cache
def exported() -> HFTokenizer:
    """What transformers makes of the files that a byte tokenizer writes."""
    with tempfile.TemporaryDirectory() as folder:
        ByteTokenizer().save(Path(folder))
        opened = open_tokenizer(folder, None, offline=True)
    assert isinstance(opened, HFTokenizer)
    return opened


def test_bytes_and_their_export_agree():
    saved = exported()
    ours = ByteTokenizer()
    assert saved.encode(TEXTS) == ours.encode(TEXTS) == [list(t.encode()) for t in TEXTS]
    assert (saved.bos_id, saved.eos_id, saved.vocab_size) == (256, 257, 258)
    assert saved.adds_bos is ours.adds_bos is False
    every = bytes(range(256)).decode("latin-1")
    for text in [*TEXTS, every]:
        (ids,) = saved.encode([text])
        assert saved.decode(ids) == ours.decode([256, *ids, 257]) == text


@given(st.text(max_size=40))
def test_bytes_agree_on_any_text(text):
    assert exported().encode([text]) == ByteTokenizer().encode([text])


def test_lone_surrogates_do_not_stop_a_run():
    saved = exported()
    assert saved.encode(["a\ud800b"]) == ByteTokenizer().encode(["a\ud800b"]) == [[97, 63, 98]]
    assert saved.encode([]) == []


def test_the_tokenizer_of_a_gguf_file(tiny_gguf, tmp_path):
    (tmp_path / "a").mkdir()
    convert(tiny_gguf, tmp_path / "a", label="x")
    one = open_tokenizer(None, tmp_path / "a", offline=True)
    assert one.encode(["the"]) == [[258, ord("e")]]
    assert (one.bos_id, one.eos_id, one.vocab_size) == (256, 257, 260)
    one.save(tmp_path / "b")
    again = open_tokenizer(str(tmp_path / "b"), None, offline=True)
    assert again.fingerprint == one.fingerprint
    assert again.fingerprint != ByteTokenizer().fingerprint


def hf(special: list[str], *, template: bool = False, **names):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocab = {"[UNK]": 0, "a": 1, **{name: i + 2 for i, name in enumerate(special)}}
    rust = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    rust.pre_tokenizer = pre_tokenizers.Whitespace()
    if template:
        pair = ("<s>", vocab["<s>"])
        rust.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[pair]
        )
    return PreTrainedTokenizerFast(tokenizer_object=rust, model_max_length=4, **names)


def test_documents_end_with_the_separator_of_pretraining():
    instruct = hf(["<|endoftext|>", "<|im_end|>"], eos_token="<|im_end|>")
    assert HFTokenizer(instruct).eos_id == 2
    plain = hf(["</s>"], eos_token="</s>")
    assert HFTokenizer(plain).eos_id == 2


def test_whether_it_adds_bos_is_tried_out():
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    assert HFTokenizer(hf(["<s>", "</s>"], template=True, **names)).adds_bos is True
    assert HFTokenizer(hf(["<s>", "</s>"], **names)).adds_bos is False
    assert HFTokenizer(hf(["</s>"], eos_token="</s>")).adds_bos is False


def test_encode_adds_nothing_cuts_nothing_and_does_not_warn(caplog):
    one = HFTokenizer(hf(["<s>", "</s>"], template=True, bos_token="<s>", eos_token="</s>"))
    before = one.fingerprint
    assert one.encode(["a " * 9, "a"]) == [[1] * 9, [1]]
    assert caplog.records == []
    one.backend("a a a a a a", truncation=True, max_length=2)
    assert HFTokenizer(one.backend).fingerprint == before


def test_a_folder_without_a_tokenizer(tmp_path):
    with pytest.raises(SourceError, match="tokenizer cannot be loaded"):
        open_tokenizer(str(tmp_path), None, offline=True)


def test_bytes_are_the_default_without_a_folder():
    assert isinstance(open_tokenizer(None, None, offline=True), ByteTokenizer)
    assert isinstance(open_tokenizer("bytes", None, offline=True), ByteTokenizer)


def test_text_that_spells_a_special_token_is_text() -> None:
    backend = hf(["<s>", "</s>"], bos_token="<s>", eos_token="</s>")
    found = HFTokenizer(backend).encode(["a <s> a"])[0]
    assert backend.bos_token_id not in found
