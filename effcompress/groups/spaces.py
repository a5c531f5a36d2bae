"""Built-in pruning spaces: which mini-groups may go, and whether layers move in step.

All of them take ``after`` and ``until``: a space takes part while the share of the parameters
that is gone lies in ``[after, until)``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

from effcompress.errors import CoverageError
from effcompress.registry import space
from effcompress.spec import Fraction, Positive
from effcompress.types import AxisMap, GroupSet

Scope = Literal["lockstep", "per_layer", "global"]
"""Every layer loses equally many; each layer for itself; all layers are one pool."""


@space("ffn", paper="arXiv:2502.06663, type II")
def ffn(
    axes: AxisMap,
    *,
    scope: Scope = "lockstep",
    minimum: Positive = 1,
    round_to: Positive = 1,
    finish_on: Positive = 1,
    serve_tp: Positive = 1,
    skip_layers: tuple[int, ...] = (),
    after: Fraction = 0.0,
    until: Fraction = 1.0,
) -> Iterator[GroupSet]:
    """One channel of a feed-forward block: its gate and up rows and its down column; in a mixture,
    the same channel of all experts of the layer. With ``round_to`` channels go in blocks, so that
    every width on the way is a multiple of it, and of the ``serve_tp`` devices that will share it.
    With ``finish_on`` they go one at a time, and a width that was cut ends on a multiple of it.
    """
    for kind in ("ffn", "expert_ffn"):
        yield from _sets(
            axes,
            kind,
            scope=scope,
            minimum=minimum,
            round_to=math.lcm(round_to, serve_tp),
            finish_on=finish_on,
            skip_layers=skip_layers,
            after=after,
            until=until,
        )


@space("attention", paper="arXiv:2502.06663, type I")
def attention(
    axes: AxisMap,
    *,
    scope: Scope = "lockstep",
    unit: Literal["kv_group", "q_per_group", "head"] = "kv_group",
    minimum: Positive = 1,
    serve_tp: Positive = 1,
    skip_layers: tuple[int, ...] = (),
    after: Fraction = 0.0,
    until: Fraction = 1.0,
) -> Iterator[GroupSet]:
    """Heads: ``kv_group`` is a KV head with all its query heads (rows of q, k, v, columns of o),
    ``q_per_group`` the same query head out of every group of a layer (KV heads stay), ``head`` a
    head of its own in models that share none. ``serve_tp`` devices will share the heads evenly.
    """
    kind, multiple = _heads(axes, unit, serve_tp)
    yield from _sets(
        axes,
        kind,
        scope=scope,
        minimum=minimum,
        round_to=multiple,
        skip_layers=skip_layers,
        after=after,
        until=until,
    )


def _heads(axes: AxisMap, unit: str, serve_tp: int) -> tuple[str, int]:
    """The axis kind that a unit of attention is, and what its width must be a multiple of."""
    shares = max((axes.widths[name] for name in axes.axes("query")), default=1)
    if unit == "head" and shares > 1:
        raise CoverageError(
            f"attention.unit: head, but {shares} query heads share a KV head in this model",
            fix="Write `unit: kv_group` or `unit: q_per_group`.",
        )
    if unit != "q_per_group":
        return "attention", serve_tp
    if shares == 1:
        raise CoverageError(
            "attention.unit: q_per_group, but every query head has a KV head of its own here",
            fix="Write `unit: head`.",
        )
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
    ``round_to`` channels go in blocks, so that every width on the way is a multiple of it; with
    ``finish_on`` they go one at a time, and the width ends on a multiple of it.
    """
    yield from axes.sets(
        "hidden",
        scope="lockstep",
        minimum=minimum,
        round_to=round_to,
        finish_on=finish_on,
        after=after,
        until=until,
    )


@space("expert", paper="arXiv:2510.13999")
def expert(
    axes: AxisMap,
    *,
    scope: Scope = "lockstep",
    minimum: Positive = 1,
    serve_tp: Positive = 1,
    skip_layers: tuple[int, ...] = (),
    after: Fraction = 0.0,
    until: Fraction = 1.0,
) -> Iterator[GroupSet]:
    """One expert of a mixture and its row of the router. As many as a token is sent to always
    stay. ``serve_tp`` devices will share the experts evenly.
    """
    yield from _sets(
        axes,
        "expert",
        scope=scope,
        minimum=minimum,
        round_to=serve_tp,
        skip_layers=skip_layers,
        after=after,
        until=until,
    )


@space("layer", paper="arXiv:2403.03853")
def layer(
    axes: AxisMap,
    *,
    minimum: Positive = 1,
    skip_layers: tuple[int, ...] = (),
    after: Fraction = 0.0,
    until: Fraction = 1.0,
) -> Iterator[GroupSet]:
    """One whole layer. ``minimum`` layers stay."""
    yield from _modules(axes, "layer", minimum, skip_layers, after, until)


@space("attention_block", paper="arXiv:2406.15786")
def attention_block(
    axes: AxisMap,
    *,
    minimum: Positive = 1,
    skip_layers: tuple[int, ...] = (),
    after: Fraction = 0.0,
    until: Fraction = 1.0,
) -> Iterator[GroupSet]:
    """The attention of one layer with its norms; the feed-forward stays. ``minimum`` stay."""
    yield from _modules(axes, "attention_block", minimum, skip_layers, after, until)


@space("mlp_block", paper="arXiv:2406.15786")
def mlp_block(
    axes: AxisMap,
    *,
    minimum: Positive = 1,
    skip_layers: tuple[int, ...] = (),
    after: Fraction = 0.0,
    until: Fraction = 1.0,
) -> Iterator[GroupSet]:
    """The feed-forward block (or mixture) of one layer with its norms; the attention stays.
    ``minimum`` stay.
    """
    yield from _modules(axes, "mlp_block", minimum, skip_layers, after, until)


def _modules(
    axes: AxisMap,
    kind: str,
    minimum: int,
    skip_layers: tuple[int, ...],
    after: float,
    until: float,
) -> Iterator[GroupSet]:
    if axes.no_depth:
        raise CoverageError(f"no {kind} can go here: {axes.no_depth}", where=axes.family.name)
    yield from _sets(
        axes,
        kind,
        scope="global",
        minimum=0,
        floor=minimum,
        skip_layers=skip_layers,
        after=after,
        until=until,
    )


def _sets(
    axes: AxisMap, kind: str, *, skip_layers: tuple[int, ...], **how: Any
) -> Iterator[GroupSet]:
    layers = len(axes.depth.layers)
    for i in skip_layers:
        if not -layers <= i < layers:
            raise CoverageError(f"skip_layers names {i}, but the model has {layers} layers")
    yield from axes.sets(kind, skip_layers=skip_layers, **how)
