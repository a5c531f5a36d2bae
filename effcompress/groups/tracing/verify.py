"""Proves a family on a small model: its axes cover every dimension once, and removing units gives
the same logits as setting them to zero.

Independent of ``removal/``, so that a mistake there cannot make a wrong family pass.
"""

import copy
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from effcompress.errors import SourceError, first_line
from effcompress.groups.axes import from_shapes
from effcompress.groups.stream import of_stream
from effcompress.groups.tracing.draft import anywhere
from effcompress.types import AxisMap, Config, Depth, Family, GroupSet, in_layer

EQUAL, SEEN = 1e-5, 1e-3
"""Relative to the largest logit: the difference allowed between masked and removed (some classes
normalise in fp32 even in an fp64 model), and the least effect that masking must have.
"""
COARSE = 0.1
"""An epsilon that changes logits."""
Stays = Mapping[str, Mapping[int, Tensor]]
"""Parameter -> dimension -> whether each position stays, as bools."""
Rebuild = Callable[[Config], nn.Module]
"""Builds a model of exactly these sizes. Raises SourceError when the class refuses them."""


class Unproven(Exception):
    """The family is wrong about an axis kind, or it cannot be tested."""


class Untested(Unproven):
    """There is nothing to remove: no parameter has the kind, or there is one unit only."""


def cover(family: Family, config: Config, module: nn.Module, depth: Depth | None = None) -> AxisMap:
    """Resolves the family's axes on a module of any size. ``depth``: the layers of ``config`` that
    it has (default: all). Raises CoverageError naming a parameter that they do not cover exactly
    once.
    """
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
    return from_shapes(family, config, shapes, depth)


@torch.no_grad()
def prove(family: Family, config: Config, module: nn.Module, kind: str, ids_BT: Tensor) -> None:
    """Compares masking with removing, with equal and with different numbers of units per layer.

    ``module`` is in fp64 and is not changed. Raises Unproven (Untested where nothing can go);
    CoverageError as ``cover`` does.
    """
    axes = cover(family, config, module)
    if not (names := axes.axes(kind)):
        raise Untested("no parameter has it")
    if min(axes.widths[name] for name in names) < 2:
        raise Untested("there is only one unit")
    before = logits_of(module, ids_BT)
    for uneven in (False, True) if len(names) > 1 else (False,):
        stays = _positions(axes, kind, dict(_some(axes, names, uneven=uneven)))
        masked = logits_of(_masked(module, axes, stays), ids_BT)
        removed = logits_of(_removed(config, module, axes, stays, uneven), ids_BT)
        scale = float(before.abs().max())
        if not float((masked - before).abs().max()) > SEEN * scale:
            raise Unproven("the units do nothing that can be seen")
        apart = float((masked - removed).abs().max())
        if not apart <= EQUAL * scale:
            raise Unproven(f"masked and removed differ by {apart:.2g} (largest logit {scale:.2g})")


@torch.no_grad()
def rebuild(
    family: Family, config: Config, module: nn.Module, kind: str, ids_BT: Tensor, build: Rebuild
) -> None:
    """Builds the stock class at the smaller sizes, if it accepts them, and compares logits: some
    classes scale by a size (embeddings by the square root of the hidden size). Raises Unproven.
    """
    axes = cover(family, config, module)
    stays = _positions(axes, kind, dict(_some(axes, axes.axes(kind), uneven=False)))
    removed: Any = _removed(config, module, axes, stays, False)
    widths = anywhere(cover(family, config, removed).widths)
    smaller = {name: getattr(removed.config, name) for name in family.resize(config, widths)}
    try:
        fresh = build({**config, **smaller})
    except SourceError:
        return  # refused shapes are exported as `exact`, in a class of our own
    if shapes_of(fresh) == shapes_of(removed):
        require_same(fresh, removed, axes, ids_BT)


@torch.no_grad()
def require_same(fresh: nn.Module, removed: nn.Module, axes: AxisMap, ids_BT: Tensor) -> None:
    """Raises Unproven if a model that the stock class made computes something else, with the
    weights and epsilons of one that units were removed from.
    """
    params, fresh = dict(removed.named_parameters()), fresh.double()
    for name, p in fresh.named_parameters():
        p.copy_(params[name])
    for path, norm in _norms(fresh, axes):
        attribute = axes.family.epsilon_attribute
        setattr(norm, attribute, getattr(removed.get_submodule(path), attribute))
    wanted = logits_of(removed, ids_BT)
    apart, scale = float((logits_of(fresh, ids_BT) - wanted).abs().max()), float(wanted.abs().max())
    if not apart <= EQUAL * scale:
        raise Unproven("built at a smaller size, the class computes something else")


@torch.no_grad()
def takes_scale(family: Family, config: Config, module: nn.Module, ids_BT: Tensor) -> bool:
    """Returns whether a residual stream twice as large makes up for norms over it with a quarter of
    their epsilon: no norm lies between a block and the stream.
    """
    axes, attribute = cover(family, config, module), family.epsilon_attribute
    plain, scaled = copy.deepcopy(module), copy.deepcopy(module)
    for one, epsilon in ((plain, COARSE / 4), (scaled, COARSE)):
        for _, norm in _norms(one, axes):
            setattr(norm, attribute, epsilon)
    params = dict(scaled.named_parameters())
    for name, factor in of_stream(family, axes, 2.0):
        params[name].mul_(factor)
    wanted, found = logits_of(plain, ids_BT), logits_of(scaled, ids_BT)
    return float((found - wanted).abs().max()) <= EQUAL * float(wanted.abs().max())


