"""Shards parameters, gradients and optimizer moments over processes (FSDP2, ``fully_shard``).

``fully_shard`` changes the class of a module in place, keeps the shapes it saw, and cannot be
undone. A cut changes shapes, so the obvious order (unshard, slice, reshard) would gather the whole
model on every rank. Instead FSDP2 is applied to shallow copies of the layers, which are dropped
before a cut; the model's own modules never see it. What lasts are the parameters, DTensors sharded
by rows: the optimizer holds them, surgery changes them, and the next ``wrap`` passes the same
objects to fresh copies. Nothing is gathered for that.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import nn

from effcompress.distributed.gather import places_of, put
from effcompress.distributed.rows import on_mesh, whole


@final
class Shards:
    """The sharded parameters of one model. ``layers`` is the path of its list of layers."""

    def __init__(self, module: nn.Module, layers: str, size: int, device: torch.device) -> None:
        """Shards parameters in place: each rank keeps its rows, on ``device``, and all buffers."""
        from torch.distributed.device_mesh import init_device_mesh

        self._mesh = init_device_mesh(device.type, (size,))
        self._module, self._layers = module, layers
        self._plain: list[nn.Module] | None = None
        """The model's own layers while the wrapped copies are in their place."""
        for p, places in places_of(module).values():
            shared = nn.Parameter(on_mesh(p, self._mesh, device), requires_grad=p.requires_grad)
            put(shared, places)
        for part in module.modules():
            for name, buffer in [*part.named_buffers(recurse=False)]:
                setattr(part, name, buffer.to(device))

    def wrap(self) -> nn.Module:
        """Returns an FSDP2 module to call: forward gathers one layer after the other, backward
        leaves each rank the *sum* of all gradients for its own rows. ``unwrap`` before any tensor
        changes its shape.
        """
        # Takes a second to import, and few runs need it.
        from torch.distributed.fsdp import FSDPModule, fully_shard

        assert self._plain is None, "wrapped already"
        layers = self._list()
        self._plain = [*layers]
        for j, layer in enumerate(self._plain):
            layers[j] = _copied(layer)
        root = _copied(self._module)
        held = [*places_of(root).values()]
        # fully_shard would shard what it finds, a second copy of every weight. It finds parameters
        # without memory instead, and gets the existing shards when it is done.
        for p, places in held:
            empty = torch.empty(p.shape, dtype=p.dtype, device="meta")
            put(nn.Parameter(empty, requires_grad=p.requires_grad), places)
        for unit in (*layers, root):
            fully_shard(unit, mesh=self._mesh, reshard_after_forward=True)
            assert isinstance(unit, FSDPModule)
            # The default divides by the number of ranks, but losses are divided by the rows of the
            # global batch already.
            unit.set_force_sum_reduction_for_comms(True)
            unit.set_gradient_divide_factor(1.0)
        for p, places in held:
            put(p, places)
        return root

    def unwrap(self) -> None:
        """Puts the model's own layers back; parameters stay sharded."""
        if self._plain is not None:
            layers = self._list()
            for j, layer in enumerate(self._plain):
                layers[j] = layer
            self._plain = None

    @contextmanager
    def gathered(self, here: bool) -> Iterator[None]:
        """Gathers the model inside, on ranks where ``here`` is true; the others send their rows
        and keep them. Every rank must enter. Unwraps the model.
        """
        self.unwrap()
        held = [*places_of(self._module).values()]
        for p, places in held:
            full = whole(p)
            if here:
                put(nn.Parameter(full, requires_grad=p.requires_grad), places)
        try:
            yield
        finally:
            for p, places in held:
                put(p, places)

    def _list(self) -> Any:
        return self._module.get_submodule(self._layers)


def _copied(module: nn.Module) -> nn.Module:
    """Returns a shallow copy: the same parameters, submodules and hooks in dicts of its own."""
    new = copy.copy(module)
    for key, value in vars(module).items():
        if isinstance(value, dict):  # parameters, submodules, hooks: replaced in one only
            new.__dict__[key] = value.copy()
    return new
