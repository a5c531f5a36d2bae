"""What a source says of itself: read from cards and gguf metadata, never from the network."""

from __future__ import annotations

from pathlib import Path

import pytest
from gguf import GGUFWriter

from effcompress.model import source_facts
from effcompress.model.gguf.read import general
from effcompress.model.source_facts import SourceFacts, facts_of, gguf_facts
from effcompress.spec import ModelSpec

CARD = """---
license: other
license_name: llama3.2
license_link: https://example.org/license
language:
- en
- de
base_model: someone/grandparent
tags: [a]
---
# x
"""


def test_a_hub_model_is_the_base_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "README.md").write_text(CARD)
    monkeypatch.setattr(source_facts.hub, "cached_file", lambda *_: tmp_path / "README.md")
    assert facts_of(ModelSpec(hub="someone/parent", revision="v1")) == SourceFacts(
        "someone/parent", "other", "llama3.2", "https://example.org/license", ("en", "de")
    )
    monkeypatch.setattr(source_facts.hub, "cached_file", lambda *_: None)
    assert facts_of(ModelSpec(hub="someone/parent")) == SourceFacts("someone/parent")
    assert facts_of(ModelSpec(hub="someone/parent", random=True)) == SourceFacts()


def test_a_folder_says_what_its_card_says(tmp_path: Path) -> None:
    spec = ModelSpec(folder=tmp_path)
    assert facts_of(spec) == SourceFacts()
    (tmp_path / "README.md").write_text(CARD)
    found = facts_of(spec)
    assert found.license == "other" and found.base_model is None, "its parent is another model"
    (tmp_path / "README.md").write_text(CARD.replace("[a]", "[effcompress]"))
    assert facts_of(spec).base_model == "someone/grandparent", "a pruned model, pruned again"


@pytest.mark.parametrize(
    "text",
    ["", "# no front matter", "---\n: : {\n---\n", "---\n- a\n- list\n---\n",
     "---\nlicense: [1]\n---\n", "---\nlicense: 3\nlanguage: 7\n---\n"],
)  # fmt: skip
def test_a_card_that_says_nothing_readable(tmp_path: Path, text: str) -> None:
    (tmp_path / "README.md").write_text(text)
    assert facts_of(ModelSpec(folder=tmp_path)) == SourceFacts()


def test_a_gguf_file_says_it_in_its_metadata(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_license("apache-2.0")
    writer.add_languages(["en"])
    writer.add_source_repo_url("https://huggingface.co/someone/parent")
    writer.add_base_model_count(1)
    writer.add_base_model_repo_url(0, "https://huggingface.co/someone/grandparent")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    facts = gguf_facts(general(tmp_path / "m.gguf"))
    assert facts == {
        "base_model": "someone/parent", "license": "apache-2.0", "languages": ["en"]
    }  # fmt: skip
    assert source_facts._made(facts) == SourceFacts(
        "someone/parent", "apache-2.0", languages=("en",)
    )
    assert source_facts._made({"base_model": "https://elsewhere.org/a/b"}).base_model is None
