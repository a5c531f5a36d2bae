"""Reads the configuration of an ``exact`` folder: its parent's fields, depth and shapes. Imports no
torch.

Such a configuration keeps the parent's sizes and stores under ``pruned`` what differs
(``model/exact.py``). The engine works with the parent's fields and the stored shapes.
"""

from collections.abc import Mapping
from typing import TypedDict

from effcompress.errors import SourceError
from effcompress.types import Config, Depth, Family, Fields, Shapes, Stream

_OWN = ("pruned", "auto_map", "architectures", "pruned_per_layer_config")
STREAM = "pruned_stream"
"""Field of ``parent_of`` for a model whose residual stream is rotated: how it is put together."""


Part = tuple[str, int]
"""A module that is removed: path in its layer, and how many values it returns (0: an identity)."""


class Pruned(TypedDict, total=False):
    """What differs from the parent's class, in absolute numbers; empty where nothing does."""

    parent: str
    """The parent's ``model_type``."""
    shapes: Mapping[str, list[int]]
    """Parameter -> shape, for all of them."""
    absent: Mapping[str, list[Part]]
    """Layer -> modules that are removed in it."""
    attributes: Mapping[str, Mapping[str, object]]
    """Module path -> attribute -> size."""
    epsilons: Mapping[str, float]
    """Path of a norm -> its epsilon."""
    stream: Stream
    """The rotated residual stream, where there is one."""
    buffers: Mapping[str, list[int]]
    """Buffer that is stored -> shape."""


def is_pruned(config: Config) -> bool:
    """Whether it is that of an exact folder."""
    named = config.get("architectures") == ["PrunedForCausalLM"]
    return named and isinstance(config.get("pruned"), Mapping)


def parent_of(config: Config) -> Fields:
    """The parent's configuration, with the stream of a rotated model; that of any other model
    unchanged.
    """
    if not is_pruned(config):
        return dict(config)
    plain = {key: value for key, value in config.items() if key not in _OWN}
    stream = config["pruned"].get("stream")
    rotated = {STREAM: stream} if stream else {}
    return {**plain, "model_type": config["pruned"].get("parent"), **rotated}


def depth_of(family: Family, config: Config) -> Depth | None:
    """The layers, and the blocks that are removed from them; None for ordinary models.

    Raises SourceError if the configuration names an absent module that is no block of the family.
    """
    if not is_pruned(config):
        return None
    blocks = family.sublayers.items()
    known = {path: kind for kind, part in blocks for path in part.silenced}
    absent: set[str] = set()
    for layer, parts in (config["pruned"].get("absent") or {}).items():
        # Parts with 0 outputs are identities (norms) that went with their block.
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
