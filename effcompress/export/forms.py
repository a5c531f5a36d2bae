"""Chooses a model class that other software loads, and the parameters to store in it.

``uniform``: a stock class, every layer with the same widths. ``padded``: a stock class, with zeros
where a layer is narrower or a block is gone. ``exact``: the pruned shapes as they are, in a class
whose one modelling file lies in the folder. All compute the same function as the model in memory.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from effcompress import groups
from effcompress.errors import RunError
from effcompress.export.weights import Made, Weights, unchanged
from effcompress.model import exact, scratch
from effcompress.model.exact import Container, container
from effcompress.model.lineage import STREAM, Part, Pruned
from effcompress.network.pruned_model import PrunedModel
from effcompress.network.shapes import apart, per_layer, uniform_widths, widest
from effcompress.removal.modules import attributes, depth_fields
from effcompress.removal.norms import Norm
from effcompress.types import DEPTH, AxisMap, Depth, Widths, axis_kind

Name = Literal["uniform", "padded", "exact"]
NAMES: tuple[Name, ...] = get_args(Name)
"""In the order in which ``auto`` tries them."""


@dataclass(frozen=True)
class Form:
    """A model class on the meta device, and the parameters to store in it."""

    name: Name
    model_type: str
    skeleton: nn.Module
    params: Weights
    why: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    """Further text files of the folder by name."""
    buffers: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    """What the class stores beside the parameters."""

    @property
    def tensors(self) -> Weights:
        """All that the folder stores."""
        held = {name: unchanged(buffer) for name, buffer in self.buffers.items()}
        return Weights({**self.params.made, **held})

    @property
    def count(self) -> int:
        """Parameters of the folder, padding included."""
        return self.params.count


def form(pruned: PrunedModel, name: Name | Literal["auto"]) -> Form:
    """Returns the model in the form ``name``; ``auto`` takes the first that is possible.

    Raises RunError with the reason if it is not possible. Masked units must be committed before.
    """
    makers = {"uniform": _uniform, "padded": _padded, "exact": _exact}
    if STREAM in pruned.config and name in ("uniform", "padded"):
        raise RunError(
            "no stock class changes the basis of its stream in every layer",
            fix="Export as `exact`.",
        )
    if STREAM in pruned.config:
        return _exact(pruned)
    if name != "auto":
        return makers[name](pruned)
    for candidate in NAMES[:-1]:
        try:
            return makers[candidate](pruned)
        except RunError:
            continue
    return _exact(pruned)


def stock_form(pruned: PrunedModel, name: Name | Literal["auto"]) -> Form:
    """Returns the model in a stock class; ``auto`` pads where layers differ, or the class wants it.

    Raises RunError with the reason if it is not possible.
    """
    if name != "auto":
        return form(pruned, name)
    try:
        return form(pruned, "uniform")
    except RunError:
        return form(pruned, "padded")


def _uniform(pruned: PrunedModel) -> Form:
    widths = uniform_widths(pruned.axes, pruned.config)
    if widths is None:
        raise RunError(
            f"layers differ: {_difference(pruned)}",
            fix="Export as `padded` (stock class, zeros added) or as `exact`.",
        )
    built, params = _stock(pruned, widths)
    stored: Any = built.skeleton
    config = json.loads(stored.config.to_json_string(use_diff=False))
    config.pop(pruned.family.epsilon_field, None)
    # Set only where the parent's own configuration has it.
    healthy = {f: v for f, v in pruned.config.items() if f == pruned.family.epsilon_field}
    files = {scratch.RECORD: scratch.record({**config, **healthy})}
    held = _buffers(pruned, built.skeleton)
    return Form("uniform", built.model_type, built.skeleton, params, built.why, files, held)


def _padded(pruned: PrunedModel) -> Form:
    now, why = pruned.axes, list[str]()
    # The parent's width for kinds that are gone in all layers.
    wide = {**widest(pruned.parent), **widest(now)}
    for kind in now.family.rigid:
        if any(now.widths[name] != wide[kind] for name in now.axes(kind)):
            raise RunError(
                f"layers differ in '{kind}', and no zeros can fill that up without another result",
                fix="Export as `exact`.",
            )
    first: RunError | None = None
    for more in _growths(pruned, wide):
        grown = {kind: size for kind, size in more.items() if size != wide.get(axis_kind(kind))}
        if not {axis_kind(kind) for kind in grown}.isdisjoint(now.family.rigid):
            continue
        try:
            built, params = _stock(pruned, {**wide, **more})
        except RunError as error:
            first = first or error
            continue
        break
    else:
        assert first is not None
        raise RunError(first.what, fix="Export as `exact`.") from first
    if first is not None:
        changed = (f"{kind} {wide[kind]} became {grown[kind]}" for kind in grown if kind in wide)
        why.append(f"{', '.join(changed) or 'some layers are narrower'}: {first.what}")
    if zeros := params.count - pruned.params:
        why.append(f"padded with {zeros:,} zeros")
    if uniform_widths(now, pruned.config) is None:
        why.append(f"layers differ: {_difference(pruned)}")
    why += [built.why] if built.why else []
    files = {scratch.RECORD: scratch.record(_exact_config(pruned, {}))}
    held, said = _buffers(pruned, built.skeleton), "; ".join(why)
    return Form("padded", built.model_type, built.skeleton, params, said, files, held)


def _growths(pruned: PrunedModel, wide: Widths) -> Iterator[Mapping[str, int]]:
    """Yields the widths to try that zeros can fill up to, beside those of the widest layers
    (``wide``): none; what the family says that its class accepts; where it says nothing, the
    multiples that its kernels want and the widths that it derives for some layers alone, then the
    parent's of one kind, then of all.
    """
    yield {}
    family = pruned.family
    if family.pad is not None:
        yield family.pad(pruned.config, wide)
        return
    own, parent = apart(pruned.axes, pruned.config), widest(pruned.parent)
    least = {**widest(pruned.axes, own), **own}
    least |= {k: -(-least[k] // m) * m for k, m in family.multiples.items() if k in least}
    if least != wide:
        yield least
    cut = {kind: size for kind, size in parent.items() if size != least.get(kind, size)}
    for kind, size in cut.items():
        yield {**least, kind: size}
    stated = groups.from_config(family, pruned.config).widths
    if len(cut) > 1 or own:
        yield {**parent, **{n: w for n, w in stated.items() if axis_kind(n) not in DEPTH}}


def _exact(pruned: PrunedModel) -> Form:
    axes, config = pruned.axes, pruned.config
    fields = exact_fields(pruned)
    same = uniform_widths(axes, config)
    why = "" if same else f"layers differ: {_difference(pruned)}"
    params = Weights({name: unchanged(p) for name, p in pruned.parameters().items()})
    files = {exact.FILE: exact.modelling_source(config["model_type"])}
    skeleton = exact.exact_skeleton(fields)
    held = _buffers(pruned, skeleton)
    return Form("exact", fields["model_type"], skeleton, params, why, files, held)


def exact_fields(pruned: PrunedModel) -> dict[str, Any]:
    """Returns the configuration of the exact form: the source's, and all that differs from it."""
    plain = pruned.config.get(pruned.family.epsilon_field)
    told = {norm.path: norm.epsilon for norm in pruned.norms() if norm.epsilon != plain}
    return _exact_config(pruned, told)


