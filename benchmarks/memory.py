"""Memory of training that prunes, measured beside what `effcompress plan` says of it.

    python benchmarks/memory.py [--tokens 512] [--steps 3]

SmolLM2-135M, fp32, AdamW, batches of two sequences. Plain training, variant A and variant B run in
fresh processes, the first and the last also in two over gloo. Each forgets its high-water mark
before every phase and reads it behind; what Python and its libraries held before the model was
loaded is subtracted. Freed memory is given back to the system at once (two variables of glibc),
else the mark of one phase would be that of another. One thread per process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

RECIPES = Path(__file__).parents[1] / "recipes"
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
TRAINING = ("backward", "update", "cut")
TARGET = 128_500_000
"""Parameters after the one cut, which is then the last."""
SIZE = f"prune.target={{params: {TARGET}}}"
ARMS = {
    "plain": ("a", ["prune=null"]),
    "A": ("a", [SIZE]),
    "B": ("b", [SIZE]),
    "A, recomputed": ("a", [SIZE, "train.recompute=true"]),
    "A, shared out": ("a", [SIZE, "distributed.mode=shard"]),
}


def recipe_of(arm: str, tokens: int) -> tuple[Path, list[str]]:
    """Recipe and what is overruled in it."""
    variant, sets = ARMS[arm]
    common = [f"data.sequence_length={tokens}", "train.batch_size=2", "train.precision=fp32"]
    common += ["train.fused=false", "evaluate.batch_size=1", "device=cpu"]
    return RECIPES / f"efficientllm_small_100m_{variant}.yaml", [*common, *sets]


def measured(arm: str, tokens: int, steps: int, processes: int) -> dict[str, int]:
    """Phase -> bytes at its peak beyond the libraries, of the main process."""
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    job = [__file__, "--worker", arm, "--tokens", str(tokens), "--steps", str(steps)]
    environment = {**os.environ, **MALLOC, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*start, *job], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))


def predicted(arm: str, tokens: int, processes: int) -> dict[str, dict[str, float]]:
    """Phase -> part -> bytes, by `effcompress plan`."""
    from effcompress import load_recipe
    from effcompress.estimate.forecast import Launch, plan

    path, sets = recipe_of(arm, tokens)
    return plan(load_recipe(path, sets), Launch(processes)).data["memory_bytes"]


def work(arm: str, tokens: int, steps: int) -> None:
    """One of the processes; the main one prints what it measured."""
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401  its code is a library, too
    from step_overhead import prepare

    import effcompress.runner.run  # noqa: F401
    from effcompress.distributed.world import joined
    from effcompress.runner.resources import Meter

    here = torch.device("cpu")
    (torch.ones(64, 64, requires_grad=True) @ torch.ones(64, 64)).sum().backward()
    libraries = Meter(here).read().memory_bytes
    assert libraries is not None
    found: dict[str, int] = {}

    def phase(name: str, do: Any) -> Any:
        meter = Meter(here)
        said = do()
        peak = meter.read().memory_bytes
        found[name] = max(found.get(name, 0), (peak or 0) - libraries)
        return said

    path, sets = recipe_of(arm, tokens)
    with joined() as world, TemporaryDirectory() as folder:
        state = phase("loading", lambda: prepare(2 * tokens * (steps + 2), path, sets, world))
        train_and_cut(state, steps, Path(folder), phase)
        if world.main:
            print(json.dumps(found))


def train_and_cut(state: Any, steps: int, folder: Path, phase: Any) -> None:
    """The phases of a run, one after another."""
    from effcompress import train
    from effcompress.export.forms import form
    from effcompress.record.log import Log, NoView
    from effcompress.runner.checkpoints import CheckpointWriter
    from effcompress.runner.measuring import listening, observe
    from effcompress.runner.prune import prune_event
    from effcompress.types import Due

    spec, prune, log = state.recipe.train, state.recipe.prune, Log(folder, view=NoView())

    def backward() -> None:
        batch = state.stream.next(spec.batch_size)
        with listening(state):
            train.backward(state.train_module, batch, spec, world=state.world)
        if prune:
            observe(state, prune)

    def cut() -> None:
        prune_event(state, prune, Due(params=TARGET), log)

    for _ in range(steps):
        phase("backward", backward)
        phase(
            "update", lambda: train.update(state.module, state.optimizer, spec, 1e-5, state.world)
        )
    phase("checkpoint", CheckpointWriter(state, folder, log).save)
    if prune:
        phase("cut", cut)
        backward()  # these recipes train on behind the last cut, with the replicas joined again
        train.update(state.module, state.optimizer, spec, 1e-5, state.world)
    phase("export", lambda: exported(state, folder, form))
    log.close()


def exported(state: Any, folder: Path, form: Any) -> None:
    from effcompress.distributed.world import ALONE
    from effcompress.export.write import write

    state.unwrap()
    shared = state.shards is not None
    if shared or state.world.main:
        made, world = form(state.pruned, "exact"), state.world if shared else ALONE
        write(made, state.pruned, state.tokenizer, folder, None, world)


def compare(arm: str, processes: int, tokens: int, steps: int) -> dict[str, int]:
    """Print a table of one arm; returns what was measured."""
    peaks = measured(arm, tokens, steps, processes)
    said = predicted(arm, tokens, processes)
    print(f"\n{arm}, {processes} process{'es' * (processes > 1)}: measured, predicted (GB)")
    for name, peak in peaks.items():
        guess = said[name]["total"]
        print(f"  {name:12}{peak / 1e9:7.2f}{guess / 1e9:7.2f}  {guess / peak - 1:+.1%}")
    top, guess = max(peaks.values()), max(said[name]["total"] for name in peaks)
    print(f"  {'the run':12}{top / 1e9:7.2f}{guess / 1e9:7.2f}  {guess / top - 1:+.1%}")
    return peaks


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--worker", choices=[*ARMS])
    options = parser.parse_args(given)
    tokens, steps = options.tokens, options.steps
    if options.worker:
        work(options.worker, tokens, steps)
        return
    one = {arm: compare(arm, 1, tokens, steps) for arm in [*ARMS][:4]}
    for arm in ("plain", "B", "A, shared out"):
        compare(arm, 2, tokens, steps)
    peak = {arm: max(found.get(name, 0) for name in TRAINING) for arm, found in one.items()}
    print(f"\npeak of training, A over plain: {peak['A'] / peak['plain']:.3f}")
    grams = predicted("B", tokens, 1)["update"]["grams"]
    more = one["B"]["update"] - one["A"]["update"]
    print(f"B minus A: {more / 1e6:.0f} MB, Gram matrices by `plan`: {grams / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
