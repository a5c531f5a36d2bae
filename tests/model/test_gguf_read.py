"""gguf to Hugging Face: the folder is an ordinary one and says honestly where it comes from."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from effcompress.errors import SourceError
from effcompress.model.gguf.read import convert
from effcompress.model.gguf.write import LayerWidths, write_gguf
from effcompress.model.load import load
from effcompress.model.tokenizer import ByteTokenizer
from effcompress.spec import ModelSpec
from tests.conftest import tiny


def test_the_folder_loads_and_holds_the_weights_of_the_file(tiny_gguf, tmp_path):
    from gguf import GGUFReader, dequantize
    from transformers import AutoModelForCausalLM

    dtype = convert(tiny_gguf, tmp_path, label="tiny-model==1.0/x.gguf")
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert dtype == "Q8_0"
    assert not any(info.values())
    stored = {t.name: t for t in GGUFReader(tiny_gguf).tensors}["blk.1.ffn_down.weight"]
    wanted = torch.from_numpy(dequantize(stored.data, stored.tensor_type).copy())
    torch.testing.assert_close(model.model.layers[1].mlp.down_proj.weight.data, wanted)
    assert (tmp_path / "generation_config.json").is_file()


def test_the_configuration_is_plain(tiny_gguf, tmp_path):
    convert(tiny_gguf, tmp_path, label="somewhere honest")
    text = (tmp_path / "config.json").read_text()
    config = json.loads(text)
    assert "quantization_config" not in config
    assert config["dtype"] == "float32"
    assert "working title" not in text
    assert str(tiny_gguf.parent) not in text


def test_it_is_quiet(tiny_gguf, tmp_path, capfd):
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    convert(tiny_gguf, tmp_path, label="x")
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


@pytest.mark.parametrize(("pre", "wanted"), [("", [259]), ("smollm", [49, 50])])
def test_digits_are_split_as_the_file_says(make_gguf, tmp_path, pre, wanted):
    from transformers import AutoTokenizer

    make_gguf(tmp_path / "x.gguf", pre=pre)
    convert(tmp_path / "x.gguf", tmp_path, label="x")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer("12", add_special_tokens=False)["input_ids"] == wanted
    assert tokenizer("th", add_special_tokens=False)["input_ids"] == [258]
    assert tokenizer.decode(wanted) == "12"


def test_not_a_gguf_file(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(SourceError, match=r"x\.gguf: this is not a gguf file"):
        convert(path, tmp_path, label="x")


def test_a_truncated_file_is_an_error(tiny_gguf, tmp_path):
    path = tmp_path / "cut.gguf"
    path.write_bytes(tiny_gguf.read_bytes()[:-4000])
    with pytest.raises(SourceError, match=r"cut\.gguf: cannot be converted"):
        convert(path, tmp_path, label="x")


def test_a_missing_weight_is_an_error(make_gguf, tmp_path):
    make_gguf(tmp_path / "x.gguf", leave_out="blk.1.ffn_down")
    with pytest.raises(SourceError, match=r"lacks weights.*layers\.1\.mlp\.down_proj"):
        convert(tmp_path / "x.gguf", tmp_path, label="x")


def test_a_file_of_the_byte_tokenizer_is_read_back(tmp_path):
    """What `export --as gguf` writes is a source again, without a network."""
    ByteTokenizer().save(tmp_path / "words")
    model = tiny("gqa_tied", vocab_size=258, bos_token_id=256, eos_token_id=257)
    config = json.loads(model.config.to_json_string(use_diff=False))
    file, tensors = tmp_path / "tiny.gguf", dict(model.named_parameters())
    layers = [LayerWidths(40, 6, 3)] * 3
    words = tmp_path / "words"
    write_gguf(file, config, layers, 48, 1e-6, tensors, words, dtype="F32", name="tiny")
    again: Any = load(ModelSpec(gguf=file), tmp_path / "cache", offline=True)
    text = "a bé\n  <|eos|> 12"
    assert again.tokenizer.encode([text]) == ByteTokenizer().encode([text])
    assert (again.tokenizer.bos_id, again.tokenizer.eos_id) == (256, 257)
    for name, p in again.module.named_parameters():
        torch.testing.assert_close(p, tensors[name])
