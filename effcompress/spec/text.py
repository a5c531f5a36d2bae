"""Text to train and to measure on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from effcompress.spec.key import NAME, Fraction, InputPath, key


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
        "instruction data: text in front of every document, with fields of its record in braces, "
        "e.g. '### {instruction}\\n'; it is read, but neither trained on nor evaluated",
        None,
    )
    weight: float = key("share of the training tokens, relative to the other domains", 1.0, above=0)
    validation: tuple[InputPath, ...] = key("held-out file(s) of the same format", ())
    validation_split: str | None = key("held-out split of a hub data set", None)
    holdout: Fraction = key(
        "share of documents held out when no validation is named", 0.05, below=1
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
        "a domain runs out of text: read it again in another order (and say so), or stop", "repeat"
    )