def _exact_config(pruned: PrunedModel, epsilons: Mapping[str, float]) -> dict[str, Any]:
    axes, config = pruned.axes, pruned.config
    differs: Pruned = {
        "shapes": {name: list(shape) for name, shape in axes.shapes.items()},
        "absent": _absent(pruned),
        "attributes": _attributes(pruned),
        "epsilons": epsilons,
        "buffers": {name: list(b.shape) for name, b in pruned.buffers().items()},
    }
    if STREAM in config:
        differs["stream"] = config[STREAM]
    fields = {**config, **depth_fields(pruned.family, config, axes.depth.layers)}
    return exact.exact_config(fields, differs, _per_layer(pruned))


def _attributes(pruned: PrunedModel) -> dict[str, dict[str, Any]]:
    """Returns what modules remember, with the places of experts whose router keeps its rows."""
    found = attributes(pruned.axes, pruned.config)
    for path, module in pruned.module.named_modules():
        if hasattr(module, "place") and hasattr(module, "novices"):
            found.setdefault(path, {})["place"] = module.place
    return found


def _absent(pruned: PrunedModel) -> dict[str, list[Part]]:
    axes, found = pruned.axes, dict[str, list[Part]]()
    layers: Any = pruned.module.get_submodule(axes.family.layers)
    for j, i in enumerate(axes.depth.layers):
        for kind, part in axes.family.sublayers.items():
            if f"{kind}.{i}" in axes.depth.absent:
                parts = part.within(layers[j], part.outputs_more(pruned.config, i))
                found.setdefault(str(j), []).extend(parts.items())
    return found


