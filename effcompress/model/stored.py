"""The names and tensors that transformers stores of a model's own: for some classes others, a
matrix for each expert in place of one for all, say.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from effcompress.types import Shapes

_LAYER = re.compile(r".*?\.\d+\.")


def stored(skeleton: Any, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Returns tensors of a model as its class stores them, by their names in a file."""
    from transformers.core_model_loading import revert_weight_conversion

    return revert_weight_conversion(skeleton, dict(tensors))


def stored_together(skeleton: Any, shapes: Shapes) -> list[tuple[str, ...]]:
    """Returns names of a model's tensors in groups, the smallest of which each can be stored by
    itself: every one alone, or all of a layer, or all. Left out is what the class does not store.
    """
    left_out = set(getattr(skeleton, "_keys_to_ignore_on_save", None) or ())
    empty = {
        name: torch.empty(shape, device="meta")
        for name, shape in shapes.items()
        if name not in left_out
    }
    whole = _shapes(stored(skeleton, empty))
    if whole == _shapes(empty):
        return [(name,) for name in empty]
    for groups in _groupings(list(empty)):
        found: dict[str, tuple[int, ...]] = {}
        for names in groups:
            found |= _shapes(stored(skeleton, {name: empty[name] for name in names}))
        if found == whole:
            return groups
    return [tuple(empty)]


def _groupings(names: Sequence[str]) -> Iterator[list[tuple[str, ...]]]:
    yield [(name,) for name in names]
    layers: dict[str, list[str]] = {}
    for name in names:
        within = _LAYER.match(name)
        layers.setdefault(within[0] if within else name, []).append(name)
    yield [tuple(held) for held in layers.values()]


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
