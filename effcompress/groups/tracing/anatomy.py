"""Reads from a model, without tracing: its list of layers, embedding, heads and norms."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from effcompress.errors import CoverageError
from effcompress.types import Shapes

Place = tuple[str, int]
"""A parameter's name and a dimension of it."""
OTHER_HEADS = "heads-of-another-width"
Coupled = Mapping[Place, tuple[int, ...]]
"""One coupling: sorted positions along each dimension."""


@dataclass(frozen=True)
class Anatomy:
    """What is known of a model besides its couplings."""

    model_type: str
    shapes: Shapes
    layer: str
    layers: int
    embedding: str
    """The input embedding's weight."""
    sizes: Mapping[str, int]
    """Dimensions that are never cut (``vocab``, ``positions``) -> size."""
    head_dim: int | None
    """Width of a head, where the configuration states it."""
    queries: int
    """Query heads per KV head."""
    heads: int
    """KV heads."""
    aliases: Mapping[str, str]
    """Usual name of a configuration field -> its name in this architecture."""
    looks: tuple[str, ...]
    """Of every layer, what tells its kind: equal texts are layers of one kind."""

    @property
    def hidden(self) -> int:
        """Width of the residual stream."""
        return self.shapes[self.embedding][1]

    def first(self) -> dict[str, int]:
        """Returns kind of layers (as in ``looks``) -> the first layer of that kind."""
        return {look: self.looks.index(look) for look in dict.fromkeys(self.looks)}

    def pattern(self, param: str) -> str:
        """``layers.0.mlp.up.weight`` -> ``layers.{i}.mlp.up.weight``."""
        before, after = self.layer.split("{i}")
        number, dot, rest = param.removeprefix(before).partition(".")
        inside = param.startswith(before) and number.isdigit() and dot and not after
        return f"{before}{{i}}.{rest}" if inside else param

    def layer_of(self, param: str) -> int | None:
        """Index of the layer that a parameter belongs to; None outside of the layers."""
        if self.pattern(param) == param:
            return None
        return int(param.removeprefix(self.layer.split("{i}")[0]).partition(".")[0])


@dataclass(frozen=True)
class Norm:
    """A normalisation module, recognised by its outputs, not by its class name."""

    gain: str
    """Name of its gain."""
    attribute: str
    """Attribute that holds its epsilon."""
    epsilon: float
    centred: bool
    """Whether it subtracts the mean."""
    offset: float
    """Constant added to the stored gain (Gemma: 1)."""
    stock: bool
    """Whether its class is exactly ``nn.LayerNorm``."""