def _per_layer(pruned: PrunedModel) -> dict[str, list[int]]:
    """Returns configuration fields of widths within a layer, with one value per layer."""
    axes, config = pruned.axes, pruned.config
    most = {**widest(pruned.parent), **widest(axes), "hidden": -1}
    # Fields that change when the hidden width does belong to the whole model: -1 marks them.
    everywhere = {field for field, v in pruned.family.resize(config, most).items() if v == -1}
    fields = per_layer(axes, config, {}, widest(pruned.parent))
    return {f: v for f, v in fields.items() if f not in everywhere and "head_dim" not in f}


def _difference(pruned: PrunedModel) -> str:
    axes, own = pruned.axes, apart(pruned.axes, pruned.config)
    if axes.depth.absent:
        return f"{sorted(axes.depth.absent)[0].replace('.', ' of layer ')} is gone"
    for name, width in own.items():
        if axes.widths[name] != width:
            return f"{axes.widths[name]} units on axis '{name}', {width} in the stock class"
    for kind, width in widest(axes, own).items():
        for name in axes.axes(kind):
            if name not in own and axes.widths[name] != width:
                return f"{axes.widths[name]} units on axis '{name}', {width} on another '{kind}'"
    return ""


def _stock(pruned: PrunedModel, widths: Widths) -> tuple[Container, Weights]:
    """Returns a stock class for these widths per axis kind, and its parameters. Raises RunError."""
    now, family, config = pruned.axes, pruned.family, pruned.config
    for kind, multiple in family.multiples.items():
        if widths.get(kind, 0) % multiple:
            said = f"{kind} {widths[kind]} is no multiple of {multiple}, as kernels want it"
            raise RunError(said)
    then = groups.from_config(family, config, depth=Depth(now.depth.layers), kinds=widths)
    kept = depth_fields(family, config, now.depth.layers)
    fields = {**config, **kept, **family.resize({**config, **kept}, widths)}
    factors = _factors(pruned, then)
    # All norms of a class have one epsilon: the first norm's. A traced family may have no norm over
    # an axis that can be cut; then no epsilon changed.
    for first in pruned.norms()[:1]:
        epsilon = first.epsilon * _stretch(first, now, then)
        if family.scales_stream:
            stated = _within(pruned, then) or float(
                getattr(pruned.module.config, family.epsilon_field)
            )
            fields[family.epsilon_field] = stated
            for name, factor in groups.of_stream(family, then, (stated / epsilon) ** 0.5):
                factors[name] = factors.get(name, 1.0) * factor
            continue
        if family.epsilon_field:
            fields[family.epsilon_field] = epsilon
        for name, factor in _fed(pruned, then, epsilon).items():
            factors[name] = factors.get(name, 1.0) * factor
    return container(family, fields, then.shapes), _filled(pruned, then, factors)


def _within(pruned: PrunedModel, then: AxisMap) -> float | None:
    """Returns the epsilon of the norms within recurrences, which read what no weight scales; None
    where there are none. Raises RunError where they want different ones: a class has one.
    """
    inner = [norm for norm in pruned.norms() if norm.averaged != norm.segment.names]
    wanted = sorted(norm.epsilon * _stretch(norm, pruned.axes, then) for norm in inner)
    if wanted and wanted[-1] > wanted[0] * (1 + 1e-9):
        raise RunError(
            "the norms behind state spaces need epsilons from "
            f"{wanted[0]:.3g} to {wanted[-1]:.3g}, and a stock class has one",
            fix="Export as `exact`.",
        )
    return wanted[0] if wanted else None


def _buffers(pruned: PrunedModel, skeleton: nn.Module) -> dict[str, Tensor]:
    """Returns the buffers that the class stores; zeros for those of blocks that are gone."""
    held, stored = pruned.buffers(), skeleton.state_dict().keys()
    return {
        name: _on_cpu(held[name]) if name in held else torch.zeros(b.shape, dtype=b.dtype)
        for name, b in skeleton.named_buffers()
        if name in stored
    }


def _on_cpu(tensor: Tensor) -> Tensor:
    """Returns the values on the CPU; a rehearsal has none (meta device)."""
    return tensor.detach() if tensor.is_meta else tensor.detach().cpu()


def _stretch(norm: Norm, now: AxisMap, then: AxisMap) -> float:
    """Returns the ratio of channels that a norm averages over now and in the exported class."""
    return norm.length(now.widths) / norm.length(then.widths)


