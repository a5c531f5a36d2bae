"""What a part of a run takes: wall time, peak memory, and the floating-point operations beside
training steps (calibration, search, fits, repairs). Steps are counted by arithmetic
(``RunState.flops_per_token``).
"""

import contextlib
import math
import time
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils.flop_counter import flop_registry

from effcompress.distributed.repeated import by_all, repeating
from effcompress.processes import high_water, reset_peak
from effcompress.runner.state import RunState


@dataclass(frozen=True)
class Spent:
    """Time and ``memory_bytes``, the peak on the device: torch's allocations on a GPU, the resident
    memory of the whole process (with its libraries) on a CPU; None where the system does not say.
    """

    seconds: float
    memory_bytes: int | None

    def with_earlier(self, earlier: "Spent | None") -> "Spent":
        """Returns both: the sum of the times, the larger peak."""
        if earlier is None:
            return self
        peaks = [n for n in (self.memory_bytes, earlier.memory_bytes) if n is not None]
        return Spent(self.seconds + earlier.seconds, max(peaks, default=None))


@final
class Meter:
    """Measures from its construction on. Only one at a time: a new one resets the peak."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
        else:
            # Linux only. Elsewhere the peak is that of the process since its start.
            with contextlib.suppress(OSError):
                reset_peak()
        self._started = time.monotonic()

    def read(self) -> Spent:
        """Returns time and peak since the meter was made."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return Spent(time.monotonic() - self._started, peak(self._device))


def peak(device: torch.device) -> int | None:
    """Returns the peak of memory since the newest meter was made."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return high_water()


def _attended(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> float:
    """Scores and values: two products per pair, of which a causal mask leaves half, as in
    ``estimate/flops.py``.
    """
    *batch, queries, wide = query.shape
    return math.prod(batch) * queries * key.shape[-2] * (wide + value.shape[-1])


def _attended_backward(_grad: Tensor, *args: Any, **named: Any) -> float:
    return 2.5 * _attended(*args[:3])  # and the scores once more


def _cholesky(a: Tensor, *_: Any, **__: Any) -> float:
    return math.prod(a.shape[:-2]) * a.shape[-1] ** 3 / 3


def _solved(b: Tensor, a: Tensor, *_: Any, **__: Any) -> float:
    """Two triangular systems."""
    return math.prod(b.shape) * 2.0 * a.shape[-1]


def _inverse(a: Tensor, *_: Any, **__: Any) -> float:
    return math.prod(a.shape[:-2]) * 2.0 * a.shape[-1] ** 3


def _eigen(a: Tensor, *_: Any, **__: Any) -> float:
    """With eigenvectors (Golub and Van Loan, Matrix Computations, section 8.3)."""
    return math.prod(a.shape[:-2]) * 9.0 * a.shape[-1] ** 3


def _added(_into: Tensor, a: Tensor, b: Tensor, **__: Any) -> float:
    return 2.0 * math.prod(a.shape) * b.shape[-1]


_ATTENTION = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_attention_math",
)
_OWN: dict[str, Callable[..., float]] = {
    **dict.fromkeys(_ATTENTION, _attended),
    **{f"{name}_backward": _attended_backward for name in _ATTENTION},
    **dict.fromkeys(("linalg_cholesky_ex", "cholesky"), _cholesky),
    **dict.fromkeys(("cholesky_solve", "_cholesky_solve_helper"), _solved),
    **dict.fromkeys(("linalg_inv_ex", "linalg_inv"), _inverse),
    "_linalg_eigh": _eigen,
    "addmm_": _added,  # torch's counter knows it out of place only
}
"""Operator -> its operations, of its arguments; matrix products and convolutions are torch's."""


@final
class Operations(TorchDispatchMode):
    """Adds up matrix products, convolutions, attention and factorisations that run inside, those of
    a backward pass included.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0.0
        self._known: dict[Hashable, float] = {}

    @contextlib.contextmanager
    def like(self, key: Hashable) -> Iterator[None]:
        """Counts what runs inside as much as it was the first time with this ``key``. Every
        operator that is counted goes through Python, which hundreds of thousands of small ones
        notice.
        """
        if key in self._known:
            with _disable_current_modes():
                yield
            self.total += self._known[key]
        else:
            before = self.total
            yield
            self._known[key] = self.total - before

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        named = kwargs or {}
        out = func(*args, **named)
        if repeating():
            return out
        packet = func.overloadpacket
        if (count := _OWN.get(packet.__name__)) is not None:
            # Whole numbers: their sum is the same in any order, of any number of processes.
            self.total += round(count(*args, **named))
        elif (known := flop_registry.get(packet)) is not None:
            self.total += known(*args, **named, out_val=out)
        return out


@contextlib.contextmanager
def counted(state: RunState, *, alike: bool = False) -> Iterator[Operations]:
    """Adds what runs inside to the state's operations. ``alike``: every process computes the same,
    which counts once. Not in memory, where the passes are the script's.
    """
    if state.loss_of is not None:
        yield Operations()
        return
    once = by_all(state.world) if alike else contextlib.nullcontext()
    with Operations() as operations, once:
        yield operations
    state.operations += operations.total


def drained(state: RunState) -> float:
    """Returns the operations of all processes since the last event that has any. Collective."""
    own, state.operations = state.operations, 0.0
    return state.world.sums([own])[0]
