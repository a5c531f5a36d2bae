"""What learned gates cost a training step.

    python benchmarks/masked_step.py [--pairs 12] [--tokens 512] [--profile]

One process alternates plain and masked steps on SmolLM2-135M (fp32, AdamW, every family of gates),
so that a drifting machine slows both. Peak memory is that of two fresh processes; ``--profile``
prints where the difference goes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from step_overhead import now, peak_bytes, prepare

from effcompress import train
from effcompress.runner.gates import drawing
from effcompress.runner.state import RunState

RECIPE = Path(__file__).parents[1] / "recipes" / "baselines" / "sheared_llama.yaml"


def state_of(steps: int, tokens: int, *extra: str) -> RunState:
    """The recipe's model under gates, one sequence a step."""
    sets = (f"data.sequence_length={tokens}", "train.batch_size=1", "train.precision=fp32", *extra)
    return prepare(tokens * (steps + 2), RECIPE, sets)


def step(state: RunState, masked: bool) -> float:
    """Seconds of one training step."""
    spec = state.recipe.train
    assert spec and state.optimizer and state.gates
    batch = state.stream.next(spec.batch_size)
    started = now(state)
    state.step += 1
    if masked:
        train.backward(state.module, batch, spec, around=drawing(state))
        state.gates.gather(state.world)
    else:
        train.backward(state.module, batch, spec)
    train.update(state.module, state.optimizer, spec, 1e-6)
    if masked:
        state.gates.learn(0.1, 0.1)
    return now(state) - started


def peak(mode: str, tokens: int) -> float:
    """Peak memory, in GB, of a fresh process that does a few steps."""
    command = [sys.executable, __file__, "--memory-of", mode, "--tokens", str(tokens)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return json.loads(out.splitlines()[-1])["peak_gb"]


def memory_of(mode: str, tokens: int) -> None:
    state = state_of(3, tokens)
    for _ in range(3):
        step(state, mode == "masked")
    print(json.dumps({"peak_gb": peak_bytes(state) / 1e9}))


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--memory-of", choices=["plain", "masked"])
    options = parser.parse_args()
    if options.memory_of:
        memory_of(options.memory_of, options.tokens)
        return
    state = state_of(2 * options.pairs + 2, options.tokens)
    for masked in (False, True):  # the first steps allocate
        step(state, masked)
    if options.profile:
        for masked in (False, True):
            with torch.profiler.profile() as seen:
                step(state, masked)
            print(seen.key_averages().table(sort_by="self_cpu_time_total", row_limit=16))
        return
    both = [(step(state, False), step(state, True)) for _ in range(options.pairs)]
    ratios = [masked / plain for plain, masked in both]
    memory = {mode: peak(mode, options.tokens) for mode in ("plain", "masked")}
    print(f"pairs: {options.pairs}, ratio min {min(ratios):.3f}, max {max(ratios):.3f}")
    print(f"plain step: {statistics.median(plain for plain, _ in both):.3f} s")
    print(f"masked step: {statistics.median(masked for _, masked in both):.3f} s")
    print(f"peak memory: {memory['plain']:.2f} GB plain, {memory['masked']:.2f} GB masked")
    print(f"memory ratio: {memory['masked'] / memory['plain']:.3f}")
    print(f"ratio: {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
