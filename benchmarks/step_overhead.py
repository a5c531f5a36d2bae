"""What pruning costs a training step: measuring saliency and cutting one lockstep FFN channel.

    python benchmarks/step_overhead.py [--pairs 12]

One process alternates plain steps and pruning steps on SmolLM2-135M (512 tokens, fp32, AdamW), so
that a drifting machine slows both. Peak memory is that of two fresh processes. A commit (shortening
the tensors every 64 removals) is timed too and added to the mean, not to the median.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from effcompress import data, load_recipe, train
from effcompress.distributed.rows import shard_rows
from effcompress.distributed.shards import shard_parameters
from effcompress.distributed.world import ALONE, World
from effcompress.model.cache import cache_root
from effcompress.model.load import load
from effcompress.record.log import Log, make_view
from effcompress.runner.measuring import observe
from effcompress.runner.prune import commit_event, prune_event
from effcompress.runner.state import RunState, device_of, shards_model
from effcompress.types import Due

RECIPE = Path(__file__).parents[1] / "recipes" / "three_kinds_135m.yaml"
SETS = (
    "data.sequence_length=512",
    "train.batch_size=1",
    "prune.space=[{name: ffn, scope: lockstep}]",
    "prune.selector=least_salient",
    "prune.commit_every=64",
)
COMMIT_EVERY = 64


def prepare(
    tokens: int,
    path: Path = RECIPE,
    sets: Sequence[str] = SETS,
    world: World = ALONE,
) -> RunState:
    """A recipe's model and text (by default SmolLM2 and Python's library), at 512 tokens a step."""
    recipe = load_recipe(path, sets).recipe
    own = partial(shard_rows, rank=world.rank, size=world.size)
    model = load(recipe.model, seed=0, rows_of=own if shards_model(recipe, world) else None)
    if model.rows:
        shard_parameters(model.module, world.size, device_of(recipe), model.rows)
    corpus = data.prepare(
        recipe.data,
        model.tokenizer,
        cache_root(),
        train_tokens=tokens,
        heldout_sequences=1,
        offline=False,
        seed=0,
        progress=lambda what, share: None,
        notice=lambda text: None,
    )
    return RunState(recipe, model, corpus, world)


def now(state: RunState) -> float:
    """The clock once the device has done what it was given: a GPU's kernels run asynchronously."""
    if state.device.type == "cuda":
        torch.cuda.synchronize(state.device)
    return time.perf_counter()


def peak_bytes(state: RunState) -> int:
    """Peak of the process's resident memory, or of what was allocated on a GPU."""
    if state.device.type == "cuda":
        return torch.cuda.max_memory_allocated(state.device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def step(state: RunState, log: Log, pruning: bool) -> float:
    """Seconds of one training step, with or without measuring and cutting."""
    spec, prune = state.recipe.train, state.recipe.prune
    assert spec and prune and state.optimizer
    batch = state.stream.next(spec.batch_size)
    started = now(state)
    train.backward(state.module, batch, spec)
    if pruning:
        observe(state, prune)
    train.update(state.module, state.optimizer, spec, 1e-5)
    if pruning:
        prune_event(state, prune, Due(groups=1), log)
    return now(state) - started


def peak(mode: str, steps: int) -> float:
    """Peak memory, in GB, of a fresh process that does a few steps."""
    command = [sys.executable, __file__, "--memory-of", mode, "--pairs", str(steps)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return json.loads(out.splitlines()[-1])["peak_gb"]


def memory_of(mode: str, steps: int) -> None:
    with TemporaryDirectory() as folder:
        log = Log(Path(folder), view=make_view(interactive=False))
        state = prepare(512 * (steps + 1))
        for _ in range(steps):
            step(state, log, mode == "pruning")
        if mode == "pruning":
            commit_event(state, log)
        log.close()
    print(json.dumps({"peak_gb": peak_bytes(state) / 1e9}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--memory-of", choices=["plain", "pruning"])
    options = parser.parse_args()
    if options.memory_of:
        memory_of(options.memory_of, options.pairs)
        return
    with TemporaryDirectory() as folder:
        log = Log(Path(folder), view=make_view(interactive=False))
        state = prepare(512 * (2 * options.pairs + 3))
        for pruning in (False, True):  # the first steps allocate
            step(state, log, pruning)
        plain, pruned = [], []
        for _ in range(options.pairs):
            plain.append(step(state, log, False))
            pruned.append(step(state, log, True))
        started = now(state)
        commit_event(state, log)
        commit = now(state) - started
        log.close()
    ratios = [b / a for a, b in zip(plain, pruned, strict=True)]
    memory = {mode: peak(mode, 3) for mode in ("plain", "pruning")}
    print(f"pairs: {options.pairs}, ratio min {min(ratios):.3f}, max {max(ratios):.3f}")
    print(f"commit: {commit:.2f} s, {commit / COMMIT_EVERY * 1000:.0f} ms per removal")
    mean = (statistics.mean(pruned) + commit / COMMIT_EVERY) / statistics.mean(plain)
    print(f"ratio with commits, of means: {mean:.3f}")
    print(f"peak memory: {memory['plain']:.2f} GB plain, {memory['pruning']:.2f} GB pruning")
    print(f"memory ratio: {memory['pruning'] / memory['plain']:.3f}")
    print(f"plain step: {statistics.median(plain):.3f} s")
    print(f"pruning step: {statistics.median(pruned):.3f} s")
    print(f"ratio: {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
