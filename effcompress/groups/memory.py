"""What a model remembers of its sizes besides its tensors: configuration fields and attributes of
modules. Found by value in models of different sizes, so that no coincidence passes for a meaning.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from effcompress.groups.draft import Draft, Product, per_kind, value
from effcompress.types import AxisMap, Config, Widths

# Tensors tell these modules their sizes (``removal/modules.py``).
_FOLLOW_TENSORS = (nn.Linear, nn.Embedding, nn.LayerNorm)


@dataclass(frozen=True)
class Sized:
    """A model of some size, as the draft sees it."""

    config: Config
    module: nn.Module
    axes: AxisMap
    blocks: Mapping[str, int]

    @property
    def widths(self) -> Widths:
        """Widths per axis kind, in the first layer."""
        return per_kind(self.axes.widths, 0)


def fields(draft: Draft, models: Sequence[Sized]) -> dict[str, Product]:
    """Configuration field -> the product of widths and blocks that it holds in every model."""
    found: dict[str, Product] = {}
    for product in _products(draft, ("head",)):
        sizes = [value(product, model.widths, model.blocks) for model in models]
        for name in models[0].config:
            held = [model.config.get(name) for model in models]
            if held == sizes and not any(isinstance(size, bool) for size in held):
                found.setdefault(name, product)
    if found and "head" in draft.blocks:
        # Never left to be derived: hidden size over heads is no longer the width of a head.
        found.setdefault("head_dim", ("head",))
    return found


def attributes(draft: Draft, models: Sequence[Sized]) -> dict[str, dict[str, Product]]:
    """Module of a layer -> attribute -> what it holds in every model."""
    found: dict[str, dict[str, Product]] = {}
    layers = [model.module.get_submodule(draft.layer.replace("{i}", "0")) for model in models]
    products = [p for p in _products(draft, ()) if not set(p) <= draft.blocks.keys()]
    for path, child in layers[0].named_modules():
        if isinstance(child, _FOLLOW_TENSORS) or not path:
            continue
        alike = [layer.get_submodule(path) for layer in layers]
        for name, held in vars(child).items():
            if not isinstance(held, int) or isinstance(held, bool) or name.startswith("_"):
                continue
            sizes = [getattr(other, name, None) for other in alike]
            for product in products:
                if sizes == [value(product, m.widths, m.blocks) for m in models]:
                    found.setdefault(path, {}).setdefault(name, product)
    return found


def configurations(draft: Draft) -> dict[str, dict[str, Product]]:
    """For classes that read a configuration while they run: fields of the one that each module of
    a layer holds.
    """
    return {
        path: {f"config.{name}": product for name, product in draft.fields.items()}
        for path in ("",)
    }


def epsilon_field(config: Config, epsilon: float) -> str:
    """The configuration field that holds the norms' epsilon; empty when there is none."""
    return next((n for n, held in config.items() if "eps" in n and held == epsilon), "")


def _products(draft: Draft, more: tuple[str, ...]) -> Iterator[Product]:
    """Products to look for, plain ones first."""
    kinds = [kind for kind in draft.kinds if kind not in draft.kept or kind == "query"]
    single: list[Any] = [(kind,) for kind in kinds]
    heads = [("attention", "query"), ("attention", "query", "head"), ("attention", "head")]
    blocks = [(name,) for name in more if name in draft.blocks]
    for product in itertools.chain(single, heads, blocks):
        if all(name in kinds or name in draft.blocks for name in product):
            yield product
