"""Peak memory of writing on with one model, measured in a process of its own.

``python -m effcompress.commands.memory_probe`` reads a ``Job`` as JSON and
answers bytes by batch size.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from effcompress.errors import RunError
from effcompress.spec import ModelSpec

_STATUS, _PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")
# So that memory that is given back counts as given back.
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


@dataclasses.dataclass(frozen=True)
class Job:
    """What to load and how much to let it write; ``device`` and ``dtype`` by torch's names."""

    spec: ModelSpec
    seed: int
    batches: tuple[int, ...]
    prompt: int
    new: int
    threads: int
    device: str
    dtype: str


def footprint(job: Job) -> dict[int, int | None]:
    """Batch size -> bytes at the peak: on a GPU, what torch allocated; on a CPU, the parameters and
    by how much the resident memory grew (None where the system does not tell).

    Raises RunError with the last line of the process if it fails.
    """
    spec = {k: str(v) if isinstance(v, Path) else v for k, v in vars(job.spec).items()}
    done = subprocess.run(
        [sys.executable, "-m", "effcompress.commands.memory_probe"],
        input=json.dumps({**vars(job), "spec": spec}),
        env={**os.environ, **_MALLOC},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise RunError(f"the process that measures memory failed: {last}")
    return {int(batch): size for batch, size in json.loads(done.stdout.splitlines()[-1]).items()}


def main() -> None:
    """Answer the job on standard input."""
    said: dict[str, Any] = json.loads(sys.stdin.read())
    spec = said["spec"]
    for key in ("folder", "gguf"):
        spec[key] = spec[key] and Path(spec[key])
    job = Job(**{**said, "spec": ModelSpec(**spec), "batches": tuple(said["batches"])})
    sys.stdout.write(json.dumps(_measure(job)) + "\n")


def _measure(job: Job) -> dict[int, int | None]:
    import torch

    from effcompress.evaluation.speed import write_on
    from effcompress.model.load import load

    torch.set_num_threads(job.threads)
    module = load(job.spec, seed=job.seed, offline=True).module
    module = module.to(torch.device(job.device), getattr(torch, job.dtype)).eval()
    tensors = [*module.parameters(), *module.buffers()]
    weights = sum(t.numel() * t.element_size() for t in tensors)

    def run(batch: int, prompt: int, new: int) -> int | None:
        ids_BT = torch.zeros(batch, prompt, dtype=torch.int64, device=job.device)
        before = _begin(job.device)
        write_on(module, ids_BT, new, lambda: 0.0)
        return _peak(job.device, before, weights)

    run(1, 2, 2)  # so that what is loaded or set up once does not count
    return {batch: run(batch, job.prompt, job.new) for batch in job.batches}


def _begin(device: str) -> int | None:
    """Forget the peak so far; the memory now, None where the system does not tell."""
    import torch

    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        return 0
    try:
        _PEAK.write_text("5", encoding="ascii")
        return _status("VmRSS")
    except OSError:
        return None


def _peak(device: str, before: int | None, weights: int) -> int | None:
    import torch

    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    return None if before is None else weights + _status("VmHWM") - before


def _status(field: str) -> int:
    """A size in the kernel's account of this process, in bytes."""
    for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {field}")


if __name__ == "__main__":
    main()
