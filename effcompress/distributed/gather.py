"""Gathers parts of a sharded model for a while: a layer, or what is outside the layers.

For passes that take one layer at a time. FSDP2 gathers a layer at every call; here a layer is
gathered once for all sequences that go through it, its weights may be changed meanwhile, and what
was changed is in the shards afterwards. Ordinary parameters are left as they are.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from effcompress.distributed.rows import is_sharded, shard_like, whole, write_back

Places = list[tuple[nn.Module, str]]


@contextmanager
def gathered(module: nn.Module, *, apart: nn.Module | None = None) -> Iterator[None]:
    """Gathers the sharded parameters of a module inside, without those of its part ``apart``.
    Changes of the weights are in every rank's rows afterwards; those of another shape, and
    parameters that are new, are sharded. Every rank must enter, and change them alike; leaving
    sends nothing.
    """
    there = set() if apart is None else {id(p) for p in apart.parameters()}
    every = [found for key, found in places_of(module).items() if key not in there]
    held = [each for each in every if is_sharded(each[0])]
    full = [nn.Parameter(whole(p), requires_grad=p.requires_grad) for p, _ in held]
    for whole_p, (_, found) in zip(full, held, strict=True):
        put(whole_p, found)
    before = {id(whole_p): p for whole_p, (p, _) in zip(full, held, strict=True)}
    try:
        yield
    finally:
        now = places_of(module) if before else {}
        for key, (p, found) in now.items():
            if key not in there and not is_sharded(p):
                put(_sharded(p, before.get(key), held[0][0]), found)


def _sharded(now: nn.Parameter, before: nn.Parameter | None, like: nn.Parameter) -> nn.Parameter:
    """Returns ``before`` with the rows of ``now``, or a new parameter where there was none, or one
    of another shape, on the ranks of ``like``.
    """
    if before is not None and before.shape == now.shape:
        write_back(before.detach(), now.detach())
        return before
    return nn.Parameter(shard_like(now.detach(), like), requires_grad=now.requires_grad)


@contextmanager
def gathered_in_turn(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Gathers the parameters of each of these layers inside, while it runs: no two at a time. For
    forward passes of the model without its FSDP2 wrapper; one that is gathered already stays so.
    """
    if not any(is_sharded(p) for layer in layers for p in layer.parameters()):
        yield
        return
    with ExitStack() as hooks, ExitStack() as held:  # a pass may end within a layer

        def before(layer: nn.Module, _args: Any) -> None:
            held.enter_context(gathered(layer))

        def after(_layer: nn.Module, _args: Any, _out: Any) -> None:
            held.close()

        for layer in layers:
            hooks.enter_context(layer.register_forward_pre_hook(before))
            hooks.enter_context(layer.register_forward_hook(after))
        yield


def places_of(module: nn.Module) -> dict[int, tuple[nn.Parameter, Places]]:
    """Returns every parameter with its (module, name) pairs; a tied parameter has several."""
    found: dict[int, tuple[nn.Parameter, Places]] = {}
    for part in module.modules():
        for name, p in part.named_parameters(recurse=False):
            found.setdefault(id(p), (p, []))[1].append((part, name))
    return found


def put(p: nn.Parameter, places: Places) -> None:
    """Makes it the parameter of these modules, under these names."""
    for part, name in places:
        part.register_parameter(name, p)
