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

from effcompress.distributed.rows import is_sharded, on_mesh, whole


@final
class Shards:
    """The sharded parameters of one model. ``layers`` is the path of its list of layers."""

    def __init__(self, module: nn.Module, layers: str, size: int, device: torch.device) -> None:
        """Shards parameters in place: each rank keeps its rows, on ``device``, and all buffers."""
        from torch.distributed.device_mesh import init_device_mesh

        self._mesh = init_device_mesh(device.type, (size,))
        self._module, self._layers, self._device = module, layers, device
        self._plain: list[nn.Module] | None = None
        """The model's own layers while the wrapped copies are in their place."""
        self.shard()
        for part in module.modules():
            for name, buffer in [*part.named_buffers(recurse=False)]:
                setattr(part, name, buffer.to(device))

    def shard(self) -> None:
        """Shards parameters that are not, in place: all of a model, or those added to it since,
        which every rank holds whole. Not while it is wrapped. Sends nothing.
        """
        assert self._plain is None, "wrapped"
        for p, places in _places(self._module).values():
            if not is_sharded(p):
                rows = on_mesh(p, self._mesh, self._device)
                _put(nn.Parameter(rows, requires_grad=p.requires_grad), places)

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
        held = [*_places(root).values()]
        # fully_shard would shard what it finds, a second copy of every weight. It finds parameters
        # without memory instead, and gets the existing shards when it is done.
        for p, places in held:
            empty = torch.empty(p.shape, dtype=p.dtype, device="meta")
            _put(nn.Parameter(empty, requires_grad=p.requires_grad), places)
        for unit in (*layers, root):
            fully_shard(unit, mesh=self._mesh, reshard_after_forward=True)
            assert isinstance(unit, FSDPModule)
            # The default divides by the number of ranks, but losses are divided by the rows of the
            # global batch already.
            unit.set_force_sum_reduction_for_comms(True)
            unit.set_gradient_divide_factor(1.0)
        for p, places in held:
            _put(p, places)
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
        held = [*_places(self._module).values()]
        for p, places in held:
            full = whole(p)
            if here:
                _put(nn.Parameter(full, requires_grad=p.requires_grad), places)
        try:
            yield
        finally:
            for p, places in held:
                _put(p, places)

    def _list(self) -> Any:
        return self._module.get_submodule(self._layers)


_Places = list[tuple[nn.Module, str]]


def _places(module: nn.Module) -> dict[int, tuple[nn.Parameter, _Places]]:
    """Returns every parameter with its (module, name) pairs; a tied parameter has several."""
    found: dict[int, tuple[nn.Parameter, _Places]] = {}
    for part in module.modules():
        for name, p in part.named_parameters(recurse=False):
            found.setdefault(id(p), (p, []))[1].append((part, name))
    return found


def _put(p: nn.Parameter, places: _Places) -> None:
    for part, name in places:
        part.register_parameter(name, p)


def _copied(module: nn.Module) -> nn.Module:
    """Returns a shallow copy: the same parameters, submodules and hooks in dicts of its own."""
    new = copy.copy(module)
    for key, value in vars(module).items():
        if isinstance(value, dict):  # parameters, submodules, hooks: replaced in one only
            new.__dict__[key] = value.copy()
    return new
