"""Precision of passes whose weights are fp32: which one, and the context that computes in it."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch

Precision = Literal["fp32", "bf16"]
Asked = Literal["fp32", "bf16", "auto"]


def precision_on(device: torch.device, asked: Asked) -> Precision:
    """Returns the precision that is asked for: ``auto`` is bf16 where the device multiplies it
    natively, else fp32. It depends on the device alone, so that a run that is repeated finds the
    same.
    """
    if asked == "auto":
        return "bf16" if multiplies_bf16(device) else "fp32"
    return asked


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the device has instructions that multiply matrices of bfloat16 (those of x86:
    AVX512-BF16, AMX); emulation, which is slower than fp32, does not count.
    """
    if device.type == "cpu":
        return any(_says(torch.cpu, f"_is_{each}_supported") for each in _OF_CPUS)
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= _AMPERE
    return False


_OF_CPUS = ("avx512_bf16", "amx_tile")
_AMPERE = (8, 0)
"""First compute capability with bf16 tensor cores (NVIDIA, CUDA C++ programming guide, 5.1)."""


def _says(module: Any, name: str) -> bool:
    asked: Callable[[], bool] | None = getattr(module, name, None)
    return asked is not None and asked()


def autocast(
    device: torch.device, precision: str, *, cached: bool = True
) -> AbstractContextManager[Any]:
    """Returns the autocast context of a precision: ``bf16`` computes in bfloat16, weights stay
    fp32; ``fp32`` leaves everything as it is, a caller's own autocast included.

    Casts of weights are cached until it ends, unless ``cached`` is false: under FSDP2 the cache
    would keep every gathered layer alive.
    """
    if precision != "bf16":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=cached)


def in_full(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Returns a context within that of ``autocast`` in which nothing is cast, for backward passes
    and sums. Casts that were cached stay.
    """
    if precision != "bf16":
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
