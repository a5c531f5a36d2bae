"""The forward pass of a model whose mini-groups are multiplied by learned gates, and its absorption
into the weights (arXiv:2310.06694, arXiv:2204.00408).

A gate ``z`` is a number from 0 to 1 for each mini-group. Where it acts:

- units within a layer (heads, FFN channels): on what the projection back into the stream reads;
- layers and blocks: on what they add to the residual stream;
- hidden channels: on the outputs of norms, and on what is added to the stream. Norms average over
  the channels with ``z != 0`` only, and the stream enters the first layer without the others.

Masking then equals removing: ``absorb`` multiplies the same factors into gains, rows and columns,
and a unit with ``z = 0`` contributes nothing, so removing it leaves the function as it is.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, cast, final

import torch
from torch import Tensor, nn

from effcompress.distributed.rows import scale
from effcompress.errors import CoverageError
from effcompress.measure.hooks import first_of, linears, stream_in
from effcompress.network.pruned_model import PrunedModel
from effcompress.removal.norms import Norm
from effcompress.types import DEPTH, AxisMap, Segment, axis_kind

Values = Mapping[str, Tensor]
"""Group set -> its gates [G]."""


@final
class MaskedForward:
    """Multiplies by ``values`` in the passes inside ``using``; outside, the model computes as ever.

    The model has no masked units yet. ``sets``: names of the gated sets.
    """

    def __init__(self, pruned: PrunedModel, sets: list[str]) -> None:
        """Raises CoverageError for hidden channels whose norms have no gain."""
        self.module, self.axes = pruned.module, pruned.axes
        self.hidden = "hidden" in sets
        self._values: Values = {}
        self._undo: list[Any] = []
        self._norms = _gated_norms(pruned, sets)
        self._reads = list(_reads(pruned, sets))
        self._writes = list(_writes(pruned, sets))
        self._install(pruned)

    @contextmanager
    def using(self, values: Values) -> Iterator[None]:
        """Multiplies by these gates inside; the backward pass and what it recomputes belong there,
        too.
        """
        self._values = values
        try:
            yield
        finally:
            self._values = {}

    def close(self) -> None:
        """Restores the modules."""
        for undo in self._undo:
            undo()
        self._undo.clear()

    @torch.no_grad()
    def absorb(self, values: Values, *, also_ends: bool = False) -> None:
        """Multiplies the gates into the weights, so that the model computes without them what it
        computed with them. Weights of mini-groups at 0 that nothing reads any more stay as they
        are. Each process changes the rows that it holds.

        ``also_ends``: the embedding's and the head's columns are multiplied, too, as the code
        of arXiv:2310.06694 does; the function is another one then.
        """
        params = dict(self.module.named_parameters())
        for param, dim, factor_N, offset in self._factors(values, also_ends):
            scale(params[param], dim, factor_N, offset)
            # A bias lies along the outputs.
            bias = _bias(param)
            if bias in params and (param, dim) not in self._reads:
                scale(params[bias], params[bias].dim() - 1, factor_N)

    def _factors(self, values: Values, also_ends: bool) -> Iterator[tuple[str, int, Tensor, float]]:
        """Parameter, dimension, the factor along it, and what is added to a stored gain."""
        for param, dim in self._reads:
            yield param, dim, _factor(self.axes, param, dim, values), 0.0
        for param, dim in self._writes:
            yield param, dim, _written(self.axes, param, dim, values), 0.0
        for norm in self._norms:
            factor_P = _normed(self.axes, norm, values)
            if factor_P is not None:
                yield norm.segment.param, 0, factor_P, norm.offset
        outside = self.axes.family.layer.partition("{i}")[0]
        for segment in self.axes.segments if also_ends and self.hidden else ():
            matrix = len(self.axes.shapes[segment.param]) == 2
            if segment.names == ("hidden",) and matrix and not segment.param.startswith(outside):
                yield segment.param, segment.dim, values["hidden"], 0.0

    def _install(self, pruned: PrunedModel) -> None:
        for param, dim in self._reads:
            owner, _, name = param.rpartition(".")
            module = self.module.get_submodule(owner)
            if name == "weight":
                handle = module.register_forward_pre_hook(partial(self._read, param, dim))
                self._undo.append(handle.remove)
            else:  # one tensor for all experts, read within their module
                self._scale_parameter(module, name, param, dim)
        for param, dim in self._writes:
            module = self.module.get_submodule(param.rpartition(".")[0])
            handle = module.register_forward_hook(partial(self._write, param, dim))
            self._undo.append(handle.remove)
        for norm in self._norms:
            norm.module.forward = partial(self._norm, norm)  # in front of that of its class
            self._undo.append(partial(delattr, norm.module, "forward"))
        if self.hidden:
            first = self.module.get_submodule(pruned.family.layer.replace("{i}", "0"))
            handle = first.register_forward_pre_hook(self._enter, with_kwargs=True)
            self._undo.append(handle.remove)

    def _scale_parameter(self, module: nn.Module, name: str, param: str, dim: int) -> None:
        """Exchanges the module's class for one that reads this parameter times the gates. Names
        and parameters stay; an attribute of the class is found before those of ``nn.Module``.
        """
        stock = type(module)

        def read(held: nn.Module) -> Tensor:
            weight = held._parameters[name]
            assert weight is not None
            if not self._values:
                return weight
            factor_I = _factor(self.axes, param, dim, self._values)
            along = [-1 if d == dim else 1 for d in range(weight.dim())]
            return weight * factor_I.to(weight.dtype).view(along)

        module.__class__ = type(f"Gated{stock.__name__}", (stock,), {name: property(read)})
        self._undo.append(partial(setattr, module, "__class__", stock))

    def _read(self, param: str, dim: int, _module: nn.Module, args: tuple[Any, ...]) -> Any:
        if not self._values:
            return None
        x, *rest = args
        return (x * _factor(self.axes, param, dim, self._values).to(x.dtype), *rest)

    def _write(self, param: str, dim: int, _module: nn.Module, _args: Any, out: Any) -> Any:
        if not self._values:
            return None
        first = first_of(out)
        scaled = first * _written(self.axes, param, dim, self._values).to(first.dtype)
        return (scaled, *out[1:]) if isinstance(out, tuple) else scaled

    def _enter(self, _module: nn.Module, args: Any, named: dict[str, Any]) -> Any:
        if not self._values:
            return None
        x = stream_in(args, named)
        x = x * (self._values["hidden"] != 0).to(x.dtype)
        return ((x, *args[1:]), named) if args else (args, {**named, "hidden_states": x})

    def _norm(self, norm: Norm, x: Tensor) -> Tensor:
        """Runs a norm over the channels that are not at 0; sums in fp32 or fp64."""
        module = norm.module
        if not self._values:
            return type(module).forward(module, x)
        live_P = (_layout(self.axes, norm.segment, self._values) != 0).to(x.device)
        factor_P = _normed(self.axes, norm, self._values)
        wide = x if x.dtype == torch.float64 else x.float()
        live_P, count = live_P.to(wide.dtype), live_P.sum()
        if norm.centred:
            wide = wide - (wide @ live_P / count).unsqueeze(-1)
        square = wide.square() @ live_P / count
        wide = wide * torch.rsqrt(square + norm.epsilon).unsqueeze(-1)
        gain_P = cast(Tensor, module.weight) + norm.offset
        gain_P = gain_P if factor_P is None else gain_P * factor_P.to(gain_P.dtype)
        out = wide * gain_P
        bias_P = getattr(module, "bias", None)
        if bias_P is not None:
            out = out + (bias_P if factor_P is None else bias_P * factor_P.to(bias_P.dtype))
        return out.to(x.dtype)


def _gated_norms(pruned: PrunedModel, sets: list[str]) -> list[Norm]:
    """The norms that average over gated units, or stand between a gated block and the stream."""
    found = [
        norm
        for norm in pruned.norms()
        if any(name in sets for name in norm.averaged)
        or any(gate in sets for gate in _behind(pruned.axes, norm.segment.param))
    ]
    for norm in found:
        inner = [name for name in norm.averaged if name in sets]
        if inner and norm.averaged != norm.segment.names:
            kind = axis_kind(inner[0])
            raise CoverageError(
                f"gates of '{kind}' would change what a norm behind a state space averages over",
                where=norm.path,
                fix="Take it out of prune.space, or prune without prune.gates.",
            )
        if norm.segment.param not in pruned.axes.shapes:
            raise CoverageError(
                "gates of hidden channels multiply the gain of every norm, and this one has none",
                where=norm.path,
                fix="Take `hidden` out of prune.space, or prune without prune.gates.",
            )
    return found


def _reads(pruned: PrunedModel, sets: list[str]) -> Iterator[tuple[str, int]]:
    """Parameters that read gated units of their layer, and the dimension of these inputs."""
    inside = linears(pruned.module, pruned.family.layer.partition("{i}")[0])
    units = {name for name in sets if axis_kind(name) not in (*DEPTH, "hidden")}
    for param, shape in pruned.axes.shapes.items():
        dim = inside.get(param, pruned.family.expert_inputs if len(shape) == 3 else None)
        held = [s for s in pruned.axes.by_param[param] if s.dim == dim]
        if dim is not None and any(name in units for s in held for name in s.names):
            yield param, dim


def _writes(pruned: PrunedModel, sets: list[str]) -> Iterator[tuple[str, int]]:
    """Parameters whose outputs are added to the stream under a gate, and the dimension of these
    outputs.
    """
    layer = pruned.family.layer.partition("{i}")[0]
    inside = linears(pruned.module, layer)
    for param, shape in pruned.axes.shapes.items():
        outputs = 3 - pruned.family.expert_inputs if len(shape) == 3 else None
        dim = 1 - inside[param] if param in inside else outputs
        gates = ("hidden", *_added(pruned.axes, param))
        if param.startswith(layer) and any(name in sets for name in gates):
            held = [s for s in pruned.axes.by_param[param] if s.dim == dim]
            if any(s.names == ("hidden",) for s in held) and dim is not None:
                yield param, dim


def _added(axes: AxisMap, param: str) -> tuple[str, ...]:
    """Layer and block on whose contribution a projection's own outputs are: none where a norm
    follows, which undoes a factor in front of it.
    """
    gates = axes.gates[param]
    return () if any(_norm_behind(axes, gate) for gate in gates) else gates


def _behind(axes: AxisMap, param: str) -> tuple[str, ...]:
    """Layer and block whose contribution this norm is the last module of; else none."""
    gates = axes.gates.get(param, ())
    ends = [_norm_behind(axes, gate) for gate in gates]
    return gates if any(end and f".{end}." in param for end in ends) else ()


def _norm_behind(axes: AxisMap, gate: str) -> str:
    block = axes.family.sublayers.get(axis_kind(gate))
    if block is None or not block.behind:
        return ""
    # Configurations may do without it.
    there = any(param.endswith(f".{block.behind}.weight") for param in axes.shapes)
    return block.behind if there else ""


def _layout(axes: AxisMap, segment: Segment, values: Values) -> Tensor:
    """The gates of a segment's positions: products over its axes, 1 where one has none."""
    shape = [axes.widths[name] for name in segment.names]
    like = next(iter(values.values()))
    found = like.new_ones(shape)
    for d, name in enumerate(segment.names):
        if name in values:
            found = found * values[name].view([-1 if k == d else 1 for k in range(len(shape))])
    each = segment.positions_per_unit
    return found.reshape(-1, 1).expand(-1, each).reshape(-1) if each > 1 else found.reshape(-1)


