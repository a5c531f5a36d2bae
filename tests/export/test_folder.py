"""What lies beside the weights of an exported folder: templates, permissions, tokenizer class."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from effcompress.export.forms import form
from effcompress.export.write import write
from effcompress.model.tokenizer import ByteTokenizer, HFTokenizer, open_tokenizer
from tests.export.test_forms import cut

TEMPLATES = {"default": "{{ messages[0].content }}", "tool_use": "T {{ messages[0].content }}"}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The folder of a tokenizer with two named chat templates."""
    folder = tmp_path / "source"
    folder.mkdir()
    ByteTokenizer().save(folder)
    backend = AutoTokenizer.from_pretrained(folder)
    backend.chat_template = TEMPLATES
    backend.save_pretrained(folder)
    return folder


def opened(folder: Path) -> HFTokenizer:
    found = open_tokenizer(str(folder), None, offline=True)
    assert isinstance(found, HFTokenizer)
    return found


def test_named_templates_are_there_for_everybody_and_again(source: Path, tmp_path: Path) -> None:
    """As files in a folder, which others may enter; a second export replaces them."""
    pruned, out = cut("llama", "width", "uniform"), tmp_path / "out"
    before = os.umask(0o022)
    try:
        for _ in range(2):
            write(form(pruned, "uniform"), pruned, opened(source), out)
    finally:
        os.umask(before)
    assert AutoTokenizer.from_pretrained(out).chat_template == TEMPLATES
    named = out / "additional_chat_templates"
    assert named.stat().st_mode & 0o777 == 0o755
    assert {f.stat().st_mode & 0o777 for f in [*out.glob("*.json"), *named.iterdir()]} == {0o644}
    assert not list(out.glob(".exporting-*"))


@pytest.mark.parametrize(
    ("named", "written"),
    [
        ("TokenizersBackend", "PreTrainedTokenizerFast"),
        ("GPT2Tokenizer", "GPT2Tokenizer"),
        ("PreTrainedTokenizerFast", "PreTrainedTokenizerFast"),
        (None, "PreTrainedTokenizerFast"),
    ],
)
def test_the_class_of_the_source_is_kept(
    source: Path, tmp_path: Path, named: str | None, written: str
) -> None:
    path = source / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config.pop("tokenizer_class")
    path.write_text(json.dumps({**config, **({"tokenizer_class": named} if named else {})}))
    out = tmp_path / "out"
    out.mkdir()
    tokenizer = opened(source)
    tokenizer.save(out)
    config = json.loads((out / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == written
    assert not {"is_local", "local_files_only"} & config.keys()
    assert opened(out).encode(["a \u00e9 <|eos|>"]) == tokenizer.encode(["a \u00e9 <|eos|>"])
