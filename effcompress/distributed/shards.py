"""Parameters, gradients and moments shared out over the processes, a layer whole only while it
computes (FSDP2, ``fully_shard``).

FSDP2 cannot change a shape and cannot be taken off a module again. So it never sees the model's own
layers: it is put on shallow copies, which share everything inside, and a cut throws those away.
What lasts are the parameters, tensors shared out by rows; the optimizer holds them, surgery changes
them, and joining hands them to fresh copies. Nothing is gathered for that.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn

from effcompress.distributed.rows import on_mesh, whole


@final
class Shards:
    """The shared-out state of one model. ``layers`` is the path of its list of layers."""

    def __init__(self, module: nn.Module, layers: str, size: int, device: torch.device) -> None:
        """Share the parameters out; each process keeps its rows, on ``device``, of what it has now
        wherever that lies.
        """
        from torch.distributed.device_mesh import init_device_mesh

        self._mesh = init_device_mesh(device.type, (size,))
        self._module = module
        self._layers = layers
        self._plain: list[nn.Module] | None = None
        """The model's own layers, while copies stand in for them."""
        for p, places in _places(module).values():
            shared = nn.Parameter(on_mesh(p, self._mesh, device), requires_grad=p.requires_grad)
            _put(shared, places)
        for part in module.modules():
            for name, buffer in [*part.named_buffers(recurse=False)]:
                setattr(part, name, buffer.to(device))

    def join(self) -> nn.Module:
        """The model as something to call: forward gathers one layer after the other, backward
        leaves each process the *sum* of all gradients, of its own rows. To be parted before any
        tensor changes its shape.
        """
        # Takes a second to import, and few runs need it.
        from torch.distributed.fsdp import FSDPModule, fully_shard

        assert self._plain is None, "joined already"
        layers = self._list()
        self._plain = [*layers]
        for j, layer in enumerate(self._plain):
            layers[j] = _copied(layer)
        root = _copied(self._module)
        held = [*_places(root).values()]
        for p, places in held:  # shards of its own making would cost a second copy
            _put(nn.Parameter(_meta(p), requires_grad=p.requires_grad), places)
        for unit in (*layers, root):
            fully_shard(unit, mesh=self._mesh, reshard_after_forward=True)
            assert isinstance(unit, FSDPModule)
            # The default is the mean, but losses are divided by the rows of the global batch.
            unit.set_force_sum_reduction_for_comms(True)
            unit.set_gradient_divide_factor(1.0)
        for p, places in held:
            _put(p, places)
        return root

    def part(self) -> None:
        """The model's own layers are back; parameters stay shared out."""
        if self._plain is not None:
            layers = self._list()
            for j, layer in enumerate(self._plain):
                layers[j] = layer
            self._plain = None

    @contextmanager
    def gathered(self, here: bool) -> Iterator[None]:
        """The model with whole parameters where ``here`` is true, one process say; for the others
        they stay as they are. All must enter; the model is parted.
        """
        self.part()
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
    """Every parameter with the modules and names that it has there; a tied one has several."""
    found: dict[int, tuple[nn.Parameter, _Places]] = {}
    for part in module.modules():
        for name, p in part.named_parameters(recurse=False):
            found.setdefault(id(p), (p, []))[1].append((part, name))
    return found


def _put(p: nn.Parameter, places: _Places) -> None:
    for part, name in places:
        part.register_parameter(name, p)


def _meta(p: Tensor) -> Tensor:
    return torch.empty(p.shape, dtype=p.dtype, device="meta")


def _copied(module: nn.Module) -> nn.Module:
    """Another module with the same parameters, the same modules inside, the same hooks."""
    new = copy.copy(module)
    for key, value in vars(module).items():
        if isinstance(value, dict):  # or both would go on sharing the lists themselves
            new.__dict__[key] = value.copy()
    return new
