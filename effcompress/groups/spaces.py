"""Built-in pruning spaces: which mini-groups may be removed, and in which scope.

All of them take ``after`` and ``until``: their units are candidates while the removed fraction of
the model's parameters is in ``[after, until)``.
"""

import math
from collections.abc import Iterator
from typing import Literal

from effcompress.errors import CoverageError
from effcompress.registry import space
from effcompress.spec import Fraction, Positive
from effcompress.types import AxisMap, Family, GroupSet, Limits

Scope = Literal["lockstep", "per_layer", "global"]
"""Every layer loses equally many; each layer is cut on its own; all layers are one pool."""
Layers = tuple[int, ...]


@space("ffn", paper="arXiv:2502.06663, type II")
def ffn(
    axes: AxisMap,
    *,
    scope: Scope = "lockstep",
    minimum: Positive = 1,
    round_to: Positive = 1,
    finish_on: Positive = 1,
    serve_tp: Positive = 1,
    skip_layers: Layers = (),
    after: Fraction = 0.0,
    until: Fraction = 1.0,
) -> Iterator[GroupSet]:
    """One channel of a feed-forward block: its gate and up rows and its down column; in a mixture,
    the same channel of all experts of the layer, and one of the experts that every token goes
    through, where these have a width of their own. With ``round_to``, that many channels are
    removed at once, so that every width on the way is a multiple of it, and of ``serve_tp``, the
    devices of tensor parallelism. With ``finish_on``, channels are removed one at a time, and a
    width that was cut ends on a multiple of it.
    """
    limits = Limits(scope=scope, minimum=minimum, finish_on=finish_on, after=after, until=until)
    limits["round_to"] = math.lcm(round_to, serve_tp)
    for kind in ("ffn", "expert_ffn", "shared_ffn"):
        yield from _sets(axes, kind, skip_layers, limits)


@space("attention", paper="arXiv:2502.06663, type I")
def attention(
    axes: AxisMap,
    *,
    scope: Scope = "lockstep",
    unit: Literal["kv_group", "q_per_group", "head"] = "kv_group",
    minimum: Positive = 1,
    serve_tp: Positive = 1,
    skip_layers: Layers = (),
    after: Fraction = 0.0,
    until: Fraction = 1.0,
) -> Iterator[GroupSet]:
    """Heads: ``kv_group`` is a KV head with all its query heads (rows of q, k, v, columns of o),
    ``q_per_group`` the same query head out of every group of a layer (KV heads stay), ``head`` a
    single head in models without grouped queries. The heads that stay are a multiple of
    ``serve_tp``, the devices of tensor parallelism.
    """
    kind, multiple = _heads(axes, unit, serve_tp)
    if kind == "query" and kind in axes.family.fixed:
        raise stays("attention", kind, axes.family)
    limits = Limits(scope=scope, minimum=minimum, round_to=multiple, after=after, until=until)
    yield from _sets(axes, kind, skip_layers, limits)


def stays(space: str, kind: str, family: Family) -> CoverageError:
    """The error of a space that cuts a kind which the family never cuts."""
    why = family.unreached.get(kind, "its declaration says so")
    return CoverageError(
        f"space '{space}' cuts '{kind}', which stays in family '{family.name}': {why}",
        fix="Take it out of prune.space.",
    )


def _heads(axes: AxisMap, unit: str, serve_tp: int) -> tuple[str, int]:
    """Axis kind of ``unit``, and the multiple that its width must be."""
    grouped = max((axes.widths[name] for name in axes.axes("query")), default=1)
    if unit == "head" and grouped > 1:
        raise CoverageError(
            f"attention.unit: head, but {grouped} query heads share a KV head in this model",
            fix="Write `unit: kv_group` or `unit: q_per_group`.",
        )
    if unit != "q_per_group":
        return "attention", serve_tp
    if grouped == 1:
        raise CoverageError(
            "attention.unit: q_per_group, but every query head has a KV head of its own here",
            fix="Write `unit: head`.",
        )
    # Heads of a layer are kv * queries. With kv a multiple of k, queries need only serve_tp / k.
    kv = math.gcd(*(axes.widths[name] for name in axes.axes("attention")))
    return "query", serve_tp // math.gcd(kv, serve_tp)


