"""The configuration fields that speak of single layers: what they are when some layers are gone."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Config = Mapping[str, Any]

LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
"""Names of the number of layers."""
FIRST = ("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index")
"""Fields that say how many layers stand before the first mixture of experts."""
LAST = "num_kv_shared_layers"
"""Field that says how many layers at the end read keys and values of earlier ones."""
NUMBERS = (
    "mlp_only_layers",
    "moe_layers",
    "attn_layer_indices",
    "no_rope_layers_indices",
    "hybrid_layer_ids",
)
"""Fields that list the numbers of layers of one sort."""
OWN = "per_layer_config"
"""Field that gives single layers values of their own, by their numbers."""
_OF_LAYERS = ("layer", "block", "type", "pattern", "freq", "ratio", "_size", "heads")
"""Parts of the names of lists with an entry per layer: other lists may be as long by chance."""


def kept_layers(config: Config, layers: Sequence[int]) -> dict[str, Any]:
    """Returns the fields that differ in a model which keeps only ``layers`` of ``config``, without
    the number of layers: lists with an entry per layer, counts of first or last layers, lists of
    layers' numbers.
    """
    return dict(_kept(config, layers))


def own_fields(config: Config, layer: int) -> Any:
    """Returns the fields that the configuration gives one layer alone, None where it gives none."""
    held = config.get(OWN) or {}
    return held.get(layer, held.get(str(layer).zfill(len(str(max(map(int, held), default=0))))))


def per_layer(name: str, value: object, layers: int | None) -> bool:
    """Returns whether a field of this ``name`` and ``value`` has one entry per layer."""
    listed = isinstance(value, list) and any(part in name for part in _OF_LAYERS)
    return listed and name not in NUMBERS and len(value) == layers  # type: ignore[arg-type]


def _kept(config: Config, layers: Sequence[int]) -> Iterator[tuple[str, Any]]:
    count = next((config[n] for n in LAYERS if _is_number(config.get(n))), None)
    for name, value in config.items():
        if name in NUMBERS and value:
            yield name, [k for k, i in enumerate(layers) if i in value]
        elif per_layer(name, value, count):
            yield name, [value[i] for i in layers]
        elif name in FIRST and _is_number(value):
            yield name, sum(i < value for i in layers)
        elif name == LAST and _is_number(value):
            yield name, sum(i >= (count or 0) - value for i in layers)
    if config.get(OWN):
        own = {k: own_fields(config, i) for k, i in enumerate(layers)}
        yield OWN, {k: fields for k, fields in own.items() if fields is not None}


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
