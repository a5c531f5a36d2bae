"""Which sizes configuration fields and modules state.

They are those that equal a product of widths in two models of different sizes, so that a
coincidence in one of them does not count.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from effcompress.groups.tracing.draft import Draft, Product
from effcompress.groups.tracing.probe import Sized
from effcompress.groups.tracing.propose import KINDS
from effcompress.types import Config

# The engine sets the size attributes of these classes from their tensors.
_FOLLOW_TENSORS = (nn.Linear, nn.Embedding, nn.LayerNorm)
_QUERIES: Product = ("attention", "query")
_HEADS: tuple[Product, ...] = (("attention", "query", "head"), ("attention", "head"))


def fields_of(draft: Draft, models: Sequence[Sized]) -> dict[str, Product]:
    """Configuration field -> the product of sizes that it holds in every model."""
    found: dict[str, Product] = {}
    for product in _products(draft):
        sizes = [model.holds(product) for model in models]
        if set(sizes) <= {0, 1}:
            continue  # a size of 1 would match too many fields
        for name in models[0].probe.config:
            held = [model.probe.config.get(name) for model in models]
            if held == sizes and not any(isinstance(size, bool) for size in held):
                found.setdefault(name, product)
    shared: Any = models[0].probe.module.config
    derived = isinstance(getattr(type(shared), "head_dim", None), property)
    if found and "head" in draft.positions_per_unit and not derived:
        # Stated, since classes derive it as hidden size / heads, which pruning makes wrong.
        found.setdefault("head_dim", ("head",))
    return found


def attributes_of(
    draft: Draft, models: Sequence[Sized]
) -> tuple[dict[str, dict[str, Product]], dict[str, tuple[int, ...]]]:
    """Module of a layer -> attribute -> the product of sizes that it holds in every model; and the
    kinds of layers that have the module.
    """
    found: dict[str, dict[str, Product]] = {}
    kinds: dict[str, list[int]] = {}
    for kind, look in enumerate(draft.looks):
        places = [model.probe.anatomy.first()[look] for model in models]
        paths = [draft.layer.replace("{i}", str(i)) for i in places]
        pairs = zip(models, paths, strict=True)
        layers = [model.probe.module.get_submodule(path) for model, path in pairs]
        for path, child in layers[0].named_modules():
            if isinstance(child, _FOLLOW_TENSORS) or not path:
                continue
            alike = [layer.get_submodule(path) for layer in layers]
            for product in _products(draft, across=_attends(draft, path)):
                sizes = [m.in_place(product, i) for m, i in zip(models, places, strict=True)]
                for name in _held(child, alike, sizes):
                    found.setdefault(path, {}).setdefault(name, product)
                    if kind not in kinds.setdefault(path, []):
                        kinds[path].append(kind)
    return found, {path: tuple(of) for path, of in kinds.items()}


def _held(child: nn.Module, alike: Sequence[nn.Module], sizes: list[int | None]) -> Iterator[str]:
    """Yields the attributes that hold these sizes in the modules that are ``alike``. Modules of
    experts keep theirs: no axis of experts is traced.
    """
    if any(p.dim() == 3 for p in child.parameters(recurse=False)):
        return
    for name, held in vars(child).items():
        if not isinstance(held, int) or isinstance(held, bool) or name.startswith("_"):
            continue
        if [getattr(other, name, None) for other in alike] == sizes:
            yield name


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
    kinds = [kind for kind in draft.kinds if kind in KINDS]
    single: list[Product] = [(kind,) for kind in kinds]
    for product in (*(_HEADS if across else ()), *single, _QUERIES):
        if all(name in kinds or name in draft.positions_per_unit for name in product):
            yield product