def _factor(axes: AxisMap, param: str, dim: int, values: Values) -> Tensor:
    """The gates of all positions along one dimension."""
    held = sorted((s for s in axes.by_param[param] if s.dim == dim), key=lambda s: s.start)
    return torch.cat([_layout(axes, s, values) for s in held])


def _written(axes: AxisMap, param: str, dim: int, values: Values) -> Tensor:
    """What the outputs of a projection into the stream are multiplied by, [hidden]."""
    return _times(_factor(axes, param, dim, values), _added(axes, param), values)


def _normed(axes: AxisMap, norm: Norm, values: Values) -> Tensor | None:
    """What the outputs of a norm are multiplied by; None for one within a block (of queries and
    keys across heads), which only averages over fewer.
    """
    if norm.segment.names != ("hidden",):
        return None
    found = _layout(axes, norm.segment, values)
    return _times(found, _behind(axes, norm.segment.param), values)


def _times(factor: Tensor, gates: tuple[str, ...], values: Values) -> Tensor:
    for gate in gates:
        if gate in values:
            factor = factor * values[gate]
    return factor


def _bias(param: str) -> str:
    """The bias beside a weight; of experts, one row for each."""
    return f"{param.removesuffix('weight')}bias" if param.endswith(".weight") else f"{param}_bias"