def anatomy_of(module: nn.Module) -> Anatomy:
    """Reads the anatomy of a module. Raises CoverageError without a list of layers or an input
    embedding.
    """
    config: Any = module.config
    names = {id(p): name for name, p in module.named_parameters()}
    embedding: Any = module.get_input_embeddings()  # type: ignore[operator]
    if embedding is None or id(getattr(embedding, "weight", None)) not in names:
        raise CoverageError("the model has no input embedding", where=config.model_type)
    heads, hidden = (getattr(config, n, None) for n in ("num_attention_heads", "hidden_size"))
    kv = _common(config, "num_key_value_heads") or getattr(config, "num_kv_heads", None)
    positions = getattr(config, "max_position_embeddings", None)
    vocab, _ = embedding.weight.shape
    path, layers = _layers(module)
    head = _common(config, "head_dim") or (hidden // heads if heads and hidden else None)
    return Anatomy(
        config.model_type,
        {name: tuple(p.shape) for name, p in module.named_parameters()},
        f"{path}.{{i}}",
        layers,
        names[id(embedding.weight)],
        {"vocab": vocab} | ({"positions": positions} if positions else {}),
        head,
        heads // (kv or heads) if heads else 1,
        kv or heads or 1,
        dict(getattr(config, "attribute_map", {})),
        tuple(_look(layer, head) for layer in module.get_submodule(path).children()),
    )


def _common(config: Any, name: str) -> Any:
    """A field's value for all layers; None where transformers refuses to name one."""
    try:
        return getattr(config, name, None)
    except Exception:  # noqa: BLE001 (layers with values of their own: no AttributeError)
        return None


def _look(layer: nn.Module, head: int | None) -> str:
    """The parameters of a layer with their numbers of dimensions, and whether its heads are as wide
    as the configuration says (Gemma 4: those of layers with full attention are wider).
    """
    said = " ".join(f"{name}:{p.dim()}" for name, p in sorted(layer.named_parameters()))
    attention = [vars(m) for m in layer.modules() if "num_key_value_groups" in vars(m)]
    widths = {held.get("head_dim") for held in attention} - {None}
    return said + (f" {OTHER_HEADS}" if widths and head not in widths else "")


def _layers(module: nn.Module) -> tuple[str, int]:
    """Path and length of the list of layers: the ModuleList with most parameters."""
    lists = {
        path: (sum(p.numel() for p in child.parameters()), len(child))
        for path, child in module.named_modules()
        if isinstance(child, nn.ModuleList) and len(child) > 1
    }
    if not lists:
        raise CoverageError("the model has no list of layers", where=type(module).__name__)
    path = max(lists, key=lambda p: (lists[p][0], -len(p)))
    return path, lists[path][1]


def norms_of(module: nn.Module) -> Iterator[Norm]:
    """Yields every module with a gain and an epsilon that normalises the last dimension."""
    for path, child in module.named_modules():
        gain: Any = getattr(child, "weight", None)
        attribute = next((n for n, v in vars(child).items() if "eps" in n and _is_epsilon(v)), None)
        if attribute is None or not isinstance(gain, nn.Parameter) or gain.dim() != 1:
            continue
        if (seen := _behaviour(child, gain)) is not None:
            epsilon = float(getattr(child, attribute))
            stock = type(child) is nn.LayerNorm
            yield Norm(f"{path}.weight", attribute, epsilon, *seen, stock)


def epsilons_of(module: nn.Module) -> dict[str, float]:
    """Returns the gain of every module with a gain and an epsilon -> that epsilon; norms that want
    more than one argument are among them.
    """
    found: dict[str, float] = {}
    for path, child in module.named_modules():
        if isinstance(getattr(child, "weight", None), nn.Parameter):
            named = (v for n, v in vars(child).items() if "eps" in n and _is_epsilon(v))
            found |= {f"{path}.weight": value for value in named}
    return found


def _is_epsilon(value: object) -> bool:
    return isinstance(value, float) and 0 < value < 0.1


@torch.no_grad()
def _behaviour(norm: Any, gain: nn.Parameter) -> tuple[bool, float] | None:
    """Whether it subtracts the mean, and its offset; None when it is no norm of one argument."""
    x_H = 3 * torch.randn(1, 1, len(gain), generator=torch.Generator().manual_seed(0)) + 1
    try:
        y_H = norm(x_H)
    except Exception:  # noqa: BLE001 (classes raise different ones)
        # A gated norm (Mamba-2, gated DeltaNet) wants a second argument, one of heads (xLSTM) an
        # input with a dimension of heads.
        return None
    # A norm is invariant to scale (5 x); one that subtracts the mean also to a shift (x + 5).
    if y_H.shape != x_H.shape or not torch.allclose(norm(5 * x_H), y_H, atol=1e-3, rtol=1e-3):
        return None
    centred = torch.allclose(norm(x_H + 5), y_H, atol=1e-3, rtol=1e-3)
    stored = gain.clone()
    # With the stored gain at zero, an output that still depends on x has gain (offset + 0).
    gain.zero_()
    without = norm(x_H) - norm(-x_H)  # a bias cancels
    gain.copy_(stored)
    return centred, 1.0 if float(without.abs().max()) > 1e-3 else 0.0