@space("hidden", paper="arXiv:2502.06663, type III")
def hidden(
    axes: AxisMap,
    *,
    minimum: Positive = 1,
    round_to: Positive = 1,
    finish_on: Positive = 1,
    after: Fraction = 0.0,
    until: Fraction = 1.0,
) -> Iterator[GroupSet]:
    """One channel of the residual stream, through every layer, norm and projection. With
    ``round_to``, that many channels are removed at once, so that every width on the way is a
    multiple of it; with ``finish_on`` they are removed one at a time, and the width ends on a
    multiple of it.
    """
    limits = Limits(scope="lockstep", minimum=minimum, round_to=round_to, finish_on=finish_on)
    limits |= Limits(after=after, until=until)
    yield from axes.sets("hidden", **limits)


@space("expert", paper="arXiv:2510.13999")
def expert(
    axes: AxisMap,
    *,
    scope: Scope = "lockstep",
    minimum: Positive = 1,
    serve_tp: Positive = 1,
    skip_layers: Layers = (),
    after: Fraction = 0.0,
    until: Fraction = 1.0,
) -> Iterator[GroupSet]:
    """One expert of a mixture and its row of the router. At least the experts per token stay, and
    a multiple of ``serve_tp``, the devices of expert parallelism.
    """
    limits = Limits(scope=scope, minimum=minimum, round_to=serve_tp, after=after, until=until)
    yield from _sets(axes, "expert", skip_layers, limits)


@space("mixer", paper="new")
def mixer(
    axes: AxisMap,
    *,
    scope: Scope = "lockstep",
    unit: Literal["group", "head"] = "group",
    minimum: Positive = 1,
    serve_tp: Positive = 1,
    skip_layers: Layers = (),
    after: Fraction = 0.0,
    until: Fraction = 1.0,
) -> Iterator[GroupSet]:
    """What mixes tokens in layers without attention: a key head of linear attention with its value
    heads, a channel of a short convolution or of a state space (Mamba), and of one with heads
    (Mamba-2) by ``unit`` a ``group`` with its B, its C and all its heads, or the same ``head`` out
    of every group of a layer. The units that stay are a multiple of ``serve_tp``, the devices of
    tensor parallelism.
    """
    limits = Limits(scope=scope, minimum=minimum, round_to=serve_tp, after=after, until=until)
    for kind in ("linear_head", "conv_channel", "ssm_channel", f"ssm_{unit}"):
        yield from _sets(axes, kind, skip_layers, limits)


def _of_modules(kind: str, paper: str, summary: str) -> None:
    """Registers the space of the layers, or of one block of each."""

    def modules(
        axes: AxisMap,
        *,
        minimum: Positive = 1,
        skip_layers: Layers = (),
        after: Fraction = 0.0,
        until: Fraction = 1.0,
    ) -> Iterator[GroupSet]:
        if axes.no_depth:
            raise CoverageError(f"no {kind} can go here: {axes.no_depth}", where=axes.family.name)
        # Each layer is a set of one unit that may go (minimum 0); the pool of all keeps `minimum`.
        limits = Limits(scope="global", minimum=0, floor=minimum, after=after, until=until)
        yield from _sets(axes, kind, skip_layers, limits)

    modules.__doc__ = summary
    space(kind, paper=paper)(modules)


_of_modules("layer", "arXiv:2403.03853", "One whole layer. ``minimum`` layers stay.")
_of_modules(
    "attention_block",
    "arXiv:2406.15786",
    "The attention block of one layer with its norms; the feed-forward stays. ``minimum`` stay.",
)
_of_modules(
    "mlp_block",
    "arXiv:2406.15786",
    "The feed-forward block (or mixture) of one layer with its norms; the attention stays.\n"
    "``minimum`` stay.",
)


def _sets(axes: AxisMap, kind: str, skip_layers: Layers, limits: Limits) -> Iterator[GroupSet]:
    layers = len(axes.depth.layers)
    for i in skip_layers:
        if not -layers <= i < layers:
            raise CoverageError(f"skip_layers names {i}, but the model has {layers} layers")
    yield from axes.sets(kind, skip_layers=skip_layers, **limits)
