"""Wall time and peak memory of a part of a run."""

import contextlib
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch

PROCESS = Path("/proc/self")


@dataclass(frozen=True)
class Spent:
    """Time and ``memory_bytes``, the peak on the device: torch's allocations on a GPU, the resident
    memory of the whole process (with its libraries) on a CPU; None where the system does not say.
    """

    seconds: float
    memory_bytes: int | None


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
            peak = torch.cuda.max_memory_allocated(self._device)
        else:
            peak = high_water()
        return Spent(time.monotonic() - self._started, peak)


def reset_peak() -> None:
    """Sets the peak of this process's resident memory to its present size. Raises OSError where the
    system cannot.
    """
    (PROCESS / "clear_refs").write_text("5", encoding="ascii")  # psutil knows neither


def high_water() -> int | None:
    """Returns the peak of this process's resident memory in bytes; None where it is not known."""
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
