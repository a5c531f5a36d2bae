"""The processes of a run: ranks, collectives, and the DDP wrapper.

Every rank runs the same program on the same global batch and computes its own rows of it. Gradients
are summed in the backward pass. Rank 0 alone prints and writes. A decision is made on rank 0 and
broadcast, never repeated on each rank: sums in another order could decide otherwise.
"""

import datetime
import inspect
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import _get_default_store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from effcompress.distributed.meeting import own_keys
from effcompress.errors import EffcompressError, RecipeError, RunError, Stopped
from effcompress.launcher import Place, keeps_store, launched

T = TypeVar("T")
PATIENCE = datetime.timedelta(hours=2)
"""Timeout of a collective. Work of rank 0 alone is waited for as long as it takes: see ``BEAT``. A
rank that dies is noticed at once by the launcher (torchrun).
"""
BEAT, SILENCE = 10.0, 600.0
"""Seconds between two heartbeats of rank 0 while the others wait for it, and seconds without any
after which they give up.
"""
_SHORT = 1.0
"""Seconds before the others look for heartbeats: most decisions are made sooner."""
_BEATS, _DONE, _ENDED = "effcompress/beats", "effcompress/done", "effcompress/ended"
_FAILED = "effcompress/failed"
"""Counters in the store of the process group."""
_GONE = ("peer", "Broken pipe")
"""Words of gloo's errors when another process has closed its connections."""
_UNSHARDED = "_effcompress_unsharded"
"""Attribute of an FSDP2 module that keeps whole gradients between micro-batches."""
LAST_WORDS = 60.0
"""Seconds that the others wait at most for rank 0 to write how a run was stopped."""
_turns = itertools.count(1)
"""How often this rank waited for rank 0 in this process group."""
_BUFFERS = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")  # the former since torch 2.13
    if name in inspect.signature(DistributedDataParallel).parameters
)


_heart: "_Heart | None" = None


