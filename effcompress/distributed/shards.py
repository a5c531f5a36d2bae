"""Shards parameters, gradients and optimizer moments over processes (FSDP2, ``fully_shard``).

``fully_shard`` changes the class of a module in place, keeps the shapes it saw, and cannot be
undone. A cut changes shapes, so the obvious order (unshard, slice, reshard) would gather the whole
model on every rank. Instead FSDP2 is applied to shallow copies of the layers, which are dropped
before a cut; the model's own modules never see it. What lasts are the parameters, DTensors sharded
by rows: the optimizer holds them, surgery changes them, and the next ``wrap`` passes the same
objects to fresh copies. Nothing is gathered for that.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn

from effcompress.distributed.gather import places_of, put
from effcompress.distributed.rows import from_rows, is_sharded, on_mesh, whole
from effcompress.distributed.world import keep_unsharded

if TYPE_CHECKING:  # takes a second to import, and few runs need it
    from torch.distributed.device_mesh import DeviceMesh


def shard_parameters(
    module: nn.Module,
    size: int,
    device: torch.device,
    rows: Mapping[str, Tensor] | None = None,
    *,
    replicas: int = 1,
) -> DeviceMesh:
    """Shards parameters over ``size`` ranks in place, on ``device``; returns the mesh. With
    ``replicas``, each is sharded over as many neighbouring ranks (HSDP). Parameters on the meta
    device are made of this rank's ``rows`` by name, sharded ones stay as they are. A collective,
    which sends nothing.
    """
    from torch.distributed.device_mesh import init_device_mesh

    rows = rows or {}
    there = next((p.device_mesh for p in module.parameters() if is_sharded(p)), None)
    # One dimension has no name: peft takes rows of a mesh with other names than its own for tensor
    # parallelism. FSDP2 wants two to have some.
    shape, dims = (size,), None
    if replicas > 1:
        shape, dims = (replicas, size // replicas), ("replicate", "shard")
    mesh = there or init_device_mesh(device.type, shape, mesh_dim_names=dims)
    names = {id(p): name for name, p in module.named_parameters()}
    for p, places in places_of(module).values():
        if is_sharded(p):
            continue
        name = names[id(p)]
        if p.is_meta:
            laid = from_rows(rows[name], len(p), mesh, device)
        else:
            laid = on_mesh(p, mesh, device)
        put(nn.Parameter(laid, requires_grad=p.requires_grad), places)
    return mesh


@final
class Shards:
    """The sharded parameters of one model. ``layers`` is the path of its list of layers."""

    def __init__(
        self,
        module: nn.Module,
        layers: str,
        size: int,
        device: torch.device,
        *,
        replicas: int = 1,
        unsharded: bool = False,
    ) -> None:
        """Shards parameters in place (``shard_parameters``): each rank keeps its rows, on
        ``device``, and all buffers. ``unsharded``: gradients stay whole between micro-batches.
        """
        self._unsharded = unsharded
        self._mesh = shard_parameters(module, size, device, replicas=replicas)
        self._module, self._layers, self._device = module, layers, device
        self._plain: list[nn.Module] | None = None
        """The model's own layers while the wrapped copies are in their place."""
        for part in module.modules():
            for name, buffer in [*part.named_buffers(recurse=False)]:
                setattr(part, name, buffer.to(device))

    def shard(self) -> None:
        """Shards parameters that were added since, in place, which every rank holds whole. Not
        while it is wrapped. Sends nothing.
        """
        assert self._plain is None, "wrapped"
        shard_parameters(self._module, self._mesh.size(), self._device)

    def wrap(self, *, bf16: bool = False) -> nn.Module:
        """Returns an FSDP2 module to call: forward gathers one layer after the other, backward
        leaves each rank the *sum* of all gradients for its own rows. ``unwrap`` before any tensor
        changes its shape. ``bf16``: layers are gathered in bfloat16, for passes under autocast;
        their gradients are reduced in fp32, and so is everything outside the layers gathered.
        """
        # Takes a second to import, and few runs need it.
        from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

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
        fp32 = MixedPrecisionPolicy()
        # The residual stream stays in fp32, as under autocast alone.
        half = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        for unit in (*layers, root):
            policy = half if bf16 and unit is not root else fp32
            fully_shard(unit, mesh=self._mesh, mp_policy=policy, reshard_after_forward=True)
            assert isinstance(unit, FSDPModule)
            # The default divides by the number of ranks, but losses are divided by the rows of the
            # global batch already.
            unit.set_force_sum_reduction_for_comms(True)
            unit.set_gradient_divide_factor(1.0)
        for p, places in held:
            put(p, places)
        # The order of the passes is known, so the gather of a layer need not wait until the one
        # before has been started. In the backward torch does the same by itself.
        order: list[Any] = [root, *layers]
        for unit, following in itertools.pairwise(order):
            unit.set_modules_to_forward_prefetch([following])
        if self._unsharded:
            keep_unsharded(root)
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
