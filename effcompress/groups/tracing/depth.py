"""Depth: which modules of a layer add to the residual stream, and the proof that layers and blocks
can go.

Independent of ``removal/``, as ``verify`` is. What stands for a block that is gone is given by the
caller, since it has to work with KV caches of the library.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from effcompress.errors import SourceError
from effcompress.groups.tracing.anatomy import Anatomy
from effcompress.groups.tracing.verify import (
    EQUAL,
    SEEN,
    Rebuild,
    Unproven,
    cover,
    logits_of,
    require_same,
    shapes_of,
)
from effcompress.types import Config, Depth, Family, Fields, Sublayer

Silent = Callable[[int, int], nn.Module]
"""(number of returned values, layer number) -> a module in place of one that is gone; with 0 values
it returns its input.
"""
ATTENTION_BLOCK, MLP_BLOCK = "attention_block", "mlp_block"
_OF_MIXERS = frozenset(
    ("attention_mask", "position_embeddings", "past_key_values", "layer_past", "cache_params")
)
"""Arguments that only modules get which mix tokens."""


@dataclass(frozen=True)
class Subject:
    """A small model in fp64 to prove on, with token ids ``[B, T]``. ``looks``: of every layer, what
    tells its kind.
    """

    family: Family
    config: Config
    module: nn.Module
    looks: tuple[str, ...]
    ids_BT: Tensor
    build: Rebuild
    silent: Silent
    caches: bool
    """Whether the whole model computes the same with a KV cache (``caches``)."""

    @property
    def kinds(self) -> list[list[int]]:
        """The layers of every kind."""
        return [
            [i for i, other in enumerate(self.looks) if other == look]
            for look in dict.fromkeys(self.looks)
        ]

    @property
    def tried(self) -> list[int]:
        """The layers whose blocks are removed: the first of every kind, and the last."""
        return sorted({*(of[0] for of in self.kinds), len(self.looks) - 1})


# --------------------------------------------------------------------------- what is proven


def require_depth(subject: Subject) -> None:
    """Proves the depth that a family declares. Raises Unproven."""
    if subject.family.no_depth(subject.config):
        return
    prove_layers(subject)
    for layers in subject.kinds:
        prove_all_gone(subject, layers)
    for kind in subject.family.sublayers:
        prove_block(subject, kind)
    if {ATTENTION_BLOCK, MLP_BLOCK} <= subject.family.sublayers.keys():
        prove_identity(subject)


def prove_layers(subject: Subject) -> None:
    """Proves that layers can go as long as another one of their kind is left. Raises Unproven."""
    if len(subject.looks) < 2:
        raise Unproven("there is only one layer")
    for first, *more in subject.kinds:
        if more:
            _prove_without(subject, [first])
            _prove_without(subject, [more[-1]])


def prove_all_gone(subject: Subject, layers: Sequence[int]) -> None:
    """Proves that these layers, all of one kind, can go, except those that the family keeps. Raises
    Unproven.
    """
    staying = {*subject.family.staying(subject.config)}
    gone = [i for i in layers if f"layer.{i}" not in staying]
    if gone and len(gone) < len(subject.looks):
        _prove_without(subject, gone)


@torch.no_grad()
def _prove_without(subject: Subject, gone: Sequence[int]) -> None:
    """Compares a model whose layers pass the stream on with one that does not have them, with and
    without KV cache, and with one that the stock class builds.
    """
    removed, fields = _without(subject, gone)
    _require_equal(subject, _passing(subject, gone), removed)
    _require_cache(subject, removed)
    _require_class(subject, removed, fields, gone)


@torch.no_grad()
def prove_block(subject: Subject, kind: str) -> None:
    """Compares layers in which nothing of a block reaches the stream with layers without its
    modules. Raises Unproven.
    """
    part = subject.family.sublayers[kind]
    for i in subject.tried:
        masked = copy.deepcopy(subject.module)
        layer = masked.get_submodule(subject.family.layer.replace("{i}", str(i)))
        there = {path: n for path, n in part.within(layer).items() if path not in part.through}
        for path, outputs in ({part.behind: 1} if part.behind else there).items():
            layer.get_submodule(path).register_forward_hook(partial(_nothing, outputs))
        removed = _silenced(subject, i, kind)
        _require_equal(subject, masked, removed)
        _require_cache(subject, removed)


@torch.no_grad()
def prove_identity(subject: Subject) -> None:
    """Compares a layer without any of its blocks with one that passes the stream on: the engine
    removes such layers. Raises Unproven.
    """
    for i in (of[0] for of in subject.kinds):
        without = _silenced(subject, i, *subject.family.sublayers)
        _require_equal(subject, _passing(subject, [i]), without)


def _passing(subject: Subject, layers: Sequence[int]) -> nn.Module:
    """Returns a copy of the model in which these layers pass the stream on."""
    masked = copy.deepcopy(subject.module)
    for i in layers:
        layer = masked.get_submodule(subject.family.layer.replace("{i}", str(i)))
        layer.register_forward_hook(_pass_on, with_kwargs=True)
    return masked


def _require_equal(subject: Subject, masked: nn.Module, removed: nn.Module) -> None:
    before, ids_BT = logits_of(subject.module, subject.ids_BT), subject.ids_BT
    wanted, scale = logits_of(masked, ids_BT), float(before.abs().max())
    if not float((wanted - before).abs().max()) > SEEN * scale:
        raise Unproven("it does nothing that can be seen")
    apart = float((logits_of(removed, ids_BT) - wanted).abs().max())
    if not apart <= EQUAL * scale:
        raise Unproven(f"silenced and removed differ by {apart:.2g} (largest logit {scale:.2g})")


def _require_cache(subject: Subject, removed: nn.Module) -> None:
    """Raises Unproven if the shorter model says something else with a KV cache than without, where
    the whole one does not.
    """
    if subject.caches and (why := _cache_apart(removed, subject.ids_BT)) is not None:
        raise Unproven(f"with a KV cache it computes something else: {why}")


@torch.no_grad()
def caches(module: nn.Module, ids_BT: Tensor) -> bool:
    """Returns whether a model computes the same with a KV cache: not all classes have one that
    works in fp64.
    """
    return _cache_apart(module, ids_BT) is None


def _cache_apart(module: Any, ids_BT: Tensor) -> str | None:
    """How logits with a cache, the last tokens one by one, differ from those without; None if they
    do not.
    """
    whole, given = logits_of(module, ids_BT), ids_BT.shape[1] - 3
    try:
        out = module(input_ids=ids_BT[:, :given], use_cache=True)
        steps = [out.logits]
        for t in range(given, ids_BT.shape[1]):
            past = {"past_key_values": out.past_key_values, "use_cache": True}
            out = module(input_ids=ids_BT[:, t : t + 1], **past)
            steps.append(out.logits)
    except Exception as error:  # noqa: BLE001 (the library raises different ones)
        return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    apart, scale = float((torch.cat(steps, 1) - whole).abs().max()), float(whole.abs().max())
    return None if apart <= EQUAL * scale else f"logits differ by {apart:.2g}"


def _require_class(
    subject: Subject, removed: nn.Module, fields: Fields, gone: Sequence[int]
) -> None:
    kept = Depth(tuple(i for i in range(len(subject.looks)) if i not in gone))
    try:
        fresh = subject.build({**subject.config, **fields})
    except SourceError as error:
        raise Unproven(f"the class is not built with fewer layers: {error.what}") from error
    if shapes_of(fresh) != shapes_of(removed):
        raise Unproven("built with fewer layers, the class has other parameters")
    axes = cover(subject.family, subject.config, removed, kept)
    require_same(fresh, removed, axes, subject.ids_BT)


def _without(subject: Subject, gone: Sequence[int]) -> tuple[nn.Module, Fields]:
    """The model without these layers, and the configuration fields that say so."""
    removed, family = copy.deepcopy(subject.module), subject.family
    kept = tuple(i for i in range(len(subject.looks)) if i not in gone)
    layers: Any = removed.get_submodule(family.layers)
    held = [layers[i] for i in kept]
    del layers[:]
    layers.extend(held)
    for j, layer in enumerate(held):
        for part in layer.modules():
            if hasattr(part, "layer_idx"):  # caches are indexed by it
                part.layer_idx = j
    name = family.aliases.get("num_hidden_layers", "num_hidden_layers")
    more = family.depth_fields(subject.config, kept) if family.depth_fields else {}
    fields = {name: len(kept), **more}
    for field, value in fields.items():
        setattr(removed.config, field, value)
    return removed, fields


def _silenced(subject: Subject, layer: int, *kinds: str) -> nn.Module:
    """The model without these blocks of one layer."""
    removed = copy.deepcopy(subject.module)
    held = removed.get_submodule(subject.family.layer.replace("{i}", str(layer)))
    for kind in kinds:
        for path, outputs in subject.family.sublayers[kind].within(held).items():
            held.set_submodule(path, subject.silent(outputs, layer))
    return removed


def _pass_on(_layer: nn.Module, args: Any, named: Mapping[str, Any], out: Any) -> Any:
    x = args[0] if args else named["hidden_states"]
    return (x, *out[1:]) if isinstance(out, tuple) else x


def _nothing(outputs: int, _module: nn.Module, args: Any, out: Any) -> Any:
    """What a module returns that adds nothing; with negative ``outputs`` it adds to its second
    argument itself.
    """
    first = out[0] if isinstance(out, tuple) else out
    none = args[1] if outputs < 0 else torch.zeros_like(first)
    return (none, *out[1:]) if isinstance(out, tuple) else none


# --------------------------------------------------------------------------- what is proposed


@dataclass(frozen=True)
class _Call:
    """What a module of a layer read and returned. The tensors are compared by identity."""

    read: Any
    wrote: Any
    outputs: int
    mixes: bool


@torch.no_grad()
def blocks_of(module: nn.Module, anatomy: Anatomy, ids_BT: Tensor) -> dict[str, Sublayer]:
    """Proposes the blocks of a layer: the modules that mix tokens, and those that do not, with the
    norms that serve one block alone. Empty where the kinds of layers do not agree.
    """
    layers = {
        i: module.get_submodule(anatomy.layer.replace("{i}", str(i))) for i in _first(anatomy)
    }
    seen: dict[int, dict[str, _Call]] = {i: {} for i in layers}
    hooks = [
        child.register_forward_hook(partial(_remember, seen[i], path), with_kwargs=True)
        for i, layer in layers.items()
        for path, child in layer.named_children()
    ]
    try:
        logits_of(module, ids_BT)
    except Unproven:
        return {}
    finally:
        for hook in hooks:
            hook.remove()
    found = [dict(_blocks(layer, seen[i])) for i, layer in layers.items()]
    return _agreed(found)


def _first(anatomy: Anatomy) -> tuple[int, ...]:
    return tuple(anatomy.first().values())


def _remember(
    seen: dict[str, _Call], path: str, _m: nn.Module, args: Any, named: Any, out: Any
) -> None:
    read = args[0] if args else named.get("hidden_states")
    wrote, outputs = (out[0], len(out)) if isinstance(out, tuple) else (out, 1)
    seen[path] = _Call(read, wrote, outputs, not _OF_MIXERS.isdisjoint(named))


def _blocks(layer: nn.Module, seen: Mapping[str, _Call]) -> Iterator[tuple[str, Sublayer]]:
    """Yields the kind of every block of one layer with its modules."""
    gains = {path for path, child in layer.named_children() if _is_norm(child)}
    parts = {
        path: call
        for path, call in seen.items()
        if path not in gains and next(layer.get_submodule(path).parameters(), None) is not None
    }
    for kind in (ATTENTION_BLOCK, MLP_BLOCK):
        mine = {path: c for path, c in parts.items() if c.mixes == (kind == ATTENTION_BLOCK)}
        others = [c.read for path, c in parts.items() if path not in mine]
        front, behind = list[str](), ""
        for path in (p for p in seen if p in gains):
            norm = seen[path]
            reads = [c.read is norm.wrote for c in mine.values()]
            if any(reads) and not any(read is norm.wrote for read in others):
                front.append(path)
            elif len(mine) == 1 and any(norm.read is c.wrote for c in mine.values()):
                behind = path
        ordered = sorted(mine.items(), key=lambda item: -item[1].outputs)
        if ordered and all(call.outputs == 1 for _, call in ordered[1:]):
            (silent, first), *more = ordered
            through = (*front, behind) if behind else tuple(front)
            beside = tuple(path for path, _ in more)
            yield kind, Sublayer(silent, first.outputs, through, behind, beside)


def _is_norm(child: nn.Module) -> bool:
    params = list(child.parameters())
    return bool(params) and all(p.dim() == 1 for p in params)


def _agreed(found: Sequence[Mapping[str, Sublayer]]) -> dict[str, Sublayer]:
    """The blocks that all kinds of layers have: with the same norms, in modules of any name that is
    of one kind of block only.
    """
    kinds = (ATTENTION_BLOCK, MLP_BLOCK)
    if not all(kind in blocks for blocks in found for kind in kinds):
        return {}
    agreed: dict[str, Sublayer] = {}
    for kind in kinds:
        first, *rest = (blocks[kind] for blocks in found)
        instead: dict[str, int] = {}
        for part in rest:
            if (part.through, part.behind) != (first.through, first.behind):
                return {}
            for path, outputs in part.silenced.items():
                if first.silenced.get(path, instead.get(path, outputs)) != outputs:
                    return {}
                if path not in first.silenced:
                    instead[path] = outputs
        agreed[kind] = replace(first, instead=tuple(instead.items()))
    names = [path for part in agreed.values() for path in part.silenced]
    return agreed if len(names) == len(set(names)) else {}
