"""Finds configuration fields and module attributes that hold sizes: those that equal a product of
widths in two models of different sizes, so that a coincidence in one of them does not count.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from effcompress.groups.tracing.draft import Draft, Product, value
from effcompress.types import AxisMap, Config, Widths, in_layer

# The engine sets the size attributes of these classes from their tensors.
_FOLLOW_TENSORS = (nn.Linear, nn.Embedding, nn.LayerNorm)
_QUERIES: Product = ("attention", "query")
_ACROSS: tuple[Product, ...] = (("attention", "query", "head"), ("attention", "head"))


@dataclass(frozen=True)
class Sized:
    """A model with the draft's axes resolved on it."""

    config: Config
    module: nn.Module
    axes: AxisMap
    per_unit: Mapping[str, int]
    """``Draft.positions_per_unit`` of this model."""

    @property
    def widths(self) -> Widths:
        """Widths per axis kind, in the first layer."""
        return in_layer(self.axes.widths, 0)

    def holds(self, product: Product) -> int:
        """Value of a product of sizes in this model."""
        return value(product, self.widths, self.per_unit)


def fields(draft: Draft, models: Sequence[Sized]) -> dict[str, Product]:
    """Configuration field -> the product of sizes that it holds in every model."""
    found: dict[str, Product] = {}
    for product in _products(draft):
        sizes = [model.holds(product) for model in models]
        if set(sizes) == {1}:
            continue  # a size of 1 would match too many fields
        for name in models[0].config:
            held = [model.config.get(name) for model in models]
            if held == sizes and not any(isinstance(size, bool) for size in held):
                found.setdefault(name, product)
    shared: Any = models[0].module.config
    derived = isinstance(getattr(type(shared), "head_dim", None), property)
    if found and "head" in draft.positions_per_unit and not derived:
        # Stated, since classes derive it as hidden size / heads, which pruning makes wrong.
        found.setdefault("head_dim", ("head",))
    return found


def attributes(draft: Draft, models: Sequence[Sized]) -> dict[str, dict[str, Product]]:
    """Module of a layer -> attribute -> the product of sizes that it holds in every model."""
    found: dict[str, dict[str, Product]] = {}
    layers = [model.module.get_submodule(draft.layer.replace("{i}", "0")) for model in models]
    for path, child in layers[0].named_modules():
        if isinstance(child, _FOLLOW_TENSORS) or not path:
            continue
        alike = [layer.get_submodule(path) for layer in layers]
        products = list(_products(draft, across=_attends(draft, path)))
        for name, held in vars(child).items():
            if not isinstance(held, int) or isinstance(held, bool) or name.startswith("_"):
                continue
            sizes = [getattr(other, name, None) for other in alike]
            for product in products:
                if sizes == [model.holds(product) for model in models]:
                    found.setdefault(path, {}).setdefault(name, product)
    return found


def epsilon_field(config: Config, epsilon: float) -> str:
    """The configuration field that holds the norms' epsilon; empty when there is none."""
    return next((n for n, held in config.items() if "eps" in n and held == epsilon), "")


def _attends(draft: Draft, path: str) -> bool:
    inside = f"{draft.layer}.{path}."
    return any(a.param.startswith(inside) and a.name.startswith("attention") for a in draft.axes)


def _products(draft: Draft, *, across: bool = False) -> Iterator[Product]:
    """Yields the products to look for, in order, of axis kinds that can be cut.

    The hidden size often equals heads times head width. Within attention, such a number is taken
    for the heads (``across``), elsewhere for the hidden size.
    """
    kinds = {kind for kind in draft.kinds if kind in ("hidden", "attention", "query", "ffn")}
    single: list[Product] = [(kind,) for kind in draft.kinds if kind in kinds]
    for product in (*(_ACROSS if across else ()), *single, _QUERIES):
        if all(name in kinds or name in draft.positions_per_unit for name in product):
            yield product
