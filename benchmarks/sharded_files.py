"""Memory of one process while a sharded model is loaded and exported, for several numbers of them.

    python benchmarks/sharded_files.py [--processes 1 2 4] [--layers 8]

A random Llama (hidden 1,024, feed-forward 2,816, 32,000 tokens, tied; 8 layers: 545 MB in fp32) is
written to a folder in fp32 and in bf16, and drawn once more from its configuration. Fresh processes
load it by rows, and export it as they hold it. What is measured is anonymous memory (RssAnon, read
every millisecond in a thread): pages of mapped files are left out, which the system shares among
processes and takes back when it likes. What Python, the libraries and a small model that went the
same way hold is subtracted. Freed memory is given back to the system at once (two variables of
glibc). One thread per process. In one process (`--processes 1`) the model is whole.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from memory import MALLOC

SHAPE: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 64,
    "vocab_size": 32000,
    "tie_word_embeddings": True,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": None,
}
SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "head_dim": 16}
SMALL |= {"num_key_value_heads": 4, "vocab_size": 300}
PHASES = ("loading", "hash", "export")
STATUS = Path("/proc/self/status")


def anonymous() -> int:
    """Bytes of this process that belong to no file."""
    line = next(x for x in STATUS.read_text().splitlines() if x.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024


class Peak:
    """The largest of many readings while a block runs."""

    def __enter__(self) -> Peak:
        self.bytes, self._over = anonymous(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._over.is_set():
            self.bytes = max(self.bytes, anonymous())
            time.sleep(0.001)

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def sources(work: Path, layers: int) -> None:
    """The models that are loaded, in folders, and small ones that warm the libraries up."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from effcompress.model.tokenizer import ByteTokenizer

    for name, changes in (("large", {}), ("small", SMALL)):
        shape = {**SHAPE, **changes, "num_hidden_layers": layers if name == "large" else 1}
        (work / f"{name}.json").write_text(json.dumps(shape))
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(**shape))
        for kind, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            folder = work / f"{name}-{kind}"
            model.to(dtype).save_pretrained(folder)
            ByteTokenizer().save(folder)


def through(work: Path, name: str, kind: str, world: Any) -> dict[str, int]:
    """Loads one model, hashes its weights as a run does, exports it; returns the peaks."""
    import torch

    from effcompress.distributed.rows import shard_rows
    from effcompress.distributed.shards import shard_parameters
    from effcompress.export.forms import form
    from effcompress.export.write import write
    from effcompress.model.load import fingerprint, load
    from effcompress.network.pruned_model import PrunedModel
    from effcompress.spec import ModelSpec

    spec = ModelSpec(folder=work / f"{name}-{kind}", tokenizer="bytes")
    if kind == "random":
        shape = json.loads((work / f"{name}.json").read_text())
        spec = ModelSpec(random=True, shape=shape, tokenizer="bytes")
    several = world.size > 1
    rows_of = partial(shard_rows, rank=world.rank, size=world.size) if several else None
    with Peak() as loading:
        model = load(spec, rows_of=rows_of)
        if several:
            shard_parameters(model.module, world.size, torch.device("cpu"), model.rows)
    module, words, config = model.module, model.tokenizer, model.config
    del model
    with Peak() as hashing:
        fingerprint(module)
    with Peak() as exporting:
        pruned = PrunedModel(module, config)
        write(form(pruned, "uniform"), pruned, words, work / f"out-{name}-{kind}", None, world)
    largest = max(p.nbytes for p in module.parameters())
    total = sum(p.nbytes for p in module.parameters())
    return {
        **{"loading": loading.bytes, "hash": hashing.bytes, "export": exporting.bytes},
        **{"largest": largest, "total": total},
    }


def work_in(work: Path, kind: str) -> None:
    """One of the processes; rank 0 prints the largest peaks of all."""
    from effcompress.distributed.world import joined

    with joined() as world:
        through(work, "small", kind, world)
        libraries = anonymous()
        found = through(work, "large", kind, world)
        for phase in PHASES:
            found[phase] = max(world.each(lambda phase=phase: found[phase] - libraries))
        if world.main:
            print(json.dumps(found | {"libraries": libraries}))


def measured(work: Path, kind: str, processes: int) -> dict[str, int]:
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = {**os.environ, **MALLOC, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*start, __file__, "--worker", kind, "--work", str(work)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--kinds", nargs="+", default=["fp32", "bf16", "random"])
    parser.add_argument("--worker")
    parser.add_argument("--work", type=Path)
    options = parser.parse_args(given)
    if options.worker:
        work_in(options.work, options.worker)
        return
    with TemporaryDirectory() as folder:
        sources(Path(folder), options.layers)
        row: Callable[..., str] = "{:8}{:>10}{:>8}{:>9}{:>9}{:>6}{:>8}{:>22}".format
        print(row("source", "processes", "share", "largest", *PHASES, "beyond both"))
        for kind in options.kinds:
            for n in options.processes:
                found = measured(Path(folder), kind, n)
                share, largest = found["total"] / n, found["largest"]
                peaks = [found[phase] for phase in PHASES]
                more = [peak - share - largest for peak in peaks]
                sizes = [f"{x / 1e6:.0f}" for x in (share, largest, *peaks)]
                print(row(kind, n, *sizes, ", ".join(f"{x / 1e6:+.0f}" for x in more)), flush=True)


if __name__ == "__main__":
    main()
