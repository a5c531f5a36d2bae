"""What declarations are made of: axes of linear layers, and sizes read from a configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from effcompress.types import Axis, Config, Fields


def linear(
    module: str, out: tuple[str, str] | str, into: tuple[str, str] | str, when: str = ""
) -> Iterator[Axis]:
    """Axes of a weight ``[out, into]``; each side is a name, or (name, per_unit)."""
    for dim, side in enumerate((out, into)):
        name, per_unit = (side, "one") if isinstance(side, str) else side
        yield Axis(f"{module}.weight", dim, name, per_unit, when)


def biased(
    module: str, out: tuple[str, str] | str, into: tuple[str, str] | str, when: str = ""
) -> Iterator[Axis]:
    """Axes of a linear layer with a bias: always, or ``when`` a configuration flag is set."""
    yield from linear(module, out, into)
    name, per_unit = (out, "one") if isinstance(out, str) else out
    yield Axis(f"{module}.bias", 0, name, per_unit, when=when)


def head_dim(config: Config) -> int:
    """Width of a head: ``head_dim``, or hidden size / heads. Pruning never changes it."""
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def kv_heads(config: Config) -> int:
    """Number of KV heads; without grouped queries, one per query head."""
    return config.get("num_key_value_heads") or config["num_attention_heads"]


def queries_per_kv(config: Config) -> int:
    """Query heads per KV head (grouped-query attention)."""
    return config["num_attention_heads"] // kv_heads(config)


def per_layer(*names: str) -> Callable[[Config, tuple[int, ...]], Fields]:
    """Makes a ``Family.depth_fields`` that shortens lists with one entry per layer."""

    def fields(config: Config, layers: tuple[int, ...]) -> Fields:
        stated = (name for name in names if config.get(name))
        return {name: [config[name][i] for i in layers] for name in stated}

    return fields
