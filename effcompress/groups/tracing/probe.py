"""Random models that are traced and proven on, and what is reported of that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypedDict

import torch
from torch import nn

from effcompress.groups.tracing.anatomy import Anatomy, anatomy_of
from effcompress.groups.tracing.draft import Draft, Product, family_from, value
from effcompress.groups.tracing.verify import cover
from effcompress.types import AxisMap, Config, in_layer

LAYERS = "num_hidden_layers"


class Failure(TypedDict):
    """An error, to be raised in the parent."""

    kind: str
    what: str
    where: str | None
    fix: str | None


class Report(TypedDict, total=False):
    """What the subprocess reports: one or two of these keys per line."""

    at: str
    """Path of the module being queried."""
    declaration: str
    """Text of a plugin file with what is known so far."""
    draft: str
    """The result, as ``Draft.to_json`` writes it."""
    proven: bool
    """Whether a family that a plugin declares holds."""
    error: Failure


Tell = Callable[[Report], None]


class Build(Protocol):
    """Builds a random model: sizes as given, small, or small with other numbers."""

    def __call__(
        self, config: Config, size: Literal["given", "small", "other"], /
    ) -> nn.Module: ...


@dataclass(frozen=True)
class Probe:
    """A random model and its anatomy."""

    module: nn.Module
    config: dict[str, Any]
    anatomy: Anatomy

    def fits(self, draft: Draft) -> Sized:
        """Resolves the draft's axes on this model. Raises CoverageError."""
        mine = draft.on(self.anatomy)
        axes = cover(family_from(mine), self.config, self.module)
        return Sized(self, axes, mine.positions_per_unit)


@dataclass(frozen=True)
class Sized:
    """A model with the draft's axes and positions per unit resolved on it."""

    probe: Probe
    axes: AxisMap
    per_unit: Mapping[str, int]

    def holds(self, product: Product) -> int:
        """Value of a product of sizes in this model, in the first layer that has them all; 0 where
        none has.
        """
        held = (self.in_place(product, i) for i in self.axes.depth.layers)
        return next((size for size in held if size is not None), 0)

    def in_place(self, product: Product, layer: int) -> int | None:
        """Value of a product of sizes in one layer; None where it lacks one of them."""
        widths = in_layer(self.axes.widths, layer)
        there = all(name in widths or name in self.per_unit for name in product)
        return value(product, widths, self.per_unit) if there else None


def tokens_for(small: Probe) -> torch.Tensor:
    """Returns token ids [B, T] to compare logits on."""
    vocab = small.anatomy.sizes["vocab"]
    return torch.randint(0, vocab, (2, 9), generator=torch.Generator().manual_seed(1))


def probe(build: Build, config: Config, size: Literal["given", "small", "other"]) -> Probe:
    """Builds a random model with its anatomy; that of the given sizes has no weights."""
    torch.manual_seed(0)
    with torch.device("meta" if size == "given" else "cpu"):
        module = build(config, size)
    if size != "given":
        # Fresh biases of 0 and gains of 1 would hide mistakes.
        with torch.no_grad():
            for p in module.parameters():
                p.uniform_(0.5, 1.5) if p.dim() == 1 else p.normal_(0, 0.2)
    made: Any = module
    if getattr(made.config, "is_heterogeneous", False):  # else common values are left out
        made.config.allow_global_per_layer_attribute_access = True
    anatomy, stated = anatomy_of(module), made.config.to_dict()
    # Nemotron-H derives the number from another field.
    stated.setdefault(anatomy.aliases.get(LAYERS, LAYERS), anatomy.layers)
    return Probe(module, stated, anatomy)
