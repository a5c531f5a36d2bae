from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from byte_tokenizer import ByteTokenizer

from effcompress.data import prepare
from effcompress.spec import DataSpec, DomainSpec


@pytest.fixture
def texts():
    """texts(n, tag): n different documents that begin with their number."""

    def make(n: int, tag: str = "doc", words: int = 12) -> list[str]:
        rng = random.Random(tag)
        return [
            f"{tag}{i} " + " ".join(str(rng.randrange(10**6)) for _ in range(words))
            for i in range(n)
        ]

    return make


@pytest.fixture
def jsonl(tmp_path):
    def write(name: str, documents: list[str], field: str = "text") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps({field: text}) + "\n" for text in documents))
        return path

    return write


@pytest.fixture
def make(tmp_path):
    """make(domains, ...) -> Corpus, with notices collected in ``make.notices``."""

    def build(domains: dict[str, DomainSpec], tokenizer=None, **options):
        arguments = {
            "train_tokens": 4096,
            "heldout_sequences": 0,
            "offline": True,
            "seed": 0,
            "progress": lambda phrase, share: None,
            "notice": build.notices.append,
        }
        spec_keys = ("sequence_length", "bos", "when_dry", "documents", "mixture")
        spec = {key: options.pop(key) for key in spec_keys if key in options}
        cache = options.pop("cache", tmp_path / "cache")
        data = DataSpec(domains=domains, **{"sequence_length": 32, **spec})
        return prepare(data, tokenizer or ByteTokenizer(), cache, **{**arguments, **options})

    build.notices = []
    return build
