"""Wall time and peak memory of a part of a run."""

from __future__ import annotations

import contextlib
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch

PROCESS = Path("/proc/self")
_RESET_PEAK = "5"


@dataclass(frozen=True)
class Spent:
    """``memory_bytes`` is the peak on the device: of what torch allocated on a GPU, of the whole
    process (libraries, data and all) on a CPU; None where the system does not tell.
    """

    seconds: float
    memory_bytes: int | None


@final
class Meter:
    """Starts when it is made. Only one at a time: a new one forgets the peak of those before."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
        else:
            # Linux forgets its high-water mark when told to. Elsewhere it is that of the process
            # since its start.
            with contextlib.suppress(OSError):
                (PROCESS / "clear_refs").write_text(_RESET_PEAK)
        self._started = time.monotonic()

    def read(self) -> Spent:
        """What was used since it was made."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            peak = torch.cuda.max_memory_allocated(self._device)
        else:
            peak = _high_water()
        return Spent(time.monotonic() - self._started, peak)


def _high_water() -> int | None:
    with contextlib.suppress(OSError):
        for line in (PROCESS / "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
