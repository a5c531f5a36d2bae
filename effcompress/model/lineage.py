"""What a configuration says of the model that it was pruned from. Imports no torch.

The configuration of a folder with widths per layer keeps its parent's sizes, and stores beside them
what differs (``model/exact.py``). The engine works on the parent's fields and the stored shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from effcompress.errors import SourceError
from effcompress.types import Config, Depth, Family, Shapes

_OWN = ("pruned", "auto_map", "architectures", "pruned_per_layer_config")


def is_pruned(config: Config) -> bool:
    """Whether it is that of a folder with widths per layer."""
    named = config.get("architectures") == ["PrunedForCausalLM"]
    return named and isinstance(config.get("pruned"), Mapping)


def parent_of(config: Config) -> dict[str, Any]:
    """The parent's configuration; of any other model, its own."""
    if not is_pruned(config):
        return dict(config)
    plain = {key: value for key, value in config.items() if key not in _OWN}
    return {**plain, "model_type": config["pruned"].get("parent")}


def depth_of(family: Family, config: Config) -> Depth | None:
    """Which of the layers in the configuration's count lack a block; None for ordinary models.

    Raises SourceError if a module is said to be absent that the family does not know as a block.
    """
    if not is_pruned(config):
        return None
    known = {part.silent: kind for kind, part in family.sublayers.items()}
    absent: set[str] = set()
    for layer, parts in (config["pruned"].get("absent") or {}).items():
        for path, outputs in parts:
            if outputs and path not in known:
                raise SourceError(f"'{path}' is no block", where="config.json: pruned.absent")
            if outputs:
                absent.add(f"{known[path]}.{layer}")
    layers = range(family.read(config, "num_hidden_layers"))
    return Depth(tuple(layers), frozenset(absent))


def shapes_of(config: Config) -> Shapes | None:
    """Stored shapes by parameter; None for ordinary models."""
    if not is_pruned(config):
        return None
    return {name: tuple(shape) for name, shape in config["pruned"]["shapes"].items()}
