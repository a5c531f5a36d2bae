"""Peak memory of generation with one model, measured in a process of its own.

``python -m effcompress.commands.memory_probe`` reads a ``Job`` as JSON and prints bytes by batch
size.
"""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from effcompress.errors import RunError
from effcompress.spec import ModelSpec

# glibc returns freed memory to the system at once, so that the peak is that of live tensors.
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


@dataclasses.dataclass(frozen=True)
class Job:
    """The model, the batch sizes, and tokens to read (``prompt``) and to generate (``new``);
    ``device`` and ``dtype`` by torch's names.
    """

    spec: ModelSpec
    seed: int
    batches: tuple[int, ...]
    prompt: int
    new: int
    threads: int
    device: str
    dtype: str


def footprint(job: Job) -> dict[int, int | None]:
    """Returns batch size -> bytes at the peak: on a GPU, torch's allocations; on a CPU, the
    parameters plus the growth of resident memory (None where the system does not say).

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
    """Runs the job on standard input."""
    said: dict[str, Any] = json.load(sys.stdin)
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

    run(1, 2, 2)  # warm-up: lazily loaded libraries are not counted
    return {batch: run(batch, job.prompt, job.new) for batch in job.batches}


def _begin(device: str) -> int | None:
    """Resets the peak and returns the memory now; None where the system cannot."""
    import torch

    from effcompress.processes import reset_peak, resident

    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        return 0
    try:
        reset_peak()
        return resident()
    except OSError:
        return None


def _peak(device: str, before: int | None, weights: int) -> int | None:
    import torch

    from effcompress.processes import high_water

    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    peak = high_water()
    return None if before is None or peak is None else weights + peak - before


if __name__ == "__main__":
    main()
