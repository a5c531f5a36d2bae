"""Sizes that a configuration states in one way or another, and the parts families are made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from effcompress.types import Axis, Config


def linear(module: str, out: tuple[str, str] | str, into: tuple[str, str] | str) -> Iterator[Axis]:
    """Axes of a linear layer's weight: ``out`` and ``into`` are a name, or (name, block)."""
    for dim, side in enumerate((out, into)):
        name, block = (side, "one") if isinstance(side, str) else side
        yield Axis(f"{module}.weight", dim, name, block)


def biased(
    module: str, out: tuple[str, str] | str, into: tuple[str, str] | str, when: str = ""
) -> Iterator[Axis]:
    """A linear layer with a bias: always, or ``when`` a configuration flag says so."""
    yield from linear(module, out, into)
    name, block = (out, "one") if isinstance(out, str) else out
    yield Axis(f"{module}.bias", 0, name, block, when=when)


def head_dim(config: Config) -> int:
    """Width of a head: stated, or hidden size over heads. Pruning never changes it."""
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def kv_heads(config: Config) -> int:
    """KV heads; families without grouped queries have one per query head."""
    return config.get("num_key_value_heads") or config["num_attention_heads"]


def queries_per_kv(config: Config) -> int:
    """Query heads that share one KV head."""
    return config["num_attention_heads"] // kv_heads(config)


def per_layer(*names: str) -> Any:
    """``Family.depth_fields`` for configuration lists with one entry per layer."""

    def fields(config: Config, layers: tuple[int, ...]) -> dict[str, Any]:
        stated: Mapping[str, Any] = {name: config[name] for name in names if config.get(name)}
        return {name: [values[i] for i in layers] for name, values in stated.items()}

    return fields