def shapes_of(module: nn.Module) -> dict[str, torch.Size]:
    """Returns the shape of every parameter."""
    return {name: p.shape for name, p in module.named_parameters()}


def logits_of(module: Any, ids_BT: Tensor) -> Tensor:
    """Returns logits ``[B, T, V]`` without a KV cache. Raises Unproven when the model fails."""
    try:
        found: Tensor = module(input_ids=ids_BT, use_cache=False).logits
    except Exception as error:  # a wrong family mostly fails with mismatched shapes
        said = first_line(error)
        raise Unproven(f"the model fails: {type(error).__name__}: {said}") from error
    return found


def _some(axes: AxisMap, names: Sequence[str], *, uneven: bool) -> Iterator[tuple[str, Tensor]]:
    for k, name in enumerate(names):
        width = axes.widths[name]
        count = min(width - 1, max(1, width // 8) + (k % 2 if uneven else 0))
        units = random.Random(name).sample(range(width), count)  # noqa: S311 (no secret)
        yield name, torch.tensor(sorted(units))


def _positions(axes: AxisMap, kind: str, dead: Mapping[str, Tensor]) -> Stays:
    """``dead``: axis name -> units to remove."""
    stays: dict[str, dict[int, Tensor]] = {}
    for name in axes.axes(kind):
        # Not `axes.sets`, which has none of a kind that is fixed until it is proven.
        group = GroupSet(name, kind, None, axes.widths[name], axes.by_axis[name])
        for member in group.members:
            size = axes.shapes[member.param][member.dim]
            every = torch.ones(size, dtype=torch.bool)
            alive = stays.setdefault(member.param, {}).setdefault(member.dim, every)
            alive[member.index_GB[dead[group.name]].flatten()] = False
    return stays


def _masked(module: nn.Module, axes: AxisMap, stays: Stays) -> nn.Module:
    masked = copy.deepcopy(module)
    for param, p in masked.named_parameters():
        for dim, alive in stays.get(param, {}).items():
            p.index_fill_(dim, (~alive).nonzero().flatten(), 0.0)
    if axes.family.centred:
        for path, child in _norms(masked, axes):
            if alive_at := stays.get(f"{path}.weight"):
                child.register_forward_hook(_living(alive_at[0].nonzero().flatten()))
    return masked


def _living(kept: Tensor) -> Callable[..., Tensor]:
    """Hook: a LayerNorm over the ``kept`` channels alone, zeros in the others. Zeroed inputs are
    not enough, since they count in its mean and variance.
    """

    def hook(norm: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        bias = None if norm.bias is None else norm.bias[kept]
        weight, living = norm.weight[kept], args[0][..., kept]
        found = nn.functional.layer_norm(living, (len(kept),), weight, bias, norm.eps)
        return torch.zeros_like(output).index_copy(-1, kept, found)

    return hook


def _removed(
    config: Config, module: nn.Module, axes: AxisMap, stays: Stays, uneven: bool
) -> nn.Module:
    removed = copy.deepcopy(module)
    for path, child in _norms(removed, axes):
        alive_at = stays.get(f"{path}.weight")
        if alive_at and not axes.family.centred:
            _rescale(child, axes, len(child.weight) / int(alive_at[0].sum()))
    for param, p in removed.named_parameters():
        for dim, alive in stays.get(param, {}).items():
            p.data = p.data.index_select(dim, alive.nonzero().flatten())
    smaller = cover(axes.family, config, removed)
    _agree(removed, smaller, config, in_config=not uneven)
    return removed


def _agree(removed: nn.Module, smaller: AxisMap, config: Config, *, in_config: bool) -> None:
    """Updates the sizes that modules and the configuration keep."""
    for child in removed.modules():
        if isinstance(child, nn.LayerNorm) and child.elementwise_affine:
            child.normalized_shape = tuple(child.weight.shape)
        elif type(child).__name__ == "Conv1D":  # transformers'
            conv: Any = child
            conv.nf = conv.weight.shape[1]
    for i in smaller.depth.layers:
        layer = removed.get_submodule(smaller.family.layer.replace("{i}", str(i)))
        widths = defaultdict(int, in_layer(smaller.widths, i))  # 0: not in this layer
        values = smaller.family.attributes(config, widths)
        for inside, held in values.items():
            if smaller.family.module_there(inside, i):
                _remember(layer.get_submodule(inside), held)
    if in_config:
        _remember(removed.config, smaller.family.resize(config, anywhere(smaller.widths)))


def _remember(target: Any, values: Mapping[str, Any]) -> None:
    for name, number in values.items():
        setattr(target, name, number)


def _norms(module: nn.Module, axes: AxisMap) -> Iterator[tuple[str, Any]]:
    for pattern in axes.family.norms:
        for i in axes.depth.layers if "{i}" in pattern else (0,):
            gain = pattern.replace("{i}", str(i))
            if gain in axes.by_param:  # else a layer of another kind
                yield (path := gain.removesuffix(".weight")), module.get_submodule(path)


def _rescale(norm: Any, axes: AxisMap, ratio: float) -> None:
    """Makes an RMS norm over fewer channels give what it gave when the removed ones were zero.

    With ``ratio`` = n / k channels: mean_k(x^2) = ratio * mean_n(x^2), so
    x / sqrt(mean_n + eps) = sqrt(ratio) * x / sqrt(mean_k + ratio * eps).
    """
    offset, attribute = axes.family.gain_offset, axes.family.epsilon_attribute
    norm.weight.copy_((norm.weight + offset) * ratio**0.5 - offset)
    setattr(norm, attribute, getattr(norm, attribute) * ratio)