def _filled(pruned: PrunedModel, then: AxisMap, factors: Mapping[str, float]) -> Weights:
    """Returns how parameters are made: multiplied by their factors and padded with zeros at the end
    of each narrower axis.
    """
    offsets = {norm.segment.param: norm.offset for norm in pruned.norms()}
    held, found = pruned.parameters(), dict[str, Made]()
    dtype = next(iter(held.values())).dtype
    for name, shape in then.shapes.items():
        p = held.get(name)
        if p is None:  # a block that is gone
            found[name] = Made(tuple(shape), dtype, None)
            continue
        how = partial(_fitted, factor=factors.get(name, 1.0), offset=offsets.get(name, 0.0))
        places = None
        if tuple(p.shape) != tuple(shape):
            places = [_places(pruned.axes, then, name, dim) for dim in range(p.dim())]
        found[name] = Made(tuple(shape), p.dtype, p, partial(how, shape=shape, places=places))
    return Weights(found)


def _fitted(
    tensor: Tensor,
    *,
    factor: float,
    offset: float,
    shape: tuple[int, ...],
    places: list[Tensor] | None,
) -> Tensor:
    """Returns a parameter multiplied by its factor, with its positions at their new ``places``."""
    if factor != 1.0:
        tensor = ((tensor.double() + offset) * factor - offset).to(tensor.dtype)
    if places is None:
        return tensor
    room = tensor.new_zeros(shape)
    room[torch.meshgrid(*places, indexing="ij")] = tensor
    return room


def _places(now: AxisMap, then: AxisMap, param: str, dim: int) -> Tensor:
    """Returns the new index of each position of ``dim`` when every axis grows at its end.

    A dimension may be a product of axes, so the new indices are not a plain range.
    """
    places = []
    for old, new in zip(now.by_param[param], then.by_param[param], strict=True):
        if old.dim == dim:
            wide = [*(then.widths[name] for name in new.names), new.positions_per_unit]
            kept = [slice(now.widths[name]) for name in old.names]
            grid = torch.arange(math.prod(wide)).view(wide)
            places.append(grid[tuple(kept)].flatten() + new.start)
    return torch.cat(places)


def _factors(pruned: PrunedModel, then: AxisMap) -> dict[str, float]:
    """Returns parameter -> factor of its effective value.

    A norm that averages over ``P`` channels of which ``A`` are not padding needs ``sqrt(A / P)``.
    Where the class multiplies the embedding by the root of the hidden size (Gemma: the parent's
    size in memory, the new one after loading), the embedding needs the ratio of the two, and the
    last norm its inverse if the embedding is also the output matrix.
    """
    family, config = pruned.family, pruned.config
    found = {
        f"{norm.path}.weight": _stretch(norm, pruned.axes, then) ** 0.5
        for norm in pruned.norms()
        if not family.centred
    }
    parent, hidden = family.read(config, "hidden_size"), then.widths.get("hidden", 1)
    for pattern, power in family.hidden_powers.items():
        for name in {pattern.replace("{i}", str(j)) for j in range(len(then.depth.layers))}:
            found[name] = found.get(name, 1.0) * (parent / hidden) ** power
    if family.scaled_embedding:
        ratio = (parent / hidden) ** 0.5
        found[family.scaled_embedding] = ratio
        if config.get("tie_word_embeddings"):
            found[family.final_norm] = found.get(family.final_norm, 1.0) / ratio
    return found


def _fed(pruned: PrunedModel, then: AxisMap, epsilon: float) -> dict[str, float]:
    """Returns factors of linear layers in front of norms whose epsilon is not the class's one.

    ``g s x / sqrt(s^2 m + e)`` equals ``g x / sqrt(m + e / s^2)``: scaling the layer by ``s``
    changes the norm's epsilon from ``e`` to ``e / s^2``.
    """
    found: dict[str, float] = {}
    own = {norm.path: norm.epsilon * _stretch(norm, pruned.axes, then) for norm in pruned.norms()}
    modules, attribute = dict(pruned.module.named_modules()), pruned.family.epsilon_attribute
    for pattern, feeds in pruned.family.fed_by.items():
        linears = (feeds,) if isinstance(feeds, str) else feeds
        for j in range(len(pruned.depth.layers)):
            path = pattern.replace("{i}", str(j))
            if path not in modules:
                continue
            value = own.get(path) or float(getattr(modules[path], attribute))
            for linear in (feeds.replace("{i}", str(j)) for feeds in linears):
                for name in (f"{linear}.weight", f"{linear}.bias"):
                    found[name] = (epsilon / value) ** 0.5
    return found
