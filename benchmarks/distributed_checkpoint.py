"""torch.distributed.checkpoint beside this package's checkpoints: which promises are kept.

    python benchmarks/distributed_checkpoint.py [--rows 4096]

Two processes over gloo save the same sharded tensors both ways; then one process looks at what lies
there: whether it can be read by one process, whether a byte that a disk changed is noticed, what a
process that dies in the middle of a second checkpoint of the same name leaves, and the seconds.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn

NAMES = [f"model/layer.{k}.weight" for k in range(4)]


def sharded(rows: int, size: int, value: int) -> dict[str, Tensor]:
    """Four matrices whose rows are divided over the processes; the last one holds ``value``."""
    from effcompress.distributed.shards import shard_parameters

    torch.manual_seed(0)
    module = nn.ParameterList(nn.Parameter(torch.randn(rows, 512)) for _ in NAMES)
    with torch.no_grad():
        module[3].fill_(value)
    shard_parameters(module, size, torch.device("cpu"))
    return dict(zip(NAMES, module, strict=True))


def save_both(work: Path, rows: int, dies: str) -> None:
    """Saves the first checkpoint both ways; with ``dies``, a second one, during which rank 1 is
    killed as soon as it has written its tensors.
    """
    from effcompress.checkpoint import Saved, save
    from effcompress.distributed.rows import own
    from effcompress.distributed.world import joined

    with joined() as world:
        tensors = sharded(rows, world.size, 2 if dies else 1)
        held = {name: p.detach() for name, p in tensors.items()}
        mine = {name: own(t) for name, t in held.items()}
        if dies and world.rank == 1:
            kill_after_data(dies)
        ways: dict[str, Callable[[], Any]] = {
            "torch": lambda: dcp.save(held, checkpoint_id=work / "torch", no_dist=False),
            "own": lambda: save(work / "own", 1, Saved({"step": 1}, {}, mine), 1, world),
        }
        for name, way in ways.items():
            if dies in ("", name):
                started = time.perf_counter()
                way()
                if world.main:
                    print(f"  {name}: saved in {time.perf_counter() - started:.2f} s")


def kill_after_data(way: str) -> None:
    """Rank 1 dies when the data of its file are written, before anything is published."""
    if way == "own":
        os.environ["EFFCOMPRESS_FAULT"] = "save.tensors:1:kill"
        return
    writer: Any = dcp.FileSystemWriter
    written = writer.write_data

    def dies(self: Any, plan: Any, planner: Any) -> Any:
        written(self, plan, planner).wait()
        os.kill(os.getpid(), signal.SIGKILL)

    writer.write_data = dies


def read_torch(work: Path, rows: int) -> dict[str, Tensor]:
    found = {name: torch.zeros(rows, 512) for name in NAMES}
    dcp.load(found, checkpoint_id=work / "torch", no_dist=True)
    return found


def read_own(work: Path, said: list[str]) -> dict[str, Tensor]:
    from effcompress.checkpoint import newest

    saved = newest(work / "own", said.append)
    return {} if saved is None else {name: saved.tensors[name] for name in NAMES}


def told(name: str, look: Callable[[], dict[str, Tensor]]) -> None:
    """Prints what reading gives: the values of the first checkpoint, of the second, or others."""
    try:
        found = look()
    except BaseException as error:  # noqa: BLE001  torch's is no Exception
        print(f"  {name}: cannot be read: {type(error).__name__}: {str(error)[:90]!r}")
        return
    if not found:
        print(f"  {name}: refused as damaged")
        return
    torch.manual_seed(0)
    right = [torch.equal(found[n], torch.randn(*found[n].shape)) for n in NAMES[:3]]
    marks = sorted({float(x) for x in found[NAMES[3]].unique()[:4]})
    print(f"  {name}: read; the first matrices as they were: {right}, the last one holds {marks}")


def spoil(folder: Path, pattern: str) -> None:
    """Changes one byte in the middle of a file of tensors."""
    file = sorted(folder.rglob(pattern))[0]
    data = bytearray(file.read_bytes())
    data[len(data) // 2 - 4321] ^= 16
    file.write_bytes(data)


def launched(work: Path, rows: int, dies: str = "") -> int:
    job = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
    job += ["--worker", str(work), "--rows", str(rows), "--dies", dies]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *job], env=environment, stderr=subprocess.DEVNULL)
    return done.returncode


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--worker", type=Path)
    parser.add_argument("--dies", default="")
    options = parser.parse_args(given)
    rows = options.rows
    if options.worker:
        save_both(options.worker, rows, options.dies)
        return
    print(f"torch {torch.__version__}, {len(NAMES) * rows * 512 * 4 / 1e6:.0f} MB")
    for question, change in {
        "two processes save, one reads": lambda work: None,
        "a byte of a file changes": lambda work: (
            spoil(work / "torch", "*.distcp"),
            spoil(work / "own", "rows-*.safetensors"),
        ),
        "rank 1 is killed in the second checkpoint of the same name": lambda work: (
            launched(work, rows, "torch"),
            launched(work, rows, "own"),
        ),
    }.items():
        with TemporaryDirectory() as folder:
            work, said = Path(folder), list[str]()
            print(question, flush=True)
            assert launched(work, rows) == 0
            change(work)
            told("torch", lambda work=work: read_torch(work, rows))
            told("own", lambda work=work, said=said: read_own(work, said))
            for text in said:
                print(f"    {text}")
            files = sorted(str(f.relative_to(work)) for f in work.rglob("*") if f.is_file())
            print(f"    files: {', '.join(files)}")


if __name__ == "__main__":
    main()
