"""Makes modules and configuration agree with the tensors after shapes or depth changed.

Modules remember sizes besides their tensors (``in_features``, ``num_heads``, ``layer_idx``), and
forward passes, ``save_pretrained`` and kernels read those.
"""

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from effcompress.types import EXPERT_ROW, AxisMap, Config, Depth, Family, axis_layer, in_layer

OUTSIDE = -1
"""No layer: only widths of the whole model are in it."""


def agree(module: nn.Module) -> None:
    """Sets ``in_features``, ``num_embeddings`` and the like from the weights' shapes."""
    for child in module.modules():
        weight: Any = getattr(child, "weight", None)
        if isinstance(child, nn.Linear):
            child.out_features, child.in_features = weight.shape
        elif isinstance(child, nn.Embedding):
            child.num_embeddings, child.embedding_dim = weight.shape
        elif isinstance(child, nn.LayerNorm) and isinstance(weight, nn.Parameter):
            child.normalized_shape = tuple(weight.shape)
        elif type(child).__name__ == "Conv1D":  # transformers' (GPT-2): [inputs, outputs]
            stored: Any = child
            stored.nx, stored.nf = weight.shape
        _plain_if_odd(child)


def _plain_if_odd(module: Any) -> None:
    """Switches experts to the eager loop where a grouped kernel would refuse their rows.

    Grouped matrix products want rows that are multiples of 16 bytes. The decision reads shapes
    alone, so that a resumed run decides the same.
    """
    experts = [p for p in module.parameters(recurse=False) if p.dim() == 3]
    if not experts or not hasattr(module, "config"):
        return
    stock = getattr(module, "stock_experts", module.config._experts_implementation)
    odd = any(p.shape[-1] % EXPERT_ROW for p in experts)
    if odd or hasattr(module, "stock_experts"):
        module.stock_experts = stock
        module.config = copy.copy(module.config)  # one object for all layers; these may differ
        module.config._experts_implementation = "eager" if odd else stock


def router_of(module: nn.Module, axes: AxisMap, name: str) -> tuple[str, nn.Module]:
    """Returns the router of the experts on axis ``name`` (``expert.3``), and its path."""
    layer = axis_layer(name)
    assert layer is not None
    path = axes.family.router.replace("{i}", str(axes.depth.layers.index(layer)))
    return path, module.get_submodule(path)


def per_expert(tensors: Iterable[tuple[str, Tensor]], units: int) -> dict[str, tuple[Tensor, int]]:
    """Returns those that hold something of each of so many experts, and along which dimension."""
    found = ((n, t, [d for d, size in enumerate(t.shape) if size == units]) for n, t in tensors)
    return {name: (tensor, dims[0]) for name, tensor, dims in found if dims}


def selection_buffers(
    module: nn.Module, axes: AxisMap, name: str
) -> list[tuple[nn.Module, str, Tensor]]:
    """Returns what the router of the experts on axis ``name``, or the mixture around it, holds of
    every expert besides parameters: biases of the selection, which no gradient trains. Each with
    the module that it belongs to.
    """
    path, router = router_of(module, axes, name)
    units = len(next(router.parameters()))
    owners = [*router.modules(), module.get_submodule(path.rpartition(".")[0])]
    return [
        (owner, attribute, buffer)
        for owner in owners
        for attribute, buffer in owner.named_buffers(recurse=False)
        if buffer.shape[:1] == (units,)
    ]


def adapt(module: nn.Module, axes: AxisMap, config: Config) -> None:
    """Sets the attributes in which modules keep sizes that their tensors do not show.

    ``axes`` are those of the tensors; ``config`` is the parent's.
    """
    for path, values in attributes(axes, config).items():
        target: Any = module.get_submodule(path)
        for name, value in values.items():
            if name.startswith("config."):
                target.config = copy.copy(target.config)  # one object for all layers
                setattr(target.config, name.removeprefix("config."), value)
            elif isinstance(held := getattr(target, name, None), Tensor):
                setattr(target, name, stretches(held, value))
            else:
                setattr(target, name, value)


def stretches(like: Tensor, values: Sequence[tuple[float, int]]) -> Tensor:
    """Returns a buffer that has one number along a stretch of its last dimension, and another along
    the next: pairs of number and length. Rounded as classes make it, in fp32.
    """
    parts = [torch.full((length,), value, dtype=torch.float32) for value, length in values]
    return torch.cat(parts).to(like).view(*like.shape[:-1], -1)


def attributes(axes: AxisMap, config: Config) -> dict[str, dict[str, Any]]:
    """Returns module path -> attribute -> value, for every module that is there."""
    family, found = axes.family, {}
    for j, i in enumerate(axes.depth.layers):
        # 0 for the widths of a block that is gone; its modules are skipped below.
        widths = defaultdict(int, in_layer(axes.widths, i))
        for inside, values in family.attributes(config, widths).items():
            if family.module_there(inside, i) and not _absent(axes, i, inside):
                found[f"{family.layer.replace('{i}', str(j))}.{inside}"] = dict(values)
    everywhere = in_layer(axes.widths, OUTSIDE)
    found |= {path: dict(values) for path, values in family.outside(config, everywhere).items()}
    return found


def _absent(axes: AxisMap, layer: int, inside: str) -> bool:
    gone = [
        module
        for kind, sublayer in axes.family.sublayers.items()
        if f"{kind}.{layer}" in axes.depth.absent
        for module in sublayer.modules
    ]
    return any(inside == module or inside.startswith(f"{module}.") for module in gone)


def depth_fields(family: Family, config: Config, layers: tuple[int, ...]) -> dict[str, Any]:
    """Returns the configuration fields of a model that keeps only these layers of ``config``."""
    fields = {family.aliases.get("num_hidden_layers", "num_hidden_layers"): len(layers)}
    more = family.depth_fields
    return {**fields, **(more(config, layers) if more else {})}


Silent = Callable[[int, int], nn.Module]
"""(number of returned values, layer number) -> a module in place of one that is gone; with 0 values
it returns its input.
"""


@torch.no_grad()
def _pass_scales(layers: Any, keep: list[int], name: str) -> None:
    """Multiplies the scales of layers that go into that of the layer in front of them."""
    for j in reversed(range(1, len(layers))):
        if j not in keep:
            getattr(layers[j - 1], name).mul_(getattr(layers[j], name))


def cut_depth(
    module: nn.Module,
    family: Family,
    config: Config,
    before: Depth,
    after: Depth,
    silent: Silent,
) -> None:
    """Removes layers from the model and puts ``silent`` modules where blocks are gone.

    ``config`` is the parent's. Every ``layer_idx`` is renumbered, because the KV cache is indexed
    by it. Modules that are already silent stay.
    """
    layers: Any = module.get_submodule(family.layers)
    keep = [j for j, i in enumerate(before.layers) if i in set(after.layers)]
    kept = [layers[j] for j in keep]
    if family.layer_scale:
        _pass_scales(layers, keep, family.layer_scale)
    # In place: the model's forward holds this ModuleList, and hooks may.
    del layers[:]
    layers.extend(kept)
    for j, i in enumerate(after.layers):
        for part in layers[j].modules():
            if hasattr(part, "layer_idx"):
                part.layer_idx = j
        for kind, sublayer in family.sublayers.items():
            if f"{kind}.{i}" in after.absent - before.absent:
                parts = sublayer.within(layers[j], sublayer.outputs_more(config, i))
                for name, values in parts.items():
                    new = silent(values, j).train(layers[j].training)
                    layers[j].set_submodule(name, new)
