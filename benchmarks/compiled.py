"""What compiled layers (``train.compile``) are worth: plain and compiled steps take turns.

    python benchmarks/compiled.py [--pairs 8]

SmolLM2-135M, 512 tokens a step, fp32, AdamW, saliency of variant A in both. Half-way heads, FFN and
hidden channels are cut out of the tensors, so that layers differ in their sizes and all of them
change; whatever is compiled then counts as the cut's.
"""

from __future__ import annotations

import argparse
import statistics
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from step_overhead import now, prepare

from effcompress import train
from effcompress.record.log import Log, NoView
from effcompress.runner.measuring import observe
from effcompress.runner.prune import commit_event, prune_event
from effcompress.runner.step import compiled
from effcompress.types import Due

SETS = (
    "data.sequence_length=512",
    "train.batch_size=1",
    "train.compile=true",
    "prune.space=[{name: attention, scope: global}, {name: ffn, scope: global}, hidden]",
    "prune.commit_every=1000000",
)
CUT = 6_000_000


def step(state: Any, log: Log, *, code: bool) -> float:
    """Seconds of a step."""
    spec = state.recipe.train
    batch = state.stream.next(spec.batch_size)
    started = now(state)
    state.module.train()
    with compiled(state, log) if code else nullcontext():
        train.backward(state.module, batch, spec)
    observe(state, state.recipe.prune)
    train.update(state.module, state.optimizer, spec, 1e-5)
    return now(state) - started


def in_turns(state: Any, log: Log, pairs: int, what: str) -> None:
    """Print the ratio of compiled over plain, step by step."""
    plain, code = [], []
    for _ in range(pairs):
        plain.append(step(state, log, code=False))
        code.append(step(state, log, code=True))
    ratios = [b / a for a, b in zip(plain, code, strict=True)]
    print(f"{what}: plain step {statistics.median(plain):.2f} s, compiled "
          f"{statistics.median(code):.2f} s, ratio {statistics.median(ratios):.3f} "
          f"({min(ratios):.3f} to {max(ratios):.3f}), {state.compiled.graphs} graphs so far",
          flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=8)
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        log = Log(Path(folder), view=NoView())
        state = prepare(512 * (4 * options.pairs + 6), sets=SETS)
        step(state, log, code=False)  # allocates
        print(f"first compiled step: {step(state, log, code=True):.0f} s", flush=True)
        in_turns(state, log, options.pairs, "whole")
        prune_event(state, state.recipe.prune, Due(params=state.params - CUT), log)
        commit_event(state, log)
        widths = state.pruned.widths
        ffn = {n for name, n in widths.items() if name.startswith("ffn.")}
        heads = {n for name, n in widths.items() if name.startswith("attention.")}
        print(f"cut: hidden {widths['hidden']}, {len(ffn)} widths of FFN, heads {sorted(heads)}")
        print(f"first step after it: {step(state, log, code=True):.1f} s", flush=True)
        in_turns(state, log, options.pairs, "cut")
        log.close()


if __name__ == "__main__":
    main()