@dataclass(frozen=True)
class World:
    """Rank and number of processes; ``local_rank`` counts those on the same machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def main(self) -> bool:
        """Whether this is rank 0, which decides, writes and prints."""
        return self.rank == 0

    def own_rows(self, count: int) -> slice:
        """Returns this rank's slice of ``count`` rows; ``count`` is a multiple of ``size``."""
        each = count // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def cat(self, own_N: Tensor) -> Tensor:
        """Returns the tensors of all ranks, of equal shape, concatenated in rank order."""
        if self.size == 1:
            return own_N
        parts = [torch.empty_like(own_N) for _ in range(self.size)]
        dist.all_gather(parts, own_N.contiguous())
        return torch.cat(parts)

    def all_to_all(self, sent: Sequence[Tensor], received: Sequence[int]) -> list[Tensor]:
        """Sends ``sent[r]`` to rank ``r``; returns what each rank sent here, flat. ``received[r]``
        is its number of elements, which the caller has to know. All are of one dtype.
        """
        if self.size == 1:
            return [t.reshape(-1) for t in sent]
        flat = torch.cat([t.reshape(-1) for t in sent])
        found = flat.new_empty(sum(received))
        dist.all_to_all_single(found, flat, [*received], [t.numel() for t in sent])
        return [*found.split([*received])]

    def total(
        self, tensors: Mapping[str, Tensor], group: dist.ProcessGroup | None = None
    ) -> dict[str, Tensor]:
        """Returns the sums over all ranks (or those of ``group``), by name: one all-reduce for each
        dtype.
        """
        if self.size == 1:
            return dict(tensors)
        found: dict[str, Tensor] = {}
        # Sorted names: every rank must lay out the flat buffer alike.
        for dtype in sorted({t.dtype for t in tensors.values()}, key=str):
            named = {name: t for name, t in sorted(tensors.items()) if t.dtype == dtype}
            flat = torch.cat([t.reshape(-1) for t in named.values()])
            dist.all_reduce(flat, group=group)
            parts = flat.split([t.numel() for t in named.values()])
            for (name, t), part in zip(named.items(), parts, strict=True):
                found[name] = part.view(t.shape)
        return {name: found[name] for name in tensors}

    def same(self, tensors: Iterable[Tensor]) -> None:
        """Overwrites tensors with rank 0's, in place."""
        for tensor in tensors if self.size > 1 else ():
            dist.broadcast(tensor.detach(), 0)

    def sums(self, values: Sequence[float], group: dist.ProcessGroup | None = None) -> list[float]:
        """Returns the sums over all ranks (or those of ``group``), in fp64."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=group)
        return total.tolist()

    def any(self, here: bool) -> bool:
        """Returns whether ``here`` is true on one rank at least."""
        return self.sums([float(here)])[0] > 0

    def agree(self, decide: Callable[[], T]) -> T:
        """Returns rank 0's decision on every rank; its error is raised on every rank, too."""
        if self.size == 1:
            return decide()
        said: list[Any] = [None, None]
        with self._turn_of_main():
            if self.main:
                said[0] = decide()
        dist.broadcast_object_list(said)
        if said[1] is not None:
            raise said[1]
        return cast(T, said[0])

    def each(self, here: Callable[[], T]) -> list[T]:
        """Returns on every rank what all ranks found, in rank order; raises the first error."""
        if self.size == 1:
            return [here()]
        said: list[Any] = [None] * self.size
        try:
            mine = (here(), None)
        except (Exception, Stopped) as error:
            dist.all_gather_object(said, (None, _told(error)))
            raise
        dist.all_gather_object(said, mine)
        for error in (error for _, error in said if error is not None):
            raise error
        return [found for found, _ in said]

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Runs the body on rank 0, then on the others: for what is fetched or converted once. An
        error of rank 0 is raised on every rank.
        """
        if self.size == 1:
            yield
            return
        said: list[Any] = [None, None]
        with self._turn_of_main():
            if self.main:
                yield
        dist.broadcast_object_list(said)
        if said[1] is not None:
            raise said[1]
        if not self.main:
            yield

    def end_together(self, last: Callable[[], object]) -> None:
        """Calls ``last`` on rank 0; the others return once it is done, or after ``LAST_WORDS``. For
        the end of a run: launchers end all processes once the first of them has failed.
        """
        if self.main:
            last()
        if self.size == 1:
            return
        with suppress(Exception):  # rank 0 is gone, and the store with it
            store, deadline = _get_default_store(), time.monotonic() + LAST_WORDS
            if self.main:
                store.add(_ENDED, 1)
            while not store.add(_ENDED, 0) and time.monotonic() < deadline:
                time.sleep(0.05)

    @contextmanager
    def _turn_of_main(self) -> Iterator[None]:
        """Inside, rank 0 works and sends heartbeats; the others wait before they enter. An error of
        rank 0 is broadcast.
        """
        if not self.main:
            _wait_for_main()
            yield
            return
        try:
            with _at_work():
                yield
        except (Exception, Stopped) as error:
            dist.broadcast_object_list([None, _told(error)])
            raise

    def replicate(self, module: nn.Module) -> nn.Module:
        """Returns a DDP wrapper whose backward leaves the *sum* of all ranks' gradients.

        Building it broadcasts rank 0's weights. Its buckets keep the shapes that it was built with,
        so it must be dropped before a tensor changes its shape and built again afterwards.
        """
        if self.size == 1:
            return module
        device = next(module.parameters()).device
        ids = [device.index] if device.type == "cuda" else None
        still: Any = {_BUFFERS: False}  # rotary tables: equal on all ranks and never changed
        replicas = DistributedDataParallel(module, device_ids=ids, **still)
        replicas.register_comm_hook(None, _summed)
        return replicas


ALONE = World()


def unsynchronised(module: nn.Module) -> AbstractContextManager[None]:
    """Returns a context for all micro-batches but the last, in which DDP exchanges no gradients.
    FSDP2 scatters them after every micro-batch, because unsharded ones would fill the memory,
    unless it was told not to (``keep_unsharded``); replicas are summed after the last one alone.
    """
    if isinstance(module, DistributedDataParallel):
        return cast(AbstractContextManager[None], module.no_sync())
    return _accumulating(module) if needs_all_ranks(module) else nullcontext()


@contextmanager
def _accumulating(module: Any) -> Iterator[None]:
    unsharded = getattr(module, _UNSHARDED, False)
    sync = module.set_requires_gradient_sync if unsharded else module.set_requires_all_reduce
    sync(False)
    try:
        yield
    finally:
        sync(True)


def keep_unsharded(module: nn.Module) -> None:
    """Makes an FSDP2 module keep whole gradients until the last micro-batch."""
    setattr(module, _UNSHARDED, True)


def needs_all_ranks(module: nn.Module) -> bool:
    """Returns whether a forward pass is a collective that every rank must enter (FSDP2)."""
    return hasattr(module, "set_requires_gradient_sync")  # an FSDPModule


LET_GO = 0.1
"""Seconds between the last collective of a group and its end."""


@contextmanager
def joined() -> Iterator[World]:
    """Joins the process group of the launcher (``torchrun``, ``accelerate launch``, SLURM's
    ``srun``); ``ALONE`` without one. A group that existed before is used and not destroyed.

    Raises RunError when the other processes cannot be reached, or one of them stops; RecipeError as
    ``launched``.
    """
    place = launched()
    size = place.size
    if size == 1:
        yield ALONE
        return
    world = World(place.rank, size, place.local_rank)
    if dist.is_initialized():
        yield world
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(_gpu(place, torch.cuda.device_count()))
    global _turns, _heart
    _turns = itertools.count(1)
    how: Any = {"rank": place.rank, "world_size": size, "timeout": PATIENCE}
    try:
        backends = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        if keeps_store():
            store, *_ = next(rendezvous(place.meeting, place.rank, size, timeout=PATIENCE))
            how["store"] = own_keys(store, place.rank, size, PATIENCE)
        else:
            how["init_method"] = place.meeting
        dist.init_process_group(backends, **how)
    except (RuntimeError, ValueError) as error:
        at = "" if place.meeting == "env://" else f" at {place.meeting}"
        raise RunError(
            f"the other {size - 1} processes cannot be reached{at}: {error}",
            fix="Start all at once: `torchrun --nproc-per-node N -m effcompress run RECIPE`, or "
            "`srun effcompress run RECIPE` (MASTER_ADDR and MASTER_PORT name another meeting).",
        ) from error
    try:
        yield world
    except BaseException as error:
        if world.main:
            with suppress(Exception):  # the others may wait for it: ``_wait_for_main``
                _get_default_store().add(_FAILED, 1)
        if (known := stopped_elsewhere(error, size)) is None:
            raise
        raise known from error
    finally:
        if _heart is not None:
            _heart.over.set()
        _heart = None
        # Gloo's threads need Python's global lock to release the tensors of the last collectives.
        # Destroying the group holds this lock and joins these threads: without a pause, a deadlock.
        time.sleep(LET_GO)
        dist.destroy_process_group()


def stopped_elsewhere(error: BaseException, size: int) -> RunError | None:
    """Returns the RunError for a collective that failed because another of ``size`` processes is
    gone; None for any other error.
    """
    # Errors of effcompress are not RuntimeErrors.
    gone = isinstance(error, RuntimeError) and any(words in str(error) for words in _GONE)
    if size == 1 or not (gone or isinstance(error, dist.DistError)):
        return None
    return RunError(
        f"another of the {size} processes of this run stopped",
        fix="See what it printed. Once that is mended, --resume continues.",
    )


def _gpu(place: Place, count: int) -> int:
    """Returns the number of a process's GPU among the ``count`` that it sees. Raises RecipeError
    where there are too few.
    """
    if place.local_rank < count:
        return place.local_rank
    if count == 1 and place.meeting != "env://":  # srun --gpus-per-task=1: each task sees its own
        return 0
    what = f"process {place.local_rank} of this machine (from 0) has no GPU: it sees {count}"
    raise RecipeError(what, fix=f"Start at most {count} processes on a machine.")


class _Heart(threading.Thread):
    """Sends heartbeats while rank 0 works for all: one thread for a process group, since cuts are
    frequent and short.
    """

    def __init__(self) -> None:
        super().__init__(name="alive", daemon=True)
        self.working, self.over = False, threading.Event()

    def run(self) -> None:
        """Ends with the process group."""
        while not self.over.wait(BEAT):
            try:
                if self.working:
                    _get_default_store().add(_BEATS, 1)
            except (RuntimeError, ValueError):  # the group is gone
                return


@contextmanager
def _at_work() -> Iterator[None]:
    """Sends heartbeats meanwhile; at the end tells the others to go on."""
    global _heart
    if _heart is None:
        _heart = _Heart()
        _heart.start()
    _heart.working = True
    try:
        yield
    finally:
        _heart.working = False
        _get_default_store().add(_DONE, 1)


def _wait_for_main() -> None:
    """Waits until rank 0 has done its work. Raises RunError when it has failed before that, or
    sends no heartbeats.
    """
    # Not by `store.wait`: torch writes a warning whenever that times out.
    store, turn = _get_default_store(), next(_turns)
    started = heard = time.monotonic()
    beats = -1
    while store.add(_DONE, 0) < turn:  # adding nothing reads
        now = time.monotonic()
        if now - started > _SHORT and store.add(_FAILED, 0):
            what = "process 0, which works for all, has failed"
            raise RunError(what, fix="See what it printed; --resume continues.")
        if now - started > _SHORT and (seen := store.add(_BEATS, 0)) != beats:
            beats, heard = seen, now
        if now - heard > SILENCE:
            raise RunError(
                f"process 0, which works for all, has given no sign of life for {SILENCE:.0f} s",
                fix="See what it printed last, and `effcompress status`; --resume continues.",
            )
        time.sleep(min(1.0, max(0.0002, (now - started) / 10)))


def _summed(_state, bucket):  # no annotations: torch inspects them, and here they are strings
    # DDP's default hook divides by the number of ranks, but losses are divided by the rows of the
    # global batch already. And it sums whole buckets, which DDP fills anew, in another order, after
    # the first backward pass: where more than two add up, the order of the addends depends on the
    # place in the message, so a resumed run, whose wrapper is new, would round differently.
    # A message for each parameter does not depend on buckets.
    total = bucket.buffer()
    parts = total.split([p.numel() for p in bucket.parameters()])
    works: list[Any] = [dist.all_reduce(part, async_op=True) for part in parts]
    futures = [work.get_future() for work in works]
    if not total.is_cuda:  # gloo works on several messages at once, which may end in any order
        return torch.futures.collect_all(futures).then(lambda _: total)
    # The future of all holds futures and no tensor: what waits for it does not wait for the stream
    # of NCCL. What waits for the last one does; a group's messages run one after the other there.
    return futures[-1].then(lambda _: total)


def _told(error: Exception | Stopped) -> Exception | Stopped:
    """Returns the error to broadcast: our own, and Python's for a full disk or too little memory,
    which callers name. Others become a RunError, as not all pickle.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return MemoryError(str(error))
    system = isinstance(error, OSError | MemoryError) and type(error).__module__ == "builtins"
    if system or isinstance(error, EffcompressError | Stopped):
        return error
    return RunError(f"another process failed: {error!r}")
