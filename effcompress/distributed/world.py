"""Who takes part, who decides, and what is added up.

Every process runs the whole story. They read the same global batch and each computes its own rows;
gradients are summed in the backward pass; what people see and what lands on the disk is the main
process's. A decision is made once and told to the others.
"""

from __future__ import annotations

import datetime
import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from effcompress.errors import EffcompressError, RunError

T = TypeVar("T")
PATIENCE = datetime.timedelta(hours=2)
"""How long a process waits for another before it gives up: evaluation and export of a large model
are the main process's alone. One that dies is noticed at once by whoever launched them.
"""
_BUFFERS = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")  # the former since torch 2.13
    if name in inspect.signature(DistributedDataParallel).parameters
)


@dataclass(frozen=True)
class World:
    """The processes of a run. ``local_rank`` counts those on the same machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def main(self) -> bool:
        """Whether this is the process that decides, writes and talks."""
        return self.rank == 0

    def part(self, count: int) -> slice:
        """This process's share of ``count`` rows; ``count`` is a multiple of ``size``."""
        each = count // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def cat(self, own_N: Tensor) -> Tensor:
        """The tensors of all processes, of the same shape on each, one behind the other."""
        if self.size == 1:
            return own_N
        parts = [torch.empty_like(own_N) for _ in range(self.size)]
        dist.all_gather(parts, own_N.contiguous())
        return torch.cat(parts)

    def total(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sums over all processes, by name; one message for each type of number."""
        if self.size == 1:
            return dict(tensors)
        found: dict[str, Tensor] = {}
        for dtype in sorted({t.dtype for t in tensors.values()}, key=str):
            named = {name: t for name, t in sorted(tensors.items()) if t.dtype == dtype}
            flat = torch.cat([t.reshape(-1) for t in named.values()])
            dist.all_reduce(flat)
            parts = flat.split([t.numel() for t in named.values()])
            found |= {
                name: part.view(t.shape)
                for (name, t), part in zip(named.items(), parts, strict=True)
            }
        return {name: found[name] for name in tensors}

    def sums(self, values: Sequence[float]) -> list[float]:
        """Sums over all processes, in fp64."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return total.tolist()

    def any(self, here: bool) -> bool:
        """Whether it is so in one of the processes at least."""
        return self.sums([float(here)])[0] > 0

    def agree(self, decide: Callable[[], T]) -> T:
        """What the main process decides, on all of them; so is the error that it meets."""
        if self.size == 1:
            return decide()
        said: list[Any] = [None, None]
        if self.main:
            try:
                said[0] = decide()
            except Exception as error:
                dist.broadcast_object_list([None, _told(error)])
                raise
        dist.broadcast_object_list(said)
        if said[1] is not None:
            raise said[1]
        return cast(T, said[0])

    def each(self, here: Callable[[], T]) -> list[T]:
        """What every process finds, in their order, on all of them; so is the first error."""
        if self.size == 1:
            return [here()]
        said: list[Any] = [None] * self.size
        try:
            found: T = here()
        except Exception as error:
            dist.all_gather_object(said, (None, _told(error)))
            raise
        dist.all_gather_object(said, (found, None))
        for _, error in said:
            if error is not None:
                raise error
        return [found for found, _ in said]

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The main process alone, then the others: for what is fetched or converted once. An error
        of the main process is everyone's.
        """
        if self.size == 1 or not self.main:
            self.agree(_nothing)
            yield
            return
        try:
            yield
        except Exception as error:
            dist.broadcast_object_list([None, _told(error)])
            raise
        self.agree(_nothing)

    def replicate(self, module: nn.Module) -> nn.Module:
        """A module whose backward leaves the *sum* of all processes' gradients. It begins with the
        main process's weights everywhere. To be made anew when a tensor changes its shape: it holds
        on to the shapes that it was made with.
        """
        if self.size == 1:
            return module
        device = next(module.parameters()).device
        ids = [device.index] if device.type == "cuda" else None
        still: Any = {_BUFFERS: False}  # they are the same everywhere and nobody changes them
        replicas = DistributedDataParallel(module, device_ids=ids, **still)
        replicas.register_comm_hook(None, _summed)
        return replicas


ALONE = World()


def unsynchronised(module: nn.Module) -> AbstractContextManager[None]:
    """A backward whose gradients stay where they are: all but the last of a batch."""
    if isinstance(module, DistributedDataParallel):
        return cast(AbstractContextManager[None], module.no_sync())
    # Gradients of shared-out weights leave at once: those of a whole model are not to gather here.
    return nullcontext()


def in_step(module: nn.Module) -> bool:
    """Whether a forward pass needs all processes: what one runs, the others must run too."""
    return hasattr(module, "set_requires_gradient_sync")  # an FSDPModule


@contextmanager
def joined() -> Iterator[World]:
    """The world that launched this process (``torchrun``, ``accelerate launch``), or nobody else.
    Whoever has joined before stays joined afterwards.

    Raises RunError when the others cannot be reached.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    world = World(
        int(os.environ["RANK"]), size, int(os.environ.get("LOCAL_RANK", os.environ["RANK"]))
    )
    if dist.is_initialized():
        yield world
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(world.local_rank)
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise RunError(
            f"the other {size - 1} processes cannot be reached: {error}",
            fix="Start all with one `torchrun --nproc-per-node N -m effcompress run RECIPE`.",
        ) from error
    try:
        yield world
    except RuntimeError as error:  # ours are none
        if not isinstance(error, dist.DistError) and "peer" not in str(error):
            raise
        raise RunError(
            f"another of the {size} processes of this run stopped",
            fix="See what it printed. Once that is mended, --resume continues.",
        ) from error
    finally:
        dist.destroy_process_group()


def _summed(_state, bucket):  # torch reads annotations here, and strings are none to it
    # The default divides by the number of processes, but losses are divided by the rows of the
    # global batch already.
    work: Any = dist.all_reduce(bucket.buffer(), async_op=True)
    return work.get_future().then(lambda done: done.value()[0])


def _nothing() -> None:
    return None


def _told(error: Exception) -> Exception:
    """The same sentence for the others: what cannot be sent becomes a RunError."""
    if isinstance(error, EffcompressError):
        return error
    return RunError(f"another process failed: {error!r}")
